import pytest
from hypothesis import given
from hypothesis import strategies as st
from raising import raises

from pipeline.config import ExtractConfig
from pipeline.dataset import Segment
from pipeline.errors import CorruptError
from pipeline.extraction import shards


def test_split_by_cost_by_hand():
    # 9 alone; 5 beside 4; the 3 to the 8, as it is the lesser of (9, 9, 8)
    assert shards.split_by_cost([4, 9, 8, 5, 3], 3) == [2, 0, 1, 2, 1]


@given(costs=st.lists(st.integers(0, 1 << 40), max_size=60), count=st.integers(1, 9))
def test_no_shard_has_a_video_too_many(costs, count):
    owners = shards.split_by_cost(costs, count)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == shard) for shard in range(count)]
    assert sum(loads) == sum(costs)
    assert max(loads) <= sum(costs) / count + max(costs, default=0)


def test_shares_cover_all_videos_once(tmp_path):
    entries = []
    for number, size in enumerate([1 << 20, 10, 1 << 19, 1 << 19, 0]):
        (tmp_path / str(number)).write_bytes(bytes(size))
        entries.append(Segment(str(number), tmp_path / str(number)))
    entries.append(Segment("gone", tmp_path / "gone"))
    shares = [[entry.video_id for entry in shards.share(entries, 2, shard)] for shard in range(2)]
    assert shares == [["0", "1", "gone"], ["2", "3", "4"]]  # a video costs something, however small
    assert shards.share(entries, 1, 0) == entries


@pytest.mark.parametrize("variable", shards.ARRAY_INDEX)
def test_auto_reads_the_array_index(monkeypatch, variable):
    monkeypatch.setenv(variable, "3")
    assert shards.shard_number(7, "auto") == 3
    with raises("shard-out-of-range"):
        shards.shard_number(3, "auto")
    for text in ("", " ", "-1", "1.0", "third", "²"):
        monkeypatch.setenv(variable, text)
        with raises("shard-no-array") as caught:
            shards.shard_number(3, "auto")
        assert f"{variable} is {text!r}" in str(caught.value)


def test_shards_are_numbered_from_zero(monkeypatch):
    assert shards.shard_number(1, None) == 0
    assert shards.shard_number(4, 2) == 2
    with raises("shard-missing"):
        shards.shard_number(4, None)
    with raises("shard-no-array"):
        shards.shard_number(4, "auto")
    with pytest.raises(ValueError, match=r"shard \(4\) is not below shards \(4\); count from 0"):
        ExtractConfig(source="x", shards=4, shard=4)


def test_ledger_round_trip(tmp_path):
    entries = [Segment(name, tmp_path / name) for name in ("a", "odd \udcff", "c")]
    ledger = shards.Ledger(tmp_path / "shard.jsonl", entries)
    done = shards.Done("a", str(tmp_path / "a"), (5, 1, 2), "a" * 64, "part-1.h5")
    failed = shards.Failed("odd \udcff", "odd \udcff", "decode", "empty", "the file is empty", "fetch it again")
    ledger.record(done)
    ledger.record(failed)
    ledger.write()
    assert shards.read_ledger(tmp_path / "shard.jsonl") == [done, failed]
    again = shards.Ledger(tmp_path / "shard.jsonl", entries)
    assert (ledger.failures, again.failures) == ([failed], [])  # what failed is tried again
    assert again.known_sha256(entries[0].path, (5, 1, 2)) == "a" * 64
    assert again.known_sha256(entries[0].path, (5, 1, 3)) is None
    assert again.known_sha256(entries[1].path, (5, 1, 2)) is None
    assert shards.Ledger(tmp_path / "shard.jsonl", entries[1:]).known_sha256(entries[0].path, (5, 1, 2)) is None


def test_a_damaged_ledger_is_named(tmp_path):
    for text in ("{oops", "{}", '{"stamp": [1, 2, 3]}', "[1]"):
        (tmp_path / "shard.jsonl").write_text(text)
        with raises("ledger-damaged", CorruptError):
            shards.read_ledger(tmp_path / "shard.jsonl")
