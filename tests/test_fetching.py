"""Files are hashed ahead of the decoders, in order. What is in object storage is tested with the storage."""

import hashlib
import threading
from concurrent.futures import CancelledError, wait

import pytest
from factories import write_video
from raising import raises

from pipeline.dataset import Content, Segment
from pipeline.extraction import fetching
from pipeline.extraction.fetching import Fetching, file_stamp
from pipeline.extraction.file_contents import read_contents
from pipeline.extraction.shards import Done, Ledger
from pipeline.files import file_sha256
from pipeline.video import VideoError


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"{number}.mp4", 6, first=10 * number) for number in range(6)]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def segment(path, **fields):
    return Segment(video_id=path.name, path=path, **fields)


def ledger(tmp_path, paths, rows=()):
    made = Ledger(tmp_path / "ledger.jsonl", [segment(path) for path in paths])
    for row in rows:
        made.record(row)
    made.write()
    return Ledger(tmp_path / "ledger.jsonl", [segment(path) for path in paths])


def hand_out(ahead, queue, fail=lambda *args: pytest.fail("failed")):
    """Take all files from the queue, as an extraction does when decoders are idle."""
    while queue:
        path = ahead.next(queue, is_urgent=True)
        yield path, read_contents(path, queue.pop(path), fail, ahead)


def test_local_files_come_in_order_whichever_is_hashed_first(paths, tmp_path, monkeypatch):
    may_end = threading.Event()

    def hash_first_last(path, **options):
        assert path != paths[0] or may_end.wait(30)
        return file_sha256(path, **options)

    monkeypatch.setattr(fetching, "file_sha256", hash_first_last)
    queue = {path: [segment(path)] for path in paths}
    with Fetching(ledger(tmp_path, paths), {}, pytest.fail) as ahead:
        assert ahead.next(queue, is_urgent=False) is None  # it is not waited for
        wait([ahead._under_way[path] for path in paths[1:4]])
        assert ahead.next(queue, is_urgent=False) is None, "the first one is still being hashed"
        may_end.set()
        found = [(path, [one.content for one in readings]) for path, readings in hand_out(ahead, queue)]
    assert found == [(path, [Content(sha256(path), (None, None))]) for path in paths]


def test_only_a_few_files_are_hashed_ahead(paths, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(fetching, "file_sha256", lambda path, **_: begun.append(path) or "0" * 64)
    queue = {path: [segment(path)] for path in paths}
    with Fetching(ledger(tmp_path, paths), {}, pytest.fail, ahead=5) as ahead:
        assert ahead.next(queue, is_urgent=True) == paths[0]
    assert set(begun) <= set(paths[:5])


def test_a_file_that_was_hashed_before_is_not_read_again(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "file_sha256", lambda *args, **_: pytest.fail("hashed again"))
    row = Done(paths[0].name, str(paths[0]), file_stamp(paths[0]), "ab" * 32, "part-0.h5", None, None)
    queue = {paths[0]: [segment(paths[0])]}
    with Fetching(ledger(tmp_path, paths, [row]), {}, pytest.fail) as ahead:
        ((_, (reading,)),) = hand_out(ahead, queue)
    assert reading.content.sha256 == "ab" * 32


def test_files_that_cannot_be_read_fail_alone(paths, tmp_path, monkeypatch):
    text, gone, wrong = tmp_path / "text.mp4", tmp_path / "gone.mp4", paths[1]
    text.write_text("no video")

    def broken(path, **options):
        if path == paths[2]:
            raise OSError(5, "Input/output error")
        return file_sha256(path, **options)

    monkeypatch.setattr(fetching, "file_sha256", broken)
    files = [paths[0], text, gone, wrong, paths[2], paths[3]]
    queue = {path: [segment(path, sha256="a" * 64 if path == wrong else None)] for path in files}
    failed = {}
    with Fetching(ledger(tmp_path, files), {}, pytest.fail) as ahead:
        found = list(hand_out(ahead, queue, lambda entry, error: failed.update({entry.path: error.code})))
    assert failed == {text: "not_video", gone: "missing", wrong: "checksum", paths[2]: "unreadable"}
    assert [path for path, readings in found if readings] == [paths[0], paths[3]]
    with raises("missing", VideoError), Fetching(ledger(tmp_path, files), {}, pytest.fail) as ahead:
        assert ahead.next({gone: []}, is_urgent=True) == gone
        ahead.hashed(gone)


def test_a_copy_and_a_changed_file_have_their_own_hash(paths, tmp_path):
    copy, other = tmp_path / "copy.mp4", tmp_path / "other.mp4"
    copy.write_bytes(paths[0].read_bytes())
    other.write_bytes(paths[0].read_bytes() + bytes.fromhex("0000000866726565"))
    queue = {path: [segment(path)] for path in (paths[0], copy, other)}
    with Fetching(ledger(tmp_path, paths), {}, pytest.fail) as ahead:
        contents = [readings[0].content for _, readings in hand_out(ahead, queue)]
    assert contents[0] == contents[1] != contents[2]


def test_an_interrupted_hash_ends(paths):
    stop = threading.Event()
    assert file_sha256(paths[0], stop=stop) == sha256(paths[0])
    stop.set()
    with pytest.raises(CancelledError):
        file_sha256(paths[0], stop=stop)
