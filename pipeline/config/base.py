"""The base of all settings. A URL becomes the path of its local copy, and is saved as the URL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, model_serializer, model_validator
from pydantic.functional_serializers import SerializerFunctionWrapHandler
from pydantic_core.core_schema import SerializationInfo

from pipeline import storage

MAX_SEED = 2**63 - 1

Shard = NonNegativeInt | Literal["auto"] | None


def known_device(name: str) -> str:
    """The name, if it is one of a device; whether there is such a GPU is checked when it is used."""
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", name) is None:
        raise ValueError("must be auto, cpu, cuda, or cuda:N for GPU number N")
    return name


Device = Annotated[
    str,
    AfterValidator(known_device),
    Field(description="Where to compute: cpu, cuda, cuda:N for GPU number N, or auto: the first GPU, else cpu."),
]
NewPrices = Annotated[
    str | None,
    Field(
        description="Task file or name whose prices, wage, costs and error target replace the recorded ones; "
        "by default none."
    ),
]


class Config(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True
    )  # built on first use: --help needs none
    in_storage: ClassVar[frozenset[str]] = frozenset({"embeddings", "task"})  # settings that may be URLs
    writes_beside: ClassVar[bool] = False  # beside `embeddings`, if `out` is not given

    @model_validator(mode="before")
    @classmethod
    def _urls_have_places(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        placed = {}
        for name, value in values.items():
            of_value = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str | Path)]
            if (place := next(filter(None, map(storage.place_of, of_value)), None)) is None:
                continue
            if name not in cls.in_storage and storage.url_of(place) is not None:
                known = " and ".join(sorted(cls.in_storage & cls.model_fields.keys()))
                rule = f"only {known} may be there" if known else "no input of this command may be there"
                raise ValueError(
                    f"{name} {storage.name_of(place)} is in object storage, and {rule}; name a file or folder of this "
                    "machine"
                )
            placed[name] = str(place) if isinstance(value, str) else place
        return values | placed

    @model_validator(mode="after")
    def _outputs_beside_inputs_are_local(self) -> Config:
        if self.writes_beside and getattr(self, "out", None) is None:
            embeddings: Path = self.embeddings  # type: ignore[attr-defined]
            if storage.url_of(embeddings) is not None:
                raise ValueError(
                    f"embeddings {storage.name_of(embeddings)} are in object storage; name a local output with --out"
                )
        return self

    @model_serializer(mode="wrap")
    def _places_are_saved_as_urls(self, plain: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        values = plain(self)
        if info.mode != "json":
            return values
        return {name: storage.name_of(value) if _is_place(value) else value for name, value in values.items()}

    def __getstate__(self) -> dict[Any, Any]:
        """Keep URLs, not paths: another machine may have its local copies elsewhere."""
        urls = {name: (storage.name_of(value), type(value)) for name, value in vars(self).items() if _is_place(value)}
        return super().__getstate__() | {"urls": urls}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        places = {name: kind(storage.path_of(url)) for name, (url, kind) in state["urls"].items()}
        super().__setstate__(state | {"__dict__": state["__dict__"] | places})


def _is_place(value: Any) -> bool:
    return isinstance(value, str | Path) and storage.url_of(Path(value)) is not None
