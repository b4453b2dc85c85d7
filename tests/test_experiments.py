"""Frontier, elasticity and spread: hand-computed numbers, general properties, files and the command line."""

import json

import numpy as np
import pandas as pd
import pytest
from example_tasks import TASKS, TEXTS
from raising import raises
from small_runs import sim_config

from pipeline import dataset, econ, train
from pipeline.config import ElasticityConfig, FrontierConfig, SpreadConfig
from pipeline.encoders import Projector
from pipeline.experiments import elasticity, error_price, frontier, output, spread
from pipeline.experiments.retrain import Retrainer
from pipeline.outcomes import SimulatedOutcomes, blind, expected_worth, oracle, outcomes_of
from pipeline.runs import (
    ClipInputs,
    Encoding,
    PolicyMetadata,
    RunDirectory,
    save_checkpoint,
    write_summary,
)
from pipeline.tasks import load_task, task_from_text, task_to_text

PLATES, MIXED = (load_task("dishwashing").in_scenario(name) for name in ("plates", "mixed"))
WORLDS = {"plates": PLATES, "mixed": MIXED, "bricks": load_task("bricklaying").in_scenario("mixed"), **TASKS}
FILES = ("csv", "svg", "png", "json")


def build_run(
    path, *, task=MIXED, model=None, episodes=6, noise=0.05, training=300, clips=None, projector=None,
    outcomes="simulator",
):  # fmt: skip
    """A run directory with the validation of a noisy oracle and the metrics of an invented training.

    model: of clips, if the run is judged on them; then `clips` are its inputs, and `outcomes` is their source.
    """
    files, rng = RunDirectory(path), np.random.default_rng(0)
    path.mkdir(parents=True)
    judged_on = "simulator" if model is None else "held-out clips"
    model = SimulatedOutcomes(task) if model is None else model
    rows = np.repeat(rng.integers(len(model.context), size=(episodes, 6)), 10, 1).ravel()
    unit = task.to_unit(oracle(model, rows).actions) + rng.normal(-0.02, noise, (len(rows), task.num_actions))
    actions = task.from_unit(np.clip(unit, 0, 1))
    steps = pd.DataFrame({"episode": np.repeat(np.arange(episodes), 60), "step": np.tile(np.arange(60), episodes)})
    steps = steps.assign(row=rows, **dict(zip(task.actions, actions.T, strict=True)), attempts=2, errors=0)
    lines = []
    for episode in range(1, training + 1):
        wage = 10 + 20 * episode / training
        split = econ.allocate_spread(wage, task.human_wage_usd, 0.5, delta_mpl_total=4.0, delta_mpl_cust=1.0)
        line = {"episode": episode, "time_h": 0.5, "completed": 20 + episode, "mp_h": 60.0, "w_hat_r": wage}
        lines.append(line | {"w_h": task.human_wage_usd, **split._asdict()})
    pd.DataFrame(lines).to_csv(files.metrics, index=False)
    metadata = PolicyMetadata(
        source="sim" if clips is None else "embeddings", task=task, seed=0, outcome_model=model.description,
        is_labelled=True, provenance={}, outcomes=outcomes, clips=clips, projector=projector,
    )  # fmt: skip
    save_checkpoint(files.best, {"agent": {}, "meta": metadata.to_state()})
    write_summary(
        files, model, steps, metadata=metadata, validation=judged_on, evaluation={}, stage="train", wall_s=1.0
    )
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("runs") / "run")


# The evaluation of a run


@pytest.mark.parametrize("task", [PLATES, MIXED, *TASKS.values()], ids=str)
def test_a_task_in_a_scenario_stays_in_it(task):
    """A stored task is already in its scenario."""
    assert task_from_text(task_to_text(task), "here") == task
    assert task.in_scenario(None) == task


def test_a_run_of_the_simulator_is_judged_by_the_contexts_of_its_task(run):
    model, steps = output.run_outcomes(RunDirectory(run))
    assert model.task == MIXED
    assert np.array(model.task.context_names)[model.context[steps["row"]]].tolist() == steps["context"].tolist()


