"""Tasks for worker processes, in a module of their own: a worker imports it, and none of what the tests import."""

import json
import os
import time
from pathlib import Path


def note_device(folder: Path) -> None:
    """Which GPU this process was given, and when it began and ended."""
    began = time.monotonic()
    time.sleep(0.3)
    seen = os.environ["CUDA_VISIBLE_DEVICES"]
    (folder / f"{os.getpid()}.json").write_text(json.dumps([seen, began, time.monotonic()]))
