"""LeRobot data sets: the frames of episodes, refused data, and logs."""

import json
import os
import shutil

import av
import lerobot_by_hand as by_hand
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from factories import read_barcode
from lerobot_by_hand import CAMERAS, LENGTHS, TEXTS
from raising import raises

from pipeline import dataset, extract
from pipeline.config import ExtractConfig
from pipeline.dataset.lerobot import LeRobot, first_frames, is_lerobot
from pipeline.dataset.lerobot_logs import read_frame_logs
from pipeline.dataset.manifest import find_lerobot, find_videos
from pipeline.dataset.rereading import read_clips
from pipeline.errors import CorruptError, VtpError
from pipeline.tasks import parse_task

FRONT, WRIST = CAMERAS
CLIP_FRAMES = 8  # of the source: 4 samples at 15 a second
TASK = {
    "name": "picking",
    "human_wage_usd": 20,
    "actions": {"speed": {"column": "action[speed]", "reduce": "mean"}},
    "contexts": {text: {"price_usd": 0.1} for text in TEXTS},
    "attempts": {"column": "next.attempts", "reduce": "sum"},
    "successes": {"column": "next.success", "reduce": "sum"},
}


@pytest.fixture(scope="module")
def v3(tmp_path_factory):
    """Every from_timestamp is off by up to a frame, differently for each camera."""
    drifts = {
        FRONT: (1, -1, 0.45, 1, 1, -1, 0, 1, -0.45, -1, 1, -1),
        WRIST: (-0.4, 1, 1, -1, 0, -1, 1, 1, -1, 0.3, -1, 1),
    }
    return by_hand.write_v3(
        tmp_path_factory.mktemp("data") / "v3", drift=lambda camera, k: drifts[camera][k], **by_hand.LOSSLESS
    )


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    return by_hand.write_v2(tmp_path_factory.mktemp("data") / "v2", **by_hand.LOSSLESS)


@pytest.fixture
def copy(v3, v2, tmp_path):
    """A copy, with files as links, of the data set of that version, to be changed."""

    def make(version="v3.0"):
        return shutil.copytree(v3 if version == "v3.0" else v2, tmp_path / "copy", copy_function=os.link)

    return make


@pytest.fixture
def run(tmp_path, encoder):
    def run(source, **changes):
        settings = {"source": str(source), "out": tmp_path / "out" / "e.h5", "clip_len": 4, "clip_stride": 4}
        return extract.run(ExtractConfig(**settings | changes))

    return run


def task_file(tmp_path, **changes):
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(TASK | changes))
    return str(path)


def rewrite(path, text):
    """Replace a link by a file of its own, without changing the original data set."""
    path.unlink()
    path.write_text(text) if isinstance(text, str) else pq.write_table(text, path)


def change_info(folder, **changes):
    path = folder / "meta/info.json"
    rewrite(path, json.dumps(json.loads(path.read_text()) | changes))


def expected_clips(camera):
    """The barcodes of the first and last frame of every clip."""
    return [
        [by_hand.barcode(k, start, camera), by_hand.barcode(k, start + CLIP_FRAMES - 2, camera)]
        for k, length in enumerate(LENGTHS)
        for start in range(0, length - CLIP_FRAMES + 2, CLIP_FRAMES)
    ]


def barcodes(data):
    found = {}
    for rows, frames in read_clips(data, range(data.num_videos)):
        ends = [[read_barcode(clip[0]), read_barcode(clip[-1])] for clip in frames]
        found |= dict(zip(rows.tolist(), ends, strict=True))
    return [found[row] for row in range(data.num_clips)]


# Episodes


