"""Generate commands from config models, with values from flags and from a YAML file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
import yaml

from pipeline import storage
from pipeline.cli.given import check_given
from pipeline.cli.help_pages import SectionedCommand, SectionedGroup
from pipeline.cli.show import console
from pipeline.config import Settings
from pipeline.errors import TryAgainError, VtpError
from pipeline.kept_inputs import settings_from
from pipeline.text_files import read_text

MAX_CONFIG_BYTES = 1 << 20

app = typer.Typer(
    help="Turn demonstration videos and their logs into a validated policy, valued in dollars.",
    cls=SectionedGroup,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
experiment = typer.Typer(
    help="Run an economic experiment: its tables and figures.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(experiment, name="experiment")
policy = typer.Typer(help="Write a run's policy as one file.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(policy, name="policy")


def command(
    model: Any, argument: str | None = None, *, as_json: bool = False, group: typer.Typer = app
) -> Callable[..., Any]:
    """Register a function of one config (and `as_json`) as a command whose flags are the config's fields.

    model: a config model or a discriminated union of them; argument: the positional field; group: the app that the
    command belongs to. Values stay text here; the model checks them.
    """
    settings: Settings[Any] = Settings(model, spell=_flag_of, elsewhere=" or in --config")

    def register(body: Callable[..., None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            context, config_file, wants_json = values.pop("context"), values.pop("config"), values.pop("json", False)
            if config_file is not None:
                config_file = storage.path_of(config_file)
                storage.fetch_many([config_file])
            flags = {key: value for key, value in values.items() if value not in (None, [])}
            in_file = {} if config_file is None else _from_file(config_file)
            cfg = settings.of(in_file | flags, argument=argument)
            if console.is_terminal:  # in a log, an error stays the only line
                console.print(f"{context.command_path}: loading")
            check_given(cfg)
            try:
                with settings_from(None if config_file is None or _is_saved(config_file) else config_file):
                    body(cfg, as_json=wants_json) if as_json else body(cfg)
            except KeyboardInterrupt as error:  # here, because typer would exit with 130 and no message
                raise TryAgainError(
                    "interrupted; run the same command again to continue", code="command-interrupted"
                ) from error

        parameters = [_keyword("context", inspect.Parameter.empty, typer.Context)]
        for name in settings.names:
            text, default = settings.help(name), None  # no default here: a config file may set it
            if name == argument:
                default = typer.Argument(None, metavar=name.upper(), help=text, show_default=False)
            else:
                default = typer.Option(
                    None,
                    settings.spelling(name),
                    metavar=settings.metavar(name),
                    help=text,
                    show_default=False,
                    autocompletion=_completion(settings.choices(name)),
                )
            annotation = {bool: bool, list[Path]: list[str]}.get(settings.annotation(name), str)
            parameters.append(_keyword(name, default, annotation | None))
        config = typer.Option(None, "--config", metavar="PATH", help="YAML file of these settings; flags override it.")
        parameters.append(_keyword("config", config, Path | None))
        if as_json:
            parameters.append(_keyword("json", typer.Option(False, "--json", help="Print the result as JSON."), bool))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__doc__ = settings.doc
        name = body.__name__.rstrip("_")  # two groups may have commands of the same name
        group.command(name, cls=SectionedCommand)(command)
        return body

    return register


def _flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _completion(choices: list[str]) -> Callable[[str], list[str]]:
    """Complete a value from the words that the setting accepts."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _is_saved(path: Path) -> bool:
    """Whether vtp wrote the settings, beside an output: the same command may then overwrite them."""
    text = read_text(path, max_bytes=MAX_CONFIG_BYTES)
    return text == yaml.safe_dump(yaml.safe_load(text), sort_keys=False)


def _from_file(path: Path) -> dict[str, Any]:
    """The settings of a YAML file; VtpError if it holds none."""
    try:
        values = yaml.safe_load(read_text(path, max_bytes=MAX_CONFIG_BYTES)) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        reason = f"line {mark.line + 1}: {problem}" if mark else problem
        raise VtpError(
            f"--config {path} cannot be read: {reason}; give a YAML file in UTF-8", code="config-unreadable"
        ) from error
    if not (isinstance(values, dict) and all(isinstance(name, str) for name in values)):
        raise VtpError(f"--config {path} holds no settings; write one `name: value` per line", code="config-empty")
    return values
