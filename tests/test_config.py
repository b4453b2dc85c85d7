import inspect
import typing
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from pipeline import config

MODELS = [model for _, model in inspect.getmembers(config, inspect.isclass) if issubclass(model, config.Config)]
TRAIN = {
    "sim": config.SimTrainConfig,
    "embeddings": config.EmbeddingsTrainConfig,
    "video": config.VideoTrainConfig,
}
STAGES = [model for model in MODELS if model is not config.Config]
REQUIRED = {
    "source": "videos", "run": "runs/x", "runs": ["runs/x", "runs/y"], "to": "onnx", "policy": "runs/x",
    "embeddings": "e.h5",
}  # fmt: skip


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
            if name not in ("source", "to"):  # what is read or observed, by stage; formats of what is exported
                kind = next((k for k in get_args(field.annotation) if k in (int, str, Path)), field.annotation)
                assert kinds.setdefault(name, repr(kind)) == repr(kind), name


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (config.ExtractConfig, {"clip_len": 0}),
        (config.ExtractConfig, {"devices": "0,0"}),
        (config.ExtractConfig, {"devices": "cuda"}),
        (config.ExtractConfig, {"devices": "0", "launcher": "slurm", "shards": 2}),
        (config.ExtractConfig, {"devices": "0", "shards": 2, "shard": 1}),
        (config.ExtractConfig, {"devices": "0", "device": "cuda"}),
        (config.ExtractConfig, {"device": "cuda:x"}),
        (config.NoveltyConfig, {"shards": 2, "shard": 2}),
        (config.NoveltyConfig, {"launcher": "local"}),
        (config.NoveltyConfig, {"launcher": "slurm", "shards": 2, "shard": 0}),
        (config.NoveltyConfig, {"slurm_gres": "gpu:1", "shards": 2, "launcher": "local"}),
        (config.NoveltyConfig, {"devices": "0", "launcher": "slurm", "shards": 2}),
        (config.NoveltyConfig, {"devices": "0", "device": "cuda:1"}),
        (config.NoveltyConfig, {"device": "gpu"}),
        (config.ExtractConfig, {"clip_stride": 0}),
        (config.ExtractConfig, {"fps": 0}),
        (config.ExtractConfig, {"fps": float("nan")}),
        (config.ExtractConfig, {"tail": "keep"}),
        (config.SimulateConfig, {"videos": 0}),
        (config.SimulateConfig, {"steps": 61}),
        (config.SimulateConfig, {"val_fraction": 1}),
        (config.SimTrainConfig, {"source": "video"}),
        (config.SimTrainConfig, {"gamma": 1}),
        (config.EmbeddingsTrainConfig, {"gamma": float("nan")}),
        (config.SimTrainConfig, {"tau": 0}),
        (config.VideoTrainConfig, {"batch_size": 1}),
        (config.EmbeddingsTrainConfig, {"centre": None}),
        (config.VideoTrainConfig, {"frame_size": 113}),
        (config.SimTrainConfig, {"episodes": 2.5}),
        (config.EvaluateConfig, {"episodes": 0}),
        (config.FrontierConfig, {"task": "bricklaying", "run": "r"}),
        (config.FrontierConfig, {"scenario": "mixed", "run": "r"}),
        (config.ElasticityConfig, {"retrain_seeds": 2}),
    ],
)
def test_values_that_break_a_rule_are_refused(model, values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        build(model, **values)


@pytest.mark.parametrize(
    ("model", "values", "remedy"),
    [
        (config.FrontierConfig, {"run": "runs/x", "task": "bricklaying"}, {"run": None}),
        (config.FrontierConfig, {"run": "runs/x", "scenario": "mixed"}, {"run": None}),
        (config.ElasticityConfig, {"retrain_seeds": 2}, {"retrain": 10}),
        (config.SpreadConfig, {"wage_smoothing": 0.5}, {"market_wage": 30}),
        (config.SpreadConfig, {"wage_smoothing": 0.5}, {"inflation": 0.01}),
        (config.ExtractConfig, {"bare": True, "camera": "front"}, {"camera": None}),
    ],
)
def test_a_setting_that_would_have_no_effect_is_refused(model, values, remedy):
    with pytest.raises(ValidationError, match=r"drop either|no effect"):
        build(model, **values)
    build(model, **values | remedy)


@pytest.mark.parametrize("model", STAGES)
def test_text_from_the_command_line_becomes_the_settings_type(model):
    cfg = build(model)
    values = cfg.model_dump(mode="json", exclude_none=True)
    text = {name: value if isinstance(value, list) else str(value) for name, value in values.items()}
    assert model(**text) == cfg
    assert all(isinstance(getattr(cfg, n), Path) for n, f in model.model_fields.items() if f.annotation is Path)


# Training: one model per source


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "sim",
            {
                "episodes": 500, "num_envs": 32, "updates_per_episode": 8.0, "batch_size": 256, "gamma": 0.995,
                "observation_noise": 0.0, "task": "dishwashing", "scenario": None, "final_entropy": -3.0,
            },
        ),
        (
            "embeddings",
            {
                "episodes": 20_000, "num_envs": 256, "updates_per_episode": 1.0, "batch_size": 256, "gamma": 0.0,
                "observation_noise": 0.2, "task": None, "novelty": None, "centre": "corpus", "final_entropy": -3.0,
            },
        ),
        (
            "video",
            {
                "episodes": 2000, "num_envs": 8, "updates_per_episode": 8.0, "batch_size": 32, "gamma": 0.0,
                "observation_noise": 0.0, "task": None, "novelty": None, "frame_size": 112, "encoder_layers": "layer4",
                "encoder_lr": 1e-5, "unfreeze_after": None, "final_entropy": -3.0,
            },
        ),
    ],
)  # fmt: skip
def test_each_source_has_defaults_of_its_own(source, expected):
    cfg = config.train_config(source=source)
    assert type(cfg) is TRAIN[source] and cfg == TRAIN[source]()
    assert {name: getattr(cfg, name) for name in expected} == expected


