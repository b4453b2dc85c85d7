import json

import numpy as np
import pandas as pd
import pytest
import torch
from pipeline.evaluate.loops import PixelObserver

from pipeline import dataset, encoders, evaluate, extract, synthetic, train, video
from pipeline.config import EvaluateConfig, ExtractConfig, SimulateConfig, TrainConfig
from pipeline.errors import VtpError
from pipeline.evaluate import runs
from pipeline.rl.sac import load_checkpoint, save_checkpoint
from pipeline.synthetic import dynamics, simulate


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Two short rendered videos, their embeddings, and a policy hardly trained on them."""
    folder = tmp_path_factory.mktemp("rendered")
    manifest = simulate.run(SimulateConfig(out=folder / "demos", videos=2, steps=3))
    extract.run(
        ExtractConfig(
            source=str(manifest), out=folder / "embeddings.h5", weights="random:0", precision="bf16", batch_size=3
        )
    )  # fmt: skip
    train.run(
        TrainConfig(
            source="embeddings", embeddings=folder / "embeddings.h5", out=folder / "run",
            episodes=40, num_envs=8, updates_per_episode=1, warmup_steps=16, batch_size=16,
        )
    )  # fmt: skip
    return folder


def observer(folder, decoder):
    data = dataset.read_embeddings(folder / "embeddings.h5")
    projector = encoders.Projector(data.projector_mean, data.projector_components, data.projector_scale, "pca")
    encoder = encoders.load_encoder("r3d_18", "random:0", "bf16")
    return PixelObserver(lambda clips: projector.project(encoder.features(clips)), decoder), data


@pytest.mark.slow
def test_validation_sees_what_extraction_saw(rendered):
    """A clip that is filmed alone and one within a video give the same embedding, but for what the codec does."""
    rng = np.random.default_rng(np.random.SeedSequence(0).spawn(2)[0])
    labels = simulate.demonstrate(dynamics.scenario("dishwashing", "mixed"), 3, rng)
    frames = np.stack(list(simulate.film("dishwashing", labels, rng)))
    with video.Decoder() as decoder:
        see, data = observer(rendered, decoder)
        seen = see(list(frames.reshape(3, synthetic.CLIP_LEN, *frames.shape[1:])))
    expected = data.embeddings[:3]
    error = np.linalg.norm(seen - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 0.1, f"relative distances {error}"  # clips of different scenes are about 1.4 apart


@pytest.mark.slow
def test_closed_loop_from_pixels(rendered):
    summary = evaluate.run(EvaluateConfig(run=rendered / "run", episodes=2, steps=2))
    assert summary["validation"] == "closed loop from pixels"
    assert summary["episodes"] == 2
    steps = pd.read_csv(rendered / "run" / "validation.csv")
    assert steps.groupby("episode").size().tolist() == [2, 2]
    assert summary["profit_mean"] == pytest.approx(steps["profit_usd_per_hour"].mean())
    frames = json.loads((rendered / "run" / "frames" / "frames.json").read_text())
    assert {row["context"] for row in frames} == set(steps["context"])
    assert all((rendered / "run" / "frames" / row["file"]).is_file() for row in frames)
    assert json.loads((rendered / "run" / "summary.json").read_text()) == summary


@pytest.mark.slow
def test_the_policy_sees_rendered_clips_from_the_mean_of_what_it_saw(rendered):
    agent, meta = evaluate.load_run(rendered / "run")
    rng = np.random.default_rng(0)
    clips = [synthetic.render_clip(synthetic.sample_scene("dishwashing", rng), "pan", 0.5, 0.5, rng)]
    with runs._observer(agent, meta) as see:
        as_it_is = see(clips)
    with runs._observer(agent, meta | {"centre": [1.0] * 128}) as see:
        first, second = see(clips), see(clips)
    away = as_it_is - 1
    np.testing.assert_allclose(first, away * 0.25 / 1.25, atol=1e-4)
    np.testing.assert_allclose(second, away * 0.25 / 2.25, atol=1e-4)


@pytest.mark.slow
def test_the_same_seed_meets_the_same_kitchens(rendered):
    first, second = (evaluate.run(EvaluateConfig(run=rendered / "run", episodes=2, steps=1)) for _ in range(2))
    assert first["profit_mean"] == second["profit_mean"]
    assert evaluate.run(EvaluateConfig(run=rendered / "run", episodes=2, steps=1, seed=1)) != first


@pytest.fixture
def altered(rendered, tmp_path):
    """A copy of the run whose checkpoint's meta can be altered."""

    def alter(**changes):
        state = load_checkpoint(rendered / "run" / "best.pt")
        for key, value in changes.items():
            (state["meta"]["encoding"] if key in state["meta"]["encoding"] else state["meta"])[key] = value
        save_checkpoint(tmp_path / "best.pt", state)
        return EvaluateConfig(run=tmp_path, episodes=1, steps=1)

    return alter


