"""Exports, read back by the documented layout of each format."""

import csv
import json
import os
from dataclasses import replace

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from export_readers import READERS
from hypothesis import given
from hypothesis import strategies as st
from raising import raises
from small_exports import IDS, IN_ORDER, PRESSING, SPLITS, export, five_clips_each, unlogged

from pipeline import dataset
from pipeline.exports.npy_folder import NAME_BYTES, file_names
from pipeline.tasks import parse_task
from pipeline.tasks.task import RESERVED

FORMATS = tuple(READERS)
OF_EPISODES = ("lerobot", "minari", "d3rlpy")


@pytest.fixture(scope="module")
def task():
    return parse_task(PRESSING, "pressing.yaml")


EVEN_USD = 0.10 * 3 - 0.50 - 3.5 * 30 / 3600
ODD_USD = 0.20 * 2 - 3.5 * 30 / 3600


@pytest.fixture
def saved(tmp_path, task):
    """The data set, and its file."""
    data = five_clips_each(task)
    dataset.write_embeddings(tmp_path / "work.h5", data)
    return data, tmp_path / "work.h5"


def save(folder, data):
    dataset.write_embeddings(folder / "work.h5", data)
    return folder / "work.h5"


def without_logs(data):
    return replace(data, logs=None)


def read(to, result):
    return READERS[to](result.path)


@pytest.mark.parametrize("to", FORMATS)
def test_arrays_ids_and_times_come_back_equal(saved, to):
    data, path = saved
    result = export(to, path)
    assert (result.num_clips, result.num_videos, result.num_episodes, result.left_out) == (20, 4, 4, 0)
    episodes = read(to, result)
    assert [one["video_id"] for one in episodes] == (IN_ORDER if to in OF_EPISODES else IDS)
    for one in episodes:
        video = IDS.index(one["video_id"])
        rows = np.arange(5 * video, 5 * video + 5)
        assert one["split"] == SPLITS[video]
        assert one["observations"].astype(np.float32).tobytes() == data.embeddings[rows].tobytes()
        np.testing.assert_allclose(one["start_s"], data.clips.start_s[rows], rtol=1e-15)
        np.testing.assert_allclose(one["end_s"], data.clips.end_s[rows], rtol=1e-15)
        if to == "npy":
            assert one["fps"] == 15.0
            continue
        kind = np.float64 if to == "parquet" else np.float32
        np.testing.assert_array_equal(one["actions"], data.logs.actions[rows].astype(kind))
        usd = np.where(rows % 2 == 0, EVEN_USD, ODD_USD)
        np.testing.assert_allclose(one["rewards"], usd, rtol=1e-12 if to in ("parquet", "minari") else 1e-6)


def test_default_outputs_are_beside_the_embeddings_and_distinct(saved):
    _, path = saved
    names = [export(to, path).path for to in FORMATS]
    assert [name.name for name in names] == [
        "work-npy", "work.parquet", "work-lerobot", "work-minari-v0", "work.d3rlpy.h5"
    ]  # fmt: skip
    assert {name.parent for name in names} == {path.parent}
    assert not [name for name in os.listdir(path.parent) if name.endswith(".tmp")]


def test_npy_is_named_as_in_video_features(saved):
    _, path = saved
    folder = export("npy", path).path
    suffixes = ("ends_ms", "fps", "r3d_18", "timestamps_ms")
    names = ("b", "c", "kitchen_a.mp4", "yard_a.mp4")
    assert sorted(os.listdir(folder)) == sorted(
        [f"{name}_{suffix}.npy" for name in names for suffix in suffixes] + ["export.json", "videos.csv"]
    )
    times = np.load(folder / "b_timestamps_ms.npy")
    np.testing.assert_allclose(times, [0, 60_000, 120_000, 180_000, 240_000])
    assert np.load(folder / "b_r3d_18.npy").dtype == np.float32


