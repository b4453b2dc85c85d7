import json
import re

import numpy as np
import pandas as pd
import pytest
from browser import needs_browser, visit
from raising import raises
from runs_by_hand import BETTER, UNKNOWN

from pipeline import files
from pipeline.config import CompareConfig
from pipeline.report import compare

SUMMARY = dict(
    source="sim", task="dishwashing", scenario="mixed", validation="simulator", episodes=8, profit_mean=36.0,
    profit_ci95=[33.0, 39.0], oracle_profit=40.0, blind_profit=32.0, oracle_ratio=0.9, oracle_ratio_ci95=[0.88, 0.92],
    blind_ratio=1.125, mp_mean=100.0, err_mean=0.02, wage_parity=2.0, spread=18.0, rebate=1.0, captured=17.0,
)  # fmt: skip


def build_run(path, **changes):
    files.write_json(path / "summary.json", SUMMARY | changes)
    return path


def test_runs_stand_in_their_order_with_differences_from_the_first(tmp_path):
    runs = [
        build_run(tmp_path / "b"),
        build_run(tmp_path / "a", profit_mean=42.0, profit_ci95=[38.0, 46.0]),
        build_run(tmp_path / "c", profit_mean=35.0, profit_ci95=None, blind_ratio=None, err_mean=None),
    ]
    first, second, third = compare.run(CompareConfig(runs=runs, out=tmp_path))
    assert first["profit_difference"] is None
    assert [second[f"profit_difference{end}"] for end in ("", "_low", "_high")] == pytest.approx([6.0, 1.0, 11.0])
    assert (third["profit_difference"], third["profit_difference_low"]) == (-1.0, None)
    table = pd.read_csv(tmp_path / "compare.csv")
    assert table.run.tolist() == [str(path) for path in runs]
    assert np.isnan(table.err_mean[2])
    page = (tmp_path / "compare.html").read_text()
    for text in ("3 runs compared", "$42.00 [$38.00, $46.00]", "+$6.00 [$1.00, $11.00]", "90.0% [88.0%, 92.0%]"):
        assert text in page
    assert "://" not in re.sub(r"data:[^\"]*", "", page)
    assert "compare with care" not in page


def test_runs_of_different_worlds_are_compared_with_a_warning_and_names_are_escaped(tmp_path):
    runs = [build_run(tmp_path / "a"), build_run(tmp_path / "<b>", scenario="seed")]
    compare.run(CompareConfig(runs=runs, out=tmp_path))
    page = (tmp_path / "compare.html").read_text()
    assert "validated differently: compare with care" in page
    assert "<b>" not in page and "&lt;b&gt;" in page


def test_runs_of_different_judges_are_said_and_not_subtracted(tmp_path, vtp):
    runs = [
        build_run(tmp_path / "a"),
        build_run(tmp_path / "b", validation="held-out logs", judge="Estimated from your logs", off_policy=BETTER),
        build_run(tmp_path / "c", validation="held-out logs", judge="Estimated from your logs", off_policy=UNKNOWN),
    ]
    code, out, err = vtp("compare", *runs, "--out", tmp_path)
    assert code == 0, err
    said = f"The runs have different judges: Simulated: {runs[0]}; Estimated from your logs: {runs[1]} and {runs[2]}."
    assert said in " ".join(out.split())
    page = (tmp_path / "compare.html").read_text()
    assert said in page and "better, +$2.35 [$1.10, $3.60]" in page and ">not identified<" in page
    assert "expectations of the outcome model learned from the logs" in page
    table = pd.read_csv(tmp_path / "compare.csv")
    assert table.judge.tolist() == ["Simulated", *["Estimated from your logs"] * 2]
    assert table.profit_difference.isna().all() and table.change.fillna(0).tolist() == [0, 2.35, 0]
    rows = compare.run(CompareConfig(runs=runs[1:], out=tmp_path))
    assert rows[1]["profit_difference"] == 0.0
    assert compare.judges_say(rows)[0] == "Estimated from your logs."


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "run-file-missing"), ("", "run-file-bad"), ("[]", "run-file-bad"), ("{}", "summary-bad"),
        (json.dumps(SUMMARY | {"episodes": "eight"}), "summary-bad"),
    ],
)  # fmt: skip
def test_a_run_without_a_summary_is_named_with_its_remedy(tmp_path, content, code):
    runs = [build_run(tmp_path / "a"), tmp_path / "b"]
    runs[1].mkdir()
    if content is not None:
        (runs[1] / "summary.json").write_text(content)
    with raises(code) as caught:
        compare.run(CompareConfig(runs=runs, out=tmp_path / "out"))
    assert str(caught.value).startswith(str(runs[1] / "summary.json")) and "vtp evaluate" in str(caught.value)
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_a_task_without_scenarios_and_an_oracle_that_earns_nothing_are_compared(tmp_path):
    nothing = dict(scenario="", task="sanding", oracle_ratio=None, oracle_ratio_ci95=None, oracle_profit=-1.0)
    runs = [build_run(tmp_path / name, **nothing) for name in "ab"]
    rows = compare.run(CompareConfig(runs=runs, out=tmp_path))
    assert rows[1]["oracle_ratio"] is None
    assert "<p>sanding, simulator. In brackets" in " ".join((tmp_path / "compare.html").read_text().split())


@needs_browser
def test_the_page_sorts_logs_nothing_and_asks_nobody_in_a_browser(tmp_path):
    runs = [build_run(tmp_path / name, profit_mean=p) for name, p in (("a", 36.0), ("b", 9.0), ("c", 110.0))]
    compare.run(CompareConfig(runs=runs, out=tmp_path))
    script = """(document.querySelectorAll("th button")[5].click(),
      [...document.querySelectorAll("th[scope=row]")].map((head) => head.dataset.key.at(-1)))"""
    order, console, asked = visit(tmp_path / "browser", (tmp_path / "compare.html").read_text(), script)
    assert (order, console, asked) == (["b", "a", "c"], [], [])


def test_summary_keys_of_compare_are_json(tmp_path):
    rows = compare.run(CompareConfig(runs=[build_run(tmp_path / "a"), build_run(tmp_path / "b")], out=tmp_path))
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
