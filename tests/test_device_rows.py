import numpy as np
import pytest
import torch

from pipeline.training import device_rows
from pipeline.training.device_rows import DeviceRows

META = torch.device("meta")


@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy])
def test_rows_are_looked_up_by_arrays_and_tensors(of, tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.save(tmp_path / "array.npy", array)
    for kept in (array, np.load(tmp_path / "array.npy", mmap_mode="r")):
        rows = DeviceRows("numbers", kept, torch.device("cpu"))
        found = rows.look_up(of(np.array([4, 0, 4])))
        np.testing.assert_array_equal(found.numpy(), [[8, 9], [0, 1], [8, 9]])
        assert not rows.is_on_device, "a processor maps what is on the disk"


def test_on_a_device_they_are_looked_up_there(monkeypatch):
    monkeypatch.setattr(device_rows, "BLOCK", 4)
    rows = DeviceRows("frames", np.zeros((10, 3), np.uint8), META)
    found = rows.look_up(torch.empty(5, dtype=torch.int64, device=META))
    assert rows.is_on_device
    assert (found.shape, found.dtype, found.device) == ((5, 3), torch.uint8, META)


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_on_a_gpu_they_are_the_same_in_its_memory_and_from_the_host(share, monkeypatch, caplog):
    monkeypatch.setattr(device_rows, "SHARE", share)
    monkeypatch.setattr(device_rows, "BLOCK", 4)
    array = np.random.default_rng(0).random((10, 3), np.float32)
    rows = DeviceRows("numbers", array, torch.device("cuda", 0))
    assert rows.is_on_device == (share > 0) == ("stay on the host" not in caplog.text)
    found = rows.look_up(torch.tensor([7, 1], device="cuda"))
    np.testing.assert_array_equal(found.cpu().numpy(), array[[7, 1]])
