import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline import surprise

EVERYONE = np.ones(100, bool)


def test_complexity_is_removed_and_not_excused_beyond_what_is_known():
    rng = np.random.default_rng(0)
    complexity = rng.uniform(0, 1, (100, 2))
    values = (3 + complexity @ [2.0, -1.0])[:, None]
    assert np.abs(surprise.remove_complexity(values, complexity, EVERYONE)).max() < 1e-9
    frozen = np.append(complexity, [[-9.0, 0.5]], axis=0)
    found = surprise.remove_complexity(np.append(values, [[2.5]], axis=0), frozen, np.append(EVERYONE, False))
    assert found[-1, 0] == pytest.approx(2.5 - (3 + 2 * complexity[:, 0].min() - 0.5))  # not 2.5 − (3 − 18 − 0.5)


def test_with_few_clips_only_the_median_is_removed():
    values = np.arange(10.0)[:, None]
    found = surprise.remove_complexity(values, values.repeat(2, axis=1), np.ones(10, bool))
    assert (found[:, 0] == np.arange(10) - 4.5).all()


def test_robust_z_is_the_normal_deviate_and_ignores_who_is_not_in_the_reference():
    values = np.random.default_rng(1).standard_normal((20_000, 1)) * 3 + 5
    reference = np.ones(20_001, bool)
    reference[-1] = False
    z = surprise.robust_z(np.append(values, [[1e9]], axis=0), reference)[:-1]
    assert z.mean() == pytest.approx(0, abs=0.03) and z.std() == pytest.approx(1, abs=0.03)


def test_the_score_is_the_length_of_the_positive_deviations():
    rng = np.random.default_rng(2)
    channels = rng.standard_normal((100, 2))
    channels[0], channels[1], channels[2] = (5, -5), (5, 0), (-9, -9)
    score = surprise.novelty_score(channels, EVERYONE)
    assert score[0] == score[1] == score.max() and score[2] == score.min()
    assert (np.abs(score) <= surprise.MAX_SCORE).all()


@pytest.mark.parametrize("scale", [0, 0.1, 1, 6])
def test_weights_are_bounded_with_mean_one_over_visits(scale):
    rng = np.random.default_rng(3)
    score, visits = np.clip(scale * rng.standard_normal(1000), -6, 6), rng.integers(0, 4, 1000)
    found = surprise.weights(score, visits)
    assert found.dtype == np.float32 and found.min() >= 0.5 and found.max() <= 2
    assert found @ visits / visits.sum() == pytest.approx(1, abs=1e-3)
    assert (np.diff(found[np.argsort(score)]) >= 0).all()


def test_a_clip_is_not_its_own_neighbour():
    embeddings = np.array([[0.0], [1.0], [3.0], [10.0]])
    reference = np.array([True, True, True, False])
    assert surprise.knn_distance(embeddings, reference, neighbours=1).tolist() == [1, 1, 2, 7]
    assert surprise.knn_distance(embeddings, reference, neighbours=9).tolist() == [2, 1.5, 2.5, 8]


def moving_spots(num_clips, rng, *, speed=1.0):
    """Thumbnails [N, 16, 8, 8, 3] of a spot that goes round, clockwise, from a random angle."""
    t = np.arange(16) * speed * 0.35 + rng.uniform(0, 2 * np.pi, (num_clips, 1))
    y, x = np.mgrid[:8, :8]
    distance = (x - 3.5 - 2.5 * np.cos(t)[..., None, None]) ** 2 + (y - 3.5 - 2.5 * np.sin(t)[..., None, None]) ** 2
    spots = np.exp(-distance / 3)[..., None] * [0.9, 0.8, 0.7]
    return spots + 0.02 * rng.standard_normal(spots.shape)


def test_the_clip_codec_sees_reversed_and_fast_motion_and_another_picture():
    rng = np.random.default_rng(4)
    ordinary, fast = moving_spots(200, rng), moving_spots(10, rng, speed=3.0)
    reverse, tinted = moving_spots(10, rng)[:, ::-1], moving_spots(10, rng) * [0.2, 1.2, 0.2]
    clips = np.concatenate([ordinary, fast, reverse, tinted])
    reference = np.arange(len(clips)) < 200
    found = surprise.clip_channels(clips, reference, np.arange(len(clips)) % 2)
    for name, kinds in (("motion", (slice(200, 210), slice(210, 220))), ("picture", (slice(220, 230),))):
        assert all(found[name][kind].min() > found[name][:200].max() for kind in kinds), name


def test_detection_by_hand():
    score = np.array([0.0, 1, 2, 3, 9, 9, 1.5, np.nan])
    novel = np.array([0, 0, 0, 0, 1, 1, 1, np.nan])
    kinds = np.array(["", "", "", "", "fast", "fast", "", ""])
    found = surprise.detection({"score": score}, kinds, novel, np.random.default_rng(0))["score"]
    assert found["fast"]["auroc"] == 1 and found["fast"]["clips"] == 2 and found["fast"]["auroc_ci95"] == [1, 1]
    assert found["novel"]["auroc"] == 0.5 and found["novel"]["average_precision"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_ranking_metrics_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    ordinary, planted = rng.integers(0, 9, 30).astype(float), rng.integers(3, 12, 7).astype(float)
    counts = [rng.integers(0, 4, (2, 30)), rng.integers(1, 4, (2, 7))]
    auroc, precision = surprise.ranking_metrics(ordinary, planted, *counts)
    for r in range(2):
        score = np.concatenate([np.repeat(ordinary, counts[0][r]), np.repeat(planted, counts[1][r])])
        truth = np.repeat([0, 1], [counts[0][r].sum(), counts[1][r].sum()])
        assert auroc[r] == pytest.approx(roc_auc_score(truth, score))
        assert precision[r] == pytest.approx(average_precision_score(truth, score))


def test_no_rank_correlation_with_a_constant():
    assert surprise.rank_correlation(np.ones(9), np.arange(9.0)) is None
    assert surprise.rank_correlation(np.arange(9.0) ** 3, np.arange(9.0)) == pytest.approx(1)
