"""Runs that are interrupted, damaged, begun from another, or stopped early."""

import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from raising import raises
from small_runs import (
    SMALL,
    Killed,
    assert_same_run,
    embeddings_config,
    killed_after,
    sim_config,
    write_embeddings,
    write_novelty,
    write_task,
)

from pipeline import dataset, evaluate, policy, train
from pipeline.config import ActConfig, EvaluateConfig, PolicyExportConfig
from pipeline.errors import CorruptError, TryAgainError, UntrustedError
from pipeline.evaluate import evaluation
from pipeline.experiments.retrain import Retrainer
from pipeline.processes import this_process
from pipeline.runs import RunDirectory, load_checkpoint, load_metadata, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
CHECKPOINTS = ("last.pt", "previous.pt")


# Going on


@pytest.mark.parametrize("source", ["sim", "embeddings"])
def test_a_run_killed_at_five_moments_equals_an_uninterrupted_one(source, tmp_path, monkeypatch, kept):
    if source == "sim":
        cfg = sim_config(tmp_path, out=tmp_path / "whole")
    else:
        path = write_embeddings(tmp_path / "embeddings.h5")
        content = dataset.read_embeddings(path).content_sha256
        write_novelty(tmp_path / "novelty.h5", np.linspace(0.5, 1.5, 120), content)
        cfg = embeddings_config(
            tmp_path, path, out=tmp_path / "whole", num_envs=3, warmup_steps=32, novelty=tmp_path / "novelty.h5"
        )
    train.run(cfg)
    killed = cfg.model_copy(update={"out": tmp_path / "killed"})
    rng = random.Random(0)
    for _ in range(5):
        monkeypatch.setattr(train, "CHECKPOINT_S", rng.choice([0.0, 60.0]))  # at every step, or with validations only
        killed_after(rng.randint(1, 30), monkeypatch, killed)
    train.run(killed)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


COMMAND = [
    sys.executable, "-c", "from pipeline.cli import main; main()", "train", "--source", "sim",
    *(word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))),
    "--episodes", "96", "--evaluations", "8",
]  # fmt: skip


def start(run):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*COMMAND, "--out", str(run)], env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_change(path, process):
    before = path.stat().st_mtime_ns if path.exists() else None
    while process.poll() is None and (path.stat().st_mtime_ns if path.exists() else None) == before:
        time.sleep(0.01)


@pytest.mark.slow
def test_kill_9_and_sigterm_at_random_moments(tmp_path):
    rng = random.Random(1)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = start(tmp_path / "killed")
        wait_for_change(tmp_path / "killed" / "last.pt", process)
        time.sleep(rng.random() / 4)
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
        assert process.returncode == (75 if number == signal.SIGTERM else -9), told
        if number == signal.SIGTERM:
            assert "of 96 episodes; run the same command again to continue" in told
    for name in ("killed", "whole"):
        process = start(tmp_path / name)
        told = process.communicate()[1]
        assert process.returncode == 0, told
        assert ("resuming after episode" in told) == (name == "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


# One writer, one marker


@pytest.mark.slow
def test_a_second_training_into_the_same_folder_is_refused_by_name(tmp_path):
    first = start(tmp_path / "run")
    wait_for_change(tmp_path / "run" / "last.pt", first)
    first.send_signal(signal.SIGSTOP)  # it stands still, and is alive all the same
    second = start(tmp_path / "run")
    told = second.communicate(timeout=60)[1]
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert f"run is being written by process {first.pid} on " in told
    assert first.wait(timeout=60) == 0
    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=60) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


def test_an_evaluation_of_an_unfinished_run_leaves_it_unfinished(begun, tmp_path, caplog, kept):
    evaluated = evaluate.run(EvaluateConfig(run=begun.out, episodes=3, steps=5))
    assert evaluated == json.loads((begun.out / "evaluation" / "summary.json").read_text())
    assert not (begun.out / "summary.json").exists()
    summary = train.run(begun)
    assert summary == json.loads((begun.out / "summary.json").read_text()) != evaluated
    assert "it evaluates an earlier policy, made before training was finished" in caplog.text
    assert not (begun.out / "evaluation").exists()
    train.run(begun.model_copy(update={"out": tmp_path / "whole"}))
    assert_same_run(tmp_path / "whole", begun.out)


@pytest.mark.parametrize("move", [shutil.copytree, shutil.move])
def test_a_copied_or_renamed_run_resumes(begun, tmp_path, move, kept):
    move(begun.out, tmp_path / "elsewhere")
    moved = begun.model_copy(update={"out": tmp_path / "elsewhere"})
    train.run(moved)
    assert f"--out {moved.out}" in load_metadata(moved.out).provenance["command"]
    assert RunDirectory(moved.out).read_settings()["out"] == str(moved.out)
    train.run(begun.model_copy(update={"out": tmp_path / "whole"}))
    assert_same_run(tmp_path / "whole", moved.out)


