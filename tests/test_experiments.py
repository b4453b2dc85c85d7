"""Frontier, elasticity and spread: hand-computed numbers, what must hold in any world, the files, the command line."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline import econ, files, train
from pipeline.config import ElasticityConfig, FrontierConfig, SpreadConfig, TrainConfig
from pipeline.errors import VtpError
from pipeline.evaluate import oracle, summarise
from pipeline.experiments import elasticity, frontier, spread
from pipeline.experiments.retrain import Retrainer
from pipeline.synthetic import dynamics

SEED, MIXED = dynamics.scenario(), dynamics.scenario("dishwashing", "mixed")
FILES = ("csv", "svg", "png", "json")


def build_run(path, *, task="dishwashing", scenario="mixed", episodes=6, noise=0.05, training=300):
    """A run directory with the validation of an oracle with a shaky hand, and the books of a made-up training."""
    world, rng = dynamics.scenario(task, scenario), np.random.default_rng(0)
    path.mkdir(parents=True)
    context = np.repeat(rng.integers(len(world.contexts), size=(episodes, 6)), 10, 1).ravel()
    actions = np.clip(oracle(world).actions[context] + rng.normal(-0.02, noise, (len(context), 2)), 0, 1)
    steps = pd.DataFrame({"episode": np.repeat(np.arange(episodes), 60), "step": np.tile(np.arange(60), episodes)})
    steps = steps.assign(context=context, speed=actions[:, 0], care=actions[:, 1], attempts=2, errors=0)
    files.write_json(path / "summary.json", summarise(world, steps, s_cust=0.3))
    steps.assign(context=np.array(world.context_names)[context]).to_csv(path / "validation.csv", index=False)
    rows = []
    for episode in range(1, training + 1):
        wage = 10 + 20 * episode / training
        split = econ.allocate_spread(wage, world.human_wage_usd, 0.5, delta_mpl_total=4.0, delta_mpl_cust=1.0)
        row = {"episode": episode, "time_h": 0.5, "completed": 20 + episode, "mp_h": 60.0, "w_hat_r": wage}
        rows.append(row | {"w_h": world.human_wage_usd, **split._asdict()})
    pd.DataFrame(rows).to_csv(path / "metrics.csv", index=False)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("runs") / "run")


# Frontier


def seed_surface(grid=50):
    return frontier.analytic_surface(SEED, np.linspace(0, 1, grid)).of(0)


def test_1621_points_of_the_seed_meet_its_service_level_by_formula():
    assert frontier.count_feasible(seed_surface(), min_mp=80, max_err=0.06) == 1621


@pytest.mark.slow
def test_by_simulation_they_are_the_sources_1615_give_or_take_25():
    surface = frontier.sampled_surface(SEED, np.linspace(0, 1, 50), episodes=100, seed=0).of(0)
    assert abs(frontier.count_feasible(surface, min_mp=80, max_err=0.06) - 1615) <= 25


@pytest.mark.parametrize("task", ["dishwashing", "bricklaying"])
def test_simulation_agrees_with_the_formula_in_every_context(task):
    world, axis = dynamics.scenario(task, "mixed"), np.linspace(0, 1, 5)
    analytic = frontier.analytic_surface(world, axis)
    sampled = frontier.sampled_surface(world, axis, episodes=400, seed=1)
    assert sampled.mp.shape == analytic.mp.shape == (4, 5, 5)
    np.testing.assert_allclose(sampled.mp, analytic.mp, rtol=0.03)
    np.testing.assert_allclose(sampled.attempts, analytic.attempts, rtol=0.03)
    np.testing.assert_allclose(sampled.err_rate, analytic.err_rate, atol=0.012)


def test_the_number_of_threads_does_not_change_the_sample(monkeypatch):
    axis = np.linspace(0, 1, 4)
    many = frontier.sampled_surface(MIXED, axis, episodes=23, seed=3)
    monkeypatch.setattr(frontier.os, "cpu_count", lambda: 1)
    one = frontier.sampled_surface(MIXED, axis, episodes=23, seed=3)
    np.testing.assert_array_equal(np.stack(many), np.stack(one))


def test_all_contexts_together_pool_attempts_and_errors():
    surface = frontier.Surface(*(np.array(v).reshape(2, 1, 1) for v in ([100.0, 50], [90.0, 50], [0.1, 0.0])))
    together = frontier.by_name(replace(MIXED, contexts=MIXED.contexts[:2]), surface)[frontier.ALL]
    assert [float(field.item()) for field in together] == pytest.approx([75, 70, 10 / 150])


def test_a_stricter_service_level_has_fewer_points():
    counts = [
        frontier.count_feasible(seed_surface(), min_mp=mp, max_err=e) for mp, e in ((0, 1), (80, 0.06), (95, 0.04))
    ]
    assert counts[0] == 2500 > counts[1] > counts[2] > 0


def test_frontier_places_the_policy_and_leaves_its_files(run, tmp_path):
    result = frontier.run(FrontierConfig(run=run, out=tmp_path, grid=12, episodes=5))
    assert {"analytic_count", "monte_carlo_count", "optimum", "wall_s"} <= set(result)
    assert result["env_steps"] == 12 * 12 * 4 * 5 * 60
    assert list(result["contexts"]) == list(MIXED.context_names)
    for own in result["contexts"].values():
        assert own["policy"]["profit"] <= own["optimum"]["profit"]
        assert own["policy"]["speed"] == pytest.approx(own["optimum"]["speed"], abs=0.1)
    assert all((tmp_path / f"frontier.{kind}").stat().st_size for kind in FILES)
    table = pd.read_csv(tmp_path / "frontier.csv")
    assert len(table) == 5 * 12 * 12
    assert table[table.context == "pan"].analytic_feasible.sum() == result["contexts"]["pan"]["analytic_count"]


@pytest.mark.parametrize("task", ["dishwashing", "bricklaying"])
def test_frontier_without_a_run(task, tmp_path):
    result = frontier.run(FrontierConfig(out=tmp_path, task=task, scenario="seed", grid=6, episodes=2))
    (own,) = result["contexts"].values()
    assert own["policy"] is None
    assert own["analytic_count"] == result["analytic_count"]
    with pytest.raises(VtpError, match="name a folder with --out, or give RUN"):
        frontier.run(FrontierConfig())


# Elasticity


def steps_of(run, world=MIXED):
    stored = pd.read_csv(run / "validation.csv")
    index = {name: k for k, name in enumerate(world.context_names)}
    context = stored["context"].map(index).to_numpy()
    return elasticity.Steps(
        stored["episode"].to_numpy(), context, stored["speed"].to_numpy(), stored["care"].to_numpy()
    )


@pytest.mark.parametrize(("power", "expected"), [(1.0, 1.0), (2.0, 2.0), (-0.5, -0.5), (0.0, 0.0)])
def test_elasticity_of_a_power_is_its_exponent(power, expected):
    below, above = (np.full(5, 7 * m**power) for m in (0.99, 1.01))
    found = elasticity.elasticity(below, above, np.random.default_rng(0))
    assert [found[key] for key in ("value", "low", "high")] == pytest.approx([expected] * 3)


def test_what_is_not_positive_has_no_elasticity():
    found = elasticity.elasticity(np.array([-1.0, 0.5]), np.array([1.0, 2.0]), np.random.default_rng(0))
    assert found == {"value": None, "low": None, "high": None}


def test_the_human_wage_is_paid_from_the_spread_dollar_for_dollar(run):
    cheap, dear = (elasticity.outcomes(MIXED, steps_of(run), "human_wage", m) for m in (1.0, 1.5))
    for who in ("policy", "oracle"):
        np.testing.assert_allclose(cheap[who] - dear[who], 9.0)


def test_the_oracle_is_never_below_the_policy_and_reacts_as_if_fixed_to_small_changes(run):
    """Envelope theorem: at the optimum a small change of price moves profit as if actions stayed where they are."""
    steps = steps_of(run)
    for curve in ("price", "damage"):
        for multiplier in (0.5, 1.0, 2.0):
            values = elasticity.outcomes(MIXED, steps, curve, multiplier)
            assert (values["oracle"] >= values["policy"] - 1e-9).all()
    best = oracle(MIXED).actions[steps.context]
    fixed = steps._replace(speed=best[:, 0], care=best[:, 1])
    for curve in ("price", "damage"):
        below, above = (elasticity.outcomes(MIXED, fixed, curve, m) for m in (0.999, 1.001))
        slope = {who: above[who].mean() - below[who].mean() for who in below}
        assert slope["policy"] == pytest.approx(slope["oracle"], rel=0.01)


def test_errors_have_no_price_where_the_target_is_slack_and_a_rising_one_where_it_binds(run):
    context = steps_of(run).context
    best = oracle(MIXED).actions[context]
    free = elasticity.expected_work(MIXED, context, best[:, 0], best[:, 1])[1].mean()
    least = MIXED.table["p_min"][context].mean()
    targets = (0.10, *(least + part * (free - least) for part in (0.75, 0.5, 0.25)))
    prices = [elasticity.oracle_price(MIXED, context, target) for target in targets]
    assert prices[0] == 0.0
    assert 0 < prices[1] < prices[2] < prices[3]


def test_the_oracles_price_of_errors_is_what_profit_loses_by_the_target():
    """λ is the derivative of the best profit by the target, in the seed's scenario by central difference."""
    care = np.linspace(0, 1, 100_001)
    _, err_rate, profit = elasticity.expected_work(SEED, np.array(0), 1.0, care)

    def best(target):
        return profit[err_rate <= target].max() / SEED.human_wage_usd

    slope = (best(0.0212) - best(0.0208)) / 0.0004
    assert elasticity.oracle_price(SEED, np.zeros(3, int), 0.021) == pytest.approx(slope, rel=0.1)


