"""Transformers models as encoders: tiny ones of the published classes against the library's own call."""

import json
import shutil
import socket

import numpy as np
import pytest
import torch
import transformers
from raising import raises
from transformers import AutoImageProcessor, AutoModel, AutoVideoProcessor

from pipeline import hf_models
from pipeline.config import ExtractConfig
from pipeline.encoders import load_encoder, weights
from pipeline.encoders.frames import over_time
from pipeline.errors import CorruptError, VtpError

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = SMALL | {
    "vocab_size": 60,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
SHORTEST = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
VIDEO = {
    "VJEPA2": (
        {
            "crop_size": 32, "frames_per_clip": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1,
            "pred_num_mask_tokens": 1,
        },
        lambda: transformers.VJEPA2VideoProcessor(crop_size=32),
    ),
    "VideoMAE": (SMALL | {"image_size": 32, "num_frames": 4}, lambda: transformers.VideoMAEImageProcessor(**SHORTEST)),
    "Vivit": (
        SMALL | {"image_size": 32, "num_frames": 4, "tubelet_size": [2, 16, 16]},
        lambda: transformers.VivitImageProcessor(**SHORTEST),
    ),
    "Timesformer": (
        SMALL | {"image_size": 32, "num_frames": 4}, lambda: transformers.VideoMAEImageProcessor(**SHORTEST)
    ),
    "XCLIP": (
        {
            "text_config": TEXT, "projection_dim": 24, "prompt_num_attention_heads": 2,
            "vision_config": SMALL
            | {"image_size": 32, "patch_size": 16, "num_frames": 4, "mit_hidden_size": 24, "mit_num_attention_heads": 2,
               "mit_num_hidden_layers": 1, "mit_intermediate_size": 32},
        },
        lambda: transformers.CLIPImageProcessor(**SHORTEST),
    ),
    "VideoPrismVision": (
        {
            "image_size": 32, "num_frames": 4, "tubelet_size": [1, 16, 16], "hidden_size": 32,
            "num_spatial_layers": 2, "num_temporal_layers": 1, "num_attention_heads": 2, "intermediate_size": 48,
        },
        lambda: transformers.LlavaOnevisionVideoProcessor(size={"height": 32, "width": 32}),
    ),
}  # fmt: skip
IMAGE = {
    "Dinov2": (SMALL | {"image_size": 32, "patch_size": 16}, lambda: transformers.BitImageProcessor(**SHORTEST)),
    "DINOv3ViT": (
        SMALL | {"image_size": 32, "patch_size": 16},
        lambda: transformers.DINOv3ViTImageProcessor(size={"height": 32, "width": 32}),
    ),
    "Siglip": (
        {"text_config": TEXT, "vision_config": SMALL | {"image_size": 32, "patch_size": 16}},
        lambda: transformers.SiglipImageProcessor(size={"height": 32, "width": 32}),
    ),
    "Siglip2": (
        {"text_config": TEXT, "vision_config": SMALL | {"num_patches": 16, "patch_size": 16}},
        lambda: transformers.Siglip2ImageProcessor(patch_size=16, max_num_patches=16),
    ),
    "CLIP": (
        {"text_config": TEXT, "projection_dim": 24, "vision_config": SMALL | {"image_size": 32, "patch_size": 16}},
        lambda: transformers.CLIPImageProcessor(**SHORTEST),
    ),
    "CLIPVision": (SMALL | {"image_size": 32, "patch_size": 16}, lambda: transformers.CLIPImageProcessor(**SHORTEST)),
    "ResNet": (
        {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"},
        lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 32}),
    ),
}


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (3, 8, 40, 53, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a small model by its class, saved once by the library."""
    folders = {}

    def folder(name):
        if name not in folders:
            config, processor = (VIDEO | IMAGE)[name]
            kind = getattr(transformers, f"{name}Model")
            folders[name] = tmp_path_factory.mktemp(name)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                network = kind(kind.config_class(**config))
                for tensor in network.parameters():  # published ones are no zeros; new pooling queries may be
                    torch.nn.init.normal_(tensor, std=0.1)
            network.save_pretrained(folders[name])
            processor().save_pretrained(folders[name])
        return folders[name]

    return folder


def pooled_by_hand(output):
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)


@torch.no_grad()
@pytest.mark.parametrize("name", VIDEO)
def test_videos_equal_the_librarys_own_call(folder_of, clips, name):
    folder = folder_of(name)
    network = AutoModel.from_pretrained(folder).eval()
    videos = [list(torch.from_numpy(clip[::2]).permute(0, 3, 1, 2)) for clip in clips]  # 4 frames of 8
    if (folder / "video_preprocessor_config.json").exists():
        processor = AutoVideoProcessor.from_pretrained(folder)
        stacked = [torch.stack(video) for video in videos]
        pixels = processor(stacked, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
    elif name == "XCLIP":  # its processor is one for images
        processor = AutoImageProcessor.from_pretrained(folder)
        pixels = torch.stack([processor(video, return_tensors="pt")["pixel_values"] for video in videos])
    else:
        pixels = AutoImageProcessor.from_pretrained(folder)(videos, return_tensors="pt")["pixel_values"]
    wanted = pooled_by_hand(getattr(network, "get_video_features", network)(pixels))
    encoder = load_encoder(f"hf:{folder}", None, "fp32")
    features = encoder.features(clips)
    assert features.dtype == np.float32 and features.shape == (3, encoder.feature_dim) == tuple(wanted.shape)
    np.testing.assert_allclose(features, wanted.numpy(), atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 1e-4  # it looks at the clip
    assert (encoder.backbone, encoder.weights) == (f"hf:{folder.resolve()}", str(folder.resolve()))
    pooled = "pooler_output" if name in ("Vivit", "XCLIP") else "mean of the tokens in last_hidden_state"
    assert encoder.num_frames == 4 and "4 of a clip, evenly" in encoder.transform
    assert encoder.transform.endswith(pooled)


@torch.no_grad()
@pytest.mark.parametrize("name", IMAGE)
def test_images_equal_the_librarys_own_call(folder_of, clips, name):
    folder = folder_of(name)
    network, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    call = getattr(network, "get_image_features", network)
    wanted = []
    for clip in clips:
        frames = [torch.from_numpy(frame).permute(2, 0, 1) for frame in clip]
        seen = torch.cat([pooled_by_hand(call(**processor(frame, return_tensors="pt"))) for frame in frames])
        wanted.append(torch.cat([seen.mean(0), seen[4:].mean(0) - seen[:4].mean(0)]))
    encoder = load_encoder(f"hf:{folder}", None, "fp32")
    features = encoder.features(clips)
    assert features.shape == (3, encoder.feature_dim)
    np.testing.assert_allclose(features, torch.stack(wanted).numpy(), atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 1e-4
    assert encoder.num_frames is None and "pooler_output, per frame; mean over frames" in encoder.transform


def test_a_clip_over_time_by_hand():
    frames = torch.tensor([[[1.0], [3.0], [100.0], [4.0], [8.0]]])
    assert over_time(frames).tolist() == [[pytest.approx(116 / 5), 4.0]]  # the middle frame is of neither half
    assert over_time(frames[:, :1]).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("name", ["VJEPA2", "Siglip"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_do_not_depend_on_other_clips(folder_of, clips, name, precision):
    encoder = load_encoder(f"hf:{folder_of(name)}", None, precision)
    features = encoder.features(clips)
    for order in ([1, 2, 0], [2], [1, 1]):
        np.testing.assert_array_equal(encoder.features(clips[order]), features[order])


def test_frames_of_short_clips_are_repeated(folder_of, clips):
    encoder = load_encoder(f"hf:{folder_of('VideoMAE')}", None, "fp32")
    twice = clips[:, [0, 0, 1, 1]]
    np.testing.assert_array_equal(encoder.features(clips[:, :2]), encoder.features(twice))


def test_frames_are_decoded_at_the_size_of_the_processor(folder_of):
    assert load_encoder(f"hf:{folder_of('VideoMAE')}", None, "fp32").frame_size == (36, 48)
    assert load_encoder(f"hf:{folder_of('Siglip')}", None, "fp32").frame_size == (32, 32)
    # a crop of 32 from a shortest edge of 32 / (224 / 256)
    assert load_encoder(f"hf:{folder_of('ResNet')}", None, "fp32").frame_size == (36, 48)


@pytest.fixture
def copied(folder_of, tmp_path):
    """A folder to spoil."""
    return lambda name: shutil.copytree(folder_of(name), tmp_path / name)


def test_the_hash_depends_on_files_and_not_on_their_place(copied, tmp_path):
    folder = copied("Dinov2")
    before = load_encoder(f"hf:{folder}", None, "fp32")
    moved = folder.rename(tmp_path / "moved")
    after = load_encoder(f"hf:{folder}", str(moved), "fp32")  # as a policy finds the encoder that it was trained with
    assert (before.weights_sha256, before.transform) == (after.weights_sha256, after.transform)
    hashes = {before.weights_sha256}
    for name, setting in (("config.json", "layer_norm_eps"), ("preprocessor_config.json", "rescale_factor")):
        settings = json.loads((moved / name).read_text())
        (moved / name).write_text(json.dumps(settings | {setting: settings[setting] * 2}))
        hashes.add(load_encoder(f"hf:{moved}", None, "fp32").weights_sha256)
    assert len(hashes) == 3


def test_a_pooler_without_weights_is_not_used(copied, clips):
    """A classifier's checkpoint has none, and the library would initialise them at random."""
    folder = copied("Vivit")
    whole = load_encoder(f"hf:{folder}", None, "fp32")
    assert "VivitModel: pooler_output" in whole.transform
    network = transformers.VivitForVideoClassification(transformers.AutoConfig.from_pretrained(folder))
    network.save_pretrained(folder)
    encoder, again = (load_encoder(f"hf:{folder}", None, "fp32") for _ in range(2))
    assert "VivitModel: mean of the tokens" in encoder.transform
    np.testing.assert_array_equal(encoder.features(clips), again.features(clips))


def drop_tensors(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


def no_processor(folder):
    (folder / "preprocessor_config.json").unlink()


def pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lfs_pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def shard_elsewhere(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')


def code_of_its_own(folder):
    (folder / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}'
    )
    (folder / "own.py").write_text("raise SystemExit('run')")


def spoil_weights(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])


def unknown_kind(folder):
    (folder / "config.json").write_text('{"model_type": "nothing"}')


def of_text(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')


@pytest.mark.parametrize(
    "spoil, error, code, named",
    [
        (drop_tensors, CorruptError, "weights-incomplete", "lacks"),
        (no_processor, VtpError, "weights-incomplete", "preprocessor_config.json"),
        (pickle_only, VtpError, "weights-incomplete", "pickles are not loaded"),
        (lfs_pointer, VtpError, "weights-incomplete", "git lfs pull"),
        (shard_elsewhere, CorruptError, "weights-damaged", "must name files beside it"),
        (code_of_its_own, VtpError, "weights-need-code", "never run"),
        (spoil_weights, CorruptError, "weights-damaged", "cannot be loaded"),
        (unknown_kind, VtpError, "weights-wrong", "transformers"),
        (of_text, VtpError, "weights-wrong", "is a bert, which takes neither video nor images"),
        (lambda folder: (folder / "config.json").write_text("{"), CorruptError, "weights-damaged", "config.json"),
        (lambda folder: (folder / "config.json").unlink(), VtpError, "weights-incomplete", "no config.json"),
    ],
)
def test_bad_folders(copied, spoil, error, code, named):
    folder = copied("Dinov2")
    spoil(folder)
    with raises(code, error) as caught:
        load_encoder(f"hf:{folder}", None, "fp32")
    assert type(caught.value) is error and named in str(caught.value)


def test_a_model_that_masks_patches_at_random_is_refused(tmp_path):
    config = transformers.ViTMAEConfig(image_size=32, patch_size=8, **SMALL)
    transformers.ViTMAEModel(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with raises("weights-wrong") as caught:
        load_encoder(f"hf:{tmp_path}", None, "fp32")
    assert "different features for the same frames" in str(caught.value)


def test_no_int8(folder_of):
    with raises("precision-unsupported"):
        load_encoder(f"hf:{folder_of('Dinov2')}", None, "int8")


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "a/b/c", "", "org/model@", "x y"])
def test_names_that_are_neither_folder_nor_id(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with raises("weights-missing"):
        hf_models.check_named(f"hf:{name}")
    hf_models.check_named("hf:org/model@refs/pr/5")  # the hub is not asked
    hf_models.check_named("hf:dinov2")


def test_a_model_brings_its_weights():
    with pytest.raises(ValueError, match="which has its own"):
        ExtractConfig(source="a.mp4", backbone="hf:org/model", weights="random:0")
    for name in ("hf:", "resnet"):
        with pytest.raises(ValueError, match="r3d_18, timesformer_b, efficientnet_lite0 or hf:ID_OR_FOLDER"):
            ExtractConfig(source="a.mp4", backbone=name)


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A hub that does not answer, and an empty cache."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(weights, "PROBE_S", 0.5)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield tmp_path / "hub"


def test_an_unavailable_hub_without_a_cache(no_hub):
    with raises("weights-unavailable") as caught:
        load_encoder("hf:org/model", None, "fp32")
    assert "hf:org/model could not be downloaded" in str(caught.value)


def test_the_cached_copy_is_used_with_a_warning(no_hub, folder_of, clips, caplog, monkeypatch):
    cached, commit = no_hub / "models--org--model", "a" * 40
    shutil.copytree(folder_of("Dinov2"), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    encoder = load_encoder("hf:org/model", None, "fp32")
    assert (encoder.backbone, encoder.weights) == ("hf:org/model", f"org/model@{commit}")
    assert "using the cached copy" in caplog.text
    there = load_encoder(f"hf:{folder_of('Dinov2')}", None, "fp32")
    assert encoder.weights_sha256 == there.weights_sha256
    np.testing.assert_array_equal(encoder.features(clips), there.features(clips))
    again = load_encoder("hf:org/model", encoder.weights, "fp32")  # by its commit
    assert again.weights_sha256 == encoder.weights_sha256
    caplog.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # then it is not asked
    assert load_encoder("hf:org/model", None, "fp32").weights == encoder.weights
    assert "using the cached copy" not in caplog.text