def test_clips_and_labels_of_v3_match_their_episodes(v3, v2, run, tmp_path):
    task = task_file(tmp_path)
    result = run(v3, task=task)
    assert result.failures == []
    data = dataset.read_embeddings(result.path)
    assert data.videos.id == [f"episode_{k:06d}/{camera}" for camera in CAMERAS for k in range(12)]
    assert data.videos.episode == [f"episode_{k:06d}" for k in range(12)] * 2
    assert barcodes(data) == expected_clips(FRONT) + expected_clips(WRIST)
    first = [start for k, length in enumerate(LENGTHS) for start in range(0, length - 6, 8)]
    episode = dataset.video_of(data, np.arange(data.num_clips)) % 12
    frames = np.array(first * 2)[:, None] + np.arange(8)
    np.testing.assert_allclose(data.logs.actions[:, 0], by_hand.speed(episode[:, None], frames).mean(1), atol=1e-6)
    tried = by_hand.attempts(episode[:, None], frames)
    assert data.logs.attempts.tolist() == tried.sum(1).tolist()
    assert data.logs.errors.tolist() == (tried * (frames % 2)).sum(1).tolist()
    assert data.logs.context.tolist() == [TEXTS[k % 2] for k in episode]
    one_a_file = dataset.read_embeddings(run(v2, task=task, out=tmp_path / "v2.h5").path)
    np.testing.assert_array_equal(data.features, one_a_file.features)
    assert vars(data.logs).keys() == vars(one_a_file.logs).keys()
    for name, values in vars(data.logs).items():
        np.testing.assert_array_equal(values, getattr(one_a_file.logs, name))
    assert (data.videos.id, data.videos.split) == (one_a_file.videos.id, one_a_file.videos.split)
    assert set(data.videos.split) == {"train", "val"}  # by episode, not by camera
    assert data.videos.split[:12] == data.videos.split[12:]


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_av1(tmp_path, run, monkeypatch, version):
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this build of PyAV encodes no AV1 (libsvtav1)")
    monkeypatch.setenv("SVT_LOG", "0")
    write = by_hand.write_v3 if version == "v3.0" else by_hand.write_v2
    folder = write(tmp_path / "av1", codec="libsvtav1", options={"preset": "8", "crf": "30", "g": "2"})
    data = dataset.read_embeddings(run(folder, camera="front", task=task_file(tmp_path)).path)
    assert set(data.videos.decoder) == {"pyav"}
    assert barcodes(data) == expected_clips(FRONT)
    assert data.logs.context[0] == TEXTS[0]


def test_one_camera(v3):
    data = LeRobot(v3, "wrist")
    assert {segment.video_id.split("/")[1] for segment in data.segments()} == {WRIST}
    assert LeRobot(v3, WRIST).cameras == [WRIST]
    with raises("lerobot-camera") as caught:
        LeRobot(v3, "top")
    assert f"{FRONT}, {WRIST}" in str(caught.value)


def test_first_frames_follow_from_lengths_unless_times_differ():
    assert first_frames([0.0, 1.03, 2.0], [30, 31, 20], 30) == [0, 30, 61]  # a frame late, a frame early
    assert first_frames([2.0, 0.0, 1.03], [20, 30, 31], 30) == [61, 0, 30]
    assert first_frames([5.0, 6.02], [30, 10], 30) == [150, 180]  # earlier episodes are not listed
    assert first_frames([0.0, 4.0151], [30, 30], 30) == [0, 120]  # a gap: rounded
    assert first_frames([float("nan"), 0.0], [30, 30], 30) == [None, 0]


def test_episodes_that_meta_leaves_out(tmp_path, run):
    episodes = (1, 2, 5, 9)
    folder = by_hand.write_v3(tmp_path / "some", episodes=episodes, drift=lambda camera, k: 0.4 * (-1) ** k)
    data = dataset.read_embeddings(run(folder, camera="front").path)
    clips = expected_clips(FRONT)
    ends = np.cumsum([0, *(len(range(0, length - 6, 8)) for length in LENGTHS)])
    assert barcodes(data) == [clip for k in episodes for clip in clips[ends[k] : ends[k + 1]]]
    assert data.videos.id == [f"episode_{k:06d}/{FRONT}" for k in episodes]


def test_splits_of_the_data_set(copy):
    folder = copy()
    change_info(folder, splits={"train": "0:8", "validation": "8:10", "test": "10:999999999999"})
    splits = [segment.split for segment in LeRobot(folder, "front").segments()]
    assert splits == ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    change_info(folder, splits={"train": "0:12"})  # LeRobot's default
    assert {segment.split for segment in LeRobot(folder, "front").segments()} == {None}
    for wrong in ({"train": "0:8", "val": "7:12"}, {"train": "0:8", "rest": "8:12"}, {"train": "all", "val": "8:12"}):
        change_info(folder, splits=wrong)
        with raises("lerobot-split"):
            LeRobot(folder).segments()


