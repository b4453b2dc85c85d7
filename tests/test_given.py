"""Wrong inputs of commands are reported before torch is imported."""

import json
import os
import subprocess
import sys

import pytest
from small_runs import write_embeddings

RUN = """
import sys
from pipeline.cli import main
main()
"""
EACH = """
import contextlib, io, json, sys
from pipeline.cli import main
for line in json.load(sys.stdin):
    sys.argv, errors, code = ["vtp", *line.split()], io.StringIO(), 0
    with contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([line, code, errors.getvalue(), "torch" in sys.modules]))
"""
LINES = {  # what is wrong, and the text that names it
    "extract missing.mp4 --out e.h5": "missing.mp4",
    "extract . --task missing.yaml --out e.h5": "missing.yaml",
    "extract . --out e.h5 --weights missing.pt": "missing.pt",
    "extract . --out e.h5 --weights random:x": "random:x",
    "extract . --out e.h5 --weights fifo": "'fifo' is not a file",
    "extract . --out e.h5 --weights imagenet": "'imagenet' is not a file",
    "extract . --out e.h5 --backbone timesformer_b --weights imagenet": "'imagenet' is not a folder",
    "extract . --out e.h5 --backbone efficientnet_lite0 --weights kinetics400": "or --weights imagenet",
    "extract . --out e.h5 --backbone timesformer_b --weights empty": "no config.json",
    "extract . --out e.h5 --backbone timesformer_b --weights random:0 --precision int8": "precision int8",
    "extract . --out e.h5 --weights random:0 --precision int8 --device cuda": "precision int8 is for processors",
    "extract . --out e.h5 --weights random:0 --precision int8 --devices all": "precision int8 is for processors",
    "extract . --out e.h5 --device gpu": "--device gpu: must be auto, cpu, cuda",
    "extract . --out e.h5 --projector missing.h5": "missing.h5",
    "extract . --out empty": "empty is a folder",
    "extract . --out fifo": "fifo is a device or a pipe",
    "extract . --out text/e.h5": "a file is in its place",
    "extract . --out e.h5 --shards 3": "--shards 3 needs --shard",
    "train --source embeddings --embeddings missing.h5 --out r": "missing.h5",
    "train --source embeddings --embeddings missing.h5 --out r --seeds 0-1": "missing.h5",
    "train --source embeddings --out r": "data/embeddings.h5",
    "train --source sim --init nowhere --out r": "nowhere",
    "train --source sim --init empty --out r": "empty has none of config.yaml",
    "train --source sim --out r --buffer-size 10": "--buffer-size 10 is below --num-envs 32",
    "train --source sim --out r --buffer-size 100": "--buffer-size 100 is below --warmup-steps 600",
    "train --source sim --out r --task bare.yaml": "task bare has no simulator",
    "train --source sim --out r --scenario none": "'none' is unknown",
    "train --source sim --out text": "a file is in its place",
    "train --source sim --out done": "done already holds a run",
    "train --source sim --out done --seeds 0-1": "done holds the run of one seed",
    "train --source sim --out demos": "demos is not a run, but has config.yaml",
    "train --source sim --out demos --overwrite": "demos is not a run, but has config.yaml",
    "evaluate nowhere": "nowhere",
    "evaluate empty": "empty has none of",
    "evaluate done/evaluation": "give its run, done",
    "novelty --embeddings missing.h5": "missing.h5",
    "novelty --embeddings fifo --out n.h5": "fifo is not a regular file",
    "novelty --embeddings embeddings.h5 --model nowhere --out n.h5": "--model nowhere must be auto, corpus, a folder",
    "novelty --embeddings embeddings.h5 --model empty --out n.h5": "no readable model_index.json",
    "novelty --embeddings embeddings.h5 --shards 3 --shard 3 --out n.h5": "shard (3) is not below shards (3)",
    "demo --out done": "done is not empty and not the folder of an earlier vtp demo",
    "experiment frontier": "there is no run to write into",
    "experiment novelty --embeddings embeddings.h5 --out v": "no novelty at novelty.h5",
    "act nowhere": "nowhere",
    "act text": "text is neither a run directory nor a policy file",
    "policy export nowhere --to onnx": "nowhere",
    "policy export done --to onnx --out p.txt": "p.txt must end in .onnx",
    "report nowhere": "nowhere",
    "report demos": "demos is not a run: the source in its config.yaml is ''",
    "report parts": "the source in its config.yaml is '/videos'",
    "compare nowhere elsewhere": "nowhere",
    "logs missing.h5": "missing.h5",
    "experiment elasticity nowhere": "nowhere",
    "experiment spread nowhere": "nowhere",
    "experiment spread done --out text": "a file is in its place",
    "experiment frontier --task bare.yaml --out f": "task bare has no simulator",
    "experiment value --embeddings missing.h5": "missing.h5",
    "merge missing.h5": "missing.h5",
    "merge empty": "empty has none of",
    "merge done": "done holds no seeds",
    "doctor nowhere": "nowhere",
    "doctor empty": "empty is not a regular file",
}
DAMAGED = {  # the same of files that are not what they should be: exit code 4
    "extract . --out e.h5 --weights text": "text is not a PyTorch file",
    "extract . --out e.h5 --backbone efficientnet_lite0 --weights text": "text is not a PyTorch file",
    "extract . --out e.h5 --projector text": "text is damaged",
    "train --source embeddings --embeddings text --out r": "text is damaged",
    "novelty --embeddings text --out n.h5": "text is damaged",
    "act done --embeddings text": "text is damaged",
    "act policy.pt": "policy.pt",
    "logs text": "text is damaged",
    "experiment value --embeddings text --out v": "text is damaged",
}


def python(script, *arguments, cwd, **options):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """For every line: its exit code, its message, and whether torch was imported."""
    folder = tmp_path_factory.mktemp("given")
    os.mkfifo(folder / "fifo")
    (folder / "text").write_text("a text")
    write_embeddings(folder / "embeddings.h5")
    (folder / "bare.yaml").write_text(
        "name: bare\nhuman_wage_usd: 20\nactions: {speed: {low: 0, high: 1}}\n"
        "contexts: {price_usd: 0.1, damage_usd: 0}\n"
    )
    (folder / "policy.pt").write_text("a text")
    for name, settings in (("done", "source: sim"), ("demos", "videos: 3"), ("parts", "source: /videos")):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(settings)
    for name in ("finished.json", "metrics.csv"):
        (folder / "done" / name).touch()
    (folder / "done" / "evaluation").mkdir()
    (folder / "empty").mkdir()
    before = sorted(folder.rglob("*"))
    done = python(EACH, cwd=folder, input=json.dumps([*LINES, *DAMAGED]))
    assert done.returncode == 0, done.stderr
    assert sorted(folder.rglob("*")) == before, "something was written"
    return {line: told for line, *told in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("line", [*LINES, *DAMAGED])
def test_wrong_input_is_reported_without_torch(told, line):
    code, text, with_torch = told[line]
    assert code == (2 if line in LINES else 4), text
    assert text.count("\n") == 1 and (LINES | DAMAGED)[line] in text
    assert not with_torch


@pytest.mark.parametrize("mebibytes", [1000, 2000])
def test_a_limit_on_memory_is_named(tmp_path, mebibytes):
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({mebibytes << 20},) * 2)\n{RUN}"
    (tmp_path / "a.mp4").write_bytes(b"no video")
    done = python(limited, "extract", "a.mp4", "--out", "e.h5", "--weights", "random:0", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    *told, error = done.stderr.splitlines()
    assert len(told) <= 1 and f"(ulimit -v) is {mebibytes} MiB" in error
