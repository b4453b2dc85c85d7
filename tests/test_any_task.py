"""Tasks unlike the built-in ones, end to end: one action, three, a single price, forty contexts."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml
from raising import raises
from small_runs import MANY, embeddings_config, sim_config, write_embeddings, write_novelty, write_task

from pipeline import dataset, evaluate, policy, report, train
from pipeline.config import (
    ActConfig,
    ElasticityConfig,
    EvaluateConfig,
    FrontierConfig,
    NoveltyExperimentConfig,
    PolicyExportConfig,
    ReportConfig,
    SpreadConfig,
    ValueConfig,
)
from pipeline.experiments import elasticity, frontier, novelty_use, spread, value
from pipeline.experiments.output import run_outcomes
from pipeline.rl.rollouts import expected_profit
from pipeline.runs import RunDirectory, load_metadata
from pipeline.tasks import load_task

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
NAMES = ("pressing", "welding", "watering", "picking")


@pytest.fixture(scope="module", params=NAMES)
def trained(request, tmp_path_factory):
    """A folder with a task's file, its embeddings and novelty, and a run that hardly learned."""
    folder = tmp_path_factory.mktemp(request.param)
    task = write_task(folder, request.param)
    path = write_embeddings(folder / "embeddings.h5", task=task, videos=12, clip_s=20.0)
    data = dataset.read_embeddings(path)
    score = np.random.default_rng(0).random(data.num_clips)
    write_novelty(folder / "novelty.h5", 0.5 + score, data.content_sha256, score=score)
    train.run(embeddings_config(folder, path, episodes=48, outcomes="simulator"))
    return folder


@pytest.fixture
def task(trained):
    return load_task(str(trained / f"{trained.name[:-1]}.yaml"))


def within_bounds(actions, task):
    """actions: a column or a number per action, by name."""
    return all(
        np.all((np.asarray(actions[name]) >= one.low - 1e-6) & (np.asarray(actions[name]) <= one.high + 1e-6))
        for name, one in task.actions.items()
    )


# What a run leaves


def test_the_runs_columns_are_the_tasks_actions(trained, task):
    metrics, steps = pd.read_csv(trained / "run" / "metrics.csv"), pd.read_csv(trained / "run" / "validation.csv")
    means = [name for name in metrics if name in {f"mean_{action}" for action in task.actions}]
    assert means == [f"mean_{action}" for action in task.actions]
    assert not {"speed", "care"} & {*steps, *(name.removeprefix("mean_") for name in metrics)}
    assert within_bounds({name: metrics[f"mean_{name}"] for name in task.actions}, task)
    assert within_bounds(steps, task)
    assert list(steps)[3 : 3 + task.num_actions] == list(task.actions)
    assert set(steps["context"]) <= set(task.contexts)
    assert np.isfinite(metrics.to_numpy(float)).all()


def test_the_summary_is_of_the_tasks_actions_contexts_and_costs(trained, task):
    summary = evaluate.run(EvaluateConfig(run=trained / "run"))
    assert (summary["task"], summary["scenario"], summary["validation"]) == (task.name, "", "held-out clips")
    assert summary["actions"] == {name: [one.low, one.high] for name, one in task.actions.items()}
    assert summary["costs_usd_per_hour"] == task.costs_usd_per_hour
    assert summary["labelled"] is True
    assert summary["human_wage"] == task.human_wage_usd
    assert set(summary["contexts"]) <= set(task.contexts)
    assert sum(row["share"] for row in summary["contexts"].values()) == pytest.approx(1)
    for row in summary["contexts"].values():
        assert list(row["actions"]) == list(row["oracle_actions"]) == list(task.actions)
        assert within_bounds(row["actions"], task) and within_bounds(row["oracle_actions"], task)
        assert row["profit"] <= row["oracle_profit"] + 1e-6 and row["blind_profit"] <= row["oracle_profit"] + 1e-6
    assert load_metadata(trained / "run").task == task


