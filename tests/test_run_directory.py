import ast
import json
import os
from pathlib import Path

import pytest
from raising import raises

import pipeline
from pipeline.run_directory import check_new_run, check_run
from pipeline.runs import RunDirectory

ROOT = Path(pipeline.__file__).parent
FILE_NAMES = (
    "config.yaml", "best.pt", "last.pt", "previous.pt", "metrics.csv", "validations.csv", "validation.csv",
    "summary.json", "finished.json", "data_value.json",
)  # fmt: skip
# A config.yaml also keeps the settings of an extraction's parts and of simulated demonstrations.
OTHER_FOLDERS = {  # which have a file of that name too
    ("extraction/shards.py", "config.yaml"), ("simulate.py", "config.yaml"),
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "a run")


def all_files(run):
    """All files of a finished run."""
    return [
        run.config, run.best, run.last, run.previous, run.metrics, run.validations, run.validation, run.summary,
        run.estimator, run.report, run.frame_index, run.tensorboard / "events", run.experiments / "value.json",
        run.policy_file(".onnx"), run.policy_file(".safetensors"), run.policy_file(".pt"), run.changed.summary,
        run.finished, run.evaluation.summary,
        *map(run.checksums, (run.best, run.last, run.previous)),
    ]  # fmt: skip


def fill(run):
    for path in all_files(run):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def test_every_file_has_its_name_once(run):
    paths = all_files(run)
    assert len(set(paths)) == len(paths)
    assert {path.name for path in paths} >= set(FILE_NAMES)
    assert all(path.is_relative_to(run.path) for path in paths)
    assert not run.path.exists(), "to name files makes none"


def test_forgetting_a_run_keeps_its_settings_and_foreign_files(run):
    fill(run)
    (run.path / "notes.txt").write_text("mine")
    assert run.forget()
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "notes.txt"]
    assert not run.forget(), "there is nothing left"


def test_forgetting_an_empty_folder_is_no_error(run):
    assert not run.forget()


def test_a_run_is_finished_when_its_marker_is_written(run):
    run.path.mkdir()
    run.metrics.write_text("episode\n1\n")
    run.summary.write_text("{}")
    assert not run.is_finished, "an evaluation of a run that is not finished leaves a summary too"
    run.finished.write_text("{}")
    assert run.is_finished


def test_the_latest_validation_is_that_of_an_evaluation_else_that_of_training(run):
    assert run.latest.path == run.path
    run.evaluation.path.mkdir(parents=True)
    assert run.latest.path == run.path, "a folder without a summary is none"
    run.evaluation.summary.write_text('{"profit_mean": 2.5}')
    run.summary.write_text('{"profit_mean": 1.5}')
    assert run.latest.path == run.path / "evaluation"
    assert run.read_summary() == {"profit_mean": 2.5}


def test_seeds_are_runs_inside_the_run(run):
    assert not run.has_seeds
    (run.path / "seed-1").mkdir(parents=True)
    assert not run.has_seeds, "a folder without settings is none"
    run.seed(1).config.write_text("{}")
    assert run.has_seeds
    assert not run.seed(1).has_seeds
    assert run.seed(1).path == run.path / "seed-1"
    assert run.changed.summary == run.path / "changed" / "summary.json"
    assert Path(run) == run.path and str(run) == str(run.path)


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, "run-empty"),
        ({"notes.txt": "mine"}, "run-empty"),
        ({"config.yaml": "source: sim"}, None),
        ({"config.yaml": "a: ["}, None),  # whoever needs them says so
        ({"config.yaml": "videos: 3"}, "run-of-another-kind"),
        ({"config.yaml": "source: /videos", "summary.json": '{"source": "sim"}'}, "run-of-another-kind"),
        ({"metrics.csv": "episode,profit\n1,2\n"}, None),
        ({"metrics.csv": "loss,step\n1,2\n"}, "run-of-another-kind"),
        ({"summary.json": '{"source": "sim"}'}, None),
        ({"summary.json": "{}"}, "run-of-another-kind"),
        ({"best.pt": ""}, None),
    ],
)
def test_what_is_a_run(run, files, code):
    run.path.mkdir()
    for name, text in files.items():
        (run.path / name).write_text(text)
    if code is None:
        check_run(run.path)
    else:
        with raises(code):
            check_run(run.path)
    run.evaluation.path.mkdir()
    if run.config.exists():
        with raises("run-is-evaluation"):
            check_run(run.evaluation.path)


