"""What a run's page advises: which contexts and clips to film or log, and where the policy loses."""

from dataclasses import replace

import pytest
from runs_by_hand import LIKE, build_run, edit_summary, logs_say, report

from pipeline.report.context_cards import read_cards, where_it_loses
from pipeline.report.experiment_sections import Experiments
from pipeline.report.summary_figures import read_contexts
from pipeline.report.what_next import what_next

NOTHING = Experiments([], None, [], "", {})


def contexts(**profits):
    """Contexts of equal share by name: what the policy, the optimum and blind earn."""
    rows = {
        name: dict(share=1 / len(profits), profit=profit, oracle_profit=optimum, blind_profit=blind)
        for name, (profit, optimum, blind) in profits.items()
    }
    return read_contexts({"contexts": rows})


LOSING = contexts(pan=(20.0, 30.0, 10.0), cup=(9.5, 10.0, 9.75), mug=(8.0, 8.0, 8.0))


def test_a_page_says_where_the_policy_loses_to_blind_and_to_the_logs():
    assert where_it_loses(LOSING, {}) == "It would earn less than blind on cup (by $0.25 an hour)."
    assert where_it_loses(LOSING, {"pan": 21.5, "mug": 8.001}) == (
        "It would earn less than the logging policy on pan (by $1.50 an hour), and less than blind on cup (by $0.25 an "
        "hour)."
    )
    assert where_it_loses(LOSING, {}, with_dollars=False) == "It would earn less than blind on cup."
    assert where_it_loses(LOSING[2:] + LOSING[:1], {"pan": 3.0}) == (
        "In no context would it earn less than blind or the logged steps."
    )
    assert where_it_loses(LOSING[:1], {}) == "", "one context is the headline"
    many = contexts(**{f"part {k}": (1.0, 3.0, 2.0) for k in range(6)})
    assert "part 2 (by $1.00 an hour) and 3 more." in where_it_loses(many, {})


def test_a_card_says_whom_it_loses_to_and_what_all_would_earn():
    pan, cup, mug = read_cards(LOSING, [], [], logged={"pan": 21.5})
    assert (pan.losses, cup.losses, mug.losses) == (
        ["$1.50 an hour less than the logging policy"], ["$0.25 an hour less than blind"], [],
    )  # fmt: skip
    (money,) = pan.tracks
    assert money.is_money
    assert (money.text, money.note) == ("$20.00", "optimum $30.00, blind $10.00, logged $21.50")
    assert (money.start, money.width) == pytest.approx((0.0, 100 * 20 / 30))
    assert dict(money.marks) == pytest.approx({"optimum": 100.0, "blind": 100 / 3, "logging": 100 * 21.5 / 30})
    cards = read_cards(LOSING, [], [], with_dollars=False)
    assert [card.losses for card in cards] == [[], ["Expected to earn less than blind"], []]
    assert all(card.tracks == [] for card in cards)


def advice(summary, found=(), *, experiments=NOTHING, is_simulated=False):
    return what_next(summary, list(found), logs=None, experiments=experiments, is_simulated=is_simulated)


def test_the_advice_names_contexts_and_demonstrations():
    assert advice({"contexts_not_met": ["jug"]}, LOSING, experiments=replace(NOTHING, gaining=["0003"])) == [
        "Film or log more of pan: $3.33 of the $3.50 an hour below the optimum is lost there.",
        "Film or log more of cup: there it would earn $0.25 an hour less than blind.",
        "Validate on jug, which validation never met: more episodes, or held-out videos of it.",
        "Film more like 0003: it is surely worth more than nothing.",
    ]
    assert advice({}, contexts(pan=(20.0, 30.0, 10.0))) == [
        "Film or log more: the policy lies $10.00 an hour below the optimum."
    ]
    assert advice({}, contexts(pan=(20.0, 30.0, 10.0)), is_simulated=True) == [
        "Train longer: the policy lies $10.00 an hour below the optimum."
    ]
    assert advice({}, LOSING[2:]) == [] == advice({})


def test_logs_that_cannot_tell_ask_for_videos_first(tmp_path):
    by_logs = {"judge": "Estimated from your logs", "off_policy": logs_say(LIKE)}
    assert advice(by_logs, LOSING) == [
        "To tell the policy from the logging policy and from blind: hold out about 12 times as many videos."
    ]
    assert "Validate on more than 2 episodes" in advice({"episodes": 2})[0]
    path = build_run(tmp_path / "run", episodes=3)
    edit_summary(path, contexts_not_met=["jug"])
    text = report(path).text
    assert text.index("What to do next") < text.index("Validate on jug") < text.index("How it was judged")
