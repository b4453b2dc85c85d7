"""Passes of a GPU: their logic on a processor, placement on the device "meta", and the rest where there is a GPU."""

import numpy as np
import pytest
import torch
from raising import raises
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.video import R3D_18_Weights
from transformers import TimesformerConfig, TimesformerModel

from pipeline import devices
from pipeline.encoders import efficientnet, encoder, gpu_passes, load_encoder, r3d, timesformer
from pipeline.encoders.backbone import Backbone
from pipeline.encoders.folding import fold_norms
from pipeline.encoders.gpu_passes import GpuPasses, captured, pass_clips

CPU, META = torch.device("cpu"), torch.device("meta")
BACKBONES = ["r3d_18", "efficientnet_lite0", "timesformer_b"]


def random_clips(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def seed_networks(name):
    """A network with random weights; of TimeSformer a small one."""
    if name == "timesformer_b":
        config = TimesformerConfig(
            image_size=32, num_frames=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2
        )
        return TimesformerModel(config).eval().requires_grad_(False)
    return {"r3d_18": r3d, "efficientnet_lite0": efficientnet}[name].load_network("random:0")[0]


def on_device(name, precision, device):
    module = {"r3d_18": r3d, "efficientnet_lite0": efficientnet, "timesformer_b": timesformer}[name]
    return module.on_device(seed_networks(name), precision, device)


# Without a GPU


@pytest.mark.parametrize(
    ("clip_shape", "expected"),
    [
        ((16, 128, 171, 3), 64), ((4, 128, 171, 3), 64), ((32, 128, 171, 3), 32), ((64, 256, 342, 3), 4),
        ((16, 224, 299, 3), 20), ((256, 1080, 1920, 3), 1),
    ],
)  # fmt: skip
def test_a_pass_has_fewer_clips_if_they_are_larger(clip_shape, expected):
    assert pass_clips(clip_shape) == expected


@pytest.fixture
def passes_of_three(monkeypatch):
    """Passes of a forward that sums the clip, and the first pixel of every clip in each."""
    monkeypatch.setattr(gpu_passes, "PASS_CLIPS", 3)
    seen = []

    def forward(clips):
        seen.append(clips[:, 0, 0, 0, 0].tolist())
        return clips.flatten(1).float().sum(1, keepdim=True)

    return GpuPasses(forward, (2, 1, 1, 3), CPU, is_capturable=True), seen


def test_every_pass_is_full_and_features_are_in_order(passes_of_three):
    """Two buffers in turn: the last pass has clip 6 and, behind it, those of two passes before."""
    passes, seen = passes_of_three
    clips = torch.arange(7, dtype=torch.uint8)[:, None, None, None, None].expand(7, 2, 1, 1, 3)
    features = passes.features(clips)
    assert features.tolist() == [[0], [6], [12], [18], [24], [30], [36]]
    assert seen == [[0, 1, 2], [3, 4, 5], [6, 1, 2]]
    assert passes.features(clips[4:5]).tolist() == [[24]] and seen[-1] == [4, 1, 2]


def test_earlier_features_stay_when_others_are_computed(passes_of_three):
    passes, _ = passes_of_three
    first = passes.features(torch.full((3, 2, 1, 1, 3), 1, dtype=torch.uint8))
    passes.features(torch.full((6, 2, 1, 1, 3), 2, dtype=torch.uint8))
    assert first.tolist() == [[6], [6], [6]]


def test_an_encoder_fed_as_a_gpu_is_gives_the_features_of_the_processor(monkeypatch):
    """Passes of two, as on a processor, then the same bits; clips of another shape have new buffers."""
    monkeypatch.setattr(gpu_passes, "PASS_CLIPS", 2)
    loaded = load_encoder("efficientnet_lite0", "random:0", "fp32", device="cpu")
    for clips in (random_clips(5, 4, 128, 171, 3), random_clips(1, 6, 128, 171, 3)):
        np.testing.assert_array_equal(loaded._on_gpu(torch.from_numpy(clips)).numpy(), loaded.features(clips))


def test_too_little_memory_of_a_gpu_is_one_line():
    def forward(clips):
        raise torch.OutOfMemoryError("CUDA out of memory")

    backbone = Backbone("b", 1, (128, 171), 1, "", "", "", forward)
    loaded = encoder.Encoder(backbone, device=CPU, precision="fp32", batch_size=8)
    with raises("gpu-memory") as caught:
        loaded._on_gpu(torch.zeros(1, 32, 128, 171, 3, dtype=torch.uint8))
    assert "too little memory for 32 clips of 32 frames" in str(caught.value)


class OnlyOn(TorchDispatchMode):
    """Fails at an operation that reads or makes a tensor on another device."""

    def __init__(self, device):
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs, found)) if isinstance(value, torch.Tensor)]
        assert all(tensor.device == self.device for tensor in tensors), f"{function} is not on {self.device} alone"
        self.count += 1
        return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("r3d_18", (128, 171)), ("r3d_18", (90, 120)), ("efficientnet_lite0", (128, 171)), ("timesformer_b", (32, 42)),
        ("timesformer_b", (128, 171)),
    ],
)  # fmt: skip
def test_a_forward_stays_on_its_device_and_never_waits_for_it(name, size, precision):
    """As a CUDA graph needs it. On `meta` there are no values to wait for."""
    forward = on_device(name, precision, META)
    clips = torch.zeros(2, 8, *size, 3, dtype=torch.uint8, device=META)
    with torch.inference_mode(), OnlyOn(META) as mode:
        features = forward(clips)
    assert mode.count > 20
    assert (features.device, features.dtype, len(features)) == (META, torch.float32, 2)


