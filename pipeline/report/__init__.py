"""A run's report: one HTML page that needs no network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipeline import files
from pipeline.config import ReportConfig
from pipeline.kept_inputs import keep_inputs
from pipeline.report.page import build_page
from pipeline.report.run_files import read_run
from pipeline.report.templates import render


def run(cfg: ReportConfig) -> Path:
    """Write RUN/report.html from the files of RUN and return its path; the page names missing parts."""
    files_of_run = read_run(cfg.run)
    given = [files_of_run.config.get(name) for name in ("embeddings", "novelty")]
    keep_inputs(cfg, [files_of_run.run.report], reads=[*files_of_run.run.read, *(Path(str(p)) for p in given if p)])
    page = build_page(files_of_run)
    fields = {field.name: getattr(page, field.name) for field in dataclasses.fields(page)}
    files.write_text(files_of_run.run.report, render("template.html", fields))
    return files_of_run.run.report
