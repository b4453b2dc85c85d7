import json
import os
import shutil
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest
import torch
import yaml
from factories import write_video
from hf_model import save_dinov2
from raising import raises

from pipeline import dataset, encoders, extract
from pipeline.config import ExtractConfig, MergeConfig
from pipeline.dataset import Content, manifest
from pipeline.errors import CorruptError, PartialError
from pipeline.extraction import parts, shards
from pipeline.tasks import load_task
from pipeline.video import Clip, Restart, Span, VideoInfo


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    for number, num_frames in enumerate((36, 52, 33)):
        write_video(folder / f"{number}.mp4", num_frames, first=number * 60)
    return folder


@pytest.fixture
def videos(originals, tmp_path):
    return shutil.copytree(originals, tmp_path / "videos")


@pytest.fixture
def config(videos, tmp_path):
    def make(**changes):
        return ExtractConfig(**{"source": str(videos), "out": tmp_path / "out/embeddings.h5", **changes})

    return make


def failures(cfg):
    path = cfg.out.parent / "failures.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else None


def manifest_of(videos, text):
    path = videos / "manifest.csv"
    path.write_text(text)
    return str(path)


def test_clips_of_all_videos_in_order(config, encoder):
    seen = []
    cfg = config()
    result = extract.run(cfg, progress=lambda *step: seen.append(step))
    assert (result.num_clips, result.num_videos, result.num_decoded, result.failures) == (7, 3, 3, [])
    data = dataset.read_embeddings(result.path)
    assert data.videos.id == ["0.mp4", "1.mp4", "2.mp4"]
    assert data.offset.tolist() == [0, 2, 5, 7]
    assert data.clips.start_frame.tolist() == [0, 16, 0, 16, 32, 0, 16]
    np.testing.assert_allclose(data.clips.start_s, np.array([0, 16, 0, 16, 32, 0, 16]) / 15, atol=1e-9)
    np.testing.assert_allclose(data.clips.end_s - data.clips.start_s, 16 / 15, atol=1e-9)
    assert data.videos.num_frames.tolist() == [36, 52, 33]
    assert data.videos.decoder == ["decord"] * 3
    assert (data.logs, data.task) == (None, None)
    assert {name: data.attrs[name] for name in ("clip_len", "clip_stride", "fps", "tail", "decoder", "precision")} == {
        "clip_len": 16, "clip_stride": 16, "fps": 15.0, "tail": "drop", "decoder": "auto", "precision": "fp32",
    }  # fmt: skip
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3), (3, 3)]
    assert {text for _, _, text in seen} == {"0.mp4", "1.mp4", "2.mp4", "assembling"}
    assert failures(cfg) is None
    assert yaml.safe_load(cfg.out.with_suffix(".yaml").read_text())["clip_len"] == 16


def test_batches_run_across_videos(config, encoder):
    extract.run(config())
    assert encoder.batches == [4, 3]


def test_an_error_while_encoding_ends_the_extraction(config, encoder, videos):
    """What failed before is in the ledger all the same."""
    (videos / "0-text.mp4").write_text("no video")  # the first in order

    def fail(clips):
        raise RuntimeError("out of memory")

    encoder.features = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        extract.run(config())
    assert not config().out.exists()
    rows = shards.read_ledger(shards.ledger_path(shards.parts_folder(config().out), 1, 0))
    assert [(row.video_id, row.code) for row in rows] == [("0-text.mp4", "not_video")]


def test_embeddings_are_the_projected_features(config, encoder):
    data = dataset.read_embeddings(extract.run(config()).path)
    expected = (data.features - data.projector_mean) @ data.projector_components.T / data.projector_scale
    np.testing.assert_allclose(data.embeddings, expected, atol=1e-5)
    train = np.repeat(np.array(data.videos.split) == "train", np.diff(data.offset))
    fitted_on = data.features[train if train.any() else ...]
    np.testing.assert_allclose(data.projector_mean, fitted_on.mean(axis=0), rtol=1e-5)


# Resuming


def test_a_second_run_decodes_nothing(config, encoder, monkeypatch):
    first = extract.run(config())
    before = first.path.read_bytes()
    monkeypatch.setattr(extract.DecoderPool, "submit", lambda *args, **kwargs: pytest.fail("decoded again"))
    encoder.batches.clear()
    second = extract.run(config())
    assert (second.num_decoded, second.num_clips, encoder.batches) == (0, 7, [])
    assert second.path.read_bytes() == before


def test_only_new_videos_are_decoded(config, videos, encoder):
    first = dataset.read_embeddings(extract.run(config()).path).features[:]
    write_video(videos / "3.mp4", 20, first=200)
    write_video(videos / "1.mp4", 40, first=100)  # edited in place
    shutil.copy(videos / "0.mp4", videos / "copy.mp4")
    (videos / "2.mp4").touch()
    result = extract.run(config())
    assert (result.num_decoded, result.num_videos) == (2, 5)
    data = dataset.read_embeddings(result.path)
    assert data.offset.tolist() == [0, 2, 4, 6, 7, 9]
    np.testing.assert_array_equal(data.features[:2], first[:2])
    np.testing.assert_array_equal(data.features[7:], first[:2])
    (videos / "3.mp4").unlink()
    assert extract.run(config()).num_videos == 4


