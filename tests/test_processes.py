import os
import subprocess
import sys
from pathlib import Path

import pytest
from factories import write_video

import pipeline
from pipeline import dataset, processes
from pipeline.processes import ProcessIdentity, this_process

NAMES = ("pipeline", "numpy", "av", "decord", "torch")  # of files that users may have beside their videos
OF_PYTHON = ("random", "signal", "queue", "types", "tempfile", "socket", "multiprocessing")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A working folder whose files have the names of modules and exit with a message when they are imported."""
    names = NAMES + (OF_PYTHON if sys.version_info >= (3, 11) else ())
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the working folder\\'s {name} was imported')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def vtp(*words):
    """Run the command as its script does, with the script's folder in sys.path and not the working folder."""
    modules = [str(Path(pipeline.__file__).parent.parent), *filter(None, sys.path)]
    script = f"import sys; sys.path[:] = {modules!r}; from pipeline.cli import main; main()"
    return subprocess.run([sys.executable, "-I", "-c", script, *words], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--shards", "2", "--launcher", "local"]], ids=["alone", "shards"])
def test_extraction_beside_files_named_like_modules(hostile, how):
    (hostile / "videos").mkdir()
    for number in range(2):
        write_video(hostile / "videos" / f"{number}.mp4", 6, first=20 * number)
    done = vtp(
        "extract", "videos", "--out", "e.h5", "--weights", "random:0", "--clip-len", "2", "--clip-stride", "4", *how
    )
    assert done.returncode == 0, done.stderr
    assert dataset.read_embeddings(hostile / "e.h5").num_clips == 4
    assert "working folder" not in done.stderr + done.stdout


@pytest.mark.slow
def test_simulation_beside_files_named_like_modules(hostile, monkeypatch):
    done = vtp("simulate", "--out", "d", "--videos", "2", "--steps", "20")  # enough for workers
    assert done.returncode == 0, done.stderr
    assert len(list((hostile / "d" / "videos").iterdir())) == 2
    assert "working folder" not in done.stderr + done.stdout


def test_starting_workers_restores_what_it_changes(monkeypatch):
    for value in (None, "", "1"):
        if value is None:
            monkeypatch.delenv(processes.SAFE_PATH, raising=False)
        else:
            monkeypatch.setenv(processes.SAFE_PATH, value)
        with processes.starting_workers():
            assert os.environ[processes.SAFE_PATH] == "1"
        assert os.environ.get(processes.SAFE_PATH) == value


# How many processors


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Write the cgroups of this process: their rows in /proc/self/cgroup and the files of their limits."""

    def write(rows, limits):
        (tmp_path / "own").write_text("".join(f"{row}\n" for row in rows))
        for name, text in limits.items():
            (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "sys" / name).write_text(f"{text}\n")

    monkeypatch.setattr(processes, "CGROUP", tmp_path / "sys")
    monkeypatch.setattr(processes, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    return write


V1 = {"cpu/cpu.cfs_period_us": 50_000, "cpu/a/cpu.cfs_period_us": 100_000}


@pytest.mark.parametrize(
    ("rows", "limits", "quota", "processors"),
    [
        (["0::/"], {}, None, 16),
        (["0::/"], {"cpu.max": "max 100000"}, None, 16),
        (["0::/"], {"cpu.max": "400000 100000"}, 4, 4),  # a container's own root
        (["0::/job/step"], {"cpu.max": "max 100000", "job/cpu.max": "350000 100000"}, 3.5, 3),  # Slurm's job
        (["0::/a/b"], {"a/cpu.max": "200000 100000", "a/b/cpu.max": "800000 100000"}, 2, 2),
        (["0::/only/the/host/has/it"], {"cpu.max": "50000 100000"}, 0.5, 1),
        (["0::/"], {"cpu.max": "9900000 100000"}, 99, 16),  # more than the affinity
        (
            ["3:cpu,cpuacct:/a", "2:memory:/"],
            V1 | {"cpu/cpu.cfs_quota_us": -1, "cpu/a/cpu.cfs_quota_us": 600_000},
            6,
            6,
        ),
        (["3:cpuacct,cpu:/a"], V1 | {"cpu/cpu.cfs_quota_us": 100_000, "cpu/a/cpu.cfs_quota_us": -1}, 2, 2),
        (["2:cpuset:/"], {"cpu.max": "no number"}, None, 16),
    ],
)
def test_processors_within_affinity_and_quota(cgroups, rows, limits, quota, processors):
    cgroups(rows, limits)
    assert processes.cpu_quota() == quota
    assert processes.num_processors() == processors


def test_processes_of_an_array_share_the_processors(cgroups, monkeypatch):
    monkeypatch.setattr(processes, "_most_processors", None)
    cgroups(["0::/"], {})
    processes.limit_processors(4)
    assert processes.num_processors() == 4
    cgroups(["0::/"], {"cpu.max": "200000 100000"})
    assert processes.num_processors() == 2


def test_memory_is_limited_by_every_cgroup_around(cgroups):
    cgroups(["0::/job"], {"memory.max": "max", "memory.current": 7, "job/memory.max": 900, "job/memory.current": 400})
    assert processes.available_memory() == 500


def test_memory_that_caches_files_is_available(cgroups):
    """A job that has read videos for an hour has used up its limit, but by memory that it gets back."""
    stat = "anon 100\nfile 800\nshmem 50\nactive_file 150\ninactive_file 600"
    cgroups(["0::/"], {"memory.max": 1000, "memory.current": 950, "memory.stat": stat})
    assert processes.available_memory() == 800


# Which process


def test_an_identity_reads_back_as_itself():
    me = this_process()
    assert ProcessIdentity.parse(str(me)) == me
    assert me.pid == os.getpid() and me.is_of_this_machine and not me.has_ended
    for text in ("", "a-b-c", "a-1", "1", "a-1-x", "a--1-1"):
        assert ProcessIdentity.parse(text) is None


def test_only_its_own_machine_knows_that_a_process_has_ended():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        me = this_process()
        ended = me._replace(pid=process.pid, started=1)
    assert ended.has_ended
    assert not ended._replace(machine="elsewhere").has_ended
    assert not ended._replace(machine="").has_ended
    assert me._replace(started=me.started + 1).has_ended, "a later process has its number"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a PID namespace")
def test_another_pid_namespace_is_another_machine():
    show = "from pipeline.processes import this_process; print(this_process())"
    environment = os.environ | {"PYTHONPATH": str(Path(pipeline.__file__).parent.parent)}
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", show]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("unshare is not allowed here")
    inside = ProcessIdentity.parse(done.stdout.strip())
    assert inside is not None and not inside.is_of_this_machine and not inside.has_ended
