"""A page whose judge is the logs, and what it says of them."""

import re

import pytest
from runs_by_hand import BETTER, LIKE, UNKNOWN, build_run, edit_summary, judged_by_logs, logs_say, report
from small_runs import embeddings_config, write_embeddings

from pipeline import train


def page_of(folder, off_policy, **changes):
    path = build_run(folder / "run", episodes=20)
    judged_by_logs(path, off_policy, **changes)
    return report(path)


def head_of(page):
    """What is read before any advice and any table."""
    return page.text.split("What to do next")[0]


def test_the_judge_speaks_first_then_the_verdict(tmp_path):
    page = page_of(tmp_path, logs_say(BETTER))
    (main,) = re.findall(r"<main.*", page.html, re.DOTALL)
    assert main.index("Estimated from your logs") < main.index("<h1")
    head = head_of(page)
    assert "The policy would earn $2.35 an hour more than the logging policy" in head
    assert "+$2.35 an hour against the logging policy" in head and "212.4 effective steps" in head
    assert "of the optimum" not in head and "would earn less" not in head and "28." not in head


@pytest.mark.parametrize("over", [LIKE, UNKNOWN])
def test_no_dollars_stand_above_the_tables_where_logs_cannot_tell(tmp_path, over):
    page = page_of(tmp_path, logs_say(over, BETTER))
    assert "$" not in head_of(page)
    assert "Most is lost on" not in page.text
    for section in page.text.split("What the work is worth")[1:]:
        assert "Dollars here are what the outcome model learned from the logs expects" in section


def test_every_estimate_is_in_the_table(tmp_path):
    page = page_of(tmp_path, logs_say(BETTER))
    rows = {row["estimate"].split(":")[0].split(",")[-1].strip(): row for row in page.download("estimates.csv")}
    assert float(rows["The logging policy"]["usd_per_hour"]) == 20.1
    assert [float(rows["weighted"][key]) for key in ("usd_per_hour", "low", "high")] == [22.1, 20.0, 24.2]
    for text in (
        "This policy, direct: the outcome model’s expectation $23.00 $22.50 to $23.50",
        "This policy, doubly robust: the model, corrected by those steps $22.45",
        "Change over the logging policy, doubly robust +$2.35 +$1.10 to +$3.60",
        "Change at half the bandwidth +$2.20 +$0.90 to +$3.50",
        "Change at double the bandwidth +$2.00 unbounded",
        "Change over blind (the best constant action), doubly robust +$0.40",
        "Effective steps 212.4", "Largest weight 1.2%", "Overlap 97.0%", "Propensities estimated",
        "Held-out videos 24 The outcome model has seen none of them.", "Held-out steps 480",
        "Caution, κ 0.5 Standard deviations subtracted from what the outcome model expects; chosen by cross-",
        "Unsupported 0.3 Human wages",
        "Gain in cross-validation +$1.90 an hour Over the logging policy; its lower bound is +$0.40",
    ):  # fmt: skip
        assert text in page.text, text


def test_other_policies_stand_beside_it(tmp_path):
    page = page_of(tmp_path, logs_say(UNKNOWN, same_videos=True))
    rows = {row["policy"]: row for row in page.download("policies.csv")}
    assert list(rows) == ["this policy", "clone of the logging policy", "best constant", "greedy", "bold"]
    assert (rows["greedy"]["verdict"], float(rows["greedy"]["usd_per_hour"])) == ("worse", -1.2)
    assert rows["bold"]["usd_per_hour"] == "" and rows["bold"]["reason"].startswith("logs have actions")
    assert "Change over the logging policy, doubly robust not identified –" in page.text
    assert "none of these figures can be relied on" in page.text
    assert page.text.count("The model has seen other clips of the same videos") == 3


def test_a_closed_loop_has_its_number_and_the_logs_beside_it(tmp_path):
    path = build_run(tmp_path / "run", episodes=20)
    assert "What the logs say" not in report(path).text
    edit_summary(path, judge="Closed loop, simulated", off_policy=logs_say(BETTER))
    page = report(path)
    head = head_of(page)
    assert "The policy would earn $" in head and "of the optimum" in head
    assert "The logs say: better than the logging policy, +$2.35 an hour" in head
    assert "The policy is better than the logging policy" in page.text


def test_logs_that_hold_no_step_are_said_without_a_section(tmp_path):
    page = page_of(tmp_path, None)
    assert "no held-out clip has logs of actions and outcomes" in page.text
    assert "off-policy" not in page.attributes("id") and "would earn $" not in page.text.split("How it was judged")[0]


def test_a_run_on_three_logged_videos_says_what_is_lacking(tmp_path):
    """One held-out video leaves intervals open, two to learn from leave none for a fold to prove anything on."""
    summary = train.run(embeddings_config(tmp_path, write_embeddings(tmp_path / "e.h5", videos=3), outcomes="auto"))
    assert summary["judge"] == "Estimated from your logs" and summary["off_policy"]["verdict"] == "not identified"
    assert summary["off_policy"]["direct"][1:] == [None, None]
    page = report(tmp_path / "run")
    assert "Nothing learned beats the logging policy by its lower bound" in head_of(page) and "$" not in head_of(page)
    assert "To tell the policy from the logging policy and from blind: film or hold out 4 more videos" in page.text
    assert "This policy, direct: the outcome model’s expectation" in page.text and "unbounded" in page.text
