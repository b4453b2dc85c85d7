import math

import pytest
from runs_by_hand import BETTER, UNKNOWN, logs_say

from pipeline.runs.judgement import is_by_logs, judge_of, over_logging_policy, read_comparison, read_estimate


@pytest.mark.parametrize(
    ("summary", "judge"),
    [
        ({"judge": "Simulated", "validation": "held-out logs"}, "Simulated"),
        ({"validation": "held-out logs"}, "Estimated from your logs"),
        ({"validation": "closed loop from pixels"}, "Closed loop, simulated"),
        ({"validation": "held-out clips"}, "Simulated"),
        ({"validation": "by eye"}, ""),
        ({}, ""),
    ],
)
def test_the_judge_is_the_summarys_or_that_of_its_validation(summary, judge):
    assert judge_of(summary) == judge
    assert is_by_logs(summary) == (judge == "Estimated from your logs")


def test_a_comparison_has_dollars_unless_it_is_not_identified():
    found = read_comparison(BETTER)
    assert (found.change, found.is_known, found.beyond("b")) == ((2.35, 1.10, 3.60), True, "better than b")
    unknown = read_comparison(UNKNOWN | {"change_usd_per_hour": [9.0, 8.0, 10.0]})
    assert unknown.change is None and not unknown.is_known and unknown.advice.startswith("log pan")
    for value in (None, [], {}, {"verdict": "splendid"}):
        assert read_comparison(value) is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1, 0.5, 2.0], (1.0, 0.5, 2.0)), ([1.0, None, None], (1.0, -math.inf, math.inf)), ([None, 0.0, 1.0], None),
        ([math.nan, 0.0, 1.0], None), ([1.0, 2.0], None), ("1", None), (None, None),
    ],
)  # fmt: skip
def test_an_estimate_is_a_value_with_bounds_that_may_be_open(value, found):
    assert read_estimate(value) == found


def test_logs_that_judge_without_a_logged_clip_cannot_tell():
    assert over_logging_policy({"off_policy": logs_say(BETTER)}).verdict == "better"
    assert over_logging_policy({"validation": "simulator"}) is None
    found = over_logging_policy({"validation": "held-out logs", "off_policy": None})
    assert found.verdict == "not identified" and "no held-out clip has logs" in found.reason