# What is refused


@pytest.mark.parametrize("version", ["v2.0", "v1.6", "v4.0", None])
def test_other_versions_are_refused_by_name(copy, version):
    folder = copy()
    change_info(folder, codebase_version=version)
    with raises("lerobot-version") as caught:
        find_lerobot(str(folder)).segments()
    assert str(version) in str(caught.value) and "v3.0 and v2.1" in str(caught.value)
    assert len(find_videos(str(folder), bare=True)) == 4


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"
META = {
    "v3.0": ["meta/info.json", "meta/episodes/chunk-000/file-001.parquet"],
    "v2.1": ["meta/info.json", "meta/episodes.jsonl"],
}


@pytest.mark.parametrize(("version", "name"), [(version, name) for version, names in META.items() for name in names])
def test_meta_that_is_a_pointer_or_damaged_is_named(copy, version, name):
    folder = copy(version)
    for text, code in ((POINTER, "lerobot-git-lfs"), ("{oops", "lerobot-damaged")):
        rewrite(folder / name, text)
        with raises(code, CorruptError) as caught:
            find_lerobot(str(folder)).segments()
        assert name in str(caught.value) and "\n" not in str(caught.value)


def change_columns(path, **columns):
    table = pq.read_table(path)
    for name, change in columns.items():
        table = table.set_column(table.column_names.index(name), name, change(table[name]))
    rewrite(path, table)


@pytest.mark.parametrize(
    ("name", "change"),
    [("length", lambda column: pa.array([-1] * 6)), ("tasks", lambda column: pa.array(["pick the bolt"] * 6))],
)
def test_invalid_values_of_meta_are_named(copy, name, change):
    folder = copy()
    change_columns(folder / "meta/episodes/chunk-000/file-000.parquet", **{name: change})
    with raises("lerobot-damaged", CorruptError) as caught:
        find_lerobot(str(folder)).segments()
    assert f"'{name}'" in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        '{"episode_index": 0, "length": 24.5}',
        '{"episode_index": 0, "length": Infinity}',
        '{"episode_index": -1, "length": 4}',
        '{"episode_index": 0, "length": 4, "tasks": "x"}',
    ],
)
def test_invalid_rows_of_meta_are_named(copy, row):
    folder = copy("v2.1")
    rewrite(folder / "meta/episodes.jsonl", row)
    with raises("lerobot-damaged", CorruptError):
        find_lerobot(str(folder)).segments()


def test_a_damaged_page_is_named(copy):
    folder = copy()
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:4] + bytes(600) + content[604:])
    with raises("lerobot-damaged", CorruptError) as caught:
        find_lerobot(str(folder)).segments()
    assert path.name in str(caught.value)


def test_whole_numbers_may_be_of_any_size_in_bytes(copy):
    folder = copy()
    change_columns(folder / "meta/episodes/chunk-000/file-000.parquet", length=lambda column: column.cast(pa.int32()))
    assert [episode.length for episode in LeRobot(folder).episodes] == list(LENGTHS)


@pytest.mark.parametrize(("version", "name"), [("v3.0", "meta/episodes"), ("v2.1", "meta/episodes.jsonl")])
def test_missing_meta_is_named(copy, version, name):
    folder = copy(version)
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    with raises("lerobot-missing", CorruptError) as caught:
        find_lerobot(str(folder)).segments()
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        dict(fps=0), dict(fps="30"), dict(fps=None), dict(features=[]), dict(features={"a": 1}), dict(video_path=None),
        dict(video_path="videos/{nothing}.mp4"), dict(video_path="../{video_key}.mp4"), dict(splits=[1]),
        dict(video_path="videos/{video_key}\0.mp4"),
    ],
)  # fmt: skip
def test_an_invalid_info_is_refused(copy, changes):
    folder = copy()
    change_info(folder, **changes)
    with raises("lerobot-damaged", CorruptError):
        find_lerobot(str(folder)).segments()


