import os
import subprocess
import sys

import pytest
import torch

from pipeline import devices
from pipeline.config.base import known_device
from pipeline.errors import VtpError


@pytest.fixture
def gpus(monkeypatch):
    """Torch sees this number of GPUs, and none is touched."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)

    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    yield see
    matmul.allow_tf32 = before


@pytest.mark.parametrize(
    ("count", "name", "chosen"),
    [
        (0, "auto", "cpu"), (0, "cpu", "cpu"), (2, "cpu", "cpu"),
        (2, "auto", "cuda:0"), (2, "cuda", "cuda:0"), (2, "cuda:0", "cuda:0"), (2, "cuda:1", "cuda:1"),
    ],
)  # fmt: skip
def test_auto_is_the_first_gpu_or_else_the_processor(gpus, count, name, chosen):
    gpus(count)
    device = devices.choose(name)
    assert str(device) == chosen
    is_gpu = chosen != "cpu"
    assert devices.name_of(device) == (f"card {chosen[-1]}" if is_gpu else "cpu")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    assert (cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32) == (is_gpu, not is_gpu, not is_gpu)


@pytest.mark.parametrize(
    ("count", "name", "message"),
    [
        (0, "cuda", "--device cuda: torch sees no GPU here; use --device cpu"),
        (0, "cuda:1", "--device cuda:1: torch sees no GPU here"),
        (2, "cuda:2", "--device cuda:2: torch sees GPUs 0 to 1 here; choose from those, or --device cpu"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(gpus, count, name, message):
    gpus(count)
    with pytest.raises(VtpError, match=message) as caught:
        devices.choose(name)
    assert caught.value.code == "gpu-missing"


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:0,1", "CPU", "cpu\n"])
def test_other_names_are_no_device(name):
    with pytest.raises(ValueError, match="must be auto, cpu, cuda, or cuda:N"):
        known_device(name)


PAGES_TAKEN = """
import resource, sys, threading
import torch
from pipeline import devices
if sys.argv[1] == "choose":
    devices.choose("cpu")
def work(times):
    for _ in range(times):
        for size in (3_000_000, 9_000_000, 5_000_000):
            torch.zeros(2, size, dtype=torch.uint8).add_(1).add(1)
def in_thread(times):
    thread = threading.Thread(target=work, args=(times,))
    thread.start()
    thread.join()
in_thread(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
in_thread(10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("glibc" not in os.confstr("CS_GNU_LIBC_VERSION"), reason="other C libraries have no mallopt")
@pytest.mark.parametrize(("what", "given", "keeps"), [("choose", {}, True), ("no", {}, False),
                                                      ("choose", {"MALLOC_ARENA_MAX": "2"}, False)])  # fmt: skip
def test_on_the_processor_freed_memory_is_kept(what, given, keeps):
    """Ten rounds allocate and free 68 MB, 16,600 pages, each."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | given
    command = [sys.executable, "-c", PAGES_TAKEN, what]
    taken = int(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
    assert taken < 1_000 if keeps else taken > 20_000


@pytest.mark.gpu
def test_a_real_gpu_has_a_name():
    assert devices.choose("auto").type == "cuda"
    assert devices.name_of(devices.choose("cuda")) == torch.cuda.get_device_name(0)
