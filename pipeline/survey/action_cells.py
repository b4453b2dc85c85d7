"""Cells of the box of actions, with counts of logged steps: of each action, of pairs, and of all together."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import qmc

from pipeline.tasks import Task

BAR_CELLS, PAIR_CELLS = 20, 10  # of a single action, and of each action of a pair
MOST_PAIRED = 4  # actions shown in pairs; if there are more, each is shown alone
GRID_CELLS = {1: 20, 2: 10, 3: 6, 4: 4}  # of each action; for more actions, cells are scattered
SCATTERED, SCATTERED_HALF_WIDTH = 8, 0.2  # number of cells as a power of 2; in the unit box
EDGE = 1e-9  # of the unit box: a value at an edge belongs to the cell above it, despite rounding


@dataclass(frozen=True)
class CoverageMap:
    """Logged steps over one action, counts [n], or over two, counts [n, n] with the first action first.

    edges: of the cells of each action, in its unit.
    """

    actions: tuple[str, ...]
    edges: tuple[np.ndarray, ...]
    counts: np.ndarray


class Cells(NamedTuple):
    """C cells of the unit box, from low to high, each [C, A]."""

    low: np.ndarray
    high: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        return (self.low + self.high) / 2

    def counts(self, unit: np.ndarray) -> np.ndarray:
        """How many of the points [n, A] lie in each cell, [C]; the upper bound of the box belongs to the last cells."""
        points = unit + EDGE
        return np.array(
            [
                ((points >= low) & ((points < high) | (high >= 1))).all(1).sum()
                for low, high in zip(self.low, self.high, strict=True)
            ]
        )


def coverage_maps(task: Task, unit: np.ndarray) -> tuple[CoverageMap, ...]:
    """Maps of steps with actions [n, A] of the unit box: of each pair of actions, or of each if one or many."""
    names, num_actions = task.action_names, task.num_actions
    width = 2 if 2 <= num_actions <= MOST_PAIRED else 1
    cells = PAIR_CELLS if width == 2 else BAR_CELLS
    maps = []
    for which in itertools.combinations(range(num_actions), width):
        index = np.clip(np.floor((unit[:, which] + EDGE) * cells).astype(int), 0, cells - 1)
        counts = np.zeros((cells,) * width, np.int64)
        np.add.at(counts, tuple(index.T), 1)
        edges = tuple(np.linspace(task.low[one], task.high[one], cells + 1) for one in which)
        maps.append(CoverageMap(tuple(names[one] for one in which), edges, counts))
    return tuple(maps)


def cells_of(num_actions: int) -> Cells:
    """Cells that cover the box as a grid, or for many actions scattered cells that may overlap."""
    if num_actions in GRID_CELLS:
        edges = np.linspace(0, 1, GRID_CELLS[num_actions] + 1)
        low = np.array(list(itertools.product(edges[:-1], repeat=num_actions)))
        return Cells(low, np.array(list(itertools.product(edges[1:], repeat=num_actions))))
    centres = qmc.Sobol(num_actions, scramble=False).random_base2(SCATTERED)
    half = SCATTERED_HALF_WIDTH
    return Cells(np.clip(centres - half, 0, 1), np.clip(centres + half, 0, 1))
