import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from pipeline.rl import networks
from pipeline.rl.networks import Actor, EnsembleLinear, TwinCritic


@pytest.fixture(autouse=True)
def one_thread_and_a_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


# The policy's density


def test_log_prob_equals_torchs_tanh_gaussian():
    mean, log_std, noise = 2 * torch.randn(200, 2), torch.randn(200, 2).clamp(-2, 1), torch.randn(200, 2)
    mean, log_std, noise = (x.double() for x in (mean, log_std, noise))
    actions, log_prob = networks.sample_action(mean, log_std, noise)
    reference = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), TanhTransform(cache_size=1))
    pre_tanh = mean + log_std.exp() * noise
    near = pre_tanh.abs().amax(1) < 8  # further out, torch's atanh of a rounded tanh loses digits
    reached = (0.5 + 0.5 * networks.STRETCH * torch.tanh(pre_tanh[near])).clamp(0, 1)
    torch.testing.assert_close(actions[near], reached)
    torch.testing.assert_close(log_prob[near], reference.log_prob(torch.tanh(pre_tanh))[near], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.8, -0.5), (-1.0, -1.0)])
def test_density_integrates_to_one_over_the_tanh_space(mean, log_std):
    edge = torch.linspace(-1, 1, 2001, dtype=torch.double)
    actions = (edge[1:] + edge[:-1]) / 2  # midpoints
    noise = (torch.atanh(actions) - mean) / np.exp(log_std)
    grid = torch.stack([noise, noise], 1)
    _, log_prob = networks.sample_action(torch.full_like(grid, mean), torch.full_like(grid, log_std), grid)
    # Both coordinates move together along the grid, so its square root is one coordinate's density.
    integral = (log_prob / 2).exp().sum() * (2 / 2000)
    assert float(integral) == pytest.approx(1, abs=1e-3)


def test_log_prob_stays_finite_at_the_corner_of_the_action_space():
    pre_tanh = torch.tensor([[30.0, -30.0], [300.0, 0.0]])
    actions, log_prob = networks.sample_action(pre_tanh, torch.full((2, 2), -5.0), torch.zeros(2, 2))
    assert torch.isfinite(log_prob).all()
    torch.testing.assert_close(actions, torch.tensor([[1.0, 0.0], [1.0, 0.5]]))


@pytest.mark.parametrize(("pre_tanh", "action"), [(0, 0.5), (0.5, 0.7772703), (1.2, 1), (9, 1), (-1.2, 0)])
def test_the_bounds_of_actions_are_reached(pre_tanh, action):
    """0.5 (1.2 tanh 0.5 + 1) = 0.7772703; the upper bound is reached at atanh(1 / 1.2) = 1.1989476."""
    assert float(networks.to_unit(torch.tensor(float(pre_tanh)))) == pytest.approx(action, abs=1e-6)


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
    critic, latents, actions = TwinCritic(3, 2), torch.randn(6, 3), torch.rand(6, 2)
    q = critic(latents, actions)
    assert q.shape == (2, 6)
    assert not torch.allclose(q[0], q[1])
    assert not torch.allclose(q, critic(latents, 1 - actions))


def test_the_policys_deviation_is_kept_in_range():
    actor = Actor(3, 2)
    actor.net[-1].bias.data[2:] = torch.tensor([100.0, -100.0])
    low, high = networks.LOG_STD_RANGE
    _, log_std = actor(torch.randn(4, 3))
    torch.testing.assert_close(log_std, torch.tensor([[high, low]]).expand(4, 2))


@pytest.mark.parametrize("num_actions", [1, 2, 3, 7])
def test_networks_have_any_number_of_actions(num_actions):
    latents = torch.randn(5, 3)
    mean, log_std = Actor(3, num_actions)(latents)
    assert mean.shape == log_std.shape == (5, num_actions)
    actions, log_prob = networks.sample_action(mean, log_std, torch.randn(5, num_actions))
    assert (actions.shape, log_prob.shape) == ((5, num_actions), (5,))
    assert TwinCritic(3, num_actions)(latents, actions).shape == (2, 5)
