"""The settings of a stage: help texts, checked values and one-line errors of one config model or of several."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.base import Config
from pipeline.errors import VtpError

C = TypeVar("C", bound=Config)


class Settings(Generic[C]):
    """The settings of one model, or of several models, told apart by a field with a different value in each."""

    def __init__(self, model: Any, *, spell: Callable[[str], str] = str, elsewhere: str = ""):
        """model: a config model, or models as `Annotated[A | B, Field(discriminator="kind")]`.

        spell: turns a name into how users write it; elsewhere: where else it may be given, in words for errors.
        """
        self._spell, self._elsewhere = spell, elsewhere
        self._model = model
        self.tag: str | None = None
        self.models: dict[str, type[Config]] = {"": model}
        if not isinstance(model, type):
            union, info = get_args(model)
            self.tag = info.discriminator
            self.models = {one.model_fields[self.tag].default: one for one in get_args(union)}

    @cached_property
    def _adapter(self) -> TypeAdapter[C]:
        return TypeAdapter(self._model)

    @property
    def doc(self) -> str | None:
        """The docstring of the model, or of the first model that all in the union inherit from."""
        first, *others = self.models.values()
        return next(kind.__doc__ for kind in first.__mro__ if all(issubclass(other, kind) for other in others))

    @property
    def names(self) -> list[str]:
        """All settings, each once: those of the first model, then those that each further model adds."""
        return list(dict.fromkeys(name for model in self.models.values() for name in model.model_fields))

    def having(self, name: str) -> dict[str, FieldInfo]:
        """The setting's field in every model that has it, by tag."""
        return {tag: model.model_fields[name] for tag, model in self.models.items() if name in model.model_fields}

    def annotation(self, name: str) -> Any:
        return next(iter(self.having(name).values())).annotation

    def metavar(self, name: str) -> str | None:
        """The values that a flag takes, such as INTEGER, PATH or a|b; None for a switch."""
        kinds = self._kinds(name)
        if bool in kinds:
            return None
        names = {int: "INTEGER", float: "FLOAT", Path: "PATH"}
        plain = [names[kind] for kind in kinds if kind in names]
        if choices := self.choices(name):
            return "|".join(dict.fromkeys([*plain, *choices]))
        return plain[0] if plain else "TEXT"

    def choices(self, name: str) -> list[str]:
        """The words that the setting accepts, if it accepts only some or a number besides; else none."""
        words = [word for kind in self._kinds(name) if get_origin(kind) is Literal for word in get_args(kind)]
        return list(dict.fromkeys(words))

    def _kinds(self, name: str) -> list[Any]:
        """The types of the setting in all models; of X | None, both."""
        annotations = [field.annotation for field in self.having(name).values()]
        kinds = [kind for annotation in annotations for kind in (annotation, *get_args(annotation))]
        return [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds]

    def spelling(self, name: str) -> str:
        """The flag, and for a switch that is on by default the one that turns it off."""
        is_on = any(field.default is True for field in self.having(name).values())
        return f"{self._spell(name)}/{self._spell('no_' + name)}" if is_on else self._spell(name)

    def help(self, name: str) -> str:
        """What the setting does, then its default in brackets; per tag if they differ."""
        fields = self.having(name)
        texts = _by_value(fields, lambda field: field.description)
        text = " ".join(str(value) if len(texts) == 1 else f"{', '.join(tags)}: {value}" for value, tags in texts)
        notes = [] if len(fields) == len(self.models) else [f"{', '.join(fields)} only"]
        if name == self.tag or all(field.is_required() for field in fields.values()):
            notes.append("required")
        elif shown := self._default(fields, text):
            notes.append(f"default: {shown}")
        return f"{text} [{'; '.join(notes)}]" if notes else text

    def _default(self, fields: dict[str, FieldInfo], text: str) -> str:
        """Such as: 500 (sim), 20000 (embeddings); empty if the text itself says what happens by default."""
        given = {tag: field for tag, field in fields.items() if field.default is not None}
        if not given:
            return "" if "by default" in text else "off"
        values = _by_value(given, lambda field: _shown(field.default))
        if len(values) == 1 and len(given) == len(fields):
            return values[0][0]
        return ", ".join(f"{value} ({', '.join(tags)})" for value, tags in values)

    def of(self, values: dict[str, Any], *, argument: str | None = None) -> C:
        """The config of these values; VtpError in one line if one of them breaks a rule.

        argument: the positional setting.
        """
        try:
            return self._adapter.validate_python(values)
        except ValidationError as error:
            raise self._explained(error, argument) from error

    def _explained(self, error: ValidationError, argument: str | None) -> VtpError:
        first = error.errors()[0]
        place, kind = first["loc"], first["type"]
        tag = ""
        if self.tag is not None and place:
            tag, place = str(place[0]), place[1:]
        name = str(place[0]) if place else self.tag if kind.startswith("union_tag") else None
        message = first["msg"].removeprefix("Value error, ")
        if name is None:  # the message of a rule on several settings names them
            return VtpError(message, code="settings-conflict")
        spelling = name.upper() if name == argument else self._spell(name)
        if kind in ("missing", "union_tag_not_found"):
            description = next(iter(self.having(name).values())).description
            return VtpError(
                f"{name} is missing: {description} Give it as {spelling}{self._elsewhere}", code="setting-missing"
            )
        if kind == "extra_forbidden":
            return self._foreign(name, tag)
        value = first["input"]
        if kind == "union_tag_invalid":
            *some, last = map(repr, self.models)
            message, value = f"Input should be {', '.join(some)} or {last}", first["ctx"]["tag"]
        rule = message[0].lower() + message[1:]
        text = str(value)
        return VtpError(
            f"{spelling} {text if text and text.isprintable() else repr(text)}: {rule}", code="setting-invalid"
        )

    def _foreign(self, name: str, tag: str) -> VtpError:
        """The error for a setting that the model of this tag lacks; names the tags that have it."""
        if having := list(self.having(name)):
            assert self.tag is not None
            owners = " or ".join(f"{self._spell(self.tag)} {owner}" for owner in having)
            return VtpError(f"{self._spell(name)} needs {owners}, not {tag}; leave it out", code="setting-foreign")
        names = self.models[tag].model_fields
        return VtpError(
            f"{name!r} is not a setting of this command; use one of {', '.join(names)}", code="setting-unknown"
        )


def _shown(default: Any) -> str:
    return str(default) if not isinstance(default, bool) else "on" if default else "off"


def _by_value(fields: dict[str, FieldInfo], value: Callable[[FieldInfo], Any]) -> list[tuple[Any, list[str]]]:
    """Each distinct value of the fields with the tags that have it, in order."""
    groups: dict[Any, list[str]] = {}
    for tag, field in fields.items():
        groups.setdefault(value(field), []).append(tag)
    return list(groups.items())
