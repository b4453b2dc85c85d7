"""What all settings share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt

MAX_SEED = 2**63 - 1

Shard = NonNegativeInt | Literal["auto"] | None


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