def write_clips(path, task, contexts, price_usd):
    """An embeddings file of two videos, with clips of these contexts at these prices."""
    n = len(contexts)
    unknown, zeros, names = np.full(n, np.nan), np.zeros(n), ["a", "b"]
    logs = dataset.Logs(
        context=np.array(contexts, object), actions=np.full((n, task.num_actions), np.nan), attempts=unknown,
        errors=unknown, novel=unknown, price_usd=price_usd,
    )  # fmt: skip
    data = dataset.Embeddings(
        embeddings=np.zeros((n, 128), np.float32),
        clips=dataset.Clips(
            np.zeros((n, 2), np.float32), zeros.astype(int), zeros, zeros + 1, zeros.astype(int), np.array([0, 2, n])
        ),
        videos=dataset.Videos(
            sha256=names, fps=np.ones(2), num_frames=np.ones(2, int), decoder=names, id=names, path=names,
            split=["train", "val"],
        ),
        task=task, logs=logs, projector_mean=np.zeros(2), projector_components=np.zeros((128, 2)),
        projector_scale=1.0, attrs={},
    )  # fmt: skip
    return dataset.write_embeddings(path, data)


def clip_run(tmp_path, task, contexts, price_usd=None, *, trained=None):
    """A run judged on clips of an embeddings file of `task`, trained at the prices of `trained`."""
    path = tmp_path / "embeddings.h5"
    sha256 = write_clips(path, task, contexts, price_usd)
    encoding = Encoding(
        backbone="r3d", weights="random", weights_sha256="0", transform="t", clip_len=16, fps=15.0, precision="fp32",
        projector="pca",
    )  # fmt: skip
    clips = ClipInputs(embeddings=str(path), content_sha256=sha256, novelty_sha256=None, encoding=encoding)
    model = outcomes_of(dataset.read_embeddings(path), kind="simulator")
    model = model.with_task(trained or model.task)
    projector = Projector(np.zeros(2), np.zeros((128, 2)), 1.0, "pca", None)
    return build_run(tmp_path / "run", task=model.task, model=model, clips=clips, projector=projector), model


def test_a_run_on_clips_is_judged_by_its_clips_at_the_prices_that_it_was_trained_with(tmp_path):
    task = TASKS["three actions"]
    price = np.array([0.4, np.nan, np.nan, 0.9])
    path, model = clip_run(tmp_path, task, ["thin", "thick", "thin", "thick"], price, trained=task.scaled(price=2.0))
    found, steps = output.run_outcomes(RunDirectory(path))
    assert found.terms(np.arange(4)).price_usd.tolist() == [0.4, 1.0, 0.6, 0.9]
    assert found.context.tolist() == [0, 1, 0, 1] and steps["row"].max() <= 3
    result = elasticity.run(ElasticityConfig(run=path, points=2))
    assert result["elasticities"]["price"]["policy"]["value"] > 1
    frontier.run(FrontierConfig(run=path, grid=3, episodes=1))
    assert found.description == model.description


def damage_steps(path, change):
    files = RunDirectory(path)
    steps = files.read_steps()
    change(steps).to_csv(files.validation, index=False)
    return files


@pytest.mark.parametrize(
    "change",
    [
        lambda steps: steps.drop(columns="row"),
        lambda steps: steps.rename(columns={"care": "grip"}),
        lambda steps: steps.assign(row=steps["row"] + 1),
        lambda steps: steps.assign(row=steps["row"] + 0.5),
        lambda steps: steps.assign(row=0),
        lambda steps: steps.assign(care=np.nan),
        lambda steps: steps.assign(care="much"),
        lambda steps: steps.assign(speed=1.5),
        lambda steps: steps.assign(context="saucer"),
    ],
)
def test_steps_of_another_task_are_refused_with_the_command_to_remake_them(tmp_path, change):
    path = build_run(tmp_path / "run", episodes=2)
    with raises("run-steps-other") as caught:
        output.run_outcomes(damage_steps(path, change))
    assert "validation.csv" in str(caught.value) and "vtp evaluate" in str(caught.value)


def test_an_unknown_validation_is_refused(tmp_path):
    files = RunDirectory(build_run(tmp_path / "run", episodes=2))
    files.summary.write_text(json.dumps(files.read_summary() | {"validation": "guesswork"}))
    with raises("run-validation-unknown"):
        output.run_outcomes(files)


