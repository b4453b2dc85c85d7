"""Training from video: the encoder at first frozen, then learning, on clips that are read once and kept in files."""

import html

import numpy as np
import pandas as pd
import pytest
import torch
from raising import raises
from small_runs import assert_same_run, killed_after

from pipeline import dataset, encoders, evaluate, extract, report, simulate, train, training
from pipeline.config import EvaluateConfig, ExtractConfig, ReportConfig, SimulateConfig, VideoTrainConfig
from pipeline.dataset import rereading
from pipeline.rl import sac
from pipeline.runs import load_checkpoint, load_policy
from pipeline.training.frame_cache import FrameCache, write_array

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
SMALL = {"num_envs": 2, "warmup_steps": 8, "batch_size": 4, "updates_per_episode": 12, "evaluations": 2}


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    """Three short videos, one held out, and their embeddings in the extraction's own fp32."""
    folder = tmp_path_factory.mktemp("rendered")
    manifest = simulate.run(SimulateConfig(out=folder / "demos", videos=3, steps=3))
    settings = {"weights": "random:0", "precision": "fp32", "clip_len": 4}
    extract.run(ExtractConfig(source=str(manifest), out=folder / "embeddings.h5", **settings))
    return folder / "embeddings.h5"


@pytest.fixture
def config(embeddings, tmp_path):
    def make(**settings):
        settings = {"frame_size": 32, "encoder_layers": "projector", "episodes": 8, "unfreeze_after": 4} | settings
        return VideoTrainConfig(**{"embeddings": embeddings, "out": tmp_path / "run"} | SMALL | settings)

    return make


def clip_encoder(data, layers, frame_size):
    projector = encoders.Projector(data.projector_mean, data.projector_components, data.projector_scale, "pca")
    return encoders.ClipEncoder("random:0", projector, layers=layers, frame_size=frame_size)


def clips_of(data, frame_size, count=2):
    _, frames = next(rereading.read_clips(data, [0], frame_size=encoders.resized(frame_size), batch_size=count))
    return frames


# The encoder


def test_it_begins_as_the_extractions_encoder(embeddings):
    data = dataset.read_embeddings(embeddings)
    encoder = clip_encoder(data, "layer4", 112)
    assert encoder.weights_sha256 == data.attrs["weights_sha256"]
    np.testing.assert_allclose(encoder.see(clips_of(data, 112)), data.embeddings[:2], atol=1e-4)


def test_smaller_frames_show_the_same_part_of_the_picture():
    frames = np.zeros((1, 1, 128, 171, 3), np.uint8)
    frames[:, :, 8:120, 30:142] = 255  # what torchvision's preset leaves of it
    assert encoders.centre_crop(frames, 112).min() == 255
    assert encoders.resized(112) == (128, 171) and encoders.resized(64) == (73, 98)
    assert encoders.centre_crop(np.zeros((1, 1, 73, 98, 3)), 64).shape == (1, 1, 64, 64, 3)


@pytest.mark.parametrize("layers", ["projector", "layer4", "layer3", "all"])
def test_the_layers_that_learn_and_no_others(layers, embeddings):
    data = dataset.read_embeddings(embeddings)
    encoder = clip_encoder(data, layers, 16)
    crops = torch.from_numpy(encoders.centre_crop(clips_of(data, 16, 3), 16))
    inputs = encoder.inputs(crops)
    learned = {name.split(".")[1] for name, _ in encoder.named_parameters()}
    names = ["stem", "layer1", "layer2", "layer3", "layer4", "projector"]
    assert learned == set(names[names.index("stem" if layers == "all" else layers) :])
    assert inputs.dtype == (torch.uint8 if layers == "all" else torch.float32)
    torch.testing.assert_close(
        encoder.embed(inputs).detach().numpy(), clip_encoder(data, "layer4", 16).see(crops.numpy())
    )
    encoder.train()
    statistics = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder(inputs).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())
    assert all(torch.equal(value, statistics[name]) for name, value in encoder.named_buffers())


def test_gradients_of_passes_that_are_computed_again_are_those_of_the_whole_batch(embeddings):
    data = dataset.read_embeddings(embeddings)
    encoder = clip_encoder(data, "all", 16)
    crops = torch.from_numpy(encoders.centre_crop(clips_of(data, 16, 3), 16))
    gradients, kept_bytes = [], []
    for embed in (encoder.embed, encoder.learning):
        encoder.zero_grad()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=sizes: to.append(x.nbytes) or x, lambda x: x):
            loss = embed(crops).square().sum()
        kept_bytes.append(sum(sizes))
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))
    assert kept_bytes[0] < 0.01 * kept_bytes[1], "of activations nothing is kept for the way back"


