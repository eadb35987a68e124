"""Stage after stage, from easy to hard; a stage is over when the policy succeeds in its env, not when a loss is low.

At every validation the policy plays the episodes of its stage. From a threshold of success on, the next stage begins; the
stages before keep a share of the samples. Where success stays near zero for some validations, training goes back a stage, a
limited number of times; and no stage takes longer than its cap, so every run comes to its last stage.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_agents.data import Draws
from vla_agents.errors import ConfigError
from vla_agents.policies.policy import Batch
from vla_agents.train.strategies.ingredients import Evaluate, Ingredients, check_evaluation
from vla_agents.train.strategies.multitask import spread, weigh_groups
from vla_agents.train.strategy import BehaviourCloning
from vla_agents.train.strategy_config import CurriculumConfig, StageConfig

_log = logging.getLogger(__name__)


class Curriculum(BehaviourCloning):
    """Behaviour cloning whose samples come from the present stage and those before it.

    Args:
        train: Windows of all stages.
        validation: Windows held out, of all stages.
        stage_of: int (N,): stage of every window to learn from ...
        validation_stage_of: ... and of every window held out.
        settings: Stages and rules.
        max_steps: Cap of a stage.
        **draws: Of `BehaviourCloning`.

    Attributes:
        stage: The present one, from 0.
        history: What happened: step, stage, success, and "advanced", "capped" or "backed off".
    """

    def __init__(
        self,
        train: Any,
        validation: Any,
        stage_of: np.ndarray,
        validation_stage_of: np.ndarray,
        settings: CurriculumConfig,
        max_steps: int,
        **draws: Any,
    ) -> None:
        super().__init__(train, validation, **draws)
        self.settings, self.max_steps = settings, max_steps
        self._stage_of, self._validation_stage_of = stage_of, validation_stage_of
        self._within = np.where(train.step_of < draws["first_steps"], draws["first_steps_weight"], 1.0)
        self.history: list[dict[str, Any]] = []
        self._began, self._low, self._back_offs = 0, 0, 0
        self._enter(0)

    def _enter(self, stage: int) -> None:
        self.close()  # workers have loaded ahead of the old stage
        self.stage = stage
        shares = stage_shares(stage, len(self.settings.stages), self.settings.replay)
        weights = weigh_groups(self._stage_of, shares, self._within)
        self._order = Draws(weights, self.batch_size, self.seed)

    def validation(self) -> dict[str, list[Batch]]:  # type: ignore[override]
        """Of every stage, the same all the time."""
        found = {}
        for number, stage in enumerate(self.settings.stages):
            batches = spread(self.held_out, np.flatnonzero(self._validation_stage_of == number))
            if batches:
                found[stage.name] = batches
        return found

    def observe(self, step: int, metrics: dict[str, float]) -> None:
        """Advance, go back, or stay."""
        success = metrics.get("stage_success")
        if success is None:
            return
        rules, last = self.settings, len(self.settings.stages) - 1
        wanted = rules.stages[self.stage].threshold or rules.threshold
        self._low = self._low + 1 if success < rules.back_off else 0
        if self.stage < last and success >= wanted:
            self._move(step, success, "advanced")
        elif self.stage < last and step - self._began >= self.max_steps:
            self._move(step, success, "capped")
        elif self.stage > 0 and self._low >= rules.patience and self._back_offs < rules.max_back_offs:
            self._back_offs += 1
            self._move(step, success, "backed off")

    def _move(self, step: int, success: float, why: str) -> None:
        target = self.stage + (-1 if why == "backed off" else 1)
        names = [stage.name for stage in self.settings.stages]
        self.history.append({"step": step, "stage": names[self.stage], "success": success, "what": why})
        _log.info(
            "step %d: stage %r %s at success %.2f; now %r",
            step,
            names[self.stage],
            why,
            success,
            names[target],
        )
        self._began, self._low = step, 0
        self._enter(target)

    def state_dict(self) -> dict[str, Any]:
        """Where it is and how it came there."""
        return {
            "stage": self.stage,
            "began": self._began,
            "low": self._low,
            "back_offs": self._back_offs,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the same stage."""
        self._began, self._low, self._back_offs = state["began"], state["low"], state["back_offs"]
        self.history = list(state["history"])
        self._enter(state["stage"])


class StageEvaluation:
    """Closed loop in the env of the present stage, and in that of the last one, whose success decides what is best.

    Args:
        curriculum: Says which stage it is; set before the first call.
        evaluations: One per stage.
    """

    def __init__(self, curriculum: Curriculum, evaluations: Sequence[Evaluate]) -> None:
        self._curriculum, self._evaluations = curriculum, list(evaluations)

    def check(self, policy: Any) -> None:
        """Every stage's, before training."""
        for evaluation in self._evaluations:
            check_evaluation(evaluation, policy)

    def __call__(self, policy: Any, step: int) -> dict[str, float]:
        """`stage`, `stage_success`, and the metrics of the last stage."""
        stage = self._curriculum.stage
        last = len(self._evaluations) - 1
        target = self._evaluations[last](policy, step)
        present = target if stage == last else self._evaluations[stage](policy, step)
        return {"stage": float(stage), "stage_success": present["success"], **target}


def stage_shares(stage: int, count: int, replay: float) -> list[float]:
    """Shares of all stages: the present one has `1 - replay`, those before it divide the rest evenly."""
    if stage == 0:
        return [1.0] + [0.0] * (count - 1)
    return [replay / stage] * stage + [1 - replay] + [0.0] * (count - stage - 1)


def build(parts: Ingredients) -> Curriculum:
    """As a run's configuration says; puts the evaluation by stages in the place of the run's own."""
    config, settings = parts.config, parts.config.curriculum
    names = [_env_of(stage, config.env) for stage in settings.stages]
    if parts.make_evaluate is None:
        raise ConfigError(
            "a curriculum advances by closed-loop success, and there is no way to evaluate",
            "run it by `vla-agents train`, or hand train() `make_evaluate`",
        )
    stage_of = np.repeat(np.arange(len(settings.stages)), [len(stage.dataset) for stage in settings.stages])
    curriculum = Curriculum(
        parts.train,
        parts.held_out,
        stage_of[parts.train.dataset_of],  # type: ignore[union-attr]
        stage_of[parts.held_out.dataset_of],  # type: ignore[union-attr]
        settings,
        settings.max_steps or max(1, config.steps // len(settings.stages)),
        **parts.draws(),
    )
    evaluations = [
        parts.make_evaluate(name, dict(stage.env_args))
        for name, stage in zip(names, settings.stages, strict=True)
    ]
    parts.evaluate = StageEvaluation(curriculum, evaluations)
    return curriculum


def _env_of(stage: StageConfig, default: str) -> str:
    if not (stage.env or default):
        raise ConfigError(
            f"curriculum: stage {stage.name!r} has no env to decide when it is over", "give the run's --env"
        )
    return stage.env or default