def test_the_check_of_devices_finds_a_copy_from_the_host():
    with pytest.raises(AssertionError, match="is not on meta alone"), OnlyOn(META):
        torch.zeros(3, device=META)[torch.arange(2)]


@pytest.mark.parametrize("name", ["r3d_18", "efficientnet_lite0"])
def test_folded_norms_give_the_same_features(name):
    network = seed_networks(name)
    generator = torch.Generator().manual_seed(0)
    norms = [one for one in network.modules() if isinstance(one, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d)]
    for norm in norms:
        for values, low, high in [
            (norm.running_mean, -0.2, 0.2), (norm.running_var, 0.5, 2), (norm.weight, 0.5, 1.5), (norm.bias, -0.2, 0.2),
        ]:  # fmt: skip
            values.uniform_(low, high, generator=generator)
    pixels = torch.randn(1, 3, *([4] if name == "r3d_18" else []), 64, 64, generator=generator)
    with torch.inference_mode():
        expected = network(pixels)
        found = fold_norms(network)(pixels)
    assert len(norms) > 10
    assert not any(isinstance(one, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d) for one in network.modules())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [(128, 171), (90, 120)])
def test_pixels_of_a_gpu_are_those_of_the_preset(size):
    clips = torch.from_numpy(random_clips(2, 4, *size, 3))
    expected = R3D_18_Weights.KINETICS400_V1.transforms()(clips.permute(0, 1, 4, 2, 3))
    found = r3d.FusedPixels(CPU, torch.float32)(r3d.crop(clips))
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert (found - expected).abs().max() <= 1e-6
    rounded = r3d.FusedPixels(CPU, torch.bfloat16)(r3d.crop(clips))
    assert rounded.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(rounded, found.bfloat16())


def test_timesformer_does_not_resize_frames_of_its_size():
    frames = torch.from_numpy(random_clips(1, 4, 32, 42, 3))
    resized = torch.nn.functional.interpolate(frames[0].permute(0, 3, 1, 2), (32, 42), mode="bilinear", antialias=True)
    assert torch.equal(timesformer.preprocess(frames, num_frames=4, size=32)[0], resized[..., 5:37].float() / 255)


@pytest.fixture
def a_card(monkeypatch):
    """A GPU by name only."""
    card = torch.device("cuda", 0)
    monkeypatch.setattr(devices, "choose", lambda name: CPU if name == "cpu" else card)
    monkeypatch.setattr(devices, "name_of", lambda device: "a card" if device == card else device.type)
    return card


