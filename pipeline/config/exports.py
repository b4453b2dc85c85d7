"""Export of an embeddings file to other libraries' formats: one model per format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.config.base import Config


class _ExportSettings(Config):
    """Write embeddings and logs in the format of another library."""

    writes_beside: ClassVar[bool] = True
    embeddings: Path = Field(Path("data/embeddings.h5"), description="Embeddings file.")
    out: Path | None = Field(
        None, description="File or folder to write; by default beside the embeddings and named after them."
    )
    split: Literal["train", "val", "test"] | None = Field(
        None, description="Write only the videos of this split; by default all."
    )
    overwrite: bool = Field(False, description="Replace an earlier export.")


class _PricedExportSettings(_ExportSettings):
    task: str | None = Field(
        None,
        description="Task file or name whose prices and costs replace the recorded ones in rewards; by default none.",
    )


class NpyExportConfig(_ExportSettings):
    """Write each video's embeddings and times as arrays."""

    to: Literal["npy"] = Field(
        "npy",
        description="Format. npy: arrays per video, named as video_features names them; parquet: one table, a row per "
        "clip; lerobot: LeRobot data set v3.0; minari: Minari data set; d3rlpy: d3rlpy replay buffer.",
    )


class ParquetExportConfig(_PricedExportSettings):
    """Write one table with a row per clip."""

    to: Literal["parquet"] = Field("parquet", description=NpyExportConfig.model_fields["to"].description)
    novelty: Path | None = Field(
        None, description="Novelty file whose scores and weights are added as columns; by default none."
    )


class LerobotExportConfig(_PricedExportSettings):
    """Write a LeRobot data set."""

    to: Literal["lerobot"] = Field("lerobot", description=NpyExportConfig.model_fields["to"].description)


class MinariExportConfig(_PricedExportSettings):
    """Write a Minari data set."""

    to: Literal["minari"] = Field("minari", description=NpyExportConfig.model_fields["to"].description)


class D3rlpyExportConfig(_PricedExportSettings):
    """Write a d3rlpy replay buffer."""

    to: Literal["d3rlpy"] = Field("d3rlpy", description=NpyExportConfig.model_fields["to"].description)


AnyExportConfig = NpyExportConfig | ParquetExportConfig | LerobotExportConfig | MinariExportConfig | D3rlpyExportConfig
ExportConfig = Annotated[AnyExportConfig, Field(discriminator="to")]
