"""Render page templates: values are escaped, and an undefined one is an error."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_ENVIRONMENT = Environment(
    loader=PackageLoader("pipeline.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, fields: dict[str, Any]) -> str:
    return _ENVIRONMENT.get_template(template).render(fields)
