"""Clips to features (R3D-18) and features to 128-D embeddings (projectors).

Layout is converted here and nowhere else: clips come as [B, T, H, W, 3] uint8, the network sees [B, 3, T, 112, 112].
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import pickle
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.video import R3D_18_Weights, r3d_18

from pipeline.errors import CorruptError, VtpError

logger = logging.getLogger(__name__)

EMBEDDING_DIM = 128
RESIZE_HEIGHT, RESIZE_WIDTH = 128, 171
_PRESET = R3D_18_Weights.KINETICS400_V1.transforms()
_KINETICS_URL = R3D_18_Weights.KINETICS400_V1.url
_WAYS_OUT = "pass --weights FILE with a state dict, or --weights random:SEED"
_PROBE_S = 10.0


def preprocess(clips: np.ndarray | Tensor) -> Tensor:
    """torchvision's own preset: resize 128x171 bilinear without antialias, centre crop 112, its mean and std.

    clips: [B, T, H, W, 3] uint8 → [B, 3, T, 112, 112] float32, normalised. Frames that are 128x171 are not resized.
    """
    return _PRESET(torch.as_tensor(clips).permute(0, 1, 4, 2, 3))


class Encoder:
    """R3D-18 before its classifier, with fixed batch shape: the last batch is padded, so that a clip's features
    do not depend on how many clips come with it."""

    backbone = "r3d_18"
    feature_dim = 512
    transform = "torchvision R3D_18_Weights.KINETICS400_V1: resize 128x171 bilinear, crop 112"

    def __init__(self, network: nn.Module, *, weights: str, precision: str, batch_size: int):
        self.weights = weights
        self.weights_sha256 = state_sha256(network.state_dict())
        self.precision = precision
        self.batch_size = batch_size
        self._network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last_3d)

    @torch.inference_mode()
    def features(self, clips: np.ndarray | Tensor) -> np.ndarray:
        """clips: [B, T, H, W, 3] uint8, at least one → [B, 512] float32."""
        batches = torch.as_tensor(clips).split(self.batch_size)
        return torch.cat([self._forward(batch) for batch in batches]).numpy()

    def _forward(self, clips: Tensor) -> Tensor:
        missing = self.batch_size - len(clips)
        padded = torch.cat([clips, clips[-1:].expand(missing, *clips.shape[1:])])
        inputs = preprocess(padded).contiguous(memory_format=torch.channels_last_3d)  # [batch_size, 3, T, 112, 112]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            return self._network(inputs)[: len(clips)].float()


def load_encoder(backbone: str, weights: str, precision: str = "auto", *, batch_size: int = 8) -> Encoder:
    """The encoder of that name.

    weights: kinetics400, a state-dict file, random:SEED, or auto (Kinetics where it can be had, else random:0).
    precision: fp32, bf16, or auto (bf16 where the processor computes in it).
    """
    if backbone != Encoder.backbone:
        raise VtpError(f"backbone {backbone!r} is unknown; use {Encoder.backbone}")
    if precision == "auto":
        precision = "bf16" if _computes_in_bf16() else "fp32"
    network, weights = _load_network(weights)
    return Encoder(network, weights=weights, precision=precision, batch_size=batch_size)


def _load_network(weights: str) -> tuple[nn.Module, str]:
    """R3D-18 without its classifier, and the resolved name of its weights."""
    if weights == "auto":
        try:
            return _load_network("kinetics400")
        except CorruptError:
            raise
        except VtpError as error:
            logger.warning("weights auto: %s; using random:0", str(error).split(";")[0])
            return _load_network("random:0")
    if (seed := seed_of(weights)) is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = r3d_18(weights=None)
    else:
        path = _kinetics_file() if weights == "kinetics400" else Path(weights)
        network = _from_state_dict(path, weights)
        weights = weights if weights == "kinetics400" else str(path.resolve())
    network.fc = nn.Identity()
    return network, weights


def seed_of(spec: str) -> int | None:
    """SEED of `random:SEED`; None for anything else."""
    if not spec.startswith("random"):
        return None
    match = re.fullmatch(r"random:(\d{1,9})", spec)
    if match is None:
        raise VtpError(f"{spec!r} names no seed; write random:SEED with a whole number, such as random:0")
    return int(match[1])


def _from_state_dict(path: Path, name: str) -> nn.Module:
    if not path.is_file():
        raise VtpError(f"weights {name!r} is not a file; {_WAYS_OUT}, or --weights kinetics400")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CorruptError(f"weights {path} cannot be loaded safely ({_first_line(error)}); {_WAYS_OUT}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise VtpError(f"weights {path} is not a state dict of tensors; {_WAYS_OUT}")
    with torch.random.fork_rng(devices=[]):
        network = r3d_18(weights=None)
    body = {key: value for key, value in state.items() if not key.startswith("fc.")}
    wanted = {key: value.shape for key, value in network.state_dict().items() if not key.startswith("fc.")}
    wrong = [key for key in {**wanted, **body} if key not in body or wanted.get(key) != body[key].shape]
    if wrong:
        raise VtpError(f"weights {path} is not an R3D-18: {len(wrong)} tensors differ, such as {wrong[0]}; {_WAYS_OUT}")
    network.load_state_dict(body, strict=False)  # the classifier alone is left out
    return network


def _kinetics_file() -> Path:
    """Torchvision's Kinetics-400 weights, from its cache or downloaded; the checksum is in the file's name."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / _KINETICS_URL.rsplit("/", 1)[1]
    checksum = path.stem.rsplit("-", 1)[1]
    if not path.exists():
        try:
            _probe(_KINETICS_URL)
            path.parent.mkdir(parents=True, exist_ok=True)
            with _socket_timeout(_PROBE_S):
                torch.hub.download_url_to_file(_KINETICS_URL, str(path), hash_prefix=checksum, progress=False)
        except (OSError, RuntimeError) as error:
            raise VtpError(f"weights kinetics400 cannot be had ({_first_line(error)}); {_WAYS_OUT}") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(checksum):
        raise CorruptError(f"weights {path} is damaged (sha256 {digest[:8]}, not {checksum}); delete it and run again")
    return path


