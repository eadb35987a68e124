"""Replaying a recorded episode on a robot: the same actions at the same rate, through the safety filter."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_agents.data import open_dataset
from vla_agents.data.episode import Episode
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError
from vla_agents.robots.env import RobotEnv
from vla_agents.robots.robot import Robot


@dataclass
class ReplayReport:
    """What came of it.

    Attributes:
        steps: Actions replayed.
        interventions: What the safety filter changed, and how often.
        missed: Periods that were missed.
        deviation: (S,) largest difference of each state value from the recorded one; None where the episode has none.
        names: Of those values.
    """

    steps: int = 0
    interventions: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    deviation: np.ndarray | None = None
    names: tuple[str, ...] = ()


def load_episode(path: str, index: int) -> Episode:
    """An episode without its pictures; `ConfigError` where there is none of that number."""
    reader = open_dataset(path)
    if not 0 <= index < len(reader):
        raise ConfigError(f"{path} has no episode {index}", f"it has {len(reader)}: 0 to {len(reader) - 1}")
    return reader.read(index, images=False)


def require_same_body(robot: Robot, episode: Embodiment, where: str) -> None:
    """Refuse an episode of another body.

    A dataset that names its numbers but not their conventions (one of LeRobot) fits a robot whose axes have just
    these names in this order.
    """
    names = [part.name for part in episode.action]
    if all(part.kind == "other" for part in episode.action) and names == list(robot.limits.names):
        return
    bare = {"cameras": (), "state": (), "control_hz": 1.0}
    ours = dataclasses.replace(robot.embodiment, **bare)  # type: ignore[arg-type]
    ours.require(dataclasses.replace(episode, **bare), ours="the robot", theirs=where)  # type: ignore[arg-type]


def replay(
    robot: Robot,
    episode: Episode,
    *,
    speed: float = 1.0,
    where: str = "the episode",
    show: Callable[[int], Any] | None = None,
) -> ReplayReport:
    """Drive to the first action, then send all of them; the robot is closed in the end.

    Args:
        robot: Not connected yet.
        episode: Of the same body.
        speed: Times the recorded rate, above 0 and at most 1.
        where: What to call the episode in errors.
        show: Called after each step with its number.

    Raises:
        EmbodimentMismatchError: The episode is of another body.
        RobotError: The robot fails, or the stop is latched.
    """
    if not 0 < speed <= 1:
        raise ConfigError(f"speed is {speed}", "it lies above 0 and is at most 1")
    require_same_body(robot, episode.embodiment, where)
    actions = episode.action if episode.executed is None else episode.executed
    robot.cameras = ()  # nobody looks
    report = ReplayReport(names=tuple(part.name for part in robot.embodiment.state))
    env = RobotEnv(robot, hz=episode.embodiment.control_hz * speed, home=False)
    try:
        env.reset()
        env.go(np.asarray(actions[0], np.float64))
        env.reset()
        for number, action in enumerate(actions):
            observation, _, _, _, info = env.step(action)
            report.steps += 1
            report.interventions.update(info["interventions"])
            report.missed = info["missed_ticks"]
            if episode.state is not None and number + 1 < len(episode) and "state" in observation:
                _compare(report, observation["state"], episode.state[number + 1])
            if show is not None:
                show(number)
    finally:
        env.close()
    return report


def _compare(report: ReplayReport, now: np.ndarray, then: np.ndarray) -> None:
    if now.shape == then.shape:
        away = np.abs(now - then)
        report.deviation = away if report.deviation is None else np.maximum(report.deviation, away)