def test_a_run_resumes_when_its_embeddings_were_moved(tmp_path, monkeypatch):
    path = write_embeddings(tmp_path / "embeddings.h5")
    cfg = embeddings_config(tmp_path, path)
    monkeypatch.setattr(train, "CHECKPOINT_S", 0.0)
    killed_after(5, monkeypatch, cfg)
    train.run(cfg.model_copy(update={"embeddings": path.rename(tmp_path / "moved.h5")}))
    evaluate.run(EvaluateConfig(run=cfg.out, validation="clips"))
    metadata = load_metadata(cfg.out)
    assert metadata.clips.embeddings == metadata.provenance["embeddings"] == str(tmp_path / "moved.h5")


@pytest.mark.parametrize("last", ["slim", "finish", "write_json"])
def test_a_run_stopped_at_its_end_is_finished_by_the_same_command(tmp_path, monkeypatch, last):
    """Between summary and slimming, between slimming and marker."""
    cfg = sim_config(tmp_path)

    def stop(*args):
        if last != "write_json" or args[0].name == "finished.json":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train, last, stop)
        with pytest.raises(Killed):
            train.run(cfg)
    assert not RunDirectory(cfg.out).is_finished
    rows = (cfg.out / "metrics.csv").read_bytes()
    summary = train.run(cfg)
    assert RunDirectory(cfg.out).is_finished and (cfg.out / "metrics.csv").read_bytes() == rows
    assert summary == json.loads((cfg.out / "summary.json").read_text())
    assert "trainer" not in load_checkpoint(cfg.out / "last.pt")
    with raises("run-finished"):
        train.run(cfg)


def test_a_run_that_only_its_summary_is_left_of_is_not_replaced(tmp_path):
    train.run(sim_config(tmp_path))
    for name in ("finished.json", "last.pt"):
        (tmp_path / "run" / name).unlink()
    with raises("run-finished"):
        train.run(sim_config(tmp_path))
    assert (tmp_path / "run" / "best.pt").exists()


def test_an_evaluation_that_is_stopped_leaves_the_one_before(tmp_path, monkeypatch):
    train.run(sim_config(tmp_path))
    cfg = EvaluateConfig(run=tmp_path / "run", episodes=3, steps=5)
    before = evaluate.run(cfg)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "write_summary", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            evaluate.run(cfg.model_copy(update={"seed": 1}))
    assert RunDirectory(cfg.run).read_summary() == before
    assert not [path.name for path in cfg.run.iterdir() if path.name.startswith(".")]


def test_an_evaluation_of_a_policy_that_training_has_replaced_meanwhile_is_not_kept(begun, monkeypatch):
    write = evaluation.write_summary

    def finish_training(*args, **kwargs):
        train.run(begun)
        return write(*args, **kwargs)

    monkeypatch.setattr(evaluation, "write_summary", finish_training)
    with raises("run-changed", TryAgainError):
        evaluate.run(EvaluateConfig(run=begun.out, episodes=3, steps=5))
    assert not (begun.out / "evaluation").exists()
    assert RunDirectory(begun.out).read_summary()["evaluation"]["command"].startswith("vtp train")


# Full disks


