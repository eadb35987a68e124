"""How fast evaluation is: episodes side by side with batched planning, beside one env in a loop and Gymnasium's vector env.

    python benchmarks/eval.py [--env tabletop|libero] [--policy oft|gr00t] [--hidden 256 --layers 6] [--episodes 32]
                              [--num-envs 8] [--execute 4] [--rounds 3] [--ways processes]

The policy has random weights over a Qwen3-VL of the given size (true architecture). Episodes end at a step drawn from
their seed, between half of the limit and the limit, as those do that end with success. The ways, interleaved, medians over
the rounds:

    one env        reset, act, step in a loop, batch 1: how StarVLA's evaluation scripts work
    gymnasium      `AsyncVectorEnv` in lock step, a process per env, one batched `act` for all that need a plan
    vla_agents     `rollout`, envs in this process
    processes      `rollout`, a process per env (`vla-agents eval --asynchronous`)

Then what the parts cost, and what `eval_model.py` makes of it for this machine and for a larger one.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from eval_model import Costs, table
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from inference_models import make_backbone, make_normalizers, scaled

from vla_agents.agent import PolicyAgent
from vla_agents.chunking import RecedingHorizon
from vla_agents.embodiment import embodiment_of
from vla_agents.envs.vector import make_env, make_vec
from vla_agents.policies.qwen_gr00t import QwenGR00T, QwenGR00TConfig
from vla_agents.policies.qwen_oft import QwenOFT, QwenOFTConfig
from vla_agents.rollout import rollout

ENVS: dict[str, tuple[str, dict[str, Any]]] = {
    "tabletop": ("vla_agents/Tabletop-v0", {"image_size": 64, "cameras": ("front",), "max_steps": 40}),
    "libero": ("vla_agents/Libero-v0", {"suite": "libero_object", "image_size": 128, "max_steps": 60}),
}


class Ends(gymnasium.Wrapper):
    """Ends an episode between half of a limit and the limit, by its seed."""

    def __init__(self, env: gymnasium.Env, limit: int) -> None:
        super().__init__(env)
        self._limit = limit

    def reset(self, **options: Any) -> Any:
        """Draw the length."""
        draw = np.random.default_rng(options.get("seed"))
        self._left = int(draw.integers(self._limit // 2, self._limit + 1))
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        """As the env's own, until then."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._left -= 1
        return obs, reward, terminated, truncated or self._left <= 0, info


def make_agent(args: argparse.Namespace, env: Any) -> PolicyAgent:
    """Random weights: what it does is nonsense, what it costs is not."""
    body = embodiment_of(env)
    backbone = make_backbone(scaled(args.hidden, args.layers, 8000))
    policy: Any
    if args.policy == "oft":
        config = QwenOFTConfig(horizon=8, execute=args.execute)
        policy = QwenOFT(config, backbone, body, make_normalizers(body))
    else:
        head = QwenGR00TConfig(horizon=8, execute=args.execute, width=args.hidden, heads=4, depth=args.layers)
        policy = QwenGR00T(head, backbone, body, make_normalizers(body))
    return PolicyAgent(policy.eval(), chunker=RecedingHorizon(args.execute))


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
    """As many steps as the episodes of the others have, about; an episode that ends is followed by one without a seed."""
    count = vector.num_envs
    obs, _ = vector.reset(seed=[*seeds[:count]])
    agent.reset(seed=seeds[0])
    ticks = round(0.75 * limit * len(seeds) / count)
    for _ in range(ticks):
        obs, _, terminated, truncated, _ = vector.step(agent.act(obs))
        if (ended := terminated | truncated).any():
            agent.reset(ended)
    return ticks * count


