"""How fast evaluation is: episodes side by side with batched planning, beside one env in a loop and Gymnasium's vector env.

    python benchmarks/eval.py [--env tabletop|libero] [--hidden 256 --layers 6] [--episodes 16] [--num-envs 8] [--rounds 3]

The policy is a Qwen-OFT with random weights over a Qwen3-VL of the given size (true architecture), so no episode ends
before its step limit and all ways do the same work. The ways, interleaved, medians over the rounds:

    one env        reset, act, step in a loop, batch 1: how StarVLA's evaluation scripts work
    gymnasium      `AsyncVectorEnv` in lock step, a process per env, one batched `act` for all
    vla_agents     `rollout`, envs in this process
    processes      `rollout`, a process per env (`vla-agents eval --asynchronous`)
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from inference_models import make_backbone, make_normalizers, scaled

from vla_agents.agent import PolicyAgent
from vla_agents.embodiment import embodiment_of
from vla_agents.envs.vector import make_env, make_vec
from vla_agents.policies.qwen_oft import QwenOFT, QwenOFTConfig
from vla_agents.rollout import rollout

ENVS: dict[str, tuple[str, dict[str, Any]]] = {
    "tabletop": ("vla_agents/Tabletop-v0", {"image_size": 64, "cameras": ("front",), "max_steps": 40}),
    "libero": ("vla_agents/Libero-v0", {"suite": "libero_object", "image_size": 128, "max_steps": 20}),
}


def make_agent(env: str, options: dict[str, Any], hidden: int, layers: int) -> PolicyAgent:
    """Random weights: what it does is nonsense, what it costs is not."""
    single = make_env(env, **options)
    body = embodiment_of(single)
    single.close()
    backbone = make_backbone(scaled(hidden, layers, 8000))
    policy = QwenOFT(QwenOFTConfig(horizon=8, execute=4), backbone, body, make_normalizers(body)).eval()
    return PolicyAgent(policy)


def one_env(env: Any, agent: PolicyAgent, seeds: range) -> int:
    steps = 0
    for seed in seeds:
        obs, _ = env.reset(seed=seed)
        agent.reset(seed=seed)
        done = False
        while not done:
            obs, _, terminated, truncated, _ = env.step(agent.act(obs))
            steps, done = steps + 1, terminated or truncated
    return steps


def in_lock_step(vector: AsyncVectorEnv, agent: PolicyAgent, seeds: range, limit: int) -> int:
    count = vector.num_envs
    obs, _ = vector.reset(seed=[*seeds[:count]])
    for tick in range(limit * (len(seeds) // count)):
        if tick % limit == 0:
            agent.reset(seed=seeds[0])
        obs, *_ = vector.step(agent.act(obs))
    return limit * len(seeds)


def with_rollout(vector: Any, agent: PolicyAgent, seeds: range) -> int:
    return sum(result.steps for result in rollout(vector, agent, seeds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", choices=ENVS, default="tabletop")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.episodes % args.num_envs:
        parser.error("--episodes must be a multiple of --num-envs, or the lock step would do more work")
    env, options = ENVS[args.env]
    agent = make_agent(env, options, args.hidden, args.layers)
    seeds, count = range(args.episodes), args.num_envs
    make = functools.partial(make_env, env, **options)
    single = make()
    lock_step = AsyncVectorEnv(
        [make] * count, shared_memory=False, context="spawn", autoreset_mode=AutoresetMode.SAME_STEP
    )
    here, apart = (make_vec(env, count, asynchronous=processes, **options) for processes in (False, True))
    ways: dict[str, Callable[[], int]] = {
        "one env": lambda: one_env(single, agent, seeds),
        "gymnasium": lambda: in_lock_step(lock_step, agent, seeds, options["max_steps"]),
        "vla_agents": lambda: with_rollout(here, agent, seeds),
        "processes": lambda: with_rollout(apart, agent, seeds),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            rates[name].append(run() / (time.perf_counter() - start))
    parameters = sum(p.numel() for p in agent.policy.parameters()) / 1e6
    print(
        f"{args.env}, {args.episodes} episodes, {count} side by side, a policy of {parameters:.1f} M parameters"
    )
    base = statistics.median(rates["one env"])
    for name, found in rates.items():
        middle = statistics.median(found)
        print(f"  {name:12}{middle:8.1f} steps/s  {middle / base:5.2f}x")
    times = np.array([1 / rate for rate in rates["one env"]])
    for vector in (single, lock_step, here, apart):
        vector.close()
    print(f"  spread of the rounds of one env: {times.max() / times.min():.2f}")


if __name__ == "__main__":
    main()
