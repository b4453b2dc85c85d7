import json
import shutil

import numpy as np
import pytest
import yaml
from synthetic import write_video

from pipeline import extract, store
from pipeline.config import ExtractConfig
from pipeline.errors import CorruptError, VtpError


class PixelEncoder:
    """Stands in for R3D-18, which is slow: a clip's features are a few of its pixels."""

    backbone, weights, weights_sha256, precision = "pixels", "random:0", "0" * 64, "fp32"
    transform, feature_dim, batch_size = "none", 512, 4

    def __init__(self):
        self.batches = []

    def features(self, clips):
        self.batches.append(len(clips))
        return clips[:, ::5, ::16, ::8].reshape(len(clips), -1)[:, :512].astype(np.float32)


@pytest.fixture
def encoder(monkeypatch):
    encoder = PixelEncoder()
    monkeypatch.setattr(extract.encoders, "load_encoder", lambda *args, **kwargs: encoder)
    return encoder


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
    data = store.read_embeddings(result.path)
    assert data.videos.id == ["0.mp4", "1.mp4", "2.mp4"]
    assert data.offset.tolist() == [0, 2, 5, 7]
    assert data.clips.start_frame.tolist() == [0, 16, 0, 16, 32, 0, 16]
    np.testing.assert_allclose(data.clips.start_s, np.array([0, 16, 0, 16, 32, 0, 16]) / 15, atol=1e-9)
    np.testing.assert_allclose(data.clips.end_s - data.clips.start_s, 16 / 15, atol=1e-9)
    assert data.videos.num_frames.tolist() == [36, 52, 33]
    assert data.videos.decoder == ["decord"] * 3
    assert data.labels is None
    assert {name: data.attrs[name] for name in ("clip_len", "clip_stride", "fps", "tail", "decoder", "precision")} == {
        "clip_len": 16, "clip_stride": 16, "fps": 15.0, "tail": "drop", "decoder": "auto", "precision": "fp32",
    }  # fmt: skip
    assert seen == [(0, 3, "0.mp4"), (1, 3, "1.mp4"), (2, 3, "2.mp4"), (3, 3, "putting together")]
    assert failures(cfg) is None
    assert yaml.safe_load(cfg.out.with_suffix(".yaml").read_text())["clip_len"] == 16


def test_batches_run_across_videos(config, encoder):
    extract.run(config())
    assert encoder.batches == [4, 3]


def test_embeddings_are_the_projected_features(config, encoder):
    data = store.read_embeddings(extract.run(config()).path)
    expected = (data.features - data.projector_mean) @ data.projector_components.T / data.projector_scale
    np.testing.assert_allclose(data.embeddings, expected, atol=1e-5)
    train = np.repeat(data.video_splits == "train", np.diff(data.offset))
    fitted_on = data.features[train if train.any() else ...]
    np.testing.assert_allclose(data.projector_mean, fitted_on.mean(axis=0), rtol=1e-5)


# Resuming


def test_a_second_run_decodes_nothing(config, encoder, monkeypatch):
    first = extract.run(config())
    before = first.path.read_bytes()
    monkeypatch.setattr(extract.Decoder, "clips", lambda *args, **kwargs: pytest.fail("decoded again"))
    encoder.batches.clear()
    second = extract.run(config())
    assert (second.num_decoded, second.num_clips, encoder.batches) == (0, 7, [])
    assert second.path.read_bytes() == before


def test_only_what_is_new_is_decoded(config, videos, encoder):
    first = store.read_embeddings(extract.run(config()).path)
    write_video(videos / "3.mp4", 20, first=200)
    write_video(videos / "1.mp4", 40, first=100)  # edited in place
    shutil.copy(videos / "0.mp4", videos / "copy.mp4")
    (videos / "2.mp4").touch()
    result = extract.run(config())
    assert (result.num_decoded, result.num_videos) == (2, 5)
    data = store.read_embeddings(result.path)
    assert data.offset.tolist() == [0, 2, 4, 6, 7, 9]
    np.testing.assert_array_equal(data.features[:2], first.features[:2])
    np.testing.assert_array_equal(data.features[7:], first.features[:2])
    (videos / "3.mp4").unlink()
    assert extract.run(config()).num_videos == 4


