"""Updates on a processor and on a device; what only a GPU has is compared with what runs anywhere."""

import copy
import gc
import math
import weakref

import numpy as np
import pytest
import torch
from raising import raises
from small_runs import assert_same_run, embeddings_config, killed_after, sim_config, write_embeddings
from torch import nn

from pipeline import train, training
from pipeline.encoders import AuxiliaryHeads, MLPEncoder
from pipeline.experiments.retrain import Retrainer
from pipeline.rl.device_replay import DeviceReplay
from pipeline.rl.replay import Batch
from pipeline.rl.sac import Agent, Noise, Transitions
from pipeline.runs import RunDirectory, load_checkpoint, load_metadata, save_checkpoint
from pipeline.training.learner import DeviceLearner, Recorded

pytestmark = pytest.mark.usefixtures("one_thread")
CPU, META = torch.device("cpu"), torch.device("meta")


class States:
    """A source whose observations are states."""

    is_on_device = True

    def look_up(self, observations):
        return observations


def new_agent(device=CPU, *, with_encoder=False, **settings):
    torch.manual_seed(0)
    bounds = {"low": [0.0, -1.0], "high": [1.0, 3.0]}
    if with_encoder:
        agent = Agent(MLPEncoder(4), 128, auxiliary=AuxiliaryHeads(128, 2), **bounds, **settings)
    else:
        agent = Agent(nn.Identity(), 4, **bounds, **settings)
    return agent.to(device)


def device_learner(agent, *, batch_size=32, capacity=200):
    rng = np.random.default_rng(0)
    replay = DeviceReplay(capacity, (4,), np.float32, num_actions=2, priority_exponent=0.6, device=agent.device)
    states, actions = rng.random((151, 4), np.float32), rng.random((150, 2), np.float32)
    rewards = rng.standard_normal(150)
    replay.add(Batch(states[:-1], actions, rewards, np.ones(150), states[1:]), rng.random(150))
    agent.observe_rewards(rewards)
    generator = None if agent.device == META else torch.Generator(agent.device).manual_seed(0)
    return DeviceLearner(agent, States(), replay, batch_size=batch_size, generator=generator)


@pytest.mark.parametrize("with_encoder", [False, True])
def test_an_update_on_a_device_waits_for_nothing_and_leaves_nothing_elsewhere(with_encoder, monkeypatch):
    """Tensors on the meta device have no values and do not mix with a processor's, so either is an error."""
    agent = new_agent(META, with_encoder=with_encoder, latent_noise=0.1)
    for name in ("critic_optimizer", "actor_optimizer"):  # torch's fused Adam does not know that device
        groups = getattr(agent, name).param_groups
        setattr(agent, name, torch.optim.SGD([p for group in groups for p in group["params"]], lr=1e-3))
    learner = device_learner(agent)
    monkeypatch.setattr(Noise, "draw", lambda self, generator: self)
    for _ in range(2):
        learner.update()
    assert all(each.device == META for each in (*learner._newest, *agent.state_dict().values()))
    assert learner._names[-1] == "mean_weight" and len(learner._names) == 6 + 2 * with_encoder