def test_a_data_set_without_video_is_refused(copy):
    folder = copy()
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    change_info(folder, features=features | {name: features[name] | {"dtype": "image"} for name in CAMERAS})
    with raises("lerobot-no-video"):
        find_lerobot(str(folder)).segments()
    change_info(folder, features=features | {WRIST: features[WRIST] | {"dtype": "image"}})
    assert len(find_lerobot(str(folder)).segments()) == 12
    with raises("lerobot-camera") as caught:
        LeRobot(folder, WRIST)
    assert "images" in str(caught.value)


def test_depth_is_left_out_unless_requested(copy):
    folder = copy()
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    change_info(folder, features=features | {WRIST: features[WRIST] | {"info": {"video.is_depth_map": True}}})
    assert LeRobot(folder).cameras == [FRONT]
    assert LeRobot(folder, "wrist").cameras == [WRIST]


def test_a_missing_video_fails_with_its_episodes_alone(copy, run):
    folder = copy()
    (folder / f"videos/{FRONT}/chunk-000/file-001.mp4").unlink()
    rewrite(folder / f"videos/{WRIST}/chunk-000/file-000.mp4", POINTER)
    result = run(folder)
    assert [(row["video_id"], row["code"]) for row in result.failures] == [
        *((f"episode_{k:06d}/{FRONT}", "missing") for k in range(7, 12)),
        *((f"episode_{k:06d}/{WRIST}", "git_lfs") for k in range(4)),
    ]
    assert dataset.read_embeddings(result.path).num_videos == 15


def test_an_episode_without_a_time_or_beyond_the_end_fails_alone(copy, run):
    folder = copy()
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    name = f"videos/{FRONT}/from_timestamp"
    times = table[name].to_pylist()
    times[1], times[2] = None, 1000.0
    rewrite(path, table.set_column(table.column_names.index(name), name, pa.array(times)))
    result = run(folder, camera="front")
    assert [(row["video_id"], row["code"]) for row in result.failures] == [
        (f"episode_000001/{FRONT}", "segment_not_seconds"), (f"episode_000002/{FRONT}", "segment_beyond_end"),
    ]  # fmt: skip


def test_reading_files_of_a_data_set_as_plain_videos_logs_a_warning(v3, caplog, tmp_path):
    assert len(find_videos(str(v3 / "videos"))) == 4
    assert "is a LeRobot data set, but its files are read as plain videos" in caplog.text
    caplog.clear()
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent/link").symlink_to(v3)
    find_videos(f"{tmp_path}/parent/*/videos/**/*.mp4")
    assert caplog.text.count("is a LeRobot data set") == 1


def test_a_manifest_at_the_top_takes_precedence_with_a_warning(copy, caplog):
    folder = copy()
    (folder / "manifest.csv").write_text(f"path,start_s,end_s\nvideos/{FRONT}/chunk-000/file-000.mp4,0,1\n")
    assert find_lerobot(str(folder)) is None and len(find_videos(str(folder))) == 1
    assert caplog.text.count("manifest.csv is used instead of its meta folder") == 1
    with raises("camera-without-lerobot"):
        extract.run(ExtractConfig(source=str(folder), camera="front"))


def test_a_camera_needs_a_data_set(tmp_path, v3):
    (tmp_path / "a.mp4").write_bytes(b"")
    for source in (tmp_path, tmp_path / "a.mp4", v3 / "videos"):
        with raises("camera-without-lerobot"):
            extract.run(ExtractConfig(source=str(source), camera="front"))


