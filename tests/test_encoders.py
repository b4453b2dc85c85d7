import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from raising import raises
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.models.video import R3D_18_Weights, r3d_18
from transformers import TimesformerConfig, TimesformerForVideoClassification, TimesformerVideoProcessor

from pipeline import named_weights, synthetic
from pipeline.encoders import (
    Projector,
    RunningCentre,
    centre_videos,
    fit_learned,
    fit_pca,
    heads,
    load_encoder,
    moments,
    r3d,
    random_projector,
    weights,
)
from pipeline.encoders.fast.int8 import to_bytes
from pipeline.encoders.fast.winograd import FoldedConv, from_frames, to_frames, winograd_matrices
from pipeline.encoders.r3d import preprocess
from pipeline.errors import CorruptError, VtpError
from pipeline.synthetic import dynamics
from pipeline.tasks import load_task

NEEDS_VNNI = pytest.mark.skipif(not named_weights.computes_in_int8(), reason="this processor has no VNNI")
PRESET = R3D_18_Weights.KINETICS400_V1.transforms()


@pytest.fixture(scope="module")
def clips():
    """Three clips of large random squares; few and short, because R3D-18 is slow."""
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


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("int8", marks=NEEDS_VNNI)])
def test_features_do_not_depend_on_other_clips(clips, precision):
    encoder = load_encoder("r3d_18", "random:0", precision, batch_size=2)
    features = encoder.features(clips)
    order = [1, 2, 0]
    np.testing.assert_array_equal(encoder.features(clips[order]), features[order])
    np.testing.assert_array_equal(encoder.features(clips[2:]), features[2:])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", pytest.param("int8", marks=NEEDS_VNNI)])
def test_fast_arithmetic_is_close(clips, encoder, precision):
    exact = encoder.features(clips)
    rounded = load_encoder("r3d_18", "random:0", precision, batch_size=2).features(clips)
    cosine = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosine.min() > 0.999
    assert not np.array_equal(exact, rounded)


def test_random_weights_depend_only_on_the_seed(encoder):
    before = torch.random.get_rng_state()
    torch.rand(3)
    again = load_encoder("r3d_18", "random:0", "fp32")
    torch.random.set_rng_state(before)
    assert again.weights_sha256 == encoder.weights_sha256
    assert load_encoder("r3d_18", "random:1", "fp32").weights_sha256 != encoder.weights_sha256
    assert torch.equal(torch.random.get_rng_state(), before)


