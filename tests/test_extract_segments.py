"""Extraction of segments: several of a file in one pass, each with its own entry in parts, ledger, labels, splits."""

import json
import shutil

import numpy as np
import pytest
from factories import read_barcode, write_video
from raising import raises

from pipeline import dataset, extract, novelty
from pipeline.config import ExtractConfig, MergeConfig, NoveltyConfig
from pipeline.dataset.rereading import read_clips
from pipeline.errors import CorruptError
from pipeline.extraction import parts
from pipeline.video import Span

FPS = 15


@pytest.fixture
def passes(monkeypatch):
    """The segments of each pass over a file, by the file's name."""
    submit, seen = extract.DecoderPool.submit, []

    def note(pool, segments, path, **options):
        seen.append((path.name, len(segments)))
        submit(pool, segments, path, **options)

    monkeypatch.setattr(extract.DecoderPool, "submit", note)
    return seen


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    write_video(folder / "long.mp4", 200)
    write_video(folder / "other.mp4", 60, first=200)
    return folder


@pytest.fixture
def config(originals, tmp_path):
    folder = shutil.copytree(originals, tmp_path / "videos")

    def make(rows, *, header="path,start_s,end_s", **changes):
        (folder / "manifest.csv").write_text("\n".join([header, *rows]) + "\n")
        settings = {
            "source": str(folder / "manifest.csv"),
            "out": tmp_path / "out/e.h5",
            "clip_len": 8,
            "clip_stride": 8,
        }
        return ExtractConfig(**settings | changes)

    return make


ROWS = [
    f"long.mp4,{32 / FPS},{64 / FPS}",
    "other.mp4,,",
    f"long.mp4,,{32 / FPS}",
    f"long.mp4,{64 / FPS},{90.3 / FPS}",
    "long.mp4,12,",
]
FIRST = [32, 40, 48, 56, 200, 208, 216, 224, 232, 240, 248, 0, 8, 16, 24, 64, 72, 80, 180, 188]


def barcodes(data):
    """The first and last frame of each clip, read again from its video."""
    found = {}
    for rows, frames in read_clips(data, range(data.num_videos)):
        found |= {
            int(row): [read_barcode(clip[0]), read_barcode(clip[-1])] for row, clip in zip(rows, frames, strict=True)
        }
    assert list(found) == sorted(found)
    return list(found.values())


def test_segments_of_a_file_are_cut_in_one_pass(config, encoder, passes):
    data = dataset.read_embeddings(extract.run(config(ROWS)).path)
    assert sorted(passes) == [("long.mp4", 4), ("other.mp4", 1)]
    assert data.videos.id == [
        "long.mp4#t=2.1333333333333333,4.266666666666667", "other.mp4", "long.mp4#t=,2.1333333333333333",
        "long.mp4#t=4.266666666666667,6.02", "long.mp4#t=12",
    ]  # fmt: skip
    assert data.offset.tolist() == [0, 4, 11, 15, 18, 20]
    assert data.videos.num_frames.tolist() == [32, 60, 32, 26, 20]
    np.testing.assert_array_equal(data.videos.start_s, [32 / FPS, np.nan, np.nan, 64 / FPS, 12])
    np.testing.assert_array_equal(data.videos.end_s, [64 / FPS, np.nan, 32 / FPS, 90.3 / FPS, np.nan])
    assert (data.clips.start_frame + 200 * (dataset.video_of(data, np.arange(20)) == 1)).tolist() == FIRST
    np.testing.assert_allclose(data.clips.start_s, np.array(FIRST) % 200 / FPS, atol=1e-6)
    assert barcodes(data) == [[first, first + 7] for first in FIRST]