def test_another_program_s_info_is_no_data_set(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text('{"title": "my videos"}')
    (tmp_path / "a.mp4").write_bytes(b"")
    assert not is_lerobot(tmp_path)
    assert [segment.video_id for segment in find_videos(str(tmp_path))] == ["a.mp4"]


# Logs


def logs(run, folder, task, **changes):
    return dataset.read_embeddings(run(folder, task=task, camera="front", **changes).path).logs


def test_reductions_of_columns(v3, run, tmp_path):
    frames = np.arange(LENGTHS[0])
    values = by_hand.speed(0, frames)
    for reduce, first in (
        ("first", values[0]),
        ("last", values[7]),
        ("max", values[:8].max()),
        ("min", values[:8].min()),
    ):
        actions = {"speed": {"column": "action[3]", "reduce": reduce}}
        found = logs(run, v3, task_file(tmp_path, actions=actions), out=tmp_path / reduce / "e.h5")
        assert found.actions[0, 0] == pytest.approx(float(first), abs=1e-7)


def test_the_last_clip_of_a_padded_tail_has_its_frames(v3, run, tmp_path):
    found = logs(run, v3, task_file(tmp_path), tail="pad")
    every = sum(int(by_hand.attempts(k, np.arange(length)).sum()) for k, length in enumerate(LENGTHS))
    assert found.attempts.sum() == every


def test_attempts_that_no_clip_shows_are_reported(v3, run, tmp_path, caplog):
    found = logs(run, v3, task_file(tmp_path))
    every = sum(int(by_hand.attempts(k, np.arange(length)).sum()) for k, length in enumerate(LENGTHS))
    assert f"{every - int(found.attempts.sum())} frames with attempts are in no clip" in caplog.text


def test_a_video_with_more_or_fewer_frames_than_values_is_reported(copy, run, tmp_path, caplog):
    folder = copy("v2.1")
    for camera, count in ((FRONT, LENGTHS[0] + 12), (WRIST, 9)):
        path = folder / f"videos/chunk-000/{camera}/episode_000000.mp4"
        path.unlink()
        by_hand.write_frames(path, range(count))
    data = dataset.read_embeddings(run(folder, task=task_file(tmp_path), tail="pad").path)
    assert f"the logs of 2 videos, such as episode_000000/{FRONT} (36" in caplog.text
    first = data.logs.attempts[: data.offset[1]]
    every = by_hand.attempts(0, np.arange(LENGTHS[0])).reshape(3, 8).sum(1)
    np.testing.assert_array_equal(first, [*every, np.nan, np.nan])


def test_text_is_a_context_if_it_names_one_or_the_task_maps_it(v3, run, tmp_path):
    other = {"bolt": {"price_usd": 0.1}, TEXTS[1]: {"price_usd": 0.2}}
    found = logs(run, v3, task_file(tmp_path, contexts=other))
    assert set(found.context.tolist()) == {"", TEXTS[1]}
    unnamed = logs(run, v3, task_file(tmp_path, contexts={"price_usd": 0.1}), out=tmp_path / "unnamed.h5")
    assert set(unnamed.context.tolist()) == {""}
    said = {"column": "task", "reduce": "first"}
    assert set(logs(run, v3, task_file(tmp_path, context=said), out=tmp_path / "s.h5").context.tolist()) == set(TEXTS)
    with raises("camera-without-lerobot"):
        extract.run(ExtractConfig(source=str(v3 / "videos"), camera="front"))
    result = run(v3, task=task_file(tmp_path, contexts=other, context=said), camera="front", out=tmp_path / "o.h5")
    assert {row["code"] for row in result.failures} == {"labels-unknown-context"}
    assert len(result.failures) == 6


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(attempts={"column": "next.tries", "reduce": "sum"}), "attempts is mapped from column 'next.tries'"),
        (dict(actions={"speed": {"column": "action", "reduce": "mean"}}), "'action', which has 4 values per frame"),
        (
            dict(actions={"speed": {"column": "action[4]", "reduce": "mean"}}),
            "use a number from 0 to 3 or x, y, z, speed",
        ),
        (dict(actions={"speed": {"column": "action[w]", "reduce": "mean"}}), "'action[w]'"),
        (dict(actions={"speed": {"column": f"{FRONT}[0]", "reduce": "mean"}}), FRONT),
    ],
)
def test_a_missing_column_is_named(v3, run, tmp_path, changes, text):
    with raises("lerobot-column") as caught:
        run(v3, task=task_file(tmp_path, **changes))
    assert text in str(caught.value)


