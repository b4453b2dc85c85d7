"""A task: its contexts, its actions and the worth of the work. It is data, read from a YAML file."""

from __future__ import annotations

import itertools
import keyword
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from pipeline.errors import VtpError
from pipeline.tasks.formula import FUNCTIONS, Formula

EPISODE_STEPS = 60  # maximum length of an episode
SECONDS_PER_HOUR = 3600.0
UNNAMED = "work"  # name of a task's only context if the file does not name it
SEED_SCENARIO = "seed"  # an alias of a task's first scenario
RESERVED = frozenset(
    {
        "step", "episode", "row", "context", "attempts", "errors", "price_usd", "damage_usd", "propensity", "novel",
        "novel_kind", "reward", "profit", "video_id", "clip", "start_s", "end_s", "profit_usd_per_hour",
        "profit_low", "profit_high", "split", "contributor", "path", "start_frame", "valid_frames", "reward_usd",
        "embedding", "features",
        "novelty", "weight",  # the metrics have means of these, as of every action
    }
)  # fmt: skip
Direction = Literal["rises", "falls"]
Reduction = Literal["mean", "sum", "max", "min", "first", "last"]
CHECKED_POINTS = (41, 17, 9, 5, 3, 2)  # per action, at which formulas must give valid rates and probabilities
MAX_CHECKED = 100_000
LARGEST_BOUND, NARROWEST = 1e9, 1e-4  # limits for actions: of a bound, and of the range over the larger bound


def _number(value: Any) -> Any:
    """Refuse booleans and strings, which pydantic would convert; but accept 1e-3, which YAML reads as a string."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+", value):
        return float(value)
    if isinstance(value, bool | str):
        raise ValueError("should be a number")
    return value


def _formula(value: Any) -> Any:
    """A formula may be a single number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Number = Annotated[float, BeforeValidator(_number)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FrameColumn(_Model):
    """Source of a clip's label in a data set with a value per frame: `column[index]`, and how to reduce it."""

    column: str = Field(min_length=1)
    reduce: Reduction


class Action(_Model):
    """A number in [low, high] that a policy chooses. attempts, errors: whether they rise or fall with it.

    column, reduce: as in FrameColumn; None if no data set has it per frame.
    """

    low: Number = 0.0
    high: Number = 1.0
    attempts: Direction | None = None
    errors: Direction | None = None
    column: str | None = Field(None, min_length=1)
    reduce: Reduction | None = None

    @model_validator(mode="after")
    def _reduces_a_column(self) -> Action:
        if (self.reduce is None) != (self.column is None):
            raise ValueError("column and reduce (mean, sum, max, min, first or last) go together; add the other")
        return self

    @model_validator(mode="after")
    def _has_room(self) -> Action:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) is not below high ({self.high:g}); exchange or correct them")
        largest = max(abs(self.low), abs(self.high))
        if largest > LARGEST_BOUND or self.high - self.low < NARROWEST * largest:
            raise ValueError(
                f"[{self.low:g}, {self.high:g}] is too large or too narrow for 32-bit numbers; use another "
                "unit or origin"
            )
        return self


class Context(_Model):
    """Price of a good unit and damage of an error, in US dollars."""

    price_usd: Number = Field(ge=0)
    damage_usd: Number = Field(0.0, ge=0)


class ErrorTarget(_Model):
    """Curriculum of the target error rate in training: linear from start to end over `episodes`."""

    start: Number = Field(0.10, ge=0, le=1)
    end: Number = Field(0.06, ge=0, le=1)
    episodes: int = Field(600, ge=1, strict=True)

    def at(self, episode: int) -> float:
        """The target in an episode, counted from 0."""
        progress = min(max(episode, 0) / self.episodes, 1.0)
        return self.start + progress * (self.end - self.start)


class Simulator(_Model):
    """Outcomes in the built-in simulator, by formulas of actions, constants and each context's parameters.

    Attempts of a step are Poisson around `attempts_per_minute`, at least `min_attempts`; each is an error with
    `error_probability`.
    """

    attempts_per_minute: Annotated[str, BeforeValidator(_formula)]
    error_probability: Annotated[str, BeforeValidator(_formula)]
    constants: dict[str, Number] = Field(default_factory=dict)
    contexts: dict[str, dict[str, Number]] = Field(default_factory=dict)
    min_attempts: Literal[0, 1] = 0
    scenarios: dict[str, list[str]] = Field(default_factory=dict)
    renderer: Literal["dishes", "bricks"] | None = None


