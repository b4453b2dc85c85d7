"""Speed and accuracy of vtp's R3D-18 against a plain loop (torchvision's preset and network, eager fp32), as JSON.

Where OpenVINO and NNCF are installed (`pip install openvino nncf`), also against OpenVINO's int8: calibrated on those
clips that it encodes, one stream per processor, its preprocessing outside the clock.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchvision.models.video import R3D_18_Weights, r3d_18

from pipeline import encoders, synthetic
from pipeline.tasks import load_task


def film(num_clips: int) -> np.ndarray:
    """Rendered clips of various dishes and kitchens, in the decoder's format: [B, 16, 128, 171, 3] uint8."""
    contexts = load_task("dishwashing").in_scenario("mixed").context_names
    clips = []
    for index in range(num_clips):
        rng = np.random.default_rng(index)
        clip = synthetic.render_clip(
            synthetic.sample_scene("dishes", rng), contexts[index % len(contexts)], rng.random(), rng.random(), rng
        )
        frames = torch.from_numpy(clip).permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(frames, (128, 171), mode="bilinear")
        clips.append(resized.permute(0, 2, 3, 1).numpy())
    return np.stack(clips)


def plain_loop(seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Clip by clip, which is faster than batches of 8, because these overflow the cache."""
    torch.manual_seed(seed)
    network, preset = r3d_18(weights=None).eval(), R3D_18_Weights.KINETICS400_V1.transforms()
    network.fc = torch.nn.Identity()

    @torch.no_grad()
    def features(clips: np.ndarray) -> np.ndarray:
        return torch.cat([network(preset(torch.from_numpy(clip).permute(0, 3, 1, 2))[None]) for clip in clips]).numpy()

    return features


def openvino_int8(seed: int, clips: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The network in OpenVINO's int8; `clips`, and no others, are preprocessed already."""
    import nncf
    import openvino

    torch.manual_seed(seed)
    network, preset = r3d_18(weights=None).eval(), R3D_18_Weights.KINETICS400_V1.transforms()
    network.fc = torch.nn.Identity()
    inputs = [preset(torch.from_numpy(clip).permute(0, 3, 1, 2))[None].numpy() for clip in clips]
    floats = openvino.convert_model(network, example_input=torch.from_numpy(inputs[0]))
    floats.reshape(list(inputs[0].shape))
    model = nncf.quantize(floats, nncf.Dataset(inputs), subset_size=len(inputs))
    compiled = openvino.compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    found: dict[int, np.ndarray] = {}
    requests = openvino.AsyncInferQueue(compiled, torch.get_num_threads())
    requests.set_callback(lambda request, index: found.update({index: request.get_output_tensor().data.copy()}))

    def features(clips: np.ndarray) -> np.ndarray:
        for index in range(len(clips)):
            requests.start_async({0: inputs[index]}, index)
        requests.wait_all()
        return np.concatenate([found[index] for index in range(len(clips))])

    return features


def timed(function: Callable[[np.ndarray], np.ndarray], clips: np.ndarray) -> tuple[np.ndarray, float]:
    started = time.perf_counter()
    result = function(clips)
    return result, len(clips) / (time.perf_counter() - started)


def measure(rounds: int, num_clips: int) -> dict[str, Any]:
    clips = film(num_clips)
    ways = {"plain": plain_loop(0)}
    precisions = ("fp32", "bf16", "int8")
    ways |= {name: encoders.load_encoder("r3d_18", "random:0", name, device="cpu").features for name in precisions}
    if importlib.util.find_spec("openvino") and importlib.util.find_spec("nncf"):
        ways["openvino_int8"] = openvino_int8(0, clips)
    ours = tuple(name for name in ways if name != "plain")
    features = {name: way(clips) for name, way in ways.items()}  # also warms up
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(timed(way, clips)[1])
    norms = {name: value / np.linalg.norm(value, axis=1, keepdims=True) for name, value in features.items()}
    return {
        "threads": torch.get_num_threads(),
        "clips_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": {
            name: statistics.median(fast / slow for fast, slow in zip(rates[name], rates["plain"], strict=True))
            for name in ours
        },
        "cosine_mean": {name: float((norms["plain"] * norms[name]).sum(1).mean()) for name in ours},
        "centred_cosine_mean": {name: centred_cosine(features["plain"], features[name]) for name in ours},
        "max_difference_fp32": float(np.abs(features["plain"] - features["fp32"]).max()),
    }


def centred_cosine(exact: np.ndarray, approximate: np.ndarray) -> float:
    """Mean cosine of features minus their mean over clips, as a projector uses them."""
    one, other = exact - exact.mean(0), approximate - exact.mean(0)
    return float(((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clips", type=int, default=16)
    args = parser.parse_args()
    print(json.dumps(measure(args.rounds, args.clips), indent=2))


if __name__ == "__main__":
    main()
