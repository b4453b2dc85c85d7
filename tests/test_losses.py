import numpy as np
import pytest
import torch
from torch import nn

from pipeline.rl import losses
from pipeline.rl.losses import LatentTransitions


class FixedPolicy:
    """An actor with constant output."""

    def __init__(self, mean, log_std):
        self.mean, self.log_std = torch.tensor(mean), torch.tensor(log_std)

    def __call__(self, latents):
        return self.mean.expand(len(latents), 2), self.log_std.expand(len(latents), 2)


def fixed_critic(*values):
    """Twin critics that return `values` [2, B] for any input."""
    return lambda latents, actions: torch.tensor(values)


def batch_of(size, *, rewards=None, masks=None):
    return LatentTransitions(
        torch.zeros(size, 3),
        torch.full((size, 2), 0.5),
        torch.zeros(size) if rewards is None else torch.tensor(rewards),
        torch.ones(size) if masks is None else torch.tensor(masks),
        torch.zeros(size, 3),
    )


def test_td_target_is_the_smaller_critic_with_entropy_and_mask():
    policy = FixedPolicy([0.0, 0.0], [0.0, 0.0])
    batch = batch_of(2, rewards=[1.0, 5.0], masks=[1.0, 0.0])
    target = losses.td_target(
        batch, policy, fixed_critic([3.0, 7.0], [4.0, 2.0]), alpha=torch.tensor(0.5), gamma=0.9, noise=torch.zeros(2, 2)
    )
    log_prob = -np.log(2 * np.pi)  # two standard normals at 0, where tanh has slope one
    torch.testing.assert_close(target, torch.tensor([1.0 + 0.9 * (3.0 - 0.5 * log_prob), 5.0], dtype=torch.float32))


def test_without_a_future_the_target_is_the_reward():
    batch = batch_of(2, rewards=[1.0, 5.0])
    target = losses.td_target(batch, None, None, alpha=torch.tensor(0.5), gamma=0.0, noise=torch.zeros(2, 2))
    assert target.tolist() == [1.0, 5.0]


def test_critic_loss_is_half_the_weighted_mean_square_of_both():
    batch, target = batch_of(2), torch.tensor([1.0, 2.0])
    loss, info = losses.critic_loss(fixed_critic([2.0, 2.0], [1.0, 5.0]), batch, target, torch.tensor([0.5, 1.5]))
    # errors (1, 0) and (0, 3): 0.5 · (0.5·1 + 1.5·0)/2 + 0.5 · (0.5·0 + 1.5·9)/2
    assert float(loss) == pytest.approx(0.125 + 3.375)
    assert float(info["q_mean"]) == pytest.approx(2.5)
    torch.testing.assert_close(info["td_error"], torch.tensor([0.5, 1.5]))


def test_actor_loss_is_entropy_cost_less_value_and_moves_towards_value():
    policy = FixedPolicy([0.0, 0.0], [0.0, 0.0])
    latents, zeros = torch.zeros(2, 3), torch.zeros(2, 2)
    critic = fixed_critic([3.0, 7.0], [4.0, 2.0])
    loss, info = losses.actor_loss(policy, critic, latents, alpha=torch.tensor(0.5), noise=zeros)
    assert float(loss) == pytest.approx(0.5 * -np.log(2 * np.pi) - 2.5)
    assert float(info["entropy"]) == pytest.approx(np.log(2 * np.pi))

    policy.mean.requires_grad_()
    loss, _ = losses.actor_loss(
        policy, lambda _, a: torch.stack([a[:, 0], a[:, 0] + 1]), latents, alpha=torch.tensor(0.0), noise=zeros
    )
    loss.backward()
    assert policy.mean.grad[0] < 0, "descent must raise the action that the critic values"
    assert policy.mean.grad[1] == 0


@pytest.mark.parametrize(("entropy", "direction"), [(-3.0, 1), (-1.0, -1), (-2.0, 0)])
def test_temperature_rises_below_the_target_entropy_and_falls_above(entropy, direction):
    log_alpha = nn.Parameter(torch.tensor(-1.0))
    loss, info = losses.temperature_loss(log_alpha, torch.tensor(entropy), -2.0)
    loss.backward()
    assert np.sign(-float(log_alpha.grad)) == direction
    assert float(info["alpha"]) == pytest.approx(np.exp(-1))