def test_a_changed_setting_is_refused_by_name(config, encoder):
    first = extract.run(config()).path.read_bytes()
    for changes, message in [
        (dict(clip_stride=8), "clip_stride=16, now clip_stride=8"),
        (dict(fps=7.5), "fps=15.0, now fps=7.5"),
        (dict(decoder="pyav"), "decoder=auto, now decoder=pyav"),
    ]:
        with raises("parts-settings") as caught:
            extract.run(config(**changes))
        assert message in str(caught.value)
    encoder.arithmetic = 2
    with raises("parts-settings"):
        extract.run(config())
    encoder.arithmetic = 1
    assert config().out.read_bytes() == first
    other = config(clip_stride=8, out=config().out.with_name("other.h5"))
    assert extract.run(other).num_decoded == 3
    assert extract.run(config(projector="random:1")).num_decoded == 0  # features do not depend on it


@pytest.mark.parametrize("older", [0, -1])
def test_parts_without_a_stated_arithmetic_do_not_mix(config, encoder, monkeypatch, older):
    monkeypatch.setattr(parts, "PART_VIDEOS", 1)
    monkeypatch.setattr(parts, "BATCHES_AHEAD", 0)  # each video is encoded when it ends
    extract.run(config())
    path = parts.part_paths(config().out.parent / "embeddings.parts")[older]
    part = dataset.read_part(path)
    del part.settings["arithmetic"]
    dataset.write_part(path, part)
    with raises("parts-settings"):
        extract.merge(MergeConfig(out=config().out))


def test_frames_have_the_size_that_the_encoder_wants(config, encoder, monkeypatch):
    shapes = set()
    features = encoder.features
    monkeypatch.setattr(encoder, "frame_size", (224, 299))
    monkeypatch.setattr(encoder, "features", lambda clips: shapes.add(clips.shape[2:]) or features(clips))
    extract.run(config())
    assert shapes == {(224, 299, 3)}


def test_an_interrupted_run_keeps_its_parts(config, encoder, monkeypatch):
    whole = extract.run(config(out=config().out.with_name("whole.h5")))
    monkeypatch.setattr(parts, "PART_VIDEOS", 1)
    monkeypatch.setattr(parts, "BATCHES_AHEAD", 0)  # each video is encoded when it ends
    monkeypatch.setattr(encoder, "batch_size", 1)
    features = encoder.features

    def fail_late(clips):
        if len(encoder.batches) == 6:
            raise KeyboardInterrupt
        return features(clips)

    encoder.batches.clear()
    monkeypatch.setattr(encoder, "features", fail_late)
    with pytest.raises(KeyboardInterrupt):
        extract.run(config())
    assert not config().out.exists()
    monkeypatch.setattr(encoder, "features", features)
    result = extract.run(config())
    assert 1 <= result.num_decoded < 3
    assert result.path.read_bytes() == whole.path.read_bytes()


def test_decoders_are_served_while_a_batch_is_encoded(tmp_path, encoder, monkeypatch):
    may_encode, features, written = threading.Event(), encoder.features, []

    def slow(clips):
        assert may_encode.wait(30)
        return features(clips)

    monkeypatch.setattr(encoder, "features", slow)
    writer = parts.PartWriter(tmp_path, {}, encoder, lambda name, contents: written.extend(contents))
    contents = [Content(str(number) * 64, Span()) for number in range(3)]
    for number in range(2 * encoder.batch_size):  # two batches, of two videos
        frames = np.full((16, 128, 171, 3), number, np.uint8)
        writer.add(contents[number % 2], Clip(frames, 0, 0.0, 1.0, 16, tuple(range(16))))
    for content in contents[:2]:
        writer.finish(content, VideoInfo(64, 15.0, 176, 144, "h264", "pyav", encoder.batch_size))
    assert written == [], "nothing is encoded yet"
    may_encode.set()
    writer.close()
    assert written == contents[:2]
    (path,) = parts.part_paths(tmp_path)
    got = dataset.read_part(path).clips.features[:, 0]
    assert got.tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_what_is_encoded_is_kept_when_the_encoder_fails(tmp_path, encoder, monkeypatch):
    features, written = encoder.features, []
    monkeypatch.setattr(encoder, "batch_size", 1)

    def fail_second(clips):
        if clips[0, 0, 0, 0, 0] == 1:
            raise RuntimeError("out of memory")
        return features(clips)

    monkeypatch.setattr(encoder, "features", fail_second)
    writer = parts.PartWriter(tmp_path, {}, encoder, lambda name, contents: written.extend(contents))
    with pytest.raises(RuntimeError, match="out of memory"):  # the fourth waits for the second at the latest
        for number in range(4):
            content = Content(str(number) * 64, Span())
            writer.add(content, Clip(np.full((16, 128, 171, 3), number, np.uint8), 0, 0.0, 1.0, 16, tuple(range(16))))
            writer.finish(content, VideoInfo(16, 15.0, 176, 144, "h264", "pyav", 1))
    writer.close()  # the error is not raised again
    names = [content.sha256[0] for content in written]
    assert names[0] == "0" and "1" not in names


