import json
from dataclasses import replace
from importlib import resources

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hf_model import save_dinov2
from raising import raises
from small_runs import embeddings_config, sim_config, write_embeddings, write_task

from pipeline import dataset, encoders, evaluate, extract, simulate, synthetic, train, video
from pipeline.config import EmbeddingsTrainConfig, EvaluateConfig, ExtractConfig, SimTrainConfig, SimulateConfig
from pipeline.evaluate import evaluation
from pipeline.evaluate.closed_loop import PixelObserver
from pipeline.outcomes import SimulatedOutcomes
from pipeline.rl import rollouts
from pipeline.runs import PolicyMetadata, load_checkpoint, load_policy, save_checkpoint, summarise
from pipeline.tasks import load_task


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
        EmbeddingsTrainConfig(
            embeddings=folder / "embeddings.h5", out=folder / "run",
            episodes=40, num_envs=8, updates_per_episode=1, warmup_steps=16, batch_size=16, outcomes="simulator",
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
    """A clip filmed alone and the same clip within a video have the same embedding up to codec noise."""
    rng = np.random.default_rng(np.random.SeedSequence(0).spawn(2)[0])
    labels = simulate.demonstrate(load_task("dishwashing").in_scenario("mixed"), 3, rng)
    frames = np.stack(list(simulate.film("dishes", labels, rng)))
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
    steps = pd.read_csv(rendered / "run" / "evaluation" / "validation.csv")
    assert steps.groupby("episode").size().tolist() == [2, 2]
    by_context = steps.groupby("context")["profit_usd_per_hour"].mean()  # each counts as in the long run
    assert summary["profit_mean"] == pytest.approx(by_context.mean())
    frames = json.loads((rendered / "run" / "evaluation" / "frames" / "frames.json").read_text())
    assert {row["context"] for row in frames} == set(steps["context"])
    assert all((rendered / "run" / "evaluation" / "frames" / row["file"]).is_file() for row in frames)
    assert json.loads((rendered / "run" / "evaluation" / "summary.json").read_text()) == summary


@pytest.mark.slow
def test_closed_loop_through_a_model_of_transformers(rendered, tmp_path):
    """Clips are encoded by the model that the policy was trained through, and by no other."""
    model, manifest = tmp_path / "model", rendered / "demos/manifest.csv"
    save_dinov2(model)
    extract.run(ExtractConfig(source=str(manifest), out=tmp_path / "e.h5", backbone=f"hf:{model}", precision="fp32"))
    train.run(
        EmbeddingsTrainConfig(
            embeddings=tmp_path / "e.h5", out=tmp_path / "run",
            episodes=8, num_envs=8, updates_per_episode=1, warmup_steps=8, batch_size=8, outcomes="simulator",
        )
    )  # fmt: skip
    summary = evaluate.run(EvaluateConfig(run=tmp_path / "run", episodes=1, steps=1))
    assert summary["validation"] == "closed loop from pixels"
    save_dinov2(model, seed=1)
    with raises("weights-differ"):
        evaluate.run(EvaluateConfig(run=tmp_path / "run", episodes=1, steps=1))


@pytest.mark.slow
def test_the_policy_sees_rendered_clips_from_the_mean_of_what_it_saw(rendered):
    agent, metadata = load_policy(rendered / "run")
    clips_seen, _ = metadata.of_clips()
    centred = replace(metadata, clips=clips_seen.model_copy(update={"centre": [1.0] * 128}))
    rng = np.random.default_rng(0)
    clips = [synthetic.render_clip(synthetic.sample_scene("dishes", rng), "pan", 0.5, 0.5, rng)]
    with evaluation._observer(agent, metadata, "cpu") as (see, _):
        as_it_is = see(clips)
    with evaluation._observer(agent, centred, "cpu") as (see, _):
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
    """A copy of the run whose policy was trained on other clips than it was."""

    def alter(encoding=None, is_labelled=True, **changes):
        state = load_checkpoint(rendered / "run" / "best.pt")
        metadata = PolicyMetadata.from_state(state["meta"], "best.pt")
        clips, _ = metadata.of_clips()
        changes |= {"encoding": clips.encoding.model_copy(update=encoding or {})}
        metadata = replace(metadata, is_labelled=is_labelled, clips=clips.model_copy(update=changes))
        save_checkpoint(tmp_path / "best.pt", state | {"meta": metadata.to_state()})
        return tmp_path

    return alter


@pytest.mark.slow
def test_another_encoder_than_the_policys_is_refused(altered):
    with raises("weights-differ") as caught:
        evaluate.run(EvaluateConfig(run=altered({"weights_sha256": "f" * 64}), episodes=1, steps=1))
    assert "ffffffffffff" in str(caught.value)


def test_clips_that_cannot_be_rendered_are_refused(altered):
    with raises("clips-not-renderable"):
        evaluate.run(EvaluateConfig(run=altered({"clip_len": 8}), episodes=1, steps=1))


def test_embeddings_that_changed_are_refused(altered):
    with raises("embeddings-differ"):
        evaluate.run(EvaluateConfig(run=altered(is_labelled=False, content_sha256="f" * 64)))


def test_a_folder_without_a_run(tmp_path):
    with raises("checkpoint-missing"):
        evaluate.run(EvaluateConfig(run=tmp_path))
    with raises("run-missing"):
        evaluate.run(EvaluateConfig(run=tmp_path / "none"))


def test_a_summary_says_how_it_was_validated_and_how_long_all_stages_took(tmp_path):
    path = tmp_path / "run"
    trained = train.run(SimTrainConfig(out=path, episodes=4, num_envs=4, warmup_steps=200))
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
    """Attempts are max(1, Poisson(2 · (1 − 0.25 · 0.93))): 1.75 a minute; 2.22% of them are errors."""
    model = SimulatedOutcomes(load_task("dishwashing").in_scenario("plates"))
    steps = rollouts.in_simulator(Constant(), model, episodes=50, steps=60, rng=np.random.default_rng(0))
    assert len(steps) == 3000
    assert steps["attempts"].mean() * 60 == pytest.approx(105.03, rel=0.03)
    assert steps["errors"].sum() / steps["attempts"].sum() == pytest.approx(0.0222, abs=0.006)
    assert summarise(model, steps, s_cust=0.0)["oracle_ratio"] == pytest.approx(1, abs=1e-3)


def test_the_clips_of_a_video_are_one_episode_however_often_they_are_drawn():
    rows, video = np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1])
    model, rng = SimulatedOutcomes(load_task("dishwashing").in_scenario("mixed")), np.random.default_rng(0)
    embeddings = np.zeros((4, 128), np.float32)
    steps = rollouts.on_clips(Constant(), model, embeddings, rows, video=video, draws=5, rng=rng)
    assert len(steps) == 20
    assert steps.groupby("episode")["row"].unique().apply(sorted).tolist() == [[0, 1], [2, 3]]
    assert summarise(model, steps, s_cust=0.0)["episodes"] == 2


