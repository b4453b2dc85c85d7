"""Values from logs: contributors of known worth, and Shapley values by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from logged_contributors import MIXED, copied, data_of, demonstrations, planted
from raising import raises

from pipeline import dataset
from pipeline.config import NoveltyExperimentConfig, ValueConfig
from pipeline.experiments import novelty_use, value
from pipeline.experiments.log_learner import LogLearner
from pipeline.experiments.log_value import LogWorth, intervals, shapley_round


def values_of(tmp_path, data, *, name="e.h5", **settings):
    dataset.write_embeddings(tmp_path / name, data)
    settings = {"by": "contributor", "rounds": 3, **settings}
    result = value.run(ValueConfig(embeddings=tmp_path / name, out=tmp_path / "out", **settings))
    return result, pd.read_csv(tmp_path / "out" / "value.csv").set_index("name")


@pytest.mark.slow
def test_contributors_are_valued_by_their_logs(tmp_path):
    """Over a few random seeds: unique logs are worth most, and shuffled outcomes about nothing."""
    tables = []
    for seed in range(4):
        result, table = values_of(tmp_path, planted(seed), name=f"{seed}.h5")
        assert table.low["shuffled"] <= 0, "nothing for certain"
        assert table.price.sum() <= min(result["spread_per_hour"], max(table.value.sum(), 0)) + 1e-6
        assert table.value.sum() == pytest.approx(result["profit_of_all"] - result["profit_of_none"], abs=0.5)
        tables.append(table.sort_index())
    unique, noise = (np.array([table.value[name] for table in tables]) for name in ("unique", "shuffled"))
    common = np.array([table.value[table.index.str.startswith("common")].mean() for table in tables])
    assert (unique > common).sum() >= 3 and unique.mean() > common.mean() + 2
    assert noise.mean() < 0.15 * unique.mean()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_copies_share_the_value_of_the_original(tmp_path, seed):
    _, alone = values_of(tmp_path, planted(seed))
    result, pair = values_of(tmp_path, planted(seed, with_copy=True), name="pair.h5")
    assert pair.value["unique"] == pytest.approx(pair.value["copy"])
    assert pair.value[["unique", "copy"]].sum() < 1.75 * alone.value["unique"], "2 if counted twice"
    assert pair.leave_one_out["unique"] == 0, "neither is missed if it is left out"
    assert result["outcomes"] == "learned from logs" and "held-out logs" in result["judged_by"]
    assert result["judge"].startswith("learned from 360 logged steps of 12 videos")
    low, high = result["oracle_profit_ci95"]
    assert low < result["oracle_profit"] < high
    assert result == json.loads((tmp_path / "out" / "value.json").read_text())


def small(rng=None, **settings):
    rng = np.random.default_rng(0) if rng is None else rng
    videos = demonstrations("", MIXED.context_names, videos=3, rng=rng, split="val")
    for name in ("ann", "bob"):
        videos += demonstrations(name, MIXED.context_names, videos=2, rng=rng, **settings)
    return videos


def worth_of(videos):
    data = data_of(videos)
    learner = LogLearner(data, None, seed=0)
    names, rows = value.players(data, learner.videos, by="contributor")
    return names, LogWorth(learner, data, rows)


def test_a_coalition_with_a_copy_is_the_coalition_without_it():
    videos = small()
    ann = [video for video in videos if video["contributor"] == "ann"]
    names, worth = worth_of([*videos, *copied(ann, "copy"), *copied(ann[:1], "half")])
    assert names == ["ann", "bob", "copy", "half"]
    coalitions = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1], [0, 0, 0, 1], [0, 1, 0, 0]], bool)
    ann, copy, all_three = worth(coalitions)[:3]
    np.testing.assert_array_equal(ann, copy)
    np.testing.assert_array_equal(ann, all_three)
    assert worth.num_policies == 3, "half a copy and another contributor are different sets"
    np.testing.assert_allclose(worth.shared(np.array([1.0, 7.0, 3.0, 4.0])), [2, 7, 2, 4])


def test_values_sum_to_the_whole_gain():
    _, worth = worth_of(small())
    nothing, everything = worth(np.array([[False] * 2, [True] * 2]))
    found = shapley_round(2, worth, rng=np.random.default_rng(0), tolerance=0.0)
    np.testing.assert_allclose(found.sum(1), everything - nothing, atol=1e-9)


def test_shapley_values_by_hand():
    """Worth 1 and 2 alone, 4 together, and 1 more by another judge: values 1.5 and 2.5."""

    def utility(coalitions):
        one, two = coalitions.T.astype(float)
        return np.stack([one + 2 * two + one * two, one + 2 * two + one * two + 1], axis=1)

    found = shapley_round(2, utility, rng=np.random.default_rng(0), tolerance=0.0)
    np.testing.assert_allclose(found, [[1.5, 2.5], [1.5, 2.5]])


def test_intervals_cover_judges_and_rounds():
    values = np.zeros((3, 40, 1)) + np.arange(40)[:, None]
    ((low, high),) = intervals(values, np.random.default_rng(0))
    assert (low, high) == pytest.approx((np.quantile(range(40), 0.025), np.quantile(range(40), 0.975)), abs=0.3)


def test_logs_can_be_ignored_for_the_simulator_but_are_never_invented(tmp_path):
    data = data_of(small())
    result, _ = values_of(tmp_path, data, outcomes="simulator", rounds=2, draws=30)
    assert result["outcomes"] == "simulator"
    logs = dataset.Logs(data.logs.context, np.full_like(data.logs.actions, np.nan), *[data.logs.novel] * 3)
    unlogged = dataset.Embeddings(**(vars(data) | {"logs": logs}))
    with raises("outcomes-not-logged"):
        values_of(tmp_path, unlogged, name="u.h5", outcomes="logged")


def test_with_too_few_held_out_logs_all_logs_judge_with_a_warning(tmp_path, caplog):
    rng = np.random.default_rng(0)
    videos = demonstrations("", MIXED.context_names, videos=1, rng=rng, split="val")
    result, _ = values_of(tmp_path, data_of([*videos, *small(rng)[3:]]), rounds=2)
    assert "all logs" in result["judged_by"] and "too few" in caplog.text


def test_novelty_is_compared_on_logs(tmp_path):
    data = data_of(small())
    dataset.write_embeddings(tmp_path / "e.h5", data)
    read = dataset.read_embeddings(tmp_path / "e.h5")
    score = np.random.default_rng(0).random(read.num_clips).astype(np.float32)
    columns = {"weight": score / score.mean(), "score": score}
    dataset.write_novelty(tmp_path / "novelty.h5", columns, {"content_sha256": read.content_sha256, "model": "made up"})
    result = novelty_use.run(NoveltyExperimentConfig(embeddings=tmp_path / "e.h5", out=tmp_path, rounds=2))
    table = pd.read_csv(tmp_path / "novelty.csv")
    assert result["outcomes"] == "learned from logs"
    assert len(table) == 2 * (3 + 3 * 4) and np.isfinite(table.profit).all()
