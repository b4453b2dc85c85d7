"""Every command runs on small real inputs and prints its result for people, so that none can crash in its printing."""

import json
import re
import shlex
import sys
from pathlib import Path
from string import Formatter
from typing import NamedTuple

import pytest

from pipeline import cli

MONEY = r"-?\d+\.\d\d"


class Case(NamedTuple):
    """A command line, with {names} of the inputs, and patterns that its standard output must show in this order."""

    line: str
    shows: tuple[str, ...]


SUMMARY = (
    "dishwashing", r"policy +.*oracle +.*blind", rf"profit \$/h.* {MONEY}", rf"spread would be \${MONEY}/h",
    "outcome model:",
)  # fmt: skip
CASES = {
    "demo": Case("demo --quick --out {run}-demo", (*SUMMARY, r"\d+ s; open .*report\.html")),
    "simulate": Case(
        "simulate --videos 1 --steps 1 --out demos",
        ("wrote 1 videos.*logger uniform", "next: vtp extract"),
    ),
    "extract": Case(
        "extract {demos}/manifest.csv --out e.h5 --weights random:0",
        (r"wrote e\.h5: 10 clips of 5 videos", "next: vtp train --source embeddings"),
    ),
    "merge": Case("merge {shards}", (r"wrote .*shards\.h5: 10 clips of 5 videos",)),
    "doctor": Case("doctor {data}", ("found", "remedy", "clips")),
    "novelty": Case(
        "novelty --embeddings {data} --out {novelty} --updates 1 --resolution 32",  # measures nothing again
        (
            r"wrote .*novelty\.h5: 10 of 10 clips scored, model corpus",
            "detection of labelled novelty, AUROC",
            "next: vtp experiment novelty --embeddings .* --novelty .*novelty.h5",
        ),
    ),
    "logs": Case(
        "logs {data}",
        (
            r"error rate.*earned \$/h",
            r"\d+ logged steps of 5 videos",
            "◆ best action",
            "nothing can be learned: every logged step of a context has the same",
        ),
    ),
    "export": Case(
        "export {data} --to lerobot --out e",
        (r"wrote e: \d clips of \d videos in \d episodes", r"next, in Python: LeRobotDataset\('vtp/e', root='e'\)"),
    ),
    "train": Case(
        "train --source sim --episodes 4 --num-envs 4 --warmup-steps 100 --out new",
        (*SUMMARY, "next: vtp evaluate new"),
    ),
    "evaluate": Case("evaluate {run} --episodes 2 --steps 3", SUMMARY),
    "act": Case("act {clips_run} --embeddings {data}", (r"^video_id,.*speed,care", r"0\.\d+")),
    "report": Case("report {run}", (r"report\.html",)),
    "compare": Case(
        "compare {run} {second_run} --out .",
        (r"run +.*profit \$/h.*error", MONEY, r"\d+\.\d%", r"open .*compare\.html"),
    ),
    "policy export": Case(
        "policy export {run} --to safetensors --out p.safetensors", (r"wrote p\.safetensors", "next: vtp act")
    ),
    "experiment frontier": Case("experiment frontier --out . --grid 5 --episodes 1", ("grid: 5", "optimum:")),
    "experiment elasticity": Case(
        "experiment elasticity {run} --out . --points 2", ("elasticities:", "price:", "policy:", rf"value: {MONEY}")
    ),
    "experiment spread": Case("experiment spread {run} --out . --periods 2", (MONEY,)),
    "experiment value": Case("experiment value --embeddings {data} --out . --rounds 2", ("video", MONEY)),
    "experiment novelty": Case(
        "experiment novelty --embeddings {data} --novelty {novelty} --out . --rounds 2",
        ("weighting:", r"\d\.\d"),
    ),
}


def registered(app, prefix=""):
    """The names of all commands, those of groups with the group's name before."""
    for command in app.registered_commands:
        yield prefix + (command.name or command.callback.__name__)
    for group in app.registered_groups:
        yield from registered(group.typer_instance, f"{prefix}{group.name} ")


def test_every_command_has_a_case():
    assert set(registered(cli.app)) == set(CASES)


FEW = "--episodes 8 --num-envs 8 --warmup-steps 16 --batch-size 8 --updates-per-episode 1 --evaluations 1 --json"
EXTRACTION = "extract {demos}/manifest.csv --weights random:0 --precision fp32 --json"
# The commands that make each input. They print JSON: a table that crashes is a case's finding and spoils no input.
INPUTS = {
    "demos": ("simulate --videos 5 --steps 2 --novel 0.5 --out {out}",),
    "data": (f"{EXTRACTION} --out {{out}}.h5",),
    "shards": tuple(f"{EXTRACTION} --out {{out}}.h5 --shards 2 --shard {shard}" for shard in range(2)),
    "novelty": ("novelty --embeddings {data} --out {out}.h5 --updates 1 --resolution 32 --json",),
    "run": (f"train --source sim --out {{out}} {FEW}",),
    "second_run": (f"train --source sim --out {{out}} --seed 1 {FEW}",),
    "clips_run": (f"train --source embeddings --embeddings {{data}} --out {{out}} {FEW}",),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Replace each {name} in a line by the path of that input, which is made on first use."""
    folder, made = tmp_path_factory.mktemp("inputs"), {}

    def made_of(line, **known):
        names = {name for _, name, _, _ in Formatter().parse(line) if name} - set(known)
        return shlex.split(line.format(**known, **{name: path_of(name) for name in names}))

    def path_of(name):
        if name not in made:
            for line in INPUTS[name]:
                arguments = made_of(line, out=folder / name)
                with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
                    patch.setattr(cli.logging, "basicConfig", lambda **settings: None)
                    patch.setattr(sys, "argv", ["vtp", *arguments])
                    cli.main()
                assert not stop.value.code, arguments
            made[name] = next(
                path for path in (folder / f"{name}.h5", folder / name) if path.exists() or name == "shards"
            )
        return made[name]

    return made_of


@pytest.fixture
def short_demo(monkeypatch):
    """`vtp demo` with the summary of another run: its stages take a minute, and the other cases cover them."""
    from pipeline import demo

    def all_stages(cfg, *, stage):
        figures = {"profit": 1.0, "err_rate": 0.1, "wage_parity": 1.0, "lambda_dual": 0.0, "alpha": 0.1}
        stage("train: SAC on the embeddings")(1, 2, figures)
        return json.loads((Path(str(cfg.out).removesuffix("-demo")) / "summary.json").read_text())

    monkeypatch.setattr(demo, "run", all_stages)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_command_prints_its_result_for_people(vtp, inputs, monkeypatch, request, name):
    if name == "demo":
        request.getfixturevalue("short_demo")
    monkeypatch.setenv("COLUMNS", "200")  # no table is broken into lines
    code, out, err = vtp(*inputs(CASES[name].line))
    assert code == 0, err
    position = 0
    for pattern in CASES[name].shows:
        found = re.compile(pattern, re.MULTILINE).search(out, position)
        assert found, f"{pattern!r} is not in what {name} prints after character {position}:\n{out}"
        position = found.end()
    assert "Traceback" not in err and "nan" not in out.lower().split()
