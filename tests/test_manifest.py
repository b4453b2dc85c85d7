import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from pipeline.dataset.manifest import VideoEntry, assign_splits, find_videos, read_labels
from pipeline.errors import VtpError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path, text):
    path.write_text(text)
    return path


# Folders, globs, single files


def test_folder_is_searched_sorted_and_deep(tmp_path):
    touch(tmp_path, "b.mp4", "a/z.MKV", "a/b/c.avi", "notes.txt", ".hidden.mp4")
    entries = find_videos(str(tmp_path))
    assert [entry.video_id for entry in entries] == ["a/b/c.avi", "a/z.MKV", "b.mp4"]
    assert entries[2].path == (tmp_path / "b.mp4").resolve()


def test_glob_and_single_file(tmp_path):
    touch(tmp_path, "b.mp4", "a.mp4", "sub/c.mp4")
    assert [entry.path.name for entry in find_videos(f"{tmp_path}/*.mp4")] == ["a.mp4", "b.mp4"]
    assert [entry.path.name for entry in find_videos(f"{tmp_path}/**/*.mp4")] == ["a.mp4", "b.mp4", "c.mp4"]
    assert find_videos(f"{tmp_path}/a.mp4") == [VideoEntry("a.mp4", (tmp_path / "a.mp4").resolve())]


def test_ids_of_a_glob_are_the_same_from_anywhere(tmp_path, monkeypatch):
    touch(tmp_path, "in/a.mp4", "in/sub/b.mp4")
    monkeypatch.chdir(tmp_path)
    ids = [entry.video_id for entry in find_videos("in/**/*.mp4")]
    assert ids == ["a.mp4", "sub/b.mp4"]
    assert [entry.video_id for entry in find_videos(f"{tmp_path}/in/**/*.mp4")] == ids


def test_loops_of_symlinks_are_left_to_fail(tmp_path):
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "folder.mp4").symlink_to(tmp_path)
    write(tmp_path / "m.csv", "path\nloop.mp4\n")
    for source in (tmp_path, tmp_path / "l*.mp4", tmp_path / "m.csv"):
        assert [entry.video_id for entry in find_videos(str(source))] == ["loop.mp4"]