def _probe(url: str) -> None:
    """Raise OSError unless the server answers soon.

    In a thread of its own: name look-ups obey no socket timeout, and each of a host's addresses has its own.
    """
    result: list[OSError | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PROBE_S):
                result.append(None)
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_S)
    if not result:
        raise TimeoutError(f"no answer from the server within {_PROBE_S:g} s")
    if result[0] is not None:
        raise result[0]


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _computes_in_bf16() -> bool:
    """Whether the processor has bf16 arithmetic; without it autocast is slower than fp32."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpuinfo.read_text().split())


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of a state dict's names and values: the same whether the weights were drawn or read from a file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Projector:
    """embeddings = (features − mean) · componentsᵀ / scale; one scale for all dimensions, no whitening."""

    mean: np.ndarray  # [D] float64
    components: np.ndarray  # [128, D] float64, orthonormal rows or zeros
    scale: float
    name: str

    def project(self, features: np.ndarray) -> np.ndarray:
        """features: [N, D] → [N, 128] float32. In float64, so that a row does not depend on its neighbours."""
        return (((features.astype(np.float64) - self.mean) @ self.components.T) / self.scale).astype(np.float32)

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for part in (self.mean, self.components, np.float64(self.scale)):
            digest.update(np.ascontiguousarray(part, np.float64).tobytes())
        return digest.hexdigest()


def fit_pca(features: np.ndarray, name: str = "pca") -> Projector:
    """Principal components of features [N, D]; the scale makes the root mean square of their embeddings one.

    Each component's largest loading is positive, so that the signs are the same everywhere. Where the features span
    fewer than 128 dimensions, the remaining components are zero.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(features))
    variances, vectors = variances[::-1][:EMBEDDING_DIM], vectors.T[::-1][:EMBEDDING_DIM]
    kept = variances > 1e-10 * max(variances[0], 1e-30)
    largest = np.abs(vectors).argmax(axis=1)
    signs = np.sign(vectors[np.arange(len(vectors)), largest])
    components = np.zeros((EMBEDDING_DIM, features.shape[1]))
    components[: len(vectors)] = vectors * signs[:, None] * kept[:, None]
    scale = float(np.sqrt(variances[kept].sum() / EMBEDDING_DIM)) if kept.any() else 1.0
    return Projector(features.mean(axis=0, dtype=np.float64), components, scale, name)


