import copy

import numpy as np
import pytest
import torch
from raising import raises
from torch import nn

from pipeline import encoders, runs
from pipeline.rl import sac
from pipeline.rl.networks import to_unit
from pipeline.rl.sac import Agent, Transitions
from pipeline.tasks import Task, load_task


@pytest.fixture(autouse=True)
def one_thread_and_a_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


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
    return Agent(nn.Identity(), latent_size, **{"low": [0.0, 0.0], "high": [1.0, 1.0], **settings})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_without_a_generator_the_action_is_that_of_the_mean():
    agent = new_agent()
    observations = torch.randn(5, 3)
    mean, _ = agent.actor(observations)
    actions = agent.act(observations)
    np.testing.assert_allclose(actions, to_unit(mean).detach().numpy(), rtol=1e-6)
    np.testing.assert_array_equal(actions, agent.act(observations))


def test_sampled_actions_explore_the_unit_square_and_follow_the_generator():
    agent, observations = new_agent(), torch.zeros(500, 3)
    actions = agent.act(observations, generator=seeded())
    assert actions.min() >= 0
    assert actions.max() <= 1
    assert (actions.std(0) > 0.1).all()
    np.testing.assert_array_equal(actions, agent.act(observations, generator=seeded()))
    assert (actions != agent.act(observations, generator=seeded(1))).any()


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


def test_updates_in_bf16_are_near_those_in_fp32():
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


def test_constant_rewards_do_not_divide_by_zero():
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


def test_the_target_network_follows_with_step_tau():
    agent = new_agent(tau=0.25, lr=1e-2)
    before = copy.deepcopy(list(agent.target_critic.parameters()))
    agent.update(batch_of(32), torch.ones(32), generator=seeded())
    for old, new, online in zip(before, agent.target_critic.parameters(), agent.critic.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * online)
        assert not new.requires_grad


def test_an_update_keeps_every_part_trainable_and_the_batch_unchanged():
    agent, batch = new_agent(), batch_of(16)
    before = copy.deepcopy(batch)
    agent.update(batch, torch.ones(16), generator=seeded())
    for one, other in zip(batch, before, strict=True):
        torch.testing.assert_close(one, other)
    assert all(p.requires_grad for part in (agent.actor, agent.critic) for p in part.parameters())


def test_only_the_critic_trains_the_encoder():
    torch.manual_seed(1)
    encoder = nn.Linear(3, 4)
    agent = Agent(encoder, 4, low=[0, 0], high=[1, 1])
    before = encoder.weight.detach().clone()
    agent.update(batch_of(16), torch.zeros(16), generator=seeded())  # no weight, no critic loss
    torch.testing.assert_close(encoder.weight.detach(), before, msg="the actor's loss reached the encoder")
    agent.update(batch_of(16), torch.ones(16), generator=seeded())
    assert not torch.equal(encoder.weight.detach(), before)


def test_a_loss_that_is_not_finite_is_an_error():
    batch = batch_of(8, rewards=[float("nan")] * 8)
    with raises("loss-not-finite"):
        new_agent().update(batch, torch.ones(8), generator=seeded())


def test_latent_noise_is_only_in_updates_and_from_the_generator():
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
def test_it_learns_a_continuous_bandit_whose_best_action_depends_on_the_observation():
    """Reward −|a − a*(s)|² with a* = (0.2, 0.9) or (0.8, 0.3): a few hundred updates from random actions."""
    agent = new_agent(2, lr=1e-3, gamma=0.0)
    generator = seeded()
    best = torch.tensor([[0.2, 0.9], [0.8, 0.3]])
    agent.target_entropy.fill_(-5.0)
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


def test_the_encoders_own_learning_rate_decays_with_the_others():
    agent = Agent(nn.Linear(4, 3), 3, low=[0, 0], high=[1, 1], lr=1e-2, encoder_lr=1e-4)
    agent.anneal(1.0, final_entropy=-6.0)
    before = copy.deepcopy(agent.state_dict())
    observations = batch_of(16, 4)
    agent.observe_rewards(observations.rewards.numpy())
    agent.update(observations, torch.ones(16), generator=torch.Generator().manual_seed(0))
    moved = {name: float((value - before[name]).abs().max()) for name, value in agent.state_dict().items()}
    for name, lr in (("encoder.weight", 1e-4), ("critic.net.0.weight", 1e-2)):  # Adam's first step has this size
        assert moved[name] == pytest.approx(lr * sac.FINAL_LR_FACTOR, rel=0.01)


# Actions in the task's own units