def test_other_settings_are_other_features(config, encoder):
    extract.run(config())
    assert extract.run(config(clip_stride=8)).num_decoded == 3
    assert extract.run(config(fps=7.5)).num_decoded == 3
    assert extract.run(config(clip_stride=8, projector="random:1")).num_decoded == 0
    assert extract.run(config()).num_decoded == 0


def test_an_interrupted_run_keeps_its_parts(config, encoder, monkeypatch):
    whole = extract.run(config(out=config().out.with_name("whole.h5")))
    monkeypatch.setattr(extract, "PART_VIDEOS", 1)
    features = encoder.features

    def fail_late(clips):
        if len(encoder.batches) == 2:
            raise KeyboardInterrupt
        return features(clips)

    encoder.batches.clear()
    monkeypatch.setattr(encoder, "features", fail_late)
    with pytest.raises(KeyboardInterrupt):
        extract.run(config())
    assert not config().out.exists()
    monkeypatch.setattr(encoder, "features", features)
    result = extract.run(config())
    assert result.num_decoded == 1
    assert result.path.read_bytes() == whole.path.read_bytes()


def test_a_part_is_closed_in_time(config, encoder, monkeypatch):
    monkeypatch.setattr(extract, "PART_S", 0.0)
    cfg = config()
    extract.run(cfg)
    parts = sorted((cfg.out.parent / "embeddings.parts").iterdir())
    assert len(parts) == 3
    assert sum(store.read_part(path).videos.sha256 != [] for path in parts) == 3


def test_a_damaged_part_is_named(config, encoder):
    cfg = config()
    extract.run(cfg)
    (part,) = (cfg.out.parent / "embeddings.parts").iterdir()
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(CorruptError, match=f"{part.name} is damaged .*; delete it and run the same extraction again"):
        extract.run(cfg)
    part.unlink()
    assert extract.run(cfg).num_decoded == 3


# Failures


def test_failures_are_listed_and_the_rest_goes_on(config, videos, encoder):
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
    assert failures(config()) is None  # it tells of this run


def test_half_a_video_leaves_nothing(config, videos, encoder, monkeypatch):
    whole = extract.run(config(out=config().out.with_name("whole.h5")))
    damaged = write_video(videos / "00.mkv", 120, options={"g": "10"})
    data = bytearray(damaged.read_bytes())
    data[-1500:-1300] = np.random.default_rng(0).bytes(200)
    damaged.write_bytes(data)
    result = extract.run(config())
    assert [row["code"] for row in result.failures] == ["damaged"]
    assert sum(encoder.batches) > 2 * 7  # some of its clips were encoded before the damage showed
    assert store.read_embeddings(result.path).content_sha256 == store.read_embeddings(whole.path).content_sha256


def test_all_failed_writes_no_embeddings(config, tmp_path, encoder):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.mp4").write_text("text")
    result = extract.run(config(source=str(tmp_path / "bad")))
    assert result.path is None
    assert not config().out.exists()
    assert len(failures(config())) == 1


def test_a_checksum_is_held_to(config, videos, encoder):
    source = manifest_of(videos, f"path,sha256\n0.mp4,{'a' * 64}\n1.mp4,\n")
    result = extract.run(config(source=source))
    assert [(row["video_id"], row["code"]) for row in result.failures] == [("0.mp4", "checksum")]
    assert result.num_videos == 1


def test_a_video_that_changes_meanwhile_fails(config, videos, encoder, monkeypatch):
    unchanged = extract.unchanged

    def grow(path, stamp, clips):
        with open(path, "ab") as file:
            file.write(b"x")
        return unchanged(path, stamp, clips)

    monkeypatch.setattr(extract, "unchanged", grow)
    assert {row["code"] for row in extract.run(config()).failures} == {"changed"}


# Labels, splits and projectors