@given(st.lists(st.text(max_size=60), min_size=1, max_size=12, unique=True))
def test_no_two_videos_share_a_file(ids):
    suffixes = ("r3d_18", "timestamps_ms", "ends_ms", "fps")
    names = file_names(ids, suffixes)
    files = [f"{name}_{suffix}.npy" for name in names for suffix in suffixes]
    assert len({file.casefold() for file in files}) == len(ids) * len(suffixes)
    assert all(len(file.encode()) <= 255 and "/" not in file and "\0" not in file for file in files)
    assert not any(file.startswith(".") for file in files)


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (["a.mp4", "b.mp4"], ["a", "b"]),
        (["x/a.mp4", "y/b.mp4"], ["a", "b"]),
        (["a.mp4", "a.mkv"], ["a.mp4", "a.mkv"]),
        (["A.mp4", "a.mp4", "x/b"], [None, None, "b"]),
        (["x/a", "x_a", "y/a"], [None, None, "y_a"]),
        (["../../etc/a.mp4"], ["a"]),
        (["v1.5", "v1.6"], ["v1.5", "v1.6"]),
        (["a", "a_ends_ms"], ["a", "a_ends_ms"]),
        (["..", "/"], [None, None]),
        (["x" * 300 + ".mp4"], [None]),
    ],
)
def test_names_are_short_if_they_are_unique(ids, names):
    found = file_names(ids, ("r3d_18", "fps"))
    for name, expected in zip(found, names, strict=True):
        assert name == expected or (expected is None and len(name.encode()) <= NAME_BYTES)
    assert len({name.casefold() for name in found}) == len(ids)


def test_a_name_that_collides_with_a_file_of_another_video_is_changed():
    assert file_names(["a", "a_fps"], ("fps", "fps_fps"))[0] != "a"


def test_the_table_is_tidy(saved, task, tmp_path):
    data, path = saved
    data = unlogged(data, 3, of=("attempts", "errors"))
    price = np.full(20, np.nan)
    price[0] = 1.0
    data = replace(data, logs=replace(data.logs, price_usd=price))
    table = pq.read_table(export("parquet", save(tmp_path, data)).path)
    assert table.column_names == [
        "video_id", "clip", "start_s", "end_s", "start_frame", "valid_frames", "split", "path",
        "pressure", "dwell", "context", "attempts", "errors", "price_usd", "reward_usd", "embedding",
    ]  # fmt: skip
    assert set(table.column_names) - {"pressure", "dwell"} <= RESERVED  # names that no action can take
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[128]"
    assert table["clip"].to_pylist() == [0, 1, 2, 3, 4] * 4
    assert table["attempts"].to_pylist()[:5] == [4, 2, 4, None, 4]
    assert table["reward_usd"].to_pylist()[3] is None
    assert table["reward_usd"].to_pylist()[0] == pytest.approx(1.0 * 3 - 0.5 - 3.5 * 30 / 3600)
    assert table["price_usd"].null_count == 19
    origin = json.loads(table.schema.metadata[b"vtp"])
    assert origin["content_sha256"] == dataset.read_embeddings(path).content_sha256


def test_columns_without_a_value_are_left_out(saved, tmp_path):
    data = unlogged(saved[0], *range(20))
    data = replace(data, logs=replace(data.logs, context=np.full(20, "", object)))
    table = pq.read_table(export("parquet", save(tmp_path, data), split="train").path)
    assert {"context", "attempts", "novel", "reward_usd"}.isdisjoint(table.column_names)
    assert {"pressure", "dwell", "errors"} <= set(table.column_names)
    shown = dataset.read_embeddings(tmp_path / "work.h5").to_pandas()
    assert list(shown) == [name for name in table.column_names if name != "embedding"]


def test_the_table_has_novelty_of_its_own_embeddings_only(saved, tmp_path):
    _, path = saved
    content = dataset.read_embeddings(path).content_sha256
    columns = {"score": np.linspace(0, 1, 20), "weight": np.linspace(1, 2, 20).astype(np.float32)}
    dataset.write_novelty(tmp_path / "n.h5", columns, {"content_sha256": content})
    table = pq.read_table(export("parquet", path, novelty=tmp_path / "n.h5").path)
    np.testing.assert_array_equal(table["novelty"], columns["score"])
    np.testing.assert_array_equal(table["weight"], columns["weight"])
    dataset.write_novelty(tmp_path / "n.h5", columns, {"content_sha256": "0" * 64})
    with raises("novelty-other-embeddings"):
        export("parquet", path, novelty=tmp_path / "n.h5", overwrite=True)
    dataset.write_novelty(tmp_path / "n.h5", {"weight": columns["weight"]}, {"content_sha256": content})
    with raises("file-shape"):
        export("parquet", path, novelty=tmp_path / "n.h5", overwrite=True)


