"""Frontier, elasticity and spread of a run whose outcomes are learned from logs."""

import json

import numpy as np
import pandas as pd
import pytest
from logged_contributors import MIXED, data_of, demonstrations
from test_experiments import build_run

from pipeline import dataset
from pipeline.config import ElasticityConfig, FrontierConfig, SpreadConfig
from pipeline.encoders import Projector
from pipeline.experiments import by_members, elasticity, error_price, frontier, output, spread
from pipeline.outcomes import LearnedOutcomes, SimulatedOutcomes, expected_worth, oracle, outcomes_of
from pipeline.report.experiment_sections import read_experiments
from pipeline.runs import ClipInputs, Encoding, RunDirectory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("logged"), np.random.default_rng(0)
    videos = demonstrations("", MIXED.context_names, videos=8, rng=rng)
    videos += demonstrations("", MIXED.context_names, videos=4, rng=rng, split="val")
    sha256 = dataset.write_embeddings(folder / "embeddings.h5", data_of(videos))
    data = dataset.read_embeddings(folder / "embeddings.h5")
    encoding = Encoding(
        backbone="r3d", weights="random", weights_sha256="0", transform="t", clip_len=16, fps=15.0, precision="fp32",
        projector="pca",
    )  # fmt: skip
    clips = ClipInputs(
        embeddings=str(folder / "embeddings.h5"), content_sha256=sha256, novelty_sha256=None, encoding=encoding
    )
    model = outcomes_of(data, rows=dataset.train_rows(data))
    projector = Projector(np.zeros(128), np.eye(128), 1.0, "pca", None)
    return build_run(
        folder / "run", task=model.task, model=model, clips=clips, projector=projector, outcomes="logged", training=20
    )


@pytest.fixture(scope="module")
def judged(run):
    model, steps = output.run_outcomes(RunDirectory(run))
    assert isinstance(model, LearnedOutcomes)
    return model, elasticity.numbered(model, steps)


def test_the_frontier_is_expected_from_the_logs(run, tmp_path):
    result = frontier.run(FrontierConfig(run=run, out=tmp_path, grid=15, episodes=20))
    assert result["outcomes"] == "learned from logs" and "240 logged steps" in result["judge"]
    for own in (result, *result["contexts"].values()):
        low, high = own["analytic_count_ci95"]
        assert low < high and high >= 0.5 * own["analytic_count"]
        low, high = own["optimum"]["profit_ci95"]
        assert low < own["optimum"]["profit"] < high
    for own in result["contexts"].values():
        assert own["policy"]["profit"] <= own["optimum"]["profit"] + 1e-9
    assert "Estimated by outcomes learned from logs" in (tmp_path / "frontier.svg").read_text()
    table = pd.read_csv(tmp_path / "frontier.csv")
    np.testing.assert_allclose(table.analytic_mp, table.monte_carlo_mp, rtol=0.2)


def test_a_context_is_all_of_its_rows(judged):
    """Rows at two prices are two kinds; a context's frontier and best action cover both."""
    model, _ = judged
    price = np.full(len(model.context), np.nan)
    price[::3] = 0.9
    mixed = model._priced(model.task, price, None)
    work = frontier.work_of(mixed)
    assert len(work.rows) == 8 and not work.is_plain
    np.testing.assert_allclose(work.means(np.ones(8)), 1.0)
    plate = model.task.context_names.index("plate")
    rows = np.flatnonzero(model.context == plate)
    action = np.array([0.7, 0.6])
    expected = expected_worth(mixed, rows, action).profit.mean()
    assert frontier.held_action(mixed, work.of(plate), action)["profit"] == pytest.approx(expected)
    best = frontier.held_action(mixed, work.of(plate), frontier.best_held(mixed, work.of(plate)))["profit"]
    assert best >= expected
    surface = frontier.analytic_surface(mixed, action[None])
    plain = frontier.analytic_surface(model, action[None])
    np.testing.assert_allclose(np.stack(surface), np.stack(plain), err_msg="prices do not change outcomes")
    sampled = frontier.sampled_surface(mixed, action[None], episodes=200, seed=0)
    np.testing.assert_allclose(sampled.mp, plain.mp, rtol=0.05)


