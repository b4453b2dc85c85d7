"""Expected profit of policies trained on the simulator's state / analytic optimum, over random seeds, as JSON."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from pipeline import train
from pipeline.config import SimTrainConfig
from pipeline.errors import VtpError
from pipeline.stats import interval95
from pipeline.tasks import load_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--task", default="dishwashing", help="built-in task or YAML file with a simulator (default: dishwashing)"
    )
    parser.add_argument("--scenario", help="scenario of the task's simulator (default: its first, also called seed)")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    try:
        task = load_task(args.task).in_scenario(args.scenario)
    except VtpError as error:
        parser.error(str(error))
    rows = []
    for seed in range(args.seeds):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            settings = {"task": args.task, "scenario": args.scenario, "episodes": args.episodes, "seed": seed}
            summary = train.run(SimTrainConfig(**settings, out=Path(folder) / "run"))
        row = {"seed": seed, "wall_s": round(time.perf_counter() - started, 1)}
        rows.append(row | {key: round(summary[key], 4) for key in ("oracle_ratio", "profit_mean", "err_mean")})
    ratios = [row["oracle_ratio"] for row in rows]
    result = {"task": task.name, "scenario": task.scenario, "episodes": args.episodes, "runs": rows}
    result |= {"oracle_ratio_mean": sum(ratios) / len(ratios), "oracle_ratio_worst": min(ratios)}
    print(json.dumps(result | {"oracle_ratio_ci95": interval95(ratios)}, indent=2))


if __name__ == "__main__":
    main()