@pytest.mark.slow
def test_changed_scenes_have_a_summary_of_their_own(rendered):
    usual = evaluate.run(EvaluateConfig(run=rendered / "run", episodes=2, steps=1))
    changed = evaluate.run(EvaluateConfig(run=rendered / "run", episodes=2, steps=1, scenes="changed"))
    assert json.loads((rendered / "run" / "evaluation" / "summary.json").read_text()) == usual
    assert json.loads((rendered / "run" / "changed" / "summary.json").read_text()) == changed
    assert "--scenes changed" in changed["evaluation"]["command"] and "scenes" not in usual["evaluation"]
    shown = [(rendered / "run" / name / "frames").glob("*.webp") for name in ("evaluation", "changed")]
    usual_bytes, changed_bytes = ({path.name: path.read_bytes() for path in paths} for paths in shown)
    assert changed_bytes and all(usual_bytes[name] != image for name, image in changed_bytes.items())


# What has no effect, or cannot be, is refused


@pytest.fixture(scope="module")
def on_states(tmp_path_factory):
    """A run hardly trained in the simulator."""
    folder = tmp_path_factory.mktemp("states")
    train.run(sim_config(folder, episodes=8, warmup_steps=8, batch_size=8))
    return folder / "run"


@pytest.fixture(scope="module")
def on_embeddings(tmp_path_factory):
    """Runs on embeddings of a task with a renderer and of one without."""
    folder = tmp_path_factory.mktemp("embeddings")
    for name in ("dishwashing", "pressing"):
        task = name if name == "dishwashing" else write_task(folder, name)
        path = write_embeddings(folder / f"{name}.h5", task=task)
        train.run(embeddings_config(folder, path, out=folder / name, episodes=16, outcomes="auto"))
    return folder


@pytest.mark.parametrize("validation", ["pixels", "clips"])
def test_a_run_in_the_simulator_is_validated_there_alone(on_states, validation):
    with raises("validation-impossible"):
        evaluate.run(EvaluateConfig(run=on_states, validation=validation))


def test_changed_scenes_need_pixels(on_states, on_embeddings):
    for run, validation in (
        (on_states, "auto"),
        (on_embeddings / "dishwashing", "clips"),
        (on_embeddings / "pressing", "auto"),
    ):
        with raises("setting-without-effect") as caught:
            evaluate.run(EvaluateConfig(run=run, scenes="changed", validation=validation))
        assert "--scenes" in str(caught.value)
        assert not (run / "changed").exists()