def test_the_knobs_price_is_profit_over_error_rate_where_the_target_is_first_met():
    profit, err_rate = np.array([[2.0, 1.9, 1.5]]), np.array([[0.06, 0.04, 0.03]])
    prices = [elasticity.knob_price(profit, err_rate, target)[0] for target in (0.08, 0.05, 0.03, 0.01)]
    assert prices[:3] == pytest.approx([0.0, 0.1 / 0.02, 0.4 / 0.01])
    assert np.isnan(prices[3])


@pytest.mark.parametrize(("task", "scenario"), [("dishwashing", "mixed"), ("bricklaying", "seed")])
def test_elasticity_run(tmp_path, task, scenario):
    path = build_run(tmp_path / "run", task=task, scenario=scenario)
    result = elasticity.run(ElasticityConfig(run=path, points=4))
    table = pd.read_csv(path / "experiments" / "elasticity.csv")
    assert len(table) == 4 * 4 * 2
    assert set(table.curve) == set(elasticity.CURVES)
    assert (table.low.isna() | (table.low <= table.value + 1e-9)).all()
    assert (
        result["elasticities"]["price"]["policy"]["value"] > 1 > 0 > result["elasticities"]["damage"]["policy"]["value"]
    )
    assert result == json.loads((path / "experiments" / "elasticity.json").read_text())


