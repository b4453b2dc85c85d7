"""Video and image models of transformers' Auto classes; weights are safetensors, and a model's own code is never run.

The model's own processor scales and normalises frames. A video model gets as many frames of a clip as it takes. An
image model gets each frame; the clip's features are the mean over frames and a temporal difference.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from huggingface_hub import constants, snapshot_download
from safetensors import SafetensorError
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES, MODEL_MAPPING
from transformers.utils import logging as transformers_logging

from pipeline import hf_models
from pipeline.encoders import weights as source
from pipeline.encoders.backbone import Backbone
from pipeline.encoders.frames import evenly, over_time
from pipeline.errors import CorruptError, VtpError
from pipeline.hf_models import PREFIX, WAYS_OUT

logger = logging.getLogger(__name__)

ARITHMETIC = {"cpu": 1, "cuda": 102}  # on a GPU: passes of 8 clips before larger ones
EDGE = 224  # shortest edge of frames if the processor takes any size
FRAMES = 16  # of the test clip if the model takes any number
_HUB_FILES = [hf_models.CONFIG, *hf_models.PROCESSORS, hf_models.WEIGHTS, hf_models.INDEX, "model-*-of-*.safetensors"]
_LOADING = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, SafetensorError)


class _Model(NamedTuple):
    name: str  # for messages
    network: Any
    call: Callable[..., Any]  # of the network: only its vision tower if it has others
    processor: Any
    takes_video: bool
    num_frames: int | None  # of a video model; None: any number
    has_pooler: bool  # with saved weights


def load(backbone: str, weights: str | None, precision: str, device: torch.device) -> Backbone:
    """Load the model named by `backbone`, from the place `weights` if it was loaded before.

    Its forward takes clips on the device. Processors and models may wait for a GPU, so it is not captured.
    """
    name = weights or backbone.removeprefix(PREFIX)
    folder = hf_models.folder_of(name)
    if folder is None:
        folder = _from_hub(name)
        found = f"{name.partition('@')[0]}@{folder.name}"  # snapshots are named after their commit
    else:
        found = str(folder.resolve())
    files = hf_models.model_files(folder)
    model = _load_model(folder, f"{PREFIX}{name}")
    model.network.to(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    size = _frame_size(model.processor)
    pooled, feature_dim = _try(model, size, device)
    return Backbone(
        backbone if weights else hf_models.absolute(backbone),
        feature_dim,
        size,
        ARITHMETIC[device.type],
        _transform(model, size, pooled),
        found,
        _sha256(files),
        lambda clips: _features(model, clips)[1],
        model.num_frames,
        is_capturable=False,
    )


def _from_hub(name: str) -> Path:
    """The folder in the hub's cache, updated if the hub answers."""
    repository, _, revision = name.partition("@")

    def fetched(is_local: bool) -> Path:
        return Path(
            snapshot_download(
                repository, revision=revision or None, allow_patterns=_HUB_FILES, local_files_only=is_local
            )
        )

    try:
        if not constants.HF_HUB_OFFLINE:
            source.probe(constants.ENDPOINT)
        return fetched(is_local=constants.HF_HUB_OFFLINE)
    except (OSError, ValueError) as error:
        reason = source.first_line(error)
        try:
            folder = fetched(is_local=True)
        except (OSError, ValueError):
            raise VtpError(
                f"backbone {PREFIX}{name} could not be downloaded ({reason}); {WAYS_OUT}", code="weights-unavailable"
            ) from error
        logger.warning("%s%s could not be downloaded (%s); using the cached copy %s", PREFIX, name, reason, folder.name)
        return folder


