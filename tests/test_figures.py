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
    policy, oracle = figures.bars([("p", -10.0, "policy"), ("o", 30.0, "oracle")], str, (-12.0, -8.0))
    assert (oracle.start, oracle.width) == pytest.approx((100 * 12 / 42, 100 * 30 / 42))
    assert (policy.start, policy.width) == pytest.approx((100 * 2 / 42, 100 * 10 / 42))
    assert (policy.low, policy.high) == pytest.approx((0, 100 * 4 / 42))


def test_line_chart_places_values_on_the_axis():
    x, y = np.arange(3.0), np.array([0.0, 10.0, 20.0])
    download = figures.csv_download("a.csv", pd.DataFrame({"a": y}))
    chart = figures.line_chart(
        "t", [figures.Series("p", x, y, "policy")], caption="", summary="", y_format=str, download=download,
        references=[figures.Reference("r", 10.0, "oracle")],
    )  # fmt: skip
    assert chart.paths == [("ref oracle", "M0 500H1000"), ("policy", "M0 1000h0L500 500L1000 0")]
    assert [(label.at, label.label) for label in chart.labels] == [(50, "r"), (0, "p")]


@pytest.mark.parametrize(("value", "labels"), [(0.0, ["0.0", "1.0"]), (5.0, ["0.0", "5.0"]), (-2.0, ["-2.0", "0.0"])])
def test_a_constant_has_an_axis_from_zero(value, labels):
    y = np.full(3, value)
    chart = figures.line_chart(
        "t", [figures.Series("p", np.arange(3.0), y, "policy")], caption="", summary="", y_format=str,
        download=figures.csv_download("a.csv", pd.DataFrame({"a": y})),
    )  # fmt: skip
    assert [chart.y_ticks[0].label, chart.y_ticks[-1].label] == labels


def test_a_long_table_is_thinned_and_says_so():
    download = figures.csv_download("a.csv", pd.DataFrame({"a": range(9000)}))
    rows = base64.b64decode(download.uri.split(",")[1]).decode().split()
    assert len(rows) == 1 + 1800 and rows[:3] == ["a", "0", "5"]
    assert download.note == "1 row in 5"
