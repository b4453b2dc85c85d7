"""Export a run's policy to a file, and load a policy from a run or a file."""

from __future__ import annotations

from pathlib import Path

from pipeline import runs, storage
from pipeline.config import PolicyExportConfig
from pipeline.files import atomic_path
from pipeline.kept_inputs import keep_inputs
from pipeline.policy import onnx_format, safetensors_format
from pipeline.policy.card import Network, act_of, card_of
from pipeline.policy.loaded_policy import Policy
from pipeline.run_directory import check_policy
from pipeline.runs.judgement import is_by_logs, judge_of, over_logging_policy

FORMATS = {"onnx": onnx_format, "safetensors": safetensors_format}
SUFFIXES = {name: f".{name}" for name in FORMATS}


def export(cfg: PolicyExportConfig) -> Path:
    """Write the run's best policy to a file; returns its path."""
    path = cfg.out or runs.RunDirectory(cfg.run).policy_file(SUFFIXES[cfg.to])
    agent, metadata = runs.load_policy(cfg.run)
    trained_on = [] if metadata.clips is None else [storage.path_of(metadata.clips.embeddings)]
    keep_inputs(cfg, [path], reads=[*runs.RunDirectory(cfg.run).read, *trained_on])
    content = FORMATS[cfg.to].write(Network(agent).eval(), card_of(metadata, validation_of(runs.RunDirectory(cfg.run))))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def load(path: Path) -> Policy:
    """The policy of a run directory or an exported file; CorruptError if it is damaged, or could run code."""
    check_policy(path)
    if path.is_dir():
        agent, metadata = runs.load_policy(path)
        card = card_of(metadata, validation_of(runs.RunDirectory(path)))
        embeddings = None if metadata.clips is None else metadata.clips.embeddings
        return Policy(card, act_of(Network(agent))).at(path, embeddings)
    policy = FORMATS[path.suffix.removeprefix(".")].read(path, path.read_bytes())
    trained_on = policy.card.provenance.get("embeddings")
    return policy.at(path, None if trained_on is None else str(trained_on))


def validation_of(run: runs.RunDirectory) -> str:
    """A run's latest validation and the policy's profit there, as text; empty before the first.

    If logs are the judge, their verdict, and the change over the logging policy if it is identified.
    """
    if not run.latest.summary.exists():
        return ""
    summary = run.read_summary()
    if is_by_logs(summary) and (found := over_logging_policy(summary)) is not None:
        change = "" if found.change is None or not found.is_known else f": {found.change[0]:+.2f} $/h"
        return f"{judge_of(summary)}: {found.beyond('the logging policy')}{change}"
    profit, bounds = summary.get("profit_mean"), summary.get("profit_ci95")
    earned = "" if profit is None else f": profit {profit:.2f} $/h"
    return f"{summary.get('validation', '')}{earned}" + (f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else "")
