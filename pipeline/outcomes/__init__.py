"""What actions bring: the protocol, the simulator behind it, and the best that can be done."""

from pipeline.outcomes.model import OutcomeModel, Outcomes, Terms, expected_worth, step_value, step_worth
from pipeline.outcomes.of_dataset import outcomes_of
from pipeline.outcomes.optimum import Reference, best_action, blind, oracle
from pipeline.outcomes.simulated import SimulatedOutcomes

__all__ = [
    "OutcomeModel",
    "Outcomes",
    "Reference",
    "SimulatedOutcomes",
    "Terms",
    "best_action",
    "blind",
    "expected_worth",
    "oracle",
    "outcomes_of",
    "step_value",
    "step_worth",
]
