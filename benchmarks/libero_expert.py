"""Libero-v0 in figures: how often the scripted expert succeeds within the published limits, and what a step costs.

python benchmarks/libero_expert.py --suites libero_object --init-states 3
python benchmarks/libero_expert.py --suites libero_spatial libero_goal libero_10 --init-states 2
python benchmarks/libero_expert.py --speed                  # CPU milliseconds per step, by picture size
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import gymnasium as gym
import numpy as np

import vla_agents  # noqa: F401  (registers the ids)
from vla_agents.envs.libero import SUITES, load_tasks

ID = "vla_agents/Libero-v0"


def make(**options: Any) -> Any:
    return gym.make(ID, disable_env_checker=True, **options).unwrapped


def expert_episodes(suite: str, task: int, init_states: int) -> tuple[list[int], int] | None:
    """Lengths of the successful ones of `init_states` episodes, and the failures; None where it does not try."""
    env, lengths, failures = make(suite=suite, task=task, cameras=()), [], 0
    for seed in range(init_states):
        env.reset(seed=seed)
        if not env.expert_can:
            return None
        over, steps, info = False, 0, {"success": False}
        while not over:
            _, _, terminated, truncated, info = env.step(env.expert_action())
            over, steps = terminated or truncated, steps + 1
        if info["success"]:
            lengths.append(steps)
        else:
            failures += 1
    env.close()
    return lengths, failures


def expert_table(suites: list[str], init_states: int) -> None:
    for suite in suites:
        lengths, episodes, tried = [], 0, 0
        for task in load_tasks(suite):
            result = expert_episodes(suite, task.index, init_states)
            if result is None:
                print(f"  {suite} {task.index}: not tried  {task.name}", flush=True)
                continue
            won, lost = result
            lengths, episodes, tried = lengths + won, episodes + len(won) + lost, tried + 1
            print(f"  {suite} {task.index}: {len(won)}/{len(won) + lost} {won} {task.name}", flush=True)
        print(
            f"{suite}: {len(lengths)}/{episodes} on {tried} tasks within {SUITES[suite].max_steps} steps, "
            f"mean {np.mean(lengths):.0f}, longest {max(lengths)}",
            flush=True,
        )


def speed(steps: int = 40) -> None:
    for options in ({"cameras": ()}, {"image_size": 64}, {"image_size": 128}, {"image_size": 256}):
        env = make(suite="libero_object", task=0, **options)
        env.reset(seed=0)
        again = time.process_time()
        env.reset(seed=1)
        start = time.process_time()
        for _ in range(steps):
            env.step(env.expert_action())
        cost = (time.process_time() - start) / steps * 1e3
        print(f"{options}: {cost:.0f} ms CPU per step, {start - again:.2f} s per reset", flush=True)
        env.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", nargs="+", default=["libero_object"], choices=list(SUITES))
    parser.add_argument("--init-states", type=int, default=3, help="episodes per task")
    parser.add_argument("--speed", action="store_true", help="measure step costs instead")
    args = parser.parse_args()
    if args.speed:
        speed()
    else:
        expert_table(args.suites, args.init_states)


if __name__ == "__main__":
    main()