def test_a_part_is_closed_in_time(config, encoder, monkeypatch):
    monkeypatch.setattr(parts, "PART_S", 0.0)
    monkeypatch.setattr(encoder, "batch_size", 1)
    cfg = config()
    extract.run(cfg)
    paths = parts.part_paths(cfg.out.parent / "embeddings.parts")
    assert len(paths) == 3
    assert sum(dataset.read_part(path).videos.sha256 != [] for path in paths) == 3


def test_a_damaged_part_is_decoded_again(config, encoder, caplog):
    cfg = config()
    whole = extract.run(cfg).path.read_bytes()
    (part,) = parts.part_paths(cfg.out.parent / "embeddings.parts")
    part.write_bytes(part.read_bytes()[:-100])
    result = extract.run(cfg)
    assert f"{part.name} is damaged" in caplog.text
    assert (result.num_decoded, result.path.read_bytes()) == (3, whole)
    assert part.with_suffix(".damaged").exists()


# Shards


def run_shards(cfg, count):
    return [extract.run(cfg.model_copy(update={"shards": count, "shard": shard})) for shard in range(count)]


def ids_of(cfg):
    return {entry.video_id for entry in manifest.find_videos(cfg.source)}


def test_shards_make_the_same_file(config, encoder):
    whole = extract.run(config(out=config().out.with_name("whole.h5")))
    cfg = config(shards=7)
    results = run_shards(cfg, 7)
    assert sum(result.num_videos for result in results) == 3
    assert all(result.path is None for result in results)
    assert not cfg.out.exists()
    assert extract.landed(cfg, ids_of(cfg) | {"other"}) == 3
    merged = extract.merge(MergeConfig(out=cfg.out))
    assert (merged.num_clips, merged.num_decoded, merged.failures) == (7, 0, [])
    assert merged.path.read_bytes() == whole.path.read_bytes()


def test_the_devices_that_encoded_are_recorded(config, encoder):
    """GPUs of two models share an extraction; parts of earlier versions do not name their device."""
    assert dataset.read_embeddings(extract.run(config()).path).attrs["device"] == "cpu"
    cfg = config(shards=2, out=config().out.with_name("two.h5"))
    for shard, encoder.device in enumerate(["NVIDIA H200", "NVIDIA A100"]):
        extract.run(cfg.model_copy(update={"shard": shard}))
    assert dataset.read_embeddings(extract.merge(cfg).path).attrs["device"] == "NVIDIA A100, NVIDIA H200"
    path = parts.part_paths(config().out.parent / "embeddings.parts")[0]
    part = dataset.read_part(path)
    del part.settings["device"]
    for arithmetic, device in ((101, "cuda"), (1, "cpu")):
        part.settings["arithmetic"] = arithmetic
        dataset.write_part(path, part)
        assert dataset.read_embeddings(extract.merge(config()).path).attrs["device"] == device
    assert extract.run(config()).num_decoded == 0


@pytest.mark.gpu
def test_shards_on_a_gpu_make_the_same_file_and_never_mix_with_a_processors(config):
    settings = dict(weights="random:0", precision="bf16")
    whole = extract.run(config(**settings, device="cuda", out=config().out.with_name("whole.h5")))
    cfg = config(**settings, device="cuda", shards=3, batch_size=100)
    run_shards(cfg, 3)
    merged = dataset.read_embeddings(extract.merge(cfg).path)
    assert merged.attrs["device"] == torch.cuda.get_device_name()
    np.testing.assert_array_equal(merged.features[:], dataset.read_embeddings(whole.path).features[:])
    with raises("parts-settings") as caught:
        extract.run(config(**settings, device="cpu", shards=3, shard=0))
    assert "arithmetic=102, now arithmetic=2" in str(caught.value)


def test_an_unfinished_shard_is_named(config, encoder):
    cfg = config(shards=3)
    run_shards(cfg.model_copy(update={"shards": 3}), 3)[:2]
    shards.ledger_path(cfg.out.parent / "embeddings.parts", 3, 2).unlink()
    assert extract.landed(cfg, ids_of(cfg)) == 2
    folder = cfg.out.parent / "embeddings.parts"
    with raises("shard-incomplete", CorruptError) as caught:
        extract.merge(MergeConfig(out=cfg.out))
    assert "shard 2 of 3 lacks 1 of its 1 videos" in str(caught.value)
    assert str(caught.value).endswith(f"run: vtp extract --config {folder}/config.yaml --shard 2")


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_merge_names_the_part_and_the_command(config, encoder, harm):
    cfg = config(shards=3)
    run_shards(cfg, 3)
    folder = cfg.out.parent / "embeddings.parts"
    (row,) = shards.read_ledger(shards.ledger_path(folder, 3, 1))
    harm(folder / row.part)
    with raises("part-damaged", CorruptError) as caught:
        extract.merge(MergeConfig(out=cfg.out))
    assert caught.value.exit_code == 4
    assert row.part in str(caught.value) and str(caught.value).endswith("config.yaml --shard 1")
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert extract.run(ExtractConfig(**saved | {"shard": 1})).num_decoded == 1
    assert extract.merge(MergeConfig(out=cfg.out)).num_videos == 3


