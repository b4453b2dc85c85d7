"""The output of commands: summaries of any task, several random seeds, compared runs, progress and failures."""

import io
import json
import re
from types import SimpleNamespace

import pytest
from rich.console import Console
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
    assert "28 more contexts, each a smaller share of the work" in " ".join(out.split())
    assert "air_litres 850" in out


def test_an_undefined_ratio_is_a_dash_with_its_reason(tmp_path, capsys):
    path = build_run(tmp_path / "run", SANDING, episodes=2)
    out = printed(path, capsys, oracle_ratio=None, oracle_ratio_ci95=None, blind_ratio=None, oracle_profit=-1.0)
    (row,) = (line for line in out.splitlines() if "ratio to" in line and "│" in line)
    assert [cell.strip() for cell in row.split("│")[3:5]] == ["–", "–"]
    assert (
        "no ratio to the oracle, which sees everything, and to the best blind policy: it would earn $0.00/h"
        in " ".join(out.split())
    )
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
    assert ("no ratio to the oracle if it would earn $0.00/h or less" in out) == (ratio is None)
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
    words = " ".join(out.split())
    assert words.startswith(f"Estimated from your logs. {verdict.title({'off_policy': over, 'judge': LOGS})} The ")
    prose = [line for line in out.splitlines() if "│" not in line and not line.startswith(("costs", "by the logs"))]
    assert "$" not in "".join(prose) and "spread" not in out and "rebate" not in out
    assert "expected by the outcome model, not measured" in words
    assert re.search(r"best constant +│ better +│ +\+2\.35 \[1\.10, 3\.60\]", out)
    assert "212.4 effective steps, overlap 97%, largest weight 1.2%, propensities estimated" in words


def test_a_simulated_spread_is_in_the_conditional(tmp_path, capsys):
    out = printed(build_run(tmp_path / "run", episodes=2), capsys)
    assert re.search(r"the spread would be \$\d+\.\d\d/h \(rebate", " ".join(out.split()))


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


@pytest.mark.parametrize("over", [None, LIKE])
def test_a_summary_fits_80_columns(tmp_path, capsys, over):
    path = build_run(tmp_path / "run", DISHES, episodes=2)
    edit_summary(path, estimator=None)
    if over is not None:
        judged_by_logs(path, logs_say(over))
    show.print_summary(json.loads((path / "summary.json").read_text()))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_progress_bar_is_one_line_with_rate_and_time_left(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, no_color=True)
    monkeypatch.setattr(show, "console", terminal)
    episode = {"profit": -28.0, "err_rate": 0.05}
    with show.progress("train") as advance:
        for done in range(3):
            advance(4000 + done, 20_000, episode)
    (line,) = (line for line in terminal.file.getvalue().split("\r") if "4002/20000" in line)
    line = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", line).rstrip("\n")
    assert len(line) <= 80
    assert "profit -$28.00/h  error 5.0%" in line
    assert re.search(r"4002/20000 +[\d,.]+/s +\d:\d\d:\d\d", line), line


def test_a_rate_has_the_unit_in_which_it_is_above_one():
    rates = {None: "", 1234.5: "1,234/s", 12.34: "12/s", 2.5: "2.5/s", 0.5: "30/min", 0.02: "1.2/min", 0.002: "7.2/h"}
    assert {value: show.rate(value) for value in rates} == rates


@pytest.mark.parametrize("logged", [True, False])
def test_failures_are_listed_once(capsys, tmp_path, logged):
    rows = [{"video_id": name, "reason": "no video stream", "fix": "fetch it again"} for name in ("a.mp4", "b.mp4")]
    result = SimpleNamespace(failures=rows, failures_path=tmp_path / "failures.jsonl")
    with pytest.raises(show.typer.Exit):
        show.list_failures(result, logged=logged)
    err = capsys.readouterr().err
    assert [err.count(name) for name in ("a.mp4", "b.mp4")] == [not logged] * 2
    assert "2 videos failed; reasons and remedies are in " in err and "failures.jsonl" in err
