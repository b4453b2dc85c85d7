import shlex
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from raising import raises
from small_runs import embeddings_config, sim_config, write_embeddings, write_novelty, write_task

from pipeline import dataset, train, training
from pipeline.config import EmbeddingsTrainConfig, train_config
from pipeline.outcomes import Outcomes, SimulatedOutcomes
from pipeline.rl import rollouts
from pipeline.rl.rollouts import validation_profit
from pipeline.runs import load_checkpoint, load_metadata
from pipeline.tasks import load_task, worth
from pipeline.training.revenue_split import RevenueSplit

pytestmark = pytest.mark.usefixtures("one_thread")
METRICS = training.metric_columns(load_task("dishwashing"))


# What a run leaves


def test_one_row_per_episode_and_every_number_finite(tmp_path):
    train.run(sim_config(tmp_path))
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert list(metrics.columns) == list(METRICS)
    assert len(METRICS) == 36
    assert metrics["episode"].tolist() == list(range(1, 25))
    assert np.isfinite(metrics.to_numpy()).all(), metrics.columns[~np.isfinite(metrics.to_numpy()).all(0)]
    assert (metrics["episode_steps"] == 60).all()
    np.testing.assert_allclose(metrics["completed"], metrics["attempts"] - metrics["errors"])
    np.testing.assert_allclose(metrics["rebate"] + metrics["captured_spread"], metrics["spread_value"])


def test_an_episode_is_worth_its_good_units_less_its_damage(tmp_path):
    train.run(sim_config(tmp_path))
    row = pd.read_csv(tmp_path / "run" / "metrics.csv").iloc[-1]
    wage = 0.30 * row.completed - 1.00 * row.errors  # of an hour of plates
    assert row.time_h == pytest.approx(1.0)
    assert row.w_hat_r == pytest.approx(wage)
    assert row.profit == pytest.approx(wage - 0.10)
    assert row.wage_parity == pytest.approx(wage / 18)
    assert row.err_target == pytest.approx(0.10 - 0.04 * 23 / 600)


def best_of_plates():
    """Full speed is best; attempts are max(1, Poisson), of which the mean is rate + exp(-rate)."""
    care = np.linspace(0, 1, 10_001)
    rate = 2.0 * (1 - 0.25 * care)
    err = 0.02 + 0.12 * (1 - care) ** 1.5
    return float((60 * (rate + np.exp(-rate)) * (0.30 * (1 - err) - 1.00 * err)).max()) - 0.10


def test_the_summary_has_the_agreed_keys(tmp_path):
    summary = train.run(sim_config(tmp_path))
    wanted = {
        "source", "scenario", "episodes", "seeds", "profit_mean", "profit_ci95", "mp_mean", "err_mean", "wage_parity",
        "oracle_profit", "blind_profit", "oracle_ratio", "blind_ratio", "spread", "rebate", "captured", "wall_s",
    }  # fmt: skip
    assert wanted <= set(summary), wanted - set(summary)
    assert summary["oracle_profit"] == pytest.approx(best_of_plates(), abs=1e-4)
    low, high = summary["profit_ci95"]
    assert low <= summary["profit_mean"] <= high


def test_the_best_checkpoint_is_the_best_of_the_sampled_validations(tmp_path):
    train.run(sim_config(tmp_path))
    run = tmp_path / "run"
    validations = pd.read_csv(run / "validations.csv")
    assert len(validations) == 3
    best = validations.loc[validations["profit_sampled"].idxmax(), "episode"]
    assert load_checkpoint(run / "best.pt")["episode"] == best
    assert load_checkpoint(run / "last.pt")["episode"] == 24