def test_failures_of_all_shards(config, videos, encoder):
    (videos / "a.mp4").write_text("no video at all")
    (videos / "b.mp4").touch()
    run_shards(config(shards=2), 2)
    result = extract.merge(MergeConfig(out=config().out))
    assert [row["video_id"] for row in result.failures] == ["a.mp4", "b.mp4"]
    assert failures(config()) == result.failures


def test_outputs_in_one_folder_keep_their_failures(config, videos, encoder):
    (videos / "a.mp4").write_text("no video at all")
    extract.run(config())
    extract.run(config(source=str(videos / "0.mp4"), out=config().out.with_name("other.h5")))
    assert [row["video_id"] for row in failures(config())] == ["a.mp4"]


# Failures


def test_failures_are_listed_and_the_others_continue(config, videos, encoder):
    (videos / "a.mp4").write_text("no video at all")
    write_video(videos / "b.mp4", 5)
    (videos / "c.mp4").write_bytes((videos / "0.mp4").read_bytes()[:-50])
    (videos / "d.mp4").symlink_to(videos / "gone.mp4")
    result = extract.run(config())
    assert (result.num_videos, result.num_clips) == (3, 7)
    rows = failures(config())
    assert rows == result.failures
    assert [(row["video_id"], row["stage"], row["code"]) for row in rows] == [
        ("a.mp4", "decode", "not_video"),
        ("b.mp4", "decode", "too_short"),
        ("c.mp4", "decode", "damaged"),
        ("d.mp4", "decode", "missing"),
    ]
    assert all(row["reason"] and row["fix"] for row in rows)
    assert rows[1]["path"] == str((videos / "b.mp4").resolve())
    for name in "abcd":
        (videos / f"{name}.mp4").unlink()
    extract.run(config())
    assert failures(config()) is None  # it lists this run's failures


def test_half_a_video_leaves_nothing(config, videos, encoder, monkeypatch):
    whole = extract.run(config(out=config().out.with_name("whole.h5")))
    damaged = write_video(videos / "00.mkv", 120, options={"g": "10"})
    data = bytearray(damaged.read_bytes())
    data[-1500:-1300] = np.random.default_rng(0).bytes(200)
    damaged.write_bytes(data)
    result = extract.run(config())
    assert [row["code"] for row in result.failures] == ["damaged"]
    assert sum(encoder.batches) > 2 * 7  # some of its clips were encoded before the damage showed
    assert dataset.read_embeddings(result.path).content_sha256 == dataset.read_embeddings(whole.path).content_sha256


def test_all_failed_writes_no_embeddings(config, tmp_path, encoder):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.mp4").write_text("text")
    result = extract.run(config(source=str(tmp_path / "bad")))
    assert result.path is None
    assert not config().out.exists()
    assert len(failures(config())) == 1


def test_a_wrong_checksum_fails_the_video(config, videos, encoder):
    source = manifest_of(videos, f"path,sha256\n0.mp4,{'a' * 64}\n1.mp4,\n")
    result = extract.run(config(source=source))
    assert [(row["video_id"], row["code"]) for row in result.failures] == [("0.mp4", "checksum")]
    assert result.num_videos == 1


def grow_at_submit(monkeypatch, times):
    submit = extract.DecoderPool.submit
    left = [None] * times

    def grow(pool, segments, path, **options):
        if left:
            left.pop()
            with open(path, "ab") as file:
                file.write(bytes.fromhex("0000000866726565"))  # an empty box: the video stays valid
        submit(pool, segments, path, **options)

    monkeypatch.setattr(extract.DecoderPool, "submit", grow)


def test_a_video_that_changes_meanwhile_fails(config, videos, encoder, monkeypatch):
    grow_at_submit(monkeypatch, 6)
    assert [row["code"] for row in extract.run(config(retries=0)).failures] == ["changed"] * 3


def test_a_video_gets_another_try(config, videos, encoder, monkeypatch):
    whole = extract.run(config(out=config().out.with_name("whole.h5")))
    grow_at_submit(monkeypatch, 2)
    result = extract.run(config())
    assert (result.failures, result.num_videos) == ([], 3)
    features = dataset.read_embeddings(result.path).features
    np.testing.assert_array_equal(features, dataset.read_embeddings(whole.path).features)


def test_pyav_replaces_a_crashed_decoder(config, encoder, monkeypatch):
    submit, killed = extract.DecoderPool.submit, []

    def kill_first(pool, segments, path, **options):
        submit(pool, segments, path, **options)
        if not killed:
            killed.extend(video.entry.video_id for video in segments)
            (decoder,) = (busy for busy, (others, _) in pool._busy.items() if others == list(segments))
            while decoder._starting:
                decoder.receive()
            decoder._process.kill()

    monkeypatch.setattr(extract.DecoderPool, "submit", kill_first)
    result = extract.run(config())
    assert (result.failures, killed) == ([], ["0.mp4"])
    assert dataset.read_embeddings(result.path).videos.decoder == ["pyav", "decord", "decord"]


