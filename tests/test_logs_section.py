"""The logs on a run's page: figures, table, what to log next; nothing where a policy learned in the simulator."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from example_tasks import TASKS
from logged_data import simulated_data
from runs_by_hand import Page, build_run, report
from worlds import DISHES

from pipeline.dataset import write_embeddings
from pipeline.outcomes import clip_contexts
from pipeline.report import logs_section
from pipeline.report.figures import Download
from pipeline.report.logs_section import heat_map
from pipeline.report.summary_figures import ActionAxis
from pipeline.runs import ClipInputs, Encoding, PolicyMetadata
from pipeline.survey import CoverageMap, survey


def section_of(data, **settings):
    return logs_section.logs_section(survey(data, clip_contexts(data), Path("e.h5"), **settings))


def test_a_heat_map_places_cells_frames_and_the_best_action():
    """Two by two cells of 500 units: five steps low and left, one high and right."""
    edges = np.array([0.0, 0.5, 1.0])
    coverage = CoverageMap(("speed", "care"), (edges, edges), np.array([[5, 0], [0, 1]]))
    axes = {name: ActionAxis(name, 0.0, 1.0) for name in ("speed", "care")}
    chart = heat_map(
        "glass", coverage, axes, best=[0.75, 1.0], frames=[[[0.0, 0.5], [0.5, 1.0]]], summary="",
        download=Download("", ""),
    )  # fmt: skip
    assert chart.paths == [
        ("heat heat-1", "M500 0H1000V500H500Z"),
        ("heat heat-5", "M0 500H500V1000H0Z"),
        ("wanted", "M0 0H500V500H0Z"),
        ("ring", "M750 0h0"),
        ("ring-hole", "M750 0h0"),
    ]
    assert [(tick.at, tick.label) for tick in chart.y_ticks] == [(100, "0"), (50, "0.5"), (0, "1")]
    assert (chart.x_label, chart.y_label) == ("speed", "care")


def test_a_section_has_a_row_and_a_map_for_every_context():
    section = section_of(simulated_data(DISHES, videos=20))
    assert {row[0].text for row in section.table.rows} == set(DISHES.contexts)
    assert {len(row) for row in section.table.rows} == {len(section.table.heads)}
    assert sorted(chart.title for chart in section.charts) == sorted(DISHES.contexts)
    assert section.answer == "Learned from 400 logged steps of 20 videos (400 train), propensities logged."
    assert section.log_next and all(line.startswith("Log about ") for line in section.log_next)
    assert set(section.logged_profit) == set(DISHES.contexts)


@pytest.mark.parametrize(("name", "charts"), [("one action", 1), ("three actions", 6)])
def test_one_action_is_a_histogram_and_three_are_three_maps(name, charts):
    section = section_of(simulated_data(TASKS[name], videos=10))
    assert len(section.charts) == charts
    assert ("line" if charts == 1 else "ring") in section.charts_say


def test_logs_that_teach_nothing_are_shown_all_the_same():
    section = section_of(simulated_data(DISHES, videos=1))
    assert section.says[0].startswith("Nothing can be learned from them: the number of logged videos (1) is below 2")
    assert len(section.charts) == len(section.table.rows)
    assert {len(row) for row in section.table.rows} == {len(section.table.heads)}


@pytest.fixture
def run_on_logs(tmp_path, monkeypatch):
    """A run directory, and the metadata of a policy that learned from logged outcomes in the way that is asked for."""
    data = simulated_data(DISHES, videos=20)
    content = write_embeddings(tmp_path / "e.h5", data)
    path = build_run(tmp_path / "run", episodes=40)

    def trained(**changes):
        encoding = Encoding.of(data)
        clips = ClipInputs(
            embeddings=str(tmp_path / "e.h5"), content_sha256=content, novelty_sha256=None, encoding=encoding
        )
        metadata = PolicyMetadata("embeddings", DISHES, 0, "", True, {}, outcomes="logged", clips=clips)
        found = dataclasses.replace(metadata, projector=object(), **changes)
        monkeypatch.setattr(logs_section, "load_metadata", lambda run: found)
        return path

    return trained


def test_the_page_of_a_policy_that_learned_from_logs_has_them(run_on_logs):
    page: Page = report(run_on_logs())
    assert "logs" in page.attributes("id")
    for text in (
        "What the logs hold",
        "Learned from 320 logged steps of 20 videos (320 train)",
        "By these logs, the best actions are expected to earn ",
        "What to do next The most valuable steps to log come first",
        "logging policy, as logged",
        "Nothing: every part of this page had its data.",
    ):
        assert text in page.text, text
    rows = page.download("logs.csv")
    assert {row["context"] for row in rows} == set(DISHES.contexts)
    assert sum(int(row["steps"]) for row in rows) == 320, "those that training may see"
    assert sum(int(row["steps"]) for row in page.download("logs-glass-speed-care.csv")) == int(
        next(row["steps"] for row in rows if row["context"] == "glass")
    )


def test_other_runs_have_no_such_section(run_on_logs, tmp_path):
    assert "logs" not in report(run_on_logs(outcomes="simulator")).attributes("id")
    assert "logs" not in report(build_run(tmp_path / "other", episodes=40)).attributes("id"), "without a checkpoint"


def test_embeddings_that_are_gone_are_said_to_be_missing(run_on_logs, tmp_path):
    path = run_on_logs()
    (tmp_path / "e.h5").unlink()
    page = report(path)
    assert "The contents of the logs cannot be shown: embeddings " in page.text
    assert f"vtp logs {tmp_path / 'e.h5'}" in page.text
