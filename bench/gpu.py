"""All that vtp does on a GPU, in one run meant for about five minutes on one H100 or H200, as JSON.

It needs no network and makes its own videos: copies of one of 720p in H.264, and rendered dishes with logs.

- *encoder*: R3D-18 from uint8 in host memory to features in host memory, against a plain fp32 loop over the same clips
  with torchvision's preset on the GPU and torch's own settings, which allow TF32: the faster of batches of 8 and 64.
  Cosines are to the features of the same loop without TF32.
- *extraction*: of 64 videos of 720p, against decord alone in one process per core: the faster of all frames and of
  those that clips take. With NVDEC too, or why not.
- *start*: from the start of a process that extracts one video of warm files to its first clip in the encoder's queue,
  and to its end.
- *novelty*: the corpus model fitted on 2,400 clips, and all of them scored.
- *svd*: clips scored by Stable Video Diffusion at its real size, with random weights, which needs a GPU; with
  `--compile` also compiled, for some minutes more.
- *sac*: an update with batches of 1,024 of 128-D embeddings, against Stable-Baselines3's on the same GPU, if installed.
- *demo*: the demo's training on the GPU and on the processor: seconds, and ratio to the optimum.
- *video*: `--source video` with R3D-18's last stage fine-tuned, updates on the GPU and on the processor.

A part that fails is reported under its name, the others go on, and the exit code is 1. `--device cpu --tiny` runs all
parts, small, where there is no GPU: to test this script, not to measure.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.models.video import R3D_18_Weights, r3d_18

from pipeline import devices, encoders, evaluate, extract, noise_gap, novelty, processes, simulate, synthetic, train
from pipeline.config import (
    EmbeddingsTrainConfig,
    EvaluateConfig,
    ExtractConfig,
    NoveltyConfig,
    SimulateConfig,
    VideoTrainConfig,
)
from pipeline.demo import FULL
from pipeline.errors import VtpError
from pipeline.training.sources import open_source
from pipeline.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parent))
from update import measure_update

CLIP_LEN = 16
PLAIN_BATCHES = (8, 64)
FRAME_STEP = 2  # clips take every second frame, 15 of 30 a second
SVD_SIZE = (320, 576)
FIRST_CLIP = """
import sys, time
from pathlib import Path
from pipeline import extract
from pipeline.config import ExtractConfig
from pipeline.extraction import parts
source, out, device = sys.argv[1:]
add = parts.PartWriter.add
first = []
def timed(self, *arguments):
    first.append(time.time())
    return add(self, *arguments)
parts.PartWriter.add = timed
if __name__ == "__main__":
    extract.run(ExtractConfig(source=source, out=Path(out), weights="random:0", projector="none", device=device))
    print(first[0], time.time())
