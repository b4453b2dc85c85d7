"""Object storage: cache paths, the cache's limit, extractions from and into fsspec's memory and a local S3."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_args

import arrays_by_hand
import lerobot_by_hand as by_hand
import numpy as np
import pytest
import small_runs
import yaml
from factories import assert_equal, write_video
from raising import raises

import pipeline
from pipeline import config, dataset, extract, files, storage
from pipeline.config import ExtractConfig, MergeConfig
from pipeline.dataset.rereading import read_clips
from pipeline.errors import CorruptError, PartialError, TryAgainError, VtpError
from pipeline.extraction import fetching
from pipeline.extraction.inputs import read_inputs
from pipeline.extraction.shards import parts_folder, read_ledger
from pipeline.storage import local_copies
from pipeline.storage import objects as objects_of

fsspec = pytest.importorskip("fsspec")

LABELS = "step,speed,care,attempts,errors\n" + "".join(f"{step},0.5,0.5,3,1\n" for step in range(5))
NAMES = ("a.mp4", "b.mp4", "deep/c.mp4")
CLIPS = {"clip_len": 8, "clip_stride": 8, "fps": 15.0}


@pytest.fixture(scope="session")
def s3_server():
    """A local S3 with the bucket `demos`; stopped and started again, it keeps its objects."""
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    yield server, given, moto
    server.stop()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Another machine: its cache is empty, and this process remembers nothing of it."""

    def other(name):
        for path in list(local_copies._held):
            storage.release(path)
        forget_connections()
        objects_of._listings.clear()
        monkeypatch.setenv("VTP_CACHE", str(tmp_path / name))

    monkeypatch.setattr(objects_of, "PAUSE_S", 0.01)
    monkeypatch.delenv("VTP_CACHE_GB", raising=False)
    other("first")
    yield other
    other("last")


@pytest.fixture(params=["memory", "s3"])
def bucket(request, machine, monkeypatch):
    """The URL of an empty bucket."""
    if request.param == "memory":
        system, url = fsspec.filesystem("memory"), "memory://demos"
        system.store.clear()
        return url
    _, given, _ = request.getfixturevalue("s3_server")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    system, url = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False), "s3://demos"
    if system.exists("demos"):
        system.rm("demos", recursive=True)
    system.mkdir("demos")
    return url