def test_clips_before_a_restart_are_discarded(config, encoder, monkeypatch):
    whole = dataset.read_embeddings(extract.run(config(out=config().out.with_name("whole.h5"))).path)
    events, begun = extract.DecoderPool.events, set()

    def begin_twice(pool):
        for video, event in events(pool):
            yield video, event
            if video.content not in begun:  # its first clip is followed by a restart, and the same clip once more
                begun.add(video.content)
                yield video, Restart("decord fails")
                yield video, event

    monkeypatch.setattr(extract.DecoderPool, "events", begin_twice)
    again = dataset.read_embeddings(extract.run(config()).path)
    assert again.offset.tolist() == whole.offset.tolist()
    np.testing.assert_array_equal(again.features, whole.features)


def test_too_many_failures_stop_it(config, videos, encoder):
    for name in "abcd":
        (videos / f"0{name}.mp4").write_text("no video at all")
    with raises("too-many-failures", PartialError) as caught:
        extract.run(config(max_failures=1))
    assert caught.value.exit_code == 3
    assert "shard-0-of-1" in str(caught.value)
    assert not config().out.exists()
    assert extract.run(config(max_failures=4)).num_videos == 3


@pytest.mark.parametrize("labels", ["step,context\n0,plate\n", "step,context\n0,nothing known\n"])
def test_videos_with_wrong_labels_count_as_failures(config, videos, encoder, labels):
    """Also if they were decoded before, and each once, however it fails."""
    (videos / "bad.csv").write_text(labels)
    (videos / "no.mp4").write_text("no video at all")
    source = manifest_of(videos, "path,labels\n0.mp4,bad.csv\n1.mp4,bad.csv\n2.mp4,\nno.mp4,bad.csv\n")
    stopped = config(source=source, max_failures=2)
    for _ in range(2):
        with raises("too-many-failures", PartialError) as caught:
            extract.run(stopped)
        assert str(caught.value).startswith("3 videos failed, more than --max-failures 2")
        assert not stopped.out.exists()
    result = extract.run(config(source=source, max_failures=3))
    assert result.num_videos == 1 and len(result.failures) == 3
    with raises("too-many-failures", PartialError):
        extract.run(stopped)
    assert dataset.read_embeddings(result.path).videos.id == ["2.mp4"]


def test_copies_are_decoded_once_and_fail_together(config, videos, encoder):
    damaged = write_video(videos / "bad.mkv", 60, options={"g": "10"})
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = np.random.default_rng(0).bytes(200)
    damaged.write_bytes(data)
    shutil.copy(damaged, videos / "bad2.mkv")
    shutil.copy(videos / "0.mp4", videos / "00.mp4")
    result = extract.run(config())
    assert (result.num_decoded, result.num_videos) == (3, 4)
    assert [row["video_id"] for row in result.failures] == ["bad.mkv", "bad2.mkv"]


# Labels


def test_labels_join_by_step(config, videos, encoder, caplog):
    (videos / "0.csv").write_text("step,context,speed,attempts,errors\n1,glass,0.5,2,1\n0,pan,1,3,0\n")
    source = manifest_of(videos, "path,labels,split\n0.mp4,0.csv,train\n1.mp4,,train\n2.mp4,,val\n")
    data = dataset.read_embeddings(extract.run(config(source=source)).path)
    assert data.task == load_task("dishwashing")
    assert data.logs.context.tolist() == ["pan", "glass", "", "", "", "", ""]
    np.testing.assert_array_equal(data.logs.actions[:, 0], [1, 0.5, *[np.nan] * 5])  # speed
    np.testing.assert_array_equal(data.logs.errors, [0, 1, *[np.nan] * 5])
    assert np.isnan(data.logs.novel).all()
    assert data.videos.split == ["train", "train", "val"]
    assert "no task is named: labels are read for task dishwashing" in caplog.text
    assert "labels have no values of care" in caplog.text
    assert "2 of 3 videos have no labels" in caplog.text
    assert data.attrs["projector_fit"] == "train"
    np.testing.assert_allclose(data.projector_mean, data.features[:5].mean(axis=0), rtol=1e-5)


def test_labels_with_a_wrong_number_of_steps(config, videos, encoder, caplog):
    """This is reported as soon as the video is decoded; the video fails and the others continue."""
    caplog.set_level("INFO")
    (videos / "0.csv").write_text("step\n0\n1\n2\n")
    source = manifest_of(videos, "path,labels\n0.mp4,0.csv\n1.mp4,\n2.mp4,\n")
    result = extract.run(config(source=source))
    assert result.num_videos == 2
    (row,) = result.failures
    assert (row["stage"], row["code"]) == ("labels", "labels")
    assert row["reason"] == "0.csv has 3 steps and the video 2 clips"
    told = [record.message.partition(":")[0] for record in caplog.records]
    assert told.index("0.mp4 will be left out") < told.index("3 videos")  # before all of them were decoded
    (videos / "0.csv").write_text("step\n0\n1\n")
    assert (extract.run(config(source=source)).num_decoded, failures(config())) == (0, None)


# The task


BOLTS = "step,context,speed,grip,attempts,errors\n0,bolt,0.5,20,3,0\n1,vial,1.5,10,8,1\n"


