"""Run directories: their files, their policies, and the figures of their evaluations."""

from pipeline.run_directory import RunDirectory
from pipeline.runs.checkpoint_file import load_checkpoint, save_checkpoint
from pipeline.runs.loading import (
    agent_of,
    build_agent,
    check_same_inputs,
    check_weights,
    load_embeddings,
    load_metadata,
    load_outcomes,
    load_policy,
    observed,
    outcomes_trained_on,
)
from pipeline.runs.metadata import ClipInputs, Encoding, OutcomesKind, PolicyMetadata
from pipeline.runs.summary import summarise, write_summary

__all__ = [
    "ClipInputs",
    "Encoding",
    "OutcomesKind",
    "PolicyMetadata",
    "RunDirectory",
    "agent_of",
    "build_agent",
    "check_same_inputs",
    "check_weights",
    "load_checkpoint",
    "load_embeddings",
    "load_metadata",
    "load_outcomes",
    "load_policy",
    "observed",
    "outcomes_trained_on",
    "save_checkpoint",
    "summarise",
    "write_summary",
]