"""


class Size(NamedTuple):
    clips: int = 1024  # that the encoder takes at a time
    videos: int = 64
    frames: int = 640  # of each video, at 30 a second: 20 clips
    height: int = 720
    rendered: int = 120  # videos of dishes
    steps: int = 20  # clips of each
    svd_clips: int = 8
    sac_rounds: int = 10  # of ten updates
    episodes: int = FULL["logs_episodes"]
    judged_episodes: int = FULL["episodes"]
    judged_steps: int = FULL["eval_steps"]
    fine_tuned: int = 8  # videos
    video_updates: int = 100
    processor_video_updates: int = 4


TINY = Size(
    clips=8, videos=2, frames=70, height=96, rendered=16, steps=3, svd_clips=1, sac_rounds=1,
    episodes=300, judged_episodes=2, judged_steps=2, fine_tuned=6, video_updates=1, processor_video_updates=1,
)  # fmt: skip


class Bench:
    """The device, the sizes, and what parts share."""

    def __init__(self, device: str, size: Size, folder: Path, *, compiles: bool):
        self.name, self.size, self.folder, self.compiles = device, size, folder, compiles
        self.device = devices.choose(device)
        self.has_gpu = self.device.type == "cuda"

    def seconds(self, function: Callable[[], Any]) -> float:
        """Wall time of the function, until the GPU has done all of it."""
        self._wait()
        started = time.perf_counter()
        function()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.has_gpu:
            torch.cuda.synchronize(self.device)

    @cached_property
    def dishes(self) -> Path:
        """The embeddings of rendered dishes with logs."""
        return self.extracted(self.size.rendered, "dishes")

    def extracted(self, videos: int, name: str) -> Path:
        folder = self.folder / name
        manifest = simulate.run(SimulateConfig(out=folder, videos=videos, steps=self.size.steps))
        embeddings = folder / "embeddings.h5"
        extract.run(ExtractConfig(source=str(manifest), out=embeddings, weights="random:0", device=self.name))
        return embeddings


def encoder(bench: Bench) -> dict[str, Any]:
    clips = np.random.default_rng(0).integers(0, 256, (bench.size.clips, CLIP_LEN, 128, 171, 3), dtype=np.uint8)
    some, plain = clips[: len(clips) // 4], plain_loop(bench.device)
    ours = {
        name: encoders.load_encoder("r3d_18", "random:0", name, device=bench.name).features for name in ("bf16", "fp32")
    }
    exact = plain(some, PLAIN_BATCHES[0])
    cosine_min = {name: round(float(cosines(exact, way(some)).min()), 6) for name, way in ours.items()}

    def rate(way: Callable[[np.ndarray], np.ndarray]) -> float:
        way(some)  # warms up
        return len(clips) / min(bench.seconds(lambda: way(clips)) for _ in range(3))

    with torch_settings():
        plain_rates = {size: rate(partial(plain, batch_size=size)) for size in PLAIN_BATCHES}
    rates = {name: rate(way) for name, way in ours.items()}
    fastest = max(plain_rates.values())
    return {
        "clips_per_s": {name: round(value, 1) for name, value in rates.items()},
        "plain_clips_per_s": {f"batches of {size}": round(value, 1) for size, value in plain_rates.items()},
        "over_plain": {name: round(value / fastest, 2) for name, value in rates.items()},
        "cosine_min": cosine_min,
    }


@contextlib.contextmanager
def torch_settings() -> Iterator[None]:
    """Convolutions as torch computes them unless told otherwise: in TF32, by any algorithm."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.allow_tf32
    cudnn.deterministic, cudnn.allow_tf32 = False, True
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.allow_tf32 = before


