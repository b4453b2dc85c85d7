"""The command line, nothing else: flags from the config models, progress bars, one-line errors, exit codes."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline import __version__
from pipeline.config import (
    CompareConfig,
    Config,
    DemoConfig,
    DoctorConfig,
    ElasticityConfig,
    EvaluateConfig,
    ExtractConfig,
    FrontierConfig,
    MergeConfig,
    NoveltyConfig,
    NoveltyExperimentConfig,
    ReportConfig,
    SimulateConfig,
    SpreadConfig,
    TrainConfig,
    ValueConfig,
)
from pipeline.errors import EXIT_CORRUPT, EXIT_PARTIAL, TryAgainError, VtpError
from pipeline.rundir import out_of_space_is_try_again

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
console = Console(stderr=True)
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


def _command(
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


@contextmanager
def _progress(label: str) -> Iterator[Callable[..., None]]:
    """A progress bar fed with (done, total, text); it vanishes where the output is no terminal."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[text]}", markup=False),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(label, total=None, text="")
        yield lambda done, total, text="": bar.update(task, completed=done, total=total, text=text)


def _training_text(row: dict[str, float] | str) -> str:
    if isinstance(row, str):
        return row
    return (
        f"profit ${row['profit']:.2f}/h  error {row['err_rate']:.1%}  parity {row['wage_parity']:.2f}  "
        f"lambda {row['lambda_dual']:.4f}  alpha {row['alpha']:.3f}"
    )