def test_one_episode_has_no_interval(tmp_path):
    path = build_run(tmp_path / "run", episodes=1)
    result = elasticity.run(ElasticityConfig(run=path, points=2))
    assert result["elasticities"]["price"]["policy"]["low"] is None


def test_over_a_range_the_elasticity_of_a_power_is_its_exponent():
    multipliers, scale = np.geomspace(0.5, 2, 7), np.array([3.0, 4.0, 9.0])
    for power in (1.5, -0.4):
        found = elasticity.range_elasticity(
            multipliers, multipliers[:, None] ** power * scale, np.random.default_rng(0)
        )
        assert [found[key] for key in ("value", "low", "high")] == pytest.approx([power] * 3)
    losing = elasticity.range_elasticity(multipliers, multipliers[:, None] - scale, np.random.default_rng(0))
    assert losing == {"value": None, "low": None, "high": None}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A policy of the simulator's state that has hardly begun to learn."""
    path = tmp_path_factory.mktemp("trained") / "run"
    train.run(TrainConfig(source="sim", out=path, episodes=4, num_envs=4, warmup_steps=200, updates_per_episode=1))
    return path


def test_elasticity_with_a_retrained_policy(trained, tmp_path):
    done = []
    result = elasticity.run(
        ElasticityConfig(run=trained, out=tmp_path, points=3, retrain=4, retrain_seeds=2),
        progress=lambda *counts: done.append(counts),
    )
    assert done == [(i + 1, 9) for i in range(9)], "two curves of three points, and three prices of errors"
    assert {"updates": 4, "seeds": 2, "policies": 18}.items() <= result["retrained"].items()
    table = pd.read_csv(tmp_path / "elasticity.csv")
    assert table.groupby("curve")["who"].value_counts().eq(3).all() and len(table) == 4 * 3 * 3
    again = table[(table.who == "retrained") & (table.curve == "error_target")]
    assert (again.x_low <= again.x).all() and (again.x <= again.x_high).all()
    wages = table[(table.who == "retrained") & (table.curve == "human_wage")]
    assert np.diff(wages.value + 18 * wages.x) == pytest.approx(0, abs=1e-6), "one policy serves all wages"
    assert set(result["elasticities_over_range"]["price"]) == {"policy", "oracle", "retrained"}


@pytest.mark.slow
def test_retraining_learns_the_world_that_it_is_in(trained):
    """From a policy that knows nothing: profit rises, and where errors are dear it makes fewer of them."""
    retrainer = Retrainer(trained)

    def judged(agent):
        steps = retrainer.judge(SEED, agent)
        _, err_rate, profit = elasticity.expected_work(
            SEED, *(steps[c].to_numpy() for c in ("context", "speed", "care"))
        )
        return profit.mean(), err_rate.mean()

    (before, _), (after, free) = judged(None), judged(retrainer.retrain(SEED, updates=300, seed=0))
    _, dear = judged(retrainer.retrain(SEED, updates=300, lambda_dual=50.0, seed=0))
    assert after > before + 1
    assert dear < free
    assert judged(None)[0] == before, "the run's own policy is left as it is"