def test_nothing_there(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(VtpError, match=r"holds no videos \(1 other files\); give a folder"):
        find_videos(str(tmp_path))
    with pytest.raises(VtpError, match=r"matches no file; quote the glob"):
        find_videos(f"{tmp_path}/*.mp4")
    with pytest.raises(VtpError, match=r"does not exist; give a folder"):
        find_videos(f"{tmp_path}/none.mp4")


# Manifests

ROWS = [
    {"video_id": "one", "path": "one.mp4", "split": "test", "task": "dishwashing", "labels": "one.csv"},
    {"path": "sub/two.mp4", "sha256": "A" * 64},
]


def as_csv(path):
    pd.DataFrame(ROWS).to_csv(path, index=False)


def as_jsonl(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def as_parquet(path):
    pd.DataFrame(ROWS).to_parquet(path)


@pytest.mark.parametrize("write_rows", [as_csv, as_jsonl, as_parquet])
def test_all_formats_read_the_same(tmp_path, write_rows):
    path = tmp_path / f"manifest.{write_rows.__name__.removeprefix('as_')}"
    write_rows(path)
    root = tmp_path.resolve()
    assert find_videos(str(path)) == [
        VideoEntry("one", root / "one.mp4", split="test", task="dishwashing", labels=root / "one.csv"),
        VideoEntry("sub/two.mp4", root / "sub/two.mp4", sha256="a" * 64),
    ]


def test_a_video_may_name_its_contributor(tmp_path):
    manifest = write(tmp_path / "m.csv", "path,contributor\na.mp4,Ann\nb.mp4,\n")
    assert [entry.contributor for entry in find_videos(str(manifest))] == ["Ann", None]


def test_ids_keep_their_leading_zeros(tmp_path):
    manifest = write(tmp_path / "m.csv", "video_id,path\n007,a.mp4\nNA,b.mp4\n")
    assert [entry.video_id for entry in find_videos(str(manifest))] == ["007", "NA"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,fps\na.mp4,15\n", r"unknown column 'fps'; use video_id, path, sha256, split, task, labels"),
        ("video_id,path\nx,a.mp4\nx,b.mp4\n", r"video_id 'x' 2 times; give each video an id"),
        ("path\na.mp4\na.mp4\n", r"video_id 'a.mp4' 2 times"),
        ("video_id\nx\n", r"row 1 has no path; give"),
        ("path\na.mp4\n../b.mp4\n", r"row 2: '../b.mp4' leads out of .*; keep files"),
        ("path\n/etc/passwd\n", r"row 1: '/etc/passwd' leads out of"),
        ("path\nhttp://host/a.mp4\n", r"row 1: 'http://host/a.mp4' is a URL"),
        ("path\nconcat:a.mp4\n", r"has a protocol prefix"),
        ("path,split\na.mp4,training\n", r"row 1: split 'training' is unknown; use train, val, test"),
        ("path,sha256\na.mp4,abc\n", r"sha256 'abc' is not 64 hexadecimal digits"),
        ("path,labels\na.mp4,../l.csv\n", r"'../l.csv' leads out of"),
        ("path\n", r"has no rows"),
        ("", r"has no rows"),
        ("path,split\na.mp4,train,zzz\n", r"more fields than the header"),
    ],
)
def test_bad_manifests_say_what_and_how(tmp_path, text, message):
    with pytest.raises(VtpError, match=message) as caught:
        find_videos(str(write(tmp_path / "m.csv", text)))
    assert "\n" not in str(caught.value)


def test_a_symlink_must_not_lead_out(tmp_path):
    touch(tmp_path, "outside.mp4", "root/inside.mp4")
    (tmp_path / "root/out.mp4").symlink_to(tmp_path / "outside.mp4")
    (tmp_path / "root/in.mp4").symlink_to(tmp_path / "root/inside.mp4")
    (entry,) = find_videos(str(write(tmp_path / "root/m.csv", "path\nin.mp4\n")))
    assert entry.path.name == "inside.mp4"
    with pytest.raises(VtpError, match="leads out"):
        find_videos(str(write(tmp_path / "root/m.csv", "path\nout.mp4\n")))


def test_a_colon_in_a_real_name_is_no_protocol(tmp_path):
    touch(tmp_path, "cam:1.mp4")
    (entry,) = find_videos(str(write(tmp_path / "m.csv", "path\ncam:1.mp4\n")))
    assert entry.path.name == "cam:1.mp4"


def test_bad_json_lines(tmp_path):
    with pytest.raises(VtpError, match="cannot be read"):
        find_videos(str(write(tmp_path / "m.jsonl", '{"path": "a.mp4"}\n{oops\n')))
    with pytest.raises(VtpError, match="no JSON object"):
        find_videos(str(write(tmp_path / "m.jsonl", '["a.mp4"]\n')))


# Splits


def test_splits_by_hash_of_the_id():
    entries = [VideoEntry(str(k), None) for k in range(1000)]
    splits = [entry.split for entry in assign_splits(entries)]
    expected = ["val" if hashlib.sha256(e.video_id.encode()).digest()[0] < 51 else "train" for e in entries]
    assert splits == expected  # 51/256 = 0.199; the one byte decides all of these
    assert 150 < splits.count("val") < 250
    assert [entry.split for entry in assign_splits(entries[500:])] == splits[500:]


def test_a_given_split_is_kept():
    entries = [VideoEntry(str(k), None, split=split) for k, split in enumerate(["test", "val", "train"] * 10)]
    assert assign_splits(entries) == entries


def test_copies_go_to_one_split():
    entries = [VideoEntry(str(k), None) for k in range(40)]
    assert len({entry.split for entry in assign_splits(entries)}) == 2
    assert {entry.split for entry in assign_splits(entries, ["same"] * 40)} == {assign_splits(entries)[0].split}
    entries[7] = VideoEntry("7", None, split="test")
    assert {entry.split for entry in assign_splits(entries, ["same"] * 40)} == {"test"}
    entries[9] = VideoEntry("9", None, split="train")
    with pytest.raises(VtpError, match=r"7 \(test\) and 9 \(train\) are the same video; give them one split"):
        assign_splits(entries, ["same"] * 40)


# Labels


def test_labels_are_sorted_and_typed(tmp_path):
    path = write(tmp_path / "l.csv", "step,context,speed,attempts,errors\n1,,0.5,3,0\n0,pan,1,,\n")
    table = read_labels(path)
    assert table["step"].tolist() == [0, 1]
    assert table["context"].tolist() == ["pan", ""]
    assert table["speed"].tolist() == [1.0, 0.5]
    assert np.isnan(table["attempts"][0])
    assert table["attempts"][1] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,pace\n0,1\n", "unknown column 'pace'; use step, context, speed, care, attempts, errors, novel"),
        ("speed\n1\n", "no column step"),
        ("step,speed\n0,1.5\n", "speed '1.5' in row 1 is not a number from 0 to 1"),
        ("step,speed\n0,fast\n", "speed 'fast' in row 1 is not a number"),
        ("step,attempts\n0,2\n1,1.5\n", "attempts '1.5' in row 2 is not a whole number from 0 on"),
        ("step,errors\n0,-1\n", "errors '-1' in row 1 is not"),
        ("step,attempts,errors\n0,2,3\n", "step 0 has more errors than attempts"),
        ("step\n0\n2\n", "steps do not count from 0 to 1 without a gap"),
        ("step\n0\n0\n", "steps do not count"),
    ],
)
def test_bad_labels_say_what_and_how(tmp_path, text, message):
    with pytest.raises(VtpError, match=message):
        read_labels(write(tmp_path / "l.csv", text))


def test_missing_labels(tmp_path):
    with pytest.raises(VtpError, match="do not exist; correct the manifest's labels column"):
        read_labels(tmp_path / "none.csv")


def test_the_example_manifests_read_the_same(request):
    folder = request.config.rootpath / "manifests"
    assert find_videos(str(folder / "example.csv")) == find_videos(str(folder / "example.jsonl"))
    assert len(read_labels(folder / "labels/sink-01.csv")) == 4
