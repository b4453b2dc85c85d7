"""Task files: YAML in, a Task out; errors give line, key, rule and remedy."""

from __future__ import annotations

import json
import logging
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline import storage
from pipeline.errors import CorruptError, VtpError
from pipeline.tasks.task import Task
from pipeline.text_files import read_text

logger = logging.getLogger(__name__)

BUILT_IN = ("dishwashing", "bricklaying", "bin-picking")
MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_SHOWN = 60  # characters of a wrong value
_Place = tuple[str | int, ...]


def load_task(name: str, folder: Path | None = None) -> Task:
    """A built-in task by name, or the task in a YAML file, whose path is relative to `folder`.

    VtpError names the line and key of any mistake.
    """
    if name in BUILT_IN:
        text = resources.files("pipeline.tasks").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        return parse_task(text, f"{name}.yaml")
    path = storage.path_of(name) if folder is None else folder / name
    storage.fetch_many([path])
    try:
        if not path.exists():
            raise VtpError(
                f"task {name!r} is neither built in ({', '.join(BUILT_IN)}) nor a file; correct the name or path",
                code="task-unknown",
            )
        text = read_text(path, max_bytes=MAX_BYTES)
    except (OSError, ValueError) as error:
        raise VtpError(
            f"task {path} cannot be read ({error}); give a YAML file in UTF-8 or one of {', '.join(BUILT_IN)}",
            code="task-unreadable",
        ) from error
    return parse_task(text, str(path))


def repriced(task: Task, name: str) -> Task:
    """The task at the prices, wage, costs and error target of the named one; warns that its simulator is ignored."""
    other = load_task(name)
    priced = task.priced_as(other)
    if task.simulates_otherwise(other):
        logger.warning(
            "--task %s supplies prices, wage, costs and error target; its simulator is ignored because it differs from "
            "that of the data's task", name,
        )  # fmt: skip
    return priced


def parse_task(text: str, where: str) -> Task:
    """The task in a YAML text; `where` names the text in errors."""
    lines: dict[_Place, int] = {}
    try:
        _refuse_traps(text, where)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _find_lines(root, (), lines, where)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a value such as the date 2024-13-01
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise VtpError(f"task {where}{line}: {problem}; correct the YAML", code="task-invalid") from error
    if not isinstance(values, dict):
        raise VtpError(
            f"task {where} has no settings; write one `name: value` per line, see docs/tasks.md", code="task-invalid"
        )
    try:
        return Task.model_validate(values)
    except ValidationError as error:
        raise VtpError(_explain(error, lines, where), code="task-invalid") from error


def task_to_text(task: Task) -> str:
    """The task as one line of JSON, which `task_from_text` reads."""
    return json.dumps(task.model_dump(mode="json"))


def task_from_text(text: str, where: str) -> Task:
    """The task in a text written by `task_to_text`; CorruptError if it is not a task."""
    try:
        return Task.model_validate_json(text)
    except ValidationError as error:
        raise CorruptError(
            f"{where} has no task that this version of vtp can read; make it again", code="task-corrupt"
        ) from error


def _refuse_traps(text: str, where: str) -> None:
    """VtpError for aliases, by which a short text can expand endlessly, and for nesting too deep to read in time."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise VtpError(
                f"task {where} line {line}: *{event.anchor} is an alias; write the value out",
                code="task-invalid",
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise VtpError(
                f"task {where} line {line}: nested more than {MAX_DEPTH} deep; see docs/tasks.md",
                code="task-invalid",
            )


def _find_lines(node: Any, place: _Place, lines: dict[_Place, int], where: str) -> None:
    """Record the line of every key; refuse keys that are not text or occur twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str":
                raise VtpError(
                    f"task {where} line {line}: {key.value!r} is not text; quote the name", code="task-invalid"
                )
            inner = (*place, key.value)
            if inner in lines:
                raise VtpError(f"task {where} line {line}: {_key(inner)} occurs twice; drop one", code="task-invalid")
            lines[inner] = line
            _find_lines(value, inner, lines, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = (*place, index)
            lines[inner] = value.start_mark.line + 1
            _find_lines(value, inner, lines, where)


def _explain(error: ValidationError, lines: dict[_Place, int], where: str) -> str:
    first = error.errors()[0]
    place = tuple(part for part in first["loc"] if part != "[key]")
    message = first["msg"].removeprefix("Value error, ")
    known = place or _named(message, lines)
    while known and known not in lines:
        known = known[:-1]
    line = f" line {lines[known]}" if known in lines else ""
    key = _key(place)
    if first["type"] == "missing":
        message = f"is missing; add {place[-1]!r}"
    elif first["type"] == "extra_forbidden":
        message = "is not a setting of a task; correct the name or drop it"
    elif first["type"] in ("dict_type", "model_type"):
        message = f"should be `name: value` settings, not {_shown(first['input'])}; correct it"
    elif ";" not in message:
        message = f"{message[0].lower()}{message[1:]}, not {_shown(first['input'])}; correct it"
    return f"task {where}{line}: {key + ': ' if key else ''}{message}"


def _named(message: str, lines: dict[_Place, int]) -> _Place:
    """The place named at the start of a message about the whole task, as in `simulator: attempts_per_minute: ...`."""
    place: _Place = ()
    for part in message.split(": "):
        if (*place, part) not in lines:
            break
        place = (*place, part)
    return place


def _key(place: _Place) -> str:
    return ".".join(part if part.isprintable() else repr(part) for part in map(str, place))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
