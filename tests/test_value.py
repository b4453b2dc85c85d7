"""Data value: on made-up embeddings whose worth is known, and the arithmetic of Shapley values by hand."""

import numpy as np
import pandas as pd
import pytest

from pipeline import dataset
from pipeline.config import ValueConfig
from pipeline.errors import VtpError
from pipeline.experiments import value
from pipeline.synthetic import dynamics

MIXED = dynamics.scenario("dishwashing", "mixed")
CLIPS = 20
COMMON, UNIQUE = ("plate", "glass", "mug"), "pan"


def look(context, rng):
    """Embeddings [n, 128] of clips of contexts in one scene: what it is, the scene, the clip."""
    embeddings = rng.normal(0, 0.2, (len(context), 128)) + rng.normal(0, 0.1, 128)
    embeddings[np.arange(len(context)), [MIXED.context_names.index(name) for name in context]] += 4
    return embeddings.astype(np.float32)


def write_file(path, videos, *, contributors=(), labelled=True):
    """An embeddings file of {id: (contexts [n], embeddings [n, 128])}; ids that begin with `val` are held out."""
    context = np.concatenate([context for context, _ in videos.values()])
    embeddings = np.concatenate([embeddings for _, embeddings in videos.values()])
    counts = [len(context) for context, _ in videos.values()]
    n, names = len(context), list(videos)
    numbers = dict.fromkeys(dataset.LABEL_NUMBERS, np.full(n, np.nan))
    zeros, ones = np.zeros(n), np.ones(len(names))
    data = dataset.Embeddings(
        embeddings=embeddings,
        clips=dataset.Clips(
            embeddings, zeros, zeros, zeros, zeros.astype(int), np.concatenate([[0], np.cumsum(counts)])
        ),
        videos=dataset.Videos(
            sha256=names, fps=ones, num_frames=ones.astype(int), decoder=names, id=names, path=names,
            split=["val" if name.startswith("val") else "train" for name in names],
            task=["dishwashing"] * len(names), contributor=list(contributors),
        ),
        labels={"context": context.astype(object), **numbers} if labelled else None,
        projector_mean=np.zeros(128), projector_components=np.eye(128), projector_scale=1.0, attrs={},
    )  # fmt: skip
    dataset.write_embeddings(path, data)
    return path


def demos(seed, *, copies=()):
    """The only video with a pan, eight common ones, one of noise, and copies of some: exact, or by `blur` not quite.

    Of all contexts it is pans that must be seen: blind work treats everything as if it were a glass. The noise looks
    like nothing else, as television snow does to the encoder, and its labels are drawn at random.
    """
    rng = np.random.default_rng(seed)
    videos = {f"common-{i}": np.array(COMMON)[rng.integers(3, size=CLIPS)] for i in range(8)}
    videos |= {"unique": np.array([UNIQUE] * CLIPS)}
    videos |= {f"val-{i}": np.array(MIXED.context_names)[rng.integers(4, size=20)] for i in range(6)}
    videos = {name: (context, look(context, rng)) for name, context in videos.items()}
    snow = rng.normal(0, 1.2, 128) + rng.normal(0, 0.2, (CLIPS, 128))
    videos["noise"] = (np.array(MIXED.context_names)[rng.integers(4, size=CLIPS)], snow.astype(np.float32))
    for name, blur in copies:
        context, embeddings = videos[name]
        videos[f"{name}-copy"] = (context, embeddings + np.float32(blur) * rng.normal(size=embeddings.shape))
    return videos


def values_of(tmp_path, videos, seed, **settings):
    path = write_file(tmp_path / "embeddings.h5", videos)
    result = value.run(ValueConfig(embeddings=path, out=tmp_path / "out", rounds=4, seed=seed, **settings))
    return result, pd.read_csv(tmp_path / "out" / "value.csv").set_index("name")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_demonstrations_are_ranked(tmp_path, seed):
    result, alone = values_of(tmp_path, demos(seed), seed)
    unique, common = alone.value["unique"], alone.value[alone.index.str.startswith("common")]
    assert alone.low["unique"] > common.max(), "what nobody else shows is worth more"
    assert abs(alone.value["noise"]) < 0.05 * unique, "noise is worth about nothing"
    assert alone.price.sum() <= min(result["spread_per_hour"], alone.value.sum()) + 1e-6
    for blur in (0.0, 0.1):
        _, pair = values_of(tmp_path, demos(seed, copies=[("unique", blur)]), seed)
        assert pair.value[["unique", "unique-copy"]].sum() < 1.5 * unique, "a copy is no second demo"


