import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from pipeline.errors import CorruptError, VtpError
from pipeline.rl import sac
from pipeline.rl.sac import Actor, Agent, EnsembleLinear, Transitions, TwinCritic


@pytest.fixture(autouse=True)
def one_thread_and_a_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class FixedPolicy:
    """An actor that says the same everywhere."""

    def __init__(self, mean, log_std):
        self.mean, self.log_std = torch.tensor(mean), torch.tensor(log_std)

    def __call__(self, latents):
        return self.mean.expand(len(latents), 2), self.log_std.expand(len(latents), 2)


def fixed_critic(*values):
    """Twin critics that say `values` [2, B] whatever they are shown."""
    return lambda latents, actions: torch.tensor(values)


def batch_of(size, latent_size=3, *, rewards=None, masks=None):
    return Transitions(
        torch.randn(size, latent_size),
        torch.rand(size, 2),
        torch.randn(size) if rewards is None else torch.tensor(rewards),
        torch.ones(size) if masks is None else torch.tensor(masks),
        torch.randn(size, latent_size),
    )


def new_agent(latent_size=3, **settings):
    torch.manual_seed(1)
    return Agent(nn.Identity(), latent_size, **settings)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# The policy's density


def test_log_prob_is_torchs_own_of_the_tanh_gaussian():
    mean, log_std, noise = 2 * torch.randn(200, 2), torch.randn(200, 2).clamp(-2, 1), torch.randn(200, 2)
    mean, log_std, noise = (x.double() for x in (mean, log_std, noise))
    actions, log_prob = sac.sample_action(mean, log_std, noise)
    reference = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), TanhTransform(cache_size=1))
    pre_tanh = mean + log_std.exp() * noise
    near = pre_tanh.abs().amax(1) < 8  # beyond, torch's atanh of a rounded tanh loses digits
    reached = (0.5 + 0.5 * sac.STRETCH * torch.tanh(pre_tanh[near])).clamp(0, 1)
    torch.testing.assert_close(actions[near], reached)
    torch.testing.assert_close(log_prob[near], reference.log_prob(torch.tanh(pre_tanh))[near], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.8, -0.5), (-1.0, -1.0)])
def test_density_integrates_to_one_over_the_tanh_space(mean, log_std):
    edge = torch.linspace(-1, 1, 2001, dtype=torch.double)
    actions = (edge[1:] + edge[:-1]) / 2  # midpoints
    noise = (torch.atanh(actions) - mean) / np.exp(log_std)
    grid = torch.stack([noise, noise], 1)
    _, log_prob = sac.sample_action(torch.full_like(grid, mean), torch.full_like(grid, log_std), grid)
    # Both coordinates move together along the grid, so its square root is one coordinate's density.
    integral = (log_prob / 2).exp().sum() * (2 / 2000)
    assert float(integral) == pytest.approx(1, abs=1e-3)


def test_log_prob_stays_finite_at_the_corner_of_the_action_space():
    pre_tanh = torch.tensor([[30.0, -30.0], [300.0, 0.0]])
    actions, log_prob = sac.sample_action(pre_tanh, torch.full((2, 2), -5.0), torch.zeros(2, 2))
    assert torch.isfinite(log_prob).all()
    torch.testing.assert_close(actions, torch.tensor([[1.0, 0.0], [1.0, 0.5]]))


def test_without_a_generator_the_action_is_that_of_the_mean():
    agent = new_agent()
    observations = torch.randn(5, 3)
    mean, _ = agent.actor(observations)
    actions = agent.act(observations)
    np.testing.assert_allclose(actions, sac.to_action(mean).detach().numpy(), rtol=1e-6)
    np.testing.assert_array_equal(actions, agent.act(observations))


def test_sampled_actions_explore_the_unit_square_and_follow_the_generator():
    agent, observations = new_agent(), torch.zeros(500, 3)
    actions = agent.act(observations, generator=seeded())
    assert actions.min() >= 0
    assert actions.max() <= 1
    assert (actions.std(0) > 0.1).all()
    np.testing.assert_array_equal(actions, agent.act(observations, generator=seeded()))
    assert (actions != agent.act(observations, generator=seeded(1))).any()


# Networks


def test_an_ensemble_is_two_linear_layers():
    ensemble, x = EnsembleLinear(2, 4, 3), torch.randn(2, 5, 4)
    alone = []
    for i in range(2):
        layer = nn.Linear(4, 3)
        layer.weight.data, layer.bias.data = ensemble.weight[i].T, ensemble.bias[i, 0]
        alone.append(layer(x[i]))
    torch.testing.assert_close(ensemble(x), torch.stack(alone))


