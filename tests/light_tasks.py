"""Tasks for worker processes, in their own module so that workers do not import what the tests import."""

import json
import os
import time
from pathlib import Path


def note_device(folder: Path) -> None:
    """Record this process's GPU, and when it began and ended."""
    began = time.monotonic()
    time.sleep(0.3)
    seen = os.environ["CUDA_VISIBLE_DEVICES"]
    (folder / f"{os.getpid()}.json").write_text(json.dumps([seen, began, time.monotonic()]))
