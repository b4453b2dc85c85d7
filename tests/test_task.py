import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from raising import raises
from worlds import BRICKS, DISHES, PARTS, PLATES, grasping

from pipeline.outcomes import SimulatedOutcomes
from pipeline.tasks import UNNAMED, ErrorTarget, Task, load_task

WHOLE = load_task("dishwashing")


# The curriculum


@pytest.mark.parametrize(
    ("episode", "target"), [(-5, 0.10), (0, 0.10), (150, 0.09), (300, 0.08), (600, 0.06), (10**9, 0.06)]
)
def test_curriculum_falls_from_ten_to_six_percent_over_600_episodes(episode, target):
    assert WHOLE.error_target.at(episode) == pytest.approx(target)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 1000), st.lists(st.integers(-1000, 5000), min_size=2))
def test_the_error_target_goes_one_way_and_stays_in_its_range(start, end, over, episodes):
    target = ErrorTarget(start=start, end=end, episodes=over)
    targets = [target.at(episode) for episode in sorted(episodes)]
    assert all((b - a) * (end - start) >= 0 for a, b in itertools.pairwise(targets))
    assert all(min(start, end) - 1e-12 <= t <= max(start, end) + 1e-12 for t in targets)
    assert (target.at(0), target.at(over)) == pytest.approx((start, end))


# Columns of frames


SPEED = {"column": "action[3]", "reduce": "mean"}
TRIED = {"column": "next.attempts", "reduce": "sum"}


def task_of(**changes):
    contexts = {"bolt": {"price_usd": 1}, "vial": {"price_usd": 2}}
    return Task(**{"name": "t", "human_wage_usd": 1, "actions": {"speed": SPEED}, "contexts": contexts, **changes})


def test_frame_columns_by_label():
    task = task_of(attempts=TRIED, successes=TRIED, context={"column": "task", "reduce": "first"})
    assert {label: (column.column, column.reduce) for label, column in task.frame_columns().items()} == {
        "speed": ("action[3]", "mean"), "attempts": ("next.attempts", "sum"), "successes": ("next.attempts", "sum"),
        "context": ("task", "first"),
    }  # fmt: skip
    assert WHOLE.frame_columns() == {}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(actions={"speed": {"column": "action[3]"}}), "go together"),
        (dict(actions={"speed": {"reduce": "mean"}}), "go together"),
        (dict(actions={"speed": {"column": "action[3]", "reduce": "median"}}), "mean"),
        (dict(attempts={"column": "a"}), "reduce"),
        (dict(attempts=TRIED, errors=TRIED, successes=TRIED), "drop one"),
        (dict(successes=TRIED), "attempts: a column of errors or successes requires one of attempts"),
        (dict(context={"column": "task", "reduce": "max"}), "reduce is max"),
        (dict(contexts={"price_usd": 1}, context={"column": "task", "reduce": "first"}), "no context has a name"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes, text):
    with pytest.raises(ValidationError, match=re.escape(text)):
        task_of(**changes)


# Actions


def test_the_unit_box_is_the_box_of_actions_by_hand():
    assert PARTS.low.tolist() == [0.1, 5.0] and PARTS.high.tolist() == [1.5, 40.0]
    np.testing.assert_allclose(PARTS.from_unit([[0, 1], [0.5, 0.2]]), [[0.1, 40.0], [0.8, 12.0]])
    np.testing.assert_allclose(PARTS.to_unit([[0.1, 40.0], [0.8, 12.0]]), [[0, 1], [0.5, 0.2]])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1), st.floats(-1e3, 1e3), st.floats(0.5, 1e3))
def test_unit_box_round_trip_stays_in_bounds(unit, low, width):
    actions = {"force": {"low": low, "high": low + width}, "angle": {"low": -low - width, "high": -low}}
    task = Task.model_validate(grasping(actions=actions, simulator=None))
    found = task.from_unit(np.array(unit))
    assert (found >= task.low).all() and (found <= task.high).all()
    np.testing.assert_allclose(task.to_unit(found), unit, atol=1e-9)
    ends = task.from_unit(np.array([[0.0, 0.0], [1.0, 1.0]]))
    np.testing.assert_allclose(ends, [task.low, task.high], atol=1e-9)


# Contexts


def test_a_single_price_needs_no_context_name():
    task = Task.model_validate(grasping(contexts={"price_usd": 0.2, "damage_usd": 1.0}, simulator=None))
    assert task.context_names == (UNNAMED,)
    assert task.is_unnamed
    assert task.price_usd.tolist() == [0.2]
    assert Task.model_validate(task.model_dump()) == task
    assert not PLATES.is_unnamed


def test_a_task_cannot_be_changed_in_place():
    with pytest.raises(ValidationError):
        PLATES.name = "other"


# Scenarios


@pytest.mark.parametrize("name", [None, "seed", "plates"])
def test_the_first_scenario_is_the_default_and_has_an_alias(name):
    assert WHOLE.in_scenario(name) == PLATES
    assert (PLATES.context_names, PLATES.scenario, str(PLATES)) == (("plate",), "plates", "dishwashing plates")


