"""What actions bring: the protocol, the simulator behind it, its logs, and the best that can be done."""

from pipeline.outcomes.logging_policy import LOGGERS, LoggingPolicy, logging_policy
from pipeline.outcomes.model import OutcomeModel, Outcomes, Terms, expected_worth, step_value, step_worth
from pipeline.outcomes.of_dataset import outcomes_of
from pipeline.outcomes.optimum import Reference, best_action, blind, oracle
from pipeline.outcomes.simulated import SimulatedOutcomes
from pipeline.outcomes.simulated_logs import SimulatedLogs, simulate_logs

__all__ = [
    "LOGGERS",
    "LoggingPolicy",
    "OutcomeModel",
    "Outcomes",
    "Reference",
    "SimulatedLogs",
    "SimulatedOutcomes",
    "Terms",
    "best_action",
    "blind",
    "expected_worth",
    "logging_policy",
    "oracle",
    "outcomes_of",
    "simulate_logs",
    "step_value",
    "step_worth",
]
