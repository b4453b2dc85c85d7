"""The report page for any task: one action or many, any bounds, contexts without a name or forty of them."""

import re

import numpy as np
import pandas as pd
import pytest
from runs_by_hand import DISHES, SANDING, SORTING, build_run, edit_summary, frontier, report

from pipeline.files import write_json
from pipeline.report.context_cards import read_cards
from pipeline.report.summary_figures import SHOWN, ActionAxis, read_axes, read_contexts

NO_TABLE = "beside the optimum and blind"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {work["task"]: report(build_run(folder / work["task"], work)) for work in (DISHES, SANDING, SORTING)}


@pytest.mark.parametrize(
    ("low", "high", "value", "text", "percent"),
    [
        (0.0, 1.0, 0.724, "0.72", 72.4),
        (5.0, 40.0, 22.46, "22.5", 100 * 17.46 / 35),
        (0.0, 2000.0, 1151.4, "1,151", 57.57),
        (-30.0, 30.0, -15.0, "−15.0", 25.0),
        (-0.004, 0.006, 0.00111, "0.0011", 51.1),
        (0.0, 1.0, 1.3, "1.30", 100.0),
    ],
)
def test_an_action_is_read_and_placed_by_its_bounds(low, high, value, text, percent):
    axis = ActionAxis("a", low, high)
    assert axis.text(value) == text
    assert axis.at(value) == pytest.approx(percent)
    assert axis.text(None) == "–"


@pytest.mark.parametrize(
    ("value", "oracle", "start", "width", "mark"),
    [
        (-15.0, 15.0, 25.0, 25.0, 75.0),  # from zero to the left
        (30.0, -30.0, 50.0, 50.0, 0.0),
        (0.0, 0.0, 50.0, 1.0, 50.0),  # never too thin to be seen
        (None, None, 0.0, None, None),
    ],
)
def test_a_track_starts_at_zero_and_carries_the_mark_of_the_optimum(value, oracle, start, width, mark):
    context = {"work": {"actions": {"tilt": value}, "oracle_actions": {"tilt": oracle}}}
    (card,) = read_cards(read_contexts({"contexts": context}), [], [ActionAxis("tilt", -30.0, 30.0)])
    (track,) = card.tracks
    marks = [] if mark is None else [("optimum", mark)]
    assert (track.start, track.width, track.marks) == (start, width, marks)


@pytest.mark.parametrize("actions", [None, {}, [], {"a": 1}, {"a": [1.0, 1.0]}, {"a": [0.0, None]}, {"a": ["0", 1.0]}])
def test_bounds_that_are_none_are_no_bounds(actions):
    assert read_axes({"actions": actions}) == []


def test_two_actions_that_share_their_bounds_share_a_curve(pages):
    page = pages["dishwashing"]
    assert "Speed and care Mean action of each episode, from 0 to 1." in page.text
    assert "The bars are the policy’s mean actions in that context, from 0 to 1." in page.text
    assert "Speed runs to the right, care upwards." in page.text and "first two" not in page.text
    assert {"mean_speed", "mean_care"} <= set(page.download("mean_speed.csv")[0])


def test_one_action_of_one_unnamed_kind_of_work(pages):
    page = pages["sanding"]
    for text in (
        "sanding · ",
        "from 2 to 40.",
        "All work pressure ",
        "Pressure runs to the right; a bar is the share of actions that lie there.",
        "Pressure Mean action of each episode, from 2 to 40.",
        "− energy −$0.50 an hour Cost of energy",
        "− robot −$6.00 an hour Cost of robot",
        "Implied wage less costs of $7.75 an hour. No other cost is included.",
        "less energy ($0.50 an hour), robot ($6.00 an hour) and paper ($1.25 an hour); no other cost is included.",
        "price × (attempts − errors) − damage × errors",
        "Nothing: every part of this page had its data.",
    ):
        assert text.replace(" · ", " ") in page.text, text
    assert NO_TABLE not in page.text and "100% of the work" not in page.text
    assert len(page.download("actions-1.csv")) == 480
    histogram = [label for label in page.attributes("aria-label", "svg") if label.startswith("All work: 480 actions")]
    assert len(histogram) == 1 and histogram[0].endswith("optimum pressure 23.0.")
    assert "All work, as the policy saw it; it answered with pressure 22.9" in page.attributes("alt", "img")


