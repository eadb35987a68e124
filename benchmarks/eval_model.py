"""How fast an evaluation can be on a machine, computed from what its parts cost.

    python benchmarks/eval_model.py [--step-ms 111 --reset-ms 2200 --policy-ms 28 --item-ms 36 --execute 8] [--cores 64]

`step` and `reset` are the CPU time of one env, `talk` what an observation costs the main process to receive, `policy +
n x item` the time of a plan for n envs, of which `execute` actions are carried out; N envs, episodes of L steps.

    one env in a loop, a step:
        step + (policy + item) / execute + reset / L
    one process that plans, N envs in processes of their own, N steps:
        ceil(N / cores) x step + N x talk + (policy + N x item) / execute + N x reset / L
        (episodes begin when the others plan, so a plan is for all; while one env is reset, the others wait)
    N shards with an env each and one server (`eval --shard i/N --agent ws://...`), steps per second, at most:
        N / (what one env takes), with step and reset ceil(N / cores) times as long, and not more than
        execute / (policy / N + item), what the server plans; nobody waits for another's reset
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
        reset: CPU time of a reset of one env.
        length: Steps of an episode.
    """

    step: float
    talk: float
    policy: float
    item: float
    execute: int
    reset: float
    length: float

    def _alone(self, share: int = 1) -> float:
        """Milliseconds for each step of one env that gets one in `share` of a core's time."""
        return share * (self.step + self.reset / self.length) + (self.policy + self.item) / self.execute

    def one_env(self) -> float:
        """Steps per second of one env in a loop."""
        return 1000 / self._alone()

    def side_by_side(self, envs: int, cores: int) -> float:
        """Steps per second of envs in processes of their own, one process that plans."""
        tick = math.ceil(envs / cores) * self.step + envs * (self.talk + self.reset / self.length)
        return 1000 * envs / (tick + (self.policy + envs * self.item) / self.execute)

    def in_one_process(self, envs: int) -> float:
        """Steps per second of envs that are stepped one after the other."""
        tick = envs * (self.step + self.reset / self.length)
        return 1000 * envs / (tick + (self.policy + envs * self.item) / self.execute)

    def served(self, envs: int, cores: int) -> float:
        """Steps per second, at most, of shards with an env each that one server plans for."""
        planned = 1000 * self.execute / (self.policy / envs + self.item)
        return min(1000 * envs / self._alone(math.ceil(envs / cores)), planned)


def table(costs: Costs, cores: int, episodes: int) -> str:
    """What to expect by the number of envs, of an evaluation of so many episodes."""
    base = costs.one_env()
    lines = [
        f"{cores} cores; a step {costs.step:.3g} ms, talk {costs.talk:.2g} ms, a reset {costs.reset:.4g} ms, "
        f"a plan {costs.policy:.3g} ms + {costs.item:.3g} ms for each env, {costs.execute} actions of it; "
        f"{episodes} episodes of {costs.length:g} steps",
        f"{'':6}{'one process':>27}{'shards and a server, at most':>32}",
        f"{'envs':>6}" + f"{'steps/s':>12}{'times':>7}{'minutes':>9}" * 2,
    ]
    for envs in (1, 4, 8, 16, 32, 64, 128):
        rates = (base, base) if envs == 1 else (costs.side_by_side(envs, cores), costs.served(envs, cores))
        cells = [
            f"{rate:12.1f}{rate / base:6.1f}x{episodes * costs.length / rate / 60:9.1f}" for rate in rates
        ]
        lines.append(f"{envs:6}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = {"step": 111.0, "reset": 2200.0, "talk": 0.2, "policy": 28.0, "item": 36.0}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}-ms", type=float, default=default)
    for name, number in {"execute": 8, "cores": 64, "length": 150, "episodes": 2000}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    args = parser.parse_args()
    costs = Costs(
        args.step_ms, args.talk_ms, args.policy_ms, args.item_ms, args.execute, args.reset_ms, args.length
    )
    print(table(costs, args.cores, args.episodes))


if __name__ == "__main__":
    main()
