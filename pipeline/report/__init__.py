"""A run's report: one HTML page that needs no network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipeline import files
from pipeline.config import ReportConfig
from pipeline.report.page import build_page
from pipeline.report.run_files import read_run
from pipeline.report.templates import render


def run(cfg: ReportConfig) -> Path:
    """Write RUN/report.html from what RUN holds, and return its path; what is missing is said on the page."""
    page = build_page(read_run(cfg.run))
    fields = {field.name: getattr(page, field.name) for field in dataclasses.fields(page)}
    path = cfg.run / "report.html"
    files.write_text(path, render("template.html", fields))
    return path
