"""Outcomes of actions: the protocol, the simulator, outcomes learned from logs, optima and off-policy evaluation."""

from pipeline.outcomes.fitting import bootstraps
from pipeline.outcomes.learned import Caution, LearnedOutcomes
from pipeline.outcomes.logged import LoggedSteps
from pipeline.outcomes.logging_policy import LOGGERS, LoggingPolicy, logging_policy
from pipeline.outcomes.model import OutcomeModel, Outcomes, Terms, expected_worth, step_value, step_worth
from pipeline.outcomes.of_dataset import (
    clip_contexts,
    clip_terms,
    learned_from,
    logged_steps,
    outcomes_of,
    what_logs_lack,
)
from pipeline.outcomes.off_policy import OffPolicyEstimate, Targets, estimate_off_policy
from pipeline.outcomes.optimum import Reference, best_action, blind, oracle
from pipeline.outcomes.simulated import SimulatedOutcomes
from pipeline.outcomes.simulated_logs import SimulatedLogs, simulate_logs

__all__ = [
    "LOGGERS",
    "Caution",
    "LearnedOutcomes",
    "LoggedSteps",
    "LoggingPolicy",
    "OffPolicyEstimate",
    "OutcomeModel",
    "Outcomes",
    "Reference",
    "SimulatedLogs",
    "SimulatedOutcomes",
    "Targets",
    "Terms",
    "best_action",
    "blind",
    "bootstraps",
    "clip_contexts",
    "clip_terms",
    "estimate_off_policy",
    "expected_worth",
    "learned_from",
    "logged_steps",
    "logging_policy",
    "oracle",
    "outcomes_of",
    "simulate_logs",
    "step_value",
    "step_worth",
    "what_logs_lack",
]
