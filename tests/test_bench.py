"""Every script of bench/ can be imported and prints its usage."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from pipeline.config import EmbeddingsTrainConfig, SimTrainConfig

SCRIPTS = sorted((Path(__file__).parent.parent / "bench").glob("*.py"))
NEEDS = {"sac": "stable_baselines3"}  # not a dependency of the package or its tests


@pytest.fixture
def load(monkeypatch):
    """Import a script by name without running it; its changes to sys.path are undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def load(name):
        if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
            pytest.skip(f"bench/{name}.py needs {NEEDS[name]}")
        spec = importlib.util.spec_from_file_location(f"bench_{name}", SCRIPTS[0].with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_there_are_scripts():
    assert {"sac", "sim", "train"} <= {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("name", [path.stem for path in SCRIPTS])
def test_each_script_prints_its_usage(name, load, monkeypatch, capsys):
    module = load(name)
    monkeypatch.setattr(sys, "argv", [f"bench/{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    assert f"usage: {name}.py" in capsys.readouterr().out


def test_ablation_variants_are_valid_settings(load):
    ablation = load("ablation")
    for settings, patch in ablation.VARIANTS.values():
        with patch():
            assert SimTrainConfig(out="run", **settings).source == "sim"
    for settings in ablation.OF_EMBEDDINGS.values():
        assert EmbeddingsTrainConfig(out="run", **settings).source == "embeddings"


def test_segments_are_measured(load, monkeypatch, capsys):
    segments = load("segments")
    monkeypatch.setattr(segments.encoders, "load_encoder", None)  # which the script sets
    monkeypatch.setattr(sys, "argv", ["bench/segments.py", "--segments", "2", "--size", "64", "64", "--repeats", "1"])
    segments.main()
    found = json.loads(capsys.readouterr().out)
    assert set(found["clips"].values()) == {4}
