"""Arrays too large for memory are mapped from unnamed files, and runs on them are the same."""

import resource

import numpy as np
import pandas as pd
import pytest
import torch
from raising import raises
from small_runs import embeddings_config, write_embeddings

from pipeline import dataset, train
from pipeline.dataset import scratch
from pipeline.errors import TryAgainError


def test_only_large_arrays_with_a_folder_are_mapped_and_no_file_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "MOST_IN_MEMORY", 4 * 10)
    for shape, folder, is_mapped in (((10,), tmp_path, False), ((11,), None, False), ((11,), tmp_path, True)):
        array = scratch.scratch_array(shape, np.float32, folder)
        array[:] = 7
        assert isinstance(array, np.memmap) == is_mapped
        assert array.dtype == np.float32 and array.sum() == 7 * len(array)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "MOST_IN_MEMORY", 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with raises("disk-full", TryAgainError):
            scratch.scratch_array((1001,), np.uint8, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("centre", ["corpus", "video"])
def test_a_run_on_mapped_embeddings_is_the_same_to_the_last_bit(tmp_path, monkeypatch, centre):
    path = write_embeddings(tmp_path / "embeddings.h5")
    train.run(embeddings_config(tmp_path, path, centre=centre))
    monkeypatch.setattr(scratch, "MOST_IN_MEMORY", 0)
    assert isinstance(dataset.read_embeddings(path, scratch=tmp_path).embeddings, np.memmap)
    train.run(embeddings_config(tmp_path, path, centre=centre, out=tmp_path / "mapped"))
    ours, mapped = (torch.load(tmp_path / name / "best.pt", weights_only=True)["agent"] for name in ("run", "mapped"))
    assert_equal(ours, mapped)
    pd.testing.assert_frame_equal(*(pd.read_csv(tmp_path / name / "metrics.csv") for name in ("run", "mapped")))


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other
