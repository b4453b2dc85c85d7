import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline import noise_gap
from pipeline.noise_gap import channels, detection

EVERYONE = np.ones(100, bool)


def test_complexity_is_removed_without_extrapolation():
    rng = np.random.default_rng(0)
    complexity = rng.uniform(0, 1, (100, 2))
    values = (3 + complexity @ [2.0, -1.0])[:, None]
    assert np.abs(channels.remove_complexity(values, complexity, EVERYONE)).max() < 1e-9
    frozen = np.append(complexity, [[-9.0, 0.5]], axis=0)
    found = channels.remove_complexity(np.append(values, [[2.5]], axis=0), frozen, np.append(EVERYONE, False))
    assert found[-1, 0] == pytest.approx(2.5 - (3 + 2 * complexity[:, 0].min() - 0.5))  # not 2.5 − (3 − 18 − 0.5)


def test_with_few_clips_only_the_median_is_removed():
    values = np.arange(10.0)[:, None]
    found = channels.remove_complexity(values, values.repeat(2, axis=1), np.ones(10, bool))
    assert (found[:, 0] == np.arange(10) - 4.5).all()


def test_robust_z_is_the_normal_deviate_by_the_reference_only():
    values = np.random.default_rng(1).standard_normal((20_000, 1)) * 3 + 5
    reference = np.ones(20_001, bool)
    reference[-1] = False
    z = channels.robust_z(np.append(values, [[1e9]], axis=0), reference)[:-1]
    assert z.mean() == pytest.approx(0, abs=0.03) and z.std() == pytest.approx(1, abs=0.03)


def test_the_score_is_the_length_of_the_positive_deviations():
    rng = np.random.default_rng(2)
    deviations = rng.standard_normal((100, 2))
    deviations[0], deviations[1], deviations[2] = (5, -5), (5, 0), (-9, -9)
    score = channels.novelty_score(deviations, EVERYONE)
    assert score[0] == score[1] == score.max() and score[2] == score.min()
    assert (np.abs(score) <= channels.MAX_SCORE).all()


@pytest.mark.parametrize("scale", [0, 0.1, 1, 6])
def test_weights_are_bounded_with_mean_one_over_visits(scale):
    rng = np.random.default_rng(3)
    score, visits = np.clip(scale * rng.standard_normal(1000), -6, 6), rng.integers(0, 4, 1000)
    found = noise_gap.weights(score, visits)
    assert found.dtype == np.float32 and found.min() >= 0.5 and found.max() <= 2
    assert found @ visits / visits.sum() == pytest.approx(1, abs=1e-3)
    assert (np.diff(found[np.argsort(score)]) >= 0).all()


def test_a_clip_is_not_its_own_neighbour():
    embeddings = np.array([[0.0], [1.0], [3.0], [10.0]])
    reference = np.array([True, True, True, False])
    assert noise_gap.knn_distance(embeddings, reference, neighbours=1).tolist() == [1, 1, 2, 7]
    assert noise_gap.knn_distance(embeddings, reference, neighbours=9).tolist() == [2, 1.5, 2.5, 8]


def moving_spots(num_clips, rng, *, speed=1.0):
    """Thumbnails [N, 16, 8, 8, 3] of a spot that circles clockwise from a random angle."""
    t = np.arange(16) * speed * 0.35 + rng.uniform(0, 2 * np.pi, (num_clips, 1))
    y, x = np.mgrid[:8, :8]
    distance = (x - 3.5 - 2.5 * np.cos(t)[..., None, None]) ** 2 + (y - 3.5 - 2.5 * np.sin(t)[..., None, None]) ** 2
    spots = np.exp(-distance / 3)[..., None] * [0.9, 0.8, 0.7]
    return spots + 0.02 * rng.standard_normal(spots.shape)


ORDINARY = slice(200)
# What is done to a clip, and the channel that must see it.
ODD = {
    "reversed": (lambda clip, rng: clip[::-1], "order"),
    "played to the middle and back": (lambda clip, rng: clip[np.r_[0:8, 7:-1:-1]], "order"),
    "thrice as fast": (lambda clip, rng: moving_spots(1, rng, speed=3.0)[0], "motion"),
    "shuffled": (lambda clip, rng: rng.permutation(clip), "motion"),
    "frozen half way": (lambda clip, rng: clip[np.minimum(np.arange(16), 8)], "motion"),
    "cut to another clip": (lambda clip, rng: np.append(clip[:8], moving_spots(1, rng)[0, 8:], axis=0), "motion"),
    "of another colour": (lambda clip, rng: clip * [0.2, 1.2, 0.2], "picture"),
    "a negative": (lambda clip, rng: 1 - clip, "picture"),
    "upside down": (lambda clip, rng: 0.5 - clip[:, ::-1], "picture"),
}


