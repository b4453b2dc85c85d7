"""A run's report: one HTML page that needs no network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline import rundir
from pipeline.config import ReportConfig
from pipeline.report.files import read_run
from pipeline.report.page import build_page


def run(cfg: ReportConfig) -> Path:
    """Write RUN/report.html from what RUN holds, and return its path; what is missing is said on the page."""
    page = build_page(read_run(cfg.run))
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    fields = {field.name: getattr(page, field.name) for field in dataclasses.fields(page)}
    path = cfg.run / "report.html"
    rundir.write_text(path, environment.get_template("template.html").render(fields))
    return path