@pytest.mark.parametrize("name", ["best.pt", "frames", "experiments", "report.html", "metrics.csv"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_training_replaces_only_files_of_training(run, name, overwrite):
    run.path.mkdir()
    (run.path / "notes.txt").write_text("mine")
    check_new_run(run.path, seeds=False, overwrite=overwrite)
    (run.path / name).mkdir()
    for settings in (None, "videos: 3"):
        if settings:
            run.config.write_text(settings)
        for seeds in (False, True):
            with raises("folder-is-no-run"):
                check_new_run(run.path, seeds=seeds, overwrite=overwrite)
    run.config.write_text("source: video")
    check_new_run(run.path, seeds=False, overwrite=overwrite)
    run.finished.touch()
    if not overwrite:
        with raises("run-finished"):
            check_new_run(run.path, seeds=False, overwrite=False)


READERS = {"read_summary": "summary", "read_steps": "validation", "read_metrics": "metrics", "read_settings": "config"}


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_file_says_what_makes_it(run, reader):
    with raises("run-file-missing") as caught:
        getattr(run, reader)()
    assert str(getattr(run, READERS[reader])) in str(caught.value)
    assert f"vtp {'evaluate' if reader in ('read_summary', 'read_steps') else 'train'}" in str(caught.value)
    assert f"'{run.path}'" in str(caught.value), "the command can be pasted, spaces and all"
    run.path.write_text("a file in the place of the folder")
    with raises("run-file-missing"):
        getattr(run, reader)()


@pytest.mark.parametrize(
    ("reader", "data"),
    [
        ("read_summary", b"{"), ("read_summary", b"[1]"), ("read_summary", b"null"), ("read_summary", b"\xff\xfe{}"),
        ("read_summary", b""), ("read_settings", b"a: [1"), ("read_settings", b"- 1"), ("read_settings", b""),
        ("read_settings", b"a: \xff"), ("read_settings", b"a: !!python/object/apply:os.getcwd []"),
        ("read_metrics", b""), ("read_metrics", b"episode,profit\n"), ("read_metrics", b"a,b\n1,2,3\n4,5\n6,7,8,9\n"),
        ("read_steps", b"episode,row\n"), ("read_steps", b"\xff\xfe\x00"), ("read_summary", b"[" * 100_000),
    ],
)  # fmt: skip
def test_a_damaged_file_says_what_makes_it_again(run, reader, data):
    run.path.mkdir()
    getattr(run, READERS[reader]).write_bytes(data)
    with raises("run-file-bad") as caught:
        getattr(run, reader)()
    assert "make it with: vtp" in str(caught.value)


def test_a_folder_in_the_place_of_a_file_cannot_be_read(run):
    run.summary.mkdir(parents=True)
    with raises("run-file-bad"):
        run.read_summary()


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run):
    run.path.mkdir()
    os.mkfifo(run.summary)
    with raises("run-file-bad") as caught:
        run.read_summary()
    assert "a FIFO, not a regular file" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_is_written_is_read(run, encoding):
    """Also after another program has saved it with a byte order mark."""
    run.path.mkdir()
    run.summary.write_text(json.dumps({"profit_mean": 1.5}), encoding)
    run.config.write_text("source: sim\nseed: 3\n", encoding)
    run.metrics.write_text("episode,profit\n1,20.5\n2,\n", encoding)
    run.validation.write_text("episode,row,context,speed\n0,0,NA,0.5\n0,1,01,0.25\n")
    assert run.read_summary() == {"profit_mean": 1.5}
    assert run.read_settings() == {"source": "sim", "seed": 3}
    assert run.read_metrics()["profit"].isna().tolist() == [False, True]
    steps = run.read_steps()
    assert steps["context"].tolist() == ["NA", "01"], "names of contexts are texts"
    assert steps["speed"].tolist() == [0.5, 0.25]


def test_the_estimators_skill_is_none_without_a_record(run):
    assert run.read_estimator() is None
    run.path.mkdir()
    run.estimator.write_text('{"estimator": {"r2": 0.5}}')
    assert run.read_estimator() == {"r2": 0.5}


@pytest.mark.parametrize("text", ["{", "[]", "{}", "null", ""])
def test_a_damaged_record_of_the_estimator_says_what_makes_it_again(run, text):
    run.path.mkdir()
    run.estimator.write_text(text)
    with raises("run-file-bad"):
        run.read_estimator()


def literals(path):
    """Texts that a module computes with: docstrings, help texts and the words of messages are none."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("module", sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")))
def test_file_names_of_a_run_occur_nowhere_else(module):
    if module == "run_directory.py":
        return
    # At the end of a literal, so that {run}/summary.json is found and a sentence about it is not.
    found = {name for text in literals(ROOT / module) for name in FILE_NAMES if text.split("/")[-1] == name}
    assert {name for name in found if (module, name) not in OTHER_FOLDERS} == set()
