"""Data value: on invented embeddings of known worth, and Shapley values by hand."""

import numpy as np
import pandas as pd
import pytest
from example_tasks import TASKS, TEXTS
from raising import raises

from pipeline import dataset
from pipeline.config import NoveltyExperimentConfig, ValueConfig
from pipeline.experiments import novelty_use, ridge_learner, value
from pipeline.outcomes import SimulatedOutcomes, expected_worth, oracle
from pipeline.tasks import load_task

DISHES = load_task("dishwashing")
MIXED = DISHES.in_scenario("mixed")
MODEL = SimulatedOutcomes(MIXED)
CLIPS = 20
COMMON, UNIQUE = ("plate", "glass", "mug"), "pan"


def look(context, rng, task=MIXED):
    """Embeddings [n, 128] of clips of contexts in one scene: sums of a context, a scene and a clip vector."""
    embeddings = rng.normal(0, 0.2, (len(context), 128)) + rng.normal(0, 0.1, 128)
    embeddings[np.arange(len(context)), [task.context_names.index(name) for name in context]] += 4
    return embeddings.astype(np.float32)


def write_file(path, videos, *, task=DISHES, contributors=(), labelled=True, price_usd=None):
    """An embeddings file of {id: (contexts [n], embeddings [n, 128])}; ids that begin with `val` are held out."""
    context = np.concatenate([context for context, _ in videos.values()])
    embeddings = np.concatenate([embeddings for _, embeddings in videos.values()])
    counts = [len(context) for context, _ in videos.values()]
    n, names = len(context), list(videos)
    zeros, ones = np.zeros(n), np.ones(len(names))
    unknown = np.full(n, np.nan)
    logs = dataset.Logs(
        context=context.astype(object), actions=np.full((n, task.num_actions), np.nan), attempts=unknown,
        errors=unknown, novel=unknown, price_usd=price_usd,
    )  # fmt: skip
    data = dataset.Embeddings(
        embeddings=embeddings,
        clips=dataset.Clips(
            embeddings, zeros.astype(int), zeros, zeros + 1, zeros.astype(int), np.concatenate([[0], np.cumsum(counts)])
        ),
        videos=dataset.Videos(
            sha256=names, fps=ones, num_frames=ones.astype(int), decoder=names, id=names, path=names,
            split=["val" if name.startswith("val") else "train" for name in names], contributor=list(contributors),
        ),
        task=task, logs=logs if labelled else None,
        projector_mean=np.zeros(128), projector_components=np.eye(128), projector_scale=1.0, attrs={},
    )  # fmt: skip
    dataset.write_embeddings(path, data)
    return path