@pytest.mark.parametrize("kind", ODD)
def test_each_kind_of_novelty_raises_its_channel(kind):
    rng = np.random.default_rng(4)
    change, channel = ODD[kind]
    clips = moving_spots(210, rng)
    clips[200:] = [change(clip, rng) for clip in clips[200:]]
    reference = np.arange(len(clips)) < 200
    found = channels.clip_channels(clips, reference, np.arange(len(clips)) % 2)[channel]
    assert found[200:].min() > np.quantile(found[ORDINARY], 0.98)


def test_the_order_of_a_clip_and_of_its_reverse_are_opposite():
    rng = np.random.default_rng(5)
    clips = moving_spots(100, rng)
    both = np.concatenate([clips, clips[:, ::-1]])
    order = channels.clip_channels(both, np.arange(200) < 100, np.arange(200) % 2)["order"]
    assert order[:100] == pytest.approx(-order[100:], abs=1e-3)
    assert order[:100].max() < 0 < order[100:].min()


def test_gaussian_distance_is_the_likelihood_under_probabilistic_pca():
    rng = np.random.default_rng(6)
    known = rng.standard_normal((500, 6)) * [5, 3, 1, 1, 1, 1]
    pca = PCA(2).fit(known)
    vectors = rng.standard_normal((20, 6)) * 4
    precision = pca.get_precision()
    expected = np.einsum("nd,de,ne->n", vectors - pca.mean_, precision, vectors - pca.mean_)
    assert channels.gaussian_distance(pca, vectors) == pytest.approx(expected)


def test_unexplained_energy_by_hand():
    basis = channels.principal_components(np.array([[3.0, 0, 0], [0, 2, 0], [0, 0, 1]]), 2)
    assert channels.unexplained(np.array([[1.0, 1, 2], [5, 0, 0]]), basis) == pytest.approx([4, 0], abs=1e-8)


@pytest.mark.parametrize("num_frames", [2, 5])
def test_clips_shorter_than_a_window_and_clips_where_nothing_moves(num_frames):
    clips = moving_spots(40, np.random.default_rng(7))[:, :num_frames]
    clips[3] = clips[3, :1]
    found = channels.clip_channels(clips, np.ones(40, bool), np.arange(40) % 2)
    assert all(np.isfinite(values).all() for values in found.values())


@pytest.mark.slow
def test_scores_find_planted_clips_in_any_order():
    rng = np.random.default_rng(8)
    clips, gap = moving_spots(120, rng), rng.standard_normal((120, 5))
    clips[:4] = clips[:4, ::-1]
    folds, complexity, everyone = np.arange(120) % 2, rng.standard_normal((120, 2)), np.ones(120, bool)
    found = noise_gap.score(gap, clips, complexity, everyone, folds)
    assert found.score[:4].min() > np.quantile(found.score[4:], 0.9)
    mixed = rng.permutation(120)
    again = noise_gap.score(gap[mixed], clips[mixed], complexity[mixed], everyone, folds[mixed])
    assert again.score == pytest.approx(found.score[mixed], abs=1e-5)


def test_detection_by_hand():
    score = np.array([0.0, 1, 2, 3, 9, 9, 1.5, np.nan])
    novel = np.array([0, 0, 0, 0, 1, 1, 1, np.nan])
    kinds = np.array(["", "", "", "", "fast", "fast", "", ""])
    found = detection.detection({"score": score}, kinds, novel, np.random.default_rng(0))["score"]
    assert found["fast"]["auroc"] == 1 and found["fast"]["clips"] == 2 and found["fast"]["auroc_ci95"] == [1, 1]
    assert found["novel"]["auroc"] == 0.5 and found["novel"]["average_precision"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_ranking_metrics_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    ordinary, planted = rng.integers(0, 9, 30).astype(float), rng.integers(3, 12, 7).astype(float)
    counts = [rng.integers(0, 4, (2, 30)), rng.integers(1, 4, (2, 7))]
    auroc, precision = detection.ranking_metrics(ordinary, planted, *counts)
    for r in range(2):
        score = np.concatenate([np.repeat(ordinary, counts[0][r]), np.repeat(planted, counts[1][r])])
        truth = np.repeat([0, 1], [counts[0][r].sum(), counts[1][r].sum()])
        assert auroc[r] == pytest.approx(roc_auc_score(truth, score))
        assert precision[r] == pytest.approx(average_precision_score(truth, score))


def test_no_rank_correlation_with_a_constant():
    assert detection.rank_correlation(np.ones(9), np.arange(9.0)) is None
    assert detection.rank_correlation(np.arange(9.0) ** 3, np.arange(9.0)) == pytest.approx(1)
