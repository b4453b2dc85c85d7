"""The files of a run directory: every file name in it, once."""

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
    import pandas as pd  # takes long to import

EVALUATION = "evaluation"  # folder of a run for the latest vtp evaluate
CHANGED = "changed"  # the same, in changed scenes
SEED_FOLDER = "seed-"
POLICY_SUFFIXES = (".onnx", ".safetensors")
EARLIER_SUFFIX = ".pt"  # of policies written by earlier versions
SOURCES = ("sim", "embeddings", "video")  # values of `source` in the settings of a training


class RunDirectory:
    """The files of one run, or of the folder of several seeds; files are read only on request."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.yaml"
        self.best = path / "best.pt"  # the policy of the best validation
        self.last = path / "last.pt"  # the newest: policy, optimisers, replay, tally, random generators
        self.previous = path / "previous.pt"  # the one before, used if the newest is damaged
        self.metrics = path / "metrics.csv"  # one row per episode
        self.validations = path / "validations.csv"  # one row per validation during training
        self.validation = path / "validation.csv"  # one row per step of the validation in the summary
        self.summary = path / "summary.json"
        self.finished = path / "finished.json"  # written last: training is complete
        self.lock = path / ".lock"  # while a process trains here
        self.estimator = path / "data_value.json"  # the skill of the estimator of the customers' share
        self.report = path / "report.html"
        self.frames = path / "frames"  # pictures of what the policy saw
        self.frame_index = self.frames / "frames.json"
        self.tensorboard = path / "tensorboard"
        self.experiments = path / "experiments"
        self.frame_cache = path / "footage"  # of a run on video, until it is finished
        self.compare_page = path / "compare.html"

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def evaluation(self) -> RunDirectory:
        """The results of `vtp evaluate`: summary, steps and frames, under the same names."""
        return RunDirectory(self.path / EVALUATION)

    @property
    def changed(self) -> RunDirectory:
        """The results of `vtp evaluate --scenes changed`."""
        return RunDirectory(self.path / CHANGED)

    @property
    def latest(self) -> RunDirectory:
        """The latest validation: by `vtp evaluate`, else at the end of training."""
        return self.evaluation if self.evaluation.summary.exists() else self

    def seed(self, seed: int) -> RunDirectory:
        """The run of one of several seeds."""
        return RunDirectory(self.path / f"{SEED_FOLDER}{seed}")

    @property
    def has_seeds(self) -> bool:
        return any(self.path.glob(f"{SEED_FOLDER}*/config.yaml"))

    @property
    def source(self) -> str | None:
        """The source in the settings, "" if they have none; None if no settings can be read."""
        try:
            return str(_yaml_mapping(self.config).get("source") or "")[:60]
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            return None

    @property
    def foreign_reason(self) -> str | None:
        """Why the folder cannot be a run, by its settings or else by its other files; None if it can."""
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
        return f"it has no {self.config.name} and no checkpoint, {self.metrics.name} or {self.summary.name} of vtp"

    @property
    def foreign(self) -> Path | None:
        """A file here that training would overwrite, if no training has written it."""
        is_run = self.source in SOURCES or any(self.checksums(path).exists() for path in (self.best, self.last))
        return None if is_run else next((path for path in self.written if os.path.lexists(path)), None)

    @property
    def is_finished(self) -> bool:
        return self.finished.exists()

    def policy_file(self, suffix: str) -> Path:
        """Where an exported policy is written by default."""
        return self.path / f"policy{suffix}"

    def checksums(self, checkpoint: Path) -> Path:
        return checkpoint.with_name(checkpoint.name + ".sha256")

    @property
    def read(self) -> list[Path]:
        """The files of a run and its evaluations that commands read, whether they exist or not."""
        return [
            file
            for place in (self, self.evaluation, self.changed)
            for file in (*place._checkpoints, *place._tables, place.config, place.finished, place.frame_index)
        ]

    @property
    def written(self) -> list[Path]:
        """The files and folders that training writes or removes here."""
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
        """Remove the files of an earlier run; returns whether there were any."""
        earlier = [path for path in self.written if path.exists() and path not in (self.config, self.frame_cache)]
        for path in earlier:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return bool(earlier)

    def read_summary(self) -> dict[str, Any]:
        """The summary of the latest validation; VtpError, with the command that makes it, if it is missing."""
        return self._read(self.latest.summary, _json_mapping, self.evaluate_command)

    def read_steps(self) -> pd.DataFrame:
        """The steps of the latest validation, at least one."""
        return self._read(self.latest.validation, _steps_table, self.evaluate_command)

    def read_metrics(self) -> pd.DataFrame:
        """One row per training episode, at least one."""
        return self._read(self.metrics, _table, self.train_command)

    def read_estimator(self) -> dict[str, Any] | None:
        """The skill of the estimator behind the customers' share; None if training did not record it."""
        if not self.estimator.is_file():
            return None
        return self._read(self.estimator, _estimator, self.train_command)

    def read_settings(self) -> dict[str, Any]:
        """The settings that training was started with, as plain values."""
        return self._read(self.config, _yaml_mapping, self.train_command)

    @property
    def evaluate_command(self) -> str:
        """The command that makes summary and steps."""
        return f"vtp evaluate {shlex.quote(str(self.path))}"

    @property
    def train_command(self) -> str:
        """The command that makes metrics, settings and checkpoints."""
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
        raise VtpError(f"{path} is not a run directory; make one with: {train}", code="run-missing")
    if path.name in (EVALUATION, CHANGED) and RunDirectory(path.parent).config.exists():
        raise VtpError(f"{path} is an evaluation; give its run, {path.parent}", code="run-is-evaluation")
    parts = (run.config, run.summary, run.metrics, run.best, run.last)
    if not any(file.exists() for file in parts):
        raise VtpError(
            f"{path} has none of {', '.join(file.name for file in parts)}, so it is not a run; make one with: {train}",
            code="run-empty",
        )
    if (reason := run.foreign_reason) is not None:
        raise VtpError(f"{path} is not a run: {reason}; make one with: {train}", code="run-of-another-kind")


