import json

import numpy as np
import pytest
import yaml
from raising import raises
from runs_by_hand import BETTER, UNKNOWN

import pipeline
from pipeline import train
from pipeline.config import EmbeddingsTrainConfig, SimTrainConfig, parse_seeds, train_config
from pipeline.errors import CorruptError, TryAgainError
from pipeline.files import save_config, write_json
from pipeline.stats import bootstrap95
from pipeline.training import seeds


def summary(profit, *, oracle=40.0, contexts=("plate",), **changes):
    """A run's summary as evaluation writes it, with round numbers."""
    return {
        "source": "sim", "task": "dishwashing", "scenario": "plates", "validation": "simulator",
        "outcome_model": "simulator", "seeds": [0], "episodes": 200, "profit_mean": profit, "mp_mean": 100.0,
        "err_mean": 0.02, "wage_parity": 1.5, "oracle_profit": oracle, "blind_profit": 20.0,
        "oracle_ratio": profit / oracle, "blind_ratio": profit / 20.0, "spread": 4.0, "rebate": 1.0, "captured": 3.0,
        "human_wage": 18.0, "contexts": {name: {"share": 0.5, "profit": profit} for name in contexts}, "wall_s": 2.0,
        "actions": {"speed": [0.0, 1.0], "care": [0.0, 1.0]}, "costs_usd_per_hour": {"energy": 0.1},
        "task_definition": {"name": "dishwashing"},
        "provenance": {"command": "vtp train"},
        **changes,
    }  # fmt: skip


@pytest.fixture
def trained(tmp_path):
    """A folder of seeds whose runs are summaries of these profits; None is a seed that is not finished."""

    def make(*profits, **settings):
        cfg = SimTrainConfig(out=tmp_path / "run", seeds=f"0-{len(profits) - 1}", episodes=100, **settings)
        for one, profit in zip(seeds.prepare(cfg), profits, strict=True):
            save_config(one.out / "config.yaml", one)
            (one.out / "metrics.csv").write_text("episode,profit\n1,3.0\n2,4.0\n3,")
            if profit is not None:
                write_json(one.out / "summary.json", summary(profit))
                write_json(one.out / "finished.json", {"episode": 100})
        return cfg

    return make


# Which seeds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-4", [0, 1, 2, 3, 4]), ("7", [7]), ("9,0-2,1", [0, 1, 2, 9]), (" 3 , 5-5", [3, 5])],
)
def test_seeds_are_ranges_and_numbers(text, expected):
    assert parse_seeds(text) == expected


@pytest.mark.parametrize(
    "text", ["", "-", "4-0", "0-", "-3", "a", "1,,2", "0-1-2", "0-1000", f"{2**63}", "\N{ARABIC-INDIC DIGIT THREE}"]
)
def test_text_that_is_not_a_seed_is_refused(text):
    with pytest.raises(ValueError):
        parse_seeds(text)


# What they come to


def test_mean_interquartile_mean_and_worst():
    """Of 8 sorted values the interquartile mean is that of the middle four: an outlier moves only the mean."""
    profits = [30.0, 10.0, 31.0, 29.0, 32.0, 28.0, 33.0, 39.0]
    result = seeds.average([summary(profit) for profit in profits], range(8))
    assert result["profit_mean"] == pytest.approx(232 / 8)
    assert result["profit_iqm"] == pytest.approx((29 + 30 + 31 + 32) / 4)
    assert result["oracle_ratio"] == pytest.approx(232 / 8 / 40)
    assert (result["profit_worst"], result["oracle_ratio_worst"]) == (10.0, 0.25)
    low, high = result["profit_ci95"]
    assert 10 < low < 29 < high < 39
    iqm_low, iqm_high = result["profit_iqm_ci95"]
    assert low < iqm_low < 30.5 < iqm_high
    assert [row["profit_mean"] for row in result["by_seed"]] == profits
    assert (result["episodes"], result["wall_s"], result["spread"]) == (1600, 16.0, 4.0)


def test_a_bootstrap_interval_is_that_of_all_resamples():
    """Of two values a resample's mean is low, middle or high with probability 1/4, 1/2, 1/4."""
    assert bootstrap95(np.array([1.0, 3.0])) == [1.0, 3.0]
    assert bootstrap95(np.array([2.0, 2.0, 2.0])) == [2.0, 2.0]
    assert bootstrap95(np.array([2.0])) is None
    normal = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap95(normal)
    assert high - low == pytest.approx(2 * 1.96 * normal.std() / 20, rel=0.05)


def test_a_context_counts_where_it_was_met():
    both = [summary(20.0, contexts=("pan", "mug")), summary(30.0, contexts=("mug",))]
    contexts = seeds.average(both, [0, 1])["contexts"]
    assert (contexts["pan"]["profit"], contexts["mug"]["profit"]) == (20.0, 25.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"validation": "held-out clips"},
        {"scenario": "mixed"},
        {"task": "bricklaying"},
        {"outcome_model": "logs"},
        {"costs_usd_per_hour": {"energy": 0.2}},
        {"human_wage": 19.0},
        {"provenance": {"embeddings_sha256": "1"}},
    ],
)
def test_what_differs_has_no_mean(changes):
    with raises("seeds-differ") as caught:
        seeds.average([summary(20.0), summary(20.0, **changes)], [4, 6])
    assert "seeds 4 and 6" in str(caught.value)


# The folder


