"""Closed-loop validation of a policy, with the oracle and the blind optimum beside it.

The policy sees what it was trained to see: the simulator's state, stored clips held out from training, or fresh
rendered clips that pass through the codec, the same encoder and the same projector. Profit is expected profit,
analytic given context and action; sampled outcomes are recorded beside it.
"""

from pipeline.evaluate.loops import from_pixels, in_simulator, on_clips
from pipeline.evaluate.reference import (
    Reference,
    blind,
    bootstrap95,
    interquartile_mean,
    interval95,
    oracle,
    summarise,
)
from pipeline.evaluate.runs import (
    CHANGED,
    SIM_EPISODES,
    OutcomeModel,
    build_agent,
    check_same_inputs,
    load_embeddings,
    load_run,
    observed,
    outcome_model,
    run,
    split_rows,
    video_of,
    write_summary,
)

__all__ = [
    "CHANGED",
    "SIM_EPISODES",
    "OutcomeModel",
    "Reference",
    "blind",
    "bootstrap95",
    "build_agent",
    "check_same_inputs",
    "from_pixels",
    "in_simulator",
    "interquartile_mean",
    "interval95",
    "load_embeddings",
    "load_run",
    "observed",
    "on_clips",
    "oracle",
    "outcome_model",
    "run",
    "split_rows",
    "summarise",
    "video_of",
    "write_summary",
]
