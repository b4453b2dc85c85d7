"""Fold batch norms into convolutions."""

from __future__ import annotations

import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_norms(network: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution before it, in place; children are in order of computation."""
    for module in list(network.modules()):
        for (name, one), (next_name, other) in itertools.pairwise(list(module.named_children())):
            if isinstance(one, nn.Conv2d | nn.Conv3d) and isinstance(other, nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(module, name, fuse_conv_bn_eval(one, other))
                setattr(module, next_name, nn.Identity())
    return network
