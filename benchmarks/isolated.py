"""What a step costs through an `IsolatedEnv`, beside the same env in this process and in Gymnasium's `AsyncVectorEnv`.

    python benchmarks/isolated.py [--rounds 5] [--steps 40]

Wall milliseconds per step, medians over interleaved rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv

from vla_agents.envs.vector import make_env

SIZES: dict[str, dict[str, Any]] = {
    "no pictures": {"cameras": ()},
    "2 x 64 x 64": {"cameras": ("front", "wrist"), "image_size": 64},
    "2 x 256 x 256": {"cameras": ("front", "wrist"), "image_size": 256},
}


def timed(env: Any, actions: np.ndarray) -> float:
    env.reset(seed=0)
    start = time.perf_counter()
    for action in actions:
        env.step(action)
    return (time.perf_counter() - start) / len(actions) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="below the tabletop's step limit")
    args = parser.parse_args()
    print(f"{'':16}{'in process':>12}{'isolated':>12}{'AsyncVector':>13}{'isolation costs':>17}")
    for name, options in SIZES.items():
        near = make_env("vla_agents/Tabletop-v0", **options)
        far = make_env("vla_agents/Isolated-v0", env="vla_agents/Tabletop-v0", **options)
        vector = AsyncVectorEnv(
            [lambda options=options: make_env("vla_agents/Tabletop-v0", **options)], context="spawn"
        )
        actions = np.random.default_rng(0).uniform(-0.1, 0.1, (args.steps, 7)).astype(np.float32)
        rows = [
            (timed(near, actions), timed(far, actions), timed(vector, actions[:, None]))
            for _ in range(args.rounds)
        ]
        a, b, c = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:16}{a:9.2f} ms{b:9.2f} ms{c:10.2f} ms{b - a:14.2f} ms")
        for env in (near, far, vector):
            env.close()


if __name__ == "__main__":
    main()
