"""The commands, except for experiments; each imports its stage only when it is called."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import storage
from pipeline.cli.command import command, policy
from pipeline.cli.show import (
    COMPARED,
    console,
    figure,
    list_failures,
    print_extracted,
    print_json,
    print_novelty,
    print_seeds,
    print_summary,
    progress,
    say,
)
from pipeline.config import (
    ActConfig,
    AnyExportConfig,
    CompareConfig,
    DemoConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    LogsConfig,
    MergeConfig,
    NoveltyConfig,
    PolicyExportConfig,
    ReportConfig,
    SimulateConfig,
    TrainConfig,
)
from pipeline.errors import EXIT_CORRUPT


@command(DemoConfig, as_json=True)
def demo(cfg: DemoConfig, *, as_json: bool) -> None:
    from pipeline import demo

    with contextlib.ExitStack() as bars:

        def stage(label: str) -> Callable[..., None]:
            bars.close()
            console.print(label)
            return bars.enter_context(progress(label.partition(":")[0]))

        summary = demo.run(cfg, stage=stage)
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)
        print(f"{summary['wall_s']:.0f} s; open {cfg.out / 'report.html'}")


@command(SimulateConfig)
def simulate(cfg: SimulateConfig) -> None:
    import pipeline.simulate as simulation

    with progress("simulate") as advance:
        manifest = simulation.run(cfg, progress=advance)
    print(f"wrote {cfg.videos} videos, actions chosen by logger {cfg.logger}; next: vtp extract {manifest}")


@command(ExtractConfig, argument="source", as_json=True)
def extract(cfg: ExtractConfig, *, as_json: bool) -> None:
    import pipeline.extract as extraction

    is_one_process = cfg.launcher is None and cfg.devices is None
    result: extraction.ExtractResult | None
    with progress("extract") as advance:
        if is_one_process:
            result = extraction.run(cfg, progress=advance)
        else:
            from pipeline.cluster import launch

            result = launch.extract(cfg, progress=advance)
    if result is None:
        print(f"when the array has finished: vtp merge {shlex.quote(storage.name_of(cfg.out))}")
        return
    print_extracted(result, as_json)
    if cfg.shards > 1 and is_one_process and not as_json:
        out = storage.name_of(cfg.out)
        print(f"{result.num_videos} videos of this shard are done; when all shards are done: vtp merge {out}")
    list_failures(result, logged=is_one_process)


@command(MergeConfig, argument="out", as_json=True)
def merge(cfg: MergeConfig, *, as_json: bool) -> None:
    if cfg.out.is_dir():
        from pipeline.training import seeds

        with progress("merge"):
            summary = seeds.merge(cfg.out)
        print_seeds(summary, as_json)
        return
    from pipeline.extraction.shards import settings_path
    from pipeline.kept_inputs import settings_of

    if settings_of("embeddings", "model", "draws")(settings_path(cfg.out)):
        import pipeline.novelty as scoring

        with progress("merge"):
            scores = scoring.merge(cfg)
        print_novelty(scores, as_json, scoring.saved_config(cfg.out).embeddings)
        return
    import pipeline.extract as extraction

    with progress("merge"):
        result = extraction.merge(cfg)
    print_extracted(result, as_json)
    list_failures(result, logged=False)


@command(DoctorConfig, argument="out", as_json=True)
def doctor(cfg: DoctorConfig, *, as_json: bool) -> None:
    from pipeline import doctor

    with progress("doctor"):
        findings = doctor.run(cfg)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table("", "found", "remedy")
        for finding in findings:
            table.add_row(*(escape(text) for text in (finding.subject, finding.found, finding.fix)))
        Console().print(table)
    if any(finding.is_damage for finding in findings):
        raise typer.Exit(EXIT_CORRUPT)


@command(NoveltyConfig, as_json=True)
def novelty(cfg: NoveltyConfig, *, as_json: bool) -> None:
    import pipeline.novelty as scoring

    result: dict[str, Any] | None
    with progress("novelty") as advance:
        if cfg.launcher is None and cfg.devices is None:
            result = scoring.run(cfg, progress=advance)
        else:
            from pipeline.cluster import launch

            result = launch.novelty(cfg, progress=advance)
    if result is None:
        print(f"when the array has finished: vtp merge {shlex.quote(str(scoring.output(cfg)))}")
    else:
        print_novelty(result, as_json, cfg.embeddings)


@command(LogsConfig, argument="embeddings", as_json=True)
def logs(cfg: LogsConfig, *, as_json: bool) -> None:
    from pipeline import survey
    from pipeline.cli.show_logs import print_survey

    with progress("logs") as advance:
        found = survey.run(cfg, progress=advance)
    if as_json:
        print_json(survey.as_json(found))
    else:
        print_survey(found)


@command(ExportConfig, argument="embeddings", as_json=True)
def export_(cfg: AnyExportConfig, *, as_json: bool) -> None:
    from pipeline import exports

    with progress("export") as advance:
        result = exports.run(cfg, progress=advance)
    if as_json:
        print_json(asdict(result) | {"path": str(result.path)})
        return
    episodes = "" if cfg.to in ("npy", "parquet") else f" in {result.num_episodes} episodes"
    print(f"wrote {result.path}: {result.num_clips} clips of {result.num_videos} videos{episodes}")
    print(f"next, in Python: {result.load}")


@command(TrainConfig, as_json=True)
def train(cfg: TrainConfig, *, as_json: bool) -> None:
    if cfg.seeds is not None:
        from pipeline.cluster import launch

        with progress("train") as advance:
            summary = launch.train(cfg, progress=advance)
        if summary is None:
            print(f"when the array has finished: vtp merge {shlex.quote(str(cfg.out))}")
        else:
            print_seeds(summary, as_json)
        return
    import pipeline.train as training

    with progress("train") as advance:
        summary = training.run(cfg, progress=advance)
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)
        print(f"next: vtp evaluate {cfg.out}, vtp report {cfg.out}")


@command(EvaluateConfig, argument="run", as_json=True)
def evaluate(cfg: EvaluateConfig, *, as_json: bool) -> None:
    import pipeline.evaluate as evaluation
    from pipeline.training import seeds

    with progress("evaluate") as advance:
        if seeds.runs_in(cfg.run) != [cfg.run]:
            from pipeline.cluster import launch

            print_seeds(launch.evaluate(cfg, progress=advance), as_json)
            return
        summary = evaluation.run(cfg, progress=advance)
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)


@command(PolicyExportConfig, argument="run", group=policy)
def export(cfg: PolicyExportConfig) -> None:
    from pipeline import policy

    with progress("export"):
        path = policy.export(cfg)
    print(f"wrote {path}; next: vtp act {shlex.quote(str(path))} --embeddings EMBEDDINGS")


@command(ActConfig, argument="policy", as_json=True)
def act(cfg: ActConfig, *, as_json: bool) -> None:
    from pipeline import policy

    with progress("act"):
        table = policy.act(cfg)
    if as_json:
        print_json(table.astype(object).where(table.notna(), None).to_dict("records"))
    elif cfg.out is None:
        print(table.to_csv(index=False), end="")
    else:
        print(f"wrote {cfg.out}: actions for {len(table)} clips")


@command(ReportConfig, argument="run")
def report(cfg: ReportConfig) -> None:
    from pipeline import report
    from pipeline.report import compare
    from pipeline.training import seeds

    runs = seeds.runs_in(cfg.run)
    with progress("report") as advance:
        for done, run in enumerate(runs, 1):
            page = report.run(ReportConfig(run=run))
            advance(done, len(runs))
            print(page)
    if len(runs) > 1:
        compare.run(CompareConfig(runs=runs, out=cfg.run))
        print(cfg.run / "compare.html")


@command(CompareConfig, argument="runs", as_json=True)
def compare(cfg: CompareConfig, *, as_json: bool) -> None:
    from pipeline.report import compare

    rows = compare.run(cfg)
    if as_json:
        print_json(rows)
        return
    for line in compare.judges_say(rows):
        say(line)
    table = Table()
    for column in (
        "run", "over the logging policy", "profit $/h", "difference from the first run", "of the oracle", "error"
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "run" else "right", overflow="fold")
    for row in rows:
        table.add_row(
            escape(row["run"]),
            ", ".join(filter(None, (row["verdict"], figure(row, "change", "change")))),
            *(figure(row, *columns) for columns in COMPARED),
            "" if row["err_mean"] is None else f"{row['err_mean']:.1%}",
        )
    Console().print(table)
    print(f"open {cfg.out / 'compare.html'}")
