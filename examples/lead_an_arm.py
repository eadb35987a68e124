"""A device of your own, and an arm that is led by it through inverse kinematics: `python examples/lead_an_arm.py`.

The hand here draws a figure of eight; yours would read your hardware. It leads the six joints of a UR5e model, and a
picture shows where the hand wanted the tool, where the joints brought it, and what each joint did.
"""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
from gymnasium import spaces

from vla_agents.collect.devices.hand import EndEffectorDevice, HandSource, Motion
from vla_agents.embodiment import Embodiment, Part
from vla_agents.robots.kinematics import Kinematics

HZ, SECONDS = 20, 12
START = np.array([0.0, -1.4, 1.6, -1.8, -1.57, 0.0], np.float32)


class FigureOfEight(HandSource):
    """A hand that moves by itself: 30 cm wide, 15 cm high, and turns a little about the vertical."""

    name = "figure_of_eight"

    def __init__(self) -> None:
        self.step = 0

    def read(self) -> Motion:
        now, then = self._at(self.step), self._at(self.step + 1)
        self.step += 1
        return Motion(way=then - now)

    @staticmethod
    def _at(step: int) -> np.ndarray:
        angle = 2 * np.pi * step / (HZ * SECONDS)
        return np.array([0, 0.15 * np.sin(angle), 0.075 * np.sin(2 * angle), 0, 0, 0.3 * np.sin(angle)])


class Arm(gymnasium.Env):
    """Joints that are where they were told to be."""

    def __init__(self, names: tuple[str, ...]) -> None:
        parts = tuple(Part(name, 1, "joint_position", -6.2832, 6.2832, "rad") for name in names)
        self.embodiment = Embodiment("arm", parts, parts, (), HZ)
        self.action_space = self.embodiment.action_space()
        self.observation_space = spaces.Dict({"state": self.action_space})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"state": START, "instruction": ""}, {}

    def step(self, action):
        return {"state": action, "instruction": ""}, 0.0, False, False, {}


def main(picture: str = "lead_an_arm.png") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arm = Kinematics("ur5e")
    env = Arm(arm.joints)
    joints, reached, wanted = [], [], []
    with EndEffectorDevice(env, FigureOfEight(), model="ur5e") as device:
        obs, _ = env.reset(seed=0)
        device.act(obs)  # neutral first: nothing moves yet
        start = arm.forward(START).position
        first = device.source.step
        for _ in range(HZ * SECONDS):
            wanted.append(
                start + FigureOfEight._at(device.source.step + 1)[:3] - FigureOfEight._at(first)[:3]
            )
            obs, *_ = env.step(device.act(obs))
            joints.append(obs["state"])
            reached.append(arm.forward(obs["state"]).position)
    found = np.array(joints), np.array(reached), np.array(wanted)
    draw(picture, arm.joints, *found)
    error = np.linalg.norm(found[1] - found[2], axis=1)
    print(f"largest distance between the tool and where the hand wanted it: {1000 * error.max():.2f} mm")
    print(
        f"largest change of a joint in one step: {np.abs(np.diff(found[0], axis=0)).max():.3f} rad; {picture}"
    )
    return found


def draw(picture: str, names: tuple[str, ...], joints: np.ndarray, reached: np.ndarray, wanted: np.ndarray):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot(100 * wanted[:, 1], 100 * wanted[:, 2], lw=5, color="0.8", label="the hand")
    left.plot(100 * reached[:, 1], 100 * reached[:, 2], lw=1.5, color="tab:blue", label="the tool")
    left.set(xlabel="y, cm", ylabel="z, cm", title="A UR5e led by its tool", aspect="equal")
    left.legend(loc="lower center")
    time = np.arange(len(joints)) / HZ
    for name, column in zip(names, joints.T, strict=True):
        right.plot(time, np.degrees(column - START[names.index(name)]), label=name)
    right.set(xlabel="s", ylabel="change, degrees", title="Its joints")
    right.legend(ncols=2, fontsize=8)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
