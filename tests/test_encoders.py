import socket
import time

import numpy as np
import pytest
import torch
from torchvision.models.video import R3D_18_Weights, r3d_18

from pipeline.encoders import encoder as encoder_module
from pipeline.encoders import fit_pca, load_encoder, r3d, random_projector, weights
from pipeline.encoders.r3d import preprocess
from pipeline.errors import CorruptError, VtpError

PRESET = R3D_18_Weights.KINETICS400_V1.transforms()


@pytest.fixture(scope="module")
def clips():
    """Three clips of large random squares; few and short, as an R3D-18 is no toy."""
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 11, 3), dtype=np.uint8)
    return coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, :, :171]  # [3, 4, 128, 171, 3]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("r3d_18", "random:0", "fp32", batch_size=2)


# The encoder


@pytest.mark.parametrize("size", [(128, 171), (90, 120)])
def test_preprocess_equals_the_preset(size):
    clips = np.random.default_rng(0).integers(0, 256, (2, 4, *size, 3), dtype=np.uint8)
    expected = torch.stack([PRESET(torch.from_numpy(clip).permute(0, 3, 1, 2)) for clip in clips])
    assert expected.shape == (2, 3, 4, 112, 112)
    assert torch.equal(preprocess(torch.from_numpy(clips)), expected)


