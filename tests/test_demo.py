import json
import re

import pytest

from pipeline import demo
from pipeline.config import DemoConfig


@pytest.mark.slow
def test_the_whole_pipeline_on_a_small_scale(tmp_path, monkeypatch):
    sizes = {"videos": 4, "steps": 3, "logs_episodes": 64, "simulator_episodes": 32, "episodes": 2, "eval_steps": 2}
    monkeypatch.setattr(demo, "QUICK", demo.QUICK | sizes)
    stages = []

    def stage(label):
        stages.append(label.split(":")[0])
        return lambda *progress: None

    for _ in range(2):  # the same command again goes through, and decodes nothing that it has
        summary = demo.run(DemoConfig(out=tmp_path / "demo", quick=True), stage=stage)
    assert stages == ["simulate", "extract", *["train", "evaluate"] * 2, "experiments", "report"] * 2
    for folder in ("", "evaluation"):
        written = json.loads((tmp_path / "demo" / folder / "summary.json").read_text())
        assert written == summary
    assert summary["validation"] == "closed loop from pixels"
    assert summary["scenario"] == "mixed"
    assert summary["off_policy"]["verdict"] == "not identified", "by the logs of a single held-out video"
    assert set(summary["simulator_path"]) == {"profit_mean", "oracle_ratio", "oracle_ratio_ci95"}
    page = (tmp_path / "demo" / "report.html").read_text()
    assert f"{summary['profit_mean']:.2f}" in page
    assert not re.search(r"experiments/\w+\.json is missing", page), "every experiment is there"