def test_labels_join_by_step(config, videos, encoder):
    (videos / "0.csv").write_text("step,context,speed,attempts,errors\n1,glass,0.5,2,1\n0,pan,1,3,0\n")
    source = manifest_of(videos, "path,labels,split\n0.mp4,0.csv,train\n1.mp4,,train\n2.mp4,,val\n")
    data = store.read_embeddings(extract.run(config(source=source)).path)
    assert data.labels["context"].tolist() == ["pan", "glass", "", "", "", "", ""]
    np.testing.assert_array_equal(data.labels["speed"], [1, 0.5, *[np.nan] * 5])
    np.testing.assert_array_equal(data.labels["errors"], [0, 1, *[np.nan] * 5])
    assert np.isnan(data.labels["novel"]).all()
    assert data.video_splits.tolist() == ["train", "train", "val"]
    assert data.attrs["projector_fit"] == "train"
    np.testing.assert_allclose(data.projector_mean, data.features[:5].mean(axis=0), rtol=1e-5)


def test_labels_that_do_not_fit(config, videos, encoder):
    (videos / "0.csv").write_text("step\n0\n1\n2\n")
    source = manifest_of(videos, "path,labels\n0.mp4,0.csv\n1.mp4,none.csv\n2.mp4,\n")
    result = extract.run(config(source=source))
    assert result.num_videos == 1
    first, second = result.failures
    assert (first["stage"], first["code"]) == ("labels", "labels")
    assert first["reason"] == "0.csv has 3 steps and the video 2 clips"
    assert "do not exist" in second["reason"]
    (videos / "0.csv").write_text("step\n0\n1\n")
    assert (extract.run(config(source=source)).num_decoded, len(failures(config()))) == (0, 1)


def test_pca_without_a_train_split_says_so(config, videos, encoder, caplog):
    source = manifest_of(videos, "path,split\n0.mp4,val\n1.mp4,test\n")
    data = store.read_embeddings(extract.run(config(source=source)).path)
    assert data.attrs["projector_fit"] == "all"
    assert "pca is fitted on all 5 clips" in caplog.text


def test_the_projector_of_another_file(config, tmp_path, encoder):
    first = store.read_embeddings(extract.run(config()).path)
    out = tmp_path / "out/again.h5"
    again = store.read_embeddings(extract.run(config(out=out, projector=str(config().out))).path)
    np.testing.assert_array_equal(again.embeddings, first.embeddings)
    assert again.attrs["projector_sha256"] == first.attrs["projector_sha256"]
    encoder.weights_sha256 = "1" * 64
    with pytest.raises(VtpError, match="belongs to weights 000000000000, not to 111111111111; pass the --weights"):
        extract.run(config(out=out, projector=str(config().out)))
    with pytest.raises(VtpError, match="is not a file; use pca, learned, random:SEED, or an embeddings file"):
        extract.run(config(projector="other"))


def test_the_learned_projector(config, videos, tmp_path, encoder):
    """Fitted on the train split's videos, stored, and the same from that file."""
    source = manifest_of(videos, "path,split\n0.mp4,val\n1.mp4,train\n2.mp4,train\n")
    first = store.read_embeddings(extract.run(config(source=source, projector="learned")).path)
    assert (first.attrs["projector"], first.attrs["projector_fit"]) == ("learned", "train")
    fitted = extract.encoders.fit_learned(first.features[2:], [3, 2])
    np.testing.assert_array_equal(first.embeddings, fitted.project(first.features))
    assert first.attrs["projector_sha256"] == fitted.sha256
    out = tmp_path / "out/again.h5"
    again = extract.run(config(source=source, out=out, projector=str(config().out)))
    np.testing.assert_array_equal(store.read_embeddings(again.path).embeddings, first.embeddings)
    np.testing.assert_array_equal(store.read_embeddings(again.path).projector_norm, fitted.norm)


def test_the_real_encoder(videos, config, monkeypatch):
    cfg = config(source=str(videos / "0.mp4"), weights="random:0", precision="fp32", batch_size=2)
    data = store.read_embeddings(extract.run(cfg).path)
    assert data.features.shape == (2, 512)
    assert (data.attrs["weights"], data.attrs["backbone"], data.attrs["precision"]) == ("random:0", "r3d_18", "fp32")
    assert np.linalg.norm(data.features[0] - data.features[1]) > 0.01
    assert extract.run(cfg).num_decoded == 0
