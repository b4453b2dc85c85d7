"""The spread of finished training episodes split between customers and platform, and the skill of its estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.linear_model import SGDRegressor
from sklearn.preprocessing import StandardScaler

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
        self._scaler = StandardScaler()
        self._estimator = SGDRegressor(random_state=0)
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
        feature = self._scaler.partial_fit([[mean_novelty]]).transform([[mean_novelty]])
        predicted = float(self._estimator.predict(feature)[0]) if self._gains else 0.0
        self._estimator.partial_fit(feature, [gain])
        self._predicted.append(predicted)
        self._gains.append(gain)
        return predicted

    def state_dict(self) -> dict[str, Any]:
        """The gains so far and both fitted estimators, as arrays and plain values."""
        return {
            "trailing": self._trailing, "predicted": self._predicted, "gains": self._gains,
            "scaler": _learned(self._scaler), "estimator": _learned(self._estimator),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._trailing, self._predicted, self._gains = state["trailing"], state["predicted"], state["gains"]
        for estimator, learned in ((self._scaler, state["scaler"]), (self._estimator, state["estimator"])):
            vars(estimator).update({name: value[()] if value.ndim == 0 else value for name, value in learned.items()})

    def skill(self) -> dict[str, Any]:
        """The skill of the predictions so far."""
        return estimator_skill(np.array(self._predicted), np.array(self._gains))


def _learned(estimator: BaseEstimator) -> dict[str, Any]:
    """The fitted attributes of a scikit-learn estimator, whose names end in an underscore, as arrays."""
    fitted = {name: value for name, value in vars(estimator).items() if name.endswith("_") and name[0] != "_"}
    return {name: np.asarray(value) for name, value in fitted.items()}


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
