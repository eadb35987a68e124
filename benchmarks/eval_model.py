"""How fast an evaluation can be on a machine, computed from what its parts cost.

    python benchmarks/eval_model.py [--step-ms 120 --talk-ms 0.5 --policy-ms 60 --item-ms 10 --execute 8] [--cores 64]

A step of all envs, a tick, takes

    ceil(N / cores) x step  +  N x talk  +  (policy + N x item) / execute

with N envs, each in a process, `step` the CPU time of one env's step with its pictures, `talk` what its observation costs
the main process to receive, and `policy + n x item` the time of a plan for n envs, of which `execute` actions are carried
out. Episodes begin when the others plan, so every plan is for all. One env in a loop takes
`step + (policy + item) / execute`.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """What the parts take, in milliseconds.

    Args:
        step: CPU time of a step of one env.
        talk: Main process, for each env and step, where envs have processes of their own.
        policy: A plan, whatever the batch.
        item: A plan, for each env in the batch.
        execute: Actions carried out of a plan.
    """

    step: float
    talk: float
    policy: float
    item: float
    execute: int

    def one_env(self) -> float:
        """Steps per second of one env in a loop."""
        return 1000 / (self.step + (self.policy + self.item) / self.execute)

    def side_by_side(self, envs: int, cores: int) -> float:
        """Steps per second of envs in processes of their own."""
        tick = math.ceil(envs / cores) * self.step + envs * self.talk
        return 1000 * envs / (tick + (self.policy + envs * self.item) / self.execute)

    def in_one_process(self, envs: int) -> float:
        """Steps per second of envs that are stepped one after the other."""
        return 1000 * envs / (envs * self.step + (self.policy + envs * self.item) / self.execute)


def table(costs: Costs, cores: int, steps: int, episodes: int) -> str:
    """What to expect by the number of envs; `steps` of an episode, `episodes` of an evaluation."""
    base = costs.one_env()
    lines = [
        f"{cores} cores; a step {costs.step:.3g} ms, talk {costs.talk:.2g} ms, a plan {costs.policy:.3g} ms + "
        f"{costs.item:.3g} ms for each env, {costs.execute} actions of it; {episodes} episodes of {steps} steps",
        f"{'envs':>6}{'steps/s':>10}{'times':>8}{'minutes':>9}",
    ]
    for envs in (1, 4, 8, 16, 32, 64, 128):
        rate = base if envs == 1 else costs.side_by_side(envs, cores)
        lines.append(f"{envs:6}{rate:10.1f}{rate / base:7.1f}x{episodes * steps / rate / 60:9.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("step", 120.0), ("talk", 0.5), ("policy", 60.0), ("item", 10.0)):
        parser.add_argument(f"--{name}-ms", type=float, default=default)
    parser.add_argument("--execute", type=int, default=8)
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--episodes", type=int, default=2000)
    args = parser.parse_args()
    costs = Costs(args.step_ms, args.talk_ms, args.policy_ms, args.item_ms, args.execute)
    print(table(costs, args.cores, args.steps, args.episodes))


if __name__ == "__main__":
    main()