@pytest.mark.parametrize(
    ("low", "high"), [([0.1], [0.3]), ([-2.0, 0.1, 1e6 + 0.03], [5.0, 1.5, 1e6 + 200]), ([-0.3, 1 / 3], [-0.1, 2 / 3])]
)
def test_actions_are_within_bounds_even_in_32_bits(low, high):
    """In float32, 0.3 is more than 0.3."""
    agent = new_agent(low=np.array(low), high=np.array(high))
    observations = 50 * torch.randn(2000, 3)
    for actions in (agent.act(observations), agent.act(observations, generator=seeded())):
        assert actions.shape == (2000, len(low))
        assert (actions.astype(float) >= low).all() and (actions.astype(float) <= high).all()
    ends = agent.from_unit(torch.tensor([[0.0], [1.0]]).expand(2, len(low)))
    np.testing.assert_allclose(ends, [low, high], rtol=3e-7, err_msg="the bounds are reached")


def test_actions_are_mapped_from_the_unit_box_by_hand():
    agent = new_agent(low=[-2.0, 0.1], high=[5.0, 0.3])
    np.testing.assert_allclose(agent.from_unit(torch.tensor([[0.0, 1.0], [0.5, 0.25]])), [[-2, 0.3], [1.5, 0.15]])


def test_an_update_does_not_depend_on_the_unit_of_an_action():
    batch = batch_of(64)
    low, high = torch.tensor([-2.0, 10.0]), torch.tensor([5.0, 30.0])
    plain, scaled = new_agent(), new_agent(low=low, high=high)
    for agent, actions in ((plain, batch.actions), (scaled, low + batch.actions * (high - low))):
        agent.update(batch._replace(actions=actions), torch.ones(64), generator=seeded())
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_bounds_are_saved_with_the_weights():
    agent = new_agent(low=[-2.0, 0.1], high=[5.0, 0.3])
    other = new_agent()
    other.load_state_dict(agent.state_dict())
    observations = torch.randn(5, 3)
    np.testing.assert_array_equal(agent.act(observations), other.act(observations))
    np.testing.assert_allclose(other.action_high, [5.0, 0.3], rtol=2e-7)


@pytest.mark.slow
@pytest.mark.parametrize("num_actions", [1, 3])
def test_it_learns_a_bandit_whose_best_action_lies_inside_other_bounds(num_actions):
    """Bounds [-2, 5], the best action at 3.1, -0.4 and 1.0; from 2,000 random actions."""
    best = torch.tensor([3.1, -0.4, 1.0])[:num_actions]
    agent = new_agent(2, lr=1e-3, gamma=0.0, tau=0.02, low=np.full(num_actions, -2.0), high=np.full(num_actions, 5.0))
    agent.target_entropy.fill_(-4.0 * num_actions)
    generator = seeded()
    actions = -2 + 7 * torch.rand(2000, num_actions, generator=generator)
    rewards = -(actions - best).square().sum(1)
    agent.observe_rewards(rewards.numpy())
    seen = torch.ones(2000, 2)
    for _ in range(400):
        rows = torch.randint(2000, (128,), generator=generator)
        batch = Transitions(seen[rows], actions[rows], rewards[rows], torch.ones(128), seen[rows])
        agent.update(batch, torch.ones(128), generator=generator)
    np.testing.assert_allclose(agent.act(torch.ones(1, 2))[0], best, atol=0.6)


@pytest.mark.parametrize("name", ["dishwashing", "bin-picking"])
def test_an_agent_is_built_for_the_actions_of_its_task(name):
    task = load_task(name)
    agent = runs.build_agent("sim", task)
    np.testing.assert_allclose(agent.action_low, task.low)
    np.testing.assert_allclose(agent.action_high, task.high)
    assert agent.act(torch.rand(3, 4)).shape == (3, task.num_actions)
    assert runs.build_agent("embeddings", task).auxiliary is None


@pytest.mark.parametrize("num_actions", [1, 3])
def test_the_auxiliary_heads_take_any_number_of_actions(num_actions):
    settings = load_task("bin-picking").model_dump() | {"simulator": None}
    settings["actions"] = {f"a{index}": {"low": -2.0, "high": 5.0} for index in range(num_actions)}
    agent = runs.build_agent("sim", Task.model_validate(settings))
    inputs = {module.in_features for module in agent.auxiliary.modules() if isinstance(module, nn.Linear)}
    assert encoders.EMBEDDING_DIM + num_actions in inputs
    batch = Transitions(
        torch.rand(8, 4), -2 + 7 * torch.rand(8, num_actions), torch.randn(8), torch.ones(8), torch.rand(8, 4)
    )
    _, info = agent.update(batch, torch.ones(8), generator=seeded())
    assert {"consistency_loss", "contrastive_loss"} <= set(info)
