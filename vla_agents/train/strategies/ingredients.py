"""What a strategy is made of: `STRATEGIES` names builders, `(Ingredients) -> Strategy`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_agents.data import Mixture, WindowDataset
from vla_agents.policies.policy import Policy
from vla_agents.train.config import TrainConfig
from vla_agents.train.strategy import BehaviourCloning

# Given the policy (in eval mode) and the step; returns metrics, of which "success" decides what is best.
Evaluate = Callable[[Any, int], dict[str, float]]
# Makes one for an env: (its id, its options).
MakeEvaluate = Callable[[str, dict[str, Any]], Evaluate]


@dataclass
class Ingredients:
    """What a strategy is made of.

    Args:
        config: The run.
        policy: What learns.
        train: Windows to learn from.
        held_out: Windows to validate on.
        evaluate: Closed-loop evaluation in the run's env, where it names one; a builder may put another in its place.
        make_evaluate: The same in any env; None where nobody gave the means.
        load: Windows of another folder of episodes, made like those of `train`.
    """

    config: TrainConfig
    policy: Policy
    train: WindowDataset | Mixture
    held_out: WindowDataset | Mixture
    evaluate: Evaluate | None = None
    make_evaluate: MakeEvaluate | None = None
    load: Callable[[Path], Any] | None = None

    def draws(self) -> dict[str, Any]:
        """How windows are drawn, and what workers make of them: keyword arguments of `BehaviourCloning`."""
        config = self.config
        return {
            "batch_size": config.batch_size,
            "seed": config.seed,
            "first_steps": config.first_steps,
            "first_steps_weight": config.first_steps_weight,
            "workers": config.workers,
            "preprocess": self.policy.preprocess if config.workers else None,
        }


def check_evaluation(evaluate: Evaluate | None, policy: Policy) -> None:
    """Before the first step: is the evaluation possible? Asked of those that can tell, by a method `check(policy)`."""
    check = getattr(evaluate, "check", None)
    if check is not None:
        check(policy)


def behaviour_cloning(parts: Ingredients) -> BehaviourCloning:
    """Windows drawn at random."""
    return BehaviourCloning(parts.train, parts.held_out, **parts.draws())
