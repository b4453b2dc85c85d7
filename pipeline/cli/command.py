"""Commands out of config models: flags, help texts, values from a file, and one line for a value that breaks a rule."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import typer
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.config import Config
from pipeline.errors import TryAgainError, VtpError

app = typer.Typer(
    help="Demonstration videos in, a validated policy and its dollars out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
experiment = typer.Typer(
    help="Economic experiments: tables and figures, in RUN/experiments or --out.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(experiment, name="experiment")
policy = typer.Typer(help="A run's policy as a file.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(policy, name="policy")
C = TypeVar("C", bound=Config)


def _option(model: type[Config], name: str) -> Any:
    """The typer option of one config field: unset on the command line means unset, so that a config file can speak."""
    field = model.model_fields[name]
    return typer.Option(
        None,
        f"--{name.replace('_', '-')}",
        help=_help(field),
        metavar=_metavar(field.annotation),
        show_default=False,
    )


def _help(field: FieldInfo) -> str:
    default = field.get_default()
    shown = "required" if default is PydanticUndefined else f"default: {'off' if default is None else default}"
    return f"{field.description} [{shown}]"


def _metavar(annotation: Any) -> str | None:
    """INTEGER, PATH, a|b ...: what may stand behind a flag; None for a switch."""
    if annotation is bool:
        return None
    choices = (annotation, *get_args(annotation))  # of X | None, X is one
    if literal := next((choice for choice in choices if get_origin(choice) is Literal), None):
        return "|".join(get_args(literal))
    kinds = {int: "INTEGER", float: "FLOAT", Path: "PATH"}
    return next((kinds[kind] for kind in choices if kind in kinds), "TEXT")


def command(
    model: type[C], argument: str | None = None, *, as_json: bool = False, group: typer.Typer = app
) -> Callable[..., Any]:
    """Register a function of one config (and `as_json`) as a command whose flags are the config's fields.

    `argument` names the field that is given by position, `group` the app that the command belongs to. Values stay text
    here and are checked by the model, once.
    """

    def register(body: Callable[..., None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            config_file, wants_json = values.pop("config"), values.pop("json", False)
            flags = {key: value for key, value in values.items() if value not in (None, [])}
            cfg = _resolve(model, config_file, flags, argument)
            try:
                body(cfg, as_json=wants_json) if as_json else body(cfg)
            except KeyboardInterrupt as error:  # here, for typer would end with 130 and say nothing
                raise TryAgainError("interrupted; run the same command again to go on") from error

        parameters = []
        for name, field in model.model_fields.items():
            if name == argument:
                default = typer.Argument(None, help=_help(field), show_default=False)
            else:
                default = _option(model, name)
            annotation = {bool: bool, list[Path]: list[str]}.get(field.annotation, str)
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation | None)
            )
        config = typer.Option(None, "--config", help="YAML file of these settings; flags win over it.")
        parameters.append(_keyword("config", config, Path | None))
        if as_json:
            parameters.append(_keyword("json", typer.Option(False, "--json", help="Print the result as JSON."), bool))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__doc__ = model.__doc__
        group.command(body.__name__.rstrip("_"))(command)  # two groups may have a command of one name
        return body

    return register


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _resolve(model: type[C], config_file: Path | None, flags: dict[str, Any], argument: str | None) -> C:
    """The config from defaults, file and flags, in rising order; VtpError in one line where a value breaks a rule."""
    values: dict[str, Any] = {}
    if config_file is not None:
        try:
            values = yaml.safe_load(config_file.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            mark = getattr(error, "problem_mark", None)
            reason = f"line {mark.line + 1}: {error.problem}" if mark else " ".join(str(error).split())
            raise VtpError(f"--config {config_file} cannot be read: {reason}") from error
        if not (isinstance(values, dict) and all(isinstance(name, str) for name in values)):
            raise VtpError(f"--config {config_file} holds no settings; write one `name: value` a line")
    try:
        return model(**values | flags)
    except ValidationError as error:
        raise VtpError(_explain(model, error, argument)) from error


def _explain(model: type[Config], error: ValidationError, argument: str | None) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # a rule on several settings names them itself
        return message
    name = str(first["loc"][0])
    flag = name.upper() if name == argument else f"--{name.replace('_', '-')}"
    if first["type"] == "missing":
        return f"{name} is missing: {model.model_fields[name].description} Give it as {flag} or in --config"
    if first["type"] == "extra_forbidden":
        return f"{name!r} is no setting of this command; use one of {', '.join(model.model_fields)}"
    rule = message[0].lower() + message[1:]
    value = str(first["input"])
    return f"{flag} {value if value and value.isprintable() else repr(value)}: {rule}"
