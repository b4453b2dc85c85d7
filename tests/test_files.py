import ctypes
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from raising import raises

from pipeline import config, files
from pipeline.errors import TryAgainError
from pipeline.processes import ProcessIdentity, this_process


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


# Atomic writes


def test_a_file_appears_whole_in_a_folder_that_is_made_for_it(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with files.atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists(), "the file must not be seen before it is complete"
        assert temporary.parent == path.parent, "a rename is atomic within one folder only"
    assert path.read_text() == "new"
    assert leftovers(path.parent) == []


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "broken disk")])
def test_an_error_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(error)), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_where_and_how_much_is_left_and_keeps_the_old_file(tmp_path, monkeypatch, call, number):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file.txt"
    path.write_text("old")
    monkeypatch.setattr(os, call, fail)
    with raises("disk-full", TryAgainError) as caught:
        files.write_text(path, "new")
    assert re.search(r"file\.txt \(\d+ bytes free\)", str(caught.value))
    assert caught.value.exit_code == 75
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_a_disk_that_is_full_before_the_folder_is_made_says_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", full_disk)
    with raises("disk-full", TryAgainError):
        files.write_text(tmp_path / "new" / "file.txt", "text")


def test_any_other_error_of_the_disk_keeps_its_name(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        files.write_text(tmp_path / "file.txt", "new")
    assert list(tmp_path.iterdir()) == []


def test_the_file_reaches_the_disk_before_its_name_and_the_name_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = files.fsync_path, os.replace
    monkeypatch.setattr(files, "fsync_path", lambda path: (calls.append(f"fsync {path.suffix}"), fsync(path)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    files.write_text(tmp_path / "file.txt", "new")
    assert calls == ["fsync .tmp", "replace", "fsync "]


def test_a_file_in_the_place_of_a_folder_and_the_reverse_are_errors_of_the_user(tmp_path):
    (tmp_path / "file").write_text("x")
    with raises("folder-is-file"):
        files.write_text(tmp_path / "file" / "config.yaml", "x")
    with raises("folder-is-file"):
        files.make_folder(tmp_path / "file" / "sub")
    with raises("output-is-folder"):
        files.write_text(tmp_path, "x")
    assert (tmp_path / "file").read_text() == "x"


# What is written


def test_json_is_strict_and_ends_in_a_newline(tmp_path):
    path = tmp_path / "summary.json"
    files.write_json(path, {"profit": 28.5, "interval": None, "names": ["pan"]})
    assert path.read_text().endswith("}\n")
    assert json.loads(path.read_text()) == {"profit": 28.5, "interval": None, "names": ["pan"]}
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Out of range float"):
            files.write_json(path, {"profit": value})
    assert json.loads(path.read_text())["profit"] == 28.5, "a refused value must not replace a good file"


@pytest.mark.parametrize(
    "cfg",
    [
        config.SimulateConfig(out=Path("räume/x y"), val_fraction=0.0),
        config.ExtractConfig(source="videos: #1", fps=29.97),
        config.EmbeddingsTrainConfig(lr=1e-5, novelty=None),
        config.VideoTrainConfig(novelty=Path("n.h5"), buffer_size=700),
        config.EvaluateConfig(run=Path("runs/a")),
        config.DemoConfig(quick=True),
    ],
    ids=lambda cfg: type(cfg).__name__,
)
def test_a_saved_config_reads_back_as_itself(tmp_path, cfg):
    path = tmp_path / "config.yaml"
    files.save_config(path, cfg)
    assert type(cfg)(**yaml.safe_load(path.read_text(encoding="utf-8"))) == cfg


def test_sha256_of_a_file_is_hashlibs(tmp_path):
    data = os.urandom(3_000_001)  # more than two of its blocks
    (tmp_path / "data").write_bytes(data)
    assert files.file_sha256(tmp_path / "data") == hashlib.sha256(data).hexdigest()


# A full disk, as libraries tell it


def too_large(write):
    """The exception of a child that may write files of at most 100 kB, as text: kind and code."""
    child = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from pathlib import Path
import numpy as np, pandas as pd, torch, safetensors.torch
from pipeline import files
array = np.zeros(100_000)
with files.atomic_path(Path("file")) as temporary:
    {write}
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, env=environment())
    return done.stderr.strip().splitlines()[-1]


def environment():
    return os.environ | {"PYTHONPATH": str(Path(files.__file__).parent.parent)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "write",
    [
        "torch.save(torch.from_numpy(array), temporary.open('wb'))",
        "safetensors.torch.save_file({'a': torch.from_numpy(array)}, temporary)",
        "array.tofile(temporary)",
        "np.save(temporary.open('wb'), array)",
        "pd.DataFrame(array).to_csv(temporary)",
        "temporary.write_bytes(array.tobytes())",
    ],
)
def test_a_full_disk_is_try_again_in_the_words_of_every_library(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    assert re.match(r"pipeline.errors.TryAgainError: no space left to write file \(\d+ bytes free\)", too_large(write))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_libraries_keep_their_kind(tmp_path):
    with pytest.raises(RuntimeError, match="unexpected pos"), files.atomic_path(tmp_path / "file"):
        raise RuntimeError("unexpected pos 704 vs 598")


# Folders


def test_a_folder_takes_the_place_of_the_one_before_whole(tmp_path):
    path = tmp_path / "evaluation"
    for content in ("first", "second"):
        with files.atomic_folder(path) as temporary:
            (temporary / content).write_text(content)
            assert not (path / content).exists()
        assert [file.name for file in path.iterdir()] == [content]
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(path) as temporary:
        (temporary / "third").write_text("half")
        raise KeyboardInterrupt
    assert [file.name for file in path.iterdir()] == ["second"]
    assert leftovers(tmp_path) == []


def test_a_folder_of_many_files_is_flushed_at_once(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(files, "fsync_path", flushed.append)
    for count in (files.MANY_FILES, files.MANY_FILES + 1):
        flushed.clear()
        with files.atomic_folder(tmp_path / "many") as temporary:
            for number in range(count):
                (temporary / str(number)).write_text(str(number))
        assert len(list((tmp_path / "many").iterdir())) == count
        assert len(flushed) == (count + 2 if count == files.MANY_FILES else 1)  # files and folder, then its parent


def test_a_disk_that_cannot_be_flushed_is_an_error(tmp_path, monkeypatch):
    class Broken:
        def syncfs(self, fd):
            ctypes.set_errno(errno.EIO)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Broken())
    monkeypatch.setattr(files, "MANY_FILES", 0)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), files.atomic_folder(tmp_path / "many") as temporary:
        (temporary / "one").write_text("1")
    assert list(tmp_path.iterdir()) == []


# Leftovers


def test_two_calls_never_share_a_temporary(tmp_path):
    with files.atomic_path(tmp_path / "a") as one, files.atomic_path(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"


def test_a_long_name_has_a_temporary_too(tmp_path):
    path = tmp_path / ("é" * 120 + ".h5")  # 243 bytes of the 255 that a name may have
    files.write_text(path, "x")
    assert path.read_text() == "x"


def test_leftovers_of_the_dead_are_removed_at_once_and_others_after_a_day(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        me = this_process()
        started = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        child = ProcessIdentity(me.machine, process.pid, started)
        of = {
            "mine": me, "child": child, "dead": child._replace(started=started + 1),  # its number was taken by another
            "elsewhere": child._replace(machine="0" * 8, started=1),
        }  # fmt: skip
        for name, writer in of.items():
            (tmp_path / f".{name}.h5.{writer}-00000000.tmp").touch()
        (tmp_path / f".folder.{of['dead']}-00000000.tmp").mkdir()
        for name in (".old.h5.elsewhere.1.tmp", ".new.h5.elsewhere.1.tmp", "mine.tmp"):
            (tmp_path / name).touch()
        os.utime(tmp_path / ".old.h5.elsewhere.1.tmp", (0, 0))
        files.remove_leftovers(tmp_path, "mine.h5")
        assert len(list(tmp_path.iterdir())) == 8
        files.remove_leftovers(tmp_path)
        left = sorted(path.name.split(".")[1] for path in tmp_path.iterdir())
        assert left == ["child", "elsewhere", "mine", "new", "tmp"]
        process.communicate(b"\n")
    files.remove_leftovers(tmp_path)
    assert sorted(path.name.split(".")[1] for path in tmp_path.iterdir()) == ["elsewhere", "mine", "new", "tmp"]


def test_a_device_or_a_pipe_is_refused_as_an_output(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with raises("output-is-no-file"):
            files.write_text(tmp_path / name, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]