@pytest.mark.parametrize("layers", ["layer4", "all"])
def test_the_whole_encoder_moves_to_a_device(layers, embeddings):
    """Tensors on the meta device do not mix with a processor's, so whatever stays behind is an error."""
    encoder = clip_encoder(dataset.read_embeddings(embeddings), layers, 32).to("meta")
    crops = torch.empty((3, 4, 32, 32, 3), dtype=torch.uint8, device="meta")
    latents = encoder(encoder.inputs(crops))
    assert latents.shape == (3, 128) and latents.device.type == "meta"
    latents.sum().backward()
    assert all(parameter.grad.device.type == "meta" for parameter in encoder.parameters())


# Training


def test_the_encoder_is_frozen_for_the_first_episodes_and_then_learns(config, monkeypatch, kept):
    cfg = config(encoder_layers="layer4")
    seen = []
    update = sac.Agent.update

    def watched(self, batch, *args, **kwargs):
        before = [parameter.clone() for parameter in self.encoder.parameters()]
        td_error, info = update(self, batch, *args, **kwargs)
        change = max(
            float((p - b).detach().abs().max()) for p, b in zip(self.encoder.parameters(), before, strict=True)
        )
        seen.append((batch.observations.shape[1:] == (128,), change, info))
        return td_error, info

    monkeypatch.setattr(sac.Agent, "update", watched)
    train.run(cfg)
    frozen, change, infos = zip(*seen, strict=True)
    assert list(frozen) == sorted(frozen, reverse=True) and True in frozen and False in frozen
    for is_frozen, moved in zip(frozen, change, strict=True):
        assert (moved == 0) == is_frozen
    assert max(change) < 2 * cfg.encoder_lr, "Adam's first steps are as long as its learning rate"
    assert all(np.isfinite(info[name]) for info in infos for name in ("consistency_loss", "contrastive_loss"))
    metrics = pd.read_csv(cfg.out / "metrics.csv")
    assert np.isfinite(metrics.to_numpy()).all() and (metrics["contrastive_loss"].tail(4) > 0).all()
    state = load_checkpoint(cfg.out / "last.pt")["agent"]
    body = {name.split(".")[2] for name in state if name.startswith("encoder.learning")}
    assert body == {"layer4", "projector"}, "frozen layers are named by their weights' hash and not stored"


def test_nothing_jumps_when_the_encoder_begins_to_learn(config):
    cfg = config(encoder_layers="layer3")
    source = training.open_source(cfg, np.random.default_rng(0))
    agent = training.Trainer(cfg, source, rng=np.random.default_rng(0), progress=lambda *_: None).agent
    rows = source.train_rows
    looked_up = agent.encoder(source.look_up(rows))
    source.clips.is_frozen = False
    assert source.look_up(rows).shape[1:] != looked_up.shape[1:]
    torch.testing.assert_close(agent.encoder(source.look_up(rows)), looked_up, rtol=1e-4, atol=1e-4)
    frames = np.load(next((cfg.out / "footage").glob("frames-*.npy")))
    assert frames.dtype == np.uint8 and frames.shape == (9, 4, 32, 32, 3)
    again = clips_of(dataset.read_embeddings(cfg.embeddings), 32)
    np.testing.assert_array_equal(frames[:2], encoders.centre_crop(again, 32))


def test_a_run_killed_before_and_after_equals_an_uninterrupted_one(config, tmp_path, monkeypatch, kept):
    cfg = config(out=tmp_path / "whole", frame_size=16, updates_per_episode=24)
    train.run(cfg)
    killed = cfg.model_copy(update={"out": tmp_path / "killed"})
    monkeypatch.setattr(train, "CHECKPOINT_S", 0.0)
    for steps in (3, 4, 2):  # of twelve, and from the seventh on the encoder learns
        killed_after(steps, monkeypatch, killed)
        assert any((killed.out / "footage").glob("frames-*.npy"))
    monkeypatch.setattr(rereading, "read_clips", lambda *_, **__: pytest.fail("the videos were read again"))
    train.run(killed)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not (killed.out / "footage").exists(), "a finished run keeps no frames"


def test_a_run_starts_from_the_encoder_of_another(config, tmp_path):
    train.run(config(encoder_lr=1e-2))
    cfg = config(out=tmp_path / "next", init=tmp_path / "run", encoder_lr=1e-12)
    train.run(cfg)
    first, then = (load_policy(tmp_path / name)[0].encoder.state_dict() for name in ("run", "next"))
    for name, value in first.items():
        torch.testing.assert_close(then[name], value, rtol=0, atol=1e-6)
    with raises("run-other-encoder"):
        train.run(config(out=tmp_path / "other", init=tmp_path / "run", frame_size=48))


