"""Help pages in plain text of 80 columns: commands and options in sections, and four lines for a newcomer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

NEWCOMER = """\
vtp turns demonstration videos and their logs into a policy, valued in dollars.
Try it:           vtp demo --quick
Your own videos:  vtp extract VIDEOS, then vtp train --source embeddings
Read on:          vtp --help, vtp COMMAND --help, README.md and docs/"""

COMMANDS = {
    "Start here": ("demo", "simulate"),
    "From videos to a policy": ("extract", "logs", "novelty", "train", "evaluate", "report", "compare"),
    "Use the results": ("act", "policy", "export", "experiment"),
    "Maintenance": ("merge", "doctor"),
}
WHAT, HOW, WHERE, CLUSTER, GENERAL = "What to work on", "How", "Where to write", "Cluster and GPUs", "General"
SETTINGS = {
    WHAT: (
        "source", "embeddings", "run", "runs", "policy", "task", "scenario", "videos", "camera", "bare", "split",
        "novelty", "reference", "outcomes", "validation", "scenes", "init",
    ),
    HOW: (),  # all others
    WHERE: ("out", "to", "overwrite", "json"),
    CLUSTER: (
        "device", "launcher", "devices", "shards", "shard", "slurm_partition", "slurm_time", "slurm_gres", "slurm_cpus",
        "no_wait",
    ),
    GENERAL: ("config", "help"),
}  # fmt: skip
_SECTIONS = {name: section for section, names in SETTINGS.items() for name in names}


def section_of(setting: str) -> str:
    """The section of a command's help page that the setting is in."""
    return _SECTIONS.get(setting, HOW)


class SectionedCommand(TyperCommand):
    """A command whose options are in sections."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[tuple[str, str]]] = {section: [] for section in SETTINGS}
        for parameter in self.get_params(ctx):
            if (row := parameter.get_help_record(ctx)) is not None:
                rows[section_of(str(parameter.name))].append(row)
        _write(formatter, rows.items())


class SectionedGroup(TyperGroup):
    """The program, whose commands are in sections."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        room = formatter.width - width - 6
        rows = {
            section: [(name.ljust(width), self.commands[name].get_short_help_str(room)) for name in names]
            for section, names in COMMANDS.items()
        }
        _write(formatter, rows.items())


def _write(formatter: Any, sections: Iterable[tuple[str, list[tuple[str, str]]]]) -> None:
    for section, rows in sections:
        if rows:
            with formatter.section(section):
                formatter.write_dl(rows)
