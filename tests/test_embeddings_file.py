import itertools
import os
import resource
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
from factories import assert_equal, small_part
from raising import raises

from pipeline import dataset
from pipeline.dataset import hdf5
from pipeline.errors import CorruptError, TryAgainError, VtpError
from pipeline.tasks import load_task


@pytest.fixture
def embeddings():
    part = small_part()
    rng = np.random.default_rng(1)
    named = replace(part.videos, id=["one", "zwei/ü"], path=["/v/1", "/v/2"], split=["train", "val"])
    logs = dataset.Logs(
        context=np.array(["bolt", "gear", "", "", "vial"], object),
        actions=np.array([[0.5, 10], [1, np.nan], [np.nan] * 2, [0.1, 5], [1.5, 40]]),
        attempts=np.array([1, 2, np.nan, 0, 4.0]),
        errors=np.array([1, 0, np.nan, 0, 1.0]),
        novel=np.array([0, 0.5, 1, np.nan, np.nan]),
        propensity=np.array([0.02, 0.03, np.nan, 1, 2]),
        novel_kind=np.array(["", "", "dropped", "", "ü"], object),
    )
    return dataset.Embeddings(
        embeddings=rng.standard_normal((5, 128)).astype(np.float32),
        clips=part.clips,
        videos=named,
        logs=logs,
        task=load_task("bin-picking"),
        projector_mean=rng.standard_normal(512),
        projector_components=rng.standard_normal((128, 512)),
        projector_scale=2.5,
        attrs={"backbone": "r3d_18", "weights": "random:0", "clip_len": 16, "fps": 15.0, "projector": "pca"},
    )


@pytest.fixture
def written(tmp_path, embeddings):
    path = tmp_path / "embeddings.h5"
    dataset.write_embeddings(path, embeddings)
    return path


def test_embeddings_round_trip(written, embeddings):
    read = dataset.read_embeddings(written)
    for name in ("embeddings", "projector_mean", "projector_components", "projector_scale"):
        np.testing.assert_array_equal(getattr(read, name), getattr(embeddings, name))
    assert_equal(read.clips, embeddings.clips)
    assert_equal(read.videos, embeddings.videos)
    assert_equal(read.logs, embeddings.logs)
    assert read.logs.price_usd is None and read.logs.damage_usd is None
    assert read.task == embeddings.task
    assert read.attrs == {**embeddings.attrs, "schema_version": 2, "content_sha256": read.content_sha256}
    assert (read.num_clips, read.num_videos) == (5, 2)


def test_learned_projector_round_trip(tmp_path, embeddings):
    norm = np.random.default_rng(2).standard_normal((2, 128))
    plain = dataset.write_embeddings(tmp_path / "e.h5", embeddings)
    assert dataset.read_embeddings(tmp_path / "e.h5").projector_norm is None
    assert dataset.write_embeddings(tmp_path / "e.h5", replace(embeddings, projector_norm=norm)) != plain
    np.testing.assert_array_equal(dataset.read_embeddings(tmp_path / "e.h5").projector_norm, norm)


def test_without_logs(tmp_path, embeddings):
    for task in (None, embeddings.task):
        dataset.write_embeddings(tmp_path / "e.h5", replace(embeddings, logs=None, task=task))
        read = dataset.read_embeddings(tmp_path / "e.h5")
        assert (read.logs, read.task) == (None, task)


def test_a_task_of_any_size(tmp_path, embeddings):
    """HDF5 attributes are limited to 64 KB."""
    one = embeddings.task.contexts["bolt"]
    many = embeddings.task.model_copy(update={"contexts": {f"part {k}": one for k in range(5000)}, "simulator": None})
    dataset.write_embeddings(tmp_path / "e.h5", replace(embeddings, logs=None, task=many))
    assert dataset.read_embeddings(tmp_path / "e.h5").task == many


def test_actions_are_stored_by_name(written, embeddings):
    with h5py.File(written) as file:
        assert sorted(file["labels/actions"]) == ["grip", "speed"]
        np.testing.assert_array_equal(file["labels/actions/grip"], embeddings.logs.actions[:, 1])


def test_every_dataset_is_checksummed(written):
    with h5py.File(written) as file:
        datasets = []
        file.visititems(lambda name, item: datasets.append(item) if isinstance(item, h5py.Dataset) else None)
        assert len(datasets) == 26
        assert all(dataset.fletcher32 and dataset.chunks for dataset in datasets)


