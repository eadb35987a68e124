"""How sure a success rate is, and what a set of episodes comes to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from vla_agents.errors import ConfigError
from vla_agents.rollout import EpisodeResult


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share (E. B. Wilson 1927), `(low, high)` within [0, 1].

    Unlike mean +- 1.96 sigma it does not collapse at 0 or 100 %, where evaluations of robots like to end.

    Args:
        successes: Between 0 and `episodes`.
        episodes: Number of trials; with none, nothing is known: (0, 1).
        confidence: Probability that the interval covers the true share.
    """
    if not 0 <= successes <= episodes:
        raise ConfigError(f"{successes} successes of {episodes} episodes")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}, it must lie between 0 and 1")
    if episodes == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / episodes
    scale = 1 + z * z / episodes
    centre = (share + z * z / (2 * episodes)) / scale
    half = z * math.sqrt(share * (1 - share) / episodes + z * z / (4 * episodes * episodes)) / scale
    # The closed form touches 0 and 1 exactly; rounding must not leave a hair between.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == episodes else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class Aggregate:
    """A set of episodes in numbers.

    Args:
        episodes: How many were judged: played to their end, and the env or a person said what became of it.
        successes: How many of them succeeded.
        low: Lower end of the 95 % Wilson interval of the success rate.
        high: Upper end.
        mean_steps: Mean number of actions per episode, judged or not.
        mean_steps_success: The same over the successful ones; None where there is none.
        mean_reward: Mean sum of rewards.
        rates: For every other yes/no value of the last info (e.g. `"wrong"`): where it is true, as a share.
        errors: Episodes besides these in which the agent could not act; neither successes nor failures.
        unjudged: Episodes besides these that nobody judged; neither successes nor failures.
    """

    episodes: int
    successes: int
    low: float
    high: float
    mean_steps: float
    mean_steps_success: float | None
    mean_reward: float
    rates: dict[str, float] = field(default_factory=dict)
    errors: int = 0
    unjudged: int = 0

    @property
    def success(self) -> float:
        """Share of successful episodes (0.0 where there are no episodes)."""
        return self.successes / self.episodes if self.episodes else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "episodes": self.episodes,
            "successes": self.successes,
            "success": self.success,
            "low": self.low,
            "high": self.high,
            "mean_steps": self.mean_steps,
            "mean_steps_success": self.mean_steps_success,
            "mean_reward": self.mean_reward,
            "rates": self.rates,
            "errors": self.errors,
            "unjudged": self.unjudged,
        }


def aggregate(results: Iterable[EpisodeResult]) -> Aggregate:
    """What the episodes come to."""
    played = list(results)
    results = [result for result in played if not result.error]
    judged = [result for result in results if result.judged]
    good = [r for r in judged if r.success]
    flags = sorted({key for r in results for key, value in r.info.items() if isinstance(value, bool)})
    rates = {key: _mean([float(bool(r.info.get(key, False))) for r in results]) for key in flags}
    low, high = wilson(len(good), len(judged))
    return Aggregate(
        episodes=len(judged),
        successes=len(good),
        low=low,
        high=high,
        mean_steps=_mean([r.steps for r in results]),
        mean_steps_success=_mean([r.steps for r in good]) if good else None,
        mean_reward=_mean([r.reward for r in results]),
        rates=rates,
        errors=len(played) - len(results),
        unjudged=len(results) - len(judged),
    )


def by_task(results: Iterable[EpisodeResult]) -> dict[str, Aggregate]:
    """Task name -> its aggregate, in alphabetical order."""
    groups: dict[str, list[EpisodeResult]] = {}
    for result in results:
        groups.setdefault(result.task, []).append(result)
    return {task: aggregate(groups[task]) for task in sorted(groups)}


def percent(share: float) -> str:
    """`"97.5 %"`."""
    return f"{100 * share:.1f} %"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
