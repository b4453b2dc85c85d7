"""Networks with two hidden layers, alone or in ensembles, with gradients by hand.

Updates of such small networks are bound by passes over memory and by the number of operations. autograd would store and
reread every intermediate result; here a layer is a product, a layer norm and a ReLU in place, forward and backward, and
gradients that nobody asks for are not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

NORM_EPS = 1e-5  # nn.LayerNorm's
ONEDNN = torch.backends.mkldnn.is_available()


def ensemble_mlp(
    latents: Tensor, actions: Tensor | None, parameters: Sequence[Tensor], *, is_normed: bool, dtype: torch.dtype
) -> Tensor:
    """The outputs [E, B, out] of E networks for latents [B, Z] and, if given, actions [B, A] beside them.

    parameters: weight [E, in, out] and bias [E, 1, out] of each of three layers; or without E of one network, whose
    outputs are [B, out]. is_normed: with a layer norm without gains before each ReLU. dtype: of the hidden layers; the
    last layer is computed in the parameters' own, because bf16 has only two or three digits.
    """
    return _EnsembleMLP.apply(latents, actions, is_normed, dtype, *parameters)


class _Hidden(NamedTuple):
    """A hidden layer of one network, or of E at once: its input, weight, output, and what its layer norm keeps."""

    inputs: Tensor  # (B, in) or (E, B, in)
    weight: Tensor  # (in, out) or (E, in, out)
    outputs: Tensor  # (B, out) or (E, B, out)
    normed: tuple[Tensor, Tensor, Tensor] | None  # product, mean, 1 / standard deviation

    @classmethod
    def forward(cls, inputs: Tensor, weight: Tensor, bias: Tensor, *, is_normed: bool) -> _Hidden:
        product = _product(inputs, weight, bias)
        if not is_normed:
            return cls(inputs, weight, product.relu_(), None)
        size = product.shape[-1:]
        gain = shift = None
        if product.device.type == "cpu":  # where torch is slower without gains
            gain, shift = product.new_ones(size), product.new_zeros(size)
        outputs, mean, rstd = torch.native_layer_norm(product, size, gain, shift, NORM_EPS)
        return cls(inputs, weight, outputs.relu_(), (product, mean, rstd))

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient of the layer's product, from that of its output."""
        gradient = torch.ops.aten.threshold_backward(gradient, self.outputs, 0)
        if self.normed is None:
            return gradient
        product, mean, rstd = self.normed
        return torch.ops.aten.native_layer_norm_backward(
            gradient, product, product.shape[-1:], mean, rstd, None, None, [True, False, False]
        )[0]


class _EnsembleMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, latents: Tensor, actions: Tensor | None, is_normed: bool, dtype: torch.dtype, *parameters: Tensor
    ) -> Tensor:
        inputs = (latents if actions is None else torch.cat([latents, actions], -1)).to(dtype)
        hidden, last = parameters[:4], parameters[4:]
        ctx.is_split = is_split(last[0])
        ctx.latent_size, ctx.layers, outputs = latents.shape[-1], [], []
        of_networks = _networks(ctx.is_split, *(parameter.to(dtype) for parameter in hidden), *last)
        for weight1, bias1, weight2, bias2, weight3, bias3 in of_networks:
            first = _Hidden.forward(inputs, weight1, bias1, is_normed=is_normed)
            second = _Hidden.forward(first.outputs, weight2, bias2, is_normed=is_normed)
            last_inputs = second.outputs.to(weight3.dtype)
            outputs.append(_product(last_inputs, weight3, bias3))
            ctx.layers.append((first, second, last_inputs, weight3))
        return _joined(ctx.is_split, outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        for_latents, for_actions, _, _, *for_parameters = ctx.needs_input_grad
        dtype = gradients[0].dtype
        of_latents: Tensor | None = None
        of_actions: Tensor | None = None
        of_parameters = []
        for (first, second, last_inputs, weight3), (last,) in zip(
            ctx.layers, _networks(ctx.is_split, gradients[0]), strict=True
        ):
            hidden2 = second.backward(_product(last, weight3.mT).to(second.weight.dtype))
            hidden1 = first.backward(_product(hidden2, second.weight.mT))
            if any(for_parameters):
                layers = (first.inputs, hidden1), (second.inputs, hidden2), (last_inputs, last)
                of_parameters.append([each for layer in layers for each in _weight_and_bias(*layer)])
            if for_latents:
                of_latents = _sum(of_latents, _product(hidden1, first.weight[..., : ctx.latent_size, :].mT))
            if for_actions:
                of_actions = _sum(of_actions, _product(hidden1, first.weight[..., ctx.latent_size :, :].mT))
        joined: list[Tensor | None] = [None for _ in for_parameters]
        if of_parameters:
            joined = [_joined(ctx.is_split, parts).to(dtype) for parts in zip(*of_parameters, strict=True)]
        return of_latents, of_actions, None, None, *joined


def is_split(weight: Tensor) -> bool:
    """Whether networks are computed one after another: on a processor, whose cache then holds all of one."""
    return weight.ndim == 3 and weight.device.type == "cpu"


def _networks(one_by_one: bool, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors of each network, or of all at once."""
    return list(zip(*(tensor.unbind() for tensor in tensors), strict=True)) if one_by_one else [tensors]


def _joined(one_by_one: bool, parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)) if one_by_one else parts[0]


def _sum(total: Tensor | None, gradient: Tensor) -> Tensor:
    """The gradient of an input that all networks share, in fp32."""
    gradient = gradient.float() if gradient.dtype == torch.bfloat16 else gradient
    gradient = gradient.sum(0) if gradient.ndim == 3 else gradient
    return gradient if total is None else total + gradient


def _weight_and_bias(inputs: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a layer's weight and bias, from that of its product."""
    return _product(inputs.mT, gradient), gradient.sum(-2, keepdim=True)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [B, in], weight [in, out], bias [out] → [B, out], or with E before each but x, for which it is optional.

    On a processor torch computes fp32 products with MKL, which has AVX2 only on AMD's; oneDNN has AVX-512 on both.
    """
    if weight.ndim == 3:
        x = x.expand(len(weight), -1, -1)
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)
    is_large = min(*x.shape, *weight.shape) > 1
    if ONEDNN and is_large and x.dtype == torch.float32 and x.device.type == "cpu":
        return torch.ops.mkldnn._linear_pointwise(
            x, weight.mT, None if bias is None else bias.flatten(), "none", [], ""
        )
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)
