"""Frontier count: actions on a 50x50 grid with MP ≥ 80/h and error ≤ 6%, by formula and by simulated episodes.

The source names no episode count for its 1,615. Points on the frontier are won and lost by luck, so the count rises
with the episodes: about 1,480 for one, 1,620 for a hundred. A hundred is what is run here.
"""

from __future__ import annotations

import json
import time

import numpy as np

from pipeline import econ, sim

GRID_SIZE = 50
MIN_MP_PER_HOUR = 80.0
MAX_ERR_RATE = 0.06


def grid_dynamics() -> tuple[np.ndarray, np.ndarray]:
    """Attempts a minute and error probability [50, 50] over speed and care in the seed's scenario."""
    axis = np.linspace(0, 1, GRID_SIZE)
    return sim.dynamics(sim.scenario(), 0, axis[:, None], axis[None, :])


def count(mp_per_hour: np.ndarray, err_rate: np.ndarray) -> int:
    return int(((mp_per_hour >= MIN_MP_PER_HOUR) & (err_rate <= MAX_ERR_RATE)).sum())


def analytic_count() -> int:
    rate, p_err = grid_dynamics()
    return count(sim.STEPS_PER_HOUR * sim.expected_attempts(rate) * (1 - p_err), p_err)


def monte_carlo_count(rng: np.random.Generator, *, episodes: int = 100) -> int:
    """Each point's MP and error rate are means over its episodes of one hour."""
    rate, p_err = grid_dynamics()
    mp_sum, err_sum = np.zeros_like(rate), np.zeros_like(rate)
    for _ in range(episodes):
        attempts, errors = sim.sample_outcomes(rate, p_err, rng, (sim.EPISODE_STEPS, *rate.shape))
        attempts, errors = attempts.sum(0), errors.sum(0)
        mp_sum += econ.marginal_product(attempts - errors, sim.EPISODE_STEPS / sim.STEPS_PER_HOUR)
        err_sum += econ.error_rate(errors, attempts)
    return count(mp_sum / episodes, err_sum / episodes)


if __name__ == "__main__":
    started = time.perf_counter()
    counts = {
        "analytic_count": analytic_count(),
        "monte_carlo_count": monte_carlo_count(np.random.default_rng(0)),
    }
    print(json.dumps(counts | {"wall_s": round(time.perf_counter() - started, 2)}))
