import h5py
import pytest
from factories import assert_equal, small_part
from raising import raises

from pipeline import dataset
from pipeline.errors import CorruptError


@pytest.fixture
def part():
    return small_part()


def test_part_round_trip(tmp_path, part):
    dataset.write_part(tmp_path / "part.h5", part)
    read = dataset.read_part(tmp_path / "part.h5")
    assert_equal(read.clips, part.clips)
    assert_equal(read.videos, part.videos)
    assert read.settings == part.settings


def test_parts_of_the_first_edition_are_read(tmp_path, part):
    """A new schema of the embeddings file needs no decoding."""
    dataset.write_part(tmp_path / "part.h5", part)
    with h5py.File(tmp_path / "part.h5") as file:
        assert file.attrs["schema_version"] == 1


def test_damaged_settings_are_named(tmp_path, part):
    dataset.write_part(tmp_path / "part.h5", part)
    with h5py.File(tmp_path / "part.h5", "a") as file:
        file.attrs["settings"] = "{oops"
    with raises("file-damaged", CorruptError):
        dataset.read_part(tmp_path / "part.h5")


@pytest.mark.parametrize("share", [0, 0.1, 0.9])
def test_a_part_cut_off_names_itself(tmp_path, part, share):
    path = tmp_path / "part-1.h5"
    dataset.write_part(path, part)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with raises("file-damaged", CorruptError) as caught:
        dataset.read_part(path)
    assert "part-1.h5" in str(caught.value) and "run the same extraction again" in str(caught.value)