def test_the_content_hash_depends_on_the_content_only(tmp_path, embeddings):
    first = dataset.write_embeddings(tmp_path / "a.h5", embeddings)
    moved = replace(embeddings, videos=replace(embeddings.videos, path=["/elsewhere/1", "/elsewhere/2"]))
    changed = replace(embeddings, embeddings=embeddings.embeddings + 1e-6)
    relabelled = replace(embeddings, logs=replace(embeddings.logs, actions=embeddings.logs.actions + 1e-6))
    dearer = replace(embeddings, task=embeddings.task.model_copy(update={"human_wage_usd": 99.0}))
    assert dataset.write_embeddings(tmp_path / "b.h5", embeddings) == first
    assert dataset.write_embeddings(tmp_path / "c.h5", moved) == first
    assert dataset.write_embeddings(tmp_path / "d.h5", changed) != first
    assert dataset.write_embeddings(tmp_path / "d.h5", relabelled) != first
    assert dataset.write_embeddings(tmp_path / "d.h5", dearer) == first
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_odd_file_names(tmp_path, embeddings):
    odd = replace(embeddings, videos=replace(embeddings.videos, path=["/v/\udcff.mp4", "/v/\n.mp4"]))
    dataset.write_embeddings(tmp_path / "e.h5", odd)
    assert dataset.read_embeddings(tmp_path / "e.h5").videos.path == ["/v/\\udcff.mp4", "/v/\n.mp4"]


def test_a_failed_write_leaves_the_old_file(written, embeddings, monkeypatch):
    before = written.read_bytes()
    calls = itertools.count()
    monkeypatch.setattr(hdf5.zlib, "crc32", lambda block, checksum: next(calls))
    with raises("file-not-written", CorruptError):
        dataset.write_embeddings(written, embeddings)
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == [written.name]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999])
def test_no_space_left(written, embeddings, share):
    before = written.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * len(before)), limits[1]))
    try:
        with pytest.raises(
            TryAgainError, match=rf"no space left to write {written} \(\d+ bytes free\); free some"
        ) as caught:
            dataset.write_embeddings(written, embeddings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 75
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_rows_in_any_order(written, embeddings):
    rows = np.array([3, 0, 3, 4])
    np.testing.assert_array_equal(dataset.read_rows(written, rows), embeddings.embeddings[rows])
    assert dataset.read_rows(written, np.array([], int)).shape == (0, 128)
    for wrong in ([5], [-1, 2]):
        with raises("clips-out-of-range"):
            dataset.read_rows(written, np.array(wrong))


# Untrusted files


def test_missing_file_error_names_the_command_that_makes_it(tmp_path):
    with raises("embeddings-missing"):
        dataset.read_embeddings(tmp_path / "e.h5")


@pytest.mark.parametrize("version", [1, 7])
def test_another_schema_version(written, version):
    with h5py.File(written, "a") as file:
        file.attrs["schema_version"] = version
    with raises("file-schema-version") as caught:
        dataset.read_embeddings(written)
    assert caught.value.exit_code == 2
    assert f"schema version {version}, this vtp reads 2; run the same vtp extract" in str(caught.value)


def rewrite(name, **options):
    """Replace a dataset by one made with these options."""

    def change(file, folder):
        del file[name]
        file.create_dataset(name, **options)

    return change


def link_out(file, folder):
    del file["embeddings"]
    file["embeddings"] = h5py.ExternalLink(str(folder / "other.h5"), "/embeddings")


def soft_link(file, folder):
    del file["embeddings"]
    file["embeddings"] = h5py.SoftLink("/features")


def store_outside(file, folder):
    (folder / "secret").write_bytes(b"x" * 5 * 128 * 4)
    del file["embeddings"]
    file.create_dataset("embeddings", (5, 128), np.float32, external=[(str(folder / "secret"), 0, 5 * 128 * 4)])


def make_virtual(file, folder):
    layout = h5py.VirtualLayout((5, 128), np.float32)
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "embeddings", shape=(5, 128))
    del file["embeddings"]
    file.create_virtual_dataset("embeddings", layout)


def forget_hash(file, folder):
    del file.attrs["content_sha256"]


def drop_videos(file, folder):
    del file["videos"]


def drop_task(file, folder):
    del file["task"]


