"""A small data set of four videos to export, and the call that exports it."""

import re
from dataclasses import replace

import numpy as np
from logged_data import data_set

from pipeline import exports
from pipeline.config import ExportConfig, Settings

IDS = ["kitchen/a.mp4", "yard/a.mp4", "b.mkv", "c"]
SPLITS = ["val", "train", "test", "train"]
IN_ORDER = ["yard/a.mp4", "c", "kitchen/a.mp4", "b.mkv"]  # of splits, as episodes are written
PRESSING = """
    name: pressing
    step_s: 30.0
    human_wage_usd: 15.0
    costs_usd_per_hour: {power: 1.5, rent: 2.0}
    actions: {pressure: {low: 2.0, high: 12.0}, dwell: {low: 0.1, high: 1.0}}
    contexts:
      soft: {price_usd: 0.10, damage_usd: 0.50}
      firm: {price_usd: 0.20, damage_usd: 0.30}
    """


def five_clips_each(task, **logs):
    """Four videos of five clips; an even clip has 4 attempts and 1 error in `soft`, an odd one 2 and 0 in `firm`."""
    rng, even = np.random.default_rng(1), np.arange(20) % 2 == 0
    data = data_set(
        task,
        np.where(even, "soft", "firm"),
        np.column_stack([rng.uniform(2, 12, 20), rng.uniform(0.1, 1, 20)]),
        np.where(even, 4, 2),
        np.where(even, 1, 0),
        videos=4,
        splits=SPLITS,
        **logs,
    )
    return replace(data, videos=replace(data.videos, id=IDS, path=[f"/videos/{name}" for name in IDS]))


def unlogged(data, *clips, of=("attempts",)):
    """The data set without those columns of the logs in some clips."""
    columns = {name: getattr(data.logs, name).copy() for name in of}
    for column in columns.values():
        column[list(clips)] = np.nan
    return replace(data, logs=replace(data.logs, **columns))


def export(to, path, **settings):
    return exports.run(Settings(ExportConfig).of({"to": to, "embeddings": path, **settings}))


def code_of_page(page, name):
    """The Python in a format's section of docs/exports.md."""
    return re.search(rf"\n## {name}\n.*?```python\n(.*?)```", page, re.S).group(1)
