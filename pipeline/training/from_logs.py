"""Training on outcomes learned from logs: how cautiously, with which real transitions, and whether to deploy it."""

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
    """What folds of the logs say of learning from them.

    model: with the caution that rewards have. candidates: the cautions compared, the best by its lower bound first.
    is_proven: whether the policy that such outcomes make beat the logging policy on folds, by a lower bound.
    transitions: the logged steps as replay holds them; None with rewards that look back.
    """

    model: LearnedOutcomes
    candidates: list[Candidate]
    is_proven: bool
    transitions: Batch | None

    @property
    def deployed(self) -> str:
        return LEARNED if self.is_proven else CLONE

    def described(self) -> dict[str, str | int | float]:
        """For a policy's provenance, without a gain that too few videos leave open."""
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
    """Compare cautions on folds of the logs, and say whether what is learned beats the logging policy there.

    offset: [V + 1] where each video's clips begin. The candidate that is taken is the first by its lower bound of those
    that are proven, or else the first.
    """
    if model.steps.num_steps > ENOUGH_STEPS:
        logger.info(
            "polynomials and priors are chosen on %d steps, drawn from all %d, and folds keep them",
            ENOUGH_STEPS, model.steps.num_steps,
        )  # fmt: skip
    given = None if cfg.kappa is None or cfg.unsupported is None else Caution(cfg.kappa, cfg.unsupported)
    candidates = choose_caution(model, np.random.default_rng(cfg.seed), progress, given)
    chosen = next((one for one in candidates if one.proven > 0), candidates[0])
    for text in model.contradicted:
        logger.warning("the logs contradict what the task declares, that %s; it is imposed all the same", text)
    if model.attempts_head.dispersion > 0:
        logger.info(
            "attempts vary more than Poisson counts: negative binomial, dispersion %.3g", model.attempts_head.dispersion
        )
    caution = chosen.caution
    logger.info(
        "caution%s: kappa %g, %g wages where nothing like an action was logged; on folds of the logs the policy gains "
        "$%+.2f/h over the logging policy, at least $%+.2f/h",
        "" if given is None else " as given", caution.kappa, caution.unsupported, chosen.gain, chosen.proven,
    )  # fmt: skip
    is_proven = chosen.proven > 0
    if reason := model.steps.tells_nothing():
        logger.warning("%s", reason)
    if not is_proven:
        logger.warning(
            "nothing that was learned beats the logging policy on folds of the logs by its lower bound: the policy "
            "that is deployed clones the logging policy"
        )
    cautious = model.with_caution(caution)
    transitions = None
    if cfg.reward_window == "step":
        transitions = _transitions(cautious, offset)
    else:
        logger.info("logged transitions stay out of replay: --reward-window %s looks back", cfg.reward_window)
    return LogsPlan(cautious, candidates, is_proven, transitions)


def _transitions(model: LearnedOutcomes, offset: np.ndarray) -> Batch:
    """The logged steps, with the reward of their own outcomes at the beginning of training, when λ is 0."""
    steps, task = model.steps, model.task
    found = step_worth(model, steps.rows, Outcomes(steps.attempts, steps.errors))
    rewards = econ.lagrangian_reward(
        found.profit, found.err_rate, human_wage_usd=task.human_wage_usd, lambda_dual=0.0,
        err_target=task.error_target.at(0),
    )  # fmt: skip
    following = np.minimum(steps.rows + 1, offset[steps.video + 1] - 1)
    return Batch(steps.rows, steps.actions.astype(np.float32), rewards, np.ones(steps.num_steps), following)