def demos(seed, *, copies=()):
    """The only video with a pan, eight common ones, one of noise, and copies of some: exact, or blurred by `blur`.

    Pans most need to be seen: blind work treats everything like a glass. Noise is unlike all else, like noise frames
    to the encoder, and its labels are random.
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
    assert alone.low["unique"] > common.max(), "a unique video is worth more"
    assert abs(alone.value["noise"]) < 0.05 * unique, "noise is worth about nothing"
    assert alone.price.sum() <= min(result["spread_per_hour"], alone.value.sum()) + 1e-6
    for blur in (0.0, 0.1):
        _, pair = values_of(tmp_path, demos(seed, copies=[("unique", blur)]), seed)
        assert pair.value[["unique", "unique-copy"]].sum() < 1.5 * unique, "a copy is not a second demonstration"


def test_values_sum_to_the_whole_gain(tmp_path):
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
    """Evidence whose utility is the sum of the values of its parts."""
    return [value.Evidence(np.zeros((1, 1)), np.array([float(p)])) for p in parts]


def round_of(parts, utility, *, keys=None, **settings):
    keys = [(i,) for i in range(len(parts))] if keys is None else keys
    rng = np.random.default_rng(0)
    return value.value_round(additive(parts), keys, utility, rng=rng, **{"tolerance": 0.0, **settings})


def test_additive_evidence_is_valued_at_its_contribution():
    found = round_of([1, -2, 5], lambda total: float(total.moment[0]) + 10)
    assert found.value == pytest.approx([1, -2, 5])
    assert found.leave_one_out == pytest.approx([1, -2, 5])
    assert (found.nothing, found.everything) == (10, 14)


def test_two_substitutes_are_worth_half_each_and_neither_is_missed():
    found = round_of([1, 1], lambda total: float(total.moment[0] >= 1))
    assert found.value == pytest.approx([0.5, 0.5])
    assert found.leave_one_out == pytest.approx([0, 0])


def test_a_copy_shares_the_value_of_the_original():
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


def test_the_learner_chooses_nearly_optimal_actions():
    """On clips of one context seen in training, the preferred actions earn nearly what the oracle earns."""
    rng = np.random.default_rng(0)
    context = np.repeat(np.arange(4), 30)
    seen = np.eye(4)[context]
    blindly = ridge_learner.tried_blindly(MODEL, draws=200, rng=rng)
    evidence = ridge_learner.sample_evidence(MODEL, seen, context, blindly, draws=200, rng=rng)
    profit = ridge_learner.judge(evidence, blindly, ridge_learner.work_to_do(MODEL, seen, context))
    assert profit > 0.98 * oracle(MODEL, np.arange(4)).profit.mean()


def test_evidence_that_contradicts_itself_is_ignored():
    rng = np.random.default_rng(0)
    one_place, four_places = np.ones((40, 1)), np.eye(4)[np.arange(40) % 4]
    same, by_place = np.full((40, 6), 3.0), np.arange(4.0)[np.arange(40) % 4][:, None] * np.ones(6)
    assert ridge_learner.self_consistency(one_place, same) > 0.99
    assert ridge_learner.self_consistency(four_places, by_place) > 0.9
    assert ridge_learner.self_consistency(one_place, rng.normal(size=(40, 6))) < 0.05
    assert ridge_learner.self_consistency(four_places, rng.permutation(by_place) - 1.5) < 0.1
    assert ridge_learner.self_consistency(np.zeros((1, 3)), np.ones((1, 6))) == 1.0, "a single clip cannot"


def test_self_consistency_by_hand():
    """Three clips at one place with outcomes 1, 1, 4 and ridge 2: predictions are the sum of the others / (2 + 2)."""
    expected = 1 - ((1 - 5 / 4) ** 2 * 2 + (4 - 2 / 4) ** 2) / (1 + 1 + 16)
    assert ridge_learner.self_consistency(np.ones((3, 1)), np.array([[1.0], [1.0], [4.0]])) == pytest.approx(expected)


def test_clips_unlike_all_of_the_work_teach_nothing():
    rng = np.random.default_rng(0)
    work = rng.normal(size=(30, 128)).astype(np.float32)
    see = ridge_learner.resemblance(work, np.eye(128))
    assert np.abs(see(work + 100)).max() < 1e-9
    blindly = ridge_learner.tried_blindly(MODEL, draws=50, rng=rng)
    evidence = ridge_learner.sample_evidence(MODEL, see(work + 100), np.zeros(30, int), blindly, draws=50, rng=rng)
    held = ridge_learner.work_to_do(MODEL, see(work), np.arange(30) % 4)
    nothing = value.Evidence(*map(np.zeros_like, evidence))
    assert ridge_learner.judge(evidence, blindly, held) == ridge_learner.judge(nothing, blindly, held)


def test_products_of_views_are_the_kernel():
    """Products of views are exp(-d²/2w²), w half the median distance: by hand for three clips."""
    points = np.zeros((3, 128))
    points[1, 0], points[2, 1] = 3, 4  # distances 3, 4, 5; the median is 4
    seen = ridge_learner.resemblance(points, np.eye(128))(points)
    np.testing.assert_allclose(seen @ seen.T, np.exp(-np.array([[0, 9, 16], [9, 0, 25], [16, 25, 0]]) / 8), atol=1e-9)


def test_differences_between_videos_are_scaled_down_and_those_within_are_not():
    rng = np.random.default_rng(0)
    videos = [rng.normal(0, 1, (40, 128)) * (np.arange(128) == 0) for _ in range(30)]  # the work is in dimension 0
    for clips in videos:
        clips[:, 1] += rng.normal(0, 20)  # the scene in dimension 1
    metric = ridge_learner.scene_free(videos)
    assert metric[0, 0] > 10 * metric[1, 1]
    np.testing.assert_allclose(metric, metric.T, atol=1e-12)


def test_identical_clips_have_a_view():
    seen = ridge_learner.resemblance(np.ones((5, 128)), ridge_learner.scene_free([np.ones((5, 128))]))(
        np.ones((2, 128))
    )
    np.testing.assert_allclose(seen @ seen.T, 1, atol=1e-9)


@pytest.mark.parametrize("task", [MIXED, *TASKS.values()], ids=str)
def test_fitted_profits_are_right_on_average(task):
    """The constant term is the profit of a random action, here by quadrature."""
    model = SimulatedOutcomes(task)
    axis = (np.arange(40) + 0.5) / 40
    unit = np.stack(np.meshgrid(*[axis] * task.num_actions), -1).reshape(-1, task.num_actions)
    for k in range(min(len(task.contexts), 4)):
        profit = expected_worth(model, np.array(k), task.from_unit(unit)).profit.mean()
        tried = ridge_learner.try_out(model, np.full(400, k), draws=100, rng=np.random.default_rng(k))[:, 0]
        assert tried.mean() == pytest.approx(profit, abs=4 * tried.std() / 20)


@pytest.mark.parametrize("num_actions", [1, 2, 3, 5])
def test_terms_are_orthonormal_for_uniform_actions(num_actions):
    """By Gauss-Legendre quadrature, exact up to degree 5."""
    nodes, weights = np.polynomial.legendre.leggauss(3)
    unit = np.stack(np.meshgrid(*[(nodes + 1) / 2] * num_actions), -1).reshape(-1, num_actions)
    weight = np.prod(np.stack(np.meshgrid(*[weights / 2] * num_actions), -1), -1).reshape(-1)
    terms = ridge_learner.action_terms(unit)
    assert terms.shape[1] == (num_actions + 1) * (num_actions + 2) / 2
    np.testing.assert_allclose((weight[:, None] * terms).T @ terms, np.eye(terms.shape[1]), atol=1e-12)


def test_the_terms_of_two_actions_by_hand():
    """At (1, 1/2): 1, 0, -√5/2, √3, 0, √5, in the order of earlier versions."""
    expected = [1, 0, -np.sqrt(5) / 2, np.sqrt(3), 0, np.sqrt(5)]
    assert ridge_learner.action_terms(np.array([1.0, 0.5])) == pytest.approx(expected)


@pytest.mark.parametrize("num_actions", [1, 2, 3, 4, 6, 12])
def test_a_few_hundred_candidate_actions_include_the_corners(num_actions):
    actions = ridge_learner.candidate_actions(num_actions)
    assert 400 <= len(actions) <= 1024 and actions.shape[1] == num_actions
    assert actions.min() == 0 and actions.max() <= 1
    corners = set(map(tuple, actions[((actions == 0) | (actions == 1)).all(1)].tolist()))
    assert num_actions > ridge_learner.MAX_CORNERS or len(corners) == 2**num_actions


def test_copies_have_the_same_outcomes_and_others_do_not():
    clips = np.arange(256, dtype=np.float32).reshape(2, 128)
    assert value.content_key(clips) == value.content_key(clips.copy()) != value.content_key(clips + 1)


# Contributors, and inputs that cannot be valued


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


def test_a_file_without_contributors_is_unchanged(tmp_path):
    one, other = (
        write_file(tmp_path / name, small(), contributors=c) for name, c in (("a.h5", []), ("b.h5", [""] * 4))
    )
    assert dataset.read_embeddings(one).content_sha256 == dataset.read_embeddings(other).content_sha256
    assert dataset.read_embeddings(one).videos.contributor == []
    named = dataset.read_embeddings(write_file(tmp_path / "c.h5", small(), contributors=["", "ann", "bob", "ann"]))
    assert named.videos.contributor == ["", "ann", "bob", "ann"]


def test_errors_say_why_there_is_nothing_to_value(tmp_path):
    def run(path, **settings):
        return value.run(ValueConfig(embeddings=path, out=tmp_path / "out", rounds=2, **settings))

    with raises("contributor-missing") as caught:
        run(write_file(tmp_path / "a.h5", small()), by="contributor")
    assert "v-1" in str(caught.value)
    with raises("labels-missing"):
        run(write_file(tmp_path / "b.h5", small(), labelled=False))
    with raises("value-only-one"):
        run(write_file(tmp_path / "c.h5", small(2)))


# Any task


def small_of(task, n=5, clips=12):
    """Videos of one context each, the first held out; with a single context they are identical."""
    rng = np.random.default_rng(0)
    videos = {"val-0": np.array(task.context_names)[np.arange(max(clips, len(task.contexts))) % len(task.contexts)]}
    videos |= {f"v-{i}": np.array([task.context_names[-1 - i % len(task.contexts)]] * clips) for i in range(n)}
    return {name: (context, look(context, rng, task)) for name, context in videos.items()}


@pytest.mark.parametrize("name", TASKS)
def test_demonstrations_of_any_task_are_valued(tmp_path, name):
    task = TASKS[name]
    path = write_file(tmp_path / "e.h5", small_of(task), task=task)
    result = value.run(ValueConfig(embeddings=path, out=tmp_path, rounds=2, draws=40))
    table = pd.read_csv(tmp_path / "value.csv")
    assert (result["task"], len(table)) == (task.name, 5)
    assert result["blind_profit"] <= result["oracle_profit"] + 1e-9
    assert result["profit_of_all"] <= result["oracle_profit"]
    gained = result["profit_of_all"] - result["profit_of_none"]
    assert result["value_total"] == pytest.approx(gained, abs=0.5)
    assert all((tmp_path / f"value.{kind}").stat().st_size for kind in ("csv", "svg", "png", "json"))


def test_too_few_draws_for_the_terms_are_refused(tmp_path):
    many = TASKS["three actions"]
    actions = {name: action for name, action in many.actions.items()}
    actions |= {f"extra_{i}": many.actions["offset"] for i in range(4)}
    task = many.model_copy(update={"actions": actions})
    path = write_file(tmp_path / "e.h5", small_of(task), task=task)
    with raises("draws-too-few") as caught:
        value.run(ValueConfig(embeddings=path, out=tmp_path, rounds=2, draws=20))
    assert "72" in str(caught.value), "36 terms of 7 actions"


def test_another_tasks_prices_replace_those_of_the_file(tmp_path):
    task = TASKS["three actions"]
    path = write_file(tmp_path / "e.h5", small_of(task), task=task)
    dear = tmp_path / "dear.yaml"
    dear.write_text(
        TEXTS["three actions"].replace("price_usd: 0.3", "price_usd: 3").replace("price_usd: 0.5", "price_usd: 5")
    )
    settings = {"embeddings": path, "out": tmp_path, "rounds": 2, "draws": 40}
    usual, other = (value.run(ValueConfig(**settings, task=name)) for name in (None, str(dear)))
    assert other["oracle_profit"] > 8 * usual["oracle_profit"]


def test_a_clips_own_price_counts(tmp_path):
    task = TASKS["one action"]
    videos = small_of(task)
    num_clips = sum(len(context) for context, _ in videos.values())
    usual, twice = (
        value.run(
            ValueConfig(
                embeddings=write_file(tmp_path / f"{i}.h5", videos, task=task, price_usd=price), out=tmp_path, rounds=2
            )
        )
        for i, price in enumerate((None, np.full(num_clips, 0.5)))
    )
    assert twice["oracle_profit"] > 2 * usual["oracle_profit"]


# Novelty


def write_novelty(path, embeddings, score):
    content = dataset.read_embeddings(embeddings).content_sha256
    weight = (score / score.mean()).astype(np.float32)
    dataset.write_novelty(path, {"weight": weight, "score": score}, {"content_sha256": content, "model": "made up"})


@pytest.mark.parametrize("name", TASKS)
def test_novelty_is_compared_in_any_task(tmp_path, name):
    task = TASKS[name]
    path = write_file(tmp_path / "embeddings.h5", small_of(task), task=task)
    settings = {"embeddings": path, "out": tmp_path, "rounds": 2, "draws": 40}
    with raises("novelty-missing"):
        novelty_use.run(NoveltyExperimentConfig(**settings))
    num_clips = dataset.read_embeddings(path).num_clips
    write_novelty(tmp_path / "novelty.h5", path, np.random.default_rng(0).random(num_clips))
    result = novelty_use.run(NoveltyExperimentConfig(**settings))
    table = pd.read_csv(tmp_path / "novelty.csv")
    assert len(table) == 2 * (3 + 3 * 4) and np.isfinite(table.profit).all()
    assert (result["demonstrations"], result["clips"]) == (5, 60)
