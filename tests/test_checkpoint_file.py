import pickle
import zipfile

import numpy as np
import pytest
import torch
from raising import raises
from torch import nn

from pipeline.errors import CorruptError, UntrustedError
from pipeline.rl.sac import Agent
from pipeline.runs import RunDirectory, load_checkpoint, save_checkpoint
from pipeline.training.checkpoints import newest


def saved(tmp_path):
    torch.manual_seed(1)
    agent = Agent(nn.Identity(), 3, low=[0.0, -2.0], high=[1.0, 5.0])
    agent.observe_rewards(np.arange(5.0))
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"agent": agent.state_dict(), "meta": {"source": "sim", "seed": 3}, "episode": 7})
    return agent, path


def test_a_checkpoint_brings_back_the_same_policy_and_plain_values(tmp_path):
    agent, path = saved(tmp_path)
    state = load_checkpoint(path)
    assert (state["meta"], state["episode"]) == ({"source": "sim", "seed": 3}, 7)
    torch.manual_seed(99)
    other = Agent(nn.Identity(), 3, low=[0.0, -2.0], high=[1.0, 5.0])
    other.load_state_dict(state["agent"])
    observations = torch.randn(4, 3)
    np.testing.assert_array_equal(agent.act(observations), other.act(observations))
    assert float(other.reward_mean) == 2.0
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")], "a temporary file was left behind"


@pytest.mark.parametrize("position", [0, 0.3, 0.5, 0.9, 1])
def test_one_flipped_byte_is_found(tmp_path, position):
    _, path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)
    with raises("checkpoint-corrupt", CorruptError):
        load_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 1, 100, 5000])
def test_a_file_cut_short_or_of_another_kind_is_corrupt_even_without_a_checksum(tmp_path, keep):
    _, path = saved(tmp_path)
    for sidecar in tmp_path.glob("*.sha256"):
        sidecar.unlink()
    path.write_bytes(path.read_bytes()[:keep])
    with raises("checkpoint-corrupt", CorruptError):
        load_checkpoint(path)
    path.write_bytes(b"episode,profit\n1,20.5\n")
    with raises("checkpoint-corrupt", CorruptError):
        load_checkpoint(path)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


PICKLES = [lambda value, path, n=n: path.write_bytes(pickle.dumps(value, protocol=n)) for n in range(6)]


@pytest.mark.parametrize("write", [torch.save, *PICKLES])
def test_code_in_a_checkpoint_does_not_run(tmp_path, write):
    trace, path = tmp_path / "it-ran", tmp_path / "evil.pt"
    write({"agent": Payload(str(trace))}, path)
    with raises("checkpoint-untrusted", UntrustedError):
        load_checkpoint(path)
    assert not trace.exists(), "the payload ran"


def test_damage_to_a_name_is_no_untrusted_code(tmp_path):
    _, path = saved(tmp_path)
    data = path.read_bytes()
    for name in (b"_rebuild_tensor_v3", b"_rebuild_tensor_vx"):  # of other arguments; of nothing
        path.write_bytes(data.replace(b"_rebuild_tensor_v2", name, 1))
        with raises("checkpoint-corrupt", CorruptError):
            load_checkpoint(path)


def test_a_checkpoint_without_its_parts_is_stepped_over(tmp_path):
    _, whole = saved(tmp_path)
    whole.rename(whole.with_name("previous.pt"))
    (tmp_path / "last.pt.sha256").rename(tmp_path / "previous.pt.sha256")
    torch.save({"agent": {}}, whole)
    checkpoint = newest(RunDirectory(tmp_path))
    assert checkpoint is not None and checkpoint["episode"] == 7


def plain_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "write",
    [
        plain_zip,
        lambda path: torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False),
        lambda path: torch.save({"a": Payload(path)}, path, _use_new_zipfile_serialization=False),
        lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path)),
    ],
)
def test_whole_files_that_are_none_of_its_own_are_not_taken_for_damage(tmp_path, write):
    _, path = saved(tmp_path)
    write(path)
    with raises("checkpoint-untrusted", UntrustedError):
        load_checkpoint(path)


@pytest.mark.parametrize("value", [[1], 7, torch.zeros(3), None])
def test_a_checkpoint_must_be_a_dictionary(tmp_path, value):
    torch.save(value, tmp_path / "best.pt")
    with raises("checkpoint-corrupt", CorruptError):
        load_checkpoint(tmp_path / "best.pt")


def test_a_missing_checkpoint_says_what_to_do(tmp_path):
    with raises("checkpoint-missing") as caught:
        load_checkpoint(tmp_path / "last.pt")
    assert caught.value.exit_code == 2
