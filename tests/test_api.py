"""The Python interface: light to import, typed, and as strict as the command line."""

import inspect
import re
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from raising import raises
from small_runs import embeddings_config, sim_config, write_embeddings

import pipeline
from pipeline import dataset, train

LIGHT = """
import sys, pipeline
assert {"extract", "train", "Task"} <= set(dir(pipeline))
print(sorted({"torch", "pandas", "numpy", "h5py"} & set(sys.modules)))
"""


def test_the_package_is_light():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_all_that_is_offered_is_there():
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__doc__, name
    with pytest.raises(AttributeError, match="'pipeline' has no attribute 'nothing'"):
        _ = pipeline.nothing


@pytest.mark.parametrize("name", ["simulate", "extract", "train", "evaluate"])
def test_a_stage_is_a_module_and_a_function(name):
    from pipeline import api

    stage = getattr(pipeline, name)
    assert inspect.ismodule(stage) and callable(stage.run)
    assert inspect.signature(stage) == inspect.signature(getattr(api, name))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_the_page_runs(request, tmp_path, monkeypatch):
    page = (request.config.rootpath / "docs/python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 12
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert names["validation"].run == pipeline.api.Path("runs/first")


SCRIPT = """
import pipeline
pipeline.simulate("demos", videos=2, steps=20)
pipeline.extract("demos", out="embeddings.h5", weights="random:0", shards=2, launcher="local")
print(pipeline.read_dataset("embeddings.h5").num_clips)
"""


@pytest.mark.slow
def test_a_script_needs_no_main_guard(tmp_path):
    """Workers are processes of their own, which do not run the script again."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "40\n"), done.stderr


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        (lambda: pipeline.extract("videos", clip_len=0), "setting-invalid", "clip_len 0: input should be greater"),
        (lambda: pipeline.extract("videos", clip_length=8), "setting-unknown", "'clip_length' is not a setting"),
        (lambda: pipeline.extract("videos", progress=True), "setting-invalid", "progress True is not a function"),
        (lambda: pipeline.train(), "setting-missing", "Give it as source"),
        (lambda: pipeline.train(source="sim", novelty="n.h5"), "setting-foreign", "source embeddings or source video"),
        (lambda: pipeline.train("none.h5"), "embeddings-missing", "none.h5"),
        (lambda: pipeline.read_dataset("none.h5"), "embeddings-missing", "none.h5"),
        (lambda: pipeline.read_dataset(None), "path-invalid", "type NoneType is not a path"),
        (lambda: pipeline.extract(["a.mp4"]), "path-invalid", "type list is not a path"),
        (lambda: pipeline.load_policy("none"), "policy-missing", "none is neither"),
        (lambda: pipeline.load_policy(1), "path-invalid", "type int is not a path"),
        (lambda: pipeline.read_run("none"), "run-file-missing", "vtp evaluate none"),
        (lambda: pipeline.Task.from_yaml("none.yaml"), "task-unknown", "none.yaml"),
    ],
)
def test_mistakes_are_one_line(call, code, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises(code) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Data sets


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_embeddings(tmp_path_factory.mktemp("data") / "embeddings.h5")


def test_a_data_set_says_what_it_holds(path):
    data = pipeline.read_dataset(str(path))
    assert data.path == path
    assert repr(data).startswith(f"Embeddings({data.num_clips} clips of {data.num_videos} videos, 128-D, task ")


def test_a_table_has_one_row_per_clip(path):
    data = pipeline.read_dataset(path)
    table = data.to_pandas()
    assert len(table) == data.num_clips
    assert table["video_id"].tolist() == np.repeat(data.videos.id, np.diff(data.offset)).tolist()
    assert table["clip"].tolist() == [clip for count in np.diff(data.offset) for clip in range(count)]
    np.testing.assert_array_equal(table["start_s"], data.clips.start_s)
    np.testing.assert_array_equal(table["attempts"], data.logs.attempts)
    np.testing.assert_array_equal(table[list(data.task.action_names)], data.logs.actions)
    assert "propensity" not in table, "no clip has one"


def test_torch_gets_the_splits_that_training_uses(path):
    data = pipeline.read_dataset(path)
    rows = {split: [int(clip["row"]) for clip in data.to_torch(split)] for split in ("all", "train", "held-out")}
    assert rows["train"] == dataset.train_rows(data).tolist()
    assert rows["held-out"] == dataset.split_rows(data)[1].tolist()
    assert rows["all"] == list(range(data.num_clips))
    clips = data.to_torch("held-out")
    row = rows["held-out"][1]
    np.testing.assert_array_equal(clips[1]["embedding"], data.embeddings[row])
    np.testing.assert_array_equal(clips[1]["actions"], data.logs.actions[row].astype(np.float32))
    with raises("split-unknown"):
        data.to_torch("test")


# Policies


@pytest.fixture(scope="module")
def run(path):
    train.run(embeddings_config(path.parent, path, centre="video"))
    return path.parent / "run"


@pytest.mark.usefixtures("one_thread")
class TestPolicy:
    def test_arrays_and_data_sets_are_acted_on_alike(self, path, run):
        policy, data = pipeline.load_policy(str(run)), pipeline.read_dataset(path)
        video = np.repeat(data.videos.id, np.diff(data.offset))
        actions = policy.act(data)
        assert actions.shape == (data.num_clips, 2)
        np.testing.assert_allclose(policy.act(data.embeddings, video=video), actions, atol=1e-6)
        mixed = np.random.default_rng(0).permutation(data.num_clips)
        found = policy.act(data.embeddings[mixed], video=video[mixed])
        np.testing.assert_allclose(found, actions[mixed], atol=1e-5)
        assert policy.act(np.empty((0, 128)), video=[]).shape == (0, 2)
        fixed = data.embeddings.copy()
        fixed.flags.writeable = False
        with warnings.catch_warnings(action="error"):
            for seen in (fixed, pd.DataFrame(fixed), torch.from_numpy(data.embeddings)):
                np.testing.assert_allclose(policy.act(seen, video=video), actions, atol=1e-6)
            np.testing.assert_allclose(policy.act(fixed[::-1], video=video[::-1]), actions[::-1], atol=1e-5)

    def test_what_does_not_fit_is_refused(self, path, run):
        policy, data = pipeline.load_policy(run), pipeline.read_dataset(path)
        with raises("observations-without-video"):
            policy.act(data.embeddings)
        with raises("observations-shape"):
            policy.act(data.embeddings, video=["a"])
        with raises("observations-shape"):
            policy.act(data.embeddings, video=[None] * data.num_clips)
        with raises("observations-shape"):
            policy.act(path)
        with raises("observations-shape"):
            policy.act(data.features[:, :64], video=["a"] * data.num_clips)
        with raises("observations-not-finite"):
            policy.act(data.embeddings * np.nan, video=["a"] * data.num_clips)

    def test_features_alone_are_refused(self, path, run, tmp_path):
        policy, data = pipeline.load_policy(run), pipeline.read_dataset(path)
        alone = replace(
            data, embeddings=data.embeddings[:, :0], projector_components=np.zeros((0, 512)),
            attrs=data.attrs | {"projector": "none"},
        )  # fmt: skip
        dataset.write_embeddings(tmp_path / "alone.h5", alone)
        read = pipeline.read_dataset(tmp_path / "alone.h5")
        np.testing.assert_array_equal(read.features, data.features)
        assert read.embeddings.shape == (data.num_clips, 0) and len(read.to_pandas()) == data.num_clips
        for needs_embeddings in (
            lambda: policy.act(read),
            lambda: pipeline.train(tmp_path / "alone.h5", out=tmp_path / "run"),
        ):
            with raises("embeddings-none"):
                needs_embeddings()

    def test_a_policy_and_a_validation_say_what_they_are(self, run):
        assert repr(pipeline.load_policy(run)).startswith("Policy(dishwashing: embeddings [128] → speed, care; ")
        validation = pipeline.read_run(run)
        assert repr(validation).startswith(f"Validation({run}: ")
        assert validation.summary["profit_mean"] == validation.profit
        assert {"share", "speed", "care", "oracle_speed", "profit", "err"} <= set(validation.contexts)

    def test_states_of_the_simulator(self, tmp_path):
        train.run(sim_config(tmp_path))
        policy = pipeline.load_policy(tmp_path / "run")
        assert policy.act(np.zeros((3, 4))).shape == (3, 2)
        with raises("observations-shape"):
            policy.act(np.zeros((3, 128)))