def test_tensorboard_gets_the_same_names(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train.run(sim_config(tmp_path))
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert {f"train/{name}" for name in METRICS[1:]} <= set(board.Tags()["scalars"])


@pytest.mark.slow
@pytest.mark.parametrize("reward_window", ["step", "episode"])
def test_the_same_seed_writes_the_same_bytes(tmp_path, reward_window):
    for name in ("a", "b"):
        train.run(sim_config(tmp_path, out=tmp_path / name, reward_window=reward_window))
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()
    train.run(sim_config(tmp_path, out=tmp_path / "c", seed=1, reward_window=reward_window))
    assert (tmp_path / "a" / "metrics.csv").read_bytes() != (tmp_path / "c" / "metrics.csv").read_bytes()


def test_the_recorded_command_trains_with_these_settings(tmp_path):
    train.run(sim_config(tmp_path))
    command = load_metadata(tmp_path / "run").provenance["command"]
    assert command.startswith("vtp train --source sim --out")
    assert "--episodes 24" in command
    assert "--lr" not in command, "defaults are left out"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gamma": 0.995},
        {"reward_window": "episode"},
        {"reward_window": "episode", "gamma": 0.0},
        {"centre": "video", "novelty": "a folder/novelty.h5"},
    ],
)
def test_a_command_says_all_that_the_defaults_do_not(settings):
    cfg = EmbeddingsTrainConfig(**settings)
    flags = shlex.split(training.command_line(cfg))[2:]
    names = [flag.removeprefix("--").replace("-", "_") for flag in flags[::2]]
    assert train_config(**dict(zip(names, flags[1::2], strict=True))) == cfg
    assert set(names) == {"source", *settings}


@pytest.mark.slow
def test_an_earlier_run_is_kept_unless_told_otherwise(tmp_path):
    train.run(sim_config(tmp_path))
    before = (tmp_path / "run" / "best.pt").read_bytes()
    with raises("run-finished"):
        train.run(sim_config(tmp_path, seed=1))
    assert (tmp_path / "run" / "best.pt").read_bytes() == before
    train.run(sim_config(tmp_path, seed=1, overwrite=True))
    assert (tmp_path / "run" / "best.pt").read_bytes() != before


def test_a_run_that_cannot_learn_is_an_error(tmp_path):
    with raises("nothing-learned"):
        train.run(sim_config(tmp_path, warmup_steps=5000))
    assert not (tmp_path / "run" / "summary.json").exists()


# Learning


@pytest.mark.slow
def test_it_learns_the_seed_scenario(tmp_path):
    summary = train.run(sim_config(tmp_path, episodes=160, num_envs=32, updates_per_episode=6, batch_size=128))
    assert summary["oracle_ratio"] > 0.93, "a policy that holds speed and care at one half earns 0.82"
    assert summary["err_mean"] < 0.06


@pytest.mark.slow
def test_it_learns_what_embeddings_show(tmp_path):
    path = write_embeddings(tmp_path / "embeddings.h5")
    settings = {"episodes": 4000, "num_envs": 256, "batch_size": 128, "outcomes": "simulator"}
    summary = train.run(embeddings_config(tmp_path, path, **settings))
    assert summary["validation"] == "held-out clips"
    assert summary["blind_ratio"] > 1.05, "it earns more than the best policy that cannot see"
    contexts = summary["contexts"]
    assert contexts["glass"]["actions"]["care"] > contexts["pan"]["actions"]["care"] + 0.4


# Embeddings as a source


def test_no_embeddings_says_how_to_make_them(tmp_path):
    with raises("embeddings-missing"):
        train.run(embeddings_config(tmp_path, tmp_path / "none.h5"))
    assert not (tmp_path / "run").exists()


def test_unlabelled_clips_are_priced_by_the_built_in_parameters(tmp_path):
    path = write_embeddings(tmp_path / "embeddings.h5", labelled=False)
    summary = train.run(embeddings_config(tmp_path, path))
    assert "the clips have no labels, so every one is treated as plate" in summary["outcome_model"]
    assert (summary["scenario"], summary["labelled"]) == ("plates", False)
    assert summary["episodes"] == 2, "the clips of a held-out video are alike and count as one episode"


def test_an_unknown_context_is_named(tmp_path):
    path = write_embeddings(tmp_path / "embeddings.h5")
    data = dataset.read_embeddings(path)
    unknown = np.where(data.logs.context == "mug", "wok", data.logs.context)
    dataset.write_embeddings(path, replace(data, logs=replace(data.logs, context=unknown)))
    with raises("labels-unknown-context") as caught:
        train.run(embeddings_config(tmp_path, path))
    assert "'wok'" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_videos_of_one_context_alone_are_not_seen_from_their_own_mean(tmp_path):
    """The mean of such a video is its context."""
    path = write_embeddings(tmp_path / "embeddings.h5")
    data = dataset.read_embeddings(path)
    alone = np.repeat(np.array(["pan", "glass"] * 5, object), 12)
    dataset.write_embeddings(path, replace(data, logs=replace(data.logs, context=alone)))
    cfg = embeddings_config(tmp_path, path, centre="video")
    with raises("centre-hides-contexts"):
        train.run(cfg)
    assert not (tmp_path / "run").exists()
    train.run(cfg.model_copy(update={"centre": "corpus"}))


