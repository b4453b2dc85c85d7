"""robomimic and Minari files: their images are extracted like those of videos, and their numbers become logs."""

import fcntl
import json
import os
import re

import av
import h5py
import numpy as np
import pytest
import yaml
from arrays_by_hand import (
    CAMERAS,
    LENGTHS,
    RATE,
    actions,
    frames,
    jpeg,
    number,
    write_minari,
    write_named,
    write_robomimic,
)
from factories import read_barcode, write_video
from pixel_encoder import PixelEncoder
from raising import raises

from pipeline import dataset, encoders, extract
from pipeline.config import ExtractConfig
from pipeline.dataset.recorded_arrays import Recordings, find_recordings
from pipeline.dataset.rereading import read_clips
from pipeline.errors import VtpError
from pipeline.tasks import parse_task
from pipeline.video import Decoder, VideoError, frame_arrays

DEMOS = ("demo_0", "demo_2", "demo_10")
TASK = {
    "name": "lifting",
    "human_wage_usd": 20.0,
    "actions": {"grip": {"low": 0.0, "high": 1.0, "column": "actions[2]", "reduce": "mean"}},
    "contexts": {"price_usd": 0.1, "damage_usd": 0.5},
    "attempts": {"column": "rewards", "reduce": "sum"},
    "errors": {"column": "dones", "reduce": "max"},
}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Extract with one clip per 8 frames of the file; return the result and the embeddings."""
    encoder = PixelEncoder()
    monkeypatch.setattr(encoders, "load_encoder", lambda *args, **kwargs: encoder)

    def run(source, **changes):
        settings = {"source": str(source), "out": tmp_path / "out/e.h5", "clip_len": 8, "clip_stride": 8, "fps": RATE}
        cfg = ExtractConfig(**settings | changes)
        result = extract.run(cfg)
        return result, dataset.read_embeddings(cfg.out)

    return run


@pytest.fixture
def task_file(tmp_path):
    path = tmp_path / "lifting.yaml"
    path.write_text(yaml.safe_dump(TASK))
    return path


def barcodes(data):
    """The first and last frame of each clip, read again."""
    return [
        (read_barcode(clip[0]), read_barcode(clip[-1]))
        for _, clips in read_clips(data, range(data.num_videos))
        for clip in clips
    ]


def expected(cameras=tuple(CAMERAS), extra=0):
    return [
        (number(episode, start, camera), number(episode, start + 7, camera))
        for camera in cameras
        for episode, length in enumerate(LENGTHS)
        for start in range(0, length + extra - 7, 8)
    ]


def test_every_demonstration_of_every_camera_is_a_video(run, tmp_path):
    result, data = run(write_robomimic(tmp_path / "lift.hdf5"))
    assert (result.num_videos, result.failures) == (6, [])
    assert data.videos.id == [f"{demo}/{camera}" for camera in CAMERAS for demo in DEMOS]
    assert data.videos.episode == [*DEMOS, *DEMOS]
    assert set(data.to_pandas()["episode"]) == set(DEMOS)
    assert data.videos.decoder == ["h5py"] * 6
    assert data.videos.num_frames.tolist() == [*LENGTHS, *LENGTHS]
    assert len({data.videos.split[number] for number in (0, 3)}) == 1  # cameras of one episode share its split
    assert barcodes(data) == expected()


def test_features_equal_those_of_the_same_episodes_as_lossless_videos(run, tmp_path):
    _, data = run(write_robomimic(tmp_path / "lift.hdf5"))
    (tmp_path / "videos").mkdir()
    names = []
    for camera in CAMERAS:
        for episode, demo in enumerate(DEMOS):
            name = f"{demo}-{camera}.mkv"
            with av.open(str(tmp_path / "videos" / name), "w") as container:
                stream = container.add_stream("ffv1", rate=RATE)
                seen = frames(episode, camera)
                stream.height, stream.width, stream.pix_fmt = *seen.shape[1:3], "bgr0"
                for frame in seen:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())
            names.append(name)
    (tmp_path / "videos/manifest.csv").write_text("path\n" + "\n".join(names) + "\n")
    _, videos = run(tmp_path / "videos", out=tmp_path / "v/e.h5", decoder="pyav")
    assert data.offset.tolist() == videos.offset.tolist()
    np.testing.assert_array_equal(data.features, videos.features)


def test_one_camera_by_the_end_of_its_name(run, tmp_path):
    path = write_robomimic(tmp_path / "lift.hdf5")
    _, data = run(path, camera="robot0_eye_in_hand_image")
    assert barcodes(data) == expected(cameras=["robot0_eye_in_hand_image"])
    assert Recordings(path, "obs/agentview_image").cameras == ["obs/agentview_image"]
    with raises("camera-unknown") as caught:
        run(path, camera="image")
    assert "use one of obs/agentview_image, obs/robot0_eye_in_hand_image" in str(caught.value)


@pytest.mark.parametrize("layout", ["jpeg", "dict", "infos"])
@pytest.mark.parametrize("below", ["", "data", "data/main_data.hdf5"])
def test_minari_has_a_frame_more_than_steps(run, tmp_path, layout, below):
    folder = write_minari(tmp_path / "lift-v0", layout=layout)
    _, data = run(folder / below)
    camera = {"jpeg": "observations", "dict": "rgb", "infos": "pixels"}[layout]
    assert data.videos.id == [f"episode_{episode}/{camera}" for episode in range(3)]
    assert data.videos.num_frames.tolist() == [length + 1 for length in LENGTHS]
    assert barcodes(data) == expected(["agentview_image"], extra=1)


def test_the_rate_is_read_from_the_file(run, tmp_path):
    path = write_robomimic(tmp_path / "lift.hdf5", rate=40)
    _, data = run(path, camera="agentview_image", clip_len=4, clip_stride=4)  # at 20 a second: every other frame
    assert data.videos.fps.tolist() == pytest.approx([40] * 3)
    assert barcodes(data)[:3] == [(0, 6), (8, 14), (16, 22)]


def test_logs_match_each_clip_s_frames(run, tmp_path, task_file):
    _, data = run(write_robomimic(tmp_path / "lift.hdf5"), camera="agentview_image", task=str(task_file))
    counts = np.diff(data.offset).tolist()
    assert counts == [3, 5, 4]
    grip = [actions(0, 8 * count)[:, 2].reshape(count, 8).mean(1) for count in counts]
    np.testing.assert_allclose(data.logs.actions[:, 0], np.concatenate(grip))
    assert data.logs.attempts.tolist() == [1] * 12
    assert data.logs.errors.tolist() == [0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0]  # the last demonstration's end is in none


def test_logs_of_minari_leave_the_last_frame_out(run, tmp_path, task_file):
    folder = write_minari(tmp_path / "lift-v0")
    task_file.write_text(task_file.read_text().replace("dones", "terminations"))
    _, data = run(folder, task=str(task_file), tail="pad")
    assert np.diff(data.offset).tolist() == [4, 6, 5]  # of 25, 41 and 34 frames
    np.testing.assert_array_equal(data.logs.attempts[data.offset[1:] - 1], [np.nan, np.nan, 1])
    assert np.isnan(data.logs.actions).sum() == 2  # the first two end in a clip of the last frame alone


def test_missing_columns_are_reported(run, tmp_path, caplog):
    run(write_robomimic(tmp_path / "lift.hdf5"))
    assert "(robomimic) has actions [3], dones [1], obs/robot0_eef_pos [3], rewards [1], but no task" in caplog.text
    assert "attempts, errors: no outcome model can be learned from it" in caplog.text


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ("actions", "has 3 values per step; name one, such as actions[0]"),
        ("actions[3]", "actions has 3 values"),
        ("effort", "use one of actions, dones"),
    ],
)
def test_a_missing_column_is_named(run, tmp_path, task_file, column, says):
    task_file.write_text(task_file.read_text().replace("actions[2]", column))
    with raises("arrays-column") as caught:
        run(write_robomimic(tmp_path / "lift.hdf5"), task=str(task_file))
    assert says in str(caught.value)


def test_an_invalid_value_fails_its_episode(run, tmp_path, task_file):
    path = write_robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_2/actions"][:, 2] = 7.0
    result, data = run(path, task=str(task_file), camera="agentview_image")
    assert data.videos.id == ["demo_0/agentview_image", "demo_10/agentview_image"]
    assert [row["video_id"] for row in result.failures] == ["demo_2/agentview_image"]


def test_masks_are_splits(run, tmp_path):
    path = write_robomimic(tmp_path / "lift.hdf5", masks={"train": ["demo_0", "demo_10"], "valid": ["demo_2"]})
    _, data = run(path, camera="agentview_image")
    assert data.videos.split == ["train", "val", "train"]
    with h5py.File(path, "a") as file:
        file["mask/test"] = np.array([b"demo_2"])
    with raises("split-of-copies"):
        run(path, out=tmp_path / "x.h5")


def test_a_folder_of_files(run, tmp_path, caplog):
    (tmp_path / "demos").mkdir()
    for name in ("a.hdf5", "b.h5"):
        write_robomimic(tmp_path / "demos" / name, cameras=["agentview_image"])
    (tmp_path / "demos/notes.h5").write_text("no HDF5")
    _, data = run(tmp_path / "demos")
    assert data.videos.id == [f"{stem}/{demo}/agentview_image" for stem in "ab" for demo in DEMOS]
    assert "files that are not from robomimic or Minari are left out: notes.h5" in caplog.text


def test_an_unreadable_file_of_a_folder_is_an_error(tmp_path):
    for name in ("a.hdf5", "b.hdf5"):
        write_robomimic(tmp_path / name, cameras=["agentview_image"])
    os.truncate(tmp_path / "b.hdf5", 5000)
    with raises("damaged", VideoError) as caught:
        find_recordings(str(tmp_path))
    assert "b.hdf5" in str(caught.value)
    (tmp_path / "b.hdf5").unlink()
    write_robomimic(tmp_path / "a.h5", cameras=["agentview_image"])
    with raises("repeated-id") as caught:
        find_recordings(str(tmp_path))
    assert "a.h5 and a.hdf5" in str(caught.value)


def test_a_file_that_is_being_written_is_busy(tmp_path):
    path = write_robomimic(tmp_path / "lift.hdf5", cameras=["agentview_image"])
    with open(path, "rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)  # as HDF5 does
        for source in (path, tmp_path):
            with raises("busy", VideoError) as caught:
                find_recordings(str(source))
            assert "lift.hdf5 is open for writing in another program" in str(caught.value)
    assert len(find_recordings(str(tmp_path))) == 1


def test_an_episode_that_contradicts_itself_has_no_labels(tmp_path):
    path = write_robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/agentview_image"], file["data/demo_2/actions"]
        file["data/demo_0/obs/agentview_image"] = frames(0, "agentview_image", 20)
        file["data/demo_2/actions"] = np.zeros((LENGTHS[1], 2))
    task = parse_task(yaml.safe_dump(TASK), "test")
    logs, wrong = Recordings(path, None).frame_logs(task)
    assert list(logs) == ["demo_10"]
    assert "the cameras of demo_0 have 20 and 24 frames" in str(wrong["demo_0"])
    assert "demo_2 has 2 values of actions per step, fewer than other episodes" in str(wrong["demo_2"])
    assert list(Recordings(path, "robot0_eye_in_hand_image").frame_logs(task)[0]) == ["demo_0", "demo_10"]


def test_an_episode_without_a_camera_or_a_column_is_reported(tmp_path, caplog):
    path = write_robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_2/obs/agentview_image"], file["data/demo_0/actions"]
    recordings = Recordings(path, None)
    assert len(recordings.segments()) == 5
    assert "1 episodes, such as demo_2, have no images in obs/agentview_image" in caplog.text
    logs, wrong = recordings.frame_logs(parse_task(yaml.safe_dump(TASK), "test"))
    assert logs.keys() == {"demo_2", "demo_10"} and "called actions" in str(wrong["demo_0"])


def test_masks_in_other_files_are_not_read(tmp_path):
    path = write_robomimic(tmp_path / "lift.hdf5")
    write_robomimic(tmp_path / "other.hdf5", masks={"train": ["demo_0"]})
    with h5py.File(path, "a") as file:
        file["mask"] = h5py.ExternalLink("other.hdf5", "mask")
    with raises("links_out", VideoError):
        Recordings(path, None).segments()


def test_files_beside_videos_are_left_out_with_a_warning(run, tmp_path, caplog):
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    write_robomimic(tmp_path / "mixed/lift.hdf5")
    write_video(tmp_path / "mixed/a.mp4", 40)
    _, data = run(tmp_path / "mixed")
    assert data.videos.id == ["a.mp4"]
    assert "HDF5 files beside the videos are left out: lift.hdf5" in caplog.text


def test_embeddings_beside_videos_cause_no_warning(run, tmp_path, caplog):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/a.mp4", 40)
    for _ in range(2):
        run(tmp_path / "videos", out=tmp_path / "videos/embeddings.h5")
    assert "left out" not in caplog.text


def name_videos(path, form, demos=DEMOS):
    with h5py.File(path, "a") as file:
        for demo in demos:
            group, video = file[f"data/{demo}"], f"videos/{demo}.mp4"
            if form == "attribute":
                group.attrs["video"] = video
            elif form == "bytes":
                group.attrs["video_path"] = np.bytes_(video)
            elif form == "text":
                group["video_path"] = video
            elif form == "absolute":
                group["video"] = np.bytes_(path.parent / video)
            elif form == "videos/front":
                group["videos/front"] = video
            else:
                group.create_group("video").attrs["front"] = video
    return path


@pytest.mark.parametrize("form", ["attribute", "bytes", "text", "absolute", "videos/front", "video/front"])
def test_named_videos_have_the_logs_of_their_steps(run, tmp_path, task_file, form):
    path = name_videos(write_named(tmp_path / "lift"), form)
    result, data = run(path, task=str(task_file))
    assert result.failures == []
    assert data.videos.id == [f"{demo}/{'front' if 'front' in form else 'video'}" for demo in DEMOS]
    assert data.videos.episode == list(DEMOS)
    assert data.videos.path == [str(tmp_path / f"lift/videos/{demo}.mp4") for demo in DEMOS]
    assert barcodes(data) == expected(["agentview_image"])
    _, images = run(
        write_robomimic(tmp_path / "images.hdf5", cameras=["agentview_image"]), task=str(task_file),
        out=tmp_path / "images/e.h5",
    )  # fmt: skip
    np.testing.assert_array_equal(data.logs.actions, images.logs.actions)
    np.testing.assert_array_equal(data.logs.attempts, images.logs.attempts)
    np.testing.assert_array_equal(data.logs.errors, images.logs.errors)


def test_named_videos_that_are_missing_or_unnamed_fail_their_episode(run, tmp_path, task_file):
    path = name_videos(write_named(tmp_path / "lift"), "attribute", DEMOS[:2])
    (tmp_path / "lift/videos/demo_2.mp4").unlink()
    result, data = run(path, task=str(task_file))
    assert data.videos.id == ["demo_0/video"]
    reasons = {row["video_id"]: row["reason"] for row in result.failures}
    assert set(reasons) == {"demo_2/video", "demo_10/video"}
    assert "demo_10 names no video" in reasons["demo_10/video"]
    assert "names videos/demo_2.mp4 as the video of demo_2, but there is no such file" in reasons["demo_2/video"]


def test_clips_of_a_named_video_after_its_last_step_have_no_labels(run, tmp_path, task_file, caplog):
    path = name_videos(write_named(tmp_path / "lift", extra=16), "attribute")
    result, data = run(path, task=str(task_file))
    assert result.failures == []
    attempts = np.split(data.logs.attempts, data.offset[1:-1])
    assert np.isfinite(attempts[0]).tolist() == [True] * 3 + [False] * 2
    assert "such as demo_0/video (40 frames, 24 values), do not have one value per frame" in caplog.text


def test_named_videos_beside_images_and_those_of_a_folder_are_left_out_with_a_warning(run, tmp_path, caplog):
    path = name_videos(write_robomimic(tmp_path / "lift.hdf5", cameras=["agentview_image"]), "attribute")
    assert [segment.path for segment in Recordings(path, None).segments()] == [path] * 3
    assert "the videos that it also names are left out" in caplog.text
    _, data = run(name_videos(write_named(tmp_path / "named"), "attribute").parent, out=tmp_path / "n.h5")
    assert data.videos.id == [f"videos/{demo}.mp4" for demo in sorted(DEMOS)]
    assert "if they name the videos, give one of them as the source" in caplog.text


def test_a_second_run_decodes_nothing_and_another_rate_decodes_again(run, tmp_path):
    folder = write_minari(tmp_path / "lift-v0")
    assert run(folder)[0].num_decoded == 3
    assert run(folder)[0].num_decoded == 0
    metadata = folder / "data/metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"fps": 10}))
    assert run(folder)[0].num_decoded == 3


def test_a_whole_file_is_not_a_video(run, tmp_path):
    path = write_robomimic(tmp_path / "lift.hdf5")
    with Decoder() as decoder, pytest.raises(VideoError, match="has several episodes or cameras"):
        list(decoder.clips(path, clip_len=8, clip_stride=8, fps=RATE))
    (tmp_path / "manifest.csv").write_text("video_id,path,start_s,end_s\nall,lift.hdf5,,\none,lift.hdf5,0,1.2\n")
    result, data = run(tmp_path / "manifest.csv")
    assert [(row["video_id"], row["code"]) for row in result.failures] == [("all", "several_episodes")]
    assert [first for first, _ in barcodes(data)] == [0, 8, 16]


def broken(path, how):
    """A file with one fault."""
    if how == "low_dim":
        return write_robomimic(path, cameras=[])
    if how == "no rate":
        return write_robomimic(path, rate=None)
    if how == "text rate":
        return write_robomimic(path, rate="fast")
    if how == "no rate of minari":
        return write_minari(path.parent / "lift-v0", rate=None)
    write_robomimic(path)
    if how == "cut off":
        os.truncate(path, path.stat().st_size // 2)
    if how == "other layout":
        with h5py.File(path, "w") as file:
            file["x"] = [1]
    if how in ("link", "virtual", "external"):
        write_robomimic(path.parent / "other.hdf5")
        with h5py.File(path, "a") as file:
            del file["data/demo_2/obs/agentview_image"]
            if how == "link":
                file["data/demo_2/obs/agentview_image"] = h5py.ExternalLink("other.hdf5", "data/demo_2")
            elif how == "virtual":
                layout = h5py.VirtualLayout((40, 84, 96, 3), np.uint8)
                layout[:] = h5py.VirtualSource(
                    path.parent / "other.hdf5", "data/demo_2/obs/agentview_image", layout.shape
                )
                file.create_virtual_dataset("data/demo_2/obs/agentview_image", layout)
            else:
                file.create_dataset(
                    "data/demo_2/obs/agentview_image", (2, 8, 8, 3), np.uint8, external=[("/etc/passwd", 0, 384)]
                )
    return path


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        ("low_dim", "no_images", "dataset_states_to_obs.py"),
        ("no rate", "no_frame_rate", "control_freq"),
        ("text rate", "no_frame_rate", "fast"),
        ("no rate of minari", "no_frame_rate", "update_metadata"),
        ("cut off", "damaged", "HDF5"),
        ("other layout", "not_video", "not an HDF5 file of robomimic"),
        ("link", "links_out", "demo_2/obs/agentview_image"),
        ("virtual", "links_out", "demo_2/obs/agentview_image"),
        ("external", "links_out", "demo_2/obs/agentview_image"),
    ],
)
def test_errors_of_a_file_are_one_line(run, tmp_path, how, code, says):
    path = broken(tmp_path / "lift.hdf5", how)
    with raises(code, VtpError) as caught:
        run(path)
    assert says in str(caught.value) and "lift" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_picture_fails_its_file_s_episodes_only_from_there(run, tmp_path):
    folder = write_minari(tmp_path / "lift-v0")
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        file["episode_1/observations"][20] = np.frombuffer(b"\xff\xd8\xff nothing", np.uint8)
    result, data = run(folder)
    assert data.videos.id == ["episode_0/observations"]
    assert {row["code"] for row in result.failures} == {"damaged"}
    assert "frame 20 of /episode_1/observations" in result.failures[0]["reason"]


def test_decord_is_refused_and_other_decoders_apply_to_videos(run, tmp_path):
    path = write_robomimic(tmp_path / "lift.hdf5", cameras=["agentview_image"])
    result = None
    with pytest.raises(VtpError):
        result, _ = run(path, decoder="decord")
    assert result is None
    assert run(path, decoder="pyav", out=tmp_path / "p.h5")[0].num_videos == 3


def test_a_minari_jpeg_is_no_array_of_numbers(tmp_path):
    (file,) = find_recordings(str(write_minari(tmp_path / "lift-v0")))
    assert file.values == {"actions": 3, "rewards": 1, "terminations": 1, "truncations": 1}
    assert jpeg(frames(0, "agentview_image")[0]).startswith(b"\xff\xd8\xff")


def test_the_task_of_the_page_is_valid(request):
    page = (request.config.rootpath / "docs/recordings.md").read_text()
    task = parse_task(re.search(r"```yaml\n(.*?)```", page, re.S).group(1), "docs/recordings.md")
    assert {name: (one.column, one.reduce) for name, one in task.frame_columns().items()} == {
        "grip": ("actions[6]", "mean"), "attempts": ("dones", "max"), "successes": ("rewards", "max")
    }  # fmt: skip


def test_frames_do_not_depend_on_the_file_s_chunks(tmp_path, monkeypatch):
    path = write_robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        name = "data/demo_2/obs/agentview_image"
        seen = file[name][:]
        del file[name]
        file.create_dataset(name, data=seen, chunks=(7, 84, 96, 3), compression="gzip")
    every = np.concatenate([frames(episode, "agentview_image") for episode in range(3)])
    for block_bytes in (1, 5 * 84 * 96 * 3, 1 << 30):
        monkeypatch.setattr(frame_arrays, "BLOCK_BYTES", block_bytes)
        found = list(frame_arrays.read_arrays(path))
        np.testing.assert_array_equal(np.stack(found[: sum(LENGTHS)]), every)
