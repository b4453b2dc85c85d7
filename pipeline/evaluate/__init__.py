"""Validation of a policy, with the oracle and the blind optimum beside it.

The policy sees what it was trained to see: the simulator's state, stored clips held out from training, or fresh
rendered clips that pass through the codec, the same encoder and the same projector. Profit is expected profit given
what is worked on and the action; sampled outcomes are recorded beside it.
"""

from pipeline.callable_stage import make_callable
from pipeline.evaluate.closed_loop import PixelObserver, from_pixels
from pipeline.evaluate.evaluation import run

__all__ = ["PixelObserver", "from_pixels", "run"]

make_callable(__name__)