def test_a_full_disk_asks_to_try_again_and_the_run_resumes(tmp_path, kept):
    """Files may be half as large as a checkpoint, then as large as they need to be."""
    cfg = sim_config(tmp_path, out=tmp_path / "whole")
    train.run(cfg)
    size = (cfg.out / "last.pt").stat().st_size
    full = cfg.model_copy(update={"out": tmp_path / "full"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (10, 20_000, size // 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with raises("disk-full", TryAgainError):
                train.run(full)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not [path for path in full.out.rglob(".*")] if full.out.exists() else True
    train.run(full)
    assert_same_run(cfg.out, full.out)


def test_leftovers_of_a_killed_training_are_removed(begun):
    dead = this_process()._replace(started=1)
    for folder in ("", "frames", "footage"):
        (begun.out / folder).mkdir(exist_ok=True)
        (begun.out / folder / f".last.pt.{dead}-00000000.tmp").touch()
    train.run(begun)
    assert not list(begun.out.rglob("*.tmp"))


# Checkpoints that are not what they were


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Settings of a run that was killed with two generations of checkpoints on the disk, and a copy of it."""
    folder = tmp_path_factory.mktemp("killed")
    cfg = sim_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "CHECKPOINT_S", 0.0)
        killed_after(70, patch, cfg)
    assert all((cfg.out / name).is_file() for name in CHECKPOINTS)
    shutil.copytree(cfg.out, folder / "copy")
    return cfg, folder / "copy"


@pytest.fixture
def begun(killed):
    """Settings of that run, whose directory is as the kill left it."""
    cfg, copy = killed
    shutil.rmtree(cfg.out, ignore_errors=True)  # a test may have moved it away
    shutil.copytree(copy, cfg.out)
    return cfg


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(begun, tmp_path, caplog, kept):
    damage(begun.out / "last.pt")
    train.run(begun)
    assert f"last.pt does not match last.pt.sha256: it is damaged; resuming from {begun.out / 'previous.pt'}" in (
        caplog.text
    )
    train.run(begun.model_copy(update={"out": tmp_path / "whole"}))
    assert_same_run(tmp_path / "whole", begun.out)


def test_with_both_damaged_nothing_is_lost_in_silence(begun):
    for name in CHECKPOINTS:
        damage(begun.out / name)
    with raises("checkpoint-corrupt", CorruptError):
        train.run(begun)
    train.run(begun.model_copy(update={"overwrite": True}))


def test_a_file_of_plain_values_that_is_no_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "best.pt")
    with raises("checkpoint-corrupt", CorruptError):
        evaluate.run(EvaluateConfig(run=tmp_path))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_code_in_a_checkpoint_never_runs(begun, name, write, tmp_path):
    trace = tmp_path / "it-ran"
    write({"agent": Payload(str(trace))}, begun.out / name)
    if name == "previous.pt":
        damage(begun.out / "last.pt")
    with raises("checkpoint-untrusted", UntrustedError) as caught:
        train.run(begun)
    assert caught.value.exit_code == 4
    assert not trace.exists(), "the payload ran"


def test_rows_that_the_checkpoint_knows_must_be_there(begun):
    (begun.out / "metrics.csv").write_text("")
    with raises("metrics-short", CorruptError):
        train.run(begun)


# Checkpoints of the first version, whose metadata were an untyped dictionary


def make_old(path):
    """The checkpoint as the first version wrote its metadata."""
    state = load_checkpoint(path)
    described = json.loads(state["meta"]["described"])
    old = {"source": described["source"], "task": "dishwashing", "scenario": "seed", "seed": 0, "labelled": True}
    save_checkpoint(path, state | {"meta": old | {"provenance": {"command": "vtp train"}}})


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    train.run(embeddings_config(folder, write_embeddings(folder / "embeddings.h5")))
    for name in ("best.pt", "last.pt"):
        make_old(folder / "run" / name)
    return folder


USES = {
    "evaluate": lambda folder, out: evaluate.run(EvaluateConfig(run=folder / "run")),
    "act": lambda folder, out: policy.act(ActConfig(policy=folder / "run", embeddings=folder / "embeddings.h5")),
    "export": lambda folder, out: policy.export(PolicyExportConfig(run=folder / "run", to="safetensors", out=out)),
    "init": lambda folder, out: train.run(
        embeddings_config(folder, folder / "embeddings.h5", out=out, init=folder / "run")
    ),
    "retrain": lambda folder, out: Retrainer(RunDirectory(folder / "run")),
}


@pytest.mark.parametrize("use", USES)
def test_checkpoints_of_the_first_version_are_refused(use, old_run, tmp_path):
    out = tmp_path / "policy.safetensors"
    with raises("checkpoint-version") as caught:
        USES[use](old_run, out)
    assert caught.value.exit_code == 2 and "train again" in str(caught.value)
    assert not out.exists()


def test_a_run_of_the_first_version_is_not_resumed(begun):
    make_old(begun.out / "last.pt")
    rows = (begun.out / "metrics.csv").read_bytes()
    with raises("checkpoint-version"):
        train.run(begun)
    assert (begun.out / "metrics.csv").read_bytes() == rows


# What must not change in between


def test_other_settings_are_refused_and_named(begun):
    with raises("run-other-settings") as caught:
        train.run(begun.model_copy(update={"lr": 0.01}))
    assert "lr=0.001" in str(caught.value) and "lr=0.01;" in str(caught.value)


def test_other_embeddings_are_refused_by_their_hash(tmp_path, monkeypatch):
    path = write_embeddings(tmp_path / "embeddings.h5")
    content = dataset.read_embeddings(path).content_sha256
    cfg = embeddings_config(tmp_path, path)
    monkeypatch.setattr(train, "CHECKPOINT_S", 0.0)
    killed_after(5, monkeypatch, cfg)
    write_embeddings(path, contexts=("pan", "plate"))
    with raises("run-other-data") as caught:
        train.run(cfg)
    assert content[:12] in str(caught.value) and caught.value.exit_code == 2


def test_other_novelty_is_refused_by_its_hash(tmp_path, monkeypatch):
    path, weights = write_embeddings(tmp_path / "embeddings.h5"), tmp_path / "novelty.h5"
    content = dataset.read_embeddings(path).content_sha256
    write_novelty(weights, np.ones(120), content)
    cfg = embeddings_config(tmp_path, path, novelty=weights)
    monkeypatch.setattr(train, "CHECKPOINT_S", 0.0)
    killed_after(5, monkeypatch, cfg)
    write_novelty(weights, np.full(120, 1.5), content)
    with raises("run-other-data") as caught:
        train.run(cfg)
    begun = hashlib.sha256(np.ones(120, np.float32).tobytes()).hexdigest()
    assert f"novelty weights {begun[:12]}" in str(caught.value)


@pytest.mark.parametrize("source", ["sim", "embeddings"])
def test_a_task_whose_file_changed_is_refused(source, tmp_path, monkeypatch):
    task = write_task(tmp_path, "pressing")
    cfg = sim_config(tmp_path, task=str(task))
    if source == "embeddings":
        cfg = embeddings_config(tmp_path, write_embeddings(tmp_path / "embeddings.h5", task=task), task=str(task))
    with monkeypatch.context() as patch:
        patch.setattr(train, "CHECKPOINT_S", 0.0)
        killed_after(5, patch, cfg)
    before = task.read_text()
    task.write_text(before.replace("human_wage_usd: 15.0", "human_wage_usd: 16.0"))
    with raises("run-other-data") as caught:
        train.run(cfg)
    assert "pressing" in str(caught.value)
    task.write_text(before + "# The same task in other words.\n")
    train.run(cfg)


def test_a_loss_that_is_not_finite_stops_it_and_leaves_the_last_good(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_S", 0.0)
    with raises("loss-not-finite"):
        train.run(sim_config(tmp_path, lr=1e30))
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pt")
    assert all(torch.isfinite(value).all() for value in checkpoint["agent"].values())
    assert not (tmp_path / "run" / "summary.json").exists()


# Beginnings and ends


def test_a_finished_run_keeps_the_policy_and_not_the_replay(tmp_path):
    train.run(sim_config(tmp_path))
    assert "trainer" not in load_checkpoint(tmp_path / "run" / "last.pt")
    assert not (tmp_path / "run" / "previous.pt").exists()


def test_patience_ends_a_run_whose_validations_no_longer_rise(tmp_path):
    cfg = sim_config(tmp_path, evaluations=12, patience=2, lr=1e-12)  # a policy that cannot change
    train.run(cfg)
    validations = pd.read_csv(tmp_path / "run" / "validations.csv")
    best = validations["profit_sampled"].idxmax()
    assert len(validations) == best + 3 < 12


@pytest.mark.slow
def test_a_run_starts_from_the_policy_of_another(tmp_path):
    train.run(sim_config(tmp_path))
    cfg = sim_config(tmp_path, out=tmp_path / "next", init=tmp_path / "run", lr=1e-12)
    train.run(cfg)
    first, then = (load_checkpoint(tmp_path / name / "best.pt")["agent"] for name in ("run", "next"))
    name = "actor.net.0.weight"
    torch.testing.assert_close(first[name], then[name], rtol=0, atol=1e-6)


def test_training_does_not_start_from_a_policy_of_another_source(tmp_path):
    train.run(sim_config(tmp_path))
    cfg = embeddings_config(tmp_path, write_embeddings(tmp_path / "embeddings.h5"), out=tmp_path / "next")
    with raises("run-other-source"):
        train.run(cfg.model_copy(update={"init": tmp_path / "run"}))
    assert not (tmp_path / "next").exists()


def test_training_does_not_start_from_a_policy_with_another_centre(tmp_path):
    cfg = embeddings_config(tmp_path, write_embeddings(tmp_path / "embeddings.h5"))
    train.run(cfg)
    with raises("run-other-centre"):
        train.run(cfg.model_copy(update={"init": tmp_path / "run", "out": tmp_path / "next", "centre": "video"}))


def test_training_does_not_start_from_a_policy_with_another_projector(tmp_path):
    path = write_embeddings(tmp_path / "embeddings.h5")
    cfg = embeddings_config(tmp_path, path)
    train.run(cfg)
    train.run(cfg.model_copy(update={"init": tmp_path / "run", "out": tmp_path / "next"}))
    data = dataset.read_embeddings(path)
    dataset.write_embeddings(path, replace(data, projector_scale=2.0))
    with raises("run-other-projector"):
        train.run(cfg.model_copy(update={"init": tmp_path / "run", "out": tmp_path / "other"}))
