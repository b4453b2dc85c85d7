"""A run's policy as one file, and what it does, and is expected to earn, in the clips of an embeddings file.

The policy is the deterministic map that validation judged: observations → encoder → averaged actor → tanh of the mean,
as actions in the task's units. Each file carries a card in its format's own metadata: what the policy observes, which
encoder and projector that was made with, the run that it comes from, what it was learned from and how it was validated.
Each format says what it trusts a file with.
"""

from pipeline.policy.acting import act
from pipeline.policy.card import Card, Encoding, card_of
from pipeline.policy.loaded_policy import Policy
from pipeline.policy.policy_file import SUFFIXES, export, load

__all__ = ["SUFFIXES", "Card", "Encoding", "Policy", "act", "card_of", "export", "load"]