def test_an_update_on_a_device_is_that_of_the_agent_on_the_same_batch():
    agent, alone = new_agent(latent_noise=0.1), new_agent(latent_noise=0.1)
    learner = device_learner(agent)
    device_learner(alone)  # the same moments of rewards
    drawn = []
    sample = learner.replay.sample

    def sampled(uniforms):
        drawn.append(copy.deepcopy(sample(uniforms)))
        return drawn[-1]

    learner.replay.sample = sampled
    for number in range(5):
        before = copy.deepcopy(learner.replay.state_dict())
        learner.update()
        batch, slots, importance, novelty = drawn[-1]
        td_error, losses = alone.learn(batch, importance * novelty, learner._noise)
        assert {name: values[number] for name, values in learner.losses().items()} == {
            **{name: float(value) for name, value in losses.items()},
            "mean_weight": float((importance * novelty).mean()),
        }
        after = learner.replay.state_dict()["priorities"]
        untouched = np.setdiff1d(np.arange(150), slots)
        np.testing.assert_array_equal(after[untouched], before["priorities"][untouched])
        best = max(float(error) for slot, error in zip(slots, td_error, strict=True) if slot == slots[0])
        wanted = max(best, 1e-3) ** 0.6 * float(novelty[0])
        assert after[slots[0]] == pytest.approx(wanted, rel=1e-6, abs=1e-7)
    for one, other in zip(agent.state_dict().values(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_losses_that_are_not_finite_end_training_when_they_are_read():
    agent = new_agent()
    learner = device_learner(agent)
    learner.update()
    agent.reward_mean.fill_(math.nan)
    learner.update()
    with raises("loss-not-finite"):
        learner.losses()


def test_losses_are_kept_over_a_checkpoint():
    learner = device_learner(new_agent())
    learner.update()
    learner.update()
    kept = copy.deepcopy(learner.losses())
    learner.update()
    resumed = device_learner(new_agent())
    resumed.forget_losses(kept)
    assert resumed.losses() == {name: values[:2] for name, values in learner.losses().items()}
    learner.forget_losses()
    assert learner.losses() == {}


def test_what_is_not_recorded_is_called_each_time():
    calls = []
    recorded = Recorded(CPU)
    for _ in range(5):
        recorded(lambda: calls.append(1))
    assert len(calls) == 5


def test_a_learner_that_is_done_leaves_its_memory_at_once():
    """Experiments train dozens of policies in one process; the graph of a GPU holds what an update needs."""
    learner = device_learner(new_agent())
    learner.update()
    learner.losses()
    memory = weakref.ref(learner.replay)
    gc.disable()
    try:
        del learner
        assert memory() is None
    finally:
        gc.enable()


# Whole runs, with the learner of a device on the processor


@pytest.fixture
def on_device(monkeypatch):
    """Training learns as on a device that is not a processor."""

    def learner_of(cfg, agent, source, observations, *, rng, generator):
        replay = DeviceReplay(
            cfg.buffer_size, observations.shape[1:], observations.dtype, num_actions=agent.num_actions,
            priority_exponent=cfg.priority_exponent, device=agent.device,
        )  # fmt: skip
        return DeviceLearner(agent, source, replay, batch_size=cfg.batch_size, generator=generator)

    monkeypatch.setattr("pipeline.training.trainer.learner_of", learner_of)


@pytest.mark.parametrize("source", ["sim", "embeddings"])
def test_a_run_resumed_on_a_device_equals_an_uninterrupted_one(source, on_device, tmp_path, monkeypatch, kept):
    if source == "sim":
        cfg = sim_config(tmp_path, out=tmp_path / "whole")
    else:
        path = write_embeddings(tmp_path / "embeddings.h5")
        cfg = embeddings_config(tmp_path, path, out=tmp_path / "whole", num_envs=3, warmup_steps=32)
    train.run(cfg)
    killed = cfg.model_copy(update={"out": tmp_path / "killed"})
    for steps, checkpoint_s in ((20, 0.0), (25, 60.0), (9, 0.0)):
        monkeypatch.setattr(train, "CHECKPOINT_S", checkpoint_s)
        killed_after(steps, monkeypatch, killed)
    train.run(killed)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_run_continues_on_another_device_with_a_warning(on_device, tmp_path, monkeypatch, caplog):
    cfg = sim_config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(train, "CHECKPOINT_S", 0.0)
        killed_after(30, patch, cfg)
    monkeypatch.setattr("pipeline.devices.name_of", lambda device: "NVIDIA H200")
    summary = train.run(cfg.model_copy(update={"device": "cpu"}))
    assert "was started on cpu and continues on NVIDIA H200: it ends differently" in caplog.text
    assert load_metadata(cfg.out).provenance["device"] == "cpu, then NVIDIA H200"
    assert summary["provenance"]["device"] == "cpu, then NVIDIA H200"


def test_retraining_reads_the_losses_of_its_last_updates(on_device, tmp_path, monkeypatch):
    cfg = sim_config(tmp_path)
    train.run(cfg)
    retrainer = Retrainer(RunDirectory(cfg.out))
    monkeypatch.setattr(Agent, "observe_rewards", lambda self, rewards: self.reward_mean.fill_(math.nan))
    with raises("loss-not-finite"):
        retrainer.retrain(retrainer.model, updates=0, seed=0)  # the first are in the last step


def test_random_numbers_start_anew_where_the_device_had_others(tmp_path, monkeypatch, kept):
    cfg = sim_config(tmp_path)
    train.run(cfg)
    checkpoint = load_checkpoint(cfg.out / "last.pt")
    assert checkpoint["trainer"]["device"] == "cpu"
    trainer = training.Trainer(cfg, training.open_source(cfg, np.random.default_rng(0)), rng=np.random.default_rng(0))
    of_gpu = checkpoint["trainer"] | {"device": "cuda", "generator": torch.zeros(16, dtype=torch.uint8)}
    trainer.load_state_dict(of_gpu, checkpoint["agent"], 7)
    assert trainer._generator.initial_seed() == cfg.seed + 8


def test_a_run_that_was_begun_before_there_were_devices_continues(tmp_path, monkeypatch, kept):
    cfg = sim_config(tmp_path, out=tmp_path / "whole")
    train.run(cfg)
    begun = cfg.model_copy(update={"out": tmp_path / "begun"})
    with monkeypatch.context() as patch:
        patch.setattr(train, "CHECKPOINT_S", 0.0)
        killed_after(90, patch, begun)
    config = begun.out / "config.yaml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if "device" not in line))
    checkpoint = load_checkpoint(begun.out / "last.pt")
    del checkpoint["trainer"]["device"]
    save_checkpoint(begun.out / "last.pt", checkpoint)
    train.run(begun)
    assert_same_run(tmp_path / "whole", begun.out)


def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    with raises("gpu-missing"):
        train.run(sim_config(tmp_path, device="cuda"))
    train.run(sim_config(tmp_path))


def test_too_little_memory_of_a_gpu_is_one_line(tmp_path, monkeypatch):
    """Only a GPU's allocator raises this."""

    def out_of_memory(trainer):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.Trainer, "step", out_of_memory)
    with raises("gpu-memory") as caught:
        train.run(sim_config(tmp_path))
    assert "lower --batch-size or --buffer-size" in str(caught.value)


def test_a_run_of_an_earlier_version_keeps_all_moments(tmp_path):
    """Its temperature had an optimiser of its own."""
    agent = new_agent()
    batch = Transitions(torch.rand(8, 4), torch.rand(8, 2), torch.rand(8), torch.ones(8), torch.rand(8, 4))
    agent.update(batch, torch.ones(8), generator=torch.Generator().manual_seed(0))
    state = copy.deepcopy(agent.training_state())
    alpha = state["actor_optimizer"]["state"].pop(6)
    earlier = state | {"alpha_optimizer": {"state": {0: alpha}, "param_groups": []}}
    other = new_agent()
    other.load_training_state(earlier)
    resumed = other.actor_optimizer.state_dict()["state"]
    assert resumed.keys() == agent.actor_optimizer.state_dict()["state"].keys()
    torch.testing.assert_close(resumed[6]["exp_avg"], alpha["exp_avg"])


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("with_encoder", [False, True])
def test_a_replayed_graph_equals_updates_as_they_are(with_encoder, monkeypatch):
    device = torch.device("cuda")
    recorded = device_learner(new_agent(device, with_encoder=with_encoder, latent_noise=0.1))
    eager = device_learner(new_agent(device, with_encoder=with_encoder, latent_noise=0.1))
    monkeypatch.setattr(eager._source, "is_on_device", False, raising=False)
    for number in range(20):
        for learner in (recorded, eager):
            learner._agent.anneal(number / 20, final_entropy=-3.0)
            learner.update()
    assert recorded._recorded._graph is not None and eager._recorded._graph is None
    for one, other in zip(recorded._agent.state_dict().values(), eager._agent.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for name, values in eager.losses().items():
        np.testing.assert_allclose(recorded.losses()[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.gpu
def test_a_run_resumed_on_the_same_gpu_equals_an_uninterrupted_one(tmp_path, monkeypatch, kept):
    cfg = sim_config(tmp_path, out=tmp_path / "whole", device="cuda")
    train.run(cfg)
    killed = cfg.model_copy(update={"out": tmp_path / "killed"})
    monkeypatch.setattr(train, "CHECKPOINT_S", 0.0)
    killed_after(100, monkeypatch, killed)
    train.run(killed)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.gpu
def test_a_policy_trained_on_a_gpu_earns_as_much_as_one_trained_on_a_processor(tmp_path):
    settings = {"episodes": 100, "num_envs": 16, "updates_per_episode": 8, "warmup_steps": 256, "batch_size": 256}
    earned = [
        train.run(sim_config(tmp_path, **settings, device=device, out=tmp_path / device))["oracle_ratio"]
        for device in ("cpu", "cuda")
    ]
    assert earned[1] == pytest.approx(earned[0], abs=0.05)
    policy = load_checkpoint(tmp_path / "cuda" / "best.pt")["agent"]
    assert all(value.device == CPU for value in policy.values())