def drop_action(file, folder):
    del file["labels/actions/grip"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (link_out, "file-links-out"),
        (soft_link, "file-links-out"),
        (store_outside, "file-links-out"),
        (make_virtual, "file-links-out"),
        (forget_hash, "file-incomplete"),
        (drop_videos, "file-incomplete"),
        (drop_task, "file-incomplete"),
        (drop_action, "file-incomplete"),
        (rewrite("task", data=np.array([b"{}"])), "task-corrupt"),
        (rewrite("embeddings", shape=(5, 64), dtype=np.float32), "file-shape"),
        (rewrite("labels/errors", shape=(4,), dtype=np.float64), "file-shape"),
        (rewrite("embeddings", data=np.zeros((5, 128))), "file-type"),
        (rewrite("videos/id", data=np.arange(2)), "file-type"),
        (rewrite("features", shape=(1 << 30, 512), dtype=np.float32, chunks=(64, 512)), "file-storage"),
        (rewrite("videos/offset", data=np.array([0, 2, 6])), "file-offsets"),
        (rewrite("videos/offset", data=np.array([0, 5, 5])), "file-offsets"),
    ],
)
def test_untrusted_files_are_refused(written, change, code):
    with h5py.File(written, "a") as file:
        change(file, written.parent)
    with raises(code, CorruptError) as caught:
        dataset.read_embeddings(written)
    assert caught.value.exit_code == 4
    assert str(written) in str(caught.value)


def test_any_damaged_data_is_found(written, embeddings):
    data = bytearray(written.read_bytes())
    at = data.find(embeddings.embeddings[2].tobytes())
    data[at + 7] ^= 1
    written.write_bytes(data)
    with raises("file-damaged", CorruptError):
        dataset.read_embeddings(written)


def test_features_stay_on_disk_until_they_are_read(written, embeddings):
    found = dataset.read_embeddings(written)
    np.testing.assert_array_equal(found.features[1:3], embeddings.features[1:3])
    np.testing.assert_array_equal(found.features[[0, 4]], embeddings.features[[0, 4]])
    np.testing.assert_array_equal(np.asarray(found.features), embeddings.features)
    assert (len(found.features), found.features.shape, found.features.dtype) == (5, (5, 512), np.float32)
    dataset.write_embeddings(written, replace(embeddings, embeddings=embeddings.embeddings + 1))
    with raises("file-changed"):
        found.features[0]


def test_damaged_features_are_found_when_they_are_read(written, embeddings):
    data = bytearray(written.read_bytes())
    data[data.find(embeddings.features[2].tobytes()) + 7] ^= 1
    written.write_bytes(data)
    features = dataset.read_embeddings(written).features
    with raises("file-damaged", CorruptError):
        dataset.check_rows(features)


def test_a_file_that_is_open_elsewhere_is_busy(written):
    script = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print(flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", script, written], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(TryAgainError) as caught:
            dataset.read_embeddings(written)
    finally:
        holder.communicate()
    assert (caught.value.code, caught.value.exit_code) == ("file-busy", 75)
    dataset.read_embeddings(written)


@pytest.mark.parametrize("value", [None, np.arange(3), 4.5])
@pytest.mark.parametrize("name", ["content_sha256", "schema_version"])
def test_attributes_of_another_type_are_named(written, name, value):
    with h5py.File(written, "r+") as file:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value
    with pytest.raises(CorruptError, match=name):
        dataset.read_embeddings(written)


@pytest.mark.parametrize("name", ["mean", "components", "scale"])
def test_a_projector_that_is_not_finite_is_refused(written, name):
    with h5py.File(written, "r+") as file:
        file[f"projector/{name}"][0] = np.inf
    with pytest.raises(CorruptError, match=f"projector/{name}"):
        dataset.read_embeddings(written)


def test_embeddings_that_are_not_finite_are_refused(tmp_path, embeddings):
    values = embeddings.embeddings.copy()
    values[1, 3] = np.inf
    dataset.write_embeddings(tmp_path / "e.h5", replace(embeddings, embeddings=values))
    with raises("embeddings-damaged", CorruptError) as caught:
        dataset.read_embeddings(tmp_path / "e.h5")
    assert "the embedding of clip 1 is not finite" in str(caught.value)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "e.h5")
    with pytest.raises(VtpError, match="regular file"):
        dataset.read_embeddings(tmp_path / "e.h5")


@pytest.mark.parametrize(
    ("name", "value"), [("clip_len", 0), ("fps", np.nan), ("fps", -15.0), ("weights", np.array(["a", "b"], "S1"))]
)
def test_an_invalid_attribute_is_named(written, name, value):
    with h5py.File(written, "a") as file:
        file.attrs[name] = value
    with raises("file-attribute", CorruptError) as caught:
        dataset.read_embeddings(written)
    assert f"attribute {name}" in str(caught.value)


def test_a_missing_attribute_is_named_when_it_is_needed(written):
    with h5py.File(written, "a") as file:
        del file.attrs["backbone"]
    with raises("file-incomplete", CorruptError) as caught:
        dataset.read_embeddings(written).attrs["backbone"]
    assert "attribute backbone is missing" in str(caught.value)