def test_without_a_val_split_the_last_fifth_is_held_out(tmp_path):
    data = dataset.read_embeddings(write_embeddings(tmp_path / "embeddings.h5", splits=("train", "train")))
    videos, rows, how = dataset.split_rows(data)
    assert "last fifth" in how
    np.testing.assert_array_equal(videos[0], [0, 10])
    np.testing.assert_array_equal(rows[:4], [10, 11, 22, 23])


def test_clips_that_share_frames_with_the_last_fifth_are_left_out(tmp_path):
    data = dataset.read_embeddings(write_embeddings(tmp_path / "embeddings.h5", splits=("train", "train")))
    data = replace(data, clips=replace(data.clips, end_s=data.clips.start_s + 2.5))  # each overlaps the next two
    videos, rows, _ = dataset.split_rows(data)
    np.testing.assert_array_equal(videos[:2], [[0, 8], [12, 20]])
    np.testing.assert_array_equal(rows[:2], [10, 11])


def test_held_out_clips_are_never_played(tmp_path):
    data = dataset.read_embeddings(write_embeddings(tmp_path / "embeddings.h5"))
    videos, rows, how = dataset.split_rows(data)
    played = np.concatenate([np.arange(start, end) for start, end in videos])
    assert not set(played) & set(rows)
    assert how == "2 videos of the val split"


def test_novelty_weights_are_used_if_named(tmp_path, caplog):
    path, weights = write_embeddings(tmp_path / "embeddings.h5"), tmp_path / "novelty.h5"
    write_novelty(weights, np.full(120, 1.5), dataset.read_embeddings(path).content_sha256)
    with caplog.at_level("INFO"):
        train.run(embeddings_config(tmp_path, path, novelty=weights))
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert (metrics["mean_novelty"] == 1.5).all()
    assert metrics["mean_weight"].iloc[-1] == pytest.approx(1.5, abs=1e-4)
    assert f"replay is weighted by novelty: {weights}" in caplog.text
    assert load_metadata(tmp_path / "run").provenance["novelty"] == str(weights)


def test_novelty_weights_are_not_used_unless_named(tmp_path, caplog):
    path = write_embeddings(tmp_path / "embeddings.h5")
    write_novelty(tmp_path / "novelty.h5", np.full(120, 1.5), dataset.read_embeddings(path).content_sha256)
    with caplog.at_level("INFO"):
        train.run(embeddings_config(tmp_path, path))
    assert (pd.read_csv(tmp_path / "run" / "metrics.csv")["mean_novelty"] == 1).all()
    assert (
        f"every clip weighs 1 in replay; to use the weights in {tmp_path / 'novelty.h5'}, add --novelty" in caplog.text
    )
    assert load_metadata(tmp_path / "run").provenance["novelty"] == "none: every clip weighs 1"


def test_novelty_of_other_embeddings_is_refused(tmp_path):
    path = write_embeddings(tmp_path / "embeddings.h5")
    write_novelty(tmp_path / "novelty.h5", np.ones(120), "f" * 64)
    with raises("novelty-other-embeddings"):
        train.run(embeddings_config(tmp_path, path, novelty=tmp_path / "novelty.h5"))


def test_without_novelty_every_clip_weighs_one(tmp_path):
    train.run(embeddings_config(tmp_path, write_embeddings(tmp_path / "embeddings.h5")))
    assert (pd.read_csv(tmp_path / "run" / "metrics.csv")["mean_novelty"] == 1).all()


# Other prices for the same work


def repriced(folder, **changes):
    """The task `pressing` with other prices, wage, costs or actions, in a file of its own."""
    path = write_task(folder, "pressing")
    values = yaml.safe_load(path.read_text()) | {"name": "repriced"} | changes
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture
def pressing(tmp_path):
    """Embeddings with `pressing` recorded in them."""
    return write_embeddings(tmp_path / "embeddings.h5", task=write_task(tmp_path, "pressing"))


