"""An env of your own in one file: a point that must reach the named corner. Run it: python examples/my_env.py

What makes it one of ours: the attribute `embodiment`, spaces made from it, `info["success"]`, and `expert_action()`.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from vla_agents import Camera, Embodiment, ExpertAgent, Part
from vla_agents.rollout import rollout

CORNERS = {"left": np.array([-0.8, 0.0]), "right": np.array([0.8, 0.0])}


class PointEnv(gym.Env):
    """Move a white point on a black field."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self) -> None:
        self.embodiment = Embodiment(
            name="point",
            action=(Part("velocity", 2, "other", -1, 1, "0.1 fields"),),
            state=(Part("position", 2, "other", -1, 1, "fields"),),
            cameras=(Camera("top", 32, 32),),
            control_hz=10,
        )
        self.observation_space = self.embodiment.observation_space()
        self.action_space = self.embodiment.action_space()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self._position = self.np_random.uniform(-0.5, 0.5, 2)
        self._goal = str(self.np_random.choice(list(CORNERS)))
        self._steps = 0
        return self._observe(), {"success": False, "task": "reach"}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self._position = np.clip(self._position + 0.1 * np.asarray(action), -1, 1)
        self._steps += 1
        success = bool(np.linalg.norm(self._position - CORNERS[self._goal]) < 0.1)
        info = {"success": success, "task": "reach"}
        return self._observe(), float(success), success, self._steps >= 40, info

    def expert_action(self) -> np.ndarray:
        return np.clip((CORNERS[self._goal] - self._position) / 0.1, -1, 1).astype(np.float32)

    def _observe(self) -> dict[str, Any]:
        picture = np.zeros((32, 32, 3), np.uint8)
        x, y = ((self._position + 1) / 2 * 29).astype(int)
        picture[y : y + 3, x : x + 3] = 255
        return {
            "images": {"top": picture},
            "state": self._position.astype(np.float32),
            "instruction": f"go to the {self._goal}",
        }


def main() -> None:
    gym.register("examples/Point-v0", entry_point=PointEnv)
    env = gym.make("examples/Point-v0")
    check_env(env.unwrapped, skip_render_check=True)
    results = rollout(env, ExpertAgent(env), seeds=range(20))
    print(f"the expert succeeds in {sum(r.success for r in results)} of {len(results)} episodes")


if __name__ == "__main__":
    main()