def test_a_task_in_a_scenario_has_its_own_contexts_prices_and_parameters():
    """Even if properties of the whole task were read before."""
    assert WHOLE.price_usd.tolist() == [0.30, 0.30, 0.45, 0.30]
    plates = WHOLE.in_scenario("plates")
    assert plates.price_usd.tolist() == [0.30] and plates.damage_usd.tolist() == [1.00]
    assert plates.context_names == ("plate",)
    assert list(plates.simulator.contexts) == ["plate"]
    assert WHOLE.context_names == DISHES.context_names == ("pan", "plate", "glass", "mug")
    assert plates.in_scenario("plates") == plates, "entering it twice changes nothing"
    with raises("scenario-unknown"):
        plates.in_scenario("mixed")


def test_a_scenario_can_reorder_contexts():
    settings = WHOLE.model_dump()
    settings["simulator"]["scenarios"] = {"fragile": ["glass", "plate"]}
    task = Task.model_validate(settings).in_scenario("fragile")
    assert task.context_names == ("glass", "plate")
    assert task.price_usd.tolist() == [0.45, 0.30]
    rates = SimulatedOutcomes(task).expected(np.array([0, 1]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(rates.errors / rates.attempts, [0.47, 0.14])


@pytest.mark.parametrize("name", ["hard", "Plates", ""])
def test_an_unknown_scenario_is_answered_with_the_known_ones(name):
    with raises("scenario-unknown") as caught:
        WHOLE.in_scenario(name)
    assert "plates, mixed" in str(caught.value)


def test_a_task_without_scenarios_refuses_a_scenario():
    assert PARTS.in_scenario(None) is PARTS
    for name in ("seed", "plates"):
        with raises("scenario-unknown"):
            PARTS.in_scenario(name)


@pytest.mark.parametrize(
    ("names", "scenario"),
    [({"plate"}, "plates"), ({"plate", "mug"}, "mixed"), ({"pan"}, "mixed"), (set(), "plates"), ({"fork"}, "")],
)
def test_contexts_select_the_first_scenario_that_has_them_all(names, scenario):
    assert WHOLE.of_contexts(names).scenario == scenario
    assert PARTS.of_contexts(names) is PARTS


# Other prices for the same work


def test_a_task_priced_as_another_keeps_its_work():
    dear = Task.model_validate(
        WHOLE.model_dump()
        | {
            "name": "dear", "step_s": None, "human_wage_usd": 30.0, "costs_usd_per_hour": {"rent": 2.0},
            "error_target": {"start": 0.2, "end": 0.1, "episodes": 5},
            "contexts": {name: {"price_usd": 9.0, "damage_usd": 8.0} for name in (*WHOLE.contexts, "fork")},
            "simulator": None,
        }
    )  # fmt: skip
    task = PLATES.priced_as(dear)
    assert (task.name, task.human_wage_usd, task.costs_usd_per_hour) == ("dear", 30.0, {"rent": 2.0})
    assert (task.context_names, task.price_usd.tolist(), task.damage_usd.tolist()) == (("plate",), [9.0], [8.0])
    assert task.error_target.episodes == 5
    assert (task.step_s, task.simulator, task.scenario) == (60.0, PLATES.simulator, "plates")
    assert PLATES.price_usd.tolist() == [0.30], "the other task is unchanged"


def test_the_order_of_contexts_is_that_of_the_work_and_not_of_the_prices():
    settings = WHOLE.model_dump()
    settings["contexts"] = dict(reversed(settings["contexts"].items()))
    assert DISHES.priced_as(Task.model_validate(settings)).price_usd.tolist() == DISHES.price_usd.tolist()


def test_another_task_with_other_actions_or_contexts_is_other_work():
    settings = PLATES.model_dump()
    settings["actions"]["speed"]["high"] = 2.0
    for other in (PARTS, Task.model_validate(settings | {"simulator": None, "scenario": ""})):
        with raises("task-other-actions"):
            PLATES.priced_as(other)
    with raises("task-other-contexts") as caught:
        DISHES.priced_as(BRICKS)
    assert "'pan'" in str(caught.value)


@pytest.mark.parametrize("step_s", [60.0, None])
def test_another_task_with_steps_of_another_length_is_other_work(step_s):
    work = DISHES.model_copy(update={"step_s": step_s})
    with raises("task-other-steps"):
        work.priced_as(DISHES.model_copy(update={"step_s": 5.0}))
    assert work.priced_as(work) == work


def test_prices_and_damages_have_separate_factors():
    task = DISHES.scaled(price=2.0, damage=0.5)
    np.testing.assert_allclose(task.price_usd, [0.60, 0.60, 0.90, 0.60])
    np.testing.assert_allclose(task.damage_usd, [0.05, 0.50, 2.00, 0.25])
    assert task.scaled(price=0.5, damage=2.0) == DISHES