def test_batches_on_a_gpu_are_whole_passes(a_card):
    backbone = Backbone("b", 1, (128, 171), 1, "", "", "", lambda clips: clips)
    sizes = {
        (batch_size, clip_len): encoder.Encoder(
            backbone, device=a_card, precision="fp32", batch_size=batch_size, clip_len=clip_len
        ).batch_size
        for batch_size, clip_len in [(8, None), (128, 16), (129, 16), (8, 32), (100, 32)]
    }
    assert sizes == {(8, None): 128, (128, 16): 128, (129, 16): 192, (8, 32): 64, (100, 32): 128}


def test_a_precision_that_the_device_lacks(a_card, monkeypatch, caplog):
    """Asked for a GPU it is refused, else the processor computes in it, and says so."""
    monkeypatch.setattr(encoder, "_gpu_computes_in_bf16", lambda: False)
    with raises("precision-unsupported") as caught:
        load_encoder("r3d_18", "random:0", "bf16", device="cuda")
    assert "a card does not compute in bf16; use fp32 or auto" in str(caught.value)
    assert load_encoder("r3d_18", "random:0", "bf16").device == "cpu"
    assert "a card does not compute in bf16; encoding on the processor" in caplog.text
    with raises("precision-unsupported") as caught:
        load_encoder("r3d_18", "random:0", "int8", device="cuda:1")
    assert "precision int8 is for processors, not for --device cuda:1" in str(caught.value)


# On a GPU


@pytest.fixture(scope="module")
def many_clips():
    """Clips of coarse squares, more than a pass of 64."""
    return random_clips(130, 16, 8, 11, 3).repeat(16, axis=2).repeat(16, axis=3)[:, :, :, :171]


def cosines(one, other):
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", BACKBONES)
def test_features_do_not_depend_on_company_place_or_padding(name, precision, many_clips):
    loaded = load_encoder(name, "random:0", precision, device="cuda")
    features = loaded.features(many_clips)
    order = np.random.default_rng(1).permutation(len(many_clips))
    np.testing.assert_array_equal(loaded.features(many_clips[order]), features[order])
    for rows in (slice(0, 1), slice(63, 66), slice(129, 130), slice(1, 64)):
        np.testing.assert_array_equal(loaded.features(many_clips[rows]), features[rows])
    again = load_encoder(name, "random:0", precision, device="cuda", batch_size=100)
    np.testing.assert_array_equal(again.features(many_clips[:70]), features[:70])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_captured_forward_equals_the_forward(name, precision, many_clips):
    card = devices.choose("cuda")
    forward, clips = on_device(name, precision, card), torch.from_numpy(many_clips[:6]).to(card)
    with torch.inference_mode():
        replay = captured(forward, torch.zeros_like(clips[:3]))
        for part in clips.split(3):
            assert torch.equal(replay(part), forward(part))


@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKBONES)
def test_a_gpu_computes_the_features_of_the_processor(name, many_clips):
    """The same weights and clips; TimeSformer's frames are resized in other steps, to within a level.

    On a processor bf16 keeps cosines of 0.99999 of R3D-18, 0.9999 of the others.
    """
    clips = many_clips[:3]
    expected = load_encoder(name, "random:0", "fp32", device="cpu").features(clips)
    exact = load_encoder(name, "random:0", "fp32", device="cuda").features(clips)
    if name != "timesformer_b":
        np.testing.assert_allclose(exact, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert cosines(exact, expected).min() >= 0.99999
    least = 0.9995 if name == "timesformer_b" else 0.9999
    assert cosines(load_encoder(name, "random:0", "bf16", device="cuda").features(clips), exact).min() >= least


@pytest.mark.gpu
def test_clips_of_another_shape_have_passes_of_their_own(many_clips):
    loaded = load_encoder("r3d_18", "random:0", device="cuda")
    assert loaded.device == torch.cuda.get_device_name() and loaded.batch_size == 128
    long = loaded.features(many_clips[:2])
    short = loaded.features(many_clips[:2, :8])
    assert not np.array_equal(long, short)
    np.testing.assert_array_equal(loaded.features(many_clips[:2]), long)