def test_profit_is_what_was_good_less_what_was_damaged(trained, task):
    """Expected outcomes of each step are priced by hand and compared with what the run says."""
    evaluate.run(EvaluateConfig(run=trained / "run"))
    steps = pd.read_csv(trained / "run" / "validation.csv")
    for _, step in steps.iloc[:: max(len(steps) // 10, 1)].iterrows():
        context = task.contexts[step["context"]]
        parameters = task.simulator.constants | task.simulator.contexts.get(step["context"], {})
        values = parameters | {name: step[name] for name in task.actions} | {"min": min, "exp": np.exp}
        attempts, err = (
            eval(getattr(task.simulator, key), {"__builtins__": {}}, values)
            for key in ("attempts_per_minute", "error_probability")
        )
        by_hand = 60 * attempts * (context.price_usd * (1 - err) - context.damage_usd * err)
        assert step["profit_usd_per_hour"] == pytest.approx(by_hand - sum(task.costs_usd_per_hour.values()), rel=1e-5)


# Using the policy


@pytest.mark.parametrize("to", ["onnx", "safetensors"])
def test_an_exported_policy_acts_in_the_tasks_units(trained, task, to, tmp_path):
    path = policy.export(PolicyExportConfig(run=trained / "run", to=to, out=tmp_path / f"p{policy.SUFFIXES[to]}"))
    own, exported = (
        policy.act(ActConfig(policy=source, embeddings=trained / "embeddings.h5", out=tmp_path / "actions.csv"))
        for source in (trained / "run", path)
    )
    foreseen = ["profit_usd_per_hour", "profit_low", "profit_high", "novelty"]
    columns = ["video_id", "clip", "start_s", "end_s", *task.actions, *foreseen]
    assert list(own) == list(exported) == list(pd.read_csv(tmp_path / "actions.csv")) == columns
    assert within_bounds(exported, task)
    for name, one in task.actions.items():
        np.testing.assert_allclose(exported[name], own[name], atol=1e-5 * (one.high - one.low))
    assert policy.load(path).card.task == task


# Report and experiments


def test_report_and_experiments_go_through(trained, task):
    run, out = RunDirectory(trained / "run"), RunDirectory(trained / "run").experiments
    evaluate.run(EvaluateConfig(run=run.path))
    earned = spread.run(SpreadConfig(run=run.path))
    assert earned["episodes"] == 48

    bent = elasticity.run(ElasticityConfig(run=run.path, points=2))
    assert (bent["task"], bent["judged_on"]) == (task.name, "the stored validation")
    counted = frontier.run(FrontierConfig(run=run.path, grid=5, episodes=1))
    assert counted["axes"] == list(task.actions)[:2]
    assert set(counted["held"]) == set(list(task.actions)[2:])
    assert counted["points"] == 5 ** min(task.num_actions, 2)
    assert set(counted["contexts"]) == set(task.contexts)
    assert within_bounds(counted["optimum"]["actions"], task)

    worth = value.run(
        ValueConfig(embeddings=trained / "embeddings.h5", out=out, rounds=2, draws=20, outcomes="simulator")
    )
    assert worth["demonstrations"] == len(pd.read_csv(out / "value.csv")) == 9
    learned = novelty_use.run(
        NoveltyExperimentConfig(embeddings=trained / "embeddings.h5", out=out, rounds=2, draws=20, outcomes="simulator")
    )
    assert learned["clips"] == 9 * 12

    page = report.run(ReportConfig(run=run.path)).read_text(encoding="utf-8")
    assert task.name in page
    for name in task.actions:
        assert name in page
    for item in task.costs_usd_per_hour:
        assert item in page
    missing = set(re.findall(r"experiments/(\w+)\.json", page))
    assert missing == set(), "every experiment that there is is shown"


def test_a_policy_of_one_action_is_retrained(tmp_path):
    task = write_task(tmp_path, "pressing")
    path = write_embeddings(tmp_path / "embeddings.h5", task=task)
    train.run(embeddings_config(tmp_path, path, outcomes="simulator"))
    bent = elasticity.run(ElasticityConfig(run=tmp_path / "run", points=2, retrain=8))
    assert bent["retrained"]["policies"] == 2 * 2 + 2
    assert "val split" in bent["judged_on"]


# In the simulator


@pytest.mark.parametrize("name", ["pressing", "welding", "picking"])
def test_the_tasks_own_simulator_is_trained_in(tmp_path, name):
    path = write_task(tmp_path, name)
    task = load_task(str(path))
    summary = train.run(sim_config(tmp_path, task=str(path), episodes=12))
    assert (summary["source"], summary["task"], summary["validation"]) == ("sim", name, "simulator")
    assert summary["actions"] == {action: [one.low, one.high] for action, one in task.actions.items()}
    assert set(summary["contexts"]) == set(task.contexts)
    assert len(task.contexts) == (MANY if name == "picking" else len(summary["contexts"]))
    assert summary["episodes"] == 200
    again = evaluate.run(EvaluateConfig(run=tmp_path / "run", episodes=3, steps=4))
    assert again["episodes"] == 3 and again["task"] == name


def test_a_step_of_unknown_length_cannot_be_simulated(tmp_path):
    path = write_task(tmp_path, "watering")
    with raises("task-no-step-s"):
        train.run(sim_config(tmp_path, task=str(path)))
    assert not (tmp_path / "run").exists()


def test_a_task_without_a_simulator_has_nothing_to_train_in(tmp_path):
    path = write_task(tmp_path, "pressing")
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({name: value for name, value in values.items() if name != "simulator"}))
    with raises("task-no-simulator"):
        train.run(sim_config(tmp_path, task=str(path)))
    assert not (tmp_path / "run").exists()


# Learning


def test_one_action_is_learned(tmp_path):
    """Blind, the best pressure loses money: what the clips show decides."""
    path = write_embeddings(tmp_path / "embeddings.h5", task=write_task(tmp_path, "pressing"))
    settings = {"episodes": 1500, "num_envs": 64, "batch_size": 64, "updates_per_episode": 4, "evaluations": 2}
    summary = train.run(embeddings_config(tmp_path, path, outcomes="simulator", **settings))
    assert summary["oracle_ratio"] >= 0.9
    assert summary["blind_profit"] < 0 and summary["blind_ratio"] is None
    pressure = {name: row["actions"]["pressure"] for name, row in summary["contexts"].items()}
    assert pressure["soft"] < pressure["firm"] - 2 < pressure["hard"] - 4


def test_experiments_price_work_as_the_evaluation_did(tmp_path):
    """The latest evaluation had other prices than training: what is read of it has them too."""
    task = write_task(tmp_path, "pressing")
    path = write_embeddings(tmp_path / "embeddings.h5", task=task)
    train.run(embeddings_config(tmp_path, path, episodes=16, outcomes="simulator"))
    values = yaml.safe_load(task.read_text())
    for context in values["contexts"].values():
        context["price_usd"] = 3 * context["price_usd"]
    dearer = tmp_path / "dearer.yaml"
    dearer.write_text(yaml.safe_dump(values | {"name": "dearer"}, sort_keys=False))
    summary = evaluate.run(EvaluateConfig(run=tmp_path / "run", task=str(dearer)))
    model, steps = run_outcomes(RunDirectory(tmp_path / "run"))
    assert model.task.name == summary["task"] == "dearer"
    assert expected_profit(model, steps).mean() == pytest.approx(
        summary["profit_mean"], rel=1e-6
    )  # steps have six digits