def test_contexts_may_be_called_na_or_01(tmp_path):
    text = {"NA": {"price_usd": 1.0}, "01": {"price_usd": 2.0}}
    contexts = {name: MIXED.contexts["pan"].model_copy(update=values) for name, values in text.items()}
    simulator = MIXED.simulator.model_copy(
        update={"contexts": dict.fromkeys(text, MIXED.simulator.contexts["pan"]), "scenarios": {}}
    )
    task = MIXED.model_copy(update={"contexts": contexts, "simulator": simulator, "scenario": ""})
    _, steps = output.run_outcomes(RunDirectory(build_run(tmp_path / "run", task=task)))
    assert set(steps["context"]) == {"NA", "01"}


# Frontier


def surface_of(task, *, points=50, names=None):
    model = SimulatedOutcomes(task)
    held = blind(model, np.arange(len(task.contexts))).actions[0]
    grid = frontier.grid_of(task, frontier.axes_of(task, names), points=points, held=held)
    return model, grid, frontier.analytic_surface(model, grid.actions)


def count(surface, *, min_mp=80, max_err=0.06):
    return frontier.count_feasible(surface, min_mp=min_mp, max_err=max_err)


def test_1621_points_of_the_plates_meet_the_service_level_by_formula_and_1632_by_simulation():
    model, grid, surface = surface_of(PLATES)
    assert count(surface.of(0)) == 1621
    sampled = frontier.sampled_surface(model, grid.actions, episodes=100, seed=0)
    assert count(sampled.of(0)) == 1632, "the source has 1,615"


@pytest.mark.parametrize("name", ["mixed", "bricks", "one action", "three actions"])
def test_simulation_agrees_with_the_formula_in_every_context(name):
    model, grid, analytic = surface_of(WORLDS[name], points=5)
    sampled = frontier.sampled_surface(model, grid.actions, episodes=400, seed=1)
    assert sampled.mp.shape == analytic.mp.shape == (len(model.context), len(grid.actions))
    np.testing.assert_allclose(sampled.mp, analytic.mp, rtol=0.03)
    np.testing.assert_allclose(sampled.attempts, analytic.attempts, rtol=0.03)
    np.testing.assert_allclose(sampled.err_rate, analytic.err_rate, atol=0.02)


def test_neither_threads_nor_parts_of_a_grid_change_the_counts(monkeypatch):
    model, grid, _ = surface_of(MIXED, points=4)
    many = frontier.sampled_surface(model, grid.actions, episodes=23, seed=3)
    monkeypatch.setattr(frontier.processes, "num_processors", lambda: 1)
    one = frontier.sampled_surface(model, grid.actions, episodes=23, seed=3)
    np.testing.assert_array_equal(np.stack(many), np.stack(one))
    monkeypatch.setattr(frontier, "MAX_DRAWN", 5 * 60)  # five points of sixteen at once
    parts = frontier.sampled_surface(model, grid.actions, episodes=400, seed=3)
    np.testing.assert_allclose(parts.mp, frontier.analytic_surface(model, grid.actions).mp, rtol=0.03)


def test_all_contexts_together_pool_attempts_and_errors():
    surface = frontier.Surface(*(np.array(v).reshape(2, 1) for v in ([100.0, 50], [90.0, 50], [0.1, 0.0])))
    together = frontier.by_name(TASKS["three actions"], surface)[frontier.ALL]
    assert [float(field.item()) for field in together] == pytest.approx([75, 70, 10 / 150])


def test_where_nothing_is_attempted_nothing_goes_wrong():
    surface = frontier.Surface(*(np.zeros((2, 1)) for _ in range(3)))
    assert frontier.by_name(TASKS["three actions"], surface)[frontier.ALL].err_rate.item() == 0.0


def test_a_stricter_service_level_has_fewer_points():
    surface = surface_of(PLATES)[2].of(0)
    counts = [count(surface, min_mp=mp, max_err=e) for mp, e in ((0, 1), (80, 0.06), (95, 0.04))]
    assert counts[0] == 2500 > counts[1] > counts[2] > 0


def test_a_grid_runs_over_the_bounds_of_its_axes_and_holds_the_others():
    task = TASKS["three actions"]
    grid = frontier.grid_of(task, ["travel", "current"], points=3, held=np.array([100.0, 0.5, 2.0]))
    assert grid.actions.tolist() == [[c, 0.5, t] for t in (1, 5, 9) for c in (40, 130, 220)]
    assert grid.held == {"offset": 0.5}
    assert frontier.axes_of(task, None) == ["current", "offset"]
    assert frontier.axes_of(task, " travel") == ["travel"]
    for wrong in ("care", "travel,travel", "current,offset,travel", ""):
        with raises("axes-unknown"):
            frontier.axes_of(task, wrong)


