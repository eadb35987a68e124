"""Devices without a person: the env's scripted expert, and a recorded episode."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vla_agents.agent import ExpertAgent, Observation
from vla_agents.collect.devices.holding import Holding
from vla_agents.collect.replay import load_episode
from vla_agents.collect.teleop import Device, Event
from vla_agents.errors import ConfigError


class ExpertDevice(Device):
    """The env's scripted expert in the operator's place, e.g. as the one who takes over from a policy.

    Args:
        env: With a method `expert_action()`.
        keys: Not needed.
    """

    name = "expert"

    def __init__(self, env: Any, *, keys: Any = None) -> None:
        self._expert = ExpertAgent(env)

    def act(self, obs: Observation) -> np.ndarray:
        """What the expert would do now."""
        return self._expert.act(obs)


class ReplayDevice(Device):
    """The actions of a recorded episode, one per call; then it holds, and asks once to save.

    Args:
        env: Of the same body.
        dataset: Folder.
        episode: Which.
        keys: Not needed.
    """

    name = "replay"

    def __init__(self, env: Any, *, dataset: str = "", episode: int = 0, keys: Any = None) -> None:
        if not dataset:
            raise ConfigError("no dataset to replay is given", "dataset=FOLDER episode=NUMBER")
        found = load_episode(str(dataset), episode)
        self._holding = Holding(env)
        ours = self._holding.embodiment
        bare: dict[str, Any] = {"cameras": (), "state": ()}
        dataclasses.replace(ours, **bare).require(
            dataclasses.replace(found.embodiment, **bare),
            ours="the env",
            theirs=f"episode {episode} of {dataset}",
        )
        self._actions = np.asarray(
            found.action if found.executed is None else found.executed, np.float32
        )  # (T, D)
        self._next = 0
        self._asked = False

    def reset(self, mask: np.ndarray | None = None, *, seed: Any = None) -> None:
        """From the start."""
        self._next, self._asked = 0, False

    def act(self, obs: Observation) -> np.ndarray:
        """The next action, float32 (D,); at the end the one that holds."""
        if self._next < len(self._actions):
            self._next += 1
            return self._actions[self._next - 1].copy()
        return self._holding.action(self._actions[-1], obs)

    def events(self) -> list[Event]:
        """One `SAVE`, when the episode is over."""
        over = self._next >= len(self._actions) and not self._asked
        self._asked = self._asked or over
        return [Event.SAVE] if over else []
