"""Extraction is killed again and again: it loses nothing that was finished, and ends with the file it would have had.

What is killed is the real extraction but for the network, whose features are pixels here: it writes nothing.
VTP_CRASH=full kills thirty times at random and once at every single write.
"""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time

import lerobot_by_hand as by_hand
import pytest
from factories import write_video
from pixel_encoder import PixelEncoder

from pipeline import dataset, encoders, extract
from pipeline.config import ExtractConfig, MergeConfig
from pipeline.extraction import parts

pytestmark = pytest.mark.slow
KILLS, EVERY = (30, 1) if os.environ.get("VTP_CRASH") == "full" else (8, 3)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(4):
        write_video(folder / f"{number}.mp4", 4 + 2 * number, first=number * 20)
    return folder


def config(videos, out):
    return ExtractConfig(source=str(videos), out=out / "embeddings.h5", clip_len=2, clip_stride=2, batch_size=2)


@pytest.fixture
def cfg(videos, tmp_path):
    return config(videos, tmp_path / "out")


PROCESSES = multiprocessing.get_context("forkserver")  # a fork of this process would inherit the locks of its threads
PROCESSES.set_forkserver_preload(["pipeline.extract", "pipeline.encoders"])


def in_child(cfg, *, die_at=0):
    """Extract in a process of its own, which has all modules and no threads yet; `die_at`: killed at that write."""
    process = PROCESSES.Process(target=extract_or_die, args=(cfg, die_at))
    process.start()
    return process


def extract_or_die(cfg, die_at):
    """A video a part. Killed as it opens a temporary file, and as it renames it: the first time, the second, ..."""
    encoders.load_encoder = lambda *args, **kwargs: PixelEncoder()
    parts.PART_VIDEOS = 1
    parts.BATCHES_AHEAD = 0
    left = die_at

    def hook(event, args):
        nonlocal left
        if (event == "open" and str(args[0]).endswith(".tmp") and "w" in str(args[1])) or event == "os.rename":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    extract.run(cfg)


def exit_code(process):
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """The file of an extraction that nothing disturbed, and how many seconds it took."""
    folder = tmp_path_factory.mktemp("whole")
    assert exit_code(in_child(config(videos, folder / "first"))) == 0  # the server that forks runs from now on
    started = time.monotonic()
    cfg = config(videos, folder / "second")
    assert exit_code(in_child(cfg)) == 0
    return cfg.out.read_bytes(), time.monotonic() - started


def finished(cfg):
    """Every content that some part holds, as often as it was decoded."""
    return [
        c for path in parts.part_paths(extract.parts_folder(cfg.out)) for c in dataset.read_part(path).videos.contents
    ]


def check_end(cfg, expected):
    assert exit_code(in_child(cfg)) == 0
    assert cfg.out.read_bytes() == expected
    decoded = finished(cfg)
    assert len(decoded) == len(set(decoded)) == 4, "a finished video was decoded again"
    assert not list(cfg.out.parent.rglob("*.tmp"))


def test_random_kills(cfg, whole):
    expected, duration_s = whole
    rng = random.Random(0)
    for _ in range(KILLS):
        before = finished(cfg)
        process = in_child(cfg)
        time.sleep(rng.uniform(0, duration_s))
        process.kill()
        if exit_code(process) == 0:
            check_end(cfg, expected)
            shutil.rmtree(cfg.out.parent)
        else:
            assert set(before) <= set(finished(cfg))
    check_end(cfg, expected)


def test_kills_of_three_shards_of_a_lerobot_data_set(tmp_path):
    folder = by_hand.write_v3(tmp_path / "data", drift=lambda camera, k: (-1) ** k)
    settings = {"source": str(folder), "clip_len": 4, "clip_stride": 4}
    whole = ExtractConfig(out=tmp_path / "whole/embeddings.h5", **settings)
    assert exit_code(in_child(whole)) == 0
    rng, kills = random.Random(1), 0
    cfg = ExtractConfig(out=tmp_path / "shards/embeddings.h5", shards=3, **settings)
    while kills < 10:
        for shard in range(3):
            before = finished(cfg)
            process = in_child(cfg.model_copy(update={"shard": shard}), die_at=rng.randrange(1, 12))
            kills += exit_code(process) == -signal.SIGKILL
            assert set(before) <= set(finished(cfg))
    for shard in range(3):
        assert exit_code(in_child(cfg.model_copy(update={"shard": shard}))) == 0
    extract.merge(MergeConfig(out=cfg.out))
    assert cfg.out.read_bytes() == whole.out.read_bytes()
    decoded = finished(cfg)
    assert len(decoded) == len(set(decoded)) == 24, "a finished episode was decoded again"


def test_a_kill_at_every_write(cfg, whole):
    expected, _ = whole
    write = 1
    while True:
        code = exit_code(in_child(cfg, die_at=write))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        check_end(cfg, expected)
        shutil.rmtree(cfg.out.parent)
        write += EVERY
    assert write > 12


def test_two_processes_on_one_shard(cfg, whole):
    expected, _ = whole
    processes = [in_child(cfg), in_child(cfg)]
    codes = sorted(exit_code(process) for process in processes)
    assert codes in ([0, 1], [0, 0]), "the second is refused, unless the first has finished before it begins"
    assert cfg.out.read_bytes() == expected
    assert len(set(finished(cfg))) == 4
