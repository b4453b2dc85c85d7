"""Runs that are interrupted, damaged, begun from another, or stopped early."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_train import SMALL, embeddings_config, one_thread, sim_config, write_embeddings, write_novelty

from pipeline import dataset, train, training
from pipeline.errors import CorruptError, UntrustedError, VtpError
from pipeline.rl import sac

__all__ = ["one_thread"]
CHECKPOINTS = ("last.pt", "previous.pt")


class Killed(BaseException):
    pass


@pytest.fixture
def kept(monkeypatch):
    """The newest checkpoint of a finished run stays whole, so that all of two runs can be compared."""
    monkeypatch.setattr(train, "slim", lambda *_: None)


def killed_after(steps, monkeypatch, cfg):
    """Train until that many steps of all environments are done; nothing is written on the way out."""
    step, done = training.Trainer.step, 0

    def counted(self):
        nonlocal done
        if done == steps:
            raise Killed
        done += 1
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", counted)
        with pytest.raises(Killed):
            train.run(cfg)


def assert_equal(one, other, where="checkpoint"):
    """All that two checkpoints hold, bit for bit, but for what says when and where it was."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one.keys() - {"created", "command", "wall_s"}:
            assert_equal(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    else:
        assert one == other or one != one, where


def assert_same_run(one, other):
    for name in ("metrics.csv", "validations.csv", "validation.csv", "data_value.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("last.pt", "best.pt"):
        assert_equal(sac.load_checkpoint(one / name), sac.load_checkpoint(other / name), name)


# Going on


@pytest.mark.parametrize("source", ["sim", "embeddings"])
def test_killed_at_five_moments_it_ends_as_if_it_never_was(source, tmp_path, monkeypatch, kept):
    if source == "sim":
        cfg = sim_config(tmp_path, out=tmp_path / "whole")
    else:
        path = write_embeddings(tmp_path / "embeddings.h5")
        content = dataset.read_embeddings(path).content_sha256
        write_novelty(tmp_path / "novelty.h5", np.linspace(0.5, 1.5, 120), content)
        cfg = embeddings_config(tmp_path, path, out=tmp_path / "whole", num_envs=3, warmup_steps=32)
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
    "--episodes", "400", "--evaluations", "40",
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
            assert "of 400 episodes; run the same command again to go on" in told
    for name in ("killed", "whole"):
        process = start(tmp_path / name)
        told = process.communicate()[1]
        assert process.returncode == 0, told
        assert ("going on after episode" in told) == (name == "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


# Checkpoints that are not what they were


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Settings of a run that was killed with two generations of checkpoints on the disk."""
    cfg = sim_config(tmp_path)
    monkeypatch.setattr(train, "CHECKPOINT_S", 0.0)
    killed_after(70, monkeypatch, cfg)
    assert all((cfg.out / name).is_file() for name in CHECKPOINTS)
    return cfg


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(begun, tmp_path, caplog, kept):
    damage(begun.out / "last.pt")
    train.run(begun)
    assert f"last.pt does not match last.pt.sha256: it is damaged; going on from {begun.out / 'previous.pt'}" in (
        caplog.text
    )
    train.run(begun.model_copy(update={"out": tmp_path / "whole"}))
    assert_same_run(tmp_path / "whole", begun.out)


def test_with_both_damaged_nothing_is_lost_in_silence(begun):
    for name in CHECKPOINTS:
        damage(begun.out / name)
    with pytest.raises(CorruptError, match=r"last.pt does not match .* no other checkpoint is whole; add --overwrite"):
        train.run(begun)
    train.run(begun.model_copy(update={"overwrite": True}))


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
    with pytest.raises(UntrustedError, match="it was not run") as caught:
        train.run(begun)
    assert caught.value.exit_code == 4
    assert not trace.exists(), "the payload ran"


def test_rows_that_the_checkpoint_knows_must_be_there(begun):
    (begun.out / "metrics.csv").write_text("")
    with pytest.raises(CorruptError, match=r"metrics.csv has 0 bytes, and \d+ were written; restore it, or add"):
        train.run(begun)


# What must not change in between


def test_other_settings_are_refused_and_named(begun):
    with pytest.raises(VtpError, match=r"was begun with lr 0.001, not 0.01; choose another --out, or add --overwrite"):
        train.run(begun.model_copy(update={"lr": 0.01}))


def test_other_embeddings_or_novelty_are_refused_by_their_hashes(tmp_path, monkeypatch):
    path = write_embeddings(tmp_path / "embeddings.h5")
    content = dataset.read_embeddings(path).content_sha256
    cfg = embeddings_config(tmp_path, path)
    monkeypatch.setattr(train, "CHECKPOINT_S", 0.0)
    killed_after(5, monkeypatch, cfg)
    write_novelty(tmp_path / "novelty.h5", np.ones(120), content)
    with pytest.raises(VtpError, match=r"begun on novelty weights none, which are now [0-9a-f]{12}; restore") as caught:
        train.run(cfg)
    assert caught.value.exit_code == 2
    (tmp_path / "novelty.h5").unlink()
    write_embeddings(path, contexts=("pan", "plate"))
    with pytest.raises(VtpError, match=rf"begun on embeddings {content[:12]}, which are now [0-9a-f]{{12}}; restore"):
        train.run(cfg)


def test_a_loss_that_is_not_finite_stops_it_and_leaves_the_last_good(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_S", 0.0)
    with pytest.raises(VtpError, match="a loss is not finite"):
        train.run(sim_config(tmp_path, lr=1e30))
    checkpoint = sac.load_checkpoint(tmp_path / "run" / "last.pt")
    assert all(torch.isfinite(value).all() for value in checkpoint["agent"].values())
    assert not (tmp_path / "run" / "summary.json").exists()


# Beginnings and ends


def test_a_finished_run_keeps_the_policy_and_not_the_replay(tmp_path):
    train.run(sim_config(tmp_path))
    assert "trainer" not in sac.load_checkpoint(tmp_path / "run" / "last.pt")
    assert not (tmp_path / "run" / "previous.pt").exists()


def test_patience_ends_a_run_whose_validations_no_longer_rise(tmp_path):
    cfg = sim_config(tmp_path, evaluations=12, patience=2, lr=1e-12)  # a policy that cannot change
    train.run(cfg)
    validations = pd.read_csv(tmp_path / "run" / "validations.csv")
    best = validations["profit_sampled"].idxmax()
    assert len(validations) == best + 3 < 12


def test_a_run_begins_with_another_ones_policy(tmp_path):
    train.run(sim_config(tmp_path))
    cfg = sim_config(tmp_path, out=tmp_path / "next", init=tmp_path / "run", lr=1e-12)
    train.run(cfg)
    first, then = (sac.load_checkpoint(tmp_path / name / "best.pt")["agent"] for name in ("run", "next"))
    name = "actor.net.0.weight"
    torch.testing.assert_close(first[name], then[name], rtol=0, atol=1e-6)


def test_a_policy_of_another_source_is_no_beginning(tmp_path):
    train.run(sim_config(tmp_path))
    cfg = embeddings_config(tmp_path, write_embeddings(tmp_path / "embeddings.h5"), out=tmp_path / "next")
    with pytest.raises(VtpError, match="was trained on sim, not on embeddings; name another run"):
        train.run(cfg.model_copy(update={"init": tmp_path / "run"}))
    assert not (tmp_path / "next").exists()


def test_a_policy_that_sees_clips_from_another_mean_is_no_beginning(tmp_path):
    cfg = embeddings_config(tmp_path, write_embeddings(tmp_path / "embeddings.h5"))
    train.run(cfg)
    with pytest.raises(
        VtpError, match="was trained with --centre corpus, not with --centre video; add --centre corpus"
    ):
        train.run(cfg.model_copy(update={"init": tmp_path / "run", "out": tmp_path / "next", "centre": "video"}))


def test_a_policy_of_another_projection_is_no_beginning(tmp_path):
    path = write_embeddings(tmp_path / "embeddings.h5")
    cfg = embeddings_config(tmp_path, path)
    train.run(cfg)
    train.run(cfg.model_copy(update={"init": tmp_path / "run", "out": tmp_path / "next"}))
    data = dataset.read_embeddings(path)
    dataset.write_embeddings(path, replace(data, projector_scale=2.0))
    with pytest.raises(VtpError, match=r"another projection; extract with --projector .*embeddings\.h5"):
        train.run(cfg.model_copy(update={"init": tmp_path / "run", "out": tmp_path / "other"}))
