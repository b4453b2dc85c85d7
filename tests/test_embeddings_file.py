import resource
from dataclasses import replace

import h5py
import numpy as np
import pytest

from pipeline import dataset
from pipeline.dataset import embeddings_file
from pipeline.errors import CorruptError, TryAgainError, VtpError


@pytest.fixture
def part():
    rng = np.random.default_rng(0)
    clips = dataset.Clips(
        features=rng.standard_normal((5, 512)).astype(np.float32),
        start_frame=np.array([0, 16, 0, 32, 64]),
        start_s=np.array([0, 1.0667, 0, 1.0667, 2.1333]),
        end_s=np.array([1.0667, 2.1333, 1.0667, 2.1333, 2.5]),
        valid_frames=np.array([16, 16, 16, 16, 6]),
        offset=np.array([0, 2, 5]),
    )
    videos = dataset.Videos(["a" * 64, "b" * 64], np.array([15.0, 29.97]), np.array([40, 90]), ["decord", "pyav"])
    return dataset.Part(clips, videos, {"backbone": "r3d_18", "clip_len": 16, "fps": 15.0})


@pytest.fixture
def embeddings(part):
    rng = np.random.default_rng(1)
    named = replace(part.videos, id=["one", "zwei/ü"], path=["/v/1", "/v/2"], split=["train", "val"], task=["", "x"])
    labels = {name: np.array([0.5, 1, np.nan, 0, 0]) for name in dataset.LABEL_NUMBERS}
    return dataset.Embeddings(
        embeddings=rng.standard_normal((5, 128)).astype(np.float32),
        clips=part.clips,
        videos=named,
        labels={"context": np.array(["pan", "glass", "", "", "mug"], object), **labels},
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


def assert_equal(one, other):
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def test_part_round_trip(tmp_path, part):
    dataset.write_part(tmp_path / "part.h5", part)
    read = dataset.read_part(tmp_path / "part.h5")
    assert_equal(read.clips, part.clips)
    assert_equal(read.videos, part.videos)
    assert read.settings == part.settings


def test_embeddings_round_trip(written, embeddings):
    read = dataset.read_embeddings(written)
    for name in ("embeddings", "projector_mean", "projector_components", "projector_scale"):
        np.testing.assert_array_equal(getattr(read, name), getattr(embeddings, name))
    assert_equal(read.clips, embeddings.clips)
    assert_equal(read.videos, embeddings.videos)
    for name, values in embeddings.labels.items():
        np.testing.assert_array_equal(read.labels[name], values)
    assert read.attrs == {**embeddings.attrs, "schema_version": 1, "content_sha256": read.content_sha256}
    assert read.video_splits.tolist() == ["train", "val"]
    assert (read.num_clips, read.num_videos) == (5, 2)


def test_learned_projector_round_trip(tmp_path, embeddings):
    norm = np.random.default_rng(2).standard_normal((2, 128))
    plain = dataset.write_embeddings(tmp_path / "e.h5", embeddings)
    assert dataset.read_embeddings(tmp_path / "e.h5").projector_norm is None
    assert dataset.write_embeddings(tmp_path / "e.h5", replace(embeddings, projector_norm=norm)) != plain
    np.testing.assert_array_equal(dataset.read_embeddings(tmp_path / "e.h5").projector_norm, norm)


def test_without_labels(tmp_path, embeddings):
    dataset.write_embeddings(tmp_path / "e.h5", replace(embeddings, labels=None))
    assert dataset.read_embeddings(tmp_path / "e.h5").labels is None


def test_every_dataset_is_checksummed(written):
    with h5py.File(written) as file:
        datasets = []
        file.visititems(lambda name, item: datasets.append(item) if isinstance(item, h5py.Dataset) else None)
        assert len(datasets) == 24
        assert all(dataset.fletcher32 and dataset.chunks for dataset in datasets)


def test_the_content_hash_is_of_the_content(tmp_path, embeddings):
    first = dataset.write_embeddings(tmp_path / "a.h5", embeddings)
    moved = replace(embeddings, videos=replace(embeddings.videos, path=["/elsewhere/1", "/elsewhere/2"]))
    changed = replace(embeddings, embeddings=embeddings.embeddings + 1e-6)
    assert dataset.write_embeddings(tmp_path / "b.h5", embeddings) == first
    assert dataset.write_embeddings(tmp_path / "c.h5", moved) == first
    assert dataset.write_embeddings(tmp_path / "d.h5", changed) != first
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_odd_file_names(tmp_path, embeddings):
    odd = replace(embeddings, videos=replace(embeddings.videos, path=["/v/\udcff.mp4", "/v/\n.mp4"]))
    dataset.write_embeddings(tmp_path / "e.h5", odd)
    assert dataset.read_embeddings(tmp_path / "e.h5").videos.path == ["/v/\\udcff.mp4", "/v/\n.mp4"]


def test_a_failed_write_leaves_what_was_there(written, embeddings, monkeypatch):
    before = written.read_bytes()
    monkeypatch.setattr(embeddings_file, "_holds", lambda path, content: False)
    with pytest.raises(CorruptError, match="did not read back as written; check the disk"):
        dataset.write_embeddings(written, embeddings)
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_no_space_left(written, embeddings):
    before = written.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
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
        with pytest.raises(VtpError, match="has clips 0 to 4; ask for those"):
            dataset.read_rows(written, np.array(wrong))


# What is not to be trusted


def test_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(VtpError, match=r"do not exist; make them with: vtp extract SOURCE --out .*e.h5"):
        dataset.read_embeddings(tmp_path / "e.h5")


def test_another_schema_version(written):
    with h5py.File(written, "a") as file:
        file.attrs["schema_version"] = 7
    with pytest.raises(VtpError, match="has schema version 7, this vtp reads 1; make it again") as caught:
        dataset.read_embeddings(written)
    assert caught.value.exit_code == 2


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (link_out, "embeddings is a link elsewhere"),
        (soft_link, "embeddings is a link elsewhere"),
        (store_outside, "embeddings lies in other files"),
        (make_virtual, "embeddings lies in other files"),
        (forget_hash, "has no content_sha256"),
        (drop_videos, "lacks videos/offset"),
        (rewrite("embeddings", shape=(5, 64), dtype=np.float32), r"has shape \(5, 64\), not \(5, 128\)"),
        (rewrite("embeddings", data=np.zeros((5, 128))), "is float64, not float32"),
        (rewrite("features", shape=(1 << 30, 512), dtype=np.float32, chunks=(64, 512)), "claims more data"),
        (rewrite("videos/offset", data=np.array([0, 2, 6])), "does not cover the 5 clips"),
        (rewrite("videos/offset", data=np.array([0, 5, 5])), "does not cover the 5 clips"),
        (rewrite("videos/id", data=np.arange(2)), "is int64, not strings"),
    ],
)
def test_not_to_be_trusted(written, change, message):
    with h5py.File(written, "a") as file:
        change(file, written.parent)
    with pytest.raises(CorruptError, match=message) as caught:
        dataset.read_embeddings(written)
    assert caught.value.exit_code == 4
    assert str(written) in str(caught.value)
    assert "make it again with: vtp extract" in str(caught.value)