def test_precision_is_resolved(monkeypatch):
    monkeypatch.setattr(named_weights, "_processor_has", lambda *_: True)
    assert load_encoder("r3d_18", "random:0").precision == "int8"
    monkeypatch.setattr(named_weights, "computes_in_int8", lambda: False)
    assert load_encoder("r3d_18", "random:0").precision == "bf16"
    with raises("precision-unsupported"):
        load_encoder("r3d_18", "random:0", "int8")
    monkeypatch.setattr(named_weights, "computes_in_bf16", lambda: False)
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
    with raises("weights-missing"):
        load_encoder("r3d_18", str(tmp_path / "none.pt"))
    torch.save({"stem.0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with raises("weights-wrong") as caught:
        load_encoder("r3d_18", str(tmp_path / "other.pt"))
    assert "stem.0.weight" in str(caught.value)
    for noise in (b"noise", b"\x80\x04.", b"\x80\x02noise", b"PK\x03\x04noise"):
        (tmp_path / "noise.pt").write_bytes(noise)
        with raises("weights-damaged", CorruptError):
            load_encoder("r3d_18", str(tmp_path / "noise.pt"))
    torch.save({"run": time.sleep}, tmp_path / "code.pt")
    with raises("weights-damaged", CorruptError):
        load_encoder("r3d_18", str(tmp_path / "code.pt"))


@pytest.mark.parametrize("spec", ["random", "random:", "random:x", "random:-1"])
def test_a_seed_is_a_number(spec):
    with raises("seed-missing"):
        load_encoder("r3d_18", spec)


@pytest.fixture
def silent_server(monkeypatch, tmp_path):
    """Weights on a server that accepts the connection and never answers."""
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


def test_unavailable_weights(silent_server):
    with raises("weights-unavailable") as caught:
        load_encoder("r3d_18", "kinetics400")
    assert caught.value.exit_code == 2


def test_auto_falls_back_with_a_warning(silent_server, caplog):
    assert load_encoder("r3d_18", "auto", "fp32").weights == "random:0"
    assert "using random:0" in caplog.text


def test_a_damaged_download_is_not_used(silent_server, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/r3d_18-b3b3357e.pth").write_bytes(b"half of it")
    with raises("weights-damaged", CorruptError):
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


def test_random_directions_are_no_more_than_the_features():
    components = random_projector(3, 64).components
    np.testing.assert_allclose(components @ components.T, np.diag([1.0] * 64 + [0.0] * 64), atol=1e-12)


def test_random_projector_is_orthonormal_and_seeded():
    projector = random_projector(3, 512)
    np.testing.assert_allclose(projector.components @ projector.components.T, np.eye(128), atol=1e-12)
    assert projector.sha256 == random_projector(3, 512).sha256 != random_projector(4, 512).sha256
    assert projector.name == "random:3"


# TimeSformer


@pytest.fixture
def timesformer_folder(tmp_path):
    """A small TimeSformer with its classifier, saved by transformers."""
    config = TimesformerConfig(
        image_size=32, num_frames=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        TimesformerForVideoClassification(config).save_pretrained(tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture(scope="module")
def long_clips():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 128, 171, 3), dtype=np.uint8)


def test_timesformer_equals_transformers(timesformer_folder, long_clips):
    """Features are the inputs of its classifier for every fourth frame, preprocessed by transformers."""
    processor = TimesformerVideoProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.45] * 3, image_std=[0.225] * 3
    )
    videos = [torch.from_numpy(clip[::4]).permute(0, 3, 1, 2) for clip in long_clips]
    network = TimesformerForVideoClassification.from_pretrained(timesformer_folder).eval()
    seen = []
    network.classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        network(**processor(videos, return_tensors="pt"))
    encoder = load_encoder("timesformer_b", str(timesformer_folder), "fp32")
    features = encoder.features(long_clips)
    assert (features.shape, features.dtype, encoder.feature_dim) == ((3, 32), np.float32, 32)
    np.testing.assert_allclose(features, seen[0].numpy(), atol=1e-5)
    assert encoder.weights == str(timesformer_folder.resolve())
    assert "4 of a clip" in encoder.transform


def test_timesformer_has_no_int8(timesformer_folder):
    with raises("precision-unsupported"):
        load_encoder("timesformer_b", str(timesformer_folder), "int8")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_timesformer_features_do_not_depend_on_other_clips(timesformer_folder, long_clips, precision):
    encoder = load_encoder("timesformer_b", str(timesformer_folder), precision)
    features = encoder.features(long_clips)
    for order in ([1, 2, 0], [2], [1, 1]):
        np.testing.assert_array_equal(encoder.features(long_clips[order]), features[order])


@pytest.mark.slow
def test_timesformer_b_is_the_published_size():
    encoder = load_encoder("timesformer_b", "random:0", "bf16")
    assert encoder.feature_dim == 768
    assert encoder.frame_size == (224, 299)  # decoded at the size that it sees: nothing is enlarged
    assert encoder.transform.startswith("frames 224x299, 8 of a clip, shortest edge 224")


def test_timesformer_folder_states_its_own_normalisation(timesformer_folder, long_clips):
    before = load_encoder("timesformer_b", str(timesformer_folder), "fp32")
    (timesformer_folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    after = load_encoder("timesformer_b", str(timesformer_folder), "fp32")
    assert before.transform != after.transform
    assert "mean (0.1, 0.2, 0.3), std (0.225, 0.225, 0.225)" in after.transform
    assert not np.allclose(before.features(long_clips), after.features(long_clips))


def test_timesformer_needs_its_frames(timesformer_folder, long_clips):
    with raises("clips-short") as caught:
        load_encoder("timesformer_b", str(timesformer_folder), "fp32").features(long_clips[:, :3])
    assert "(3)" in str(caught.value) and "4 frames" in str(caught.value)


def spoil_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_layer(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({key: value for key, value in state.items() if "layer.1.attention" not in key}, path, {"format": "pt"})


def widen_the_config(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 64', '"intermediate_size": 128'))


def pickle_only(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "code", "named"),
    [
        (spoil_weights, CorruptError, "weights-damaged", ""),
        (drop_a_layer, CorruptError, "weights-incomplete", "encoder.layer.1.attention"),
        (widen_the_config, CorruptError, "weights-damaged", ""),
        (pickle_only, VtpError, "weights-incomplete", "model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), VtpError, "weights-incomplete", "config.json"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "vit"}'),
            VtpError, "weights-wrong", "'vit'",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), CorruptError, "weights-damaged", "config.json"),
    ],
)  # fmt: skip
def test_bad_timesformer_folders(timesformer_folder, spoil, error, code, named):
    spoil(timesformer_folder)
    with raises(code, error) as caught:
        load_encoder("timesformer_b", str(timesformer_folder), "fp32")
    assert type(caught.value) is error and named in str(caught.value)
    assert "pass --weights FOLDER" in str(caught.value)


def test_unavailable_timesformer_weights(monkeypatch, tmp_path):
    with raises("weights-missing"):
        load_encoder("timesformer_b", str(tmp_path / "none"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(weights, "PROBE_S", 0.5)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr("pipeline.encoders.timesformer.try_to_load_from_cache", lambda *args, **options: None)
        with raises("weights-unavailable") as caught:
            load_encoder("timesformer_b", "kinetics400")
    assert caught.value.exit_code == 2


# The fast R3D-18


def test_winograd_by_hand():
    inputs, filters, outputs = winograd_matrices()
    signal, taps = np.array([1.0, 2, 3, 4, 5, 6]), np.array([1.0, 10, 100])
    np.testing.assert_allclose(outputs @ ((filters @ taps) * (inputs @ signal)), [321, 432, 543, 654])
    for matrix in (inputs, outputs):  # else bf16 would compute another convolution
        assert torch.equal(torch.from_numpy(matrix).bfloat16().double(), torch.from_numpy(matrix))


@pytest.mark.parametrize(("clip_len", "tile"), [(8, 4), (4, 4), (6, 1)])
@pytest.mark.parametrize("residual", [False, True])
def test_folded_conv_equals_conv_norm_relu(clip_len, tile, residual):
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv, norm = torch.nn.Conv3d(16, 24, 3, padding=1, bias=False), torch.nn.BatchNorm3d(24).eval()
    for value in (norm.running_mean, norm.weight.data, norm.bias.data):
        value.normal_(0, 1, generator=generator)
    norm.running_var.uniform_(0.5, 2, generator=generator)
    clips = torch.randn(2, 16, clip_len, 6, 5, generator=generator).bfloat16()
    shortcut = torch.randn(2, 24, clip_len, 6, 5, generator=generator).bfloat16()
    frames = to_frames(clips)
    assert len(frames) == tile
    assert torch.equal(from_frames(frames), clips)
    with torch.inference_mode():
        result = FoldedConv(conv, norm).relu(frames, to_frames(shortcut) if residual else None)
        expected = norm(conv(clips.float())) + (shortcut.float() if residual else 0)
    error = from_frames(result).float() - expected.relu()
    assert error.norm() / expected.relu().norm() < 0.015  # a few roundings of 2^-9


def test_clips_of_any_length_have_fast_arithmetic():
    exact, fast = (load_encoder("r3d_18", "random:0", precision) for precision in ("fp32", "bf16"))
    for clip_len in (1, 6):
        clips = np.random.default_rng(0).integers(0, 256, (1, clip_len, 128, 171, 3), dtype=np.uint8)
        a, b = exact.features(clips)[0], fast.features(clips)[0]
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999


def test_bytes_are_255_steps_of_the_largest_value():
    given = torch.tensor([-3.0, 0.0, 1.0, 1.49, 1.51, 2.5, 3.5, 255.0]).reshape(1, 2, 1, 2, 2)
    for in_place in (False, True):
        values = 2 * given
        steps, scale = to_bytes(values, in_place=in_place)
        assert scale == 2.0
        assert (steps.dtype, steps.flatten().tolist()) == (torch.uint8, [0, 0, 1, 1, 2, 2, 4, 255])
        assert in_place or torch.equal(values, 2 * given.relu())
    nothing, _ = to_bytes(-given.abs())
    assert nothing.flatten().tolist() == [0] * 8


@pytest.mark.slow
@NEEDS_VNNI
def test_int8_takes_clips_of_any_brightness(long_clips):
    """Each clip is rounded by its own largest values, so a dark one is as close to torchvision as any."""
    exact, fast = (load_encoder("r3d_18", "random:0", precision) for precision in ("fp32", "int8"))
    black, white = np.zeros_like(long_clips[:1]), np.full_like(long_clips[:1], 255)
    clips = np.concatenate([long_clips[:1] // 8, black, white, 255 - long_clips[:1]])
    for a, b in zip(exact.features(clips), fast.features(clips), strict=True):
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999


@pytest.mark.slow
def test_fast_features_do_not_depend_on_other_clips_or_threads(long_clips):
    """Whole clips of several tiles: alone, at other positions of a pass, and with another number of threads."""
    threads = torch.get_num_threads()
    features = load_encoder("r3d_18", "random:0", "bf16").features(long_clips)
    try:
        torch.set_num_threads(3)
        encoder = load_encoder("r3d_18", "random:0", "bf16")
    finally:
        torch.set_num_threads(threads)
    for order in ([2, 0, 1], [1]):
        np.testing.assert_array_equal(encoder.features(long_clips[order]), features[order])


def test_the_encoder_keeps_the_threads_of_the_caller(clips, encoder):
    before = torch.get_num_threads()
    encoder.features(clips)
    assert torch.get_num_threads() == before


# Clips from the mean of their video


def test_centred_videos_by_hand():
    """The prior is a quarter of a clip at the training mean, 2; one of the videos has no clip."""
    embeddings = np.array([[1.0], [3.0], [10.0]], np.float32)
    centred = centre_videos(embeddings, np.array([0, 2, 2, 3]), np.array([2.0]))
    np.testing.assert_allclose(centred, [[-1.0], [1.0], [10 - 10.5 / 1.25]], rtol=1e-6)
    assert centred.dtype == np.float32


def test_a_shift_of_all_clips_of_a_video_is_removed():
    rng = np.random.default_rng(0)
    embeddings, shift = rng.normal(size=(20, 128)), 5 * rng.normal(size=128)
    as_it_is, shifted = (centre_videos(e, np.array([0, 20]), np.zeros(128)) for e in (embeddings, embeddings + shift))
    np.testing.assert_allclose(shifted - as_it_is, np.tile(shift * 0.25 / 20.25, (20, 1)), atol=1e-5)


def test_the_running_centre_ends_at_that_of_the_whole_video():
    """Each clip of two parallel videos is centred as the last one of its video so far."""
    videos, mean = np.random.default_rng(1).normal(size=(2, 5, 128)), np.ones(128)
    centre = RunningCentre(mean)
    for end in range(1, 6):
        expected = [centre_videos(clips[:end], np.array([0, end]), mean)[-1] for clips in videos]
        np.testing.assert_allclose(centre(videos[:, end - 1]), expected, atol=1e-6)


# The learned projector


def test_layer_norm_of_a_projector_by_hand():
    """Projected (3, 1, 2, 2, ...) about its mean of 2, over its deviation, times weight, plus bias."""
    components = np.zeros((128, 2))
    components[:, 1] = 2
    components[0, 0], components[1, 0] = 1, -1
    norm = np.stack([np.full(128, 3.0), np.full(128, 0.5)])
    projector = Projector(np.array([1.0, 0.0]), components, 1.0, "by hand", norm)
    (row,) = projector.project(np.array([[2.0, 1.0]], np.float32))
    deviation = np.sqrt(2 / 128 + 1e-5)
    np.testing.assert_allclose(row[:3], [3 / deviation + 0.5, -3 / deviation + 0.5, 0.5], rtol=1e-6)
    assert projector.sha256 != Projector(projector.mean, components, 1.0, "by hand").sha256


@pytest.mark.slow
def test_learned_projector_is_seeded_and_normalised():
    rng = np.random.default_rng(0)
    features = np.repeat(rng.standard_normal((10, 40)), 5, axis=0) + 0.1 * rng.standard_normal((50, 40))
    features[:, 3] = 7  # a dead feature
    features = features.astype(np.float32)
    state = torch.random.get_rng_state()
    projector = fit_learned(features, [25, 24, 1], seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert projector.sha256 == fit_learned(features, [25, 24, 1], seed=1).sha256
    assert projector.sha256 != fit_learned(features, [25, 24, 1], seed=2).sha256
    embeddings = projector.project(features)
    assert (embeddings.shape, embeddings.dtype) == ((50, 128), np.float32)
    assert np.sqrt((embeddings.astype(float) ** 2).mean()) == pytest.approx(1, abs=0.3)
    np.testing.assert_array_equal(projector.project(features[7:8]), embeddings[7:8])


def test_learned_projector_needs_successors():
    with raises("projector-unusable"):
        fit_learned(np.zeros((3, 512), np.float32), [1, 1, 1])


VIDEOS, VIDEO_CLIPS, TRAIN_VIDEOS, LABELLED_VIDEOS = 24, 10, 16, 4


@pytest.fixture(scope="module")
def rendered():
    """Features [240, 512] and contexts [240] of the clips of 24 rendered videos, each in another kitchen."""
    names, clips, contexts = load_task("dishwashing").in_scenario("mixed").context_names, [], []
    for video in range(VIDEOS):
        rng = np.random.default_rng([0, video])
        scene, context = synthetic.sample_scene("dishes", rng), dynamics.initial_context(len(names), 1, rng)
        for _ in range(VIDEO_CLIPS):
            speed, care = rng.random(2)
            clip = synthetic.render_clip(scene, names[context[0]], speed, care, rng)
            clips.append(clip[::4])  # four frames show the dish, and encode four times as fast
            contexts.append(int(context[0]))
            context = dynamics.next_context(len(names), context, rng)
    return load_encoder("r3d_18", "random:0").features(np.stack(clips)), np.array(contexts)


@pytest.mark.slow
def test_learned_beats_random_on_a_probe(rendered):
    """A probe on each names the dish in unseen kitchens from a few labelled videos; projectors use no labels."""
    features, contexts = rendered
    video = np.arange(len(features)) // VIDEO_CLIPS
    held_out, trained_on = video >= TRAIN_VIDEOS, video < TRAIN_VIDEOS

    def accuracy(projector):
        """Mean over eight draws of the labelled videos."""
        embeddings, scores = projector.project(features), []
        for draw in range(8):
            chosen = np.random.default_rng(draw).permutation(TRAIN_VIDEOS)[:LABELLED_VIDEOS]
            labelled = np.isin(video, chosen)
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000))
            probe.fit(embeddings[labelled], contexts[labelled])
            scores.append(probe.score(embeddings[held_out], contexts[held_out]))
        return np.mean(scores)

    lengths = [VIDEO_CLIPS] * TRAIN_VIDEOS
    learned = [accuracy(fit_learned(features[trained_on], lengths, seed=seed)) for seed in range(3)]
    random = [accuracy(random_projector(seed, 512)) for seed in range(3)]
    assert min(learned) > max(random)
    assert np.mean(learned) > np.mean(random) + 0.02


HASHES = """
import hashlib
import numpy as np
from pipeline import encoders
features = (np.random.default_rng(0).standard_normal((1500, 300)) * np.linspace(1, 5, 300)).astype(np.float32)
fitted = [encoders.fit_projector(name, features, np.full(15, 100)) for name in encoders.FITTED]
for projector in [*fitted, encoders.random_projector(0, 300)]:
    print(projector.sha256, hashlib.sha256(projector.project(features).tobytes()).hexdigest())
"""


def test_projectors_and_embeddings_do_not_depend_on_the_number_of_threads():
    def hashes(threads):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        env = {**os.environ, **dict.fromkeys(names, str(threads))}
        return subprocess.run(
            [sys.executable, "-c", HASHES], env=env, capture_output=True, text=True, check=True
        ).stdout

    one, two, four = map(hashes, (1, 2, 4))
    assert one.count("\n") == 3
    assert one == two == four


def test_moments_are_those_of_the_rows_whatever_the_block(monkeypatch):
    rng = np.random.default_rng(0)
    embeddings, rows = 3 + rng.standard_normal((50, 4)).astype(np.float32), np.arange(0, 50, 2)
    for block in (100, 7):
        monkeypatch.setattr(heads, "BLOCK", block)
        mean, variance = moments(embeddings, rows)
        np.testing.assert_allclose(mean, embeddings[rows].mean(0, dtype=float), rtol=1e-14)
        np.testing.assert_allclose(variance, embeddings[rows].var(0, dtype=float), rtol=1e-14)
