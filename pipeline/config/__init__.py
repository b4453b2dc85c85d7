"""One frozen model per stage: every default, bound and help text lives here, once.

The command line is generated from these models, so a parameter has one name from its flag to the HDF5 attribute.
"""

from pipeline.config.arrays import alone, parse_seeds, slurm_minutes
from pipeline.config.base import Config
from pipeline.config.results import (
    CompareConfig,
    DemoConfig,
    ElasticityConfig,
    FrontierConfig,
    LogsConfig,
    NoveltyExperimentConfig,
    ReportConfig,
    SpreadConfig,
    ValueConfig,
)
from pipeline.config.settings import Settings
from pipeline.config.training import (
    ActConfig,
    EmbeddingsTrainConfig,
    EvaluateConfig,
    PolicyExportConfig,
    SimTrainConfig,
    TrainConfig,
    VideoTrainConfig,
    train_config,
)
from pipeline.config.videos import DoctorConfig, ExtractConfig, MergeConfig, NoveltyConfig, SimulateConfig

__all__ = [
    "ActConfig",
    "CompareConfig",
    "Config",
    "DemoConfig",
    "DoctorConfig",
    "ElasticityConfig",
    "EmbeddingsTrainConfig",
    "EvaluateConfig",
    "ExtractConfig",
    "FrontierConfig",
    "LogsConfig",
    "MergeConfig",
    "NoveltyConfig",
    "NoveltyExperimentConfig",
    "PolicyExportConfig",
    "ReportConfig",
    "Settings",
    "SimTrainConfig",
    "SimulateConfig",
    "SpreadConfig",
    "TrainConfig",
    "ValueConfig",
    "VideoTrainConfig",
    "alone",
    "parse_seeds",
    "slurm_minutes",
    "train_config",
]
