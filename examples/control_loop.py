"""The control loop: a trained policy in an env. After `vla-agents demo`: python examples/control_loop.py runs/demo/train"""

from __future__ import annotations

import sys

import gymnasium as gym

import vla_agents


def main(checkpoint: str, episodes: int = 5) -> None:
    env = gym.make("vla_agents/Tabletop-v0", cameras=("front",))
    with vla_agents.load_agent(checkpoint, env=env) as agent:
        for seed in range(1000, 1000 + episodes):
            obs, info = env.reset(seed=seed)
            agent.reset()
            done = False
            while not done:
                obs, _, terminated, truncated, info = env.step(agent.act(obs))
                done = terminated or truncated
            print(f"seed {seed}: {obs['instruction']!r} -> {'done' if info['success'] else 'failed'}")
    env.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/train")