def test_values_out_of_range_fail_their_episode_before_decoding(v3, run, tmp_path, monkeypatch):
    low = {"speed": {"low": 0.0, "high": 0.172, "column": "action[3]", "reduce": "mean"}}
    result = run(v3, task=task_file(tmp_path, actions=low))  # of the last two episodes it is 0.17 and 0.18
    assert [row["video_id"] for row in result.failures] == [f"episode_000011/{camera}" for camera in CAMERAS]
    assert {row["code"] for row in result.failures} == {"labels-value"}
    assert "not a number from 0 to 0.172" in result.failures[0]["reason"]
    none = {"speed": {"low": 2.0, "high": 3.0, "column": "action[3]", "reduce": "mean"}}
    monkeypatch.setattr(extract, "DecoderPool", lambda *args, **kwargs: pytest.fail("started decoders"))
    with raises("labels-value"):
        run(v3, task=task_file(tmp_path, actions=none), out=tmp_path / "none.h5")


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: rewrite(path, POINTER)])
def test_missing_data_fail_their_episodes_alone(copy, run, tmp_path, harm):
    folder = copy()
    harm(folder / "data/chunk-000/file-001.parquet")
    assert run(folder, camera="front").failures == []  # without logs they are not needed
    result = run(folder, camera="front", task=task_file(tmp_path), out=tmp_path / "logs.h5")
    assert [row["video_id"] for row in result.failures] == [f"episode_{k:06d}/{FRONT}" for k in range(6, 12)]
    assert "file-001.parquet" in result.failures[0]["reason"]


@pytest.mark.parametrize(
    ("names", "shape"),
    [({"speed": 3, "x": 0, "y": 1, "z": 2}, [4]), ({"motors": ["x", "y", "z", "speed"]}, [4])],
)
def test_names_of_a_column_s_values(copy, names, shape):
    folder = copy()
    change_info(folder, features=by_hand.features({"action": {"dtype": "float32", "shape": shape, "names": names}}))
    found, wrong = read_frame_logs(LeRobot(folder), parse_task(yaml.safe_dump(TASK), "test"))
    assert wrong == {}
    np.testing.assert_allclose(found["episode_000005"].values["speed"], by_hand.speed(5, np.arange(LENGTHS[5])))


@pytest.mark.parametrize(
    ("names", "shape", "code"),
    [
        (["speed", "x", "y", "speed"], [4], "lerobot-column"),
        (None, "four", "lerobot-damaged"),
        (None, [None], "lerobot-damaged"),
    ],
)
def test_an_ambiguous_column_is_refused(copy, names, shape, code):
    folder = copy()
    change_info(folder, features=by_hand.features({"action": {"dtype": "float32", "shape": shape, "names": names}}))
    with raises(code, VtpError):
        read_frame_logs(LeRobot(folder), parse_task(yaml.safe_dump(TASK), "test"))


def test_frames_and_texts_that_contradict_meta_fail_their_episodes(copy):
    folder = copy()

    def repeated(column):
        numbers = column.to_numpy().copy()
        numbers[5] = 4  # of the first episode
        return pa.array(numbers)

    change_columns(folder / "data/chunk-000/file-000.parquet", frame_index=repeated)
    task = parse_task(yaml.safe_dump(TASK), "test")
    _, wrong = read_frame_logs(LeRobot(folder), task)
    assert list(wrong) == ["episode_000000"] and "one by one" in str(wrong["episode_000000"])
    rewrite(folder / "meta/tasks.parquet", pa.table({"task_index": [0], "__index_level_0__": [TEXTS[0]]}))
    task = parse_task(yaml.safe_dump(TASK | {"context": {"column": "task", "reduce": "first"}}), "test")
    _, wrong = read_frame_logs(LeRobot(folder), task)
    assert "task_index 1, which meta/tasks lacks" in str(wrong["episode_000001"])


def outcomes(folder, name, **columns):
    steps = [(k, step) for k, length in enumerate(LENGTHS) for step in range(len(range(0, length - 6, 8)))]
    numbers, step = zip(*steps, strict=True)
    table = {"episode_index": numbers, "step": step} | {key: [f(k, s) for k, s in steps] for key, f in columns.items()}
    return by_hand.write_table(folder / f"meta/outcomes_{name}.parquet", pa.table(table))


