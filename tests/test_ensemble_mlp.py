"""Gradients by hand against autograd's of the same network in torch's own layers."""

import pytest
import torch

from pipeline.rl.networks import Actor, TwinCritic


def outputs_and_gradients(outputs, inputs):
    """Of a network's outputs, and of a weighted sum of them in its inputs and parameters."""
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    return [outputs.detach(), *torch.autograd.grad((weights * outputs).sum(), inputs)]


def of_critic(dtype, *, fused, hidden=None):
    torch.manual_seed(0)
    critic = TwinCritic(5, 2).to(dtype)
    latents = torch.randn(9, 5, dtype=dtype, requires_grad=True)
    actions = torch.rand(9, 2, dtype=dtype, requires_grad=True)
    values = critic.fused(latents, actions, dtype=hidden or dtype) if fused else critic(latents, actions)
    return outputs_and_gradients(values, [latents, actions, *critic.parameters()])


def of_actor(dtype, *, fused, hidden=None):
    torch.manual_seed(0)
    actor = Actor(5, 2).to(dtype)
    latents = torch.randn(9, 5, dtype=dtype, requires_grad=True)
    outputs = actor.fused(latents, dtype=hidden or dtype) if fused else actor(latents)
    return outputs_and_gradients(torch.stack(outputs), [latents, *actor.parameters()])


@pytest.mark.parametrize("of_network", [of_critic, of_actor])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_outputs_and_all_gradients_are_those_of_autograd(of_network, dtype, tolerance):
    for ours, theirs in zip(of_network(dtype, fused=True), of_network(dtype, fused=False), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("of_network", [of_critic, of_actor])
def test_in_bf16_they_are_near_and_in_fp32(of_network):
    in_bf16, exact = (
        of_network(torch.float32, fused=True, hidden=torch.bfloat16),
        of_network(torch.float32, fused=False),
    )
    assert not torch.equal(in_bf16[0], exact[0])
    for ours, theirs in zip(in_bf16, exact, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.1


def test_only_gradients_that_are_wanted_are_computed():
    critic = TwinCritic(5, 2).requires_grad_(False)
    latents, actions = torch.randn(9, 5), torch.rand(9, 2, requires_grad=True)
    critic.fused(latents, actions, dtype=torch.float32).sum().backward()
    assert latents.grad is None and all(parameter.grad is None for parameter in critic.parameters())
    ours, actions.grad = actions.grad, None
    critic(latents, actions).sum().backward()
    torch.testing.assert_close(ours, actions.grad)


def test_without_onednn_they_are_the_same(monkeypatch):
    with_it = of_critic(torch.float32, fused=True)
    monkeypatch.setattr("pipeline.rl.ensemble_mlp.ONEDNN", False)
    for one, other in zip(with_it, of_critic(torch.float32, fused=True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_all_networks_at_once_are_the_same_as_one_at_a_time(monkeypatch):
    """As on a GPU."""
    apart = of_critic(torch.float64, fused=True)
    monkeypatch.setattr("pipeline.rl.ensemble_mlp.is_split", lambda weight: False)
    for one, other in zip(apart, of_critic(torch.float64, fused=True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
