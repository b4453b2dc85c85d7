from dataclasses import replace

import numpy as np
from factories import small_part
from hypothesis import given
from hypothesis import strategies as st
from raising import raises

from pipeline import dataset


def data_of(counts, splits, *, overlap_s=0.0):
    """Videos with `counts` clips of a second each, in `splits`; clips start `overlap_s` before the previous ends."""
    num_clips = sum(counts)
    start_s = np.concatenate([np.arange(count) * (1 - overlap_s) for count in counts])
    frames = np.zeros(num_clips, np.int64)
    offset = np.concatenate([[0], np.cumsum(counts)])
    clips = dataset.Clips(np.zeros((num_clips, 4), np.float32), frames, start_s, start_s + 1, frames, offset)
    names = [str(number) for number in range(len(counts))]
    videos = replace(small_part().videos, id=names, path=names, split=splits)
    return dataset.Embeddings(
        embeddings=np.zeros((num_clips, 128), np.float32), clips=clips, videos=videos, logs=None,
        projector_mean=np.zeros(4), projector_components=np.zeros((128, 4)), projector_scale=1.0, attrs={},
    )  # fmt: skip


def test_the_val_split_is_held_out():
    train, held, how = dataset.split_rows(data_of([3, 2, 4, 1], ["train", "val", "test", "train"]))
    assert train.tolist() == [[0, 3], [9, 10]]
    assert held.tolist() == [3, 4]
    assert how == "1 videos of the val split"


def test_without_both_splits_the_last_fifth_of_each_video_is_held_out():
    train, held, _ = dataset.split_rows(data_of([10, 2, 5], ["train", "train", "test"]))
    assert train.tolist() == [[0, 8], [10, 11]]
    assert held.tolist() == [8, 9, 11]


def test_clips_that_share_frames_with_a_held_one_are_left_out():
    train, held, _ = dataset.split_rows(data_of([10], ["val"], overlap_s=0.5))
    assert train.tolist() == [[0, 7]]  # clip 7 ends half a second into clip 8
    assert held.tolist() == [8, 9]


def test_no_training_clips_is_an_error():
    for counts, splits in (([1], ["train"]), ([5, 3], ["test", "test"])):
        with raises("split-nothing-to-train-on"):
            dataset.split_rows(data_of(counts, splits))


@given(counts=st.lists(st.integers(2, 12), min_size=1, max_size=6), data=st.data())
def test_no_clip_is_both_trained_on_and_held_out(counts, data):
    splits = data.draw(st.lists(st.sampled_from(["train", "val"]), min_size=len(counts), max_size=len(counts)))
    file = data_of(counts, splits)
    train, held, _ = dataset.split_rows(file)
    learned = np.concatenate([np.arange(start, end) for start, end in train])
    assert set(learned) | set(held) == set(range(sum(counts))) and not set(learned) & set(held)
    assert dataset.video_of(file, np.arange(sum(counts))).tolist() == np.repeat(range(len(counts)), counts).tolist()


def test_segments_that_overlap_with_held_clips_of_their_file_lose_the_shared_ones():
    data = data_of([10, 10, 5], ["train"] * 3)
    start_s = np.concatenate([np.arange(10.0), np.arange(5.0, 15.0), np.arange(5.0)])  # 8, 9 are held, and 13, 14
    clips = replace(data.clips, start_s=start_s, end_s=start_s + 1)
    one_file = replace(data, clips=clips, videos=replace(data.videos, sha256=["a", "a", "b"]))
    train, held, _ = dataset.split_rows(one_file)
    assert held.tolist() == [8, 9, 18, 19, 24]
    assert train.tolist() == [[0, 8], [10, 13], [15, 18], [20, 24]]  # without those that start at 8 and 9 s
    apart = replace(one_file, videos=replace(data.videos, sha256=["a", "c", "b"]))
    assert dataset.split_rows(apart)[0].tolist() == [[0, 8], [10, 18], [20, 24]]


def test_copies_of_one_video_hold_out_the_same_clips():
    data = data_of([5, 5], ["train"] * 2)
    copies = replace(data, videos=replace(data.videos, sha256=["a", "a"]))
    assert dataset.split_rows(copies)[0].tolist() == [[0, 4], [5, 9]]