def test_another_task_changes_prices(saved, tmp_path):
    _, path = saved
    (tmp_path / "dear.yaml").write_text(PRESSING.replace("price_usd: 0.10", "price_usd: 1.00"))
    rewards = read("minari", export("minari", path, task=str(tmp_path / "dear.yaml")))[0]["rewards"]
    np.testing.assert_allclose(rewards[::2] - EVEN_USD, ODD_USD - EVEN_USD)  # yard/a.mp4 begins with an odd clip
    np.testing.assert_allclose(rewards[1::2] - EVEN_USD, 0.90 * 3)


@pytest.mark.parametrize("to", OF_EPISODES)
def test_clips_without_logs_split_their_video(saved, tmp_path, caplog, to):
    data, _ = saved
    data = unlogged(data, 7, 15)  # the third clip of yard/a.mp4, the first of c
    result = export(to, save(tmp_path, data))
    assert (result.num_clips, result.num_episodes, result.left_out) == (18, 5, 2)
    assert "2 of 20 clips are left out" in caplog.text
    episodes = read(to, result)
    assert [(one["video_id"], len(one["rewards"])) for one in episodes] == [
        ("yard/a.mp4", 2), ("yard/a.mp4", 2), ("c", 4), ("kitchen/a.mp4", 5), ("b.mkv", 5)
    ]  # fmt: skip
    np.testing.assert_array_equal(episodes[1]["observations"], data.embeddings[8:10])
    if to == "minari":  # what follows was seen, though nothing is known of it; after the last clip nothing was
        np.testing.assert_array_equal(episodes[0]["after"], data.embeddings[7])
        np.testing.assert_array_equal(episodes[1]["after"], data.embeddings[9])


def test_a_video_without_any_step_does_not_count(saved, tmp_path):
    result = export("d3rlpy", save(tmp_path, unlogged(saved[0], *range(5, 10))))
    assert (result.num_videos, result.num_episodes, result.num_clips, result.left_out) == (3, 3, 15, 5)


@pytest.mark.parametrize("to", FORMATS)
def test_a_data_set_without_logs(saved, tmp_path, to):
    path = save(tmp_path, replace(without_logs(saved[0]), task=None))
    if to in ("minari", "d3rlpy"):
        with raises("logs-missing") as caught:
            export(to, path)
        assert "the clips have no labels" in str(caught.value)
        assert os.listdir(tmp_path) == ["work.h5"]
        return
    episodes = read(to, export(to, path))
    assert sum(len(one["observations"]) for one in episodes) == 20
    if to == "lerobot":
        assert (episodes[0]["actions"], episodes[0]["rewards"], episodes[0]["texts"]) == (None, None, ["unknown"] * 5)


def test_lerobot_has_actions_without_outcomes(saved, tmp_path, caplog):
    data = unlogged(saved[0], *range(20))
    caplog.set_level("INFO")
    episodes = read("lerobot", export("lerobot", save(tmp_path, data)))
    assert "written without rewards" in caplog.text
    assert (episodes[0]["rewards"], episodes[0]["actions"].shape) == (None, (5, 2))
    assert episodes[0]["texts"] == [f"pressing: {name}" for name in ("firm", "soft", "firm", "soft", "firm")]
    with raises("logs-missing") as caught:
        export("d3rlpy", tmp_path / "work.h5")
    assert "the labels have no attempts" in str(caught.value)


def test_lerobot_s_meta_files(saved):
    data, path = saved
    folder = export("lerobot", path).path
    info = json.loads((folder / "meta/info.json").read_text())
    assert {name: info[name] for name in ("codebase_version", "fps", "video_path", "splits", "total_tasks")} == {
        "codebase_version": "v3.0", "fps": 15 / 16, "video_path": None, "total_tasks": 2,
        "splits": {"train": "0:2", "val": "2:3", "test": "3:4"},
    }  # fmt: skip
    assert info["features"]["observation.embedding"] == {"dtype": "float32", "shape": [128], "names": None}
    assert info["features"]["action"] == {"dtype": "float32", "shape": [2], "names": ["pressure", "dwell"]}
    stats = json.loads((folder / "meta/stats.json").read_text())
    assert set(stats) == set(info["features"])
    assert stats["action"]["count"] == [20]
    np.testing.assert_allclose(stats["action"]["mean"], data.logs.actions.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], data.logs.actions.std(0), rtol=1e-6)
    np.testing.assert_allclose(stats["observation.embedding"]["q50"], np.median(data.embeddings, 0), rtol=1e-6)
    assert stats["frame_index"]["max"] == [4.0]