def test_the_task_and_its_logs_are_in_the_file(config, videos, encoder):
    (videos / "0.csv").write_text(BOLTS)
    source = manifest_of(videos, "path,labels,task\n0.mp4,0.csv,bin-picking\n1.mp4,,\n")
    data = dataset.read_embeddings(extract.run(config(source=source)).path)
    assert data.task == load_task("bin-picking")
    np.testing.assert_array_equal(data.logs.actions, [[0.5, 20], [1.5, 10], *[[np.nan] * 2] * 3])
    assert data.logs.context_index(data.task).tolist() == [0, 2, -1, -1, -1]


def test_a_task_needs_no_labels(config, encoder):
    data = dataset.read_embeddings(extract.run(config(task="bin-picking")).path)
    assert (data.task, data.logs) == (load_task("bin-picking"), None)


def test_the_flag_overrides_the_column(config, videos, encoder, caplog):
    caplog.set_level("INFO")
    (videos / "0.csv").write_text(BOLTS)
    source = manifest_of(videos, "path,labels,task\n0.mp4,0.csv,dishwashing\n")
    with raises("labels-unknown-column"):
        extract.run(config(source=source))
    result = extract.run(config(source=source, task="bin-picking"))
    assert dataset.read_embeddings(result.path).task.name == "bin-picking"
    assert "--task bin-picking overrides the manifest's task column (dishwashing)" in caplog.text


def test_one_extraction_has_one_task(config, videos, encoder):
    text = "name: mine\nhuman_wage_usd: 20\nactions: {pace: {}}\ncontexts: {price_usd: 0.1}\n"
    (videos / "one.yaml").write_text(text)
    (videos / "same.yaml").write_text("# the same\n" + text)
    source = manifest_of(videos, "path,task\n0.mp4,one.yaml\n1.mp4,same.yaml\n")
    assert dataset.read_embeddings(extract.run(config(source=source)).path).task.name == "mine"
    (videos / "same.yaml").write_text(text.replace("20", "21"))
    with raises("tasks-differ") as caught:
        extract.run(config(source=source))
    assert "0.mp4" in str(caught.value) and "1.mp4" in str(caught.value)


def test_a_task_s_file_is_found_from_another_folder(config, videos, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "name: mine\nhuman_wage_usd: 20\nactions: {pace: {}}\ncontexts: {price_usd: 0.1}\n"
    (tmp_path / "mine.yaml").write_text(text)
    cfg = config(task="mine.yaml", shards=2)
    run_shards(cfg, 2)
    monkeypatch.chdir("/")
    assert dataset.read_embeddings(extract.merge(MergeConfig(out=cfg.out)).path).task.name == "mine"
    assert extract.portable(config(task="dishwashing")).task == "dishwashing"


def test_settings_are_valid_in_any_folder_and_names_stay_names(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pca").touch()
    (tmp_path / "imagenet").touch()
    settings = extract.portable(config(backbone="efficientnet_lite0", weights="imagenet", projector="pca"))
    assert (settings.weights, settings.projector) == ("imagenet", "pca")
    settings = extract.portable(config(backbone="timesformer_b", weights="models/mine", projector="random:0"))
    assert (settings.weights, settings.projector) == (str(tmp_path / "models/mine"), "random:0")


# What is refused before anything is decoded


@pytest.fixture
def spies(encoder, monkeypatch):
    """Fails if a frame is decoded or an encoder loaded."""
    monkeypatch.setattr(encoders, "load_encoder", lambda *args, **kwargs: pytest.fail("loaded the encoder"))
    monkeypatch.setattr(extract, "DecoderPool", lambda *args, **kwargs: pytest.fail("started decoders"))


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        ("step,context\n0,bolt\n", "labels-unknown-context"),
        ("step,grip\n0,1\n", "labels-unknown-column"),
        ("step,speed\n0,2\n", "labels-value"),
        ("step\n1\n", "labels-step"),
        (None, "labels-missing"),
    ],
)
def test_labels_that_are_all_bad_are_refused_at_once(config, videos, spies, labels, code):
    for name in "012":
        if labels is not None:
            (videos / f"{name}.csv").write_text(labels)
    source = manifest_of(videos, "path,labels\n0.mp4,0.csv\n1.mp4,1.csv\n2.mp4,2.csv\n")
    for shard in range(3):
        with raises(code) as caught:
            extract.run(config(source=source, shards=3, shard=shard))
        assert caught.value.exit_code == 2
    assert not config().out.parent.exists(), "something was written"