def test_an_ensemble_starts_as_linear_layers_do():
    weight = EnsembleLinear(2, 100, 400).weight
    assert weight.abs().max() <= 0.1
    assert float(weight.detach().std()) == pytest.approx(float(nn.Linear(100, 800).weight.detach().std()), rel=0.03)


def test_the_twins_disagree_and_see_the_action():
    critic, latents, actions = TwinCritic(3), torch.randn(6, 3), torch.rand(6, 2)
    q = critic(latents, actions)
    assert q.shape == (2, 6)
    assert not torch.allclose(q[0], q[1])
    assert not torch.allclose(q, critic(latents, 1 - actions))


def test_the_policys_deviation_is_kept_in_range():
    actor = Actor(3)
    actor.net[-1].bias.data[2:] = torch.tensor([100.0, -100.0])
    low, high = sac.LOG_STD_RANGE
    _, log_std = actor(torch.randn(4, 3))
    torch.testing.assert_close(log_std, torch.tensor([[high, low]]).expand(4, 2))


# Losses by hand


def test_td_target_takes_the_lesser_critic_less_entropy_and_respects_the_mask():
    policy = FixedPolicy([0.0, 0.0], [0.0, 0.0])
    batch = batch_of(2, rewards=[1.0, 5.0], masks=[1.0, 0.0])
    target = sac.td_target(
        batch, policy, fixed_critic([3.0, 7.0], [4.0, 2.0]), alpha=torch.tensor(0.5), gamma=0.9, noise=torch.zeros(2, 2)
    )
    log_prob = -np.log(2 * np.pi)  # two standard normals at 0, where tanh has slope one
    torch.testing.assert_close(target, torch.tensor([1.0 + 0.9 * (3.0 - 0.5 * log_prob), 5.0], dtype=torch.float32))


def test_without_a_future_the_target_is_the_reward():
    batch = batch_of(2, rewards=[1.0, 5.0])
    target = sac.td_target(batch, None, None, alpha=torch.tensor(0.5), gamma=0.0, noise=torch.zeros(2, 2))
    assert target.tolist() == [1.0, 5.0]


def test_critic_loss_is_half_the_weighted_mean_square_of_both():
    batch, target = batch_of(2), torch.tensor([1.0, 2.0])
    loss, info = sac.critic_loss(fixed_critic([2.0, 2.0], [1.0, 5.0]), batch, target, torch.tensor([0.5, 1.5]))
    # errors (1, 0) and (0, 3): 0.5 · (0.5·1 + 1.5·0)/2 + 0.5 · (0.5·0 + 1.5·9)/2
    assert float(loss) == pytest.approx(0.125 + 3.375)
    assert float(info["q_mean"]) == pytest.approx(2.5)
    torch.testing.assert_close(info["td_error"], torch.tensor([0.5, 1.5]))


def test_actor_loss_is_entropy_cost_less_value_and_moves_towards_value():
    policy = FixedPolicy([0.0, 0.0], [0.0, 0.0])
    latents, zeros = torch.zeros(2, 3), torch.zeros(2, 2)
    critic = fixed_critic([3.0, 7.0], [4.0, 2.0])
    loss, info = sac.actor_loss(policy, critic, latents, alpha=torch.tensor(0.5), noise=zeros)
    assert float(loss) == pytest.approx(0.5 * -np.log(2 * np.pi) - 2.5)
    assert float(info["entropy"]) == pytest.approx(np.log(2 * np.pi))

    policy.mean.requires_grad_()
    loss, _ = sac.actor_loss(
        policy, lambda _, a: torch.stack([a[:, 0], a[:, 0] + 1]), latents, alpha=torch.tensor(0.0), noise=zeros
    )
    loss.backward()
    assert policy.mean.grad[0] < 0, "descent must raise the action that the critic values"
    assert policy.mean.grad[1] == 0


@pytest.mark.parametrize(("entropy", "direction"), [(-3.0, 1), (-1.0, -1), (-2.0, 0)])
def test_temperature_rises_below_the_target_entropy_and_falls_above(entropy, direction):
    log_alpha = nn.Parameter(torch.tensor(-1.0))
    loss, info = sac.temperature_loss(log_alpha, torch.tensor(entropy), -2.0)
    loss.backward()
    assert np.sign(-float(log_alpha.grad)) == direction
    assert float(info["alpha"]) == pytest.approx(np.exp(-1))


# The agent


def test_running_reward_moments_are_numpys():
    agent, rng = new_agent(), np.random.default_rng(0)
    chunks = [rng.normal(50, 3, size).astype(np.float32) for size in (1, 7, 32, 2)]
    for chunk in chunks:
        agent.observe_rewards(chunk)
    rewards = np.concatenate(chunks).astype(float)
    assert float(agent.reward_count) == len(rewards)
    assert float(agent.reward_mean) == pytest.approx(rewards.mean(), rel=1e-6)
    assert float(agent.reward_square / agent.reward_count) == pytest.approx(rewards.var(), rel=1e-5)


