"""The features of many parts as one array, and its projection."""

import numpy as np
import pytest

from pipeline.encoders import fit_pca
from pipeline.extraction import joined
from pipeline.extraction.joined import JoinedFeatures, Projected, chosen_to_fit


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((count, 6)).astype(np.float32) for name, count in (("a", 7), ("b", 5), ("c", 3))}


PIECES = [("b", slice(0, 2)), ("a", slice(4, 7)), ("b", slice(2, 5)), ("c", slice(0, 3)), ("a", slice(0, 4))]


def whole(parts):
    return np.concatenate([parts[name][rows] for name, rows in PIECES])


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_any_slice_equals_that_of_the_whole_array(parts, monkeypatch, cache_bytes):
    monkeypatch.setattr(joined, "CACHE_BYTES", cache_bytes)
    found, expected = JoinedFeatures(PIECES, 6, parts.__getitem__), whole(parts)
    assert (found.shape, found.dtype) == ((15, 6), np.float32)
    for start in range(16):
        for stop in range(start, 17):
            np.testing.assert_array_equal(found[start:stop], expected[start:stop])
    np.testing.assert_array_equal(found[:], expected)


def test_parts_in_the_cache_are_not_read_again(parts, monkeypatch):
    read = []

    def part(name):
        read.append(name)
        return parts[name]

    features = JoinedFeatures(PIECES, 6, part)
    _ = features[:], features[:]
    assert read == ["b", "a", "c"]
    read.clear()
    monkeypatch.setattr(joined, "CACHE_BYTES", 7 * 6 * 4 + 3 * 6 * 4)  # a with c, but not with b
    _ = JoinedFeatures(PIECES, 6, part)[:]
    assert read == ["b", "a", "b", "c", "a"]


def test_videos_are_chosen_whole(parts):
    features = JoinedFeatures(PIECES, 6, parts.__getitem__)
    chosen = np.array([True, False, False, True, False])
    np.testing.assert_array_equal(features.of_videos(chosen), np.concatenate([parts["b"][:2], parts["c"]]))


def test_a_projection_equals_that_of_the_whole_array(parts):
    features, projector = JoinedFeatures(PIECES, 6, parts.__getitem__), fit_pca(whole(parts))
    projected = Projected(features, projector)
    assert projected.shape == (15, 128)
    np.testing.assert_array_equal(projected[3:9], projector.project(whole(parts))[3:9])


def test_a_projector_is_fitted_on_some_of_many_clips(monkeypatch):
    counts, train = np.full(10, 4), np.array([True] * 8 + [False] * 2)
    assert chosen_to_fit(counts, train).tolist() == train.tolist()
    monkeypatch.setattr(joined, "MAX_FIT_CLIPS", 16)
    assert np.flatnonzero(chosen_to_fit(counts, train)).tolist() == [0, 2, 4, 6]
    monkeypatch.setattr(joined, "MAX_FIT_CLIPS", 11)
    assert np.flatnonzero(chosen_to_fit(counts, train)).tolist() == [0, 3, 6]
    assert np.flatnonzero(chosen_to_fit(counts, ~train)).tolist() == [8, 9]
