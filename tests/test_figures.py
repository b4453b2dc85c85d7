"""Chart geometry: where lines, bands, bars and labels come to lie."""

import base64
import math

import numpy as np
import pandas as pd
import pytest

from pipeline.report import figures


def test_line_path_breaks_at_nan_and_draws_a_lone_point():
    nan = math.nan
    assert figures.line_path(np.array([0, 10, 20, 30.0]), np.array([5, 6, nan, 8.0])) == "M0 5h0L10 6M30 8h0"
    assert figures.line_path(np.array([1.0]), np.array([nan])) == ""


def test_thin_keeps_the_extremes():
    y = np.zeros(10_000)
    y[1234], y[5678], y[9000:9100] = 7, -7, math.nan
    x, thinned = figures.thin(np.arange(10_000.0), y, 100)
    assert len(x) <= 200
    assert np.nanmax(thinned) == 7 and np.nanmin(thinned) == -7
    assert np.all(np.diff(x) > 0)


@pytest.mark.parametrize(
    ("positions", "expected_positions"),
    [([10, 50], [10, 50]), ([50, 50], [50, 57]), ([99, 98], [100, 93]), ([], [])],
)
def test_spread_apart(positions, expected_positions):
    assert figures.spread_apart(positions, 7) == pytest.approx(expected_positions)


def test_bars_share_an_axis_that_holds_zero():
    policy, optimum = figures.bars([("p", -10.0, "policy", (-12.0, -8.0)), ("o", 30.0, "optimum", None)], str)
    assert (optimum.low, optimum.high) == (None, None)
    assert (optimum.start, optimum.width) == pytest.approx((100 * 12 / 42, 100 * 30 / 42))
    assert (policy.start, policy.width) == pytest.approx((100 * 2 / 42, 100 * 10 / 42))
    assert (policy.low, policy.high) == pytest.approx((0, 100 * 4 / 42))


def test_line_chart_places_values_on_the_axis():
    x, y = np.arange(3.0), np.array([0.0, 10.0, 20.0])
    download = figures.csv_download("a.csv", pd.DataFrame({"a": y}))
    chart = figures.line_chart(
        "t", [figures.Series("p", x, y, "policy")], x=figures.axis_from_to("x", 0, 2), y_label="y", y_text=str,
        summary="", download=download, references=[figures.Reference("r", 10.0, "optimum")],
    )  # fmt: skip
    assert chart.paths == [("ref optimum", "M0 500H1000"), ("policy", "M0 1000h0L500 500L1000 0")]
    assert (chart.x_label, chart.y_label) == ("x", "y")
    assert [(label.at, label.label) for label in chart.labels] == [(50, "r"), (0, "p")]


@pytest.mark.parametrize(("value", "labels"), [(0.0, ["0.0", "1.0"]), (5.0, ["0.0", "5.0"]), (-2.0, ["-2.0", "0.0"])])
def test_a_constant_has_an_axis_from_zero(value, labels):
    y = np.full(3, value)
    chart = figures.line_chart(
        "t", [figures.Series("p", np.arange(3.0), y, "policy")], x=figures.axis_from_to("x", 0, 2), y_label="",
        y_text=str, summary="",
    )  # fmt: skip
    assert [chart.y_ticks[0].label, chart.y_ticks[-1].label] == labels


def test_an_axis_places_values_on_its_scale():
    decades = figures.Axis("x", 0.1, 10.0, [], scale="log")
    assert decades.at([0.1, 1.0, 10.0]) == pytest.approx([0, 500, 1000]) and decades.down(0.1) == pytest.approx(1000)
    with_margins = figures.Axis("x", 0.0, 1.0, [], margin=0.5)
    assert with_margins.at([0.0, 0.5, 1.0]) == pytest.approx([250, 500, 750])
    around = figures.axis_around("y", [0.0, 30.0], str, scale="symlog")
    assert [tick for tick, _ in around.ticks] == [0.0, 0.1, 1.0, 10.0, 100.0]
    places = around.at([tick for tick, _ in around.ticks])
    assert places[0] == 0 and places[-1] == 1000 and np.all(np.diff(places) > 70)


def test_a_histogram_has_the_share_of_each_group_in_each_bin():
    axis = figures.Axis("score", 0.0, 4.0, [(0.0, "0")])
    groups = [("policy", np.array([0.5, 0.5, 3.5, 3.5])), ("optimum", np.array([1.5]))]
    chart = figures.histogram("t", groups, axis, y_label="", summary="", bins=4, mark=2.0)
    assert chart.paths == [
        ("hist policy", "M0 500H250V1000H0ZM750 500H1000V1000H750Z"), ("hist optimum", "M250 0H500V1000H250Z"),
        ("ref optimum mark", "M500 0V1000"),
    ]  # fmt: skip
    assert [tick.label for tick in chart.y_ticks][::4] == ["0%", "100%"]


def test_intervals_stand_in_rows_on_an_axis_that_holds_zero():
    rows = [("a", 1.0, 0.0, 2.0), ("b", -1.0, -2.0, 0.0)]
    chart = figures.interval_chart("t", rows, x_label="$", x_text=str, row_px=20, summary="")
    assert chart.height_px == 40 and [(tick.at, tick.label) for tick in chart.y_ticks] == [(25, "a"), (75, "b")]
    assert dict(chart.paths) == {
        "zero": "M500 0V1000", "interval": "M500 250H1000M0 750H500", "interval-dot": "M250 750h0M750 250h0",
    }  # fmt: skip


def test_a_long_table_is_thinned_and_says_so():
    download = figures.csv_download("a.csv", pd.DataFrame({"a": range(9000)}))
    rows = base64.b64decode(download.uri.split(",")[1]).decode().split()
    assert len(rows) == 1 + 1800 and rows[:3] == ["a", "0", "5"]
    assert download.note == "1 row in 5"