def test_a_folder_of_seeds_is_assembled(trained):
    cfg = trained(20.0, 22.0, 24.0)
    result = seeds.merge(cfg.out)
    assert result == json.loads((cfg.out / "summary.json").read_text())
    assert (result["profit_mean"], result["seeds"]) == (22.0, [0, 1, 2])
    assert result["provenance"]["command"] == f"vtp train --source sim --out {cfg.out} --episodes 100 --seeds 0-2"
    assert seeds.runs_in(cfg.out) == [cfg.out / f"seed-{k}" for k in range(3)]
    assert seeds.runs_in(cfg.out / "seed-0") == [cfg.out / "seed-0"]
    for needs_one in (seeds.one_run, pipeline.load_policy):
        with raises("run-has-seeds") as caught:
            needs_one(cfg.out)
        assert f"such as {cfg.out}/seed-0" in str(caught.value)


def test_changed_scenes_of_all_seeds_are_assembled_beside_the_usual_ones(trained):
    cfg = trained(20.0, 22.0)
    usual = seeds.merge(cfg.out)
    with raises("summary-corrupt", CorruptError):
        seeds.merge(cfg.out, changed=True)
    for seed, profit in ((0, 10.0), (1, 12.0)):
        write_json(cfg.out / f"seed-{seed}" / "changed" / "summary.json", summary(profit))
    changed = seeds.merge(cfg.out, changed=True)
    assert changed["profit_mean"] == 11.0
    assert json.loads((cfg.out / "changed" / "summary.json").read_text()) == changed
    assert json.loads((cfg.out / "summary.json").read_text()) == usual


def test_an_unfinished_seed_is_named_with_the_command(trained):
    cfg = trained(20.0, None, 24.0, None)
    with raises("seeds-unfinished", TryAgainError) as caught:
        seeds.merge(cfg.out)
    assert "seeds 1, 3 not finished" in str(caught.value) and "vtp train --source sim" in str(caught.value)
    assert not (cfg.out / "summary.json").exists()
    assert seeds.landed(cfg) == (204, 400), "two whole rows of each unfinished run count"


def test_a_finished_seed_is_kept(trained):
    cfg = trained(20.0, None, 24.0)
    assert [one.seed for one in seeds.prepare(cfg)] == [1]
    more = cfg.model_copy(update={"seeds": "0-4"})
    assert [one.seed for one in seeds.prepare(more)] == [1, 3, 4]
    assert [one.seed for one in seeds.prepare(cfg.model_copy(update={"overwrite": True}))] == [0, 1, 2]
    assert not (cfg.out / "seed-0" / "summary.json").exists()


def test_a_seed_s_settings_are_those_of_one_run(trained):
    cfg = trained(None, launcher="slurm", slurm_gres="gpu:1", no_wait=True, lr=2e-3)
    (one,) = seeds.prepare(cfg)
    assert one == SimTrainConfig(out=cfg.out / "seed-0", seed=0, episodes=100, lr=2e-3)
    saved = yaml.safe_load((cfg.out / "config.yaml").read_text())
    assert train_config(**saved) == cfg.model_copy(update={"no_wait": False})


def test_a_seed_of_other_settings_is_refused(trained):
    cfg = trained(20.0, None)
    before = (cfg.out / "config.yaml").read_bytes()
    with raises("run-other-settings"):
        seeds.prepare(cfg.model_copy(update={"lr": 2e-3}))
    assert (cfg.out / "config.yaml").read_bytes() == before


def test_settings_that_cannot_work_are_refused_before_anything_is_written(tmp_path):
    cfg = EmbeddingsTrainConfig(embeddings=tmp_path / "e.h5", out=tmp_path / "run", seeds="0-1")
    with raises("embeddings-missing"):
        seeds.prepare(cfg)
    assert not cfg.out.exists()


def test_one_run_and_several_do_not_share_a_folder(tmp_path):
    (tmp_path / "metrics.csv").write_text("episode\n")
    with raises("folder-is-no-run"):
        seeds.prepare(SimTrainConfig(out=tmp_path, seeds="0-1"))
    save_config(tmp_path / "config.yaml", SimTrainConfig(out=tmp_path))
    with raises("run-of-one-seed"):
        seeds.prepare(SimTrainConfig(out=tmp_path, seeds="0-1"))


def test_several_seeds_are_not_replaced_by_one(trained):
    cfg = trained(20.0, 21.0)
    with raises("run-has-seeds"):
        train.run(SimTrainConfig(out=cfg.out, overwrite=True, episodes=32))


def test_a_damaged_summary_names_itself(trained):
    cfg = trained(20.0, 21.0)
    (cfg.out / "seed-1" / "summary.json").write_text("{}")
    with raises("summary-corrupt", CorruptError) as caught:
        seeds.merge(cfg.out)
    assert "seed-1/summary.json" in str(caught.value) and "blind_profit" in str(caught.value)


def test_a_folder_without_seeds_is_one_line(tmp_path):
    with raises("run-missing"):
        seeds.merge(tmp_path)
    save_config(tmp_path / "config.yaml", SimTrainConfig())
    with raises("run-of-one-seed"):
        seeds.merge(tmp_path)


def test_seeds_keep_their_judge_and_each_ones_verdict():
    logged = {"validation": "held-out logs", "judge": "Estimated from your logs", "contexts_not_met": ["mug"]}
    judged = [summary(30.0, off_policy=found, **logged) for found in (BETTER, UNKNOWN, None)]
    merged = seeds.average(judged, [0, 1, 2])
    assert (merged["judge"], merged["contexts_not_met"]) == ("Estimated from your logs", ["mug"])
    assert [row["verdict"] for row in merged["by_seed"]] == ["better", "not identified", "not identified"]
    assert seeds.average([summary(30.0)], [0])["by_seed"][0]["verdict"] is None
