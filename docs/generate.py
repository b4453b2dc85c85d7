"""Write the pages that are made from the program: cli.md, api.md, and benchmarks.md from benchmarks/*.json.

A test compares them with what this writes, so run it after a change of a flag, a help text or a docstring.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

import pipeline
from pipeline import api, exports, extract, policy
from pipeline.cli import app
from pipeline.dataset import Embeddings
from pipeline.runs.judgement import Comparison

DOCS = Path(__file__).parent
RESULTS = (  # what the functions of `pipeline` return, beside what is named there
    extract.ExtractResult,
    exports.ExportResult,
    Embeddings,
    policy.Policy,
    Comparison,
)
CLI = """\
Generated from the program: every command, its arguments and its flags. Every setting may also stand in a YAML file
given as `--config`, under the flag's name with `_` for `-`; flags win over it. `vtp COMMAND --help` prints the same."""
API = """\
Generated from the program: what `import pipeline` offers, and what it returns. [From Python](python.md) shows it in
use. `**settings` are those of the command of the same name in the [command line](cli.md), with `_` for `-`."""
BENCHMARKS = """\
Generated from `docs/benchmarks/*.json`. Every figure has the command that measures it again, the processor and the
date. *Wanted* is the figure that was aimed at, if one was set. Figures that fell short stand beside the others."""


def commands(group: Any = None, name: str = "vtp") -> Iterator[tuple[str, Any]]:
    """Every command of the command line with its whole name, such as `vtp policy export`."""
    for part, command in (get_command(app) if group is None else group).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {part}")
        else:
            yield f"{name} {part}", command


def cli_page() -> str:
    lines = ["# Command line", "", CLI]
    for name, command in commands():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        named = "".join(f" [{p.name.upper()}]{' ...' if p.nargs != 1 else ''}" for p in arguments)
        lines += ["", f"## {name}", "", f"    {name}{named} [OPTIONS]", "", inspect.cleandoc(command.help), ""]
        for parameter in sorted(command.params, key=lambda p: p not in arguments):
            lines.append(f"- {spelling(parameter)}: {parameter.help}")
    return "\n".join(lines) + "\n"


def spelling(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    flags = "/".join([*parameter.opts, *parameter.secondary_opts])
    return f"`{flags} {parameter.metavar}`" if parameter.metavar else f"`{flags}`"


def api_page() -> str:
    lines = ["# Python reference", "", API]
    for name in pipeline.__all__:
        thing = getattr(api, name, None) or getattr(pipeline, name)
        lines += ["", f"## {name}", "", *described(f"pipeline.{name}", thing)]
    lines += ["", "## What comes back", ""]
    for thing in RESULTS:
        lines += [f"### {thing.__name__}", "", *described(thing.__name__, thing), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def described(name: str, thing: Any) -> list[str]:
    """The signature and the docstring of a function; of a class, those of its fields and methods too."""
    if not inspect.isclass(thing):
        return [f"    {name}{signature(thing)}", "", documentation(thing)]
    lines = [documentation(thing)]
    for title, rows in (("Fields", fields_of(thing)), ("Members", members_of(thing))):
        if found := list(rows):
            lines += ["", f"{title}:", "", *found]
    return lines


def fields_of(thing: Any) -> Iterator[str]:
    """Of a data class or a model its fields; of other classes the plain values that they define."""
    annotations = inspect.get_annotations(thing)
    if dataclasses.is_dataclass(thing) or hasattr(thing, "model_fields"):
        yield from (f"- `{name}: {kind}`" for name, kind in annotations.items() if "ClassVar" not in str(kind))
    else:
        plain = {name: value for name, value in vars(thing).items() if isinstance(value, str | int)}
        yield from (f"- `{name} = {value!r}`" for name, value in plain.items() if not name.startswith("_"))


def members_of(thing: Any) -> Iterator[str]:
    """The methods and properties that a class defines itself."""
    for name, value in vars(thing).items():
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if name.startswith("_") or not (inspect.isfunction(plain) or isinstance(plain, property)):
            continue
        shown = name if isinstance(plain, property) else f"{name}{signature(plain)}"
        yield f"- `{shown}`: " + textwrap.indent(documentation(plain), 4 * " ").strip()


def signature(function: Callable[..., Any]) -> str:
    text = re.sub(r"\((self|cls)(, )?", "(", str(inspect.signature(function)))
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations that are not evaluated


def documentation(thing: Any) -> str:
    """ValueError if a public name has none."""
    if not thing.__doc__:
        raise ValueError(f"{thing!r} has no docstring; write one")
    return inspect.cleandoc(thing.__doc__)


def benchmarks_page() -> str:
    lines = ["# Benchmarks", "", BENCHMARKS]
    for path in sorted((DOCS / "benchmarks").glob("*.json")):
        group = json.loads(path.read_text())
        lines += ["", f"## {group['title']}", ""]
        for row in group["rows"]:
            about = {
                "figure": row["value"],
                "wanted": row["wanted"],
                "measured on": f"{row['processor']}; {row['date']}",
            }
            commands = ", then ".join(f"`{command}`" for command in row["commands"])
            lines.append(f"- **{row['what']}**")
            lines += [f"    - {name}: {value}" for name, value in about.items() if value]
            lines.append(f"    - command: {commands}")
    return "\n".join(lines) + "\n"


PAGES = {"cli.md": cli_page, "api.md": api_page, "benchmarks.md": benchmarks_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
