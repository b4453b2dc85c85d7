import hashlib
import json

import pandas as pd
import pytest
from raising import raises

from pipeline.dataset import Content, Segment, assign_splits
from pipeline.dataset.manifest import find_videos


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
    assert find_videos(f"{tmp_path}/a.mp4") == [Segment("a.mp4", (tmp_path / "a.mp4").resolve())]


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
    with raises("source-empty"):
        find_videos(str(tmp_path))
    with raises("source-empty"):
        find_videos(f"{tmp_path}/*.mp4")
    with raises("source-missing"):
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
        Segment("one", root / "one.mp4", split="test", task="dishwashing", labels=root / "one.csv"),
        Segment("sub/two.mp4", root / "sub/two.mp4", sha256="a" * 64),
    ]


def test_a_video_may_name_its_contributor(tmp_path):
    manifest = write(tmp_path / "m.csv", "path,contributor\na.mp4,Ann\nb.mp4,\n")
    assert [entry.contributor for entry in find_videos(str(manifest))] == ["Ann", None]


SEGMENTS = [
    ("one", "a.mp4", 5.0, None),
    (None, "a.mp4", 0.5, 7.25),
    (None, "a.mp4", None, 3.0),
    (None, "b.mp4", None, None),
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_segments_of_all_formats(tmp_path, suffix):
    table = pd.DataFrame(SEGMENTS, columns=["video_id", "path", "start_s", "end_s"])
    path = tmp_path / f"m.{suffix}"
    if suffix == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False) if suffix == "csv" else table.to_parquet(path)
    root = tmp_path.resolve()
    assert find_videos(str(path)) == [
        Segment("one", root / "a.mp4", 5.0, None),
        Segment("a.mp4#t=0.5,7.25", root / "a.mp4", 0.5, 7.25),
        Segment("a.mp4#t=,3", root / "a.mp4", None, 3.0),
        Segment("b.mp4", root / "b.mp4"),
    ]


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"nan"', '"1:30"', '"1_000"', "true", "[1]", "-1", '"0x10"'])
def test_wrong_times_fail_only_their_segment(tmp_path, value):
    rows = f'{{"path": "a.mp4", "start_s": {value}}}\n{{"path": "a.mp4", "start_s": 1, "end_s": 2}}\n'
    wrong, right = find_videos(str(write(tmp_path / "m.jsonl", rows)))
    assert wrong.error.code == "segment_not_seconds" and "m.jsonl row 1: start_s" in str(wrong.error)
    assert right == Segment("a.mp4#t=1,2", tmp_path.resolve() / "a.mp4", 1.0, 2.0)


def test_ids_keep_their_leading_zeros(tmp_path):
    manifest = write(tmp_path / "m.csv", "video_id,path\n007,a.mp4\n1e3,b.mp4\n")
    assert [entry.video_id for entry in find_videos(str(manifest))] == ["007", "1e3"]


def test_whole_floats_become_integer_ids_if_all_are_whole(tmp_path):
    rows = "video_id,path,contributor\n3.0,a.mp4,7.0\n4.0,b.mp4,\n"
    entries = find_videos(str(write(tmp_path / "m.csv", rows)))
    assert [(entry.video_id, entry.contributor) for entry in entries] == [("3", "7"), ("4", None)]
    versions = find_videos(str(write(tmp_path / "v.csv", "video_id,path\n2.0,a.mp4\n2.1,b.mp4\n")))
    assert [entry.video_id for entry in versions] == ["2.0", "2.1"]
    (tmp_path / "m.jsonl").write_text('{"path": "a.mp4", "video_id": 3.0}\n')
    assert find_videos(str(tmp_path / "m.jsonl"))[0].video_id == "3"


@pytest.mark.parametrize("word", ["nan", "None", "N/A", "NA", "null", "<NA>"])
def test_words_for_missing_values_are_refused_by_row(tmp_path, word):
    for column in ("video_id", "contributor", "labels", "split", "task", "sha256"):
        with raises("manifest-unreadable") as caught:
            find_videos(str(write(tmp_path / "m.csv", f"path,{column}\na.mp4,\nb.mp4,{word}\n")))
        assert f"{column} {word!r} in row 2" in str(caught.value)
    touch(tmp_path, "none")
    assert find_videos(str(write(tmp_path / "m.csv", "path\nnone\n")))[0].video_id == "none"


@pytest.mark.parametrize("row", ["c.mp4,train,", "c.mp4"])
def test_a_row_of_another_width_is_refused_by_its_line(tmp_path, row):
    text = f"path,split\na.mp4,train\n\nb.mp4,\n{row}\n"
    with raises("manifest-unreadable") as caught:
        find_videos(str(write(tmp_path / "m.csv", text)))
    assert "line 5 has" in str(caught.value)