def test_rereading_takes_one_pass_for_segments_in_order(config, encoder, monkeypatch):
    from pipeline.dataset import rereading

    rows = [f"long.mp4,{start},{start + 2}" for start in (0, 2, 5, 8)]
    data = dataset.read_embeddings(extract.run(config(rows)).path)
    spans, clips = [], rereading.Decoder.clips
    monkeypatch.setattr(
        rereading.Decoder, "clips", lambda *args, **options: spans.append(options["spans"]) or clips(*args, **options)
    )
    expected = [first for start in (0, 2, 5, 8) for first in range(15 * start, 15 * start + 23, 8)]
    assert [first for first, _ in barcodes(data)] == expected
    assert spans == [[Span(0, 2), Span(2, 4), Span(5, 7), Span(8, 10)]]
    wanted = np.array([5, 6])
    ((found, frames),) = read_clips(data, range(4), wanted=wanted)
    assert found.tolist() == [5, 6] and [read_barcode(clip[0]) for clip in frames] == [46, 75]
    assert spans[1:] == [[Span(2, 4), Span(5, 7)]]


def test_a_segment_equals_a_file_of_the_same_frames(config, encoder, originals, tmp_path):
    for number, (first, end) in enumerate([(32, 64), (64, 90)]):
        write_video(tmp_path / f"cut{number}.mp4", end - first, first=first, options={"qp": "0"}, pix_fmt="yuv444p")
    write_video(tmp_path / "videos/long.mp4", 200, options={"qp": "0"}, pix_fmt="yuv444p")
    data = dataset.read_embeddings(extract.run(config([ROWS[0], ROWS[3]])).path)
    single = config([], source=f"{tmp_path}/cut*.mp4", out=tmp_path / "out/single.h5")
    single = dataset.read_embeddings(extract.run(single).path)
    np.testing.assert_array_equal(data.features, single.features)
    assert data.offset.tolist() == single.offset.tolist()


def test_only_new_segments_are_decoded(config, encoder, passes):
    first = dataset.read_embeddings(extract.run(config(ROWS)).path).features[:]
    passes.clear()
    changed = [*ROWS[1:4], "long.mp4,2,4", "long.mp4,12.0,"]
    result = extract.run(config(changed))
    assert (result.num_decoded, passes) == (1, [("long.mp4", 1)])
    data = dataset.read_embeddings(result.path)
    assert data.offset.tolist() == [0, 7, 11, 14, 17, 19]
    np.testing.assert_array_equal(data.features[:14], first[4:18])
    np.testing.assert_array_equal(data.features[17:], first[18:])


def test_a_run_interrupted_within_a_file_keeps_its_segments(config, encoder, monkeypatch):
    rows = [f"long.mp4,{start},{start + 1}" for start in range(12)]
    whole = extract.run(config(rows)).path.read_bytes()
    shutil.rmtree(config(rows).out.parent)
    monkeypatch.setattr(parts, "PART_VIDEOS", 1)
    monkeypatch.setattr(parts, "BATCHES_AHEAD", 0)  # each video is encoded when it ends
    monkeypatch.setattr(encoder, "batch_size", 1)
    features, num_decoded = encoder.features, 0
    while True:
        left = 3

        def fail_late(clips):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return features(clips)

        monkeypatch.setattr(encoder, "features", fail_late)
        try:
            result = extract.run(config(rows))
            break
        except KeyboardInterrupt:
            found = parts.finished_contents(extract.parts_folder(config(rows).out), {})
            assert len(found) >= num_decoded + 2  # of three clips, two segments' at least
            num_decoded = len(found)
    assert result.path.read_bytes() == whole


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_of_segments_make_the_same_file(config, encoder, passes, count):
    whole = extract.run(config(ROWS)).path.read_bytes()
    shutil.rmtree(config(ROWS).out.parent)
    passes.clear()
    cfg = config(ROWS, shards=count)
    for shard in range(count):
        extract.run(cfg.model_copy(update={"shard": shard}))
    assert extract.merge(MergeConfig(out=cfg.out)).path.read_bytes() == whole
    assert sum(segments for _, segments in passes) == 5