# What is kept of clips


def test_arrays_are_written_atomically(tmp_path):
    def interrupted():
        yield np.zeros((2, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_array(tmp_path / "a.npy", 4, interrupted())
    assert not list(tmp_path.iterdir())
    write_array(tmp_path / "a.npy", 3, [np.arange(4).reshape(2, 2), np.array([[7, 8]])])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), [[0, 1], [2, 3], [7, 8]])


def test_clips_are_read_again_only_if_they_would_differ(embeddings, tmp_path, monkeypatch):
    data = dataset.read_embeddings(embeddings)
    read, told = [], []
    monkeypatch.setattr(
        rereading, "read_clips", lambda *a, real=rereading.read_clips, **k: read.append(1) or real(*a, **k)
    )

    def prepare(rows, layers, frame_size=16):
        clips = FrameCache(tmp_path, data, np.array(rows), frame_size=frame_size)
        clips.prepare(clip_encoder(data, layers, frame_size), lambda *said: told.append(said))
        return clips, sorted(path.name.split("-")[0] for path in tmp_path.glob("*.npy"))

    first, names = prepare([1, 5, 4], "projector")
    assert names == ["embeddings", "frames", "inputs"]
    assert told == [
        (1, 3, "clips: frames"),
        (3, 3, "clips: frames"),
        (3, 3, "clips: inputs"),
        (3, 3, "clips: embeddings"),
    ]
    same, _ = prepare([1, 4, 5], "projector")
    assert len(read) == 1 and torch.equal(first.look_up(np.array([5, 1])), same.look_up(np.array([5, 1])))
    assert not torch.equal(same.look_up(np.array([5])), same.look_up(np.array([4])))
    _, names = prepare([1, 4, 5], "all")
    assert len(read) == 1 and names == ["embeddings", "frames"], "frames are what the first layer is given"
    prepare([1, 4], "all")
    prepare([1, 4], "all", frame_size=24)
    assert len(read) == 3 and len(list(tmp_path.glob("*.npy"))) == 2, "what fits no more is removed"


# What is refused


def test_a_video_that_changed_since_its_extraction_is_refused(config, embeddings, tmp_path):
    data = dataset.read_embeddings(embeddings)
    data.videos.sha256[1] = "0" * 64
    dataset.write_embeddings(tmp_path / "other.h5", data)
    with raises("video-changed"):
        train.run(config(embeddings=tmp_path / "other.h5"))
    data.attrs["backbone"] = "timesformer_b"
    dataset.write_embeddings(tmp_path / "other.h5", data)
    with raises("backbone-not-trainable"):
        train.run(config(embeddings=tmp_path / "other.h5", overwrite=True))


def test_other_weights_than_the_embeddings_are_refused(config, embeddings, tmp_path):
    data = dataset.read_embeddings(embeddings)
    data.attrs["weights"] = "random:1"
    dataset.write_embeddings(tmp_path / "other.h5", data)
    with raises("weights-differ"):
        train.run(config(embeddings=tmp_path / "other.h5"))


# What comes after


def test_the_policy_is_validated_with_its_own_encoder(config, embeddings, tmp_path):
    """Held-out clips read again give the embeddings that training validated with, rendered ones pass the codec."""
    manifest = embeddings.parent / "demos" / "manifest.csv"
    whole = tmp_path / "embeddings.h5"  # of clips as long as those that are rendered
    extract.run(ExtractConfig(source=str(manifest), out=whole, weights="random:0"))
    cfg = config(embeddings=whole, encoder_lr=1e-2, outcomes="simulator")
    trained = train.run(cfg)
    assert (trained["source"], trained["validation"], trained["labelled"]) == ("video", "held-out clips", True)
    again = evaluate.run(EvaluateConfig(run=cfg.out, validation="clips"))
    assert again["profit_mean"] == pytest.approx(trained["profit_mean"], rel=1e-4)
    looped = evaluate.run(EvaluateConfig(run=cfg.out, episodes=2, steps=2))
    assert looped["validation"] == "closed loop from pixels" and np.isfinite(looped["profit_mean"])
    page = html.unescape(report.run(ReportConfig(run=cfg.out)).read_text(encoding="utf-8"))
    assert looped["outcome_model"] in page and "encoder_layers" in page and "unfreeze_after" in page
