"""Film a trained policy at work, in pictures for people: python examples/render_gif.py runs/demo/train docs/demo.gif"""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
from PIL import Image

import vla_agents
from vla_agents.eval.video import caption_frame, write_gif


def main(checkpoint: str, out: str, episodes: int = 6, side: int = 288) -> None:
    env = gym.make("vla_agents/Tabletop-v0", cameras=("front",), render_mode="rgb_array")
    frames: list[np.ndarray] = []
    with vla_agents.load_agent(checkpoint, env=env) as agent:
        for seed in range(9_000, 9_000 + episodes):
            obs, info = env.reset(seed=seed)
            agent.reset()
            done, step = False, 0
            while True:
                picture = Image.fromarray(env.render()).resize((side, side), Image.Resampling.LANCZOS)
                outcome = info["success"] if done else None
                frames.append(caption_frame(np.asarray(picture), obs["instruction"], f"step {step}", outcome))
                if done:
                    frames += [frames[-1]] * 5
                    break
                obs, _, terminated, truncated, info = env.step(agent.act(obs))
                done, step = terminated or truncated, step + 1
    env.close()
    write_gif(out, frames, fps=8)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