def test_lerobot_s_data_files_end_with_an_episode(saved, monkeypatch):
    from pipeline.exports import lerobot_folder

    data, path = saved
    monkeypatch.setattr(lerobot_folder, "FILE_MB", 0.006)  # a little more than two videos
    monkeypatch.setattr(lerobot_folder, "CHUNK_FILES", 1)
    result = export("lerobot", path)
    files = sorted(str(file.relative_to(result.path)) for file in result.path.glob("data/*/*"))
    assert files == ["data/chunk-000/file-000.parquet", "data/chunk-001/file-000.parquet"]
    episodes = read("lerobot", result)
    assert [one["video_id"] for one in episodes] == IN_ORDER
    seen = np.concatenate([one["observations"] for one in episodes])
    np.testing.assert_array_equal(seen, data.embeddings[[*range(5, 10), *range(15, 20), *range(5), *range(10, 15)]])


@pytest.mark.parametrize("to", FORMATS)
def test_one_split(saved, to):
    _, path = saved
    result = export(to, path, split="train")
    assert (result.num_videos, result.num_clips) == (2, 10)
    assert [one["video_id"] for one in read(to, result)] == ["yard/a.mp4", "c"]


def test_a_split_without_videos_is_refused(saved, tmp_path):
    data, _ = saved
    path = save(tmp_path, replace(data, videos=replace(data.videos, split=["train"] * 4)))
    with raises("split-empty") as caught:
        export("npy", path, split="val")
    assert "4 train, 0 val, 0 test" in str(caught.value)


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_is_replaced_only_with_overwrite(saved, to):
    _, path = saved
    first = export(to, path, split="train")
    with raises("output-exists"):
        export(to, path)
    assert len(read(to, first)) == 2
    assert len(read(to, export(to, path, overwrite=True))) == 4


@pytest.mark.parametrize("to", FORMATS)
def test_other_files_are_never_replaced(saved, tmp_path, to):
    _, path = saved
    (tmp_path / "mine-v0").mkdir()
    (tmp_path / "mine-v0" / "thesis.txt").write_text("years of work")
    with raises("output-is-folder" if to in ("parquet", "d3rlpy") else "output-exists"):
        export(to, path, out=tmp_path / "mine-v0", overwrite=True)
    assert (tmp_path / "mine-v0" / "thesis.txt").read_text() == "years of work"
    with raises("output-is-input"):
        export(to, path, out=path, overwrite=True)
    if to in ("npy", "lerobot", "minari"):
        (tmp_path / "file-v0").write_text("mine")
        with raises("output-is-file"):
            export(to, path, out=tmp_path / "file-v0", overwrite=True)


@pytest.mark.parametrize("to", ["parquet", "d3rlpy"])
def test_a_file_of_another_kind_is_never_replaced(saved, tmp_path, to):
    data, path = saved
    dataset.write_embeddings(tmp_path / "other.h5", data)
    pq.write_table(pq.read_table(export("parquet", path).path).replace_schema_metadata(), tmp_path / "mine.parquet")
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("other.h5", "mine.parquet", "notes.txt"):
        before = (tmp_path / name).read_bytes()
        with raises("output-exists"):
            export(to, path, out=tmp_path / name, overwrite=True)
        assert (tmp_path / name).read_bytes() == before


def test_a_folder_that_holds_the_embeddings_is_not_replaced(saved):
    _, path = saved
    (path.parent / "export.json").write_text("{}")
    with raises("output-is-input"):
        export("npy", path, out=path.parent, overwrite=True)


def test_an_empty_folder_is_filled(saved, tmp_path):
    (tmp_path / "new").mkdir()
    assert len(read("npy", export("npy", saved[1], out=tmp_path / "new"))) == 4


@pytest.mark.parametrize("out", [".", "..", "x/..", ""])
def test_a_folder_without_a_name_is_refused(saved, tmp_path, out, monkeypatch):
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty" / "deeper")
    with raises("output-name"):
        export("npy", saved[1], out=out)


@pytest.mark.parametrize("name", ["work", "work-v", "my work-v0", "a.b-v1"])
def test_minari_s_names_are_checked_before_anything_is_read(tmp_path, name):
    with raises("output-name"):
        export("minari", tmp_path / "none.h5", out=tmp_path / name)


def test_minari_s_default_name_is_one_of_minari_s(saved, tmp_path):
    path = tmp_path / "my work, 2.h5"
    os.rename(saved[1], path)
    assert export("minari", path).path.name == "my_work__2-minari-v0"


