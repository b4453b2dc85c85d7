"""What is missing is said before torch is imported: each command in an interpreter of its own."""

import os
import subprocess
import sys

import pytest

RUN = """
import sys
from pipeline.cli import main
try:
    main()
finally:
    print("torch" in sys.modules)
"""


def vtp(*arguments, cwd, run=RUN, **environment):
    command = [sys.executable, "-c", run, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("extract missing.mp4 --out e.h5", "missing.mp4"),
        ("extract . --task missing.yaml --out e.h5", "missing.yaml"),
        ("train --source embeddings --embeddings missing.h5 --out r", "missing.h5"),
        ("train --source embeddings --embeddings missing.h5 --out r --seeds 0-1", "missing.h5"),
        ("train --source sim --init nowhere --out r", "nowhere"),
        ("evaluate nowhere", "nowhere"),
        ("novelty --embeddings missing.h5", "missing.h5"),
        ("novelty --embeddings fifo --out n.h5", "fifo is not a regular file"),
        ("act nowhere", "nowhere"),
        ("policy export nowhere --to onnx", "nowhere"),
        ("report nowhere", "nowhere"),
        ("compare nowhere elsewhere", "nowhere"),
        ("logs missing.h5", "missing.h5"),
        ("experiment elasticity nowhere", "nowhere"),
        ("experiment spread nowhere", "nowhere"),
        ("experiment value --embeddings missing.h5", "missing.h5"),
        ("merge missing.h5", "missing.h5"),
        ("train --source embeddings --out r", "data/embeddings.h5"),
    ],
)
def test_what_is_missing_is_said_without_torch(tmp_path, line, value):
    os.mkfifo(tmp_path / "fifo")
    done = vtp(*line.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert done.stderr.count("\n") == 1 and value in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


@pytest.mark.parametrize("mebibytes", [1000, 2000])
def test_a_limit_on_memory_is_named(tmp_path, mebibytes):
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({mebibytes << 20},) * 2)\n{RUN}"
    (tmp_path / "a.mp4").write_bytes(b"no video")
    done = vtp("extract", "a.mp4", "--out", "e.h5", "--weights", "random:0", cwd=tmp_path, run=limited)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and f"(ulimit -v) is {mebibytes} MiB" in done.stderr
