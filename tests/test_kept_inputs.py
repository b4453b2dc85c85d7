"""No output takes the place of an input, whatever name it goes by."""

import os
from pathlib import Path

import pytest
import yaml
from small_runs import write_embeddings

from pipeline import dataset, demo, novelty, simulate
from pipeline.cli import command
from pipeline.config import (
    ActConfig,
    DemoConfig,
    ExtractConfig,
    FrontierConfig,
    NoveltyConfig,
    NpyExportConfig,
    PolicyExportConfig,
    SimulateConfig,
    ValueConfig,
)
from pipeline.errors import VtpError
from pipeline.extraction.inputs import check_output
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


@pytest.mark.parametrize(
    ("name", "text", "is_ours"),
    [
        ("e.h5", "a table", False), ("e.h5", "", True), ("e.h5", "\x89HDF", False),
        ("e.yaml", "mine: 1", False), ("e.yaml", "source: [", False), ("e.yaml", "source: v\nclip_len: 16", True),
        ("e.parts/config.yaml", "mine: 1", False),
        ("failures.jsonl", "mine", False), ("failures.jsonl", '{"video_id": "a"}', False), ("failures.jsonl", "", True),
        ("failures.jsonl", '{"video_id": "a", "stage": "decode", "reason": "r"}\n', True),
    ],
)  # fmt: skip
def test_extraction_replaces_only_files_of_extraction(folder, name, text, is_ours):
    (folder / "out" / name).parent.mkdir(parents=True)
    (folder / "out" / name).write_text(text)
    cfg = ExtractConfig(source="in", out=folder / "out" / "e.h5")
    if is_ours:
        check_output(cfg, [])
        return
    with pytest.raises(VtpError) as caught:
        check_output(cfg, [])
    assert (caught.value.code, (folder / "out" / name).read_text()) == ("output-is-foreign", text)
    assert str(folder / "out" / name) in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("n.h5", "a table"), ("n.yaml", "mine: 1"), ("n.model", "a file")])
def test_novelty_replaces_only_its_own_files(folder, name, text):
    write_embeddings(folder / "e.h5")
    (folder / name).write_text(text)
    with pytest.raises(VtpError) as caught:
        novelty.run(NoveltyConfig(embeddings=folder / "e.h5", out=folder / "n.h5"))
    assert (caught.value.code, (folder / name).read_text()) == ("output-is-foreign", text)


@pytest.mark.parametrize("name", ["config.yaml", "manifest.csv", "videos", "labels", "task.yaml"])
def test_simulate_replaces_only_its_own_files(folder, name):
    cfg = SimulateConfig(out=folder / "d", videos=2, steps=1)
    (folder / "d").mkdir()
    (folder / "d" / name).mkdir()
    with pytest.raises(VtpError) as caught:
        simulate.run(cfg)
    assert caught.value.code == "output-is-foreign"
    assert [path.name for path in (folder / "d").iterdir()] == [name]
    (folder / "d" / name).rmdir()
    for _ in range(2):  # its own it makes again
        simulate.run(cfg)


def test_the_demo_replaces_only_its_own_files(folder):
    (folder / "d").mkdir()
    (folder / "d" / "embeddings.h5").write_text("mine")
    with pytest.raises(VtpError) as caught:
        demo.run(DemoConfig(out=folder / "d"), stage=lambda label: pytest.fail(label))
    assert caught.value.code == "folder-is-no-demo"
    assert [path.name for path in (folder / "d").iterdir()] == ["embeddings.h5"]
