"""The spread of finished training episodes split between customers and platform, and the skill of its estimator."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from pipeline import econ
from pipeline.stats import bootstrap_weights, interval95, percentiles95
from pipeline.tasks import Task, Worth

TRAILING_EPISODES = 100
BLOCKS = 20  # neighbouring episodes share a policy, so intervals are over blocks of episodes
EPISODES_PER_BLOCK = 10  # minimum
BOOTSTRAPS = 2000


class RevenueSplit:
    """Prices finished episodes and splits their spread.

    The gain in marginal product is measured against the last 100 episodes. The customer's part of it is predicted by an
    online linear model from the standardised novelty of the clips played (the seed's estimator). It predicts before it
    learns from the episode's gain, so that `estimator_skill` can measure its skill.
    """

    def __init__(self, task: Task):
        self._task = task
        self._trailing: list[float] = []
        self._estimator = OnlineLinear()
        self._predicted: list[float] = []
        self._gains: list[float] = []

    def close(self, hours: float, earned: Worth, mean_novelty: float) -> dict[str, float]:
        """The economic columns of `metrics.csv` for an episode; `earned` has scalars."""
        _, mp, err_rate, implied_wage, profit = map(float, earned)
        human_wage = self._task.human_wage_usd
        human_mp = float(econ.human_marginal_product(human_wage, self._task.price_usd.mean()))
        delta_total = econ.delta_mpl(mp, self._trailing, window=TRAILING_EPISODES)
        self._trailing = [*self._trailing, mp][-TRAILING_EPISODES:]
        delta_cust = self._predict_then_learn(mean_novelty, delta_total)
        split = econ.allocate_spread(
            implied_wage, human_wage, hours, delta_mpl_total=delta_total, delta_mpl_cust=delta_cust
        )
        return {
            "time_h": hours, "mp_r": mp, "mp_h": human_mp, "err_rate": err_rate, "w_hat_r": implied_wage,
            "w_h": human_wage, "wage_parity": econ.wage_parity(implied_wage, human_wage),
            "prod_parity": econ.ratio(mp, human_mp),
            "profit": profit, "delta_mpl_total": delta_total, "delta_mpl_cust": delta_cust, **split._asdict(),
        }  # fmt: skip

    def _predict_then_learn(self, mean_novelty: float, gain: float) -> float:
        feature = self._estimator.standardise(float(mean_novelty))
        predicted = self._estimator.predict(feature) if self._gains else 0.0
        self._estimator.learn(feature, gain)
        self._predicted.append(predicted)
        self._gains.append(gain)
        return predicted

    def state_dict(self) -> dict[str, Any]:
        """The gains so far and the fitted model, as arrays and plain values."""
        past = {"trailing": self._trailing, "predicted": self._predicted, "gains": self._gains}
        return past | self._estimator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._trailing, self._predicted, self._gains = state["trailing"], state["predicted"], state["gains"]
        self._estimator.load_state_dict(state)

    def skill(self) -> dict[str, Any]:
        """The skill of the predictions so far."""
        return estimator_skill(np.array(self._predicted), np.array(self._gains))


class OnlineLinear:
    """A linear model of one standardised feature, learned from one example after another.

    It computes what scikit-learn's StandardScaler and SGDRegressor do by default, to the last bit. Their calls are made
    for many examples; with one each, they took most of a training's time beside updates.
    """

    ALPHA, ETA0, POWER_T, STEEPEST = 1e-4, 0.01, 0.25, 1e12  # SGDRegressor's

    def __init__(self) -> None:
        self._count, self._mean, self._variance = 0.0, 0.0, 0.0
        self._weight, self._intercept, self._step = 0.0, 0.0, 1.0

    def standardise(self, value: float) -> float:
        """The value relative to all given so far, itself included."""
        total, count = self._mean * self._count, self._count + 1
        if self._count:
            of_mean = self._count / count * (total / self._count - value) ** 2
            self._variance = (self._variance * self._count + of_mean) / count
        self._count, self._mean = count, (total + value) / count
        eps = sys.float_info.epsilon
        is_constant = self._variance <= count * eps * self._variance + (count * self._mean * eps) ** 2
        return (value - self._mean) / (1.0 if is_constant else math.sqrt(self._variance))

    def predict(self, feature: float) -> float:
        return feature * self._weight + self._intercept

    def learn(self, feature: float, target: float) -> None:
        """One step of gradient descent on the squared error."""
        rate = self.ETA0 / self._step**self.POWER_T
        error = feature * self._weight + self._intercept - target
        step = -rate * min(max(error, -self.STEEPEST), self.STEEPEST)
        shrunk = max(0.0, 1.0 - rate * self.ALPHA)
        self._weight = (self._weight + feature * (step / shrunk)) * shrunk
        self._intercept += step
        self._step += 1

    def state_dict(self) -> dict[str, dict[str, np.ndarray]]:
        """Under scikit-learn's names, which earlier versions saved."""
        scaler = {"n_samples_seen_": self._count, "mean_": [self._mean], "var_": [self._variance]}
        estimator = {"coef_": [self._weight], "intercept_": [self._intercept], "t_": self._step}
        return {
            "scaler": {name: np.asarray(value) for name, value in scaler.items()},
            "estimator": {name: np.asarray(value) for name, value in estimator.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        scaler = [state["scaler"].get(name) for name in ("n_samples_seen_", "mean_", "var_")]
        estimator = [state["estimator"].get(name) for name in ("coef_", "intercept_", "t_")]
        if scaler[0] is not None:  # earlier versions saved nothing before the first episode
            self._count, self._mean, self._variance = (float(np.squeeze(value)) for value in scaler)
            self._weight, self._intercept, self._step = (float(np.squeeze(value)) for value in estimator)


def estimator_skill(predicted: np.ndarray, gains: np.ndarray) -> dict[str, Any]:
    """Skill of predictions [T] made before their gains [T] were known, compared with the gains' mean.

    R² is 1 − (squared error) / (squared error of the gains' mean), its interval a bootstrap over blocks of episodes.
    The rank correlation is Spearman's within blocks, its interval Student's over them. None with too few episodes.
    """
    blocks = min(BLOCKS, len(gains) // EPISODES_PER_BLOCK)
    if blocks < 2:
        return {
            "episodes": len(gains), "r2": None, "r2_ci95": None, "rank_correlation": None,
            "rank_correlation_ci95": None,
        }  # fmt: skip
    chunks = np.array_split(np.arange(len(gains)), blocks)
    errors = np.array([((gains[rows] - predicted[rows]) ** 2).sum() for rows in chunks])
    constant_errors = np.array([((gains[rows] - gains.mean()) ** 2).sum() for rows in chunks])
    weights = bootstrap_weights(blocks, BOOTSTRAPS, np.random.default_rng(0))
    r2 = 1 - np.asarray(econ.ratio(weights @ errors, weights @ constant_errors))
    ranks = np.array([_rank_correlation(predicted[rows], gains[rows]) for rows in chunks])
    return {
        "episodes": len(gains),
        "r2": float(1 - econ.ratio(errors.sum(), constant_errors.sum())),
        "r2_ci95": percentiles95(r2),
        "rank_correlation": float(ranks.mean()),
        "rank_correlation_ci95": interval95(ranks),
    }


def skill_in_words(skill: dict[str, Any]) -> str:
    """The estimator's skill as text, shown with every price that it determines.

    skill: as `estimator_skill` returns it.
    """
    if skill["r2"] is None or skill["rank_correlation"] is None:
        return (
            f"The skill of the estimator of the customers’ share is unknown: {skill['episodes']} episodes are too few."
        )
    (r2_low, r2_high), (rank_low, rank_high) = skill["r2_ci95"], skill["rank_correlation_ci95"]
    if r2_low > 0:
        verdict = "has skill"
    elif rank_low > 0:
        verdict = "ranks episodes better than chance, but is no better than a constant"
    else:
        verdict = "has no measurable skill, so this split is arbitrary"
    r2, r2_low, r2_high = (round(value, 3) + 0.0 for value in (skill["r2"], r2_low, r2_high))  # + 0.0: not minus zero
    rank, rank_low, rank_high = (round(value, 2) + 0.0 for value in (skill["rank_correlation"], rank_low, rank_high))
    return (
        f"The estimator of the customers’ share {verdict}. Predicting before each of {skill['episodes']:,} episodes, "
        f"it explains {100 * r2:.1f}% of the gains’ variance beyond a constant (95% interval "
        f"{100 * r2_low:.1f}% to {100 * r2_high:.1f}%); its rank correlation with them is "
        f"{rank:.2f} ({rank_low:.2f} to {rank_high:.2f})."
    ).replace("-", "−")


def _rank_correlation(predicted: np.ndarray, gains: np.ndarray) -> float:
    """Spearman's; 0 if either does not vary."""
    if np.ptp(predicted) == 0 or np.ptp(gains) == 0:
        return 0.0
    import scipy.stats  # takes half a second

    return float(scipy.stats.spearmanr(predicted, gains).statistic)