def test_shards_keep_a_file_in_one_pass_if_there_are_enough_files(config, encoder, passes, tmp_path):
    rows = [f"{name}.mp4,{start},{start + 1}" for start in range(3) for name in "abcd"]
    for name in "abcd":
        shutil.copy(tmp_path / "videos/other.mp4", tmp_path / f"videos/{name}.mp4")
        with open(tmp_path / f"videos/{name}.mp4", "ab") as file:
            file.write(b"\0\0\0\x10free" + name.encode() * 8)
    cfg = config(rows, shards=2)
    for shard in range(2):
        assert extract.run(cfg.model_copy(update={"shard": shard})).num_decoded == 6
    assert sorted(passes) == [("a.mp4", 3), ("b.mp4", 3), ("c.mp4", 3), ("d.mp4", 3)]


def test_merge_names_a_segment_whose_times_have_changed(config, encoder):
    extract.run(config(ROWS))
    cfg = config(["long.mp4,12,", "long.mp4,1,3"])
    with raises("shard-incomplete", CorruptError) as caught:
        extract.merge(MergeConfig(out=cfg.out))
    assert "lacks 1 of its 2 videos, such as long.mp4#t=1,3" in str(caught.value)
    cfg = config(["x,long.mp4,12,", "y,long.mp4,1,3"], header="video_id,path,start_s,end_s")
    extract.run(cfg)
    config(["x,long.mp4,12,", "y,long.mp4,1,4"], header="video_id,path,start_s,end_s")
    with raises("shard-incomplete", CorruptError):
        extract.merge(MergeConfig(out=cfg.out))


BAD = {
    "long.mp4,5,3": ("segment_empty", "manifest.csv row 2: start_s 5 is not before end_s 3", "manifest"),
    "long.mp4,5,5.0": ("segment_empty", "start_s 5 is not before end_s 5", "manifest"),
    "long.mp4,nan,3": ("segment_not_seconds", "start_s 'nan' is not a number of seconds", "manifest"),
    "long.mp4,0,inf": ("segment_not_seconds", "end_s 'inf'", "manifest"),
    "long.mp4,-1,3": ("segment_not_seconds", "start_s -1 is not a number of seconds from 0 on", "manifest"),
    "long.mp4,0:10,": ("segment_not_seconds", "start_s '0:10'", "manifest"),
    "long.mp4,2s,4s": ("segment_not_seconds", "start_s '2s'", "manifest"),
    "long.mp4,2000,4000": ("segment_beyond_end", "shown from 0.00 to 13.33 s", "decode"),
    "long.mp4,10,20": ("segment_beyond_end", "ends at 20 s and long.mp4 is shown from 0.00 to 13.33 s", "decode"),
    "long.mp4,10,10.2": ("too_short", "the segment of long.mp4 (3 frames at 15 fps)", "decode"),
}


@pytest.mark.parametrize("row", BAD)
def test_a_bad_segment_fails_alone(config, encoder, row):
    code, text, stage = BAD[row]
    result = extract.run(config([ROWS[0], row, ROWS[3]]))
    (failure,) = result.failures
    assert (failure["code"], failure["stage"]) == (code, stage)
    assert text in failure["reason"] and "\n" not in failure["reason"] + failure["fix"]
    assert dataset.read_embeddings(result.path).offset.tolist() == [0, 4, 7]
    assert [json.loads(line) for line in result.failures_path.read_text().splitlines()] == [failure]


def test_segments_of_one_id_fail_and_the_others_continue(config, encoder):
    header = "video_id,path,start_s,end_s"
    result = extract.run(config(["a,long.mp4,0,2", "b,long.mp4,2,4", "a,long.mp4,4,6"], header=header))
    assert [(row["video_id"], row["code"]) for row in result.failures] == [("a", "repeated_id")]
    assert dataset.read_embeddings(result.path).videos.id == ["b"]
    with raises("manifest-repeated-id"):
        extract.run(config(["a,long.mp4,0,2", "a,long.mp4,4,6"], header=header))
    with raises("manifest-segment-empty"):
        extract.run(config(["a,long.mp4,3,2", "b,long.mp4,4,4"], header=header))