def test_the_source_chooses_the_model_and_is_asked_for():
    with pytest.raises(ValidationError, match="source"):
        config.train_config()
    with pytest.raises(ValidationError, match="'sim', 'embeddings', 'video'"):
        config.train_config(source="film")
    assert [model.model_fields["source"].default for model in get_args(get_args(config.TrainConfig)[0])] == list(TRAIN)


OWN = {
    "sim": {"scenario"},
    "embeddings": {"embeddings", "novelty", "outcomes", "kappa", "unsupported", "centre"},
    "video": {
        "embeddings",
        "novelty",
        "outcomes",
        "kappa",
        "unsupported",
        "frame_size",
        "unfreeze_after",
        "encoder_layers",
        "encoder_lr",
    },
}


@pytest.mark.parametrize(("source", "model"), TRAIN.items())
def test_a_setting_of_another_source_does_not_exist(source, model):
    everything = set().union(*(other.model_fields for other in TRAIN.values()))
    foreign = everything - set(model.model_fields)
    assert foreign == set().union(*OWN.values()) - OWN[source]
    for name in foreign:
        owner = next(other for other in TRAIN.values() if name in other.model_fields)
        with pytest.raises(ValidationError, match=name):
            model(**{name: owner().model_dump()[name]})


@pytest.mark.parametrize("source", ["embeddings", "video"])
def test_clips_have_a_discount_if_rewards_look_back(source):
    assert config.train_config(source=source).gamma == 0
    assert config.train_config(source=source, reward_window="episode").gamma == 0.995
    assert config.train_config(source=source, reward_window="episode", gamma=0.5).gamma == 0.5
    assert config.train_config(source=source, reward_window="step", gamma=0.5).gamma == 0.5


@pytest.mark.parametrize("source", TRAIN)
def test_a_saved_training_is_read_back_by_its_source(source):
    cfg = config.train_config(source=source, reward_window="episode", episodes=7)
    assert config.train_config(**cfg.model_dump(mode="json")) == cfg


def test_the_encoder_learns_in_the_last_tenth_unless_told_otherwise():
    assert config.VideoTrainConfig(episodes=400).frozen_episodes == 360
    assert config.VideoTrainConfig(episodes=400, unfreeze_after=0).frozen_episodes == 0


def test_novelty_off_is_no_novelty_file():
    assert config.EmbeddingsTrainConfig(novelty="off").novelty is None
    assert config.EmbeddingsTrainConfig(novelty="n.h5").novelty == Path("n.h5")
