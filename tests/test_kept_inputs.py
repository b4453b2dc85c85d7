"""No output takes the place of an input, whatever name it goes by."""

import os
from pathlib import Path

import pytest
import yaml
from small_runs import write_embeddings

from pipeline import dataset
from pipeline.cli import command
from pipeline.config import (
    ActConfig,
    ExtractConfig,
    FrontierConfig,
    NoveltyConfig,
    NpyExportConfig,
    PolicyExportConfig,
    SimulateConfig,
    ValueConfig,
)
from pipeline.errors import VtpError
from pipeline.kept_inputs import keep_inputs, settings_from


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "m.csv").write_text("path\n")
    (tmp_path / "link.csv").symlink_to("in/m.csv")
    os.link(tmp_path / "in" / "m.csv", tmp_path / "hard.csv")
    (tmp_path / "folder").symlink_to("in")
    return tmp_path


def refused(cfg, *written, **more):
    with pytest.raises(VtpError) as caught:
        keep_inputs(cfg, [Path(path) for path in written], **more)
    assert (caught.value.code, caught.value.exit_code) == ("output-is-input", 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "out", ["in/m.csv", "link.csv", "hard.csv", "in/../in/m.csv", "folder/m.csv", "in/m.csv/below.h5", "in"]
)
def test_every_name_of_an_input_is_refused(folder, out):
    refused(ExtractConfig(source="link.csv"), out)
    refused(ExtractConfig(source=str(folder / "in" / "m.csv")), "other.h5", out)
    refused(ExtractConfig(source="elsewhere"), folder / out, reads=[folder / "in" / "m.csv"])


def test_outputs_beside_and_within_an_input_s_folder_are_not(folder):
    keep_inputs(ExtractConfig(source="in"), [Path("in/e.h5"), Path("in/e.yaml"), Path("in/e.parts")])
    keep_inputs(FrontierConfig(run=Path("in")), [Path("in/experiments/frontier.csv")])


@pytest.mark.parametrize("name", ["source", "task", "weights", "projector"])
def test_all_settings_that_name_a_file_name_an_input(folder, name):
    refused(ExtractConfig(**{"source": "x", name: "hard.csv"}), "in/m.csv")


@pytest.mark.parametrize(
    "cfg", [PolicyExportConfig(run="run", to="onnx"), SimulateConfig(logger="human"), NpyExportConfig(split="train")]
)
def test_a_word_of_several_names_no_file(folder, cfg):
    for word in ("onnx", "human", "npy", "train"):
        (folder / word).mkdir()
    keep_inputs(cfg, [folder / "onnx", folder / "human", folder / "npy", folder / "train"])


def test_all_of_a_model_s_folder_is_read(folder):
    refused(NoveltyConfig(embeddings="none.h5", model="folder"), "in/m.csv")


def test_a_file_that_is_not_there_is_an_input_all_the_same(folder):
    refused(ActConfig(policy="run"), "gone.mp4", reads=[folder / "in" / ".." / "gone.mp4"])


def test_the_videos_of_embeddings_are_inputs(folder):
    path = folder / "e.h5"
    write_embeddings(path)
    refused(ValueConfig(embeddings=path), dataset.video_paths(path)[0])


def test_settings_written_by_hand_are_an_input_and_saved_ones_are_not(folder):
    (folder / "mine.yaml").write_text("# mine\nfps: 15\n")
    (folder / "saved.yaml").write_text(yaml.safe_dump({"fps": 15.0}))
    assert [command._is_saved(folder / name) for name in ("mine.yaml", "saved.yaml")] == [False, True]
    with settings_from(folder / "mine.yaml"):
        refused(ExtractConfig(source="x"), "mine.yaml")
    keep_inputs(ExtractConfig(source="x"), [folder / "mine.yaml"])
