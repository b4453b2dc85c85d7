import dataclasses

import numpy as np
import pytest
import torch
from raising import raises
from worlds import BRICKS, DISHES, PARTS, PLATES

from pipeline import runs
from pipeline.encoders import EMBEDDING_DIM, Projector
from pipeline.errors import CorruptError
from pipeline.runs import ClipInputs, Encoding, PolicyMetadata, RunDirectory, save_checkpoint

ENCODING = Encoding(
    backbone="r3d_18", weights="default", weights_sha256="ab" * 32, transform="kinetics", clip_len=16, fps=15.0,
    precision="fp32", projector="pca",
)  # fmt: skip
CLIPS = ClipInputs(embeddings="data.h5", content_sha256="cd" * 32, novelty_sha256=None, encoding=ENCODING)
PROJECTOR = Projector(np.zeros(3), np.ones((EMBEDDING_DIM, 3)), 1.0, "pca")


def metadata(source="sim", task=DISHES, **changes):
    clips = {} if source == "sim" else {"clips": CLIPS, "projector": PROJECTOR}
    return PolicyMetadata(source, task, 0, "simulator", True, {}, **(clips | changes))


@pytest.mark.parametrize("source", ["sim", "embeddings"])
@pytest.mark.parametrize("task", [PLATES, PARTS], ids=str)
@pytest.mark.parametrize("name", ["best", "last"])
def test_a_policy_is_loaded_as_it_was_saved(tmp_path, source, task, name):
    """If a run ended before a best policy was chosen, the last one is loaded."""
    run, saved = RunDirectory(tmp_path), metadata(source, task)
    torch.manual_seed(3)
    agent = runs.agent_of(saved)
    save_checkpoint(getattr(run, name), {"agent": agent.state_dict(), "meta": saved.to_state()})
    loaded, found = runs.load_policy(tmp_path)
    assert (found.source, found.task) == (source, task)
    assert runs.load_metadata(tmp_path).task == task
    observations = torch.randn(5, 4 if source == "sim" else EMBEDDING_DIM)
    np.testing.assert_array_equal(agent.act(observations), loaded.act(observations))


def test_weights_of_another_agent_are_a_damaged_checkpoint(tmp_path):
    agent = runs.build_agent("sim", PARTS)
    state = agent.state_dict()
    state.pop("log_alpha")
    for broken in (state, runs.build_agent("embeddings", PARTS).state_dict(), None, [1]):
        save_checkpoint(RunDirectory(tmp_path).best, {"agent": broken, "meta": metadata(task=PARTS).to_state()})
        with raises("checkpoint-corrupt", CorruptError):
            runs.load_policy(tmp_path)


def test_a_run_that_is_none_and_one_of_another_version_are_refused(tmp_path):
    with raises("run-missing"):
        runs.load_policy(tmp_path / "nowhere")
    with raises("checkpoint-missing"):
        runs.load_policy(tmp_path)
    for meta in ({"meta": {"source": "sim", "task": "dishwashing"}}, {}):
        save_checkpoint(RunDirectory(tmp_path).best, {"agent": {}, **meta})
        with raises("checkpoint-version"):
            runs.load_metadata(tmp_path)


# What a policy sees, and what is shown to it


def test_the_same_inputs_are_the_same_whatever_they_are_worth(tmp_path):
    runs.check_same_inputs(metadata(), metadata(task=DISHES.scaled(price=3.0)), tmp_path)
    runs.check_same_inputs(metadata(task=DISHES), metadata(task=BRICKS), tmp_path)
    other_file = CLIPS.model_copy(update={"embeddings": "other.h5", "content_sha256": "00" * 32})
    runs.check_same_inputs(metadata("embeddings"), metadata("embeddings", clips=other_file), tmp_path)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"clips": CLIPS.model_copy(update={"frame_size": 64})}, "run-other-encoder"),
        ({"clips": CLIPS.model_copy(update={"encoder_layers": "all"})}, "run-other-encoder"),
        ({"clips": CLIPS.model_copy(update={"centre": [0.0] * EMBEDDING_DIM})}, "run-other-centre"),
        *(
            ({"clips": CLIPS.model_copy(update={"encoding": ENCODING.model_copy(update=update)})}, "run-other-encoding")
            for update in ({"backbone": "x"}, {"weights_sha256": "x"}, {"transform": "x"}, {"clip_len": 8}, {"fps": 30})
        ),
        ({"projector": dataclasses.replace(PROJECTOR, scale=2.0)}, "run-other-projector"),
        ({"projector": dataclasses.replace(PROJECTOR, norm=np.ones((2, EMBEDDING_DIM)))}, "run-other-projector"),
    ],
)
def test_other_inputs_are_refused_each_by_its_code(tmp_path, changes, code):
    with raises(code):
        runs.check_same_inputs(metadata("embeddings"), metadata("embeddings", **changes), tmp_path)


def test_another_source_or_other_actions_are_refused(tmp_path):
    with raises("run-other-source"):
        runs.check_same_inputs(metadata(), metadata("embeddings"), tmp_path)
    wider = DISHES.model_dump()
    wider["actions"]["care"]["high"] = 2.0
    for task in (PARTS, type(DISHES).model_validate(wider | {"simulator": None, "scenario": ""})):
        with raises("run-other-actions"):
            runs.check_same_inputs(metadata(), metadata(task=task), tmp_path)


def test_other_weights_are_refused():
    runs.check_weights("ab" * 32, CLIPS)
    with raises("weights-differ"):
        runs.check_weights("ff" * 32, CLIPS)
