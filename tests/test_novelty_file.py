import h5py
import numpy as np
import pytest
from raising import raises

from pipeline import dataset
from pipeline.errors import CorruptError


def write_novelty(path, weight, content):
    with h5py.File(path, "w") as file:
        file.attrs.update({"schema_version": dataset.NOVELTY_SCHEMA_VERSION, "content_sha256": content})
        file["weight"] = np.asarray(weight, np.float32)


def test_novelty_weights_belong_to_their_embeddings(tmp_path):
    path = tmp_path / "novelty.h5"
    write_novelty(path, [1, 0.5, 2], "a" * 64)
    assert dataset.read_novelty_weights(path, "a" * 64).tolist() == [1, 0.5, 2]
    with raises("novelty-other-embeddings"):
        dataset.read_novelty_weights(path, "b" * 64)


@pytest.mark.parametrize("weight", [[1, np.nan], [1, -1]])
def test_invalid_novelty_weights_are_refused(tmp_path, weight):
    write_novelty(tmp_path / "novelty.h5", weight, "a" * 64)
    with raises("novelty-weights", CorruptError):
        dataset.read_novelty_weights(tmp_path / "novelty.h5", "a" * 64)


def test_measures_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    measures = {
        "gap": rng.random((3, 4), np.float32),
        "motion_energy": rng.random(3, np.float32),
        "texture_energy": rng.random(3, np.float32),
        "thumbnails": rng.random((3, 2, 4, 4, 3)).astype(np.float16),
    }
    dataset.write_measures(tmp_path / "block.h5", measures, {"draws": 1})
    read = dataset.read_measures(tmp_path / "block.h5", {"draws": 1})
    for name, values in measures.items():
        np.testing.assert_array_equal(read[name], values)
    with raises("measures-settings"):
        dataset.read_measures(tmp_path / "block.h5", {"draws": 2})
