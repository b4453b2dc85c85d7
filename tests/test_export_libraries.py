"""Files read and written by the libraries of their formats, which are installed separately for these tests."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from export_readers import READERS
from factories import read_barcode
from pixel_encoder import PixelEncoder
from small_exports import IN_ORDER, PRESSING, code_of_page, export, five_clips_each, unlogged

from pipeline import dataset, encoders, extract
from pipeline.config import ExtractConfig
from pipeline.dataset.rereading import read_clips
from pipeline.tasks import parse_task

pytestmark = pytest.mark.slow

# What each library's reading imports and we do not have; without what else the library asks for.
PACKAGES = {
    "minari": ["minari==0.5.*"],
    "d3rlpy": [
        "d3rlpy==2.8.*", "gym", "gym-notices", "structlog", "colorama", "dataclasses-json", "marshmallow",
        "typing-inspect", "mypy-extensions",
    ],
    "lerobot": [
        "lerobot==0.4.4",  # the last one for Python below 3.12
        "datasets<5", "dill", "multiprocess", "xxhash", "jsonlines", "draccus==0.10.0", "mergedeep", "toml",
        "pyyaml-include==1.4.1", "typing-inspect", "mypy-extensions", "aiohttp", "aiosignal", "aiohappyeyeballs",
        "attrs", "frozenlist", "multidict", "propcache", "yarl", "httpx", "httpcore", "h11", "anyio", "sniffio",
        "requests", "urllib3", "charset_normalizer", "idna", "einops", "deepdiff<8.7", "orderly-set", "accelerate",
        "psutil", "termcolor", "imageio",
    ],
}  # fmt: skip
READ = {
    "minari": """
import minari
data = minari.MinariDataset(path + "/data")
assert len(data) == data.total_episodes and data.spec.env_spec is None
for number, episode in enumerate(data.iterate_episodes()):
    meta = next(iter(data.storage.get_episode_metadata([number])))
    assert data.observation_space.contains(episode.observations[0])
    assert all(data.action_space.contains(action) for action in episode.actions)
    keep(video_id=meta["video_id"], observations=episode.observations[:-1], actions=episode.actions,
         rewards=episode.rewards, start_s=episode.infos["start_s"][:-1], end_s=episode.infos["end_s"][:-1],
         ends=episode.truncations | episode.terminations)
""",
    "d3rlpy": """
import d3rlpy
with open(path, "rb") as file:
    buffer = d3rlpy.dataset.ReplayBuffer.load(file, d3rlpy.dataset.InfiniteBuffer())
assert buffer.dataset_info.action_size == 2 and buffer.sample_transition_batch(8).observations.shape == (8, 128)
assert buffer.transition_count == sum(episode.size() - 1 for episode in buffer.episodes)
for episode in buffer.episodes:
    keep(observations=episode.observations, actions=episode.actions, rewards=episode.rewards[:, 0])
""",
    "lerobot": """
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
data = LeRobotDataset("vtp/work", root=path)
whole = {name: torch.stack([frame[name] for frame in data]).numpy() for name in data.features}
for row in data.meta.episodes:
    rows = slice(row["dataset_from_index"], row["dataset_to_index"])
    keep(video_id=row["video_id"], observations=whole["observation.embedding"][rows], actions=whole["action"][rows],
         rewards=whole["next.reward"][rows], start_s=whole["clip.start_s"][rows], end_s=whole["clip.end_s"][rows],
         ends=whole["next.done"][rows])
assert data[0]["task"] == "pressing: firm"
one = LeRobotDataset("vtp/work", root=path, episodes=[1], delta_timestamps={"observation.embedding": [0, 1 / data.fps]})
assert one[0]["observation.embedding"].shape == (2, 128)
assert len(data.meta.stats["action"]["mean"]) == 2
""",
}
KEEP = """
import sys
import numpy as np
path, out, kept = sys.argv[1], sys.argv[2], []
def keep(**columns):
    kept.append(columns)
