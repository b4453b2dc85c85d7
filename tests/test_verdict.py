"""What is said first of a policy: who judged, the verdict, and dollars only where they are known."""

import pytest
from runs_by_hand import BETTER, LIKE, UNKNOWN, WORSE, logs_say

from pipeline.report import verdict

CLONE = {"deployed": "clone of the logging policy"}


def by_logs(over, **changes):
    return {"judge": "Estimated from your logs", "profit_mean": 28.66, "off_policy": logs_say(over)} | changes


@pytest.mark.parametrize(
    ("over", "title"),
    [
        (BETTER, "The policy would earn $2.35 an hour more than the logging policy"),
        (WORSE, "The policy would earn $1.20 an hour less than the logging policy"),
        (LIKE, "The policy is not distinguishable from the logging policy"),
        (UNKNOWN, "The logs cannot tell what the policy would earn: not identified"),
    ],
)
def test_the_title_is_the_verdict_of_the_logs(over, title):
    assert verdict.title(by_logs(over)) == title


@pytest.mark.parametrize("over", [LIKE, UNKNOWN])
@pytest.mark.parametrize("against", [BETTER, WORSE, LIKE, UNKNOWN, None])
def test_where_logs_cannot_tell_there_are_no_dollars(over, against):
    summary = by_logs(over, off_policy=logs_say(over, against))
    assert "$" not in " ".join([verdict.title(summary), *verdict.text(summary)])


def test_the_verdicts_have_interval_reason_and_advice():
    assert verdict.text(by_logs(BETTER)) == [
        "The policy is better than the logging policy, +$2.35 an hour (95% interval +$1.10 to +$3.60).",
        "It is not distinguishable from blind (the best constant action): the 95% interval of the change contains "
        "zero. Next: hold out about 12 times as many videos.",
        "Judged on 480 logged steps of 24 videos held out from training.",
    ]
    off_policy = logs_say(UNKNOWN, UNKNOWN, same_videos=True)
    assert verdict.text(by_logs(UNKNOWN, off_policy=off_policy)) == [
        "The policy is not identified against the logging policy: logs have actions like the policy's for 60% of the "
        "hours; 90% are needed. Next: log pan steps with speed near 0.98.",
        "Against blind (the best constant action) it is likewise not identified.",
        "Judged on 480 logged steps of 24 videos. The model has seen other clips of the same videos, so this may "
        "flatter the policy.",
    ]
    assert "worse than blind (the best constant action), −$1.20 an hour (95% interval −$2.00 to −$0.40)" in " ".join(
        verdict.text(by_logs(BETTER, off_policy=logs_say(BETTER, WORSE)))
    )


def test_a_clone_is_called_one_in_the_title():
    title = verdict.title(by_logs(LIKE) | CLONE)
    assert title == (
        "Nothing learned beats the logging policy by its lower bound, so the deployed policy acts as it does on average"
    )
    simulated = {"judge": "Closed loop, simulated", "profit_mean": 28.66} | CLONE
    assert verdict.title(simulated) == (
        "Nothing learned beats the logging policy by its lower bound: acting as it does on average would earn $28.66 "
        "an hour"
    )


def test_a_simulators_number_has_the_logs_beside_it():
    summary = {"judge": "Closed loop, simulated", "profit_mean": -2.0, "off_policy": logs_say(BETTER)}
    assert verdict.title(summary) == "The policy would lose $2.00 an hour"
    assert verdict.text(summary) == [
        "The logs say: better than the logging policy, +$2.35 an hour (95% interval +$1.10 to +$3.60); not "
        "distinguishable from blind (the best constant action): the 95% interval of the change contains zero. Next: "
        "hold out about 12 times as many videos."
    ]
    assert verdict.text(summary | {"off_policy": None}) == []


def test_a_demo_says_what_its_demonstrations_give_without_their_logs():
    found = {"simulator_path": {"oracle_ratio": 0.9404, "oracle_ratio_ci95": [0.9, 0.98], "profit_mean": 37.4}}
    assert verdict.without_logs(found) == [
        "Trained on simulated outcomes instead of the logs, the policy reaches 0.940 of the optimum."
    ]
    assert verdict.without_logs({}) == []


def test_an_interval_that_one_video_leaves_open_is_unbounded():
    summary = by_logs(BETTER | {"change_usd_per_hour": [2.0, None, None]})
    assert "+$2.00 an hour (95% interval unbounded to unbounded)" in verdict.text(summary)[0]


def test_the_mix_of_contexts_is_said_where_it_is_not_as_met():
    contexts = {"pan": {"share": 0.5, "share_of_steps": 0.75}, "glass": {"share": 0.5, "share_of_steps": 0.25}}
    summary = {"context_mix": "stationary", "contexts": contexts, "contexts_not_met": ["plate", "mug"]}
    assert verdict.mix(summary) == [
        "Each context counts equally, as in the long run; of the validated steps they were pan 75% and glass 25%.",
        "Validation never met plate and mug: no figure includes them.",
    ]
    assert verdict.mix(summary | {"context_mix": "as met"}) == []
    many = {f"part {k}": {"share_of_steps": 0.1} for k in range(10)}
    assert verdict.mix(summary | {"contexts": many, "contexts_not_met": []}) == [
        "Each context counts equally, as in the long run."
    ]
