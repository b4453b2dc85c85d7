"""Labels of clips from frames' values, and steps that override them."""

import dataclasses

import numpy as np
import pytest
import yaml
from raising import raises

from pipeline.dataset.frame_logs import FrameLogs
from pipeline.tasks import parse_task

TASK = {
    "name": "picking",
    "human_wage_usd": 20,
    "actions": {"speed": {"column": "action", "reduce": "mean"}},
    "contexts": {"price_usd": 0.1},
    "attempts": {"column": "tries", "reduce": "sum"},
    "successes": {"column": "done", "reduce": "sum"},
}
START_S, END_S = np.array([0.0, 0.4, 0.8]), np.array([0.4, 0.8, 1.2])  # four frames each, at 10 a second


@pytest.fixture
def task():
    return parse_task(yaml.safe_dump(TASK), "test")


@pytest.fixture
def logs():
    """Twelve frames with 4, 2 and 1 attempts per clip, of which 1, 0 and 1 succeed."""
    attempts = np.array([1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 1], float)
    done = np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], float)
    values = {"speed": np.arange(12) / 12, "attempts": attempts, "successes": done}
    return FrameLogs("labels of e", 10.0, values, {"speed": "mean", "attempts": "sum", "successes": "sum"}, {})


def test_values_are_those_of_each_clip_s_frames(logs, task):
    found = logs.of_clips(START_S, END_S, task)
    assert found.attempts.tolist() == [4, 2, 1] and found.errors.tolist() == [3, 2, 0]
    np.testing.assert_allclose(found.actions[:, 0], np.array([1.5, 5.5, 9.5]) / 12)


def test_steps_in_any_order_are_matched_to_their_clips(logs, task):
    steps = {"step": ["2", "0", "1"], "price_usd": ["0.2", "0", "0.1"]}
    found = dataclasses.replace(logs, steps=steps).of_clips(START_S, END_S, task)
    assert found.price_usd.tolist() == [0, 0.1, 0.2]
    assert found.attempts.tolist() == [4, 2, 1] and found.errors.tolist() == [3, 2, 0]


def test_steps_override_values(logs, task):
    of_attempts = {"step": ["0", "1", "2"], "attempts": ["9", "8", ""]}
    found = dataclasses.replace(logs, steps=of_attempts).of_clips(START_S, END_S, task)
    np.testing.assert_array_equal(found.attempts, [9, 8, np.nan])
    np.testing.assert_array_equal(found.errors, [8, 8, np.nan])
    wrong = logs.values | {"successes": np.full(12, 3.0), "speed": np.full(12, 7.0)}
    with raises("labels-more-successes-than-attempts"):
        dataclasses.replace(logs, values=wrong).of_clips(START_S, END_S, task)
    of_all = {"step": ["0", "1", "2"], "errors": ["1", "1", "1"], "speed": ["0.5", "0.5", "0.5"]}
    (found,) = dataclasses.replace(logs, values=wrong, steps=of_all).check(START_S, END_S, task)
    assert found.errors.tolist() == [1, 1, 1] and found.actions[:, 0].tolist() == [0.5] * 3


def test_a_clip_after_the_last_value_has_none(logs, task):
    start_s, end_s = np.append(START_S, 1.2), np.append(END_S, 1.3)
    found = logs.of_clips(start_s, end_s, task)
    np.testing.assert_array_equal(found.attempts, [4, 2, 1, np.nan])
    assert np.isnan(found.actions[3, 0])
    last = logs.of_clips(np.array([1.15]), np.array([1.25]), task)  # within the last frame, however it is rounded
    assert last.attempts.tolist() == [1]


def test_no_clip_is_no_error(logs, task):
    assert logs.check(START_S[:0], END_S[:0], task) == []


def test_frames_that_no_clip_shows_are_counted_if_known(logs):
    assert logs.num_unseen("attempts", START_S[:1], END_S[:1]) == 3
    unknown = logs.values | {"attempts": np.full(12, np.nan)}
    assert dataclasses.replace(logs, values=unknown).num_unseen("attempts", START_S[:1], END_S[:1]) == 0
