"""What is hashed or compared does not depend on threads, on BLAS or on the processor."""

import json
import os
import subprocess
import sys

import pytest
from factories import write_video

FIT = """
import json, sys
import numpy as np
from pipeline.encoders import fit_learned, fit_pca, random_projector
rng = np.random.default_rng(0)
features = np.maximum(rng.standard_normal((3000, 512)) @ rng.standard_normal((512, 512)), 0).astype(np.float32)
found = {}
for projector in (fit_pca(features), random_projector(3, 512), *([] if "pca" in sys.argv else [fit_learned(
        features[:600], [60] * 10)])):
    if "pca" in sys.argv or projector.name == "learned":
        found[projector.name] = [projector.sha256, projector.project(features[:2000]).tobytes().hex()[-4000:]]
print(json.dumps(found))
"""


def ran(code, *words, **environment):
    command = [sys.executable, "-c", code, *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def threads(number):
    return {f"{name}_NUM_THREADS": str(number) for name in ("OMP", "OPENBLAS", "MKL")}


def test_principal_components_are_the_same_on_any_threads_and_kernels():
    """OpenBLAS and numpy have kernels of their own for processors of each kind."""
    plain = {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3"}
    machines = (threads(1), threads(2) | plain, threads(4) | {"OPENBLAS_CORETYPE": "Haswell"})
    found = {ran(FIT, "pca", **machine) for machine in machines}
    assert len(found) == 1
    assert set(json.loads(found.pop())) == {"pca", "random:3"}


@pytest.mark.slow
def test_a_learned_projector_is_the_same_on_any_threads():
    assert len({ran(FIT, "learned", **threads(number)) for number in (1, 2, 4)}) == 1


STAGES = """
import sys
import h5py
from pathlib import Path
from pipeline.cli import main
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
for words in (
    ["extract", folder, "--out", out / "e.h5", "--weights", "random:0", "--clip-len", "4", "--clip-stride", "4",
     "--projector", sys.argv[3]],
    ["novelty", "--embeddings", out / "e.h5", "--updates", "3", "--resolution", "32"],
):
    sys.argv[1:] = map(str, words)
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, words
with h5py.File(out / "e.h5") as data, h5py.File(out / "novelty.h5") as novelty:
    print("content", data.attrs["content_sha256"], data.attrs["projector_sha256"])
    print("novelty", novelty.attrs["model_sha256"], novelty["weight"][:].tolist(), novelty["score"][:].tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("projector", ["pca", "learned"])
def test_extraction_and_novelty_are_the_same_on_any_threads(tmp_path, projector):
    (tmp_path / "videos").mkdir()
    for number in range(3):
        write_video(tmp_path / "videos" / f"{number}.mp4", 24 + 4 * number, first=40 * number)
    found = set()
    for number in (1, 2, 4):
        (tmp_path / str(number)).mkdir()
        lines = ran(STAGES, tmp_path / "videos", tmp_path / str(number), projector, **threads(number)).splitlines()
        found.add(tuple(line for line in lines if line.startswith(("content", "novelty"))))
    assert len(found) == 1
    assert len(found.pop()) == 2
