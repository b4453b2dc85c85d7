"""A data set in the files of other libraries: arrays, a table, or episodes of embeddings, actions and rewards.

A module a format writes it; `docs/exports.md` says how each is loaded and what it leaves out.
"""

from pipeline.exports.exporting import ExportResult, run

__all__ = ["ExportResult", "run"]
