"""R3D-18 and its projector as one module, from uint8 clips to latents, with trainable last layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.encoders import weights as source
from pipeline.encoders.encoder import PASS_CLIPS
from pipeline.encoders.heads import EMBEDDING_DIM, Normalizer
from pipeline.encoders.projectors import NORM_EPS, Projector
from pipeline.named_weights import check_encoder

PASS_CLIPS_GPU = 64
CROP, RESIZED = 112, (128, 171)  # of R3D-18's preset: the crop, and the frames that it is cut from


def resized(frame_size: int) -> tuple[int, int]:
    """Height and width of frames whose centre crop of `frame_size` covers the same view as the preset's crop of 112."""
    height, width = (round(side * frame_size / CROP) for side in RESIZED)
    return height, width


def centre_crop(frames: np.ndarray, frame_size: int) -> np.ndarray:
    """frames: [B, T, H, W, 3] → [B, T, frame_size, frame_size, 3], as in torchvision: half pixels round to even."""
    top, left = (round((side - frame_size) / 2) for side in frames.shape[2:4])
    return frames[:, :, top : top + frame_size, left : left + frame_size]


class Pixels(nn.Module):
    """Crops [B, T, S, S, 3] uint8 → [B, 3, T, S, S] float32, normalised by the mean and deviation of each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1, 1), persistent=False)

    def forward(self, crops: Tensor) -> Tensor:
        clips = (crops.permute(0, 4, 1, 2, 3).float() / 255 - self.mean) / self.std
        return clips.contiguous(memory_format=torch.channels_last_3d)


class ClipEncoder(nn.Module):
    """Clips, or their embeddings, → latents [B, 128]: R3D-18 in fp32, the extraction's projector, a `Normalizer`.

    `layers` is the first layer to fine-tune: projector, layer4, layer3, or all; later layers are fine-tuned too.
    Earlier layers are frozen, so they are not in the state; the hash of the weights identifies them. Only `inputs`, the
    input of the first trained layer, needs to be kept per clip: the crops if all layers are trained, else activations
    of the frozen layers. Batch norm keeps its loaded statistics.
    """

    def __init__(self, weights: str, projector: Projector, *, layers: str, frame_size: int):
        from pipeline.encoders import r3d  # torchvision takes seconds to import

        super().__init__()
        check_encoder("r3d_18", weights, "fp32")
        network, self.weights = r3d.load_network(weights)
        self.weights_sha256 = source.state_sha256(network.state_dict())
        self.layers, self.frame_size = layers, frame_size
        stages = OrderedDict(
            pixels=Pixels(r3d.MEAN, r3d.STD),
            stem=network.stem,
            layer1=network.layer1,
            layer2=network.layer2,
            layer3=network.layer3,
            layer4=network.layer4,
            pool=nn.Sequential(network.avgpool, nn.Flatten()),
            projector=_projection(projector),
        )
        first = list(stages).index("pixels" if layers == "all" else layers)
        self._frozen = list(stages.values())[:first]  # a list, which hides them from state and optimisers
        self.learning = nn.Sequential(OrderedDict(list(stages.items())[first:])).requires_grad_(True)
        self.normalizer = Normalizer()
        self.eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClipEncoder:
        for stage in self._frozen:  # they move to a device with the others
            stage._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> ClipEncoder:
        return super().train(False)

    def fit(self, embeddings: np.ndarray) -> None:
        """Fit the normaliser to embeddings [N, 128]."""
        self.normalizer.fit(embeddings)

    def forward(self, observations: Tensor) -> Tensor:
        """observations: embeddings [B, 128], which are only normalised, or `inputs` → [B, 128]."""
        if observations.shape[1:] != (EMBEDDING_DIM,):
            with torch.autocast("cpu", enabled=False):  # where updates use bf16 for the policy's layers only
                observations = self.embed(observations)
        return self.normalizer(observations)

    def embed(self, inputs: Tensor) -> Tensor:
        """Inputs of the first trained layer [B, ...] → embeddings [B, 128].

        If all layers are trained, passes of two clips are recomputed in the backward pass, because a clip of 16 frames
        of 112 would need 170 MB of activations; from layer3 on it needs 12 MB, from layer4 on 3 MB. A GPU does all
        clips in one pass.
        """
        if inputs.is_cuda and inputs.ndim == 5 and inputs.is_floating_point():
            inputs = inputs.contiguous(memory_format=torch.channels_last_3d)
        if self.layers != "all" or (inputs.is_cuda and torch.is_grad_enabled()):
            return self.learning(inputs)
        if not torch.is_grad_enabled():
            return _in_passes(self.learning, inputs)
        return _in_passes(lambda clips: checkpoint(self.learning, clips, use_reentrant=False), inputs)

    @torch.no_grad()
    def inputs(self, crops: Tensor) -> Tensor:
        """Crops [B, T, S, S, 3] uint8 → inputs of the first trained layer [B, ...]."""

        def frozen(clips: Tensor) -> Tensor:
            for stage in self._frozen:
                clips = stage(clips)
            return clips.contiguous()

        return _in_passes(frozen, crops)

    @torch.no_grad()
    def see(self, frames: np.ndarray) -> np.ndarray:
        """Decoded frames [B, T, *resized(frame_size), 3] uint8 → embeddings [B, 128]."""
        crops = torch.from_numpy(centre_crop(frames, self.frame_size)).to(self.normalizer.mean.device)
        return self.embed(self.inputs(crops)).cpu().numpy()


def _in_passes(function: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
    size = PASS_CLIPS_GPU if clips.is_cuda else PASS_CLIPS
    return torch.cat([function(part) for part in clips.split(size)])


def _projection(projector: Projector) -> nn.Module:
    """The projector as layers: features [B, D] → embeddings [B, 128]."""
    with torch.random.fork_rng(devices=[]):  # the random weights are overwritten
        linear = nn.Linear(projector.components.shape[1], EMBEDDING_DIM)
    weight = projector.components / projector.scale
    modules: list[nn.Module] = [linear]
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(-weight @ projector.mean))
        if projector.norm is not None:
            norm = nn.LayerNorm(EMBEDDING_DIM, eps=NORM_EPS)
            norm.weight.copy_(torch.from_numpy(projector.norm[0]))
            norm.bias.copy_(torch.from_numpy(projector.norm[1]))
            modules.append(norm)
    return nn.Sequential(*modules)
