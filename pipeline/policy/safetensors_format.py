"""A policy in safetensors: numbers and text without code; the network is vtp's."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch

from pipeline import runs
from pipeline.policy.card import CARD, Card, Network, act_of, damaged, open_card, seal
from pipeline.policy.loaded_policy import Policy


def write(network: Network, card: Card) -> bytes:
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    return seal(safetensors.torch.save(tensors, {CARD: card.model_dump_json()}))


def read(path: Path, content: bytes) -> Policy:
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        card = open_card(path, header["__metadata__"][CARD], content)
        network = Network(runs.build_agent(card.source, card.task)).eval()
        network.load_state_dict(safetensors.torch.load(content))
    except (ValueError, TypeError, LookupError, RuntimeError, safetensors.SafetensorError) as error:
        raise damaged(path, error) from error
    return Policy(card, act_of(network))