def test_minari_s_spaces_are_those_of_the_data(saved):
    _, path = saved
    metadata = json.loads((export("minari", path).path / "data/metadata.json").read_text())
    space = json.loads(metadata["action_space"])
    assert space == {
        "type": "Box", "dtype": "float32", "shape": [2], "low": [2.0, float(np.float32(0.1))], "high": [12.0, 1.0]
    }  # fmt: skip
    assert json.loads(metadata["observation_space"])["low"] == [-np.inf] * 128


def test_prices_without_rewards_are_refused(saved, tmp_path):
    path = save(tmp_path, without_logs(saved[0]))
    with raises("task-without-outcomes"):
        export("lerobot", path, task="bin-picking")


def test_a_failure_leaves_nothing_behind(saved, monkeypatch):
    from pipeline.exports import lerobot_folder

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lerobot_folder, "_info", fail)
    _, path = saved
    with raises("disk-full"):
        export("lerobot", path)
    assert os.listdir(path.parent) == ["work.h5"]


@pytest.mark.parametrize("to", FORMATS)
def test_the_command_replaces_its_output(vtp, saved, tmp_path, to):
    _, path = saved
    out = tmp_path / "again-v0"
    for flags, expected in (((), 0), ((), 2), (("--overwrite",), 0)):
        code, _, err = vtp("export", path, "--to", to, "--out", out, *flags)
        assert code == expected, err
        assert "exists; name another, or add --overwrite" in err or expected == 0


def test_a_setting_of_another_format_is_refused(vtp, saved):
    _, path = saved
    code, _, err = vtp("export", path, "--to", "npy", "--novelty", path)
    assert (code, "novelty" in err) == (2, True)
    code, _, err = vtp("export", path)
    assert (code, "--to" in err) == (2, True)


def test_the_command_prints_its_output_and_how_to_load_it(vtp, saved, monkeypatch):
    _, path = saved
    code, out, _ = vtp("export", path, "--to", "lerobot")
    first, second = out.splitlines()
    assert (code, first) == (0, f"wrote {path.parent}/work-lerobot: 20 clips of 4 videos in 4 episodes")
    assert second.startswith("next, in Python: LeRobotDataset(")
    code, out, _ = vtp("export", path, "--to", "d3rlpy", "--json", "--split", "val")
    assert {name: value for name, value in json.loads(out).items() if name != "load"} == {
        "path": f"{path.parent}/work.d3rlpy.h5", "to": "d3rlpy", "num_clips": 5, "num_videos": 1, "num_episodes": 1,
        "left_out": 0,
    }  # fmt: skip
    with h5py.File(path.parent / "work.d3rlpy.h5") as file:
        assert file.attrs["split"] == "val"


def test_ids_with_commas_and_quotes_survive_the_index(saved, tmp_path):
    data, _ = saved
    ids = ['a,"b".mp4', "ü\nx", "=1+1", " spaced "]
    path = save(tmp_path, replace(data, videos=replace(data.videos, id=ids)))
    folder = export("npy", path).path
    with open(folder / "videos.csv", newline="", encoding="utf-8") as file:
        assert [row["video_id"] for row in csv.DictReader(file)] == ids
    for to in FORMATS[1:]:
        assert {one["video_id"] for one in read(to, export(to, path))} == set(ids)


@pytest.mark.parametrize("to", FORMATS)
def test_features_without_embeddings_are_exported_to_npy_and_parquet(saved, tmp_path, to):
    data, _ = saved
    dim = data.features.shape[1]
    alone = replace(
        data, embeddings=np.zeros((data.num_clips, 0), np.float32), attrs=data.attrs | {"projector": "none"},
        projector_mean=np.zeros(dim), projector_components=np.zeros((0, dim)),
    )  # fmt: skip
    path = save(tmp_path, alone)
    if to in OF_EPISODES:
        with raises("embeddings-none"):
            export(to, path)
        return
    result = export(to, path)
    if to == "parquet":
        table = pq.read_table(result.path)
        found = np.stack(table["features"].to_pylist())
        assert set(table.column_names) - {"pressure", "dwell"} <= RESERVED
    else:
        names = list(csv.DictReader((result.path / "videos.csv").open()))
        found = np.concatenate([np.load(next(result.path.glob(f"{row['name']}_r3d*.npy"))) for row in names])
    np.testing.assert_array_equal(found, np.asarray(data.features))