def _load_model(folder: Path, name: str) -> _Model:
    needs_code = "auto_map" in hf_models.read_json(folder / hf_models.CONFIG)
    try:
        with quietly():
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except _LOADING as error:
        if needs_code:
            raise VtpError(
                f"backbone {name} needs its own code, which is never run; {WAYS_OUT}", code="weights-need-code"
            ) from error
        raise VtpError(
            f"backbone {name} is not a model of transformers {transformers.__version__} "
            f"({source.first_line(error)}); {WAYS_OUT}",
            code="weights-wrong",
        ) from error
    kinds: Any = MODEL_MAPPING.get(type(config), None)
    kind = kinds[0] if isinstance(kinds, tuple) else kinds
    takes_video = kind is not None and _takes_video(kind, config)
    if kind is None or not (takes_video or "image" in _modalities(kind)):
        raise VtpError(
            f"backbone {name} is a {config.model_type}, which takes neither video nor images; {WAYS_OUT}",
            code="weights-wrong",
        )
    network, missing = from_safetensors(kind, folder, name, WAYS_OUT, config=config)
    if wrong := sorted(key for key in missing if "pooler." not in key):
        raise CorruptError(
            f"backbone {name} lacks {len(wrong)} tensors, such as {wrong[0]}; {WAYS_OUT}", code="weights-incomplete"
        )
    is_for_video = takes_video and (folder / hf_models.PROCESSORS[0]).is_file()
    auto = transformers.AutoVideoProcessor if is_for_video else transformers.AutoImageProcessor
    try:
        with quietly():
            processor = auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except _LOADING as error:
        raise VtpError(
            f"the processor of backbone {name} cannot be loaded ({source.first_line(error)}); {WAYS_OUT}",
            code="weights-wrong",
        ) from error
    call = getattr(network, "get_video_features" if takes_video else "get_image_features", network)
    num_frames = _num_frames(config) if takes_video else None
    return _Model(name, network, call, processor, takes_video, num_frames, has_pooler=not missing)


def from_safetensors(kind: Any, folder: Path, name: str, ways_out: str, **options: Any) -> tuple[Any, set[str]]:
    """The model saved in a folder, in fp32, and the names of its missing tensors; CorruptError if it is damaged."""
    try:
        with quietly():
            network, found = kind.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32,
                **options,
            )  # fmt: skip
    except _LOADING as error:
        raise CorruptError(
            f"weights {name} cannot be loaded ({source.first_line(error)}); {ways_out}", code="weights-damaged"
        ) from error
    missing = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    return network.eval().requires_grad_(False), missing


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """No progress bar, and no report of unused or missing tensors."""
    verbosity, has_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bar:
            transformers_logging.enable_progress_bar()


def _modalities(kind: Any) -> set[str]:
    named = kind.input_modalities
    return {named} if isinstance(named, str) else set(named)


def _takes_video(kind: Any, config: Any) -> bool:
    return (
        "video" in _modalities(kind)
        or hasattr(kind, "get_video_features")
        or config.model_type in MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES
    )


def _num_frames(config: Any) -> int | None:
    """The number of frames of a clip, from the config or that of the vision tower."""
    for part in (config, getattr(config, "vision_config", None)):
        for name in ("num_frames", "frames_per_clip"):
            if isinstance(number := getattr(part, name, None), int):
                return number
    return None


def _frame_size(processor: Any) -> tuple[int, int]:
    """Height and width of the frames to decode: those that the processor scales to.

    If the processor scales the shortest edge, frames have the aspect ratio of R3D-18's, 128:171. crop_pct: cropped
    `shortest_edge` as a share of the scaled edge.
    """
    size = processor.size if getattr(processor, "do_resize", True) else getattr(processor, "crop_size", None)
    given = {} if size is None else dict(size)
    if given.get("height") and given.get("width"):
        return int(given["height"]), int(given["width"])
    edge = int((given.get("shortest_edge") or EDGE) / (getattr(processor, "crop_pct", None) or 1))
    return edge, edge * 171 // 128


