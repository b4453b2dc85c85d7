"""`vtp act`: expected profit, and how new clips are."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_runs import task_text, write_embeddings

from pipeline import dataset, policy, runs
from pipeline.config import ActConfig, PolicyExportConfig
from pipeline.encoders import Projector
from pipeline.outcomes import SimulatedOutcomes, expected_worth, outcomes_of
from pipeline.policy import SUFFIXES
from pipeline.policy.clip_profit import learned_profit
from pipeline.policy.training_clips import Shares
from pipeline.runs import ClipInputs, Encoding, PolicyMetadata, RunDirectory, save_checkpoint

FORESEEN = ["profit_usd_per_hour", "profit_low", "profit_high", "novelty"]
PROFIT = FORESEEN[:3]


def write_run(folder, data, path, outcomes):
    """A run whose policy is untrained, on the embeddings at `path`."""
    model = outcomes_of(data, kind=outcomes, rows=dataset.train_rows(data))
    encoding = Encoding.of(data)
    torch.manual_seed(0)
    agent = runs.build_agent("embeddings", model.task)
    agent.encoder.fit(data.embeddings)
    metadata = PolicyMetadata(
        "embeddings", model.task, 0, model.description, True,
        {"embeddings": str(path), "embeddings_sha256": data.content_sha256}, outcomes=outcomes,
        clips=ClipInputs(
            embeddings=str(path), content_sha256=data.content_sha256, novelty_sha256=None, encoding=encoding
        ),
        projector=Projector(data.projector_mean, data.projector_components, data.projector_scale, "pca"),
    )  # fmt: skip
    save_checkpoint(RunDirectory(folder).best, {"agent": agent.state_dict(), "meta": metadata.to_state()})


def world(folder, **settings):
    """Embeddings of ten videos, eight of which runs were trained on, by logs or with the simulator."""
    path = write_embeddings(folder / "embeddings.h5", clips=24, **settings)
    data = dataset.read_embeddings(path)
    for outcomes in ("logged", "simulator"):
        (folder / outcomes).mkdir()
        write_run(folder / outcomes, data, path, outcomes)
    return folder


@pytest.fixture(scope="module")
def dishes(tmp_path_factory):
    return world(tmp_path_factory.mktemp("dishes"))


@pytest.fixture(scope="module")
def watering(tmp_path_factory):
    """A task of one context, whose clips may fall into groups."""
    folder = tmp_path_factory.mktemp("watering")
    (folder / "watering.yaml").write_text(task_text("watering"))
    return world(folder, task=folder / "watering.yaml", clip_s=20.0)


def act(folder, run="logged", embeddings=None):
    return policy.act(ActConfig(policy=folder / run, embeddings=embeddings or folder / "embeddings.h5"))


def changed(folder, out, **changes):
    """The embeddings with other contents."""
    data = dataset.read_embeddings(folder / "embeddings.h5")
    dataset.write_embeddings(out, replace(data, **{name: change(data) for name, change in changes.items()}))
    return out


def without_labels(data):
    return None


def actions_of(table, task):
    return table[list(task.actions)].to_numpy()


# Expected profit


def test_profit_is_that_of_the_model_for_clips_of_the_training_file(dishes):
    table, metadata = act(dishes), runs.load_metadata(dishes / "logged")
    model = runs.load_outcomes(metadata)
    rows, actions = np.arange(len(table)), actions_of(table, model.task)
    np.testing.assert_allclose(table["profit_usd_per_hour"], expected_worth(model, rows, actions).profit, rtol=1e-9)
    members = model.profit_of_members(rows, actions)
    np.testing.assert_allclose(table["profit_low"], members.min(0))  # of 32, the middle 95% are all
    np.testing.assert_allclose(table["profit_high"], members.max(0))
    assert (table["profit_low"] < table["profit_usd_per_hour"]).all()


def test_profit_is_that_of_the_model_for_clips_in_groups(watering):
    table = act(watering)
    model = runs.load_outcomes(runs.load_metadata(watering / "logged"))
    expected = expected_worth(model, np.arange(len(table)), actions_of(table, model.task)).profit
    np.testing.assert_allclose(table["profit_usd_per_hour"], expected, rtol=1e-9)


def test_labels_of_a_new_file_are_its_clips_contexts_at_their_own_prices(dishes, tmp_path):
    """Profit depends on the labels of clips, not on their look; a clip's own price is used."""
    expected = act(dishes)
    dear = changed(
        dishes, tmp_path / "dear.h5",
        logs=lambda data: replace(data.logs, price_usd=np.where(np.arange(data.num_clips) == 3, 2.0, np.nan)),
    )  # fmt: skip
    table = act(dishes, embeddings=dear)
    others = table.index != 3
    pd.testing.assert_frame_equal(table[others], expected[others])
    model = runs.load_outcomes(runs.load_metadata(dishes / "logged"))
    row, action = np.array([3]), actions_of(table, model.task)[[3]]
    good = np.subtract(*model.expected(row, action))
    dearer = good * (2.0 - model.terms(row).price_usd) * 3600 / model.terms(row).step_s
    np.testing.assert_allclose(table["profit_usd_per_hour"][3] - expected["profit_usd_per_hour"][3], dearer)


