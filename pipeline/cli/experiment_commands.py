"""The commands of `vtp experiment`."""

from __future__ import annotations

from pipeline.cli.command import command, experiment
from pipeline.cli.show import print_result, progress
from pipeline.config import ElasticityConfig, FrontierConfig, NoveltyExperimentConfig, SpreadConfig, ValueConfig


@command(FrontierConfig, argument="run", as_json=True, group=experiment)
def frontier(cfg: FrontierConfig, *, as_json: bool) -> None:
    from pipeline.experiments import frontier
    from pipeline.training import seeds

    seeds.one_run(cfg.run)
    with progress("frontier"):
        result = frontier.run(cfg)
    print_result(result, as_json)


@command(ElasticityConfig, argument="run", as_json=True, group=experiment)
def elasticity(cfg: ElasticityConfig, *, as_json: bool) -> None:
    from pipeline.experiments import elasticity
    from pipeline.training import seeds

    seeds.one_run(cfg.run)
    with progress("retrain") as advance:
        result = elasticity.run(cfg, progress=advance)
    print_result(result, as_json)


@command(SpreadConfig, argument="run", as_json=True, group=experiment)
def spread(cfg: SpreadConfig, *, as_json: bool) -> None:
    from pipeline.experiments import spread
    from pipeline.training import seeds

    seeds.one_run(cfg.run)
    with progress("spread"):
        result = spread.run(cfg)
    print_result(result, as_json)


@command(ValueConfig, as_json=True, group=experiment)
def value(cfg: ValueConfig, *, as_json: bool) -> None:
    from pipeline.experiments import value

    with progress("value") as advance:
        result = value.run(cfg, progress=advance)
    print_result(result, as_json)


@command(NoveltyExperimentConfig, as_json=True, group=experiment)
def novelty_(cfg: NoveltyExperimentConfig, *, as_json: bool) -> None:
    from pipeline.experiments import novelty_use

    with progress("novelty") as advance:
        result = novelty_use.run(cfg, progress=advance)
    print_result(result, as_json)
