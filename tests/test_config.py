import inspect
import typing
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from pipeline import config

MODELS = [model for _, model in inspect.getmembers(config, inspect.isclass) if issubclass(model, config.Config)]
STAGES = [model for model in MODELS if model is not config.Config]
REQUIRED = {"source": "sim", "run": "runs/x", "runs": ["runs/x", "runs/y"], "to": "onnx", "policy": "runs/x"}


def build(model, /, **values):
    needed = {name: REQUIRED[name] for name, field in model.model_fields.items() if field.is_required()}
    return model(**needed | values)


@pytest.mark.parametrize("model", STAGES)
def test_defaults_satisfy_their_own_rules(model):
    build(model, **{n: f.default for n, f in model.model_fields.items() if not f.is_required()})


@pytest.mark.parametrize("model", STAGES)
def test_every_setting_has_a_help_text_that_ends_as_a_sentence(model):
    assert model.__doc__
    for name, field in model.model_fields.items():
        assert field.description and field.description.endswith("."), f"{model.__name__}.{name}"


@pytest.mark.parametrize("model", STAGES)
def test_every_number_has_a_bound(model):
    free = {"final_entropy"}  # a target entropy is any number
    for name, field in model.model_fields.items():
        if {int, float} & {field.annotation, *typing.get_args(field.annotation)} and name not in free:
            assert field.metadata, f"{model.__name__}.{name} accepts any number"


@pytest.mark.parametrize("model", STAGES)
def test_a_config_is_frozen_and_knows_its_settings(model):
    cfg = build(model)
    name = next(iter(model.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(cfg, name, getattr(cfg, name))
    with pytest.raises(ValidationError, match="wat"):
        build(model, wat=1)


def test_one_setting_has_one_type_wherever_it_occurs():
    kinds = {}
    for model in STAGES:
        for name, field in model.model_fields.items():
            if name != "source":  # what is read, in extraction; what is observed, in training
                kind = next((k for k in get_args(field.annotation) if k in (int, Path)), field.annotation)
                assert kinds.setdefault(name, repr(kind)) == repr(kind), name


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (config.ExtractConfig, {"clip_len": 0}),
        (config.ExtractConfig, {"devices": "0,0"}),
        (config.ExtractConfig, {"devices": "cuda"}),
        (config.ExtractConfig, {"devices": "0", "launcher": "slurm", "shards": 2}),
        (config.ExtractConfig, {"devices": "0", "shards": 2, "shard": 1}),
        (config.ExtractConfig, {"clip_stride": 0}),
        (config.ExtractConfig, {"fps": 0}),
        (config.ExtractConfig, {"fps": float("nan")}),
        (config.ExtractConfig, {"tail": "keep"}),
        (config.SimulateConfig, {"videos": 0}),
        (config.SimulateConfig, {"steps": 61}),
        (config.SimulateConfig, {"val_fraction": 1}),
        (config.TrainConfig, {"source": "video tape"}),
        (config.TrainConfig, {"gamma": 1}),
        (config.TrainConfig, {"gamma": float("nan")}),
        (config.TrainConfig, {"tau": 0}),
        (config.TrainConfig, {"batch_size": 1}),
        (config.TrainConfig, {"episodes": 2.5}),
        (config.EvaluateConfig, {"episodes": 0}),
    ],
)
def test_values_that_break_a_rule_are_refused(model, values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        build(model, **values)


@pytest.mark.parametrize("model", STAGES)
def test_text_from_the_command_line_becomes_the_settings_type(model):
    cfg = build(model)
    values = cfg.model_dump(mode="json", exclude_none=True)
    text = {name: value if isinstance(value, list) else str(value) for name, value in values.items()}
    assert model(**text) == cfg
    assert all(isinstance(getattr(cfg, n), Path) for n, f in model.model_fields.items() if f.annotation is Path)


@pytest.mark.parametrize("name", config.VIDEO_SETTINGS)
def test_settings_of_an_encoder_that_learns_need_video(name):
    value = {"frame_size": 64, "unfreeze_after": 10, "encoder_layers": "all", "encoder_lr": 1e-4}[name]
    assert getattr(config.TrainConfig(source="video", **{name: value}), name) == value
    with pytest.raises(ValidationError, match=f"--{name.replace('_', '-')} needs --source video"):
        config.TrainConfig(source="embeddings", **{name: value})


def test_clips_have_a_discount_where_rewards_look_back():
    assert config.TrainConfig(source="embeddings").gamma == 0
    assert config.TrainConfig(source="embeddings", reward_window="episode").gamma == 0.995
    assert config.TrainConfig(source="embeddings", reward_window="episode", gamma=0.5).gamma == 0.5


def test_only_embeddings_are_seen_from_a_mean():
    assert config.TrainConfig(source="embeddings").centre == "corpus"
    for source in ("sim", "video"):
        assert config.TrainConfig(source=source).centre is None
        with pytest.raises(ValidationError, match="--centre needs --source embeddings"):
            config.TrainConfig(source=source, centre="video")


def test_the_encoder_learns_in_the_last_tenth_unless_told_otherwise():
    assert config.TrainConfig(source="video", episodes=400).frozen_episodes == 360
    assert config.TrainConfig(source="video", episodes=400, unfreeze_after=0).frozen_episodes == 0