def measure_costs(single: Any, apart: Any, agent: PolicyAgent, count: int, length: float) -> Costs:
    """What a step, a reset, a talk with sleeping envs, and plans for one and for all take: the fastest of some tries."""
    obs, _ = single.reset(seed=0)
    action = np.zeros(single.action_space.shape, np.float32)

    def fastest(run: Callable[[], Any], tries: int = 8, clock: Any = time.perf_counter) -> float:
        took = []
        for _ in range(tries):
            start = clock()
            run()
            took.append(1000 * (clock() - start))
        return min(took)

    reset = statistics.median(
        fastest(lambda seed=seed: single.reset(seed=seed), 1, time.process_time) for seed in (1, 2, 3)
    )
    step = statistics.median(fastest(lambda: single.step(action), 3, time.process_time) for _ in range(4))
    apart.reset(seed=0)
    apart.reset(seed=0, options={"reset_mask": np.ones(count, bool), "idle": True})
    talk = fastest(lambda: apart.step(np.zeros(apart.action_space.shape, np.float32))) / count
    one, all_ = (fastest(lambda n=n: agent.policy.plan([obs] * n, [None] * n), 5) for n in (1, count))
    item = (all_ - one) / (count - 1)
    return Costs(step, talk, one - item, item, agent.chunker.execute, reset, length)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", choices=ENVS, default="tabletop")
    parser.add_argument("--policy", choices=("oft", "gr00t"), default="oft")
    parser.add_argument("--ways", nargs="+", choices=("gymnasium", "vla_agents", "processes"), default=None)
    for name, default in (
        ("hidden", 256), ("layers", 6), ("episodes", 32), ("num-envs", 8), ("execute", 4), ("rounds", 3),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def main() -> None:
    args = parse()
    env, options = ENVS[args.env]
    seeds, count, limit = range(args.episodes), args.num_envs, options["max_steps"]
    wrappers = (functools.partial(Ends, limit=limit),)
    make = functools.partial(make_env, env, wrappers, **options)
    side_by_side = functools.partial(make_vec, env, count, wrappers=wrappers, **options)
    single = make()
    agent = make_agent(args, single)
    envs: dict[str, Any] = {"one env": single}
    makers: dict[str, Callable[[], Any]] = {
        "gymnasium": lambda: AsyncVectorEnv(
            [make] * count, shared_memory=False, context="spawn", autoreset_mode=AutoresetMode.SAME_STEP
        ),
        "vla_agents": side_by_side,
        "processes": lambda: side_by_side(asynchronous=True),
    }
    envs |= {name: makers[name]() for name in args.ways or makers}
    rates: dict[str, list[float]] = {name: [] for name in envs}
    for _ in range(args.rounds):
        for name, vector in envs.items():
            start = time.perf_counter()
            if name == "one env":
                steps = one_env(single, agent, seeds)
            elif name == "gymnasium":
                steps = in_lock_step(vector, agent, seeds, limit)
            else:
                steps = sum(result.steps for result in rollout(vector, agent, seeds))
            rates[name].append(steps / (time.perf_counter() - start))
    costs = measure_costs(
        single, envs.get("processes", envs[next(reversed(envs))]), agent, count, 0.75 * limit
    )
    show(args, agent, rates, costs, len(os.sched_getaffinity(0)))
    for vector in envs.values():
        vector.close()


def show(
    args: argparse.Namespace, agent: PolicyAgent, rates: dict[str, list[float]], costs: Costs, cores: int
) -> None:
    expected = {"one env": costs.one_env(), "vla_agents": costs.in_one_process(args.num_envs)}
    expected["processes"] = costs.side_by_side(args.num_envs, cores)
    parameters = sum(p.numel() for p in agent.policy.parameters()) / 1e6
    share = (costs.policy + costs.item) / costs.execute * costs.one_env() / 1000
    print(
        f"{args.env}, {args.episodes} episodes, {args.num_envs} side by side; {args.policy}, {parameters:.1f} M parameters,"
        f" {args.execute} actions of a plan; the policy takes {share:.0%} of one env's time"
    )
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, rates["one env"], strict=True))
        model = f"   (model: {expected[name]:.1f})" if name in expected else ""
        print(f"  {name:12}{statistics.median(found):8.1f} steps/s  {ratio:5.2f}x{model}")
    print(f"  spread of the rounds of one env: {max(rates['one env']) / min(rates['one env']):.2f}\n")
    print(table(replace(costs, length=150), 64, 500))


if __name__ == "__main__":
    main()