def test_all_that_was_learned_is_shared_out(tmp_path):
    result, table = values_of(tmp_path, demos(3), 3, tolerance=0)
    assert table.value.sum() == pytest.approx(result["profit_of_all"] - result["profit_of_none"])
    cut, _ = values_of(tmp_path, demos(3), 3, tolerance=0.1)
    assert cut["value_total"] == pytest.approx(result["value_total"], abs=0.1)
    assert cut["policies_learned"] < result["policies_learned"] <= 4 * (2 + 10 + 10 * 10)


def test_the_same_seed_gives_the_same_values(tmp_path):
    videos = {name: pair for name, pair in demos(0).items() if name[-1] in "01s"}
    one, other = (values_of(tmp_path / name, videos, 0)[1] for name in "ab")
    pd.testing.assert_frame_equal(one, other)


# By hand


def additive(parts):
    """Evidence whose utility is the sum of what each part is worth."""
    return [value.Evidence(np.zeros((1, 1)), np.array([float(p)])) for p in parts]


def round_of(parts, utility, *, keys=None, **settings):
    keys = [(i,) for i in range(len(parts))] if keys is None else keys
    rng = np.random.default_rng(0)
    return value.value_round(additive(parts), keys, utility, rng=rng, **{"tolerance": 0.0, **settings})


def test_what_adds_up_is_valued_at_what_it_adds():
    found = round_of([1, -2, 5], lambda total: float(total.moment[0]) + 10)
    assert found.value == pytest.approx([1, -2, 5])
    assert found.leave_one_out == pytest.approx([1, -2, 5])
    assert (found.nothing, found.everything) == (10, 14)


def test_of_two_of_which_one_would_do_each_is_worth_half_and_neither_is_missed():
    found = round_of([1, 1], lambda total: float(total.moment[0] >= 1))
    assert found.value == pytest.approx([0.5, 0.5])
    assert found.leave_one_out == pytest.approx([0, 0])


def test_a_copy_shares_the_value_of_what_it_copies():
    found = round_of([3, 3, 4], lambda total: float(total.moment[0]), keys=[(0,), (0,), (1,)])
    assert found.value[0] + found.value[1] == pytest.approx(3)
    assert found.value[2] == pytest.approx(4)
    assert found.leave_one_out == pytest.approx([0, 0, 4])
    assert found.everything == 7


def test_a_tolerance_saves_policies_and_never_pays_more_than_there_is():
    parts, done = [3.0] * 10, lambda total: min(float(total.moment[0]), 9.0)
    full, cut = round_of(parts, done), round_of(parts, done, tolerance=0.5)
    assert cut.policies < full.policies
    assert cut.value == pytest.approx(full.value)


def test_the_learner_knows_what_an_action_brings():
    """On clips of one context seen in training, the preferred actions earn nearly what the oracle earns."""
    rng = np.random.default_rng(0)
    context = np.repeat(np.arange(4), 30)
    seen = np.eye(4)[context]
    blindly = value.tried_blindly(MIXED, draws=200, rng=rng)
    evidence = value.sample_evidence(MIXED, seen, context, blindly, draws=200, rng=rng)
    profit = value.judge(evidence, blindly, value.work_to_do(MIXED, seen, context))
    assert profit > 0.98 * value.oracle(MIXED).profit.mean()


def test_evidence_that_contradicts_itself_is_not_believed():
    rng = np.random.default_rng(0)
    one_place, four_places = np.ones((40, 1)), np.eye(4)[np.arange(40) % 4]
    same, by_place = np.full((40, 6), 3.0), np.arange(4.0)[np.arange(40) % 4][:, None] * np.ones(6)
    assert value.self_consistency(one_place, same) > 0.99
    assert value.self_consistency(four_places, by_place) > 0.9
    assert value.self_consistency(one_place, rng.normal(size=(40, 6))) < 0.05
    assert value.self_consistency(four_places, rng.permutation(by_place) - 1.5) < 0.1
    assert value.self_consistency(np.zeros((1, 3)), np.ones((1, 6))) == 1.0, "a single clip cannot"


def test_self_consistency_by_hand():
    """Three clips at one place with outcomes 1, 1, 4 and ridge 2: each is predicted as the others' sum over 2 + 2."""
    expected = 1 - ((1 - 5 / 4) ** 2 * 2 + (4 - 2 / 4) ** 2) / (1 + 1 + 16)
    assert value.self_consistency(np.ones((3, 1)), np.array([[1.0], [1.0], [4.0]])) == pytest.approx(expected)


def test_what_is_like_nothing_of_the_work_teaches_nothing():
    rng = np.random.default_rng(0)
    work = rng.normal(size=(30, 128)).astype(np.float32)
    see = value.resemblance(work, np.eye(128))
    assert np.abs(see(work + 100)).max() < 1e-9
    blindly = value.tried_blindly(MIXED, draws=50, rng=rng)
    evidence = value.sample_evidence(MIXED, see(work + 100), np.zeros(30, int), blindly, draws=50, rng=rng)
    held = value.work_to_do(MIXED, see(work), np.arange(30) % 4)
    nothing = value.Evidence(*map(np.zeros_like, evidence))
    assert value.judge(evidence, blindly, held) == value.judge(nothing, blindly, held)


