"""A survey of logs: what is counted, what is learned, what to log next, and what to beware of."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from example_tasks import TASKS
from logged_data import data_set, simulated_data
from raising import raises
from worlds import DISHES, PARTS, PLATES, grasping

from pipeline.outcomes import Caution, Outcomes, SimulatedOutcomes, Terms, clip_contexts, oracle
from pipeline.survey import as_json, plain_words, survey
from pipeline.survey.action_cells import Cells, cells_of, coverage_maps
from pipeline.survey.best_actions import Fitted, Learned
from pipeline.survey.next_steps import expected_maximum, step_variance
from pipeline.tasks import Task

GRASPING = Task.model_validate(grasping())  # 30 s steps, force in [1, 5], egg at $0.50 less $2.00, nut at $0.10


def surveyed(data, **settings):
    return survey(data, clip_contexts(data), Path("e.h5"), **settings)


def with_logs(data, **changes):
    return dataclasses.replace(data, logs=dataclasses.replace(data.logs, **changes))


def codes(found):
    return {remark.code: remark.contexts for remark in found.remarks}


# Counts, by hand


@pytest.fixture(scope="module")
def eggs_and_nuts():
    """Four videos of two clips: five eggs, of which one was not logged, and three nuts."""
    context = ["egg", "egg", "egg", "nut", "egg", "nut", "egg", "nut"]
    attempts = [4, 2, 6, 10, np.nan, 8, 0, 12]
    errors = [1, 0, 2, 0, np.nan, 0, 0, 0]
    force = np.array([[1.0, 1.2, 5.0, 3.0, 2.0, 3.0, 2.0, 3.0]]).T
    return surveyed(
        data_set(GRASPING, context, force, attempts, errors, videos=4, splits=["train", "val", "train", "train"])
    )


def test_each_context_is_counted(eggs_and_nuts):
    egg, nut, everything = eggs_and_nuts.contexts["egg"], eggs_and_nuts.contexts["nut"], eggs_and_nuts.all
    assert (egg.clips, egg.share, egg.steps, egg.videos) == (5, 5 / 8, 4, 3)
    assert (egg.attempts, egg.errors, egg.error_rate) == (12, 3, 0.25)
    assert (nut.clips, nut.steps, nut.videos, nut.attempts, nut.errors, nut.error_rate) == (3, 3, 3, 30, 0, 0.0)
    assert (everything.clips, everything.steps, everything.videos) == (8, 7, 4)
    assert eggs_and_nuts.steps_by_split == {"train": 5, "val": 2}
    assert not eggs_and_nuts.has_propensity


def test_what_was_earned_is_by_the_hour(eggs_and_nuts):
    """Eggs: 9 · $0.50 − 3 · $2.00 = −$1.50 in two minutes; nuts: 30 · $0.10 in one and a half; costs $2 an hour."""
    assert eggs_and_nuts.contexts["egg"].profit_usd_per_hour == pytest.approx(-1.5 * 30 - 2)
    assert eggs_and_nuts.contexts["nut"].profit_usd_per_hour == pytest.approx(3 * 40 - 2)
    assert eggs_and_nuts.all.profit_usd_per_hour == pytest.approx((3.0 - 1.5) * 3600 / 210 - 2)


def test_logged_actions_are_described_and_counted_by_cell(eggs_and_nuts):
    egg = eggs_and_nuts.contexts["egg"]
    assert (egg.actions["force"].low, egg.actions["force"].high) == (1.0, 5.0)
    assert egg.actions["force"].mean == pytest.approx((1 + 1.2 + 5 + 2) / 4)
    (coverage,) = egg.coverage
    assert coverage.actions == ("force",)
    np.testing.assert_allclose(coverage.edges[0], np.linspace(1, 5, 21))
    assert {int(cell): int(coverage.counts[cell]) for cell in np.flatnonzero(coverage.counts)} == {
        0: 1, 1: 1, 5: 1, 19: 1,
    }  # fmt: skip
    assert (egg.cells, egg.cells_logged) == (20, 4)


def test_a_clip_s_own_price_is_what_it_earned():
    price = np.array([np.nan, 1.0])
    data = data_set(GRASPING, ["nut", "nut"], [[2.0], [2.0]], [10, 10], [0, 0], videos=2, price_usd=price)
    assert surveyed(data).all.profit_usd_per_hour == pytest.approx((1.0 + 10.0) * 60 - 2)


def test_a_value_at_an_edge_belongs_to_the_cell_above_and_the_bound_to_the_last():
    unit = np.array([[0.0, 1.0], [0.3, 0.0], [1.0, 1.0], [0.1 + 0.2, 0.0]])
    (coverage,) = coverage_maps(DISHES, unit)
    cells = {(0, 9): 1, (3, 0): 2, (9, 9): 1}
    assert {(int(x), int(y)): int(coverage.counts[x, y]) for x, y in np.argwhere(coverage.counts)} == cells
    counts = cells_of(2).counts(unit)
    assert {divmod(int(cell), 10): int(counts[cell]) for cell in np.flatnonzero(counts)} == cells


@pytest.mark.parametrize("num_actions", [1, 2, 3, 4, 6])
def test_cells_lie_in_the_box_and_a_grid_counts_every_step_once(num_actions):
    cells, unit = cells_of(num_actions), np.random.default_rng(0).random((500, num_actions))
    assert (cells.low >= 0).all() and (cells.high <= 1).all() and (cells.low < cells.high).all()
    if num_actions <= 4:
        assert cells.counts(unit).sum() == 500


def test_three_actions_are_shown_in_pairs_and_five_each_alone():
    welding = next(task for task in TASKS.values() if task.num_actions == 3)
    maps = coverage_maps(welding, np.random.default_rng(0).random((50, 3)))
    assert [one.actions for one in maps] == [("current", "offset"), ("current", "travel"), ("offset", "travel")]
    assert [one.counts.sum() for one in maps] == [50, 50, 50]
    five = Task.model_validate(grasping(actions={name: {} for name in "abcde"}, simulator=None))
    assert [one.actions for one in coverage_maps(five, np.full((9, 5), 0.5))] == [(name,) for name in "abcde"]


# What can be learned


def test_the_best_actions_and_their_gain_are_found_where_everything_was_tried():
    found = surveyed(simulated_data(PARTS, "uniform", videos=150))
    truth = oracle(SimulatedOutcomes(PARTS), np.arange(3))
    for number, name in enumerate(PARTS.context_names):
        one = found.learned.contexts[name]
        assert one.profit_ci95[0] <= one.profit_usd_per_hour <= one.profit_ci95[1]
        assert one.gain_usd_per_hour == pytest.approx(one.profit_usd_per_hour - one.logging_profit_usd_per_hour)
        assert one.best_actions_share == 1.0
        speed = one.best_actions["speed"] / 1.5
        assert speed == pytest.approx(truth.actions[number, 0] / 1.5, abs=0.25)
    vial = found.learned.contexts["vial"]
    assert vial.gain_ci95[0] > 100, "a vial is dropped at most speeds"
    assert vial.logging_profit_usd_per_hour == pytest.approx(found.contexts["vial"].profit_usd_per_hour, rel=0.2)
    clips = [found.contexts[name].clips for name in PARTS.context_names]
    gains = [found.learned.contexts[name].gain_usd_per_hour for name in PARTS.context_names]
    assert found.learned.gain_usd_per_hour == pytest.approx(np.average(gains, weights=clips))


def test_clips_with_prices_of_their_own_have_best_actions_of_their_own():
    data = simulated_data(PLATES, "uniform", videos=40)
    damage = np.where(np.arange(data.num_clips) % 4 == 0, 8.0, np.nan)
    one = surveyed(with_logs(data, damage_usd=damage)).learned.contexts["plate"]
    assert one.best_actions_share == pytest.approx(0.75)


def test_a_direction_that_the_logs_contradict_is_named():
    """A task that says errors fall with the speed of which they rise."""
    settings = PARTS.model_dump()
    settings["actions"]["speed"] |= {"errors": "falls"}
    task = Task.model_validate(settings)
    data = dataclasses.replace(simulated_data(PARTS, "uniform", videos=40), task=task)
    found = surveyed(data)
    assert found.learned.contradicted == ["errors falls with speed"]
    assert "contradicted" in codes(found)


# What to log next


def test_the_noise_of_a_step_by_hand():
    """4 attempts of which 1 fails, at $0.50 and $2.00, in half a minute: 4 · (0.5 − 2.5/4)² + 4 · 2.5² · 3/16."""
    terms = Terms(np.array(0.5), np.array(2.0), np.array(30.0))
    of_counts, of_errors = (0.5 - 2.5 / 4) ** 2, 4 * 2.5**2 * 3 / 16
    outcomes = Outcomes(np.array(4.0), np.array(1.0))
    assert step_variance(outcomes, terms, dispersion=0.0) == pytest.approx(120**2 * (4 * of_counts + of_errors))
    assert step_variance(outcomes, terms, dispersion=0.5) == pytest.approx(120**2 * (12 * of_counts + of_errors))


def test_the_noise_of_a_step_is_that_of_samples():
    rng = np.random.default_rng(0)
    attempts = rng.poisson(3.0, 200_000)
    errors = rng.binomial(attempts, 0.2)
    profit = (0.5 * (attempts - errors) - 2.0 * errors) * 60
    terms = Terms(np.array(0.5), np.array(2.0), np.array(60.0))
    expected = step_variance(Outcomes(np.array(3.0), np.array(0.6)), terms, dispersion=0.0)
    assert expected == pytest.approx(profit.var(), rel=0.02)


def test_the_expected_maximum_of_a_choice_by_formula():
    """Of 0 and −1 + 2 Z: 2 (φ(½) − ½ Φ(−½)); what moves all choices alike is worth nothing."""
    found = expected_maximum(np.array([0.0, -1.0]), np.array([[0.0, 2.0], [3.0, 3.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [2 * (0.352065 - 0.5 * 0.308538), 0.0, 0.0], atol=5e-3)


def test_what_to_log_next_is_the_corner_that_was_never_logged():
    """Glasses are best handled fast and with care; nobody has tried that, with anything."""
    data = simulated_data(DISHES, "uniform", videos=100)
    is_corner = (data.logs.actions > 0.6).all(1)
    found = surveyed(with_logs(data, attempts=np.where(is_corner, np.nan, data.logs.attempts)))
    first = found.next[0]
    assert first.context == "glass" and first.logged_steps == 0
    assert first.actions == {"speed": [pytest.approx(0.9), 1.0], "care": [pytest.approx(0.9), 1.0]}
    assert first.gain_usd_per_hour == max(one.gain_usd_per_hour for one in found.next) > 0.1
    assert all(one.gain_usd_per_hour >= 0.005 for one in found.next)


def test_more_logs_leave_less_to_learn():
    gain = [
        sum(one.gain_usd_per_hour for one in surveyed(simulated_data(PARTS, "uniform", videos=videos)).next)
        for videos in (5, 100)
    ]
    assert gain[1] < gain[0] / 3


def test_no_more_steps_are_asked_for_than_the_budget():
    data = simulated_data(PARTS, videos=12)
    assert all(one.steps <= 40 for one in surveyed(data, budget=40).next)
    assert any(one.steps > 40 for one in surveyed(data, budget=400).next)


# What is refused, and what to beware of


def test_labels_that_are_no_logs_are_refused_with_the_columns_that_they_lack():
    data = simulated_data(PARTS, videos=2, steps=3)
    with raises("logs-missing") as caught:
        surveyed(dataclasses.replace(data, logs=None))
    assert "speed, grip, attempts, errors" in str(caught.value)
    with raises("logs-missing") as caught:
        surveyed(with_logs(data, errors=np.full(6, np.nan)))
    assert "the labels have no errors" in str(caught.value)
    with raises("logs-missing"):
        surveyed(data, rows=np.array([], int))


def test_one_video_is_counted_and_teaches_nothing():
    found = surveyed(simulated_data(DISHES, videos=1))
    assert found.all.steps == 20 and found.learned is None and found.next == []
    assert "number of logged videos (1) is below 2" in found.cannot_learn


def test_logs_without_an_attempt_teach_nothing():
    data = simulated_data(DISHES, videos=4)
    found = surveyed(with_logs(data, attempts=np.zeros(80), errors=np.zeros(80)))
    assert found.learned is None and found.all.error_rate is None
    assert codes(found)["no-attempts"] == []


def test_contexts_with_few_logs_with_none_and_without_a_clip_are_named():
    data = simulated_data(DISHES, "uniform", videos=40)
    context = np.where(data.logs.context == "mug", "plate", data.logs.context)
    pans, glasses = np.flatnonzero(context == "pan"), np.flatnonzero(context == "glass")
    attempts = data.logs.attempts.copy()
    attempts[pans] = np.nan
    attempts[glasses[2:]] = np.nan
    found = surveyed(with_logs(data, context=context, attempts=attempts))
    named = codes(found)
    assert (named["no-clips"], named["no-logs"], named["few-logs"]) == (["mug"], ["pan"], ["glass"])
    assert set(found.contexts) == {"pan", "plate", "glass"}
    pan, glass = found.learned.contexts["pan"], found.learned.contexts["glass"]
    assert pan.gain_usd_per_hour is None and pan.logging_profit_ci95 is None
    assert glass.gain_usd_per_hour is not None
    plate = found.learned.contexts["plate"]
    assert np.ptp(glass.profit_ci95) > np.ptp(plate.profit_ci95)
    assert all(np.isfinite(pan.profit_ci95))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["no-errors", "all-errors"])
def test_no_errors_and_errors_alone_are_told(kind):
    data = simulated_data(DISHES, videos=10)
    errors = np.zeros(200) if kind == "no-errors" else data.logs.attempts
    found = surveyed(with_logs(data, errors=errors))
    assert codes(found)[kind] == []
    glass = data.logs.context == "glass"
    mixed = np.where(glass, errors, np.where(kind == "no-errors", np.minimum(data.logs.attempts, 1), 0))
    assert codes(surveyed(with_logs(data, errors=mixed)))[kind] == ["glass"]


def test_no_error_in_many_attempts_bounds_the_error_rate():
    """1 − 0.05^(1/60) = 0.0487."""
    data = data_set(PLATES, ["plate"] * 6, np.random.default_rng(0).random((6, 2)), [10] * 6, [0] * 6, videos=2)
    (text,) = (remark.text for remark in surveyed(data).remarks if remark.code == "no-errors")
    assert "no error in 60 attempts" in text and "below 0.049" in text


def test_actions_that_never_vary_are_told():
    data = simulated_data(DISHES, videos=10)
    actions = data.logs.actions.copy()
    actions[:, 0] = 0.5
    actions[data.logs.context == "mug", 1] = 0.75
    found = surveyed(with_logs(data, actions=actions))
    texts = {remark.code: remark.text for remark in found.remarks}
    assert texts["constant-action"].startswith("speed is 0.5 in every logged step")
    assert codes(found)["constant-action-in-context"] == ["mug"]
    assert texts["constant-action-in-context"].startswith("care is the same in every logged step of mug")


def test_with_caution_best_actions_are_where_steps_were_logged():
    """All steps are slow, so that full speed is a guess, which caution leaves; what to log next does not change."""
    data = simulated_data(DISHES, "uniform", videos=60)
    slow = with_logs(data, attempts=np.where(data.logs.actions[:, 0] > 0.5, np.nan, data.logs.attempts))
    bold, cautious = surveyed(slow), surveyed(slow, caution=Caution(2.0, 0.6))
    for name, one in cautious.learned.contexts.items():
        assert one.like_steps > bold.learned.contexts[name].like_steps
    assert cautious.next == bold.next


def test_a_best_action_that_was_hardly_logged_is_told():
    data = simulated_data(DISHES, "uniform", videos=60)
    slow = with_logs(data, attempts=np.where(data.logs.actions[:, 0] > 0.5, np.nan, data.logs.attempts))
    assert "best-action-hardly-logged" in codes(surveyed(slow))


@pytest.mark.parametrize(
    ("low", "high", "is_said"), [(-3.0, 9.0, True), (0.0, 9.0, True), (0.5, 9.0, False), (-9.0, -1.0, False)]
)
def test_a_gain_that_may_be_none_is_said(low, high, is_said):
    fitted = Fitted(1.0, True, 0.0)
    found = plain_words.doubt_in_words(Learned(32, fitted, fitted, [], 3.0, [low, high], {}))
    assert [text.startswith("the interval contains 0") for text in found] == [True] * is_said


# As JSON


def test_a_survey_is_plain_json_with_stable_keys():
    found = as_json(surveyed(simulated_data(PARTS, videos=4)))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found) == [
        "embeddings", "task", "outcome_model", "actions", "steps_by_split", "has_propensity", "all", "contexts",
        "learned", "cannot_learn", "next", "remarks",
    ]  # fmt: skip
    assert list(found["contexts"]["vial"]) == [
        "clips", "share", "steps", "videos", "attempts", "errors", "error_rate", "profit_usd_per_hour", "actions",
        "cells", "cells_logged", "coverage",
    ]  # fmt: skip
    (coverage,) = found["contexts"]["vial"]["coverage"]
    assert np.array(coverage["counts"]).shape == (10, 10) and len(coverage["edges"][0]) == 11
    assert list(found["next"][0]) == [
        "context", "actions", "steps", "gain_usd_per_hour", "profit_usd_per_hour", "logged_steps",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_any_task_can_be_surveyed(name):
    """One action, three, and forty contexts."""
    found = surveyed(simulated_data(TASKS[name], videos=12))
    assert found.learned is not None and set(found.learned.contexts) == set(found.contexts)
    assert np.isfinite(found.learned.gain_usd_per_hour)


def test_scattered_cells_of_many_actions():
    cells = Cells(np.array([[0.0, 0.0], [0.5, 0.5]]), np.array([[0.6, 0.6], [1.0, 1.0]]))
    assert cells.counts(np.array([[0.55, 0.55], [1.0, 1.0], [0.6, 0.2]])).tolist() == [1, 2]