def test_clips_without_labels_have_the_profit_of_what_their_neighbours_show(dishes, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    new = changed(dishes, tmp_path / "new.h5", logs=without_labels)
    table, labelled = act(dishes, embeddings=new), act(dishes)
    np.testing.assert_allclose(table["profit_usd_per_hour"], labelled["profit_usd_per_hour"], rtol=0.05, atol=1.0)
    assert "240 of 240 clips have no label" in caplog.text and "100% of the clips" in caplog.text


def test_the_interval_takes_in_that_a_clip_may_be_of_another_context(dishes):
    """It covers two equally likely contexts, but not one with a probability below 1 in 40."""
    training = dataset.read_embeddings(dishes / "embeddings.h5")
    data, model = replace(training, logs=None), runs.load_outcomes(runs.load_metadata(dishes / "logged"))
    actions = training.task.from_unit(np.random.default_rng(0).random((data.num_clips, 2)))
    members = np.array(
        [
            model.profit_of_members(np.full(data.num_clips, np.argmax(model.context == number)), actions)
            for number in range(4)
        ]
    )  # [4, M, N]
    for share, counted in ([0.5, 0, 0.5, 0], [0, 2]), ([0.98, 0.02, 0, 0], [0]):
        profit = learned_profit(
            model, training, data, actions, lambda kind, share=share: Shares(np.tile(share, (data.num_clips, 1)), 1.0)
        )
        np.testing.assert_allclose(profit.expected, share @ members.mean(1))
        means, (least, most) = members[counted].mean(1), (f(members[counted], axis=(0, 1)) for f in (np.min, np.max))
        assert (profit.low <= means.min(0)).all() and (profit.high >= means.max(0)).all()
        assert (profit.low >= least).all() and (profit.high <= most).all()


def test_a_context_that_was_never_logged_has_no_profit(dishes, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    strange = changed(
        dishes, tmp_path / "strange.h5",
        logs=lambda data: replace(data.logs, context=np.where(np.arange(data.num_clips) < 7, "cup", data.logs.context)),
    )  # fmt: skip
    for run in ("logged", "simulator"):
        table = act(dishes, run, strange)
        assert table["profit_usd_per_hour"].isna().tolist() == [True] * 7 + [False] * 233
        assert "7 of 240 clips have" in caplog.text
        caplog.clear()


def test_a_simulator_prices_clips_with_labels_without_an_interval(dishes, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    table, data = act(dishes, "simulator"), dataset.read_embeddings(dishes / "embeddings.h5")
    model = SimulatedOutcomes(data.task, data.logs.context_index(data.task))
    expected = expected_worth(model, np.arange(len(table)), actions_of(table, data.task)).profit
    np.testing.assert_allclose(table["profit_usd_per_hour"], expected)
    assert table[["profit_low", "profit_high"]].isna().all(axis=None)
    new = act(dishes, "simulator", changed(dishes, tmp_path / "new.h5", logs=without_labels))
    assert new[PROFIT].isna().all(axis=None) and new["novelty"].notna().all()
    assert "240 of 240 clips have no label" in caplog.text


def test_a_single_context_needs_no_label(watering, tmp_path):
    new = changed(watering, tmp_path / "new.h5", logs=without_labels)
    for run in ("logged", "simulator"):
        table, labelled = act(watering, run, new), act(watering, run)
        np.testing.assert_allclose(table["profit_usd_per_hour"], labelled["profit_usd_per_hour"], rtol=0.05, atol=1.0)


# Novelty, and the training file


def test_far_clips_are_novel_and_warned_of(dishes, tmp_path, caplog):
    assert act(dishes)["novelty"].mean() < 0.6
    assert not caplog.text
    table = act(dishes, embeddings=changed(dishes, tmp_path / "far.h5", embeddings=lambda data: data.embeddings + 1))
    assert table["novelty"].min() > 0.95
    assert len(caplog.records) == 1 and "240 of 240 clips are farther" in caplog.text


@pytest.mark.parametrize("run", ["logged", "simulator"])
def test_actions_are_given_if_the_training_file_is_gone_or_changed(dishes, tmp_path, caplog, run):
    """A line says why the rest is empty; actions stay."""
    shutil.copytree(dishes / run, tmp_path / run)
    data = dataset.read_embeddings(dishes / "embeddings.h5")
    write_run(tmp_path / run, data, tmp_path / "embeddings.h5", run)
    new = changed(dishes, tmp_path / "new.h5", embeddings=lambda data: data.embeddings[::-1])
    reference = act(dishes, run, new)
    for reason in ("is missing; restore it", "restore that file"):
        caplog.clear()
        table = act(tmp_path, run, new)
        empty = ["novelty"] if run == "simulator" else FORESEEN
        assert table[empty].isna().all(axis=None)
        pd.testing.assert_frame_equal(table.drop(columns=empty), reference.drop(columns=empty))
        assert [reason in record.message for record in caplog.records] == [True]
        assert str(tmp_path / "embeddings.h5") in caplog.text
        changed(dishes, tmp_path / "embeddings.h5", embeddings=lambda data: data.embeddings * 2)
    np.testing.assert_allclose(act(tmp_path, run, dishes / "embeddings.h5")[FORESEEN], act(dishes, run)[FORESEEN])


@pytest.mark.parametrize("to", SUFFIXES)
def test_an_exported_policy_says_the_same(dishes, to, tmp_path):
    path = policy.export(PolicyExportConfig(run=dishes / "logged", to=to, out=tmp_path / f"policy{SUFFIXES[to]}"))
    new = changed(dishes, tmp_path / "new.h5", embeddings=lambda data: data.embeddings[::-1])
    table = policy.act(ActConfig(policy=path, embeddings=new))
    np.testing.assert_allclose(table[FORESEEN], act(dishes, embeddings=new)[FORESEEN], rtol=1e-3, atol=1e-2)


def test_runs_on_one_video_have_actions_and_no_more(tmp_path, caplog):
    path = write_embeddings(tmp_path / "embeddings.h5", videos=2, splits=("train", "val"))
    write_run(tmp_path, dataset.read_embeddings(path), path, "simulator")
    table = policy.act(ActConfig(policy=tmp_path, embeddings=path))
    assert table["novelty"].isna().all() and "single video" in caplog.text


# The card and the command line


def test_the_card_says_what_was_learned_from_and_how_it_was_validated(dishes):
    card = policy.load(dishes / "logged").card
    assert (card.outcomes, card.validation) == ("logged", "")
    assert card.outcome_model.startswith("learned from 192 logged steps of 8 videos, dishwashing")
    assert policy.load(dishes / "simulator").card.outcome_model.startswith("simulator, dishwashing")
    RunDirectory(dishes / "logged").summary.write_text(
        '{"validation": "held-out clips", "profit_mean": 21.234, "profit_ci95": [19.5, 22.5]}'
    )
    assert policy.load(dishes / "logged").card.validation == "held-out clips: profit 21.23 $/h [19.50, 22.50]"


def test_what_is_not_known_is_empty_in_csv_and_null_in_json(vtp, dishes):
    code, out, err = vtp("act", dishes / "simulator", "--embeddings", dishes / "embeddings.h5")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split(",")[7:9] == ["", ""]
    code, out, _ = vtp("act", dishes / "simulator", "--embeddings", dishes / "embeddings.h5", "--json")
    row = json.loads(out)[0]
    assert (code, row["profit_low"], row["profit_high"]) == (0, None, None)
    assert isinstance(row["clip"], int) and row["profit_usd_per_hour"] < 1000
