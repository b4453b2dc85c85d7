"""What actions bring: the protocol, the simulator behind it, and the best that can be done."""

from pipeline.outcomes.logged import LoggedSteps
from pipeline.outcomes.model import OutcomeModel, Outcomes, Terms, expected_worth, step_value, step_worth
from pipeline.outcomes.of_dataset import outcomes_of
from pipeline.outcomes.off_policy import OffPolicyEstimate, Targets, estimate_off_policy
from pipeline.outcomes.optimum import Reference, best_action, blind, oracle
from pipeline.outcomes.simulated import SimulatedOutcomes

__all__ = [
    "LoggedSteps",
    "OffPolicyEstimate",
    "OutcomeModel",
    "Outcomes",
    "Reference",
    "SimulatedOutcomes",
    "Targets",
    "Terms",
    "best_action",
    "blind",
    "estimate_off_policy",
    "expected_worth",
    "oracle",
    "outcomes_of",
    "step_value",
    "step_worth",
]
