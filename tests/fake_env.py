"""A small env for tests: a point that flies to the red or the blue target. No simulator.

The seed decides where everything is and how far there is to go, so episodes end at different times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import UnknownNameError

TASKS = ("red", "blue")


def make_embodiment(size: int = 16) -> Embodiment:
    """Two cameras, a position as state, a translation and a gripper as action."""
    return Embodiment(
        name="fake",
        action=(
            Part("move", 3, "delta_xyz", -1.0, 1.0, "0.1 m"),
            Part("gripper", 1, "gripper_close_pm1", -1.0, 1.0),
        ),
        state=(Part("position", 3, "xyz", -2.0, 2.0, "m"),),
        cameras=(Camera("front", size, size), Camera("wrist", size, size)),
        control_hz=10.0,
    )


BODY = make_embodiment()


def arm(**changes: Any) -> Embodiment:
    """A body whose action has a rotation."""
    values: dict[str, Any] = {
        "name": "arm",
        "action": (
            Part("position", 3, "xyz"),
            Part("turn", 3, "axis_angle"),
            Part("grip", 1, "gripper_open_01", 0, 1),
        ),
        "state": (Part("joints", 6, "joint_position", -3.1, 3.1, "rad"),),
        "cameras": (Camera("front", 16, 16), Camera("wrist", 16, 16)),
    }
    return Embodiment(**(values | changes))


def with_part(body: Embodiment, vector: str, index: int, **changes: Any) -> Embodiment:
    """The body with one part of its `"action"` or `"state"` changed."""
    parts = list(getattr(body, vector))
    parts[index] = replace(parts[index], **changes)
    return replace(body, **{vector: tuple(parts)})


def observation(body: Embodiment = BODY, seed: int = 0, lead: tuple[int, ...] = ()) -> dict[str, Any]:
    """Noise that fits the body; `lead` are leading axes."""
    rng = np.random.default_rng(seed)
    return {
        "images": {
            c.name: rng.integers(0, 255, (*lead, c.height, c.width, 3), np.uint8) for c in body.cameras
        },
        "state": rng.normal(size=(*lead, body.state_dim)).astype(np.float32),
        "instruction": "do it",
    }


class FakeEnv(gymnasium.Env):
    """Fly to the named target; going to the other one ends the episode as a failure."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        task: str = "any",
        image_size: int = 16,
        max_steps: int = 40,
        fail_every: int = 0,
        greeting: str = "",
        broken_seed: int = -1,
    ) -> None:
        if task not in (*TASKS, "any"):
            raise UnknownNameError("task", task, (*TASKS, "any"))
        self.embodiment = make_embodiment(image_size)
        self.observation_space = self.embodiment.observation_space()
        self.action_space = self.embodiment.action_space()
        self._wanted, self._max_steps, self._fail_every = task, max_steps, fail_every
        self._greeting, self._broken_seed = greeting, broken_seed

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._seed = seed or 0
        if self._seed == self._broken_seed:
            raise UnknownNameError("scene", seed, ("1", "2"))
        drawn = TASKS[int(self.np_random.integers(2))]
        self._task = drawn if self._wanted == "any" else self._wanted
        targets = self.np_random.uniform(0.2, 1.0, (2, 3)) * np.array([[1.0], [-1.0]])
        self._targets = dict(zip(TASKS, targets, strict=True))
        self._position = np.zeros(3)
        self._steps = 0
        wanted = (options or {}).get("instruction")
        if wanted is not None:
            self._task = wanted.split()[-2]
        return self._observe(), {"task": self._task, "renderer": "none"}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert np.shape(action) == (4,) and np.isfinite(action).all()
        self._position = np.clip(self._position + 0.1 * np.clip(np.asarray(action[:3], float), -1, 1), -2, 2)
        self._steps += 1
        near = {name: bool(np.linalg.norm(self._position - at) < 0.05) for name, at in self._targets.items()}
        success, wrong = near[self._task], any(near[name] for name in TASKS if name != self._task)
        if self._fail_every and self._seed % self._fail_every == 0:
            success = False
        info = {"task": self._task, "success": success, "wrong": np.bool_(wrong), "renderer": "none"}
        truncated = self._steps >= self._max_steps
        return self._observe(), float(success), success or wrong, truncated, info

    def expert_action(self) -> np.ndarray:
        away = (self._targets[self._task] - self._position) / 0.1
        return np.array([*np.clip(away, -1, 1), -1.0], np.float32)

    def possible_instructions(self) -> list[str]:
        return [f"{self._greeting}fly to the {name} target" for name in TASKS]

    def _observe(self) -> dict[str, Any]:
        size = self.embodiment.cameras[0].height
        image = np.zeros((size, size, 3), np.uint8)
        for channel, at in ((0, self._targets["red"]), (2, self._targets["blue"]), (1, self._position)):
            row, column = (np.clip((at[:2] + 2) / 4, 0, 0.999) * size).astype(int)
            image[row, column, channel] = 255
            image[0, :3, channel] = np.round((at + 2) / 4 * 255)  # exact enough for a policy to find it
        return {
            "images": {"front": image, "wrist": image[::-1].copy()},
            "state": self._position.astype(np.float32),
            "instruction": f"{self._greeting}fly to the {self._task} target",
        }


class FakePolicy:
    """Plans like a policy would: a chunk that depends on the observation alone; counts what it is asked."""

    def __init__(self, horizon: int = 6, default_execute: int = 3) -> None:
        self.embodiment = make_embodiment()
        self.horizon, self.default_execute = horizon, default_execute
        self.training = True
        self.planned = 0
        self.batches: list[int] = []

    def eval(self) -> FakePolicy:
        return self.train(False)

    def train(self, mode: bool = True) -> FakePolicy:
        self.training = mode
        return self

    def generator(self, seed: int) -> None:
        """It has no randomness."""

    def plan(self, observations: list[dict[str, Any]], generators: Sequence[None] = ()) -> np.ndarray:
        """float32 (n, H, 4)"""
        self.planned += len(observations)
        self.batches.append(len(observations))
        return np.stack([self._chunk(obs) for obs in observations]).astype(np.float32)

    def _chunk(self, obs: dict[str, Any]) -> np.ndarray:
        channel = 0 if "red" in obs["instruction"] else 2
        target = obs["images"]["front"][0, :3, channel] / 255 * 4 - 2
        away = (target - obs["state"]) / 0.1
        steps = np.linspace(1.0, 0.2, self.horizon)[:, None]
        return np.concatenate([np.clip(away, -1, 1) * steps, np.full((self.horizon, 1), -1.0)], axis=1)


ENV_ID = "fake_env:vla_agents_tests/Fake-v0"  # importing this module registers it, in worker processes too
if "vla_agents_tests/Fake-v0" not in gymnasium.registry:
    gymnasium.register("vla_agents_tests/Fake-v0", entry_point=FakeEnv)