@pytest.mark.parametrize(
    ("task", "code"), [("gardening", "task-unknown"), ("folder", "task-unreadable"), ("bad.yaml", "task-invalid")]
)
def test_a_bad_task_is_refused_at_once(config, videos, spies, task, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.yaml").write_text("name: {")
    with raises(code):
        extract.run(config(task=task))
    assert not config().out.parent.exists(), "something was written"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("columns", "labels-unknown-column"), ("fifo", "labels-unreadable"), ("sparse", "labels-unreadable"),
        ("folder", "labels-unreadable"), ("missing", "labels-missing"),
    ],
)  # fmt: skip
def test_a_bad_label_file_fails_its_video_only(config, videos, encoder, caplog, kind, code):
    path = videos / "0.csv"
    if kind == "columns":
        path.write_text("step,grip\n0,1\n1,1\n")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(2 << 30)
    elif kind == "folder":
        path.mkdir()
    source = manifest_of(videos, "path,labels\n0.mp4,0.csv\n1.mp4,\n")
    result = extract.run(config(source=source))
    assert [(row["video_id"], row["stage"], row["code"]) for row in result.failures] == [("0.mp4", "labels", code)]
    assert dataset.read_embeddings(result.path).videos.id == ["1.mp4"]
    assert "0.mp4 will be left out: labels" in caplog.text
    if kind in ("columns", "missing"):
        path.write_text("step,context\n0,pan\n1,pan\n")
        again = extract.run(config(source=source))
        assert (again.num_decoded, again.num_videos, again.failures) == (0, 2, []), "nothing is decoded again"


def test_a_wrong_task_is_reported_without_torch(tmp_path):
    """It takes seconds, also for a thousand videos."""
    (tmp_path / "l.csv").write_text("step,context\n0,bolt\n")
    rows = "".join(f"{number}.mp4,l.csv\n" for number in range(1000))
    (tmp_path / "m.csv").write_text("path,labels\n" + rows)
    script = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n"
        "    sys.exit('torch was imported' if 'torch' in sys.modules else stop.code)\n"
    )
    command = [sys.executable, "-c", script, "extract", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out/e.h5")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2, ended.stderr
    assert "context 'bolt' in row 1 is unknown" in ended.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_the_output_must_not_replace_an_input(config, videos, spies):
    (videos / "l.csv").write_text("step\n0\n1\n")
    (videos / "mine.yaml").write_text("never read")
    source = manifest_of(videos, "path,labels\n0.mp4,l.csv\n")
    for out in ("0.mp4", "l.csv", "manifest.csv"):
        with raises("output-is-input"):
            extract.run(config(source=source, out=videos / out))
    with raises("output-is-input"):  # its settings go to mine.yaml
        extract.run(config(source=source, out=videos / "mine.h5", task=str(videos / "mine.yaml")))


def test_a_folder_s_manifest_is_used_or_ignored(config, videos, encoder):
    (videos / "0.csv").write_text("step,context\n0,pan\n1,pan\n")
    manifest_of(videos, "video_id,path,labels,split\none,0.mp4,0.csv,test\n")
    data = dataset.read_embeddings(extract.run(config()).path)
    assert (data.videos.id, data.videos.split, data.logs.context.tolist()) == (["one"], ["test"], ["pan", "pan"])
    bare = dataset.read_embeddings(extract.run(config(bare=True)).path)
    assert (len(bare.videos.id), bare.logs) == (3, None)


def test_settings_that_cannot_be_read_are_named(config, encoder):
    extract.run(config())
    path = config().out.parent / "embeddings.parts/config.yaml"
    for text in ("{", "source: 1\nnew_setting: 2\n", "[]"):
        path.write_text(text)
        with raises("config-damaged", CorruptError):
            extract.merge(MergeConfig(out=config().out))
    path.unlink()
    with raises("parts-missing"):
        extract.merge(MergeConfig(out=config().out))


# Splits and projectors


def test_one_video_is_in_one_split(config, videos, encoder):
    shutil.copy(videos / "0.mp4", videos / "copy.mp4")
    source = manifest_of(videos, "path,split\n0.mp4,train\ncopy.mp4,\n1.mp4,val\n")
    assert dataset.read_embeddings(extract.run(config(source=source)).path).videos.split == [
        "train",
        "train",
        "val",
    ]
    manifest_of(videos, "path,split\n0.mp4,train\ncopy.mp4,val\n")
    with raises("split-of-copies"):
        extract.run(config(source=source))


def test_pca_without_a_train_split_logs_a_warning(config, videos, encoder, caplog):
    source = manifest_of(videos, "path,split\n0.mp4,val\n1.mp4,test\n")
    data = dataset.read_embeddings(extract.run(config(source=source)).path)
    assert data.attrs["projector_fit"] == "all"
    assert "pca is fitted on all 5 clips" in caplog.text


def test_the_projector_of_another_file(config, tmp_path, encoder):
    first = dataset.read_embeddings(extract.run(config()).path)
    out = tmp_path / "out/again.h5"
    again = dataset.read_embeddings(extract.run(config(out=out, projector=str(config().out))).path)
    np.testing.assert_array_equal(again.embeddings, first.embeddings)
    assert again.attrs["projector_sha256"] == first.attrs["projector_sha256"]
    encoder.weights_sha256 = "1" * 64
    with raises("projector-other-weights"):
        extract.run(config(out=out, projector=str(config().out)))
    with raises("projector-missing"):
        extract.run(config(projector="other"))


def test_features_alone(config, encoder, tmp_path, caplog):
    """Features are stored unprojected and can be read; embeddings are made later without decoding."""
    cfg = config(projector="none")
    extract.run(cfg)
    assert "fitted" not in caplog.text
    data = dataset.read_embeddings(cfg.out, or_features=True)
    with h5py.File(cfg.out) as file:
        assert "embeddings" not in file and "projector" not in file
    assert (data.features.shape, data.embeddings.shape, data.attrs["projector"]) == ((7, 512), (7, 0), "none")
    assert "512-D features only" in repr(data)
    assert data.to_torch()[3]["features"].tolist() == np.asarray(data.features)[3].tolist()
    for read in (dataset.read_embeddings, lambda path: dataset.read_rows(path, np.arange(2))):
        with raises("embeddings-none") as caught:
            read(cfg.out)
        assert "--projector pca" in str(caught.value)
    with raises("embeddings-none"):
        extract.run(config(out=tmp_path / "other/embeddings.h5", projector=str(cfg.out)))
    features = data.features[:]
    result = extract.run(config(projector="pca"))
    projected = dataset.read_embeddings(cfg.out)
    assert result.num_decoded == 0 and projected.embeddings.shape == (7, 128)
    np.testing.assert_array_equal(projected.features, features)


def test_a_projector_fitted_on_few_clips_logs_a_warning(config, encoder, caplog):
    cfg = config()
    extract.run(cfg)
    num_zero = int((dataset.read_embeddings(cfg.out).projector_components == 0).all(axis=1).sum())
    assert num_zero == 124
    assert "projector pca is fitted to 5 clips, fewer than 300, and 124 of 128 columns are zero" in caplog.text
    assert "none for features only" in caplog.text


def test_few_clips_are_below_300(caplog):
    features = np.random.default_rng(0).standard_normal((300, 140)).astype(np.float32)
    for num_clips, is_warned in ((299, True), (300, False)):
        caplog.clear()
        encoders.fit_projector("pca", features[:num_clips], np.array([num_clips]))
        assert ("is fitted to 299 clips, fewer than 300;" in caplog.text) == is_warned


def test_a_model_of_transformers(config, tmp_path, caplog):
    """It uses the same parts, projector and records; a folder that was moved meanwhile is the same model."""
    folder = tmp_path / "model"
    save_dinov2(folder)
    cfg = config(backbone=f"hf:{folder}", precision="fp32")
    extract.run(cfg)
    data = dataset.read_embeddings(cfg.out)
    assert data.features.shape == (7, 64) and np.isfinite(data.embeddings).all()
    assert data.attrs["backbone"] == f"hf:{folder}" and data.attrs["weights"] == str(folder)
    assert "Dinov2Model: pooler_output, per frame" in data.attrs["transform"]
    moved = folder.rename(tmp_path / "moved")
    assert extract.run(config(backbone=f"hf:{moved}", precision="fp32")).num_decoded == 0
    save_dinov2(moved, seed=1)
    with raises("parts-settings") as caught:
        extract.run(config(backbone=f"hf:{moved}", precision="fp32"))
    assert "weights_sha256" in str(caught.value)


def test_clips_shorter_than_the_model_takes_log_a_warning(config, encoder, caplog):
    encoder.num_frames = 64
    extract.run(config())
    assert "clips have 16 frames and pixels takes 64" in caplog.text and "--clip-len 64" in caplog.text


def test_a_missing_model_is_reported_without_torch(videos, tmp_path):
    script = (
        "import sys\nfrom pipeline import extract\nfrom pipeline.config import ExtractConfig\n"
        "from pipeline.errors import VtpError\n"
        "try:\n    extract.run(ExtractConfig(source=sys.argv[1], backbone='hf:' + sys.argv[2]))\n"
        "except VtpError as error:\n    print(error.code, 'torch' in sys.modules)"
    )
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, str(videos), str(tmp_path / "empty")], capture_output=True, text=True
    )
    assert done.stdout.split() == ["weights-incomplete", "False"], done.stderr


