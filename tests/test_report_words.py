"""Numbers and sentences of the page: no computer's exponents, plural and zero cases, a direction for every response."""

import re

import numpy as np
import pandas as pd
import pytest
from runs_by_hand import EXPERIMENTS, SANDING, SORTING, build_run, report

from pipeline.report import words
from pipeline.report.experiment_charts import axis_of_multipliers
from pipeline.report.experiment_sections import _responds, _valued, worth_in_words
from pipeline.survey import short_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (5e-5, "0.00005"), (2000.0, "2,000"), (12345.6, "12,346"), (-1.5, "−1.5"),
        (0.97003, "0.97"), (3.24e-8, "3.24×10⁻⁸"), (1e16, "1×10¹⁶"), (100.0, "100"), (0.1 + 0.2, "0.3"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_do(value, text):
    assert short_number(value) == text


def test_ticks_have_their_unit():
    assert [words.usd_tick(value) for value in (0, -0.5, 50_000)] == ["$0", "−$0.5", "$50,000"]
    assert [words.percent_tick(value) for value in (0.07, 0.0025)] == ["7%", "0.25%"]
    assert words.percent(-0.0001) == "0.0%"


@pytest.mark.parametrize(
    ("worth", "total", "text"),
    [
        (8, 8, "All 8 are worth more than nothing (95% intervals above zero)."),
        (0, 8, "None of the 8 is surely worth more than nothing (all 95% intervals reach zero)."),
        (1, 2, "1 of 2 is worth more than nothing (95% intervals above zero); the interval of the other one reaches"),
        (3, 8, "3 of 8 are worth more than nothing (95% intervals above zero); the intervals of the other 5 reach"),
        (1, 1, "The one demonstration is worth more than nothing (95% interval above zero)."),
        (0, 1, "The one demonstration is not surely worth more than nothing"),
    ],
)
def test_worth_is_said_in_the_number_that_it_has(worth, total, text):
    assert worth_in_words(worth, total).startswith(text)


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (1.05, 1.0, 1.1, "A would raise profit by 1.05% (95% interval 1.00% to 1.10%)."),
        (-0.12, -0.13, -0.1, "A would lower profit by 0.12% (95% interval 0.10% to 0.13%)."),
        (-0.05, -0.2, 0.1, "A would change profit by −0.05% (95% interval −0.20% to 0.10%, which contains zero)."),
        (0.5, None, None, "A would raise profit by 0.50%."),
        (None, None, None, "How profit responds to a is not defined: profit is not positive."),
    ],
)
def test_an_elasticity_has_a_direction_if_its_interval_has(value, low, high, text):
    assert _responds("A", "profit", dict(value=value, low=low, high=high)) == text


def test_prices_stand_in_the_table_only_where_they_are_not_the_values():
    result, table = EXPERIMENTS["value"]
    assert [head for head, _ in _valued(result, table).heads][2:] == ["Value $/h", "Price $/h", "Lost if left out $/h"]
    paid_its_value = table.assign(price=table["value"].clip(lower=0))
    found = _valued(result, paid_its_value)
    assert [head for head, _ in found.heads][2:] == ["Value $/h", "Lost if left out $/h"]
    assert "Each would be paid its value, or nothing if the value is negative." in found.caption
    assert {len(row) for row in found.rows} == {len(found.heads)}


def test_multipliers_stand_on_a_logarithmic_axis_with_today_in_its_middle():
    axis = axis_of_multipliers("price", np.geomspace(0.5, 2, 10))
    assert [label for _, label in axis.ticks] == ["0.5", "0.7", "1", "1.4", "2"]
    assert float(axis.at(1.0)) == pytest.approx(500)
    assert [label for _, label in axis_of_multipliers("price", np.geomspace(0.1, 10, 9)).ticks] == ["0.1", "1", "10"]


@pytest.mark.parametrize("work", [SANDING, SORTING], ids=lambda work: work["task"])
def test_no_number_of_the_page_is_a_computers(tmp_path, work):
    path = build_run(tmp_path / "run", work, episodes=60)
    metrics = pd.read_csv(path / "metrics.csv")
    metrics.assign(lambda_dual=metrics["lambda_dual"] * 1e-6, alpha=3e-9).to_csv(path / "metrics.csv", index=False)
    text = re.sub(r"base64,[A-Za-z0-9+/=]*", "", report(path).html)
    assert re.findall(r"\d[eE][-−+]?\d+\b(?![^<]*</td>)", text.split("<main>")[1].split('id="provenance"')[0]) == []
    assert "−0.0%" not in text and "−0%" not in text and "−$0.00" not in text
