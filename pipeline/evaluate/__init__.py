"""Validation of a policy, compared with the oracle and the blind optimum.

The policy observes what it was trained on: the simulator's state, stored clips held out from training, or newly
rendered clips that pass through the codec and the same encoder and projector. Profit is the expected profit given the
context and the action; sampled outcomes are recorded too.
"""

from pipeline.callable_stage import make_callable
from pipeline.evaluate.closed_loop import PixelObserver, from_pixels
from pipeline.evaluate.evaluation import run

__all__ = ["PixelObserver", "from_pixels", "run"]

make_callable(__name__)