@pytest.mark.parametrize(("pre_tanh", "action"), [(0, 0.5), (0.5, 0.7772703), (1.2, 1), (9, 1), (-1.2, 0)])
def test_the_bounds_of_actions_are_reached(pre_tanh, action):
    """0.5 (1.2 tanh 0.5 + 1) = 0.7772703; the upper bound is reached at atanh(1 / 1.2) = 1.1989476."""
    assert float(sac.to_action(torch.tensor(float(pre_tanh)))) == pytest.approx(action, abs=1e-6)


def test_updates_in_bf16_go_where_those_in_fp32_go():
    torch.manual_seed(0)
    exact = new_agent()
    fast = new_agent(bf16=True)
    fast.load_state_dict(exact.state_dict())
    batch = batch_of(256)
    for agent in (exact, fast):
        agent.observe_rewards(batch.rewards.numpy())
    losses = [agent.update(batch, torch.ones(256), generator=seeded())[1] for agent in (exact, fast)]
    for name in ("critic_loss", "actor_loss", "q_mean"):
        assert losses[1][name] == pytest.approx(losses[0][name], abs=0.02), name
    assert all(parameter.dtype == torch.float32 for parameter in fast.parameters())


def test_a_constant_added_to_every_reward_changes_no_update():
    agents = [new_agent() for _ in range(2)]
    batch, rewards = batch_of(32), np.random.default_rng(0).normal(size=100)
    for agent, shift in zip(agents, (0.0, 64.0), strict=True):
        agent.observe_rewards(rewards + shift)
        agent.update(batch._replace(rewards=batch.rewards + shift), torch.ones(32), generator=seeded())
    for one, other in zip(*(agent.actor.parameters() for agent in agents), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_rewards_that_never_vary_are_no_division_by_zero():
    agent = new_agent()
    agent.observe_rewards(np.full(10, 3.0))
    _, info = agent.update(batch_of(8, rewards=[3.0] * 8), torch.ones(8), generator=seeded())
    assert all(np.isfinite(value) for value in info.values())


def test_same_seed_same_update_bit_for_bit():
    batch = batch_of(64)

    def updated():
        agent = new_agent()
        agent.observe_rewards(batch.rewards.numpy())
        generator = seeded(5)
        for _ in range(3):
            td_error, info = agent.update(batch, torch.ones(64), generator=generator)
        return agent.state_dict(), td_error, info

    (one, td_one, info_one), (other, td_other, info_other) = updated(), updated()
    assert all(torch.equal(one[name], other[name]) for name in one)
    np.testing.assert_array_equal(td_one, td_other)
    assert info_one == info_other


def test_the_target_network_lags_as_tau_says():
    agent = new_agent(tau=0.25, lr=1e-2)
    before = copy.deepcopy(list(agent.target_critic.parameters()))
    agent.update(batch_of(32), torch.ones(32), generator=seeded())
    for old, new, online in zip(before, agent.target_critic.parameters(), agent.critic.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * online)
        assert not new.requires_grad


def test_an_update_leaves_every_part_trainable_and_the_batch_alone():
    agent, batch = new_agent(), batch_of(16)
    before = copy.deepcopy(batch)
    agent.update(batch, torch.ones(16), generator=seeded())
    for one, other in zip(batch, before, strict=True):
        torch.testing.assert_close(one, other)
    assert all(p.requires_grad for part in (agent.actor, agent.critic) for p in part.parameters())


def test_only_the_critic_trains_the_encoder():
    torch.manual_seed(1)
    encoder = nn.Linear(3, 4)
    agent = Agent(encoder, 4)
    before = encoder.weight.detach().clone()
    agent.update(batch_of(16), torch.zeros(16), generator=seeded())  # no weight, no critic loss
    torch.testing.assert_close(encoder.weight.detach(), before, msg="the actor's loss reached the encoder")
    agent.update(batch_of(16), torch.ones(16), generator=seeded())
    assert not torch.equal(encoder.weight.detach(), before)


def test_a_loss_that_is_not_finite_is_an_error_and_not_a_policy():
    batch = batch_of(8, rewards=[float("nan")] * 8)
    with pytest.raises(VtpError, match="a loss is not finite"):
        new_agent().update(batch, torch.ones(8), generator=seeded())


def test_latent_noise_is_of_updates_alone_and_comes_from_the_generator():
    def act_and_train(latent_noise):
        agent = new_agent(latent_noise=latent_noise)
        acted = agent.act(torch.ones(1, 3))
        agent.update(batch_of(8), torch.ones(8), generator=seeded())
        return acted, agent.critic.net[0].weight.detach()

    (acted, with_noise), (_, again), (acted_without, without) = map(act_and_train, (0.3, 0.3, 0.0))
    np.testing.assert_array_equal(acted, acted_without)
    torch.testing.assert_close(with_noise, again, rtol=0, atol=0)
    assert not torch.equal(with_noise, without)


@pytest.mark.slow
def test_it_learns_a_continuous_bandit_whose_best_action_depends_on_what_it_sees():
    """Reward −|a − a*(s)|² with a* = (0.2, 0.9) or (0.8, 0.3): a few hundred updates from random actions."""
    agent = new_agent(2, lr=1e-3, gamma=0.0)
    generator = seeded()
    best = torch.tensor([[0.2, 0.9], [0.8, 0.3]])
    agent.target_entropy = -5.0
    which = torch.randint(2, (2000,), generator=generator)
    actions = torch.rand(2000, 2, generator=generator)
    rewards = -(actions - best[which]).square().sum(1)
    agent.observe_rewards(rewards.numpy())
    seen = torch.eye(2)[which]
    for _ in range(300):
        rows = torch.randint(2000, (128,), generator=generator)
        batch = Transitions(seen[rows], actions[rows], rewards[rows], torch.ones(128), seen[rows])
        agent.update(batch, torch.ones(128), generator=generator)
    np.testing.assert_allclose(agent.act(torch.eye(2)), best, atol=0.12)


# Checkpoints


def saved(tmp_path):
    agent = new_agent()
    agent.observe_rewards(np.arange(5.0))
    path = tmp_path / "last.pt"
    sac.save_checkpoint(path, {"agent": agent.state_dict(), "meta": {"source": "sim", "seed": 3}, "episode": 7})
    return agent, path


def test_a_checkpoint_brings_back_the_same_policy_and_plain_values(tmp_path):
    agent, path = saved(tmp_path)
    state = sac.load_checkpoint(path)
    assert (state["meta"], state["episode"]) == ({"source": "sim", "seed": 3}, 7)
    torch.manual_seed(99)
    other = Agent(nn.Identity(), 3)
    other.load_state_dict(state["agent"])
    observations = torch.randn(4, 3)
    np.testing.assert_array_equal(agent.act(observations), other.act(observations))
    assert float(other.reward_mean) == 2.0
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")], "a temporary file was left behind"


@pytest.mark.parametrize("position", [0, 0.3, 0.5, 0.9, 1])
def test_one_flipped_byte_is_found(tmp_path, position):
    _, path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="it is damaged"):
        sac.load_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 1, 100, 5000])