def test_frontier_places_the_policy_and_leaves_its_files(run, tmp_path):
    result = frontier.run(FrontierConfig(run=run, out=tmp_path, grid=12, episodes=5))
    assert {"analytic_count", "monte_carlo_count", "optimum", "wall_s"} <= set(result)
    assert result["env_steps"] == 12 * 12 * 4 * 5 * 60
    assert list(result["contexts"]) == list(MIXED.context_names)
    for own in result["contexts"].values():
        assert own["policy"]["profit"] <= own["optimum"]["profit"]
        assert own["policy"]["actions"]["speed"] == pytest.approx(own["optimum"]["actions"]["speed"], abs=0.1)
    assert all((tmp_path / f"frontier.{kind}").stat().st_size for kind in FILES)
    table = pd.read_csv(tmp_path / "frontier.csv")
    assert len(table) == 5 * 12 * 12
    assert table[table.context == "pan"].analytic_feasible.sum() == result["contexts"]["pan"]["analytic_count"]
    assert list(table.columns[:3]) == ["context", "speed", "care"]


@pytest.mark.parametrize("axes", [None, "last"])
@pytest.mark.parametrize("name", WORLDS)
def test_frontier_of_any_task(tmp_path, name, axes):
    task = WORLDS[name]
    axes = axes and task.action_names[-1]
    path = build_run(tmp_path / "run", task=task)
    result = frontier.run(FrontierConfig(run=path, axes=axes, grid=4, episodes=1))
    table = pd.read_csv(RunDirectory(path).experiments / "frontier.csv")
    drawn = task.action_names[:2] if axes is None else (axes,)
    assert tuple(result["axes"]) == drawn and set(result["held"]) == set(task.actions) - set(drawn)
    assert result["points"] == 4 ** len(drawn)
    assert len(table) == result["points"] * (len(task.contexts) + (len(task.contexts) > 1))
    assert result["env_steps"] == result["points"] * len(task.contexts) * 60
    for column in drawn:
        assert table[column].min() == task.actions[column].low and table[column].max() == task.actions[column].high
    for own in result["contexts"].values():
        assert own["policy"] is None or own["policy"]["profit"] <= own["optimum"]["profit"] + 1e-9


def test_many_contexts_are_drawn_in_part_with_a_note(tmp_path):
    task_file = tmp_path / "sorting.yaml"
    task_file.write_text(TEXTS["forty contexts"])
    frontier.run(FrontierConfig(out=tmp_path, task=str(task_file), grid=4, episodes=1))
    picture = (tmp_path / "frontier.svg").read_text()
    assert "The first 8 of 40 contexts are drawn" in picture
    assert "part 07" in picture and "part 08" not in picture


@pytest.mark.parametrize("task", ["dishwashing", "bricklaying", "bin-picking"])
def test_frontier_without_a_run(task, tmp_path):
    result = frontier.run(FrontierConfig(out=tmp_path, task=task, grid=6, episodes=2))
    assert all(own["policy"] is None for own in result["contexts"].values())
    if len(result["contexts"]) == 1:
        (own,) = result["contexts"].values()
        assert own["analytic_count"] == result["analytic_count"]


def test_a_frontier_without_an_output_or_a_known_scenario_is_refused(tmp_path):
    with raises("out-missing"):
        frontier.run(FrontierConfig())
    with raises("scenario-unknown"):
        frontier.run(FrontierConfig(out=tmp_path, scenario="pots"))


# Elasticity


def steps_of(run, model=None):
    return elasticity.numbered(model or SimulatedOutcomes(MIXED), RunDirectory(run).read_steps())


@pytest.mark.parametrize(("power", "expected"), [(1.0, 1.0), (2.0, 2.0), (-0.5, -0.5), (0.0, 0.0)])
def test_elasticity_of_a_power_is_its_exponent(power, expected):
    below, above = (np.full(5, 7 * m**power) for m in (0.99, 1.01))
    found = elasticity.elasticity(below, above, np.random.default_rng(0))
    assert [found[key] for key in ("value", "low", "high")] == pytest.approx([expected] * 3)


def test_values_that_are_not_positive_have_no_elasticity():
    found = elasticity.elasticity(np.array([-1.0, 0.5]), np.array([1.0, 2.0]), np.random.default_rng(0))
    assert found == {"value": None, "low": None, "high": None}


