"""Gymnasium wrappers that experiments need."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from vla_agents.embodiment import embodiment_of
from vla_agents.errors import ConfigError


class ActionNoise(gymnasium.Wrapper):
    """Perturb what is executed while the recorded label stays clean, so that demonstrations cover recoveries.

    Gaussian noise at every step (DART: Laskey et al. 2017) shows how to come back to the path. Bursts, a few steps
    in which a random action is executed whatever the agent says, show how to begin again from anywhere: gripper
    closed on nothing, tilted, far off. Both are drawn from the reset seed, so the episode stays a function of its
    seed. What was executed is in `info["executed"]`.

    Args:
        env: The env; its embodiment says which values are rotations and grippers.
        std: Standard deviation of the Gaussian noise, in action units.
        dims: How many leading values it falls on (3: the translation of a delta end-effector action).
        probability: Share of the steps with Gaussian noise.
        bursts: Share of the episodes with a burst of 2 to 6 steps, beginning within the first 12.
    """

    def __init__(
        self, env: gymnasium.Env, std: float, dims: int = 3, probability: float = 1.0, bursts: float = 0.0
    ) -> None:
        super().__init__(env)
        self.std, self.dims, self.probability, self.bursts = std, dims, probability, bursts
        self._parts = embodiment_of(env).action
        self._rng = np.random.default_rng()
        self._step = 0
        self._burst: tuple[int, int, np.ndarray] = (0, 0, np.zeros(0))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset, and reseed the noise where a seed is given."""
        if seed is not None:
            self._rng = np.random.default_rng([seed, 0xDA57])
        self._step = 0
        self._burst = self._draw_burst()
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step with the perturbed action."""
        executed = np.array(action, np.float32)
        noise = self._rng.normal(0.0, self.std, self.dims)
        if self._rng.random() < self.probability:
            executed[: self.dims] += noise
        first, last, blind = self._burst
        if first <= self._step < last:
            executed = blind
        self._step += 1
        space = self.action_space
        executed = np.clip(executed, space.low, space.high)  # type: ignore[attr-defined]
        obs, reward, terminated, truncated, info = self.env.step(executed)
        return obs, reward, terminated, truncated, info | {"executed": executed}

    def _draw_burst(self) -> tuple[int, int, np.ndarray]:
        """First step, step after the last, action; an empty range where the episode has none."""
        rng = self._rng
        if not self.bursts or rng.random() >= self.bursts:
            return 0, 0, np.zeros(0, np.float32)
        values = []
        for part in self._parts:
            low, high = part.bounds()
            drawn = rng.uniform(low, high)
            if part.kind == "delta_axis_angle":
                drawn *= 0.2  # a tilt from which one can still work
            elif part.kind.startswith("gripper"):
                drawn = np.where(rng.random(part.size) < 0.5, low, high)
            values.append(drawn)
        first = int(rng.integers(0, 13))
        return first, first + int(rng.integers(2, 7)), np.concatenate(values).astype(np.float32)


class SwappedInstruction(gymnasium.Wrapper):
    """The scene that the seed gives, with another instruction: the control that shows that language is used.

    The env must offer `possible_instructions()` and take `options={"instruction": ...}`. `info["success"]`
    then judges the new instruction; `info["swapped_from"]` holds the old one.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        if not hasattr(env.unwrapped, "possible_instructions"):
            raise ConfigError(
                f"{env} cannot swap instructions",
                "give the env class a method possible_instructions() and the reset option 'instruction'",
            )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset twice: once to learn what the seed would ask, once with another instruction."""
        if seed is None:  # a seedless second reset would draw another scene
            raise ConfigError("SwappedInstruction.reset needs a seed", "pass reset(seed=...)")
        obs, _ = self.env.reset(seed=seed, options=options)
        old = obs["instruction"]
        others = [text for text in self.env.unwrapped.possible_instructions() if text != old]  # type: ignore[attr-defined]
        if not others:
            raise ConfigError(f"the scene allows no other instruction than {old!r}")
        new = others[int(np.random.default_rng([seed, 0x5A4B]).integers(len(others)))]
        obs, info = self.env.reset(seed=seed, options={**(options or {}), "instruction": new})
        self._old = old
        return obs, info | {"swapped_from": old}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; the info keeps saying what was swapped."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, info | {"swapped_from": self._old}


class Idle(gymnasium.Wrapper):
    """A slot of a vector env that can sleep, after `reset(options={"idle": True})`, until the next reset.

    A vector env steps all of its slots, also those for which no episode is left; asleep, a slot hands out
    its last observation and does not disturb the env behind it.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._asleep = False
        self._last: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Fall asleep, or wake up and reset."""
        self._asleep = bool(options and options.get("idle"))
        if self._asleep:
            if self._last is None:
                raise ConfigError("a slot must be reset once before it can idle")
            return self._last, {}
        self._last, info = self.env.reset(seed=seed, options=options)
        return self._last, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the env unless asleep."""
        if self._asleep:
            return self._last, 0.0, False, False, {}
        self._last, reward, terminated, truncated, info = self.env.step(action)
        return self._last, reward, terminated, truncated, info

    def expert_action(self) -> np.ndarray:
        """The env's own expert, which is not asked while asleep."""
        if self._asleep:
            return np.zeros(self.action_space.shape or (), np.float32)
        return self.env.get_wrapper_attr("expert_action")()