def test_three_actions_and_forty_contexts(pages):
    page = pages["sorting"]
    contexts = page.download("contexts.csv")
    assert len(contexts) == 40 and sum(float(row["share"]) for row in contexts) == pytest.approx(1)
    assert [name for name in contexts[0] if "tilt" in name] == ["tilt", "oracle_tilt"]
    largest = sorted(contexts, key=lambda row: -float(row["share"]))[:SHOWN]
    titles = re.findall(r"<h[34]>(part \d\d)</h[34]>", page.html)
    assert set(titles) == {row["context"] for row in largest} and len(titles) == 2 * SHOWN, "a card and a chart each"
    for text in (
        "Of 40 contexts the 8 with the largest share of the work are drawn; the other 32 are in the table below",
        "each over the bounds beside its name",
        "belt speed 0.1 to 1.5",
        "tilt −30 to 30",
        "air litres 0 to 2,000",
        "Optimal air litres",
        "Of 3 actions, these are the task’s first two, belt speed and tilt; each chart’s data have all.",
        "Tilt Mean action of each episode, from −30 to 30.",
        "Implied wage; the task has no hourly costs.",
        "What the policy did and would earn in 40 contexts",
        "Nothing: every part of this page had its data.",
    ):
        assert text in page.text, text
    assert set(SORTING["actions"]) <= set(page.download("actions-1.csv")[0])
    assert len(page.attributes("src", "img")) == 2 * SHOWN, "pictures of what is drawn alone"
    for tag, attrs in page.elements:
        if tag == "svg":
            assert attrs.get("aria-hidden") == "true" or (attrs["role"] == "img" and attrs["aria-label"])


@pytest.mark.parametrize("work", [DISHES, SANDING, SORTING], ids=lambda work: work["task"])
def test_a_run_of_an_earlier_version_is_shown_as_far_as_it_goes(tmp_path, work):
    """Its summary names no actions and no costs; actions lay beside the figures of a context, not in a mapping."""
    path = build_run(tmp_path / "run", work, episodes=40)
    old = {name: dict(share=1 / len(work["best"]), speed=0.9, profit=20.0, err=0.01) for name in work["best"]}
    edit_summary(path, without=("actions", "costs_usd_per_hour"), contexts=old)
    page = report(path)
    assert "summary.json does not name the task’s actions with their bounds, as earlier versions did not" in page.text
    assert f"vtp evaluate {path}" in page.text
    assert "Implied wage less costs, which this summary does not itemise." in page.text
    assert "would earn $ an hour $20.00" in page.text
    curves = [name for name in page.attributes("download", "a") if name.startswith("mean_")]
    assert curves == [f"mean_{name}.csv" for name in work["actions"]], "training's means need no bounds"


def test_actions_that_a_table_lacks_are_said_to_be_missing(tmp_path):
    path = build_run(tmp_path / "run", SORTING, episodes=40)
    steps = pd.read_csv(path / "validation.csv")
    steps.drop(columns="tilt").to_csv(path / "validation.csv", index=False)
    assert "validation.csv has no numbers in the columns belt_speed, tilt, air_litres." in report(path).text
    steps.assign(tilt=np.nan).to_csv(path / "validation.csv", index=False)
    assert "validation.csv has no numbers in the columns belt_speed, tilt, air_litres." in report(path).text


def test_an_optimum_that_earns_nothing_has_no_share(tmp_path):
    path = build_run(tmp_path / "run", SANDING, episodes=40)
    edit_summary(
        path, oracle_profit=-0.5, blind_profit=-0.7, oracle_ratio=None, blind_ratio=None, oracle_ratio_ci95=None,
        profit_mean=-2.0, profit_ci95=[-2.5, -1.5],
    )  # fmt: skip
    page = report(path)
    assert "– of the optimum It has no share of the optimum: even that would earn no more than −$0.50" in page.text
    assert "Nothing: every part of this page had its data." in page.text


def test_the_frontier_names_the_actions_that_it_holds(tmp_path):
    path = build_run(tmp_path / "run", SORTING, episodes=40)
    best = (0.75, -3.0, 850.0)
    for axes, held, text, charts in (
        (("belt_speed", "tilt"), {"air_litres": 900.0}, "of 2,500 actions with air litres 900 would meet", 3),
        (("belt_speed",), {"tilt": 0.0, "air_litres": 900.0}, "of 50 actions with tilt 0 and air litres 900 would", 6),
    ):
        result, table = frontier(SORTING["actions"], best, axes=axes, names=("part 01", "part 02"), held=held)
        write_json(path / "experiments" / "frontier.json", result)
        table.to_csv(path / "experiments" / "frontier.csv", index=False)
        page = report(path)
        assert text in page.text
        assert "is belt speed 0.75, tilt −3 and air litres 850: it would earn $31.77 an hour." in page.text
        assert len(re.findall("<h4>(all contexts|part 01|part 02)</h4>", page.text_of("frontier"))) == charts
    write_json(path / "experiments" / "frontier.json", {key: result[key] for key in result if key != "axes"})
    page = report(path)
    assert "experiments/frontier cannot be read (it lacks 'axes')." in page.text
    assert f"vtp experiment frontier {path}" in page.text