def test_a_file_cut_short_or_of_another_kind_is_corrupt_even_without_a_checksum(tmp_path, keep):
    _, path = saved(tmp_path)
    for sidecar in tmp_path.glob("*.sha256"):
        sidecar.unlink()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptError, match=r"last\.pt"):
        sac.load_checkpoint(path)
    path.write_bytes(b"episode,profit\n1,20.5\n")
    with pytest.raises(CorruptError, match=r"last\.pt"):
        sac.load_checkpoint(path)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_checkpoint_does_not_run(tmp_path, write):
    trace, path = tmp_path / "it-ran", tmp_path / "evil.pt"
    write({"agent": Payload(str(trace))}, path)
    with pytest.raises(CorruptError, match=r"it was not run|is no checkpoint"):
        sac.load_checkpoint(path)
    assert not trace.exists(), "the payload ran"


def test_a_missing_checkpoint_says_what_to_do(tmp_path):
    with pytest.raises(VtpError, match="train first") as caught:
        sac.load_checkpoint(tmp_path / "last.pt")
    assert caught.value.exit_code == 2


def test_an_encoder_with_a_rate_of_its_own_falls_with_the_others():
    agent = Agent(nn.Linear(4, 3), 3, lr=1e-2, encoder_lr=1e-4)
    agent.anneal(1.0, final_entropy=-6.0)
    before = copy.deepcopy(agent.state_dict())
    observations = batch_of(16, 4)
    agent.observe_rewards(observations.rewards.numpy())
    agent.update(observations, torch.ones(16), generator=torch.Generator().manual_seed(0))
    moved = {name: float((value - before[name]).abs().max()) for name, value in agent.state_dict().items()}
    for name, lr in (("encoder.weight", 1e-4), ("critic.net.0.weight", 1e-2)):  # Adam's first step is as long
        assert moved[name] == pytest.approx(lr * sac.FINAL_LR_FACTOR, rel=0.01)
