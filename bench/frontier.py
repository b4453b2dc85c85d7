"""Frontier count: actions on a 50x50 grid with MP ≥ 80/h and error ≤ 6%, by formula and by simulated episodes.

The source gives 1,615 without a number of episodes. Chance decides points near the frontier, so the count rises with
the episodes: about 1,480 for one, 1,620 for a hundred. This runs a hundred by default, 15 million env steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from pipeline.config import FrontierConfig
from pipeline.experiments import frontier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=FrontierConfig().episodes)
    with tempfile.TemporaryDirectory() as folder:
        result = frontier.run(FrontierConfig(out=Path(folder), episodes=parser.parse_args().episodes))
    print(json.dumps({key: result[key] for key in ("analytic_count", "monte_carlo_count", "env_steps", "wall_s")}))


if __name__ == "__main__":
    main()
