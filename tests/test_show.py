"""What commands print of a run: a summary of any task, several seeds, runs beside each other."""

import json
import re

import pytest
from runs_by_hand import (
    DISHES,
    LIKE,
    SANDING,
    SORTING,
    UNKNOWN,
    build_run,
    edit_summary,
    judged_by_logs,
    logs_say,
)

from pipeline.cli import show
from pipeline.report import verdict
from pipeline.runs.judgement import LOGS


def printed(path, capsys, **changes):
    edit_summary(path, estimator=None, **changes)
    show.print_summary(json.loads((path / "summary.json").read_text()))
    return capsys.readouterr().out


def test_every_context_has_a_row_of_all_its_actions(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    out = printed(build_run(tmp_path / "a", DISHES, episodes=2), capsys)
    assert (
        out.startswith("Closed loop, simulated. The policy would earn $") and "\ndishwashing mixed, closed loop" in out
    )
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.count("│") == 5}
    assert list(rows)[-4:] == ["mug", "glass", "pan", "plate"], "the largest share first"
    assert "speed 0.72, care 1" in rows["glass"]
    assert "costs $0.10/h: energy $0.10" in out and "more contexts" not in out
    out = printed(build_run(tmp_path / "b", SORTING, episodes=2), capsys)
    assert "\nsorting, closed loop from pixels" in out and "costs: none" in out
    assert sum("│ part " in line for line in out.splitlines()) == 12
    assert "28 more contexts, each a smaller share of the work" in out
    assert "air_litres 850" in out


def test_a_ratio_to_nothing_is_a_dash_with_its_reason(tmp_path, capsys):
    path = build_run(tmp_path / "run", SANDING, episodes=2)
    out = printed(path, capsys, oracle_ratio=None, oracle_ratio_ci95=None, blind_ratio=None, oracle_profit=-1.0)
    (row,) = (line for line in out.splitlines() if "ratio to" in line and "│" in line)
    assert [cell.strip() for cell in row.split("│")[3:5]] == ["–", "–"]
    assert "no ratio to the oracle, which sees everything, and to the best blind policy: no more than $0.00/h" in out
    assert "costs $7.75/h: energy $0.50, robot $6.00, paper $1.25" in out


@pytest.mark.parametrize("ratio", [0.9, None])
def test_seeds_are_printed_with_or_without_a_ratio(tmp_path, capsys, ratio):
    bounds = None if ratio is None else [0.8, 1.0]
    seed = dict(seed=0, profit_mean=30.0, oracle_ratio=ratio, err_mean=0.02)
    summary = dict(
        task="sanding", scenario="", validation="simulator", seeds=[0], by_seed=[seed], profit_mean=30.0,
        profit_ci95=None, profit_iqm=30.0, profit_iqm_ci95=[29.0, 31.0], oracle_ratio=ratio, oracle_ratio_ci95=bounds,
        oracle_ratio_iqm=ratio, oracle_ratio_iqm_ci95=bounds, err_mean=0.02,
    )  # fmt: skip
    show.print_seeds(summary, as_json=False)
    out = capsys.readouterr().out
    assert out.startswith("Simulated.\nsanding, simulator, 1 seed ") and "30.00 [29.00, 31.00]" in out
    assert ("no ratio to the oracle where it would earn no more than $0.00/h" in out) == (ratio is None)
    assert ("0.900 [0.800, 1.000]" in out) == (ratio is not None)


def test_compare_prints_its_table(vtp, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    runs = [build_run(tmp_path / name, SANDING, episodes=2) for name in ("a", "[red]b")]
    edit_summary(runs[1], profit_mean=40.0, profit_ci95=[39.0, 41.0], oracle_ratio=None, oracle_ratio_ci95=None)
    code, out, err = vtp("compare", *runs, "--out", tmp_path / "out")
    assert code == 0, err
    (row,) = (line for line in out.splitlines() if "b " in line and "│" in line)
    assert "[red]b" in row and "40.00 [39.00, 41.00]" in row
    assert "open " in out


def test_a_loss_has_its_sign_before_the_dollar():
    assert [show.usd(value) for value in (10.524, 0.0, -0.001, -10.52)] == ["$10.52", "$0.00", "$0.00", "-$10.52"]


@pytest.mark.parametrize("over", [LIKE, UNKNOWN])
def test_where_logs_judge_and_cannot_tell_dollars_stand_in_tables_alone(tmp_path, capsys, over):
    path = build_run(tmp_path / "run", episodes=2)
    judged_by_logs(path, logs_say(over))
    show.print_summary(json.loads((path / "summary.json").read_text()))
    out = capsys.readouterr().out
    assert out.startswith(f"Estimated from your logs. {verdict.title({'off_policy': over, 'judge': LOGS})}\n")
    prose = [line for line in out.splitlines() if "│" not in line and not line.startswith(("costs", "what the logs"))]
    assert "$" not in "".join(prose) and "spread" not in out and "rebate" not in out
    assert "what the outcome model expects" in " ".join(out.split())
    assert re.search(r"best constant +│ better +│ +\+2\.35 \[1\.10, 3\.60\]", out)
    assert "212.4 effective steps, overlap 97%, largest weight 1.2%, propensities estimated" in out


def test_money_that_nobody_paid_would_be(tmp_path, capsys):
    out = printed(build_run(tmp_path / "run", episodes=2), capsys)
    assert re.search(r"the spread would be \$\d+\.\d\d/h \(rebate", out)


def test_seeds_that_logs_judged_are_printed_by_verdict(capsys):
    seeds = [
        dict(seed=k, profit_mean=30.0, oracle_ratio=0.9, err_mean=0.02, verdict=verdict)
        for k, verdict in enumerate(("better", "not identified", "better"))
    ]
    summary = dict(
        judge=LOGS, task="sanding", scenario="", validation="held-out logs", seeds=[0, 1, 2], by_seed=seeds,
        profit_mean=30.0, profit_ci95=None, profit_iqm=30.0, profit_iqm_ci95=None, oracle_ratio=0.9,
        oracle_ratio_ci95=None, oracle_ratio_iqm=0.9, oracle_ratio_iqm_ci95=None, err_mean=0.02,
    )  # fmt: skip
    show.print_seeds(summary, as_json=False)
    assert capsys.readouterr().out.startswith(
        f"{LOGS}.\nbetter than the logging policy: seeds 0, 2\nnot identified against the logging policy: seed 1\n"
    )
