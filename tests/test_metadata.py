import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from raising import raises
from worlds import BUILT_IN, DISHES

from pipeline.encoders import EMBEDDING_DIM, Projector
from pipeline.errors import CorruptError
from pipeline.runs import ClipInputs, Encoding, PolicyMetadata, load_checkpoint, save_checkpoint

ENCODING = Encoding(
    backbone="r3d_18", weights="default", weights_sha256="ab" * 32, transform="kinetics", clip_len=16, fps=15.0,
    precision="fp32", projector="learned",
)  # fmt: skip
CLIPS = ClipInputs(
    embeddings="räume/data.h5", content_sha256="cd" * 32, novelty_sha256=None, encoding=ENCODING,
    centre=[float(x) / 3 for x in range(EMBEDDING_DIM)], frame_size=112, encoder_layers="layer4",
)  # fmt: skip


def projector(*, norm=True, features=5):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((2, EMBEDDING_DIM)) if norm else None
    return Projector(
        rng.standard_normal(features), rng.standard_normal((EMBEDDING_DIM, features)), 1 / 3, "learned", weights
    )


def metadata(**changes):
    values = {
        "source": "embeddings", "task": DISHES, "seed": 3, "outcome_model": "simulator, dishwashing",
        "is_labelled": True, "provenance": {"host": "näht", "torch": "2.4", "cores": 2, "hours": 0.1}, "clips": CLIPS,
        "projector": projector(),
    }  # fmt: skip
    return PolicyMetadata(**(values | changes))


def assert_same(one, other):
    assert dataclasses.replace(one, projector=None) == dataclasses.replace(other, projector=None)
    if one.projector is None:
        assert other.projector is None
        return
    for field in dataclasses.fields(Projector):
        ours, theirs = getattr(one.projector, field.name), getattr(other.projector, field.name)
        np.testing.assert_array_equal(ours, theirs)
    assert one.projector.sha256 == other.projector.sha256


@pytest.mark.parametrize("task", BUILT_IN.values(), ids=BUILT_IN)
@pytest.mark.parametrize("norm", [True, False])
def test_metadata_come_back_from_a_checkpoint_that_runs_no_code(tmp_path, task, norm):
    written = metadata(task=task, projector=projector(norm=norm))
    save_checkpoint(tmp_path / "best.pt", {"meta": written.to_state()})
    assert_same(written, PolicyMetadata.from_state(load_checkpoint(tmp_path / "best.pt")["meta"], "best.pt"))


@given(st.sampled_from(["sim", "embeddings", "video"]), st.integers(0, 2**31), st.text(), st.booleans())
def test_any_metadata_come_back_as_they_were(source, seed, outcome_model, is_labelled):
    clips = {"clips": None, "projector": None} if source == "sim" else {}
    written = metadata(source=source, seed=seed, outcome_model=outcome_model, is_labelled=is_labelled, **clips)
    assert_same(written, PolicyMetadata.from_state(written.to_state(), "x"))


def test_the_arrays_of_a_checkpoint_are_float64_to_the_last_bit():
    state = metadata().to_state()
    assert state["projector"]["components"].dtype == torch.float64
    assert isinstance(state["described"], str)


@pytest.mark.parametrize(
    "state", [{"source": "sim", "seed": 3, "task": "dishwashing"}, {}, {"version": 1}, {"version": 3}, None, "x", [1]]
)
def test_what_another_version_wrote_is_refused_by_name(state):
    with raises("checkpoint-version") as caught:
        PolicyMetadata.from_state(state, "run/best.pt")
    assert "run/best.pt" in str(caught.value) and "train again" in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("described"),
        lambda state: state.pop("projector"),
        lambda state: state.update(described="{}"),
        lambda state: state.update(described="no json"),
        lambda state: state.update(described=None),
        lambda state: state.update(described=state["described"].replace("dishwashing", "../x", 1)),
        lambda state: state.update(described=state["described"].replace('"seed":3', '"seed":"three"')),
        lambda state: state.update(described=state["described"].replace('"seed":3', '"seed":3,"new":1')),
        lambda state: state.update(projector=7),
        lambda state: state.update(projector={}),
        lambda state: state["projector"].pop("scale"),
        lambda state: state["projector"].update(scale=None),
        lambda state: state["projector"].update(mean=None),
        lambda state: state["projector"].update(components=None),
        lambda state: state["projector"].update(components=torch.zeros(3, 5)),
        lambda state: state["projector"].update(mean=torch.zeros(4)),
        lambda state: state["projector"].update(norm=torch.zeros(128)),
    ],
)
def test_damaged_metadata_are_a_damaged_checkpoint(damage):
    state = metadata().to_state()
    damage(state)
    with raises("checkpoint-corrupt", CorruptError):
        PolicyMetadata.from_state(state, "run/best.pt")


def test_a_projector_without_clips_is_a_damaged_checkpoint():
    state = metadata().to_state() | {"described": metadata(clips=None, projector=None).to_state()["described"]}
    with raises("checkpoint-corrupt", CorruptError):
        PolicyMetadata.from_state(state, "run/best.pt")