def test_any_damaged_data_is_found(written, embeddings):
    data = bytearray(written.read_bytes())
    at = data.find(embeddings.embeddings[2].tobytes())
    data[at + 7] ^= 1
    written.write_bytes(data)
    with pytest.raises(CorruptError, match="is damaged"):
        dataset.read_embeddings(written)


@pytest.mark.parametrize("share", [0, 0.1, 0.9])
def test_a_part_cut_off_names_itself(tmp_path, part, share):
    path = tmp_path / "part-1.h5"
    dataset.write_part(path, part)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CorruptError, match=r"part-1.h5 is damaged .*; delete it and run the same extraction again"):
        dataset.read_part(path)


# Novelty weights


def write_novelty(path, weight, content):
    with h5py.File(path, "w") as file:
        file.attrs.update({"schema_version": 1, "content_sha256": content})
        file["weight"] = np.asarray(weight, np.float32)


def test_novelty_weights_belong_to_their_embeddings(tmp_path):
    path = tmp_path / "novelty.h5"
    write_novelty(path, [1, 0.5, 2], "a" * 64)
    assert dataset.read_novelty_weights(path, "a" * 64).tolist() == [1, 0.5, 2]
    with pytest.raises(VtpError, match="belongs to embeddings aaaaaaaaaaaa, not to bbbbbbbbbbbb; make it again"):
        dataset.read_novelty_weights(path, "b" * 64)


@pytest.mark.parametrize("weight", [[1, np.nan], [1, -1]])
def test_novelty_weights_are_weights(tmp_path, weight):
    write_novelty(tmp_path / "novelty.h5", weight, "a" * 64)
    with pytest.raises(CorruptError, match="negative or not finite"):
        dataset.read_novelty_weights(tmp_path / "novelty.h5", "a" * 64)
