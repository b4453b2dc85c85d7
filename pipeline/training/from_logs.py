"""Training on outcomes learned from logs: its caution, the logged transitions, and whether to deploy the policy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline import econ
from pipeline.config import EmbeddingsTrainConfig, VideoTrainConfig
from pipeline.outcomes import Caution, LearnedOutcomes, Outcomes, step_worth
from pipeline.outcomes.caution import Candidate, choose_caution
from pipeline.outcomes.fitting import ENOUGH_STEPS
from pipeline.rl.replay import Batch

logger = logging.getLogger(__name__)

CLONE, LEARNED = "clone of the logging policy", "learned policy"


@dataclass(frozen=True)
class LogsPlan:
    """How to learn from the logs, chosen by cross-validation on them.

    model: the outcome model, with the caution used in rewards. candidates: the cautions compared, sorted by the lower
    bound of their gain, best first. is_proven: whether a policy learned so beats the logging policy on held-out folds,
    by that lower bound. transitions: the logged steps for replay; None with --reward-window episode.
    """

    model: LearnedOutcomes
    candidates: list[Candidate]
    is_proven: bool
    transitions: Batch | None

    @property
    def deployed(self) -> str:
        return LEARNED if self.is_proven else CLONE

    def described(self) -> dict[str, str | int | float]:
        """For a policy's provenance; a gain is left out if too few videos leave it undetermined."""
        best = self._chosen
        gains = {"fold_gain_usd_per_hour": best.gain, "fold_gain_lower_bound": best.proven}
        return {
            "kappa": best.caution.kappa,
            "unsupported": best.caution.unsupported,
            **{name: round(gain, 4) for name, gain in gains.items() if np.isfinite(gain)},
            "logged_transitions": 0 if self.transitions is None else len(self.transitions.rewards),
            "deployed": self.deployed,
        }

    @property
    def _chosen(self) -> Candidate:
        return next(one for one in self.candidates if one.caution == self.model.caution)


def plan_on_logs(
    cfg: EmbeddingsTrainConfig | VideoTrainConfig,
    model: LearnedOutcomes,
    offset: np.ndarray,
    progress: Callable[[int, int], None],
) -> LogsPlan:
    """Compare cautions by cross-validation on the logs, and tell whether a learned policy beats the logging policy.

    offset: [V + 1], the first clip of each video. Of the candidates, sorted by lower bound, the first proven one is
    taken, else the first.
    """
    if model.steps.num_steps > ENOUGH_STEPS:
        logger.info(
            "polynomials and priors are chosen on %d of %d steps, drawn at random, and used in all folds",
            ENOUGH_STEPS, model.steps.num_steps,
        )  # fmt: skip
    given = None if cfg.kappa is None or cfg.unsupported is None else Caution(cfg.kappa, cfg.unsupported)
    candidates = choose_caution(model, np.random.default_rng(cfg.seed), progress, given)
    chosen = next((one for one in candidates if one.proven > 0), candidates[0])
    for text in model.contradicted:
        logger.warning("the logs contradict the task file, which declares that %s; the declaration is used", text)
    if model.attempts_head.dispersion > 0:
        logger.info(
            "attempts vary more than Poisson counts: negative binomial, dispersion %.3g", model.attempts_head.dispersion
        )
    caution = chosen.caution
    logger.info(
        "caution%s: --kappa %g --unsupported %g; in cross-validation on the logs the policy gains $%+.2f/h over the "
        "logging policy, lower bound $%+.2f/h",
        "" if given is None else " (given)", caution.kappa, caution.unsupported, chosen.gain, chosen.proven,
    )  # fmt: skip
    is_proven = chosen.proven > 0
    if reason := model.steps.tells_nothing():
        logger.warning("%s", reason)
    if not is_proven:
        logger.warning(
            "no learned policy beats the logging policy by its lower bound in cross-validation on the logs: a clone of "
            "the logging policy is deployed"
        )
    cautious = model.with_caution(caution)
    transitions = None
    if cfg.reward_window == "step":
        transitions = _transitions(cautious, offset)
    else:
        logger.info("logged transitions are not used in replay, because --reward-window is %s", cfg.reward_window)
    return LogsPlan(cautious, candidates, is_proven, transitions)


def _transitions(model: LearnedOutcomes, offset: np.ndarray) -> Batch:
    """The logged steps, with rewards from their logged outcomes at λ = 0, its value when training starts."""
    steps, task = model.steps, model.task
    found = step_worth(model, steps.rows, Outcomes(steps.attempts, steps.errors))
    rewards = econ.lagrangian_reward(
        found.profit, found.err_rate, human_wage_usd=task.human_wage_usd, lambda_dual=0.0,
        err_target=task.error_target.at(0),
    )  # fmt: skip
    following = np.minimum(steps.rows + 1, offset[steps.video + 1] - 1)
    return Batch(steps.rows, steps.actions.astype(np.float32), rewards, np.ones(steps.num_steps), following)