@pytest.mark.parametrize("value", ["true", "[1]", '{"a": 1}'])
def test_values_that_are_neither_text_nor_number_are_refused(tmp_path, value):
    with raises("manifest-unreadable"):
        find_videos(str(write(tmp_path / "m.jsonl", f'{{"path": "a.mp4", "contributor": {value}}}\n')))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_manifests_of_other_programs(tmp_path, end, encoding):
    name = "a\u2028b\x85c"
    for suffix, lines in (
        (".csv", ["path,contributor", f"a.mp4,{name}", "b.mp4,"]),
        (".jsonl", [f'{{"path": "a.mp4", "contributor": "{name}"}}', "", '{"path": "b.mp4"}']),
    ):
        path = tmp_path / f"m{suffix}"
        path.write_bytes((end.join(lines) + end).encode(encoding))
        found = [(entry.video_id, entry.contributor) for entry in find_videos(str(path))]
        assert found == [("a.mp4", name), ("b.mp4", None)]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("path,fps\na.mp4,15\n", "manifest-unknown-column"),
        ("video_id,path\nx,a.mp4\nx,b.mp4\n", "manifest-repeated-id"),
        ("path\na.mp4\na.mp4\n", "manifest-repeated-id"),
        ("video_id\nx\n", "manifest-no-path"),
        ("path\na.mp4\n../b.mp4\n", "manifest-leads-out"),
        ("path\n/etc/passwd\n", "manifest-leads-out"),
        ("path\nhttp://host/a.mp4\n", "manifest-url"),
        ("path\nconcat:a.mp4\n", "manifest-url"),
        ("path,split\na.mp4,training\n", "manifest-unknown-split"),
        ("path,sha256\na.mp4,abc\n", "manifest-sha256"),
        ("path,labels\na.mp4,../l.csv\n", "manifest-leads-out"),
        ("path,task\na.mp4,gardening\n", "task-unknown"),
        ("path,task\na.mp4,../t.yaml\n", "manifest-leads-out"),
        ("path,task\na.mp4,http://host/t.yaml\n", "manifest-url"),
        ("path\n", "manifest-empty"),
        ("", "manifest-empty"),
        ("path,split\na.mp4,train,zzz\n", "manifest-unreadable"),
        ("path,split,split\na.mp4,train,test\n", "manifest-unreadable"),
    ],
)
def test_bad_manifests_are_refused(tmp_path, text, code):
    with raises(code) as caught:
        find_videos(str(write(tmp_path / "m.csv", text)))
    assert "m.csv" in str(caught.value)


def test_a_bad_row_is_named(tmp_path):
    with raises("manifest-leads-out") as caught:
        find_videos(str(write(tmp_path / "m.csv", "path\na.mp4\n../b.mp4\n")))
    assert "row 2" in str(caught.value)


def test_a_task_is_a_built_in_one_or_a_file_beside_the_manifest(tmp_path):
    touch(tmp_path, "tasks/mine.yaml", "dishwashing")  # a built-in name wins over a file
    manifest = write(tmp_path / "m.csv", "path,task\na.mp4,dishwashing\nb.mp4,tasks/mine.yaml\nc.mp4,\n")
    tasks = [entry.task for entry in find_videos(str(manifest))]
    assert tasks == ["dishwashing", str((tmp_path / "tasks/mine.yaml").resolve()), None]


# A folder with a manifest


@pytest.fixture
def demos(tmp_path):
    touch(tmp_path, "videos/a.mp4", "videos/b.mp4")
    write(tmp_path / "manifest.csv", "video_id,path,split\none,videos/a.mp4,test\n")
    return tmp_path


def test_a_folder_with_a_manifest_is_read_from_the_manifest(demos, caplog):
    caplog.set_level("INFO")
    assert find_videos(str(demos)) == find_videos(str(demos / "manifest.csv"))
    assert "manifest.csv" in caplog.text and "1 other videos" in caplog.text and "--bare" in caplog.text


def test_a_folder_with_an_unrelated_table_can_be_read_bare(tmp_path):
    touch(tmp_path, "a.mp4")
    write(tmp_path / "manifest.csv", "file,camera\na.mp4,left\n")
    with raises("manifest-unknown-column") as caught:
        find_videos(str(tmp_path))
    assert "--bare" in str(caught.value)
    assert [entry.video_id for entry in find_videos(str(tmp_path), bare=True)] == ["a.mp4"]