def test_episodes_means_by_hand():
    assert elasticity.episode_means(np.array([0, 1, 1, 0]), np.array([1.0, 2, 4, 5])).tolist() == [3, 3]


def test_prices_scale_in_the_task_and_on_rows_with_their_own():
    """Also for a task whose prices were read before it was restricted to a scenario."""
    whole = load_task("dishwashing")
    assert len(whole.price_usd) == 4
    model = SimulatedOutcomes(
        whole.in_scenario("plates"), np.zeros(3, int), price_usd=np.array([np.nan, 2.0, 3.0]),
        damage_usd=np.array([np.nan, np.nan, 5.0]),
    )  # fmt: skip
    rows = np.arange(3)
    dear = elasticity.changed(model, "price", 10.0)
    assert dear.terms(rows).price_usd.tolist() == [3.0, 20.0, 30.0]
    assert dear.terms(rows).damage_usd.tolist() == [1.0, 1.0, 5.0]
    harmful = elasticity.changed(model, "damage", 2.0)
    assert harmful.terms(rows).damage_usd.tolist() == [2.0, 2.0, 10.0]
    assert harmful.terms(rows).price_usd.tolist() == [0.3, 2.0, 3.0]
    paid = elasticity.changed(model, "human_wage", 2.0)
    assert (paid.task.human_wage_usd, model.task.human_wage_usd) == (36.0, 18.0)
    assert paid.terms(rows).price_usd.tolist() == [0.3, 2.0, 3.0]


def test_the_spread_falls_by_the_rise_of_the_human_wage(run):
    model = SimulatedOutcomes(MIXED)
    cheap, dear = (elasticity.outcomes(model, steps_of(run), "human_wage", m) for m in (1.0, 1.5))
    for who in ("policy", "oracle"):
        np.testing.assert_allclose(cheap[who] - dear[who], 9.0)


@pytest.mark.parametrize("name", ["mixed", "one action", "three actions"])
def test_the_oracle_is_never_below_the_policy_and_reacts_as_if_fixed_to_small_changes(tmp_path, name):
    """Envelope theorem: at the optimum, a small change of price changes profit as if actions were fixed."""
    model = SimulatedOutcomes(WORLDS[name])
    steps = steps_of(build_run(tmp_path / "run", task=model.task), model)
    for curve in ("price", "damage"):
        for multiplier in (0.5, 1.0, 2.0):
            values = elasticity.outcomes(model, steps, curve, multiplier)
            assert (values["oracle"] >= values["policy"] - 1e-6).all()
    fixed = steps._replace(actions=oracle(model, steps.rows).actions)
    for curve in ("price", "damage"):
        below, above = (elasticity.outcomes(model, fixed, curve, m) for m in (0.999, 1.001))
        slope = {who: above[who].mean() - below[who].mean() for who in below}
        assert slope["policy"] == pytest.approx(slope["oracle"], rel=0.01)


# The price of errors


@pytest.mark.parametrize("name", ["mixed", "one action", "three actions"])
def test_the_price_of_errors_is_zero_if_the_target_is_slack_and_rises_if_it_binds(name):
    model = SimulatedOutcomes(WORLDS[name])
    rows = np.arange(len(model.context))
    choices = error_price.tradeoffs(model, rows)
    free = expected_worth(model, rows, oracle(model, rows).actions).err_rate.mean()
    least = error_price.least_err_rate(choices)
    targets = (1.01 * free, *(least + part * (free - least) for part in (0.75, 0.5, 0.25)))
    prices = [error_price.oracle_price(choices, target) for target in targets]
    assert prices[0] == 0.0
    assert 0 < prices[1] < prices[2] < prices[3]
    assert error_price.oracle_price(choices, 0.9 * least) is None


def test_the_least_error_rate_of_dishes_is_that_of_all_possible_care():
    choices = error_price.tradeoffs(SimulatedOutcomes(MIXED), np.array([0, 1, 1, 3]))
    assert error_price.least_err_rate(choices) == pytest.approx((0.001 + 2 * 0.020 + 0.005) / 4)
    assert [choice.share for choice in choices] == [0.25, 0.5, 0.25]