def plain_loop(device: torch.device) -> Callable[..., np.ndarray]:
    """What a user would write: batches of clips to the device, the preset there, the network in fp32."""
    torch.manual_seed(0)  # the weights of random:0
    network = r3d_18(weights=None).eval().to(device)
    network.fc = torch.nn.Identity()
    preset = R3D_18_Weights.KINETICS400_V1.transforms()

    @torch.inference_mode()
    def features(clips: np.ndarray, batch_size: int) -> np.ndarray:
        batches = torch.from_numpy(clips).split(batch_size)
        return torch.cat([network(preset(batch.to(device).permute(0, 1, 4, 2, 3))).cpu() for batch in batches]).numpy()

    return features


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def extraction(bench: Bench) -> dict[str, Any]:
    videos = film(bench.folder / "large", bench.size)
    num_clips, cores = len(videos) * (bench.size.frames // FRAME_STEP // CLIP_LEN), processes.num_processors()
    decord_rates = {
        name: num_clips / seconds
        for name, seconds in zip(("all frames", "frames of clips"), decord_seconds(videos, cores), strict=True)
    }
    fastest, rates, found = max(decord_rates.values()), {}, {}
    for decoder in ("auto", "nvdec"):
        cfg = ExtractConfig(
            source=str(bench.folder / "large"), out=bench.folder / f"{decoder}.h5", weights="random:0",
            projector="none", device=bench.name, decoder=decoder,
        )  # fmt: skip
        started = time.perf_counter()
        try:
            assert (extracted := extract.run(cfg).num_clips) == num_clips, f"{extracted} of {num_clips} clips extracted"
        except (VtpError, AssertionError) as error:
            if decoder == "auto":
                raise
            found["without_nvdec"] = str(error)
        else:
            rates[decoder] = num_clips / (time.perf_counter() - started)
    return {
        "decord_clips_per_s": {name: round(rate, 1) for name, rate in decord_rates.items()},
        "clips_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "over_decord": {name: round(rate / fastest, 3) for name, rate in rates.items()},
        "clips": num_clips,
        "cores": cores,
    } | found


def decord_seconds(videos: list[Path], cores: int) -> list[float]:
    """Seconds in which decord reads all frames of the videos, and then those of clips, in one process per core."""
    context = get_context("spawn")
    all_started, seconds = context.Barrier(cores), []
    with ProcessPoolExecutor(cores, context, all_started.wait) as pool:
        list(pool.map(decode, itertools.islice(itertools.cycle(videos), max(cores, len(videos)))))  # warms the files
        for step in (1, FRAME_STEP):
            started = time.perf_counter()
            list(pool.map(decode, videos, itertools.repeat(step)))
            seconds.append(time.perf_counter() - started)
    return seconds


def film(folder: Path, size: Size) -> list[Path]:
    """Copies of one video, each with a trailing box of its own, so that none is taken for another."""
    folder.mkdir()
    shape = (size.height, size.height * 16 // 9, 3)
    coarse = np.random.default_rng(0).integers(0, 256, (shape[0] // 8, shape[1] // 8, 3), dtype=np.uint8)
    picture = coarse.repeat(8, 0).repeat(8, 1)

    def frames() -> Iterator[np.ndarray]:
        for index in range(size.frames):
            yield np.roll(picture, (index, 3 * index), (0, 1))

    first = folder / "0000.mp4"
    synthetic.write_mp4(first, frames(), fps=30)
    paths = [first, *(folder / f"{number:04d}.mp4" for number in range(1, size.videos))]
    for number, path in enumerate(paths[1:], start=1):
        shutil.copy(first, path)
        with open(path, "ab") as file:  # a box that players skip
            file.write(b"\0\0\0\x10free" + number.to_bytes(8, "big"))
    return paths


def decode(path: Path, step: int = 1) -> None:
    """Every `step`-th frame of the video by decord on one thread, a clip at a time."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    for start in range(0, len(reader), step * CLIP_LEN):
        reader.get_batch(range(start, min(start + step * CLIP_LEN, len(reader)), step)).asnumpy()


def start(bench: Bench) -> dict[str, Any]:
    source = bench.folder / "one"
    simulate.run(SimulateConfig(out=source, videos=1, steps=2))
    script = bench.folder / "first_clip.py"
    script.write_text(FIRST_CLIP)
    rows = []
    for number in range(3):
        began = time.time()
        command = [sys.executable, str(script), str(source), str(bench.folder / f"one-{number}.h5"), bench.name]
        times = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        rows.append([float(at) - began for at in times])
    first_clip_s, whole_s = (statistics.median(column) for column in zip(*rows[1:], strict=True))  # the first warms
    return {"first_clip_s": round(first_clip_s, 2), "whole_s": round(whole_s, 2)}


def corpus_novelty(bench: Bench) -> dict[str, Any]:
    cfg = NoveltyConfig(embeddings=bench.dishes, model="corpus", device=bench.name)
    seconds = bench.seconds(lambda: novelty.run(cfg))
    return {"seconds": round(seconds, 1), "clips": bench.size.rendered * bench.size.steps}


def svd(bench: Bench) -> dict[str, Any]:
    if bench.has_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    backend = random_svd(bench.device)
    images = torch.rand(1, CLIP_LEN, 3, *SVD_SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images, embeddings = images.to(bench.device), torch.zeros(1, 128, device=bench.device)

    def scored(count: int) -> None:
        for _ in range(count):
            noise_gap.clip_gap(backend, images, embeddings)

    found: dict[str, Any] = {}
    for how in ("as it is", *(["compiled"] if bench.compiles else [])):
        if how == "compiled":
            found["compile_s"] = round(bench.seconds(partial(backend.compile, SVD_SIZE)), 1)
        scored(1)  # warms up
        rate = bench.size.svd_clips / bench.seconds(partial(scored, bench.size.svd_clips))
        found[how] = {"clips_per_s": round(rate, 2)}
    peak = torch.cuda.max_memory_allocated(bench.device) if bench.has_gpu else 0
    return found | {"peak_gb": round(peak / 1e9, 1)}


def random_svd(device: torch.device) -> noise_gap.SvdBackend:
    """Stable Video Diffusion at its published size, with random weights in fp16 that are made on the device."""
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    scheduler, before = EulerDiscreteScheduler(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device(device):
            pipeline = StableVideoDiffusionPipeline(
                vae=AutoencoderKLTemporalDecoder(
                    down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512),
                    layers_per_block=2, latent_channels=4, sample_size=768,
                ),
                image_encoder=CLIPVisionModelWithProjection(
                    CLIPVisionConfig(
                        hidden_size=1280, intermediate_size=5120, projection_dim=1024, num_hidden_layers=32,
                        num_attention_heads=16, patch_size=14, image_size=224, hidden_act="gelu",
                    )
                ),
                unet=UNetSpatioTemporalConditionModel(num_frames=14, sample_size=96),
                scheduler=scheduler,
                feature_extractor=CLIPImageProcessor(size=224, crop_size=224),
            )  # fmt: skip
    finally:
        torch.set_default_dtype(before)
    return noise_gap.SvdBackend(pipeline, "random", device=device)


def sac(bench: Bench) -> dict[str, Any]:
    return measure_update(bench.size.sac_rounds, bench.name)


def demo(bench: Bench) -> dict[str, Any]:
    found = {}
    for device in dict.fromkeys((bench.name, "cpu")):
        out = bench.folder / f"demo-{device}"
        cfg = EmbeddingsTrainConfig(
            embeddings=bench.dishes, out=out, episodes=bench.size.episodes, centre=FULL["centre"], outcomes="logged",
            device=device,
        )  # fmt: skip
        started = time.perf_counter()
        train.run(cfg)
        seconds = time.perf_counter() - started
        judged = evaluate.run(
            EvaluateConfig(
                run=out, episodes=bench.size.judged_episodes, steps=bench.size.judged_steps, device=bench.name
            )
        )
        ratio, interval = judged["oracle_ratio"], judged["oracle_ratio_ci95"]
        found[device] = {
            "seconds": round(seconds, 1), "oracle_ratio": round(ratio, 3), "ci95": [round(end, 3) for end in interval]
        }  # fmt: skip
    return found


def updated(trainer: Trainer, updates: int) -> None:
    for _ in range(updates):
        trainer.learner.update()


def video(bench: Bench) -> dict[str, Any]:
    embeddings = bench.extracted(bench.size.fine_tuned, "fine-tuned")
    rates = {}
    for device in dict.fromkeys((bench.name, "cpu")):
        cfg = VideoTrainConfig(
            embeddings=embeddings, out=bench.folder / f"video-{device}", unfreeze_after=0, warmup_steps=64,
            device=device,
        )  # fmt: skip
        rng = np.random.default_rng(0)
        trainer = Trainer(cfg, open_source(cfg, rng), rng=rng)
        while not trainer.is_learning:
            trainer.step()
        updated(trainer, 1)  # warms up
        updates = bench.size.video_updates if device == bench.name else bench.size.processor_video_updates
        rates[device] = updates / bench.seconds(partial(updated, trainer, updates))
    over = rates[bench.name] / rates["cpu"]
    return {"updates_per_s": {name: round(rate, 2) for name, rate in rates.items()}, "over_processor": round(over, 1)}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "encoder": encoder, "extraction": extraction, "start": start, "novelty": corpus_novelty, "svd": svd, "sac": sac,
    "demo": demo, "video": video,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="run all parts small, to test this script")
    parser.add_argument("--compile", action="store_true", help="also measure SVD compiled")
    parser.add_argument("--only", nargs="+", choices=PARTS)
    options = parser.parse_args()
    began = time.perf_counter()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.device, TINY if options.tiny else Size(), Path(folder), compiles=options.compile)
        result: dict[str, Any] = {
            "device": devices.name_of(bench.device), "torch": torch.__version__, "cores": processes.num_processors()
        }  # fmt: skip
        for name in options.only or [name for name in PARTS if bench.has_gpu or name != "svd"]:
            started = time.perf_counter()
            try:
                result[name] = PARTS[name](bench)
            except Exception as error:
                traceback.print_exc()
                result[name], failed = {"error": f"{type(error).__name__}: {error}"}, True
            result[name]["part_s"] = round(time.perf_counter() - started, 1)
            print(name, json.dumps(result[name]), file=sys.stderr, flush=True)  # what is known if a later part hangs
    result["whole_s"] = round(time.perf_counter() - began, 1)
    print(json.dumps(result, indent=2))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