def test_a_bare_folder_is_searched(demos):
    assert [(entry.video_id, entry.split) for entry in find_videos(str(demos), bare=True)] == [
        ("videos/a.mp4", None),
        ("videos/b.mp4", None),
    ]
    with raises("bare-without-manifest"):
        find_videos(str(demos / "videos"), bare=True)
    for source in (demos / "manifest.csv", demos / "videos/a.mp4", demos / "videos/*.mp4"):
        with raises("bare-without-folder"):
            find_videos(str(source), bare=True)


def test_of_several_manifests_one_must_be_named(demos):
    write(demos / "manifest.jsonl", '{"path": "videos/b.mp4"}\n')
    with raises("manifest-several"):
        find_videos(str(demos))
    assert len(find_videos(str(demos / "manifest.jsonl"))) == 1
    assert len(find_videos(str(demos), bare=True)) == 2


def test_a_colon_in_a_real_name_is_no_protocol(tmp_path):
    touch(tmp_path, "cam:1.mp4")
    (entry,) = find_videos(str(write(tmp_path / "m.csv", "path\ncam:1.mp4\n")))
    assert entry.path.name == "cam:1.mp4"


def test_a_symlink_must_not_lead_out(tmp_path):
    touch(tmp_path, "outside.mp4", "root/inside.mp4")
    (tmp_path / "root/out.mp4").symlink_to(tmp_path / "outside.mp4")
    (tmp_path / "root/in.mp4").symlink_to(tmp_path / "root/inside.mp4")
    (entry,) = find_videos(str(write(tmp_path / "root/m.csv", "path\nin.mp4\n")))
    assert entry.path.name == "inside.mp4"
    with raises("manifest-leads-out"):
        find_videos(str(write(tmp_path / "root/m.csv", "path\nout.mp4\n")))


def test_bad_json_lines(tmp_path):
    with raises("manifest-unreadable"):
        find_videos(str(write(tmp_path / "m.jsonl", '{"path": "a.mp4"}\n{oops\n')))
    with raises("manifest-unreadable"):
        find_videos(str(write(tmp_path / "m.jsonl", '["a.mp4"]\n')))
    with raises("manifest-unreadable") as caught:
        find_videos(str(write(tmp_path / "m.jsonl", '{"path": "a\\ud800.mp4"}\n')))
    assert "line 1: " in str(caught.value)
    with raises("manifest-unreadable") as caught:
        find_videos(str(write(tmp_path / "m.jsonl", '{"path": "a.mp4"}\n{"path": "b.mp4", "path": "c.mp4"}\n')))
    assert "line 2: a name occurs twice" in str(caught.value)


# Splits


def test_splits_by_hash_of_the_id():
    entries = [Segment(str(k), None) for k in range(1000)]
    splits = [entry.split for entry in assign_splits(entries)]
    expected = ["val" if hashlib.sha256(e.video_id.encode()).digest()[0] < 51 else "train" for e in entries]
    assert splits == expected  # 51/256 = 0.199; the one byte decides all of these
    assert 150 < splits.count("val") < 250
    assert [entry.split for entry in assign_splits(entries[500:])] == splits[500:]


def test_a_given_split_is_kept():
    entries = [Segment(str(k), None, split=split) for k, split in enumerate(["test", "val", "train"] * 10)]
    assert assign_splits(entries) == entries


def test_copies_go_to_one_split():
    entries = [Segment(str(k), None) for k in range(40)]
    same = [Content("same")] * 40
    assert len({entry.split for entry in assign_splits(entries)}) == 2
    assert {entry.split for entry in assign_splits(entries, same)} == {assign_splits(entries)[0].split}
    entries[7] = Segment("7", None, split="test")
    assert {entry.split for entry in assign_splits(entries, same)} == {"test"}
    entries[9] = Segment("9", None, split="train")
    with raises("split-of-copies"):
        assign_splits(entries, same)


def test_the_example_manifests_read_the_same(request):
    folder = request.config.rootpath / "manifests"
    assert find_videos(str(folder / "example.csv")) == find_videos(str(folder / "example.jsonl"))


@pytest.mark.parametrize(
    ("text", "code"), [("path,\na.mp4,\n", "manifest-unreadable"), ("path,note\na.mp4,\n", "manifest-unknown-column")]
)
def test_an_empty_column_is_still_checked(tmp_path, text, code):
    with raises(code):
        find_videos(str(write(tmp_path / "m.csv", text)))


def test_whole_floats_of_json_are_ids_without_a_point(tmp_path):
    text = '{"path": "a.mp4", "video_id": 1.0, "contributor": 3.0}\n{"path": "b.mp4", "video_id": 2}\n'
    entries = find_videos(str(write(tmp_path / "m.jsonl", text)))
    assert [(entry.video_id, entry.contributor) for entry in entries] == [("1", "3"), ("2", None)]