@pytest.mark.parametrize("setting", ["episodes", "steps"])
def test_held_out_clips_are_played_whole(on_embeddings, setting):
    with raises("setting-without-effect") as caught:
        evaluate.run(EvaluateConfig(run=on_embeddings / "dishwashing", validation="clips", **{setting: 5}))
    assert f"--{setting} 5" in str(caught.value)


def test_a_gpu_is_refused_where_no_clip_is_encoded_on_it(on_embeddings, on_states):
    for run, validation in ((on_embeddings / "dishwashing", "clips"), (on_states, "auto")):
        with raises("setting-without-effect") as caught:
            evaluate.run(EvaluateConfig(run=run, validation=validation, device="cuda:1"))
        assert "--device cuda:1 has no effect" in str(caught.value)
    summary = evaluate.run(EvaluateConfig(run=on_embeddings / "dishwashing", validation="clips", device="cpu"))
    assert summary["evaluation"]["command"].endswith("--device cpu") and "device" not in summary["evaluation"]


def test_a_task_without_a_renderer_is_validated_on_held_out_logs(on_embeddings):
    run = on_embeddings / "pressing"
    summary = evaluate.run(EvaluateConfig(run=run))
    assert (summary["validation"], summary["labelled"]) == ("held-out logs", True)
    assert summary["judge"] == "Estimated from your logs" and summary["off_policy"]["verdict"]
    assert summary["evaluation"] == {"seed": 10_000, "command": f"vtp evaluate {run} --seed 10000"}
    with raises("task-not-rendered") as caught:
        evaluate.run(EvaluateConfig(run=run, validation="pixels"))
    assert "--validation clips" in str(caught.value)


def test_a_renderer_that_cannot_show_the_task_is_not_asked_to(tmp_path):
    """Its name alone does not mean that the task's actions and contexts can be drawn."""
    task = write_task(tmp_path, "pressing")
    task.write_text(task.read_text() + "  renderer: dishes\n")
    path = write_embeddings(tmp_path / "embeddings.h5", task=task)
    train.run(embeddings_config(tmp_path, path, episodes=16, outcomes="auto"))
    assert evaluate.run(EvaluateConfig(run=tmp_path / "run"))["validation"] == "held-out logs"
    with raises("renderer-actions"):
        evaluate.run(EvaluateConfig(run=tmp_path / "run", validation="pixels"))


# Other prices


def repriced(folder, name, **changes):
    """A task file with other prices, wage or costs than the built-in task's."""
    values = yaml.safe_load(load_task_text("dishwashing")) | {"name": name} | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def load_task_text(name):
    return resources.files("pipeline.tasks").joinpath(f"{name}.yaml").read_text()


def test_other_prices_change_what_the_same_steps_are_worth(on_embeddings, tmp_path):
    run = on_embeddings / "dishwashing"
    free = {name: {"price_usd": one.price_usd} for name, one in load_task("dishwashing").contexts.items()}
    path = repriced(tmp_path, "forgiven", contexts=free, costs_usd_per_hour={"energy": 0.1, "water": 2.0})
    usual = evaluate.run(EvaluateConfig(run=run, validation="clips"))
    steps = pd.read_csv(run / "evaluation" / "validation.csv")
    summary = evaluate.run(EvaluateConfig(run=run, validation="clips", task=str(path)))
    priced = pd.read_csv(run / "evaluation" / "validation.csv")
    pd.testing.assert_frame_equal(steps.drop(columns="profit_usd_per_hour"), priced.drop(columns="profit_usd_per_hour"))
    assert (summary["task"], summary["costs_usd_per_hour"]) == ("forgiven", {"energy": 0.1, "water": 2.0})
    assert summary["evaluation"]["task"] == str(path) and f"--task {path}" in summary["evaluation"]["command"]
    assert summary["oracle_profit"] > usual["oracle_profit"], "errors cost nothing"
    assert summary["err_mean"] == usual["err_mean"]
    assert (priced["profit_usd_per_hour"] + 2.0 > steps["profit_usd_per_hour"]).all()


def test_prices_of_other_work_are_refused(on_embeddings, tmp_path):
    run = on_embeddings / "dishwashing"
    with raises("task-other-actions"):
        evaluate.run(EvaluateConfig(run=run, validation="clips", task="bin-picking"))
    with raises("task-other-contexts"):
        evaluate.run(EvaluateConfig(run=run, validation="clips", task="bricklaying"))