def test_the_oracles_price_of_errors_is_what_profit_loses_by_the_target():
    """λ is the derivative of the best profit with respect to the target; for plates, by central difference."""
    model = SimulatedOutcomes(PLATES)
    care = np.linspace(0, 1, 100_001)
    worth = expected_worth(model, np.array(0), np.stack([np.ones_like(care), care], 1))

    def best(target):
        return worth.profit[worth.err_rate <= target].max() / PLATES.human_wage_usd

    slope = (best(0.0212) - best(0.0208)) / 0.0004
    choices = error_price.tradeoffs(model, np.zeros(3, int))
    assert error_price.oracle_price(choices, 0.021) == pytest.approx(slope, rel=0.05)


def test_with_three_actions_the_oracles_price_is_the_slope_of_its_best_profit():
    """Between targets reached at two prices, profit per unit of error rate falls at a rate between these prices."""
    model = SimulatedOutcomes(TASKS["three actions"])
    rows, wage = np.arange(2), model.task.human_wage_usd

    def at(price):
        actions = oracle(model, rows, lambda worth: worth.profit / wage - price * worth.err_rate).actions
        found = expected_worth(model, rows, actions)
        return found.profit.mean() / wage, found.err_rate.mean()

    (dear_profit, low), (cheap_profit, high) = at(12.0), at(11.0)
    assert 11.0 < (cheap_profit - dear_profit) / (high - low) < 12.0
    price = error_price.oracle_price(error_price.tradeoffs(model, rows), (low + high) / 2)
    assert price == pytest.approx(11.5, rel=0.05)


def test_the_knobs_price_is_profit_over_error_rate_where_the_target_is_first_met():
    profit, err_rate = np.array([[2.0, 1.9, 1.5]]), np.array([[0.06, 0.04, 0.03]])
    prices = [error_price.knob_price(profit, err_rate, target)[0] for target in (0.08, 0.05, 0.03, 0.01)]
    assert prices[:3] == pytest.approx([0.0, 0.1 / 0.02, 0.4 / 0.01])
    assert np.isnan(prices[3])


def test_the_knob_is_the_one_that_leaves_most_profit_of_those_that_meet_the_target():
    found = [
        error_price.Knob(name, "high", np.array([profit]), np.array([err_rate]))
        for name, profit, err_rate in (
            ("a", [2.0, 1.9, 1.0], [0.06, 0.05, 0.03]),
            ("b", [2.0, 1.8, 1.7], [0.06, 0.05, 0.04]),
            ("c", [2.0, 2.1, 2.2], [0.06, 0.06, 0.059]),
        )
    ]
    assert [error_price.best_knob(found, target).action for target in (0.05, 0.04, 0.03, 0.01)] == list("abaa")


def test_a_knob_moves_one_action_by_parts_of_its_range_up_to_its_bound():
    """One action of [2, 12] with error probability 0.01 + 0.0008 (pressure − 2)²: by hand at half a turn down."""
    model = SimulatedOutcomes(TASKS["one action"])
    up, down = error_price.knobs(model, np.zeros(2, int), np.array([[10.0], [4.0]]), np.array([0, 0]))
    assert (str(up), str(down)) == ("pressure high", "pressure low")
    half = np.flatnonzero(error_price.TURNS == 0.5).item()
    assert down.err_rate[0, half] == pytest.approx(((0.01 + 0.0008 * 9) + 0.01) / 2), "10 − 5 and 2"
    assert up.err_rate[0, -1] == pytest.approx(0.01 + 0.0008 * 100)
    assert up.err_rate[0, 0] == down.err_rate[0, 0] == pytest.approx(0.01 + 0.0008 * (64 + 4) / 2)


@pytest.mark.parametrize("name", ["plates", "mixed", "bricks"])
def test_for_dishes_and_bricks_the_knob_is_more_care(tmp_path, name):
    model = SimulatedOutcomes(WORLDS[name])
    steps = steps_of(build_run(tmp_path / "run", task=model.task), model)
    choices = error_price.tradeoffs(model, steps.rows)
    knobs = error_price.knobs(model, steps.rows, steps.actions, steps.episode)
    strict = 1.1 * error_price.least_err_rate(choices)
    found = elasticity.shadow_price(knobs, choices, strict, np.random.default_rng(0))
    assert found["policy"]["knob"] == "care high"
    assert found["policy"]["value"] > 0 and found["oracle"]["value"] > 0
    slack = elasticity.shadow_price(knobs, choices, 0.5, np.random.default_rng(0))
    assert slack["policy"] == {"value": 0.0, "low": 0.0, "high": 0.0, "knob": None}
    impossible = elasticity.shadow_price(knobs, choices, 0.0, np.random.default_rng(0))
    assert impossible["policy"]["value"] is impossible["oracle"]["value"] is None


