"""A run's policy as one file; its actions and expected profit for the clips of an embeddings file.

The policy is the deterministic map that was validated: observations → encoder → averaged actor → tanh of the mean, as
actions in the task's units. Each file has a card in its format's metadata: the policy's observations, their encoder
and projector, its run, its training data and its validation. The format modules say what a file may contain.
"""

from pipeline.policy.acting import act
from pipeline.policy.card import Card, Encoding, card_of
from pipeline.policy.loaded_policy import Policy
from pipeline.policy.policy_file import SUFFIXES, export, load

__all__ = ["SUFFIXES", "Card", "Encoding", "Policy", "act", "card_of", "export", "load"]
