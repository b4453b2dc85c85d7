"""Every command runs on small real inputs and prints its result for people, so that none can crash in its printing."""

import json
import re
import shlex
import sys
from typing import NamedTuple

import pytest

from pipeline import cli

MONEY = r"-?\d+\.\d\d"


class Case(NamedTuple):
    """A command line, with {names} of the inputs, and patterns that its standard output must show in this order."""

    line: str
    shows: tuple[str, ...]


SUMMARY = (
    "dishwashing", r"policy +.*oracle +.*blind", rf"profit \$/h.* {MONEY}", rf"spread \${MONEY}/h", "outcome model:"
)  # fmt: skip
CASES = {
    "demo": Case("demo --quick --out {run}", (*SUMMARY, r"\d+ s; open .*report\.html")),
    "simulate": Case("simulate --videos 1 --steps 1 --out demos", ("wrote 1 videos", "next: vtp extract")),
    "extract": Case(
        "extract {demos}/manifest.csv --out e.h5 --weights random:0",
        (r"wrote e\.h5: 12 clips of 3 videos", "next: vtp train --source embeddings"),
    ),
    "merge": Case("merge {shards}", (r"wrote .*shards\.h5: 12 clips of 3 videos",)),
    "doctor": Case("doctor {data}", ("found", "remedy", "clips")),
    "novelty": Case(
        "novelty --embeddings {data} --out n.h5 --updates 1 --resolution 32",
        (r"wrote n\.h5: 12 of 12 clips scored, model corpus", "next: vtp train"),
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
    "experiment elasticity": Case("experiment elasticity {run} --out . --points 2", (rf"profit.*: {MONEY}",)),
    "experiment spread": Case("experiment spread {run} --out . --periods 2", (MONEY,)),
    "experiment value": Case("experiment value --embeddings {data} --out . --rounds 2 --draws 20", ("video", MONEY)),
    "experiment novelty": Case(
        "experiment novelty --embeddings {data} --novelty {novelty} --out . --rounds 2 --draws 5",
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


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two runs in the simulator, three rendered videos, their embeddings and novelty, and a run on those."""
    folder = tmp_path_factory.mktemp("inputs")
    names = ("demos", "data", "shards", "novelty", "run", "second_run", "clips_run")
    files = {"data": "data.h5", "shards": "shards.h5", "novelty": "novelty.h5"}
    paths = {name: folder / files.get(name, name) for name in names}
    few = "--episodes 8 --num-envs 8 --warmup-steps 100 --batch-size 32 --evaluations 1"
    extraction = "extract {demos}/manifest.csv --weights random:0 --precision fp32"
    lines = (
        "simulate --videos 3 --steps 4 --out {demos}",
        f"{extraction} --out {{data}}",
        *(f"{extraction} --out {{shards}} --shards 2 --shard {shard}" for shard in range(2)),
        "novelty --embeddings {data} --out {novelty} --updates 1 --resolution 32",
        f"train --source sim --out {{run}} {few}",
        f"train --source sim --out {{second_run}} --seed 1 {few}",
        f"train --source embeddings --embeddings {{data}} --out {{clips_run}} {few}",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(cli.logging, "basicConfig", lambda **settings: None)
        for line in lines:
            patch.setattr(sys, "argv", ["vtp", *shlex.split(line.format(**paths)), *as_json(line)])
            with pytest.raises(SystemExit) as stop:
                cli.main()
            assert not stop.value.code, line
    return paths


def as_json(line):
    """For an input: what a command prints is the tests' subject, and must not break what they are given."""
    return [] if line.startswith("simulate") else ["--json"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_command_prints_its_result_for_people(vtp, inputs, monkeypatch, name):
    from pipeline import demo

    def all_stages(cfg, *, stage):
        stage("train: SAC on the embeddings")(1, 2, "half")
        return json.loads((inputs["run"] / "summary.json").read_text())

    monkeypatch.setattr(demo, "run", all_stages)  # the others cover its stages, which take a minute
    monkeypatch.setenv("COLUMNS", "200")  # no table is broken into lines
    code, out, err = vtp(*shlex.split(CASES[name].line.format(**inputs)))
    assert code == 0, err
    position = 0
    for pattern in CASES[name].shows:
        found = re.compile(pattern, re.MULTILINE).search(out, position)
        assert found, f"{pattern!r} is not in what {name} prints after character {position}:\n{out}"
        position = found.end()
    assert "Traceback" not in err and "nan" not in out.lower().split()