def test_a_missing_or_damaged_file_fails_with_each_of_its_segments(config, encoder, tmp_path):
    (tmp_path / "videos/other.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    rows = [ROWS[0], "other.mp4,0,1", "other.mp4,1,2", "gone.mp4,0,1"]
    result = extract.run(config(rows))
    assert [(row["video_id"], row["code"]) for row in result.failures] == [
        ("other.mp4#t=0,1", "git_lfs"), ("other.mp4#t=1,2", "git_lfs"), ("gone.mp4#t=0,1", "missing"),
    ]  # fmt: skip
    assert "git lfs pull" in result.failures[0]["fix"]


def test_labels_belong_to_segments(config, encoder, tmp_path):
    for name, count, value in (("a", 4, 0.25), ("b", 3, 0.5), ("c", 3, 0.75)):
        rows = "".join(f"{step},{value}\n" for step in range(count))
        (tmp_path / f"videos/{name}.csv").write_text("step,speed\n" + rows)
    rows = [f"{ROWS[0]},a.csv", f"{ROWS[3]},b.csv", "long.mp4,0,1,c.csv"]  # the last has a clip, and labels of three
    result = extract.run(config(rows, header="path,start_s,end_s,labels", task="dishwashing"))
    data = dataset.read_embeddings(result.path)
    assert data.logs.actions[:, 0].tolist() == [0.25] * 4 + [0.5] * 3
    assert [(row["video_id"], row["code"]) for row in result.failures] == [("long.mp4#t=0,1", "labels")]


def test_overlapping_segments_and_copies_share_a_split(config, encoder, tmp_path):
    shutil.copy(tmp_path / "videos/long.mp4", tmp_path / "videos/copy.mp4")
    rows = [f"long.mp4,{start / 2},{start / 2 + 0.6}" for start in range(12)]  # each overlaps the next
    rows += [f"copy.mp4,{7 + start},{8 + start}" for start in range(5)]  # these only meet
    rows += ["long.mp4,7.2,7.8", "other.mp4,,"]
    data = dataset.read_embeddings(extract.run(config(rows)).path)
    splits = np.array(data.videos.split)
    assert len(set(splits[:12])) == 1
    assert splits[17] == splits[12]
    assert len({str(split) for split in splits[12:17]}) == 2  # so segments of a file have splits of their own
    with raises("split-of-copies"):
        extract.run(config(["long.mp4,0,2,train", "copy.mp4,1,3,val"], header="path,start_s,end_s,split"))
    apart = config(["long.mp4,0,2,train", "copy.mp4,2,3,val"], header="path,start_s,end_s,split")
    assert dataset.read_embeddings(extract.run(apart).path).videos.split == ["train", "val"]


def test_a_segment_listed_under_two_ids_is_decoded_once(config, encoder, passes):
    rows = ["a,long.mp4,0,2", "b,long.mp4,0.0,2.0", "c,long.mp4,,2"]
    result = extract.run(config(rows, header="video_id,path,start_s,end_s"))
    data = dataset.read_embeddings(result.path)
    assert data.num_videos == 3 and result.num_decoded == 2
    np.testing.assert_array_equal(data.features[:3], data.features[3:6])
    np.testing.assert_array_equal(data.features[:3], data.features[6:9])
    assert len(set(data.videos.split)) == 1


def test_a_reference_of_novelty_may_be_segments(config, encoder, tmp_path):
    path = extract.run(config(ROWS)).path
    reference = tmp_path / "videos/reference.csv"
    reference.write_text(f"path,start_s,end_s\nother.mp4,,\nlong.mp4,,{32 / FPS}\n")
    corpus = novelty.find_corpus(NoveltyConfig(embeddings=path, reference=reference))
    assert np.flatnonzero(corpus.named).tolist() == list(range(4, 15))
    reference.write_text("path,start_s,end_s\nother.mp4,,\nlong.mp4,0,2\n")
    with raises("reference-missing"):
        novelty.find_corpus(NoveltyConfig(embeddings=path, reference=reference))
    reference.write_text("path,start_s,end_s\nother.mp4,,\nlong.mp4,3,2\n")
    with raises("reference-damaged"):
        novelty.find_corpus(NoveltyConfig(embeddings=path, reference=reference))