def test_the_learned_projector(config, videos, tmp_path, encoder):
    """Fitted on the train split's videos, stored, and the same from that file."""
    source = manifest_of(videos, "path,split\n0.mp4,val\n1.mp4,train\n2.mp4,train\n")
    first = dataset.read_embeddings(extract.run(config(source=source, projector="learned")).path)
    assert (first.attrs["projector"], first.attrs["projector_fit"]) == ("learned", "train")
    fitted = encoders.fit_learned(first.features[2:], [3, 2])
    np.testing.assert_array_equal(first.embeddings, fitted.project(first.features))
    assert first.attrs["projector_sha256"] == fitted.sha256
    out = tmp_path / "out/again.h5"
    again = extract.run(config(source=source, out=out, projector=str(config().out)))
    np.testing.assert_array_equal(dataset.read_embeddings(again.path).embeddings, first.embeddings)
    np.testing.assert_array_equal(dataset.read_embeddings(again.path).projector_norm, fitted.norm)


def test_the_real_encoder(videos, config, monkeypatch):
    cfg = config(source=str(videos / "0.mp4"), weights="random:0", precision="fp32", batch_size=2)
    data = dataset.read_embeddings(extract.run(cfg).path)
    assert data.features.shape == (2, 512)
    assert (data.attrs["weights"], data.attrs["backbone"], data.attrs["precision"]) == ("random:0", "r3d_18", "fp32")
    assert np.linalg.norm(data.features[0] - data.features[1]) > 0.01
    assert extract.run(cfg).num_decoded == 0