def test_a_table_of_outcomes(copy, run, tmp_path):
    folder = copy()
    outcomes(
        folder, "picking", attempts=lambda k, s: k + s, errors=lambda k, s: s if k + s > 0 else None,
        speed=lambda k, s: None if k == 3 else 0.5, propensity=lambda k, s: 1.5,
    )  # fmt: skip
    found = logs(run, folder, task_file(tmp_path))
    k, s = np.array([(k, s) for k, length in enumerate(LENGTHS) for s in range(len(range(0, length - 6, 8)))]).T
    assert found.attempts.tolist() == (k + s).tolist()
    np.testing.assert_array_equal(found.errors, np.where(k + s > 0, s, np.nan))
    np.testing.assert_array_equal(found.actions[:, 0], np.where(k == 3, np.nan, 0.5))
    assert found.propensity.tolist() == [1.5] * len(k)
    assert found.context.tolist() == [TEXTS[number % 2] for number in k]  # which the table lacks
    path = folder / "meta/outcomes_picking.parquet"
    table = pq.read_table(path).drop_columns(["attempts", "errors", "speed"])
    rewrite(path, table.take(pa.array(range(len(table))[::-1])))
    mapped = logs(run, folder, task_file(tmp_path), out=tmp_path / "reversed.h5")
    frames = [by_hand.attempts(number, np.arange(8 * step, 8 * step + 8)) for number, step in zip(k, s, strict=True)]
    assert mapped.attempts.tolist() == [counts.sum() for counts in frames]
    outcomes(folder, "picking", attempts=lambda k, s: k + s)
    bare = {name: value for name, value in TASK.items() if name not in ("attempts", "successes")}
    bare["actions"] = {"speed": {"high": 1.0}}
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(bare))
    assert logs(run, folder, str(tmp_path / "bare.yaml"), out=tmp_path / "b.h5").attempts.tolist() == (k + s).tolist()


def test_wrong_outcomes(copy, run, tmp_path, caplog):
    folder = copy()
    path = outcomes(folder, "picking", attempts=lambda k, s: 1, errors=lambda k, s: 2 if (k, s) == (4, 1) else 0)
    table = pq.read_table(path)
    rewrite(path, table.slice(1))  # the first step of the first episode is gone
    result = run(folder, task=task_file(tmp_path), camera="front")
    assert [(row["video_id"], row["code"]) for row in result.failures] == [
        (f"episode_000000/{FRONT}", "labels-step"), (f"episode_000004/{FRONT}", "labels-more-errors-than-attempts"),
    ]  # fmt: skip
    rewrite(path, table.filter(pa.array([row != 2 for row in range(len(table))])))  # the last step of the first
    result = run(folder, task=task_file(tmp_path), camera="front", out=tmp_path / "last.h5")
    assert result.failures[0]["reason"] == "episode_000000 has 2 steps and the video 3 clips"
    rewrite(path, pa.table({"episode_index": [77], "step": [0], "attempts": [1]}))
    with raises("lerobot-outcomes"):
        run(folder, task=task_file(tmp_path))
    rewrite(path, pa.table({"episode": [0], "step": [0]}))
    with raises("lerobot-outcomes"):
        run(folder, task=task_file(tmp_path))
    with raises("lerobot-outcomes") as caught:
        run(folder)
    assert "outcomes of picking" in str(caught.value)
    rewrite(path, table)
    run(folder, task="bin-picking", out=tmp_path / "other.h5")
    assert "outcomes_picking.parquet" in caplog.text and "has no logs for task bin-picking" in caplog.text


def test_outcomes_of_a_built_in_task_name_it(copy, run):
    folder = copy()
    outcomes(folder, "dishwashing", attempts=lambda k, s: 2, errors=lambda k, s: 1)
    data = dataset.read_embeddings(run(folder, camera="front").path)
    assert data.task.name == "dishwashing" and set(data.logs.attempts.tolist()) == {2.0}
