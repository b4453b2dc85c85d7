import csv
from pathlib import Path

import pytest
from raising import raises
from worlds import PARTS, PLATES

from pipeline.errors import CorruptError, TryAgainError
from pipeline.runs import RunDirectory
from pipeline.training.record import AFTER_ACTIONS, BEFORE_ACTIONS, MetricsCsv, Record, metric_columns


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def row(task, episode, value=0.5):
    return {name: value for name in metric_columns(task)} | {"episode": episode}


def test_every_action_of_the_task_has_a_column():
    assert metric_columns(PARTS) == (*BEFORE_ACTIONS, "mean_speed", "mean_grip", *AFTER_ACTIONS)
    assert len(set(metric_columns(PLATES))) == len(metric_columns(PLATES))


def test_every_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "run" / "metrics.csv"
    metrics = MetricsCsv(path, ("episode", "profit"))
    assert rows_of(path) == []
    for episode, profit in ((1, 20.5), (2, -3.25)):
        metrics.write({"profit": profit, "episode": episode})
        assert rows_of(path)[-1] == {"episode": str(episode), "profit": str(profit)}
    metrics.close()
    assert path.read_text().splitlines()[0] == "episode,profit"


def test_a_column_that_the_header_lacks_is_an_error(tmp_path):
    metrics = MetricsCsv(tmp_path / "metrics.csv", ("episode",))
    with pytest.raises(ValueError, match="profit"):
        metrics.write({"episode": 1, "profit": 2.0})
    metrics.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_metrics_on_a_full_disk_ask_to_try_again():
    with raises("disk-full", TryAgainError) as caught:
        MetricsCsv(Path("/dev/full"), ("episode",)).write({"episode": 1})
    assert "/dev/full" in str(caught.value)


def test_a_resumed_record_continues_from_its_checkpoint(tmp_path):
    run = RunDirectory(tmp_path)
    record = Record(run, PARTS, None)
    record.episodes([row(PARTS, 1), row(PARTS, 2)])
    record.validation(2, 30.0)
    state = record.sync(2)
    record.episodes([row(PARTS, 3, 99.0)])  # lost, as after a kill: the checkpoint knows nothing of it
    record.validation(3, 99.0)
    record.close()
    resumed = Record(run, PARTS, state)
    resumed.episodes([row(PARTS, 3, 0.25)])
    resumed.close()
    assert [(r["episode"], r["mean_grip"]) for r in rows_of(run.metrics)] == [("1", "0.5"), ("2", "0.5"), ("3", "0.25")]
    assert rows_of(run.validations) == [{"episode": "2", "profit_sampled": "30.0"}]


def test_a_new_record_replaces_an_old_one(tmp_path):
    run = RunDirectory(tmp_path)
    for value in (1.0, 2.0):
        record = Record(run, PLATES, None)
        record.episodes([row(PLATES, 1, value)])
        record.close()
    assert [r["profit"] for r in rows_of(run.metrics)] == ["2.0"]


def test_a_record_shorter_than_its_checkpoint_is_damaged(tmp_path):
    run = RunDirectory(tmp_path)
    record = Record(run, PLATES, None)
    record.episodes([row(PLATES, 1)])
    state = record.sync(1)
    record.close()
    run.metrics.write_bytes(run.metrics.read_bytes()[:-5])
    with raises("metrics-short", CorruptError):
        Record(run, PLATES, state)
