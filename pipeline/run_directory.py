"""What lies where in a run directory: every file name in it, once."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.errors import UntrustedError, VtpError
from pipeline.text_files import read_text

if TYPE_CHECKING:
    import pandas as pd  # which takes long to import

EVALUATION = "evaluation"  # folder of a run for the latest vtp evaluate
CHANGED = "changed"  # the same, in changed scenes
SEED_FOLDER = "seed-"
POLICY_SUFFIXES = (".onnx", ".safetensors")
EARLIER_SUFFIX = ".pt"  # of policies that earlier versions wrote
SOURCES = ("sim", "embeddings", "video")  # which the settings of a training name


class RunDirectory:
    """The files of one run, or of the folder of several seeds; nothing is read or made before it is asked for."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.yaml"
        self.best = path / "best.pt"  # the policy of the best validation
        self.last = path / "last.pt"  # the newest: policy, optimisers, replay, tally, random generators
        self.previous = path / "previous.pt"  # the one before, for when the newest is damaged
        self.metrics = path / "metrics.csv"  # a row an episode
        self.validations = path / "validations.csv"  # a row a validation during training
        self.validation = path / "validation.csv"  # a row a step of the validation that the summary is of
        self.summary = path / "summary.json"
        self.finished = path / "finished.json"  # written last: training is complete
        self.lock = path / ".lock"  # while a process trains here
        self.estimator = path / "data_value.json"  # the skill of the estimator of the customers' share
        self.report = path / "report.html"
        self.frames = path / "frames"  # pictures of what the policy saw
        self.frame_index = self.frames / "frames.json"
        self.tensorboard = path / "tensorboard"
        self.experiments = path / "experiments"
        self.frame_cache = path / "footage"  # of a run on video, for as long as it is not finished
        self.compare_page = path / "compare.html"

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def evaluation(self) -> RunDirectory:
        """Where `vtp evaluate` leaves summary, steps and frames, under the same names."""
        return RunDirectory(self.path / EVALUATION)

    @property
    def changed(self) -> RunDirectory:
        """The same for the evaluation in changed scenes."""
        return RunDirectory(self.path / CHANGED)

    @property
    def latest(self) -> RunDirectory:
        """Where the latest validation lies: that of `vtp evaluate`, else that at the end of training."""
        return self.evaluation if self.evaluation.summary.exists() else self

    def seed(self, seed: int) -> RunDirectory:
        """The run of one of several seeds."""
        return RunDirectory(self.path / f"{SEED_FOLDER}{seed}")

    @property
    def has_seeds(self) -> bool:
        return any(self.path.glob(f"{SEED_FOLDER}*/config.yaml"))

    @property
    def source(self) -> str | None:
        """The source that the settings name, empty if they name none; None if there are none that can be read."""
        try:
            return str(_yaml_mapping(self.config).get("source") or "")[:60]
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            return None

    @property
    def foreign_reason(self) -> str | None:
        """Why the settings, or without those the rest, cannot be a run's; None if they can."""
        if self.source is not None:
            wanted = f"not {', '.join(SOURCES)}"
            return (
                None if self.source in SOURCES else f"the source in its {self.config.name} is {self.source!r}, {wanted}"
            )
        if self.config.exists() or self.best.exists() or self.last.exists():
            return None
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if read_text(self.metrics).startswith("episode,"):
                return None
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if "source" in _json_mapping(self.summary):
                return None
        return f"it has no {self.config.name}, and no checkpoint, {self.metrics.name} or {self.summary.name} of vtp"

    @property
    def foreign(self) -> Path | None:
        """A file that training would write over, if anything is here that no training left."""
        is_run = self.source in SOURCES or any(self.checksums(path).exists() for path in (self.best, self.last))
        return None if is_run else next((path for path in self.written if os.path.lexists(path)), None)

    @property
    def is_finished(self) -> bool:
        return self.finished.exists()

    def policy_file(self, suffix: str) -> Path:
        """Where an exported policy lies by default."""
        return self.path / f"policy{suffix}"

    def checksums(self, checkpoint: Path) -> Path:
        return checkpoint.with_name(checkpoint.name + ".sha256")

    @property
    def read(self) -> list[Path]:
        """The files that are read of a run and of its evaluations, whether they exist or not."""
        return [
            file
            for place in (self, self.evaluation, self.changed)
            for file in (*place._checkpoints, *place._tables, place.config, place.finished, place.frame_index)
        ]

    @property
    def written(self) -> list[Path]:
        """What training writes here or removes; folders as a whole."""
        return [
            self.config, self.finished, *self._checkpoints, *self._tables, self.report,
            *map(self.policy_file, (*POLICY_SUFFIXES, EARLIER_SUFFIX)), self.tensorboard, self.frames,
            self.evaluation.path, self.changed.path, self.experiments, self.frame_cache,
        ]  # fmt: skip

    @property
    def _checkpoints(self) -> list[Path]:
        checkpoints = (self.last, self.previous, self.best)
        return [*checkpoints, *map(self.checksums, checkpoints)]

    @property
    def _tables(self) -> list[Path]:
        return [self.summary, self.metrics, self.validations, self.validation, self.estimator]

    def forget(self) -> bool:
        """Remove what an earlier run left here; whether there was anything."""
        earlier = [path for path in self.written if path.exists() and path not in (self.config, self.frame_cache)]
        for path in earlier:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return bool(earlier)

    def read_summary(self) -> dict[str, Any]:
        """The summary of the latest validation; if it is missing, VtpError with the command that makes it."""
        return self._read(self.latest.summary, _json_mapping, self.evaluate_command)

    def read_steps(self) -> pd.DataFrame:
        """The steps of the latest validation, at least one."""
        return self._read(self.latest.validation, _steps_table, self.evaluate_command)

    def read_metrics(self) -> pd.DataFrame:
        """A row per training episode, at least one."""
        return self._read(self.metrics, _table, self.train_command)

    def read_estimator(self) -> dict[str, Any] | None:
        """The skill of the estimator that the customers' share rests on; None where training left no record of it."""
        if not self.estimator.is_file():
            return None
        return self._read(self.estimator, _estimator, self.train_command)

    def read_settings(self) -> dict[str, Any]:
        """The settings that training was started with, as plain values."""
        return self._read(self.config, _yaml_mapping, self.train_command)

    @property
    def evaluate_command(self) -> str:
        """What makes summary and steps."""
        return f"vtp evaluate {shlex.quote(str(self.path))}"

    @property
    def train_command(self) -> str:
        """What makes metrics, settings and checkpoints."""
        return f"vtp train --out {shlex.quote(str(self.path))}"

    @staticmethod
    def _read(path: Path, parse: Callable[[Path], Any], command: str) -> Any:
        try:
            return parse(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise VtpError(f"{path} does not exist; make it with: {command}", code="run-file-missing") from error
        except (
            OSError,
            ValueError,
            RecursionError,
            yaml.YAMLError,
        ) as error:  # json's and pandas' own errors are ValueErrors
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise VtpError(f"{path} cannot be read ({reason}); make it with: {command}", code="run-file-bad") from error


def check_run(path: Path) -> None:
    """VtpError unless it is the directory of a run, or the folder of several seeds."""
    run, train = RunDirectory(path), f"vtp train --out {shlex.quote(str(path))}"
    if not path.is_dir():
        raise VtpError(f"{path} is no run directory; make one with: {train}", code="run-missing")
    if path.name in (EVALUATION, CHANGED) and RunDirectory(path.parent).config.exists():
        raise VtpError(f"{path} is an evaluation; name its run, {path.parent}", code="run-is-evaluation")
    parts = (run.config, run.summary, run.metrics, run.best, run.last)
    if not any(file.exists() for file in parts):
        raise VtpError(
            f"{path} holds none of {', '.join(file.name for file in parts)}, so it is not a run; make one with: "
            f"{train}",
            code="run-empty",
        )
    if (reason := run.foreign_reason) is not None:
        raise VtpError(f"{path} is not a run: {reason}; make one with: {train}", code="run-of-another-kind")


def check_new_run(path: Path, *, seeds: bool, overwrite: bool) -> None:
    """VtpError if a training into `path`, of one seed or several, would neither begin nor go on."""
    run = RunDirectory(path)
    if (foreign := run.foreign) is not None:
        raise VtpError(
            f"{path} is no run, but has {foreign.name}, which training would replace; choose another --out",
            code="folder-is-no-run",
        )
    if seeds and run.metrics.exists():
        raise VtpError(f"{run} holds the run of one seed; choose another --out", code="run-of-one-seed")
    if not seeds and run.has_seeds:
        raise VtpError(f"{run} holds several seeds; choose another --out, or go on with --seeds", code="run-has-seeds")
    if not seeds and run.is_finished and not overwrite:
        raise finished_already(run)


def one_of_several_seeds(run: RunDirectory) -> VtpError:
    first = min(run.path.glob(f"{SEED_FOLDER}*"))
    return VtpError(f"{run} holds several seeds; name one of them, such as {first}", code="run-has-seeds")


def finished_already(run: RunDirectory) -> VtpError:
    return VtpError(f"{run} holds a run already; choose another --out, or add --overwrite", code="run-finished")


def check_policy(path: Path) -> None:
    """VtpError unless it is a run directory or a file with the name of a policy; UntrustedError if that may be code."""
    if path.is_dir():
        check_run(path)
    elif path.suffix == EARLIER_SUFFIX and path.is_file():
        raise UntrustedError(
            f"refused to load {path}: a .pt file may be a program; vtp reads policies in ONNX and safetensors; export "
            "the policy again",
            code="policy-untrusted",
        )
    elif path.suffix not in POLICY_SUFFIXES or not path.is_file():
        raise VtpError(
            f"{path} is neither a run directory nor a policy's file ({', '.join(POLICY_SUFFIXES)}); make one with: "
            "vtp policy export RUN",
            code="policy-missing",
        )


def _json_mapping(path: Path) -> dict[str, Any]:
    return _mapping(json.loads(read_text(path)))


def _estimator(path: Path) -> dict[str, Any]:
    return _mapping(_json_mapping(path).get("estimator"))


def _yaml_mapping(path: Path) -> dict[str, Any]:
    return _mapping(yaml.safe_load(read_text(path)))


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it holds no names with values")
    return value


def _steps_table(path: Path) -> pd.DataFrame:
    # A context may be called NA or 01.
    return _table(path, dtype={"context": str}, keep_default_na=False, na_values=[""])


def _table(path: Path, **options: Any) -> pd.DataFrame:
    import pandas as pd

    table = pd.read_csv(io.StringIO(read_text(path)), **options)
    if table.empty:
        raise ValueError("it has no rows")
    return table