"""
SAVE = """
np.savez(out, count=len(kept), **{f"{n}.{name}": values for n, one in enumerate(kept) for name, values in one.items()})
"""


@pytest.fixture(scope="module", params=PACKAGES)
def library(request, tmp_path_factory):
    """Name and folder of an installed library; skipped by name if it cannot be installed."""
    folder = tmp_path_factory.mktemp(request.param)
    if find_spec("pip") is None:
        pytest.skip(f"{request.param}: this Python has no pip")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, *PACKAGES[request.param]], capture_output=True, text=True, timeout=600)
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        pytest.skip(f"{request.param} cannot be installed here: {reason[-1] if reason else done.stderr[-200:]}")
    return request.param, folder


def run_with(library, program, tmp_path, *arguments):
    """Run a program that imports the library, in tmp_path."""
    environment = {
        "PYTHONPATH": str(library[1]),
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=tmp_path,
        env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def read_by(library, path, tmp_path):
    """The arrays read by the library itself, per episode."""
    run_with(library, KEEP + READ[library[0]] + SAVE, tmp_path, path, tmp_path / "kept.npz")
    found = np.load(tmp_path / "kept.npz")
    episodes = [{} for _ in range(int(found["count"]))]
    for key in set(found.files) - {"count"}:
        number, _, column = key.partition(".")
        episodes[int(number)][column] = found[key]
    return episodes


def test_the_library_reads_equal_arrays_ids_and_times(library, tmp_path):
    task = parse_task(PRESSING, "pressing.yaml")
    data = unlogged(five_clips_each(task), 7)  # which cuts a video in two
    dataset.write_embeddings(tmp_path / "work.h5", data)
    result = export(library[0], tmp_path / "work.h5")
    episodes, ours = read_by(library, result.path, tmp_path), READERS[library[0]](result.path)
    assert len(episodes) == len(ours) == len(IN_ORDER) + 1
    for theirs, mine in zip(episodes, ours, strict=True):
        for column in set(theirs) - {"ends"}:
            if library[0] == "lerobot" and column.endswith("_s"):  # which it turns into float32
                mine[column] = mine[column].astype(np.float32)
            np.testing.assert_array_equal(theirs[column], mine[column], err_msg=column)
        if "ends" in theirs:
            assert theirs["ends"].tolist() == [False] * (len(theirs["ends"]) - 1) + [True]
    seen = np.concatenate([one["observations"] for one in episodes])
    rows = [5, 6, 8, 9, *range(15, 20), *range(5), *range(10, 15)]
    np.testing.assert_array_equal(seen, data.embeddings[rows])
    np.testing.assert_array_equal(
        np.concatenate([one["actions"] for one in episodes]), data.logs.actions[rows].astype(np.float32)
    )


CHECK = {
    "minari": "assert len(ids) == 4 and episode.observations.shape == (6, 128)",
    "d3rlpy": "assert buffer.episodes[0].observations.shape == (5, 128)",
    "lerobot": "assert len(data) == 20 and frame['observation.embedding'].shape == (128,)",
}


def test_the_code_of_the_page_and_of_the_command_loads_it(library, tmp_path, request):
    dataset.write_embeddings(tmp_path / "data/embeddings.h5", five_clips_each(parse_task(PRESSING, "pressing.yaml")))
    result = export(library[0], tmp_path / "data/embeddings.h5")
    program = code_of_page((request.config.rootpath / "docs/exports.md").read_text(), library[0])
    imports = "\n".join(re.findall(r"^(?:import|from) .*$", program, re.M))
    run_with(library, f"{program}\n{CHECK[library[0]]}\n", tmp_path)
    run_with(library, f"{imports}\n{result.load}\n", tmp_path)


MINARI_WRITES = """
import sys
import gymnasium, minari, numpy as np
from minari.data_collector import EpisodeBuffer
sys.path.insert(0, sys.argv[1])
from factories import barcode_frame
images = gymnasium.spaces.Box(0, 255, (64, 80, 3), np.uint8)
spaces = {"plain": images, "raw": images, "dict": gymnasium.spaces.Dict({"rgb": images})}
for name, space in spaces.items():
    buffers = []
    for first in (0, 40):
        seen = [barcode_frame(first + number, 64, 80) for number in range(33)]
        buffers.append(EpisodeBuffer(
            observations={"rgb": seen} if name == "dict" else seen, actions=[np.zeros(2, np.float32)] * 32,
            rewards=[1.0] * 32, terminations=[False] * 32, truncations=[False] * 31 + [True], infos={},
        ))
    data = minari.create_dataset_from_buffers(
        f"{name}-v0", buffers, action_space=gymnasium.spaces.Box(-1, 1, (2,)), observation_space=space,
        jpeg_encoding=name != "raw",
    )
    data.storage.update_metadata({"fps": 20})
"""


@pytest.mark.parametrize("library", ["minari"], indirect=True)
def test_images_that_minari_wrote_are_extracted(library, tmp_path, monkeypatch):
    run_with(library, MINARI_WRITES, tmp_path, Path(__file__).parent)
    monkeypatch.setattr(encoders, "load_encoder", lambda *args, **kwargs: PixelEncoder())
    for name in ("plain", "raw", "dict"):
        out = tmp_path / f"{name}.h5"
        source = tmp_path / ".minari/datasets" / f"{name}-v0"
        extract.run(ExtractConfig(source=str(source), out=out, clip_len=8, clip_stride=8, fps=20))
        data = dataset.read_embeddings(out)
        camera = "rgb" if name == "dict" else "observations"
        assert data.videos.id == [f"episode_0/{camera}", f"episode_1/{camera}"]
        seen = [read_barcode(clip[0]) for _, clips in read_clips(data, range(2)) for clip in clips]
        assert seen == [0, 8, 16, 24, 40, 48, 56, 64]