# Spread


def test_spread_adds_up(run, tmp_path):
    result = spread.run(SpreadConfig(run=run, out=tmp_path))
    assert result["rebate_usd"] + result["captured_usd"] == pytest.approx(result["spread_usd"])
    assert (result["customer_share"], result["platform_share"]) == pytest.approx((0.25, 0.75))
    assert (result["episodes"], result["hours"]) == (300, 150)
    assert result["first_episode_paid"] == 134, "the first with a wage of more than 18.90"
    assert result["episodes_paid"] == pytest.approx(167 / 300)
    table = pd.read_csv(tmp_path / "spread.csv")
    assert (table.spread_value_total.diff().dropna() >= 0).all()
    assert table.customer_share_to_date.between(0, 1).all()


def test_the_periods_of_training_by_hand(run, tmp_path):
    """300 half-hours in which 20 + n units are made: three periods of 50 h, of 141, 341 and 541 an hour."""
    cfg = SpreadConfig(run=run, out=tmp_path, periods=3, market_wage=28.0, wage_smoothing=0.5, inflation=0.1)
    result = spread.run(cfg)
    periods = pd.DataFrame(result["periods"])
    assert periods[["first_episode", "last_episode"]].to_numpy().tolist() == [[1, 100], [101, 200], [201, 300]]
    assert periods.mp.tolist() == pytest.approx([141, 341, 541])
    assert periods.delta_mpl.tolist() == pytest.approx([0, 200, 200])
    assert periods.delta_mpl_trailing.tolist() == pytest.approx([0, 200, 300])
    assert periods.human_wage[0] == pytest.approx(0.5 * 18 * 1.1 + 0.5 * 28)
    assert periods.implied_wage[0] == pytest.approx(10 + 20 * 50.5 / 300)
    assert periods.wage_parity[0] == pytest.approx(periods.implied_wage[0] / periods.human_wage[0])
    for name, total in (("rebate", "rebate_usd"), ("consumer_surplus", "consumer_surplus_usd")):
        assert periods[name].sum() == pytest.approx(result[total])
    worth = 0.30 * (20 * 300 + 300 * 301 / 2)  # all units at what a person is paid for one
    assert result["customer_cost_usd"] + result["consumer_surplus_usd"] == pytest.approx(worth)
    constant = spread.run(SpreadConfig(run=run, out=tmp_path))["periods"]
    assert {period["human_wage"] for period in constant} == {18.0}, "a market that pays the run's wage changes nothing"


def test_one_episode_is_one_period(run, tmp_path):
    pd.read_csv(run / "metrics.csv").head(1).to_csv(tmp_path / "metrics.csv", index=False)
    (period,) = spread.run(SpreadConfig(run=tmp_path))["periods"]
    assert (period["first_episode"], period["last_episode"], period["delta_mpl"]) == (1, 1, 0.0)


def test_spread_says_how_many_episodes_had_gaps(run, tmp_path):
    metrics = pd.read_csv(run / "metrics.csv")
    metrics.loc[3:5, "rebate"] = np.nan
    (tmp_path / "run").mkdir()
    metrics.to_csv(tmp_path / "run" / "metrics.csv", index=False)
    assert spread.run(SpreadConfig(run=tmp_path / "run"))["episodes_left_out"] == 3


def test_spread_of_nothing_paid(tmp_path):
    row = {"episode": 1, "time_h": 1, "completed": 9, "mp_h": 60, "w_hat_r": 9, "w_h": 18, "spread": -9}
    pd.DataFrame([row | dict.fromkeys(("spread_value", "rebate", "captured_spread"), 0.0)]).to_csv(
        tmp_path / "metrics.csv", index=False
    )
    result = spread.run(SpreadConfig(run=tmp_path))
    assert (result["customer_share"], result["first_episode_paid"]) == (0.0, None)


# What is missing


@pytest.mark.parametrize(
    ("stage", "config", "file", "remedy"),
    [
        (frontier, FrontierConfig, "summary.json", "vtp evaluate"),
        (frontier, FrontierConfig, "validation.csv", "vtp evaluate"),
        (elasticity, ElasticityConfig, "validation.csv", "vtp evaluate"),
        (spread, SpreadConfig, "metrics.csv", "vtp train"),
    ],
)
@pytest.mark.parametrize("content", [None, "", "a,b\n"])
def test_a_missing_part_is_named_with_its_remedy(tmp_path, stage, config, file, remedy, content):
    path = build_run(tmp_path / "run")
    (path / file).unlink() if content is None else (path / file).write_text(content)
    with pytest.raises(VtpError, match=rf"{file}.*{remedy}"):
        stage.run(config(run=path))