def _try(model: _Model, size: tuple[int, int], device: torch.device) -> tuple[str, int]:
    """The pooled output and its number of features; VtpError if the model fails on a clip or is not deterministic."""
    shape = (1, model.num_frames or FRAMES, *size, 3)
    clip = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).to(device)
    try:
        with torch.inference_mode():
            (pooled, features), (_, again) = _features(model, clip), _features(model, clip)
    except (*_LOADING, IndexError, NotImplementedError) as error:
        kind = type(model.network).__name__
        raise VtpError(
            f"backbone {model.name} is a {kind}, which cannot encode a clip of {shape[1]} frames "
            f"({source.first_line(error)}); {WAYS_OUT}",
            code="weights-wrong",
        ) from error
    if not torch.equal(features, again):
        raise VtpError(
            f"backbone {model.name} returns different features for the same frames; use a model without masking",
            code="weights-wrong",
        )
    return pooled, features.shape[1]


def _features(model: _Model, clips: Tensor) -> tuple[str, Tensor]:
    """clips: [B, T, H, W, 3] uint8 → name of the pooled output, and features [B, D] float32."""
    batch, clip_len = clips.shape[:2]
    frames = clips.permute(0, 1, 4, 2, 3)
    if not model.takes_video:
        pooled, features = _pooled(model, model.processor(list(frames.flatten(0, 1)), return_tensors="pt"))
        return pooled, over_time(features.unflatten(0, (batch, clip_len)))
    if (wanted := model.num_frames) is not None:
        frames = evenly(frames, wanted)
    return _pooled(model, {_video_input(model): _videos(model, frames)})


def _videos(model: _Model, frames: Tensor) -> Tensor:
    """frames: [B, T, 3, H, W] uint8 → [B, T, 3, h, w], scaled by the model's processor."""
    if isinstance(model.processor, transformers.BaseVideoProcessor):
        found = model.processor(list(frames), do_sample_frames=False, return_tensors="pt")
    else:
        found = model.processor(list(frames.flatten(0, 1)), return_tensors="pt")
    (pixels,) = (value for name, value in found.items() if name.startswith("pixel_values"))
    return pixels.reshape(*frames.shape[:3], *pixels.shape[-2:])


def _video_input(model: _Model) -> str:
    """The name of the model's input for videos."""
    of_call = model.call.forward if model.call is model.network else model.call
    names = inspect.signature(of_call).parameters
    return next(name for name in ("pixel_values_videos", "pixel_values") if name in names)


def _pooled(model: _Model, inputs: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """Name and values [N, D] float32 of the library's pooled output; the mean of all tokens if it pools nothing."""
    device, dtype = model.network.device, model.network.dtype
    moved: dict[str, Any] = {
        name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
        for name, value in inputs.items()
    }
    if "skip_predictor" in inspect.signature(model.network.forward).parameters:  # V-JEPA's predictor is not needed
        moved["skip_predictor"] = True
    output = model.call(**moved)
    if isinstance(output, Tensor):
        return "the features that the model returns", output.flatten(1).float()
    if model.has_pooler and getattr(output, "pooler_output", None) is not None:
        return "pooler_output", output.pooler_output.flatten(1).float()
    tokens = output.last_hidden_state
    if tokens.ndim == 4:  # of a convolutional network
        tokens = tokens.flatten(2).transpose(1, 2)
    return "mean of the tokens in last_hidden_state", tokens.mean(1).float()


def _transform(model: _Model, size: tuple[int, int], pooled: str) -> str:
    """Preprocessing of decoded frames, in words."""
    kind, processor = type(model.network).__name__, type(model.processor).__name__
    frames = f"{model.num_frames} of a clip, evenly" if model.num_frames else "all of a clip"
    over = "" if model.takes_video else ", per frame; mean over frames, mean of the second half less the first's"
    return f"frames {size[0]}x{size[1]}, {frames}, {processor}, {kind}: {pooled}{over}"


def _sha256(files: list[Path]) -> str:
    """Hash of the names and contents of all files that the features depend on."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