def test_the_view_of_the_work_is_its_kernel():
    """Products of views are exp(-d²/2w²), w half the median distance: by hand for three clips."""
    points = np.zeros((3, 128))
    points[1, 0], points[2, 1] = 3, 4  # distances 3, 4, 5; the median is 4
    seen = value.resemblance(points, np.eye(128))(points)
    np.testing.assert_allclose(seen @ seen.T, np.exp(-np.array([[0, 9, 16], [9, 0, 25], [16, 25, 0]]) / 8), atol=1e-9)


def test_what_tells_videos_apart_is_scaled_down_and_what_changes_within_them_is_not():
    rng = np.random.default_rng(0)
    videos = [rng.normal(0, 1, (40, 128)) * (np.arange(128) == 0) for _ in range(30)]  # the work is in dimension 0
    for clips in videos:
        clips[:, 1] += rng.normal(0, 20)  # the scene in dimension 1
    metric = value.scene_free(videos)
    assert metric[0, 0] > 10 * metric[1, 1]
    np.testing.assert_allclose(metric, metric.T, atol=1e-12)


def test_clips_that_are_all_the_same_can_be_looked_at():
    seen = value.resemblance(np.ones((5, 128)), value.scene_free([np.ones((5, 128))]))(np.ones((2, 128)))
    np.testing.assert_allclose(seen @ seen.T, 1, atol=1e-9)


def test_trying_out_is_right_on_average():
    """The constant term is the profit of a random action, here by quadrature."""
    axis = (np.arange(200) + 0.5) / 200
    speed, care = np.meshgrid(axis, axis)
    for k, context in enumerate(MIXED.contexts):
        rate, p_err = dynamics.dynamics(MIXED, k, speed, care)
        good, bad = (60 * dynamics.expected_attempts(rate) * p for p in (1 - p_err, p_err))
        profit = context.price_usd * good - context.damage_usd * bad - MIXED.energy_usd_per_hour
        tried = value.try_out(MIXED, np.full(400, k), draws=100, rng=np.random.default_rng(k))[:, 0]
        assert tried.mean() == pytest.approx(profit.mean(), abs=4 * tried.std() / 20)


def test_copies_bring_the_same_outcomes_and_others_do_not():
    clips = np.arange(256, dtype=np.float32).reshape(2, 128)
    assert value.content_key(clips) == value.content_key(clips.copy()) != value.content_key(clips + 1)


# Contributors, and what cannot be valued


def small(n=4):
    rng = np.random.default_rng(0)
    contexts = {f"{'val' if i == 0 else 'v'}-{i}": np.array(MIXED.context_names) for i in range(n)}
    return {name: (context, look(context, rng)) for name, context in contexts.items()}


def test_contributors_are_valued_over_all_their_videos(tmp_path):
    path = write_file(tmp_path / "e.h5", small(), contributors=["", "ann", "bob", "ann"])
    result = value.run(ValueConfig(embeddings=path, out=tmp_path, by="contributor", rounds=2))
    table = pd.read_csv(tmp_path / "value.csv").set_index("name")
    assert dict(table.clips) == {"ann": 8, "bob": 4}
    assert result["demonstrations"] == 2


def test_a_file_that_names_no_contributor_is_what_it_was_before_there_were_any(tmp_path):
    one, other = (
        write_file(tmp_path / name, small(), contributors=c) for name, c in (("a.h5", []), ("b.h5", [""] * 4))
    )
    assert dataset.read_embeddings(one).content_sha256 == dataset.read_embeddings(other).content_sha256
    assert dataset.read_embeddings(one).videos.contributor == []
    named = dataset.read_embeddings(write_file(tmp_path / "c.h5", small(), contributors=["", "ann", "bob", "ann"]))
    assert named.videos.contributor == ["", "ann", "bob", "ann"]


def test_what_cannot_be_valued_says_why(tmp_path):
    def run(path, **settings):
        return value.run(ValueConfig(embeddings=path, out=tmp_path / "out", rounds=2, **settings))

    with pytest.raises(VtpError, match="v-1 has no contributor; name one for each in the manifest"):
        run(write_file(tmp_path / "a.h5", small()), by="contributor")
    with pytest.raises(VtpError, match="has no labels"):
        run(write_file(tmp_path / "b.h5", small(), labelled=False))
    with pytest.raises(VtpError, match="only one video to value"):
        run(write_file(tmp_path / "c.h5", small(2)))