def test_prices_that_replace_the_recorded_ones_change_the_reward(tmp_path, pressing):
    """Nothing is learned before the first update: the same actions, worth something else."""
    settings = {"episodes": 8, "warmup_steps": 96, "updates_per_episode": 1e-6, "evaluations": 1}
    train.run(embeddings_config(tmp_path, pressing, out=tmp_path / "recorded", **settings))
    (tmp_path / "other").mkdir()
    contexts = {name: {"price_usd": 0.2} for name in ("soft", "firm", "hard")}
    task = repriced(tmp_path / "other", contexts=contexts, costs_usd_per_hour={"power": 9.0}, human_wage_usd=25.0)
    summary = train.run(embeddings_config(tmp_path, pressing, task=str(task), **settings))
    recorded, priced = (pd.read_csv(tmp_path / name / "metrics.csv").iloc[0] for name in ("recorded", "run"))
    assert (recorded["attempts"], recorded["errors"]) == (priced["attempts"], priced["errors"])
    assert priced["w_hat_r"] == pytest.approx(0.2 * priced["completed"] / priced["time_h"])
    assert priced["profit"] == pytest.approx(priced["w_hat_r"] - 9.0)
    assert priced["episode_reward"] != recorded["episode_reward"]
    assert priced["w_h"] == summary["human_wage"] == 25.0
    assert (summary["task"], summary["costs_usd_per_hour"]) == ("repriced", {"power": 9.0})
    metadata = load_metadata(tmp_path / "run")
    assert metadata.task.name == "repriced" and metadata.task.price_usd.tolist() == [0.2] * 3
    assert f"--task {task}" in metadata.provenance["command"]
    assert load_metadata(tmp_path / "recorded").task == load_task(str(tmp_path / "pressing.yaml"))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"actions": {"pressure": {"low": 2.0, "high": 13.0}}}, "task-other-actions"),
        ({"actions": {"pressure": {"low": 2.0, "high": 12.0}, "heat": {}}}, "task-other-actions"),
        ({"contexts": {"soft": {"price_usd": 0.1}, "firm": {"price_usd": 0.1}}}, "task-other-contexts"),
    ],
)
def test_prices_of_other_work_are_refused(tmp_path, pressing, changes, code):
    (tmp_path / "other").mkdir()
    task = repriced(tmp_path / "other", simulator=None, **changes)
    with raises(code):
        train.run(embeddings_config(tmp_path, pressing, task=str(task)))
    assert not (tmp_path / "run").exists()


# Small parts


def test_validation_profit_of_the_seeds_result_row(monkeypatch):
    """111 attempts with 2 errors in an hour: 109 good ones at $0.30, 2 errors at $1.00, $0.10 of energy."""
    attempts, errors = np.array([2] * 51 + [1] * 9), np.array([1, 1] + [0] * 58)
    model = SimulatedOutcomes(load_task("dishwashing").in_scenario("plates"))
    drawn = [np.tile(counts, (rollouts.OUTCOMES_A_STEP, 1)) for counts in (attempts, errors)]
    monkeypatch.setattr(model, "sample_coupled", lambda *_: Outcomes(*drawn))
    steps = pd.DataFrame({"row": [0] * 60, "speed": 1.0, "care": 1.0})
    assert validation_profit(model, steps, np.random.default_rng(0)) == pytest.approx(109 * 0.30 - 2 - 0.10)


def test_validation_profit_ranks_policies_that_differ_by_a_third_of_a_percent():
    model, profits = SimulatedOutcomes(load_task("dishwashing").in_scenario("plates")), []
    for speed in (1.0, 0.99):
        steps = pd.DataFrame({"row": [0] * 12_000, "speed": speed, "care": 1.0})
        profits.append([validation_profit(model, steps, np.random.default_rng(k)) for k in range(20)])
    better = np.subtract(*profits)
    assert better.mean() == pytest.approx(0.096, abs=0.005)  # of $28.3: the analytic difference
    assert (better > 0).all()


def test_gains_are_measured_against_the_episodes_before():
    split = RevenueSplit(load_task("dishwashing"))
    rows = []
    for mp in (100.0, 110.0, 90.0):
        earned = worth(mp, 0.0, 0.3 * mp, 1.0, costs_usd_per_hour=0.1)
        rows.append(split.close(1.0, earned, 1.0))
    assert [row["delta_mpl_total"] for row in rows] == pytest.approx([0.0, 10.0, -15.0])
    assert rows[2]["rebate"] == 0, "a loss has nobody to thank"
