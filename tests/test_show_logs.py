"""`vtp logs`: what it prints, its JSON, and what it refuses."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from example_tasks import TASKS
from logged_data import simulated_data
from worlds import DISHES

from pipeline.dataset import write_embeddings


@pytest.fixture
def written(tmp_path):
    def write(data, name="e.h5"):
        write_embeddings(tmp_path / name, data)
        return tmp_path / name

    return write


def test_people_are_told_what_the_logs_hold_and_what_to_log(vtp, written, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    data = simulated_data(DISHES, videos=20, splits=["train"] * 16 + ["val"] * 4)
    code, out, err = vtp("logs", written(data))
    assert code == 0, err
    (row,) = (line for line in out.splitlines() if line.startswith("│ all "))
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    logs = data.logs
    assert cells[1:6] == ["100.0%", "400", "20", f"{logs.attempts.sum():,.0f}", f"{logs.errors.sum():,.0f}"]
    for text in (
        "400 logged steps of 20 videos (320 train, 80 val), propensities logged",
        "0      speed       1",
        "◆ best action by the logs",
        "What can be learned, with 95% intervals of the ensemble",
        "the best actions by the logs are expected to earn $",
        "attempts: ",
        "What to log next",
        "log about ",
    ):
        assert text in out, text
    assert sum(line.count("  care") for line in out.splitlines()) >= 4, "a picture a context"


def test_json_has_every_context_and_no_picture(vtp, written):
    code, out, err = vtp("logs", written(simulated_data(TASKS["forty contexts"], videos=10)), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["task"] == "sorting" and len(found["contexts"]) == len(found["learned"]["contexts"]) > 12
    assert found["all"]["steps"] == sum(one["steps"] for one in found["contexts"].values()) == 200


@pytest.mark.slow
def test_the_largest_contexts_are_shown(vtp, written, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = vtp("logs", written(simulated_data(TASKS["forty contexts"], videos=10)))
    assert code == 0
    assert sum("│ part " in line for line in out.splitlines()) == 2 * 12, "in two tables"
    assert "more contexts, each a smaller share of the work, are in --json" in " ".join(out.split())


def test_one_video_is_shown_and_the_reason_that_nothing_is_learned(vtp, written):
    code, out, err = vtp("logs", written(simulated_data(DISHES, videos=1)))
    assert code == 0, err
    assert "nothing can be learned: the number of logged videos (1) is below 2" in " ".join(out.split())
    assert "What to log next" not in out and "speed" in out


def test_prices_of_another_task(vtp, written, tmp_path):
    import yaml

    settings = DISHES.model_dump(exclude={"scenario", "simulator"})
    settings["contexts"] = {name: {"price_usd": 0.0, "damage_usd": 0.0} for name in settings["contexts"]}
    (tmp_path / "free.yaml").write_text(yaml.safe_dump(settings | {"name": "free"}))
    code, out, err = vtp("logs", written(simulated_data(DISHES, videos=4)), "--task", tmp_path / "free.yaml", "--json")
    assert code == 0, err
    assert json.loads(out)["all"]["profit_usd_per_hour"] == pytest.approx(-DISHES.total_costs_usd_per_hour)


def test_what_is_refused_is_one_line(vtp, written, tmp_path):
    data = simulated_data(DISHES, videos=2)
    bare = dataclasses.replace(data, logs=None)
    no_errors = dataclasses.replace(data, logs=dataclasses.replace(data.logs, errors=np.full(data.num_clips, np.nan)))
    for given, text in (
        (
            (written(bare, "bare.h5"),),
            "has no logs: the clips have no labels; give the actions and their outcomes in the labels",
        ),
        (
            (written(no_errors, "few.h5"),),
            "the labels have no errors; give the actions and their outcomes",
        ),
        ((tmp_path / "absent.h5",), "no embeddings at"),
        ((), "embeddings is missing"),
        ((written(data), "--steps", 3), "--steps 3: input should be greater than or equal to 10"),
        ((written(data), "--task", "bin-picking"), "task bin-picking has actions"),
    ):
        code, out, err = vtp("logs", *given)
        assert (code, out) == (2, ""), given
        assert text in err and len(err.strip().splitlines()) == 1, err


def test_a_survey_needs_no_torch(written):
    path = written(simulated_data(DISHES, videos=4))
    code = "import sys; from pipeline import cli; sys.argv = ['vtp', 'logs', sys.argv[1]]\n"
    code += "try:\n    cli.main()\nfinally:\n    print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False False"