def test_targets_run_from_just_above_the_least_to_where_training_starts():
    model = SimulatedOutcomes(PLATES)
    found = error_price.targets(PLATES, error_price.tradeoffs(model, np.zeros(1, int)), 4)
    assert (found[0], found[-1]) == pytest.approx((0.021, 0.10))
    flawless = [error_price.Tradeoff(1.0, np.zeros(1), np.zeros(1))]
    assert (np.diff(error_price.targets(PLATES, flawless, 4)) > 0).all()
    hopeless = [error_price.Tradeoff(1.0, np.zeros(1), np.ones(1) / 2)]
    assert (np.diff(error_price.targets(PLATES, hopeless, 4)) > 0).all()


@pytest.mark.parametrize("name", WORLDS)
def test_elasticity_run(tmp_path, name):
    task = WORLDS[name]
    path = build_run(tmp_path / "run", task=task)
    result = elasticity.run(ElasticityConfig(run=path, points=4))
    folder = RunDirectory(path).experiments
    table = pd.read_csv(folder / "elasticity.csv")
    assert len(table) == 4 * 4 * 2
    assert set(table.curve) == set(elasticity.CURVES)
    assert (table.low.isna() | (table.low <= table.value + 1e-9)).all()
    elasticities = result["elasticities"]
    assert elasticities["price"]["policy"]["value"] > 1 > 0 > elasticities["damage"]["policy"]["value"]
    assert (result["task"], result["error_target"]) == (task.name, task.error_target.end)
    assert result == json.loads((folder / "elasticity.json").read_text())
    assert all((folder / f"elasticity.{kind}").stat().st_size for kind in FILES)


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


# Retraining


class OracleRetrainer:
    """Retrains to the oracle's action, to test the calls of a retrainer and the use of its results."""

    held_out, device = "invented data", "card 0"

    def __init__(self, run):
        assert isinstance(run, RunDirectory)
        self.model = SimulatedOutcomes(MIXED)
        self.rows = np.arange(4).repeat(10)

    def retrain(self, model, *, updates, lambda_dual=0.0, seed):
        wage = model.task.human_wage_usd
        return oracle(model, self.rows, lambda w: w.profit / wage - lambda_dual * w.err_rate).actions

    def judge(self, model, agent=None):
        actions = np.full((len(self.rows), 2), 0.5) if agent is None else agent
        steps = {"episode": np.tile(np.arange(10), 4), "row": self.rows, "speed": actions[:, 0], "care": actions[:, 1]}
        return pd.DataFrame(steps)


def test_elasticity_with_a_retrained_policy(run, tmp_path, monkeypatch):
    monkeypatch.setattr(elasticity, "Retrainer", OracleRetrainer)
    done = []
    result = elasticity.run(
        ElasticityConfig(run=run, out=tmp_path, points=3, retrain=4, retrain_seeds=2),
        progress=lambda *counts: done.append(counts),
    )
    assert done == [(i + 1, 9) for i in range(9)], "two curves of three points, and three prices of errors"
    asked = {"updates": 4, "seeds": 2, "policies": 18, "device": "card 0"}
    assert asked.items() <= result["retrained"].items()
    assert result["judged_on"] == "invented data"
    table = pd.read_csv(tmp_path / "elasticity.csv")
    assert table.groupby("curve")["who"].value_counts().eq(3).all() and len(table) == 4 * 3 * 3
    again = table[(table.who == "retrained") & (table.curve == "error_target")]
    assert (again.x_low <= again.x).all() and (again.x <= again.x_high).all()
    assert again.sort_values("value").x.is_monotonic_decreasing, "expensive errors are made less often"
    wages = table[(table.who == "retrained") & (table.curve == "human_wage")]
    assert np.diff(wages.value + 18 * wages.x) == pytest.approx(0, abs=1e-6), "one policy serves all wages"
    by_who = table[table.curve == "price"].pivot(index="x", columns="who", values="value")
    assert by_who["retrained"].to_numpy() == pytest.approx(by_who["oracle"].to_numpy(), rel=1e-6)