def _interval(interval: list[float] | None, *, digits: int = 2) -> str:
    return "" if interval is None else f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _print_summary(summary: dict[str, Any]) -> None:
    from pipeline.ledger import skill_in_words

    table = Table(title=f"{summary['task']} {summary['scenario']}, {summary['validation']}", title_justify="left")
    for column in ("", "policy", "oracle", "blind"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(
        "profit $/h", f"{summary['profit_mean']:.2f}{_interval(summary['profit_ci95'])}",
        f"{summary['oracle_profit']:.2f}", f"{summary['blind_profit']:.2f}",
    )  # fmt: skip
    table.add_row("policy over", "", f"{summary['oracle_ratio']:.3f}", f"{summary['blind_ratio']:.3f}")
    for name, row in summary["contexts"].items():
        table.add_row(
            f"{name}: speed, care", f"{row['speed']:.2f}, {row['care']:.2f}",
            f"{row['oracle_speed']:.2f}, {row['oracle_care']:.2f}", "",
        )  # fmt: skip
    Console().print(table)
    print(
        f"error {summary['err_mean']:.1%}   wage parity {summary['wage_parity']:.2f}   "
        f"spread ${summary['spread']:.2f}/h (rebate ${summary['rebate']:.2f}, captured ${summary['captured']:.2f})"
    )
    if summary["estimator"]:
        print(f"rebate: {skill_in_words(summary['estimator'])}")
    print(f"outcome model: {summary['outcome_model']}")


COMPARED = (("profit_mean", "profit"), ("profit_difference", "profit_difference"), ("oracle_ratio", "oracle_ratio"))


def _figure(row: dict[str, Any], name: str, interval: str) -> str:
    bounds = [row[f"{interval}_low"], row[f"{interval}_high"]]
    return "" if row[name] is None else f"{row[name]:.2f}{_interval(None if None in bounds else bounds)}"


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def _print_seeds(summary: dict[str, Any], as_json: bool) -> None:
    """Several seeds: a row each, their mean and interquartile mean."""
    if as_json:
        _print_json(summary)
        return
    title = f"{summary['task']} {summary['scenario']}, {summary['validation']}, {len(summary['seeds'])} seeds"
    table = Table(title=title, title_justify="left")
    for column in ("seed", "profit $/h", "of the oracle", "error"):
        table.add_column(column, justify="left" if column == "seed" else "right")
    for row in summary["by_seed"]:
        table.add_row(
            str(row["seed"]), f"{row['profit_mean']:.2f}", f"{row['oracle_ratio']:.3f}", f"{row['err_mean']:.1%}"
        )
    table.add_section()
    for name, profit, ratio in (
        ("mean", "profit_mean", "oracle_ratio"), ("interquartile mean", "profit_iqm", "oracle_ratio_iqm")
    ):  # fmt: skip
        table.add_row(
            name,
            f"{summary[profit]:.2f}{_interval(summary[profit.removesuffix('_mean') + '_ci95'])}",
            f"{summary[ratio]:.3f}{_interval(summary[ratio + '_ci95'], digits=3)}",
            f"{summary['err_mean']:.1%}" if name == "mean" else "",
        )
    Console().print(table)


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    """An experiment's key numbers, as JSON or as YAML's lighter form of the same."""
    if as_json:
        _print_json(result)
    else:
        print(yaml.safe_dump(result, sort_keys=False, allow_unicode=True).rstrip())


def _print_detection(result: dict[str, Any]) -> None:
    """How well each kind of labelled novelty is found, by the score, its channels and the baseline."""
    found = result["detection"]
    table = Table(title="labelled novelty found, AUROC", title_justify="left")
    for column in ("kind", "clips", *found):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, row in found["score"].items():
        first = f"{row['auroc']:.2f}{_interval(row['auroc_ci95'])}"
        others = [f"{found[name][kind]['auroc']:.2f}" for name in found if name != "score"]
        table.add_row(kind, str(row["clips"]), first, *others)
    Console().print(table)
    print(
        f"mean {result['auroc_mean']:.3f}, nearest neighbours {result['auroc_knn_mean']:.3f}; rank correlation with "
        f"motion {result['rho_motion']:.2f}, with texture {result['rho_texture']:.2f}"
    )


@_command(DemoConfig, as_json=True)
def demo(cfg: DemoConfig, *, as_json: bool) -> None:
    from pipeline import demo

    with contextlib.ExitStack() as bars:

        def stage(label: str) -> Callable[..., None]:
            bars.close()
            console.print(label)
            return bars.enter_context(_progress(label))

        summary = demo.run(cfg, stage=stage)
    if as_json:
        _print_json(summary)
    else:
        _print_summary(summary)
        print(f"{summary['wall_s']:.0f} s; open {cfg.out / 'report.html'}")


@_command(SimulateConfig)
def simulate(cfg: SimulateConfig) -> None:
    from pipeline import simulate

    with _progress("simulate") as advance:
        manifest = simulate.run(cfg, progress=advance)
    print(f"wrote {cfg.videos} videos; next: vtp extract {manifest}")


@_command(ExtractConfig, argument="source", as_json=True)
def extract(cfg: ExtractConfig, *, as_json: bool) -> None:
    from pipeline import extract

    with _progress("extract") as advance:
        if cfg.launcher is None:
            result = extract.run(cfg, progress=advance)
        else:
            from pipeline.cluster import stages

            result = stages.extract(cfg, progress=advance)
    if result is None:
        print(f"when the array has ended: vtp merge {shlex.quote(str(cfg.out))}")
        return
    _print_extracted(result, as_json)
    if cfg.shards > 1 and cfg.launcher is None and not as_json:
        print(f"{result.num_videos} videos of this shard are done; when all shards are: vtp merge {cfg.out}")
    _list_failures(result)


@_command(MergeConfig, argument="out", as_json=True)
def merge(cfg: MergeConfig, *, as_json: bool) -> None:
    if cfg.out.is_dir():
        from pipeline import seeds

        _print_seeds(seeds.merge(cfg.out), as_json)
        return
    from pipeline import extract

    result = extract.merge(cfg)
    _print_extracted(result, as_json)
    _list_failures(result)


@_command(DoctorConfig, argument="out", as_json=True)
def doctor(cfg: DoctorConfig, *, as_json: bool) -> None:
    from pipeline import doctor

    findings = doctor.run(cfg)
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        table = Table("", "found", "remedy")
        for finding in findings:
            table.add_row(*(escape(text) for text in (finding.subject, finding.found, finding.fix)))
        Console().print(table)
    if any(finding.is_damage for finding in findings):
        raise typer.Exit(EXIT_CORRUPT)


def _print_extracted(result: Any, as_json: bool) -> None:
    if as_json:
        paths = {"path": str(result.path) if result.path else None, "failures_path": str(result.failures_path)}
        _print_json(asdict(result) | paths)
    elif result.path:
        print(f"wrote {result.path}: {result.num_clips} clips of {result.num_videos} videos")
        print(f"next: vtp train --source embeddings --embeddings {result.path}")


def _list_failures(result: Any) -> None:
    """A table of what failed, and exit code 3."""
    if result.failures:
        table = Table("video", "reason", "remedy", title=f"{len(result.failures)} videos failed", title_justify="left")
        for row in result.failures:
            table.add_row(*(escape(row[name]) for name in ("video_id", "reason", "fix")))
        console.print(table)
        console.print(f"each is in {result.failures_path}", markup=False)
        raise typer.Exit(EXIT_PARTIAL)


@_command(NoveltyConfig, as_json=True)
def novelty(cfg: NoveltyConfig, *, as_json: bool) -> None:
    from pipeline import novelty

    with _progress("novelty") as advance:
        result = novelty.run(cfg, progress=advance)
    if as_json:
        _print_json(result)
        return
    if result["path"] is None:
        return
    print(
        f"wrote {result['path']}: {result['num_scored']} of {result['num_clips']} clips scored, model {result['model']}"
    )
    if "detection" in result:
        _print_detection(result)
    print(f"next: vtp train --source embeddings --embeddings {cfg.embeddings}")


@_command(TrainConfig, as_json=True)
def train(cfg: TrainConfig, *, as_json: bool) -> None:
    if cfg.seeds is not None:
        from pipeline.cluster import stages

        with _progress("train") as advance:
            summary = stages.train(cfg, progress=advance)
        if summary is None:
            print(f"when the array has ended: vtp merge {shlex.quote(str(cfg.out))}")
        else:
            _print_seeds(summary, as_json)
        return
    from pipeline import train

    with _progress("train") as advance:
        summary = train.run(cfg, progress=lambda done, total, row: advance(done, total, _training_text(row)))
    if as_json:
        _print_json(summary)
    else:
        _print_summary(summary)
        print(f"next: vtp evaluate {cfg.out}, vtp report {cfg.out}")


@_command(EvaluateConfig, argument="run", as_json=True)
def evaluate(cfg: EvaluateConfig, *, as_json: bool) -> None:
    from pipeline import evaluate, seeds

    with _progress("evaluate") as advance:
        if seeds.runs_in(cfg.run) != [cfg.run]:
            from pipeline.cluster import stages

            _print_seeds(stages.evaluate(cfg, progress=advance), as_json)
            return
        summary = evaluate.run(cfg, progress=advance)
    if as_json:
        _print_json(summary)
    else:
        _print_summary(summary)


@_command(FrontierConfig, argument="run", as_json=True, group=experiment)
def frontier(cfg: FrontierConfig, *, as_json: bool) -> None:
    from pipeline import seeds
    from pipeline.experiments import frontier

    seeds.one_run(cfg.run)
    _print_result(frontier.run(cfg), as_json)


@_command(ElasticityConfig, argument="run", as_json=True, group=experiment)
def elasticity(cfg: ElasticityConfig, *, as_json: bool) -> None:
    from pipeline import seeds
    from pipeline.experiments import elasticity

    seeds.one_run(cfg.run)
    with _progress("retrain") as advance:
        result = elasticity.run(cfg, progress=advance)
    _print_result(result, as_json)


@_command(SpreadConfig, argument="run", as_json=True, group=experiment)
def spread(cfg: SpreadConfig, *, as_json: bool) -> None:
    from pipeline import seeds
    from pipeline.experiments import spread

    seeds.one_run(cfg.run)
    _print_result(spread.run(cfg), as_json)


@_command(ValueConfig, as_json=True, group=experiment)
def value(cfg: ValueConfig, *, as_json: bool) -> None:
    from pipeline.experiments import value

    with _progress("value") as advance:
        result = value.run(cfg, progress=advance)
    _print_result(result, as_json)


@_command(NoveltyExperimentConfig, as_json=True, group=experiment)
def novelty_(cfg: NoveltyExperimentConfig, *, as_json: bool) -> None:
    from pipeline.experiments import novelty

    with _progress("novelty") as advance:
        result = novelty.run(cfg, progress=advance)
    _print_result(result, as_json)


@_command(ReportConfig, argument="run")
def report(cfg: ReportConfig) -> None:
    from pipeline import report, seeds
    from pipeline.report import compare

    runs = seeds.runs_in(cfg.run)
    for run in runs:
        print(report.run(ReportConfig(run=run)))
    if len(runs) > 1:
        compare.run(CompareConfig(runs=runs, out=cfg.run))
        print(cfg.run / "compare.html")


@_command(CompareConfig, argument="runs", as_json=True)
def compare(cfg: CompareConfig, *, as_json: bool) -> None:
    from pipeline.report import compare

    rows = compare.run(cfg)
    if as_json:
        _print_json(rows)
        return
    table = Table()
    for column in ("run", "profit $/h", "beyond the first", "of the oracle", "error"):
        table.add_column(column, justify="left" if column == "run" else "right", overflow="fold")
    for row in rows:
        table.add_row(
            row["run"],
            *(_figure(row, *columns) for columns in COMPARED),
            "" if row["err_mean"] is None else f"{row['err_mean']:.1%}",
        )
    Console().print(table)
    print(f"open {cfg.out / 'compare.html'}")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"vtp {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line: a VtpError is one line and its exit code, anything else keeps its traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's way to say Ctrl-C
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with out_of_space_is_try_again():
            app()
    except VtpError as error:
        console.print(f"vtp: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