def check_new_run(path: Path, *, seeds: bool, overwrite: bool) -> None:
    """VtpError if training in `path`, of one seed or several, could neither start nor resume."""
    run = RunDirectory(path)
    if (foreign := run.foreign) is not None:
        raise VtpError(
            f"{path} is not a run, but has {foreign.name}, which training would replace; choose another --out",
            code="folder-is-no-run",
        )
    if seeds and run.metrics.exists():
        raise VtpError(f"{run} holds the run of one seed; choose another --out", code="run-of-one-seed")
    if not seeds and run.has_seeds:
        raise VtpError(f"{run} holds several seeds; choose another --out, or add --seeds", code="run-has-seeds")
    if not seeds and run.is_finished and not overwrite:
        raise finished_already(run)


def one_of_several_seeds(run: RunDirectory) -> VtpError:
    first = min(run.path.glob(f"{SEED_FOLDER}*"))
    return VtpError(f"{run} holds several seeds; give one of them, such as {first}", code="run-has-seeds")


def finished_already(run: RunDirectory) -> VtpError:
    return VtpError(f"{run} already holds a run; choose another --out, or add --overwrite", code="run-finished")


def check_policy(path: Path) -> None:
    """VtpError unless it is a run or named like a policy file; UntrustedError if loading it could run code."""
    if path.is_dir():
        check_run(path)
    elif path.suffix == EARLIER_SUFFIX and path.is_file():
        raise UntrustedError(
            f"refused to load {path}: loading a .pt file may run code; export the policy again, to ONNX or safetensors",
            code="policy-untrusted",
        )
    elif path.suffix not in POLICY_SUFFIXES or not path.is_file():
        raise VtpError(
            f"{path} is neither a run directory nor a policy file ({', '.join(POLICY_SUFFIXES)}); make one with: "
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
        raise ValueError("it holds no `name: value` entries")
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
