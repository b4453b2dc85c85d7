"""A data set in the files of other libraries: arrays, a table, or episodes of embeddings, actions and rewards.

One module per format; `docs/exports.md` shows how to load each and lists what it leaves out.
"""

from pipeline.exports.exporting import ExportResult, run

__all__ = ["ExportResult", "run"]