@pytest.fixture
def memory(machine):
    fsspec.filesystem("memory").store.clear()
    return "memory://demos"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Three videos of five clips each, with labels, a task beside them and a manifest."""
    folder = tmp_path_factory.mktemp("originals")
    (folder / "deep").mkdir()
    for number, name in enumerate(NAMES):
        write_video(folder / name, 40, first=50 * number)
    (folder / "labels.csv").write_text(LABELS)
    (folder / "work.yaml").write_text((Path(pipeline.__file__).parent / "tasks/dishwashing.yaml").read_text())
    rows = [f"{name},labels.csv,work.yaml\n" for name in NAMES]
    (folder / "manifest.csv").write_text("path,labels,task\n" + "".join(rows))
    return folder


@pytest.fixture
def fetched(monkeypatch):
    """The names of the fetched videos."""
    download, seen = local_copies._download, []

    def note(path, version):
        if path.suffix == ".mp4":
            seen.append(path.name)
        download(path, version)

    monkeypatch.setattr(local_copies, "_download", note)
    return seen


def forget_connections():
    for system in objects_of._systems.values():
        type(system).clear_instance_cache()
    objects_of._systems.clear()


def system_of(url):
    return fsspec.filesystem(url.partition(":")[0], skip_instance_cache=True, use_listings_cache=False)


def upload(folder, url):
    system = system_of(url)
    for path in folder.rglob("*"):
        if path.is_file():
            system.put_file(str(path), f"{url}/{path.relative_to(folder).as_posix()}")
    return url


def objects(url):
    root = system_of(url)._strip_protocol(url)
    return sorted(name.removeprefix(root).strip("/") for name in system_of(url).find(url))


def settings(source, out, **changes):
    return ExtractConfig(source=str(source), out=out, **{**CLIPS, **changes})


def same_but_paths(one, other):
    np.testing.assert_array_equal(one.embeddings, other.embeddings)
    assert (one.logs is None) == (other.logs is None)
    if one.logs is not None:
        assert_equal(one.logs, other.logs)
    for name in ("id", "sha256", "split"):
        assert getattr(one.videos, name) == getattr(other.videos, name), name
    assert one.task == other.task and one.content_sha256 == other.content_sha256


# Cache paths


@pytest.mark.parametrize(
    "url", ["s3://bucket/a.h5", "gs://b/deep/e.h5", "memory://b/a", "https://host/a.csv?key=1", "hf://datasets/o/n/x"]
)
def test_url_and_cache_path_convert_into_each_other(machine, url):
    place = storage.place_of(url)
    assert place.is_relative_to(storage.cache_folder())
    assert storage.url_of(place) == url and storage.name_of(place) == url and storage.place_of(place) == place
    assert storage.place_of(Path(url)) == place  # pathlib merges two slashes
    assert storage.with_urls(f"{place} is damaged; delete '{place}'") == f"{url} is damaged; delete '{url}'"


def test_other_names_have_no_cache_path():
    for name in ("a.h5", "/data/a.h5", "s3/a.h5", "C:/a", Path("a:b/c"), "random:0", ""):
        assert storage.place_of(name) is None
    assert storage.url_of(Path("/data/a.h5")) is None and storage.name_of("/data/a.h5") == "/data/a.h5"
    assert storage.place_of("file:///data/a.h5") == Path("/data/a.h5")


@pytest.mark.parametrize("url", ["s3://", "s3://b//a", "s3://b/../a", "s3://b/./a", "zip://a::s3://b/c", "s3:///a"])
def test_urls_without_a_cache_path_are_refused(url):
    with raises("storage-url"):
        storage.path_of(url)
    with raises("settings-conflict"):
        config.Settings(ExtractConfig).of({"source": url})


MODELS = [model for model in vars(config).values() if isinstance(model, type) and issubclass(model, config.Config)]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_no_setting_takes_a_url_for_a_folder(model, machine):
    """Every setting of every command is either mapped to the cache or refused."""
    fields = model.model_fields.items()
    needed = {name: ["a", "b"] if name == "runs" else "a" for name, field in fields if field.is_required()}
    out = {"out": "b"} if "out" in model.model_fields else {}
    for name, field in fields:
        urls = ["s3://bucket/x", Path("s3://bucket/x")]
        takes_paths = Path in (field.annotation, *get_args(field.annotation))
        for url in [urls] if name == "runs" else urls if takes_paths else urls[:1]:
            if name in model.in_storage:
                made = model.model_validate(needed | out | {name: url})
                assert Path(getattr(made, name)) == storage.place_of("s3://bucket/x")
                assert made.model_dump(mode="json")[name] == "s3://bucket/x"
            else:
                with pytest.raises(ValueError, match=f"{name} s3://bucket/x is in object storage"):
                    model.model_validate(needed | out | {name: url})


def test_outputs_beside_embeddings_of_storage_are_named(machine):
    for model in (config.NoveltyConfig, config.NpyExportConfig):
        with raises("settings-conflict") as caught:
            config.Settings(model).of({"embeddings": "s3://bucket/e.h5"})
        assert "--out" in str(caught.value)


def test_saved_settings_are_valid_on_other_machines(machine, tmp_path):
    cfg = settings("s3://bucket/v/manifest.csv", "s3://bucket/e.h5")
    files.save_config(tmp_path / "saved.yaml", cfg)
    machine("second")
    text = (tmp_path / "saved.yaml").read_text()
    assert str(tmp_path) not in text
    again = ExtractConfig(**yaml.safe_load(text))
    assert again.out == storage.place_of("s3://bucket/e.h5") != cfg.out
    assert pickle.loads(pickle.dumps(again)) == again


def test_settings_of_a_job_are_valid_on_its_machine(machine, tmp_path):
    cfg = settings("s3://bucket/v/manifest.csv", "s3://bucket/e.h5", task=str(tmp_path / "work.yaml"))
    sent = pickle.dumps(cfg)
    machine("node")
    found = pickle.loads(sent)
    assert found == settings("s3://bucket/v/manifest.csv", "s3://bucket/e.h5", task=str(tmp_path / "work.yaml")) != cfg
    assert found.model_fields_set == cfg.model_fields_set


def test_import_is_light():
    light = "import sys, pipeline, pipeline.cli; print(sorted({'fsspec', 's3fs', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# The cache


def test_a_file_is_fetched_once_for_each_version(bucket, fetched):
    system = system_of(bucket)
    system.pipe_file(f"{bucket}/a.mp4", b"one")
    place = storage.place_of(f"{bucket}/a.mp4")
    for _ in range(2):
        assert storage.fetch(place).read_bytes() == b"one"
    assert fetched == ["a.mp4"]
    system.pipe_file(f"{bucket}/a.mp4", b"two")  # same size as before
    assert storage.fetch(place).read_bytes() == b"two" and len(fetched) == 2


def test_cache_evicts_least_recently_used_files_that_are_not_held(memory, monkeypatch):
    system = system_of(memory)
    places = {name: storage.place_of(f"{memory}/{name}") for name in "abcd"}
    for name in places:
        system.pipe_file(f"{memory}/{name}", bytes(400))
    monkeypatch.setenv("VTP_CACHE_GB", "1e-6")  # 1000 bytes
    storage.fetch(places["a"])  # and held
    storage.fetch(places["b"])
    storage.release(places["b"])
    storage.fetch(places["c"])
    storage.release(places["c"])
    assert [name for name, path in places.items() if path.exists()] == ["a", "c"]
    storage.release(places["a"])
    written = places["a"].with_name(".e.h5.0-1.tmp")  # by another process
    written.write_bytes(bytes(100))
    storage.fetch(places["c"])  # used again
    storage.release(places["c"])
    storage.fetch(places["d"])
    assert [name for name, path in places.items() if path.exists()] == ["c", "d"] and written.exists()


def test_other_processes_do_not_evict_held_files(memory, monkeypatch):
    system_of(memory).pipe_file(f"{memory}/a", bytes(400))
    place = storage.fetch(storage.place_of(f"{memory}/a"))
    evict = "from pipeline.storage import local_copies; local_copies._make_room(10**6)"
    environment = {**os.environ, "VTP_CACHE_GB": "1e-6"}
    subprocess.run([sys.executable, "-c", evict], env=environment, check=True)
    assert place.exists()
    storage.release(place)
    subprocess.run([sys.executable, "-c", evict], env=environment, check=True)
    assert not place.exists()


def test_wrong_cache_size(monkeypatch):
    for text in ("much", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("VTP_CACHE_GB", text)
        with raises("cache-size"):
            storage.cache_bytes()


def test_unfinished_fetch_leaves_nothing(memory, monkeypatch):
    system_of(memory).pipe_file(f"{memory}/a", bytes(400))
    place = storage.place_of(f"{memory}/a")
    monkeypatch.setattr(
        type(system_of(memory)), "get_file", lambda self, name, to, **options: Path(to).write_bytes(b"")
    )
    with raises("storage-changed", TryAgainError):
        storage.fetch(place)
    assert list(place.parent.iterdir()) == []


# Extraction


def test_extraction_from_and_into_storage_equals_a_local_one(bucket, originals, encoder, fetched, machine, tmp_path):
    extract.run(settings(originals / "manifest.csv", tmp_path / "local/e.h5"))
    local = dataset.read_embeddings(tmp_path / "local/e.h5")
    upload(originals, f"{bucket}/v")
    cfg = settings(f"{bucket}/v/manifest.csv", f"{bucket}/out/e.h5")
    news = []
    result = extract.run(cfg, progress=lambda done, total, text: news.append(text))
    assert (result.num_videos, result.num_decoded, result.failures) == (3, 3, [])
    assert any(text.startswith("fetching ") for text in news)
    found = pipeline.read_dataset(f"{bucket}/out/e.h5")
    same_but_paths(found, local)
    assert found.videos.path == [f"{bucket}/v/{name}" for name in NAMES]
    (part,) = (path.name for path in parts_folder(cfg.out).glob("part-*.h5"))
    beside = [f"e.parts/{name}" for name in ("config.yaml", part, "shard-0-of-1.jsonl")]
    assert objects(f"{bucket}/out") == sorted(["e.h5", *beside, "e.yaml"])
    for name in objects(f"{bucket}/out"):
        if not name.endswith(".h5"):
            assert str(tmp_path) not in system_of(bucket).cat_file(f"{bucket}/out/{name}").decode(), name

    fetched.clear()
    machine("second")  # with an empty cache: parts and ledger are fetched, and no video
    again = extract.run(settings(f"{bucket}/v/manifest.csv", f"{bucket}/out/e.h5"))
    assert (again.num_videos, again.num_decoded, fetched) == (3, 0, [])
    same_but_paths(pipeline.read_dataset(f"{bucket}/out/e.h5"), local)
    clips = sum(len(frames) for _, frames in read_clips(pipeline.read_dataset(f"{bucket}/out/e.h5"), [1]))
    assert clips == 5 and fetched == ["b.mp4"]


@pytest.mark.parametrize("source", ["", "/", "/*.mp4", "/**/*.mp4", "/a.mp4"])
def test_folders_and_globs_have_the_ids_of_local_ones(memory, originals, encoder, tmp_path, source):
    folder = tmp_path / "videos"
    shutil.copytree(originals, folder, ignore=shutil.ignore_patterns("manifest.csv"))
    upload(folder, f"{memory}/v")
    extract.run(settings(f"{folder}{source}", tmp_path / "local/e.h5"))
    extract.run(settings(f"{memory}/v{source}", tmp_path / "remote/e.h5"))
    same_but_paths(*(dataset.read_embeddings(tmp_path / place / "e.h5") for place in ("remote", "local")))


def test_folder_s_manifest_is_used_until_it_is_removed(memory, originals, encoder, tmp_path):
    upload(originals, f"{memory}/v")
    system_of(memory).pipe_file(f"{memory}/v/manifest.csv", b"path\na.mp4\n")
    assert extract.run(settings(f"{memory}/v", tmp_path / "one.h5")).num_videos == 1
    assert extract.run(settings(f"{memory}/v", tmp_path / "bare.h5", bare=True)).num_videos == 3
    system_of(memory).rm_file(f"{memory}/v/manifest.csv")
    jobs = storage.place_of(f"{memory}/v/e.jobs/array.json")  # of an output beside the videos
    jobs.parent.mkdir()
    jobs.write_text("{}")
    assert extract.run(settings(f"{memory}/v", tmp_path / "all.h5")).num_videos == 3
    assert jobs.exists() and not storage.place_of(f"{memory}/v/manifest.csv").exists()


def test_lerobot_data_set(memory, encoder, tmp_path):
    local = by_hand.write_v3(tmp_path / "v3", **by_hand.LOSSLESS)
    upload(local, f"{memory}/v3")
    for name, source in (("local", str(local)), ("remote", f"{memory}/v3")):
        extract.run(settings(source, tmp_path / name / "e.h5", camera="front", clip_len=4, clip_stride=4))
    same_but_paths(*(dataset.read_embeddings(tmp_path / place / "e.h5") for place in ("remote", "local")))


@pytest.mark.parametrize("name", ["lift-v0", "lift-v0/data", "lift-v0/data/main_data.hdf5"])
def test_minari_data_set(memory, encoder, tmp_path, name):
    upload(arrays_by_hand.write_minari(tmp_path / "lift-v0"), f"{memory}/lift-v0")
    cfg = settings(f"{memory}/{name}", tmp_path / "e.h5", fps=20)
    assert extract.run(cfg).num_videos == 3
    system_of(memory).rm_file(f"{memory}/lift-v0/data/metadata.json")
    with raises("no_frame_rate", VtpError):
        read_inputs(cfg)


def test_a_folder_that_does_not_fit_into_the_cache_is_not_read_in_part(memory, monkeypatch, tmp_path):
    (tmp_path / "demos").mkdir()
    for name in ("a.hdf5", "b.hdf5"):
        arrays_by_hand.write_robomimic(tmp_path / "demos" / name, cameras=["agentview_image"])
    upload(tmp_path / "demos", f"{memory}/demos")
    cfg = settings(f"{memory}/demos", tmp_path / "e.h5", fps=20)
    assert len(read_inputs(cfg).entries) == 6
    monkeypatch.setenv("VTP_CACHE_GB", str(1.5e-9 * (tmp_path / "demos/a.hdf5").stat().st_size))
    with raises("cache-too-small") as caught:
        read_inputs(cfg)
    assert "VTP_CACHE_GB" in str(caught.value)


def test_shards_of_several_machines_are_merged_on_another(bucket, originals, encoder, machine, tmp_path):
    upload(originals, f"{bucket}/v")
    extract.run(settings(originals / "manifest.csv", tmp_path / "local/e.h5"))
    for shard in range(3):
        machine(f"shard {shard}")
        if shard == 2:
            with raises("shard-incomplete", CorruptError) as caught:
                extract.merge(MergeConfig(out=f"{bucket}/e.h5"))
            assert f"--config {bucket}/e.parts/config.yaml --shard 2" in str(caught.value)
        extract.run(settings(f"{bucket}/v/manifest.csv", f"{bucket}/e.h5", shards=3, shard=shard))
    machine("merging")
    result = extract.merge(MergeConfig(out=f"{bucket}/e.h5"))
    assert (result.num_videos, result.failures) == (3, [])
    same_but_paths(pipeline.read_dataset(f"{bucket}/e.h5"), dataset.read_embeddings(tmp_path / "local/e.h5"))


def test_shards_are_the_same_on_all_machines(memory, originals, machine):
    upload(originals, f"{memory}/v")
    of_machine = []
    for name in ("empty", "full"):
        machine(name)
        paths = [storage.place_of(f"{memory}/v/{video}") for video in NAMES]
        if name == "full":
            for path in paths[:2]:
                storage.fetch(path)
        of_machine.append(storage.sizes_of([*paths, paths[0].with_name("gone.mp4")]))
        assert of_machine[-1] == {path: (originals / video).stat().st_size for path, video in zip(paths, NAMES)}  # noqa: B905


def test_cache_stays_within_its_limit(memory, originals, encoder, fetched, monkeypatch, tmp_path):
    largest = max((originals / name).stat().st_size for name in NAMES)
    monkeypatch.setenv("VTP_CACHE_GB", str(1.2 * largest / 1e9))
    monkeypatch.setattr(fetching, "AHEAD", 1)
    upload(originals, f"{memory}/v")
    result = extract.run(settings(f"{memory}/v/*/*.mp4", tmp_path / "e.h5"))
    assert result.num_videos == 1
    result = extract.run(settings(f"{memory}/v/manifest.csv", tmp_path / "f.h5"))
    assert result.num_videos == 3
    local_copies._make_room(0)
    left = [path for path in storage.cache_folder().rglob("*.mp4")]
    assert sum(path.stat().st_size for path in left) <= 1.2 * largest and len(left) == 1


def test_changed_object_is_decoded_again(bucket, originals, encoder, tmp_path):
    upload(originals, f"{bucket}/v")
    cfg = settings(f"{bucket}/v/manifest.csv", tmp_path / "e.h5")
    extract.run(cfg)
    write_video(tmp_path / "other.mp4", 40, first=200)
    system_of(bucket).put_file(str(tmp_path / "other.mp4"), f"{bucket}/v/a.mp4")
    assert extract.run(cfg).num_decoded == 1


def test_labels_and_task_are_read_anew(memory, originals, encoder, tmp_path):
    upload(originals, f"{memory}/v")
    cfg = settings(f"{memory}/v/manifest.csv", tmp_path / "e.h5")
    extract.run(cfg)
    system_of(memory).pipe_file(f"{memory}/v/labels.csv", LABELS.replace("0.5,3,1", "0.5,4,1").encode())
    assert extract.run(cfg).num_decoded == 0
    assert set(dataset.read_embeddings(cfg.out).logs.attempts) == {4.0}
    system_of(memory).rm_file(f"{memory}/v/labels.csv")
    with raises("labels-missing"):
        extract.run(cfg)


def test_rows_may_be_urls_beside_the_manifest(memory, originals, encoder, tmp_path):
    upload(originals, f"{memory}/v")
    rows = f"path,labels\n{memory}/v/a.mp4,{memory}/v/labels.csv\nb.mp4,\n"
    system_of(memory).pipe_file(f"{memory}/v/manifest.csv", rows.encode())
    extract.run(settings(f"{memory}/v/manifest.csv", tmp_path / "e.h5"))
    assert dataset.read_embeddings(tmp_path / "e.h5").videos.id == ["a.mp4", "b.mp4"]
    for row in (f"{memory}/w/a.mp4", f"{memory}/vv/a.mp4", "s3://demos/v/a.mp4"):
        system_of(memory).pipe_file(f"{memory}/v/manifest.csv", f"path\n{row}\n".encode())
        with raises("manifest-url"):
            extract.run(settings(f"{memory}/v/manifest.csv", tmp_path / "f.h5"))
    system_of(memory).pipe_file(f"{memory}/v/manifest.csv", b"path\n../w/a.mp4\n")
    with raises("manifest-leads-out"):
        extract.run(settings(f"{memory}/v/manifest.csv", tmp_path / "f.h5"))


# Failures


def test_missing_video_fails_alone(bucket, originals, encoder):
    upload(originals, f"{bucket}/v")
    system_of(bucket).rm_file(f"{bucket}/v/b.mp4")
    result = extract.run(settings(f"{bucket}/v/manifest.csv", f"{bucket}/e.h5"))
    (row,) = result.failures
    assert result.num_videos == 2 and row["path"] == f"{bucket}/v/b.mp4"
    assert (row["video_id"], row["stage"], row["code"]) == ("b.mp4", "decode", "missing")
    assert json.loads(system_of(bucket).cat_file(f"{bucket}/failures.jsonl")) == row
    assert "failures.jsonl" in objects(bucket)
    system_of(bucket).put_file(str(originals / "b.mp4"), f"{bucket}/v/b.mp4")
    assert extract.run(settings(f"{bucket}/v/manifest.csv", f"{bucket}/e.h5")).failures == []
    assert not any("failures" in name for name in objects(bucket))


def test_video_that_cannot_be_fetched_is_tried_again_and_fails_alone(memory, originals, encoder, monkeypatch):
    upload(originals, f"{memory}/v")
    get_file, tries = type(system_of(memory)).get_file, []

    def flaky(self, name, to, **options):
        if name.endswith("b.mp4"):
            tries.append(name)
            raise ConnectionResetError("reset by peer")
        get_file(self, name, to, **options)

    monkeypatch.setattr(type(system_of(memory)), "get_file", flaky)
    result = extract.run(settings(f"{memory}/v/manifest.csv", f"{memory}/e.h5", retries=2))
    (row,) = result.failures
    assert (row["video_id"], row["stage"], row["code"]) == ("b.mp4", "decode", "unreachable")
    assert len(tries) == objects_of.TRIES * 3 and result.num_videos == 2
    assert str(storage.cache_folder()) not in row["reason"]


def test_full_disk_stops_the_extraction_and_fails_no_video(memory, originals, encoder, monkeypatch, tmp_path):
    upload(originals, f"{memory}/v")
    get_file = type(system_of(memory)).get_file

    def full(self, name, to, **options):
        if name.endswith(".mp4"):
            raise OSError(errno.ENOSPC, "No space left on device")
        get_file(self, name, to, **options)

    cfg = settings(f"{memory}/v/manifest.csv", tmp_path / "e.h5")
    with monkeypatch.context() as patched:
        patched.setattr(type(system_of(memory)), "get_file", full)
        with raises("disk-full", TryAgainError) as caught:
            extract.run(cfg)
    assert "VTP_CACHE" in str(caught.value)
    assert read_ledger(parts_folder(cfg.out) / "shard-0-of-1.jsonl") == []
    assert extract.run(cfg).num_videos == 3


def test_too_many_failed_fetches_stop_the_extraction(memory, originals, encoder):
    upload(originals, f"{memory}/v")
    for name in NAMES[:2]:
        system_of(memory).rm_file(f"{memory}/v/{name}")
    with raises("too-many-failures", PartialError):
        extract.run(settings(f"{memory}/v/manifest.csv", f"{memory}/e.h5", max_failures=1))


def test_network_that_ends_halfway(s3_server, machine, originals, encoder, monkeypatch, tmp_path):
    """Finished work is kept; the same command continues from there."""
    _, given, moto = s3_server
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    own = moto.ThreadedMotoServer(port=0)  # which shares its buckets with the other one
    own.start()
    host, port = own.get_host_and_port()
    system = system_of("s3://halfway")
    if not system.exists("halfway"):
        system.mkdir("halfway")
    upload(originals, "s3://halfway/v")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setattr(fetching, "AHEAD", 1)
    cfg = settings("s3://halfway/v/manifest.csv", tmp_path / "e.h5")
    stopped = []

    def stop(done, total, text):
        if done == 1 and not stopped:
            stopped.append(own.stop())

    with raises("storage-unreachable", TryAgainError) as caught:
        extract.run(cfg, progress=stop)
    assert "s3://halfway/v/" in str(caught.value)
    done = len(read_ledger(parts_folder(cfg.out) / "shard-0-of-1.jsonl"))
    assert 1 <= done < 3
    machine("first")
    monkeypatch.setenv("AWS_ENDPOINT_URL", given["AWS_ENDPOINT_URL"])
    assert extract.run(cfg).num_decoded == 3 - done


def test_part_that_cannot_be_uploaded(memory, originals, encoder, monkeypatch):
    upload(originals, f"{memory}/v")
    put_file = type(system_of(memory)).put_file

    def broken(self, path, name, **options):
        if "part-" in name:
            raise TimeoutError("timed out")
        put_file(self, path, name, **options)

    with monkeypatch.context() as patched:
        patched.setattr(type(system_of(memory)), "put_file", broken)
        with raises("storage-unreachable", TryAgainError):
            extract.run(settings(f"{memory}/v/manifest.csv", f"{memory}/e.h5"))
    assert not any("part-" in name for name in objects(memory))
    assert extract.run(settings(f"{memory}/v/manifest.csv", f"{memory}/e.h5")).num_videos == 3


def test_foreign_object_stays(bucket, originals, encoder):
    upload(originals, f"{bucket}/v")
    for name, text in (("e.h5", b"my thesis"), ("e.yaml", b"mine: 1\n"), ("failures.jsonl", b"{}\n")):
        system_of(bucket).pipe_file(f"{bucket}/{name}", text)
        with raises("output-is-foreign"):
            extract.run(settings(f"{bucket}/v/manifest.csv", f"{bucket}/e.h5"))
        assert system_of(bucket).cat_file(f"{bucket}/{name}") == text
        system_of(bucket).rm_file(f"{bucket}/{name}")
    system_of(bucket).pipe_file(f"{bucket}/e.h5", b"")  # as touch makes it
    extract.run(settings(f"{bucket}/v/manifest.csv", f"{bucket}/e.h5"))
    with raises("output-is-input"):
        extract.run(settings(f"{bucket}/v/manifest.csv", f"{bucket}/v/a.mp4"))


def test_damaged_part_is_set_aside_in_storage_too(memory, originals, encoder, machine):
    upload(originals, f"{memory}/v")
    cfg = settings(f"{memory}/v/manifest.csv", f"{memory}/e.h5")
    extract.run(cfg)
    (part,) = (name for name in objects(memory) if "part-" in name)
    content = bytearray(system_of(memory).cat_file(f"{memory}/{part}"))
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    system_of(memory).pipe_file(f"{memory}/{part}", bytes(content))
    machine("second")
    result = extract.run(settings(f"{memory}/v/manifest.csv", f"{memory}/e.h5"))
    assert (result.num_decoded, result.num_videos) == (3, 3)
    assert system_of(memory).cat_file(f"{memory}/{part.replace('.h5', '.damaged')}") == bytes(content)


@pytest.mark.parametrize(
    "source, code",
    [("/none.csv", "storage-missing"), ("none/m.csv", "storage-missing"), ("/none", "storage-missing")],
)
def test_missing_source(bucket, source, code, tmp_path):
    with raises(code) as caught:
        extract.run(settings(f"{bucket}{source}", tmp_path / "e.h5"))
    assert f"{bucket}{source}" in str(caught.value)


def test_brackets_are_no_pattern_if_such_an_object_exists(memory, originals, encoder, tmp_path):
    upload(originals, f"{memory}/take [1]")
    assert extract.run(settings(f"{memory}/take [1]", tmp_path / "e.h5")).num_videos == 3
    system_of(memory).put_file(str(originals / "a.mp4"), f"{memory}/a[1].mp4")
    assert extract.run(settings(f"{memory}/a[1].mp4", tmp_path / "f.h5")).num_videos == 1
    with raises("source-empty"):
        extract.run(settings(f"{memory}/*.mkv", tmp_path / "g.h5"))


def test_objects_whose_cache_paths_conflict(memory):
    system = system_of(memory)
    system.pipe_file(f"{memory}/a/b", b"one")
    storage.fetch(storage.place_of(f"{memory}/a/b"))
    system.rm(f"{memory}/a", recursive=True)
    system.pipe_file(f"{memory}/a", b"two")
    with raises("storage-place"):
        storage.fetch(storage.place_of(f"{memory}/a"))


# Later stages


def test_training_reads_embeddings_of_storage(memory, machine, monkeypatch, tmp_path):
    local = small_runs.write_embeddings(tmp_path / "e.h5")
    system_of(memory).put_file(str(local), f"{memory}/e.h5")
    monkeypatch.chdir(tmp_path)
    small = {"episodes": 24, "num_envs": 8, "updates_per_episode": 1, "warmup_steps": 64, "batch_size": 32}
    far = pipeline.train(f"{memory}/e.h5", out="far", evaluations=1, outcomes="simulator", **small)
    near = pipeline.train(local, out="near", evaluations=1, outcomes="simulator", **small)
    assert far.profit == near.profit
    assert yaml.safe_load((tmp_path / "far/config.yaml").read_text())["embeddings"] == f"{memory}/e.h5"
    machine("second")  # to which the run was copied
    again = [pipeline.evaluate(run, validation="clips").profit for run in ("far", "near")]
    assert again[0] == again[1]
    actions = [pipeline.load_policy(run).act(pipeline.read_dataset(f"{memory}/e.h5")) for run in ("far", "near")]
    np.testing.assert_array_equal(*actions)
    for call in (pipeline.load_policy, pipeline.read_run):
        with raises("storage-refused"):
            call(f"{memory}/far")


# The command line, against S3


@pytest.fixture
def s3(s3_server, machine, monkeypatch):
    for name, value in s3_server[1].items():
        monkeypatch.setenv(name, value)
    system = system_of("s3://demos")
    if system.exists("demos"):
        system.rm("demos", recursive=True)
    system.mkdir("demos")
    return "s3://demos"


def test_commands_name_urls(s3, vtp, originals, encoder, tmp_path):
    upload(originals, f"{s3}/v")
    clips = ("--clip-len", 8, "--clip-stride", 8)
    code, out, err = vtp("extract", f"{s3}/v/manifest.csv", "--out", f"{s3}/e.h5", "--weights", "random:0", *clips)
    assert code == 0 and f"wrote {s3}/e.h5: 15 clips of 3 videos" in out, err
    assert f"--embeddings {s3}/e.h5" in out and str(tmp_path) not in out + err
    for arguments in (["merge", f"{s3}/e.h5"], ["extract", "--config", f"{s3}/e.parts/config.yaml"]):
        code, out, err = vtp(*arguments)
        assert code == 0 and f"wrote {s3}/e.h5: 15 clips of 3 videos" in out, err
    code, out, err = vtp("doctor", f"{s3}/e.h5", "--json")
    assert code == 0 and f"{s3}/e.h5" in {row["subject"] for row in json.loads(out)}, err
    code, out, err = vtp("logs", f"{s3}/e.h5", "--json")
    assert code == 0, err
    code, out, err = vtp("export", f"{s3}/e.h5", "--to", "npy", "--out", "arrays")
    assert code == 0 and len(list((tmp_path / "arrays").glob("*_pixels.npy"))) == 3, err


def test_errors_are_one_line_with_their_exit_code(s3, vtp, originals, monkeypatch):
    upload(originals, f"{s3}/v")
    source = f"{s3}/v/manifest.csv"
    for arguments, code, words in (
        (["extract", "s3://none/v/manifest.csv"], 2, "s3://none/v/manifest.csv does not exist"),
        (["extract", f"{s3}/none.csv"], 2, f"{s3}/none.csv does not exist"),
        (["extract", source, "--out", "s3://none/e.h5", "--weights", "random:0"], 2, "s3://none does not exist"),
        (["train", "--source", "embeddings", "--embeddings", f"{s3}/e.h5"], 2, f"{s3}/e.h5 does not exist"),
        (["train", "--source", "sim", "--out", f"{s3}/run"], 2, f"{s3}/run is in object storage"),
        (["act", f"{s3}/run", "--embeddings", f"{s3}/e.h5"], 2, f"{s3}/run is in object storage"),
        (["extract", "abc://b/x"], 2, "fsspec knows no storage abc://"),
        (["extract", "--config", f"{s3}/none.yaml"], 2, f"{s3}/none.yaml"),
    ):
        found, out, err = vtp(*arguments)
        lines = err.strip().splitlines()
        assert found == code and words in lines[-1] and len(lines) == 1 and not out, (arguments, err)
    forget_connections()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    found, _, err = vtp("extract", source)
    assert found == 75 and "cannot be reached" in err.strip().splitlines()[-1]
    forget_connections()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    found, _, err = vtp("extract", source)
    assert found == 2 and "credentials" in err.strip().splitlines()[-1]


def test_package_that_is_not_installed(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with raises("storage-extra") as caught:
        storage.fetch(storage.place_of("gs://demos/a.h5"))
    assert "video-to-policy[gs]" in str(caught.value)


def test_fetches_do_not_wait_for_each_other(memory, originals, encoder, monkeypatch, tmp_path):
    """Several files are fetched at once."""
    upload(originals, f"{memory}/v")
    get_file, meeting = type(system_of(memory)).get_file, threading.Barrier(3, timeout=60)

    def together(self, name, to, **options):
        if name.endswith(".mp4"):
            meeting.wait()
        get_file(self, name, to, **options)

    monkeypatch.setattr(type(system_of(memory)), "get_file", together)
    assert extract.run(settings(f"{memory}/v/manifest.csv", tmp_path / "e.h5")).num_videos == 3