@pytest.fixture
def untrained(tmp_path):
    """A run on the simulator's state whose policy has hardly begun to learn."""
    cfg = sim_config(tmp_path, episodes=4, num_envs=4, warmup_steps=200, evaluations=1)
    train.run(cfg)
    return RunDirectory(cfg.out)


@pytest.mark.slow
def test_retraining_learns_from_the_given_outcomes(untrained):
    """From an untrained policy, profit rises; if errors are expensive, fewer are made."""
    retrainer = Retrainer(untrained)
    model = retrainer.model

    def judged(agent):
        steps = elasticity.numbered(model, retrainer.judge(model, agent))
        worth = expected_worth(model, steps.rows, steps.actions)
        return worth.profit.mean(), worth.err_rate.mean()

    (before, _), (after, free) = judged(None), judged(retrainer.retrain(model, updates=300, seed=0))
    _, dear = judged(retrainer.retrain(model, updates=300, lambda_dual=50.0, seed=0))
    assert after > before + 1
    assert dear < free
    assert judged(None)[0] == before, "the run's own policy is unchanged"


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
    """300 half-hours in which 20 + n units are made: three periods of 50 h, of 141, 341 and 541 per hour."""
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
    worth = 0.30 * (20 * 300 + 300 * 301 / 2)  # all units at the human cost per unit
    assert result["customer_cost_usd"] + result["consumer_surplus_usd"] == pytest.approx(worth)
    constant = spread.run(SpreadConfig(run=run, out=tmp_path))["periods"]
    assert {period["human_wage"] for period in constant} == {18.0}, "a market at the run's wage changes nothing"


def test_one_episode_is_one_period(run, tmp_path):
    RunDirectory(run).read_metrics().head(1).to_csv(RunDirectory(tmp_path).metrics, index=False)
    (period,) = spread.run(SpreadConfig(run=tmp_path))["periods"]
    assert (period["first_episode"], period["last_episode"], period["delta_mpl"]) == (1, 1, 0.0)


def test_spread_reports_episodes_with_gaps(run, tmp_path):
    metrics = RunDirectory(run).read_metrics()
    metrics.loc[3:5, "rebate"] = np.nan
    (tmp_path / "run").mkdir()
    metrics.to_csv(RunDirectory(tmp_path / "run").metrics, index=False)
    assert spread.run(SpreadConfig(run=tmp_path / "run"))["episodes_left_out"] == 3


def test_spread_of_nothing_paid(tmp_path):
    row = {"episode": 1, "time_h": 1, "completed": 9, "mp_h": 60, "w_hat_r": 9, "w_h": 18, "spread": -9}
    pd.DataFrame([row | dict.fromkeys(("spread_value", "rebate", "captured_spread"), 0.0)]).to_csv(
        RunDirectory(tmp_path).metrics, index=False
    )
    result = spread.run(SpreadConfig(run=tmp_path))
    assert (result["customer_share"], result["first_episode_paid"]) == (0.0, None)


# Missing parts


@pytest.mark.parametrize(
    ("stage", "config", "file", "remedy"),
    [
        (frontier, FrontierConfig, "summary", "vtp evaluate"),
        (frontier, FrontierConfig, "validation", "vtp evaluate"),
        (elasticity, ElasticityConfig, "validation", "vtp evaluate"),
        (spread, SpreadConfig, "metrics", "vtp train"),
    ],
)
@pytest.mark.parametrize(("content", "code"), [(None, "run-file-missing"), ("", "run-file-bad")])
def test_a_missing_part_is_named_with_its_remedy(tmp_path, stage, config, file, remedy, content, code):
    path = build_run(tmp_path / "run")
    part = getattr(RunDirectory(path), file)
    part.unlink() if content is None else part.write_text(content)
    with raises(code) as caught:
        stage.run(config(run=path))
    assert part.name in str(caught.value) and remedy in str(caught.value)


def test_columns_that_spread_needs_are_named(run, tmp_path):
    files = RunDirectory(tmp_path)
    RunDirectory(run).read_metrics().drop(columns="rebate").to_csv(files.metrics, index=False)
    with raises("metrics-columns") as caught:
        spread.run(SpreadConfig(run=tmp_path))
    assert "lacks rebate" in str(caught.value)
    RunDirectory(run).read_metrics().assign(rebate="?").to_csv(files.metrics, index=False)
    with raises("metrics-all-gaps"):
        spread.run(SpreadConfig(run=tmp_path))