def random_projector(seed: int, feature_dim: int) -> Projector:
    """128 orthonormal directions drawn from the seed; neither centred nor scaled, as it sees no data."""
    gaussian = np.random.default_rng(seed).standard_normal((feature_dim, EMBEDDING_DIM))
    q, r = np.linalg.qr(gaussian)
    return Projector(np.zeros(feature_dim), (q * np.sign(np.diag(r))).T, 1.0, f"random:{seed}")


class Normalizer(nn.Module):
    """Centre embeddings [B, D] and divide each dimension by √(its variance + the mean variance).

    The few dimensions in which clips differ most come to about one, and the many small ones stay small: whitening would
    raise their noise to the same size, one global deviation would let the light in a scene drown all else.
    """

    def __init__(self, embedding_dim: int = EMBEDDING_DIM):
        super().__init__()
        self.register_buffer("mean", torch.zeros(embedding_dim))
        self.register_buffer("scale", torch.ones(embedding_dim))

    def fit(self, embeddings: np.ndarray) -> Normalizer:
        """Take mean and deviations from embeddings [N, D]."""
        variance = embeddings.var(0, dtype=np.float64)
        self.mean.copy_(torch.from_numpy(embeddings.mean(0, dtype=np.float64)))
        self.scale.copy_(torch.from_numpy(np.sqrt(np.maximum(variance + variance.mean(), 1e-12))))
        return self

    def forward(self, embeddings: Tensor) -> Tensor:
        return (embeddings - self.mean) / self.scale


class MLPEncoder(nn.Module):
    """Simulator states [B, 4] in [0, 1] → latents [B, 128]: 4, 256, 256, 128 and a layer norm."""

    def __init__(self, observation_size: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(observation_size, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, EMBEDDING_DIM),
            nn.LayerNorm(EMBEDDING_DIM),
        )

    def forward(self, observations: Tensor) -> Tensor:
        return self.net(2 * observations - 1)


class AuxiliaryHeads(nn.Module):
    """Self-supervised losses that train an encoder: predict the next latent from a latent and an action.

    Consistency is one minus the cosine between prediction and what came (SPR, arXiv 2007.05929, equation 2);
    InfoNCE asks to find it among the batch (CPC, arXiv 1807.03748, equation 4). Targets carry no gradient; cosines
    are taken with a floor on the norm, so both losses are always finite.
    """

    CONSISTENCY_WEIGHT = 0.1
    CONTRASTIVE_WEIGHT = 0.1
    TEMPERATURE = 0.1

    def __init__(self, latent_size: int, action_size: int):
        super().__init__()
        self.predictor = nn.Sequential(
            nn.Linear(latent_size + action_size, 256), nn.ReLU(), nn.Linear(256, latent_size)
        )

    def forward(self, latents: Tensor, actions: Tensor, next_latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """latents, next_latents: [B, Z], actions: [B, A] → (weighted loss, both losses by name)."""
        predicted = nn.functional.normalize(self.predictor(torch.cat([latents, actions], -1)), dim=-1, eps=1e-6)
        target = nn.functional.normalize(next_latents.detach(), dim=-1, eps=1e-6)
        consistency = 1 - (predicted * target).sum(-1).mean()
        logits = predicted @ target.T / self.TEMPERATURE  # (B, B)
        contrastive = nn.functional.cross_entropy(logits, torch.arange(len(logits)))
        loss = self.CONSISTENCY_WEIGHT * consistency + self.CONTRASTIVE_WEIGHT * contrastive
        return loss, {"consistency_loss": consistency.detach(), "contrastive_loss": contrastive.detach()}