def test_features_equal_torchvision(clips, encoder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = r3d_18(weights=None).eval()
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = network(PRESET(torch.from_numpy(clips).permute(0, 1, 4, 2, 3))).numpy()
    features = encoder.features(clips)
    assert (features.shape, features.dtype) == ((3, 512), np.float32)
    assert np.abs(features - expected).max() <= 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_do_not_depend_on_company(clips, precision):
    encoder = load_encoder("r3d_18", "random:0", precision, batch_size=2)
    features = encoder.features(clips)
    order = [1, 2, 0]
    np.testing.assert_array_equal(encoder.features(clips[order]), features[order])
    np.testing.assert_array_equal(encoder.features(clips[2:]), features[2:])


def test_bf16_is_close(clips, encoder):
    exact = encoder.features(clips)
    rounded = load_encoder("r3d_18", "random:0", "bf16", batch_size=2).features(clips)
    cosine = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosine.min() > 0.999
    assert not np.array_equal(exact, rounded)


def test_random_weights_come_from_the_seed_alone(encoder):
    before = torch.random.get_rng_state()
    torch.rand(3)
    again = load_encoder("r3d_18", "random:0", "fp32")
    torch.random.set_rng_state(before)
    assert again.weights_sha256 == encoder.weights_sha256
    assert load_encoder("r3d_18", "random:1", "fp32").weights_sha256 != encoder.weights_sha256
    assert torch.equal(torch.random.get_rng_state(), before)


def test_precision_is_resolved(monkeypatch):
    monkeypatch.setattr(encoder_module, "_computes_in_bf16", lambda: True)
    assert load_encoder("r3d_18", "random:0").precision == "bf16"
    monkeypatch.setattr(encoder_module, "_computes_in_bf16", lambda: False)
    assert load_encoder("r3d_18", "random:0").precision == "fp32"


# Weights


def test_a_state_dict_file_gives_the_same_encoder(tmp_path, encoder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = r3d_18(weights=None).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    loaded = load_encoder("r3d_18", str(tmp_path / "weights.pt"), "fp32")
    assert loaded.weights_sha256 == encoder.weights_sha256
    assert loaded.weights == str((tmp_path / "weights.pt").resolve())


def test_bad_weight_files(tmp_path):
    with pytest.raises(VtpError, match=r"is not a file; pass --weights FILE .* or --weights random:SEED"):
        load_encoder("r3d_18", str(tmp_path / "none.pt"))
    torch.save({"stem.0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(VtpError, match=r"is not an R3D-18: \d+ tensors differ, such as stem.0.weight"):
        load_encoder("r3d_18", str(tmp_path / "other.pt"))
    (tmp_path / "noise.pt").write_bytes(b"noise")
    with pytest.raises(CorruptError, match="cannot be loaded safely"):
        load_encoder("r3d_18", str(tmp_path / "noise.pt"))
    torch.save({"run": time.sleep}, tmp_path / "code.pt")
    with pytest.raises(CorruptError, match="cannot be loaded safely"):
        load_encoder("r3d_18", str(tmp_path / "code.pt"))


@pytest.mark.parametrize("spec", ["random", "random:", "random:x", "random:-1"])
def test_a_seed_is_a_number(spec):
    with pytest.raises(VtpError, match="names no seed; write random:SEED"):
        load_encoder("r3d_18", spec)


@pytest.fixture
def silent_server(monkeypatch, tmp_path):
    """Weights that lie behind a server which takes the connection and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{server.getsockname()[1]}/r3d_18-b3b3357e.pth"
    monkeypatch.setattr(r3d, "_KINETICS_URL", url)
    monkeypatch.setattr(weights, "PROBE_S", 0.5)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    yield
    torch.hub.set_dir(before)
    server.close()


def test_weights_that_cannot_be_had(silent_server):
    start = time.monotonic()
    with pytest.raises(VtpError, match=r"kinetics400 cannot be had .*; pass --weights FILE .* random:SEED") as caught:
        load_encoder("r3d_18", "kinetics400")
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_auto_falls_back_and_says_so(silent_server, caplog):
    assert load_encoder("r3d_18", "auto", "fp32").weights == "random:0"
    assert "using random:0" in caplog.text


def test_a_damaged_download_is_not_used(silent_server, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/r3d_18-b3b3357e.pth").write_bytes(b"half of it")
    with pytest.raises(CorruptError, match=r"is damaged .*; delete it and run again"):
        load_encoder("r3d_18", "kinetics400")


# Projectors


def test_pca_by_hand():
    # variances 9, 4 and 0 along the axes: sum 13, spread over 128 dimensions
    features = np.array([[3, 2, 5], [3, -2, 5], [-3, 2, 5], [-3, -2, 5]], np.float32)
    projector = fit_pca(features)
    assert projector.mean.tolist() == [0, 0, 5]
    np.testing.assert_allclose(projector.components[:3], [[1, 0, 0], [0, 1, 0], [0, 0, 0]], atol=1e-12)
    assert projector.scale == pytest.approx(np.sqrt(13 / 128))
    embeddings = projector.project(features)
    assert (embeddings.shape, embeddings.dtype) == ((4, 128), np.float32)
    np.testing.assert_allclose(embeddings[0, :3], np.array([3, 2, 0]) / np.sqrt(13 / 128), rtol=1e-6)
    assert not embeddings[:, 2:].any()


def test_pca_properties():
    rng = np.random.default_rng(0)
    features = (rng.standard_normal((300, 200)) * np.linspace(5, 0.1, 200)).astype(np.float32)
    projector = fit_pca(features)
    embeddings = projector.project(features)
    np.testing.assert_allclose(projector.components @ projector.components.T, np.eye(128), atol=1e-9)
    assert np.sqrt((embeddings.astype(float) ** 2).mean()) == pytest.approx(1, rel=1e-5)
    variances = embeddings.var(axis=0)
    assert (np.diff(variances) < 1e-6).all()  # not whitened: the first stays the largest
    assert (projector.components[np.arange(128), np.abs(projector.components).argmax(1)] > 0).all()
    flipped = fit_pca(features[::-1])
    np.testing.assert_allclose(flipped.components, projector.components, atol=1e-6)
    np.testing.assert_array_equal(projector.project(features[7:8]), embeddings[7:8])


def test_pca_of_one_clip_is_finite():
    assert not fit_pca(np.ones((1, 512), np.float32)).project(np.ones((1, 512), np.float32)).any()


def test_random_projector_is_orthonormal_and_seeded():
    projector = random_projector(3, 512)
    np.testing.assert_allclose(projector.components @ projector.components.T, np.eye(128), atol=1e-12)
    assert projector.sha256 == random_projector(3, 512).sha256 != random_projector(4, 512).sha256
    assert projector.name == "random:3"