def test_many_kinds_are_sampled(judged):
    model, _ = judged
    priced = model._priced(model.task, np.linspace(0.1, 0.9, len(model.context)), None)
    assert len(frontier.work_of(priced).rows) == 4 * frontier.MOST_KINDS


def test_elasticities_have_the_intervals_of_the_ensemble(run, tmp_path):
    result = elasticity.run(ElasticityConfig(run=run, out=tmp_path, points=3))
    assert result["outcomes"] == "learned from logs"
    policy, best = result["profit"]["policy"], result["profit"]["oracle"]
    assert policy["value"] <= best["value"]
    for row in (policy, best, *(result["elasticities"]["price"][who] for who in ("policy", "oracle"))):
        assert row["low"] < row["value"] < row["high"]
    assert result["elasticities"]["price"]["policy"]["value"] > 1 > 0
    assert result["shadow_price"]["policy"].keys() == result["shadow_price"]["oracle"].keys()
    table = pd.read_csv(tmp_path / "elasticity.csv")
    oracles = table[(table.who == "oracle") & (table.curve != "error_target")]
    assert (oracles.low < oracles.value).all() and (oracles.value < oracles.high).all()
    assert "Estimated by outcomes learned from logs" in (tmp_path / "elasticity.svg").read_text()
    assert result == json.loads((tmp_path / "elasticity.json").read_text())


def test_prices_do_not_change_outcomes(judged):
    model, steps = judged
    dear = elasticity.changed(model, "price", 2.0)
    for ours, theirs in zip(*(m.expected(steps.rows, steps.actions) for m in (model, dear)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert dear.attempts_head is model.attempts_head, "nothing is fitted again"
    wages = [elasticity.outcomes(model, steps, "human_wage", m) for m in (1.0, 1.5)]
    for who in ("policy", "oracle"):
        np.testing.assert_allclose(wages[0][who] - wages[1][who], 9.0)


def test_means_by_members_are_those_of_the_steps(judged):
    model, steps = judged
    again = [np.concatenate([part, part[:7]]) for part in (steps.rows, steps.actions)]
    profit = by_members.mean_profit(model, *again)
    np.testing.assert_allclose(profit, model.profit_of_members(*again).mean(1))
    assert profit.mean() == pytest.approx(expected_worth(model, *again).profit.mean())
    attempts, errors = model.of_members(*again)
    np.testing.assert_allclose(by_members.mean_err_rate(model, *again), (errors / attempts).mean(1))


def test_knobs_are_turned_for_each_member(judged):
    model, steps = judged
    for knob in error_price.knobs(model, steps.rows, steps.actions, steps.episode):
        assert knob.profit.shape == (model.num_members, len(error_price.TURNS))
        worth = expected_worth(model, steps.rows, steps.actions)
        assert knob.profit[:, 0].mean() * model.task.human_wage_usd == pytest.approx(worth.profit.mean())


def test_the_oracle_by_the_logs_is_near_the_true_one(judged):
    model, _ = judged
    rows = np.unique(model.kind(np.arange(len(model.context))), return_index=True)[1]
    found = expected_worth(SimulatedOutcomes(MIXED, model.context), rows, oracle(model, rows).actions).profit.mean()
    assert found > 0.6 * oracle(SimulatedOutcomes(MIXED), np.arange(4)).profit.mean()


def test_a_runs_page_says_that_money_is_estimated(run):
    for experiment, config in (
        (frontier, FrontierConfig(run=run, grid=5, episodes=2)),
        (elasticity, ElasticityConfig(run=run, points=2)),
        (spread, SpreadConfig(run=run)),
    ):
        experiment.run(config)
    found = read_experiments(RunDirectory(run), {"source": "embeddings"}, labelled=True)
    assert [shown.name for shown in found.shown] == ["frontier", "elasticity", "spread"]
    for shown in found.shown:
        assert "learned from 240 logged steps" in shown.says and "All money is hypothetical" in shown.says
    assert "according to the logs" in found.shown[0].answer and "95% interval" in found.shown[0].says
    assert "best actions according to the logs" in found.shown[1].says
    assert "would have gone to customers" in found.shown[2].answer
