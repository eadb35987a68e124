"""Tabletop-v0 in figures: how often the scripted expert succeeds, and what a step costs.

python benchmarks/tabletop.py --seeds 200            # the expert, every family and difficulty
python benchmarks/tabletop.py --seeds 50 --noise 0.15
python benchmarks/tabletop.py --speed                # CPU milliseconds per step and renderer
"""

from __future__ import annotations

import argparse
import time

import gymnasium as gym
import numpy as np

import vla_agents  # noqa: F401  (registers the ids)
from vla_agents.envs import rendering
from vla_agents.envs.tabletop import DIFFICULTIES, FAMILIES

ID = "vla_agents/Tabletop-v0"


def expert_rate(task: str, difficulty: str, seeds: int, noise: float) -> tuple[int, float, int]:
    """Successes, mean and largest number of steps over `seeds` episodes; Gaussian noise on the motion."""
    env = gym.make(ID, task=task, difficulty=difficulty, cameras=()).unwrapped
    random, lengths, successes = np.random.default_rng(0), [], 0
    for seed in range(seeds):
        env.reset(seed=seed)
        over, steps = False, 0
        while not over:
            action = env.expert_action() + np.r_[random.normal(0, noise, 6), 0]
            _, _, terminated, truncated, info = env.step(action)
            over, steps = terminated or truncated, steps + 1
        successes += info["success"]
        lengths.append(steps)
    return successes, float(np.mean(lengths)), max(lengths)


def step_cost(steps: int = 200, **options: object) -> float:
    """CPU milliseconds of one step with its pictures."""
    env = gym.make(ID, **options).unwrapped
    env.reset(seed=0)
    env.step(np.zeros(7))
    start = time.process_time()
    for index in range(steps):
        env.step(env.expert_action())
        if index % 20 == 19:
            env.reset(seed=index)
    cost = (time.process_time() - start) / steps * 1e3
    env.close()
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=50, help="episodes per family and difficulty")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation added to the motion")
    parser.add_argument("--speed", action="store_true", help="measure step costs instead")
    args = parser.parse_args()
    if args.speed:
        print("| renderer | cameras | 64 | 128 | 224 |\n| --- | --- | --- | --- | --- |")
        print(f"| none | 0 | {step_cost(cameras=()):.2f} | | |")
        for name in dict.fromkeys((rendering.choose_renderer(), "raycast")):  # one OpenGL per process
            for cameras in (("front",), ("front", "wrist")):
                costs = [step_cost(renderer=name, cameras=cameras, image_size=s) for s in (64, 128, 224)]
                print(f"| {name} | {len(cameras)} | " + " | ".join(f"{c:.2f}" for c in costs) + " |")
        return
    print("| task | " + " | ".join(DIFFICULTIES) + " |\n" + "| --- " * (len(DIFFICULTIES) + 1) + "|")
    for task in FAMILIES:
        cells = [expert_rate(task, difficulty, args.seeds, args.noise) for difficulty in DIFFICULTIES]
        shown = [f"{n}/{args.seeds} ({mean:.1f} steps, at most {most})" for n, mean, most in cells]
        print(f"| {task} | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