class Task(_Model):
    """Work as data. Actions and contexts keep the order of the file; arrays follow it.

    step_s: seconds of work per clip; None: each clip's own length. scenario: the simulator's scenario that defines the
    contexts; "" for all contexts. attempts, errors, successes, context: sources of labels in a data set with values
    per frame; errors may be given as successes among the attempts.
    """

    name: str
    step_s: Number | None = Field(None, gt=0)
    human_wage_usd: Number = Field(gt=0)
    costs_usd_per_hour: dict[str, Annotated[Number, Field(ge=0)]] = Field(default_factory=dict)
    actions: dict[str, Action] = Field(min_length=1)
    contexts: dict[str, Context] = Field(min_length=1)
    error_target: ErrorTarget = ErrorTarget()
    simulator: Simulator | None = None
    scenario: str = ""
    attempts: FrameColumn | None = None
    errors: FrameColumn | None = None
    successes: FrameColumn | None = None
    context: FrameColumn | None = None

    @classmethod
    def from_yaml(cls, name: str | Path) -> Task:
        """The task in a YAML file, or a built-in one by name. VtpError names the line and key of any mistake."""
        from pipeline.tasks.task_file import load_task

        return load_task(str(name))

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}", name):
            raise ValueError(f"{name[:64]!r} is not a name of up to 64 letters, digits, spaces, . - _; rename it")
        return name

    @field_validator("actions")
    @classmethod
    def _action_names_are_columns(cls, actions: dict[str, Action]) -> dict[str, Action]:
        for name in actions:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
                raise ValueError(f"{name!r} is not a name of lower-case letters, digits and _; rename the action")
            if name in RESERVED or name in FUNCTIONS:
                raise ValueError(f"{name!r} is reserved for a column or a function; rename the action")
        return actions

    @field_validator("contexts", mode="before")
    @classmethod
    def _a_single_price_needs_no_name(cls, contexts: Any) -> Any:
        if isinstance(contexts, dict) and contexts and set(contexts) <= set(Context.model_fields):
            return {UNNAMED: contexts}
        return contexts

    @field_validator("contexts")
    @classmethod
    def _context_names_are_words(cls, contexts: dict[str, Context]) -> dict[str, Context]:
        for name in contexts:
            if not name.strip() or not name.isprintable() or name != name.strip():
                raise ValueError(f"{name!r} is not a valid name; name each context with printable text")
        return contexts

    @model_validator(mode="after")
    def _frame_columns_fit(self) -> Task:
        if self.errors is not None and self.successes is not None:
            raise ValueError("successes: errors are given too, and either implies the other; drop one")
        if self.attempts is None and (self.errors or self.successes) is not None:
            raise ValueError("attempts: a column of errors or successes requires one of attempts; add it")
        if self.context is not None and (self.is_unnamed or self.context.reduce not in ("first", "last")):
            why = "no context has a name" if self.is_unnamed else f"reduce is {self.context.reduce}"
            raise ValueError(f"context: {why}; name the contexts, and reduce their column with first or last")
        return self

    def frame_columns(self) -> dict[str, FrameColumn]:
        """Frame columns by the label that they supply."""
        columns = {
            name: FrameColumn(column=action.column, reduce=action.reduce)
            for name, action in self.actions.items()
            if action.column is not None and action.reduce is not None
        }
        for name in ("attempts", "errors", "successes", "context"):
            if (column := getattr(self, name)) is not None:
                columns[name] = column
        return columns

    @model_validator(mode="after")
    def _simulator_fits(self) -> Task:
        scenarios = {} if self.simulator is None else self.simulator.scenarios
        if self.scenario and set(scenarios.get(self.scenario, ())) != set(self.contexts):
            raise ValueError(f"scenario {self.scenario!r} does not consist of exactly these contexts; drop it")
        if self.simulator is not None:
            self._check_simulator(self.simulator)
        return self

    def _check_simulator(self, simulator: Simulator) -> None:
        """ValueError if a formula or a parameter of the simulator does not fit the actions and contexts."""
        names = {*self.actions, *simulator.constants, *(p for row in simulator.contexts.values() for p in row)}
        for name in {*simulator.constants, *(p for row in simulator.contexts.values() for p in row)}:
            if not name.isidentifier() or keyword.iskeyword(name) or name in FUNCTIONS or name in self.actions:
                raise ValueError(f"simulator: {name!r} cannot name a parameter; rename it")
        if unknown := set(simulator.contexts) - set(self.contexts):
            raise ValueError(f"simulator: {min(unknown)!r} is not a context; use one of {', '.join(self.contexts)}")
        for scenario, contexts in simulator.scenarios.items():
            if not scenario.strip() or not scenario.isprintable() or scenario == SEED_SCENARIO:
                raise ValueError(f"simulator: {scenario!r} cannot name a scenario; rename it")
            if len(set(contexts)) < len(contexts):
                raise ValueError(f"simulator: scenario {scenario!r} names a context twice; drop one")
            if not contexts or set(contexts) - set(self.contexts):
                raise ValueError(
                    f"simulator: scenario {scenario!r} names no context, or an unknown one; "
                    f"use {', '.join(self.contexts)}"
                )
        grid = self._checked_actions()
        for key in ("attempts_per_minute", "error_probability"):
            try:
                formula = Formula(getattr(simulator, key), names)
            except ValueError as error:
                raise ValueError(f"simulator: {key}: {error}") from error
            for context in self.contexts:
                parameters = simulator.constants | simulator.contexts.get(context, {})
                if lacking := formula.names - set(self.actions) - set(parameters):
                    raise ValueError(
                        f"simulator: {key}: needs {min(lacking)!r}, which context {context!r} lacks; "
                        "add it to simulator's contexts or constants"
                    )
                with np.errstate(all="ignore"):
                    try:
                        values = np.asarray(formula({**parameters, **grid}), float)
                    except (TypeError, ValueError, ArithmeticError) as error:
                        raise ValueError(f"simulator: {key}: cannot be computed ({error}); correct it") from error
                highest = 1.0 if key == "error_probability" else np.inf
                if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= highest):
                    where = "[0, 1]" if key == "error_probability" else "[0, inf)"
                    raise ValueError(
                        f"simulator: {key}: goes from {values.min():g} to {values.max():g} over the actions in context "
                        f"{context!r}, outside {where}; correct the formula, or limit it with min and max"
                    )

    def _checked_actions(self) -> dict[str, np.ndarray]:
        """A grid over all actions, including bounds; coarser for more actions, and only some corners for very many."""
        for points in CHECKED_POINTS:
            if points ** len(self.actions) <= MAX_CHECKED:
                break
        axes = [np.linspace(action.low, action.high, points) for action in self.actions.values()]
        grid = np.array(list(itertools.islice(itertools.product(*axes), MAX_CHECKED)))
        return dict(zip(self.actions, grid.T, strict=True))

    @property
    def action_names(self) -> tuple[str, ...]:
        """The actions' names, in the order of the file, [A]."""
        return tuple(self.actions)

    @property
    def context_names(self) -> tuple[str, ...]:
        """The contexts' names, in the order of the file, [K]."""
        return tuple(self.contexts)

    @property
    def num_actions(self) -> int:
        """How many actions a policy chooses, A."""
        return len(self.actions)

    @property
    def is_unnamed(self) -> bool:
        """Whether the file names no contexts."""
        return self.context_names == (UNNAMED,)

    @property
    def low(self) -> np.ndarray:
        """Lower bounds of the actions, [A]."""
        return np.array([action.low for action in self.actions.values()])

    @property
    def high(self) -> np.ndarray:
        """Upper bounds of the actions, [A]."""
        return np.array([action.high for action in self.actions.values()])

    @property
    def price_usd(self) -> np.ndarray:
        """Price of a unit in each context, [K]."""
        return np.array([context.price_usd for context in self.contexts.values()])

    @property
    def damage_usd(self) -> np.ndarray:
        """Damage of an error in each context, [K]."""
        return np.array([context.damage_usd for context in self.contexts.values()])

    @property
    def total_costs_usd_per_hour(self) -> float:
        """The sum of the hourly costs, in US dollars."""
        return float(sum(self.costs_usd_per_hour.values()))

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """Actions [..., A] at points in the unit box [..., A]."""
        return np.clip(self.low + np.asarray(unit) * (self.high - self.low), self.low, self.high)

    def to_unit(self, actions: np.ndarray) -> np.ndarray:
        """Points in the unit box [..., A] of actions [..., A]."""
        return (np.asarray(actions) - self.low) / (self.high - self.low)

    def in_scenario(self, name: str | None) -> Task:
        """The task with only the contexts of a scenario (default: the first); VtpError if the scenario is unknown."""
        scenarios = {} if self.simulator is None else self.simulator.scenarios
        if not scenarios:
            if name is not None:
                raise VtpError(
                    f"task {self.name} has no scenarios, but --scenario {name} was given; leave it out",
                    code="scenario-unknown",
                )
            return self
        if name in (None, SEED_SCENARIO):
            name = next(iter(scenarios))
        if name not in scenarios:
            raise VtpError(
                f"scenario {name!r} is unknown in task {self.name}; use one of {', '.join(scenarios)}",
                code="scenario-unknown",
            )
        return self._with_contexts(scenarios[name], name)

    def of_contexts(self, names: set[str]) -> Task:
        """The task in its first scenario that has all of these contexts; unchanged if none has."""
        scenarios = {} if self.simulator is None else self.simulator.scenarios
        fitting = next((scenario for scenario, contexts in scenarios.items() if names <= set(contexts)), None)
        return self if fitting is None else self.in_scenario(fitting)

    def _with_contexts(self, names: list[str], scenario: str) -> Task:
        assert self.simulator is not None
        kept = {name: row for name, row in self.simulator.contexts.items() if name in names}
        return self.model_copy(
            update={
                "contexts": {name: self.contexts[name] for name in names},
                "scenario": scenario,
                "simulator": self.simulator.model_copy(update={"contexts": kept, "scenarios": {scenario: names}}),
            }
        )

    def priced_as(self, other: Task) -> Task:
        """This task with the other's prices, wage, costs and error target; VtpError if the other's work differs."""
        bounds = {name: (action.low, action.high) for name, action in self.actions.items()}
        if {name: (action.low, action.high) for name, action in other.actions.items()} != bounds:
            raise VtpError(
                f"task {other.name} has actions {_bounds(other)}, the data were recorded with {_bounds(self)}; "
                "a task may change prices and costs, but not actions: extract again",
                code="task-other-actions",
            )
        if lacking := [name for name in self.contexts if name not in other.contexts]:
            raise VtpError(
                f"task {other.name} lacks context {lacking[0]!r} of the data; add it with its price",
                code="task-other-contexts",
            )
        if other.step_s not in (None, self.step_s):
            mine = "each clip's own length" if self.step_s is None else f"{self.step_s:g}"
            raise VtpError(
                f"task {other.name} has step_s {other.step_s:g}, the data were recorded with {mine}; a task may change "
                "prices and costs, but not steps: leave step_s out, or extract again",
                code="task-other-steps",
            )
        return self.model_copy(
            update={
                "name": other.name,
                "contexts": {name: other.contexts[name] for name in self.contexts},
                "human_wage_usd": other.human_wage_usd,
                "costs_usd_per_hour": other.costs_usd_per_hour,
                "error_target": other.error_target,
            }
        )

    def simulates_otherwise(self, other: Task) -> bool:
        """Whether the other task has a different simulator, which `priced_as` ignores."""
        return other.simulator is not None and other._work_of(self.contexts) != self._work_of(self.contexts)

    def _work_of(self, contexts: Collection[str]) -> dict[str, Any] | None:
        """All that determines the simulator's outcomes in these contexts."""
        if self.simulator is None:
            return None
        kept = {name: self.simulator.contexts.get(name) for name in contexts}
        return self.simulator.model_dump(exclude={"scenarios", "renderer"}) | {"contexts": kept}

    def scaled(self, *, price: float = 1.0, damage: float = 1.0) -> Task:
        """This task with all prices and damages multiplied by these factors."""
        contexts = {
            name: Context(price_usd=price * context.price_usd, damage_usd=damage * context.damage_usd)
            for name, context in self.contexts.items()
        }
        return self.model_copy(update={"contexts": contexts})

    def __str__(self) -> str:
        return f"{self.name} {self.scenario}".strip()


def _bounds(task: Task) -> str:
    return ", ".join(f"{name} [{action.low:g}, {action.high:g}]" for name, action in task.actions.items())