def test_another_encoder_than_the_policys_is_refused(altered):
    with pytest.raises(VtpError, match="trained with ffffffffffff"):
        evaluate.run(altered(weights_sha256="f" * 64))


def test_clips_that_cannot_be_rendered_are_refused(altered):
    with pytest.raises(VtpError, match=r"clips of 8 frames.*--clip-len 16"):
        evaluate.run(altered(clip_len=8))


def test_embeddings_that_changed_are_refused(altered):
    with pytest.raises(VtpError, match="trained on ffffffffffff"):
        evaluate.run(altered(labelled=False, content_sha256="f" * 64))


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(VtpError, match="no checkpoint"):
        evaluate.run(EvaluateConfig(run=tmp_path))
    with pytest.raises(VtpError, match="no run directory"):
        evaluate.run(EvaluateConfig(run=tmp_path / "none"))


def test_a_summary_says_how_it_was_validated_and_how_long_all_stages_took(tmp_path):
    path = tmp_path / "run"
    trained = train.run(TrainConfig(source="sim", out=path, episodes=4, num_envs=4, warmup_steps=200))
    assert trained["evaluation"]["seed"] == 0
    assert trained["evaluation"]["command"].startswith("vtp train --source sim")
    for _ in range(2):  # a stage that is repeated counts once
        summary = evaluate.run(EvaluateConfig(run=path, episodes=3, steps=5, seed=9))
        assert summary["evaluation"] == {
            "seed": 9, "episodes": 3, "steps": 5,
            "command": f"vtp evaluate {path} --seed 9 --episodes 3 --steps 5",
        }  # fmt: skip
        assert list(summary["stages_wall_s"]) == ["train", "evaluate"]
        assert summary["stages_wall_s"]["train"] == trained["wall_s"]
        assert summary["wall_s"] == pytest.approx(sum(summary["stages_wall_s"].values()))
    (path / "summary.json").write_text("damaged")
    assert list(evaluate.run(EvaluateConfig(run=path, episodes=3, steps=5))["stages_wall_s"]) == ["evaluate"]


class Constant(torch.nn.Module):
    """A policy that always does the same."""

    def act(self, observations):
        return np.tile(np.float32([1.0, 0.93]), (len(observations), 1))


def test_a_constant_policy_in_the_simulator():
    scenario = dynamics.scenario()
    steps = evaluate.in_simulator(Constant(), scenario, episodes=50, steps=60, rng=np.random.default_rng(0))
    assert len(steps) == 3000
    assert steps["attempts"].mean() * 60 == pytest.approx(105.03, rel=0.03)
    assert steps["errors"].sum() / steps["attempts"].sum() == pytest.approx(0.0222, abs=0.006)
    assert evaluate.summarise(scenario, steps, s_cust=0.0)["oracle_ratio"] == pytest.approx(1, abs=1e-4)


def test_the_clips_of_a_video_are_one_episode_however_often_they_are_drawn():
    context, video = np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1])
    scenario, rng = dynamics.scenario("dishwashing", "mixed"), np.random.default_rng(0)
    embeddings = np.zeros((4, 128), np.float32)
    steps = evaluate.on_clips(Constant(), scenario, embeddings, context, video=video, draws=5, rng=rng)
    assert len(steps) == 20
    assert steps.groupby("episode")["context"].unique().apply(sorted).tolist() == [[0, 1], [2, 3]]
    assert evaluate.summarise(scenario, steps, s_cust=0.0)["episodes"] == 2


@pytest.mark.slow
def test_changed_scenes_are_summed_up_beside_the_usual_ones(rendered):
    usual = evaluate.run(EvaluateConfig(run=rendered / "run", episodes=2, steps=1))
    changed = evaluate.run(EvaluateConfig(run=rendered / "run", episodes=2, steps=1, scenes="changed"))
    assert json.loads((rendered / "run" / "summary.json").read_text()) == usual
    assert json.loads((rendered / "run" / "changed" / "summary.json").read_text()) == changed
    assert "--scenes changed" in changed["evaluation"]["command"] and "scenes" not in usual["evaluation"]
    shown = [(rendered / "run" / name / "frames").glob("*.webp") for name in ("", "changed")]
    usual_bytes, changed_bytes = ({path.name: path.read_bytes() for path in paths} for paths in shown)
    assert changed_bytes and all(usual_bytes[name] != image for name, image in changed_bytes.items())


def test_changed_scenes_need_pixels(tmp_path):
    train.run(TrainConfig(source="sim", out=tmp_path / "run", episodes=8, num_envs=8, warmup_steps=8, batch_size=8))
    for validation in ("auto", "pixels", "clips"):
        with pytest.raises(VtpError, match="--scenes changed needs a validation from pixels"):
            evaluate.run(EvaluateConfig(run=tmp_path / "run", scenes="changed", validation=validation))
    assert not (tmp_path / "run" / "changed").exists()
