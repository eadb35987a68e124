"""Training throughput: preprocessing in loader workers against doing it in `forward`, side by side.

    python benchmarks/train.py                      # a table; --json FILE for the numbers

The first way is StarVLA's: the dataset gives pictures and texts; the forward pass renders the chat template of every sample
and calls the Hugging Face processor on all of them (pictures, tokens), and positions are found sample by sample, all in the
training process. "ours, 0 workers" is our own preprocessing (tensors; prompts kept), still in the training process;
"ours, N workers" the same in workers (`Policy.preprocess`). All train the same tiny Qwen3-VL with an OFT head on the same
samples; the rounds take turns, so that a busy machine is busy for all of them alike. Their losses are compared: they must
agree.

"CPU of a step" is the CPU time of the training process: where each worker has a core of its own, it is about
the step's wall time (with one thread), and neighbours on the machine disturb it less than they disturb samples/s.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.normalize import Normalizer, VectorStats
from vla_agents.policies.checkpoint import make_policy
from vla_agents.policies.pretrained import resolve_vlm
from vla_agents.policies.processor import load_processor
from vla_agents.policies.qwen_decoder import PromptInputs
from vla_agents.policies.qwen_oft import QwenOFTConfig
from vla_agents.train.config import OptimizerConfig, RunConfig
from vla_agents.train.strategy import BehaviourCloning
from vla_agents.train.trainer import Trainer

TEXTS = [f"pick up the {colour} block" for colour in ("red", "green", "blue", "yellow")]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    steps: int = 8
    """Steps of a round."""
    rounds: int = 6
    """Rounds of each way, taking turns."""
    batch_size: int = 32
    """Samples per step."""
    image_size: int = 64
    """Side of the pictures."""
    cameras: int = 1
    """Pictures per sample."""
    workers: int = 1
    """Loader workers of our way."""
    threads: int = 0
    """CPU threads of the training process; 0: as many as torch takes by itself, one for each core."""
    json: str = ""
    """Write the numbers here."""


class Windows:
    """Random windows: loading costs next to nothing, so that preprocessing is what is compared."""

    def __init__(self, body: Embodiment, horizon: int, count: int = 2048) -> None:
        rng = np.random.default_rng(0)
        self._images = {
            c.name: rng.integers(0, 255, (256, c.height, c.width, 3), dtype=np.uint8) for c in body.cameras
        }
        self._state = rng.uniform(-1, 1, (count, body.state_dim)).astype(np.float32)
        self._action = rng.uniform(-1, 1, (count, horizon, body.action_dim)).astype(np.float32)
        self.step_of = np.arange(count) % 50

    def __len__(self) -> int:
        return len(self._state)

    def get_batch(self, indices: np.ndarray) -> dict[str, Any]:
        images = {name: frames[indices % 256] for name, frames in self._images.items()}
        return {
            "images": images, "instruction": [TEXTS[k % len(TEXTS)] for k in indices], "state": self._state[indices],
            "action": self._action[indices], "mask": np.ones(self._action[indices].shape[:2], bool),
        }  # fmt: skip


def make_body(options: Options) -> Embodiment:
    size = options.image_size
    return Embodiment(
        "bench",
        action=(Part("move", 7, "joint_position"),),
        state=(Part("joints", 7, "joint_position"),),
        cameras=tuple(Camera(f"camera{k}", size, size) for k in range(options.cameras)),
        control_hz=20.0,
    )


class Spent:
    """Seconds by part of the step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, name: str) -> Any:
        begin = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begin

    def around(self, owner: Any, method: str, name: str) -> None:
        real = getattr(owner, method)

        def timed(*arguments: Any, **more: Any) -> Any:
            with self.on(name):
                return real(*arguments, **more)

        setattr(owner, method, timed)


def as_starvla(backbone: Any, folder: Path) -> None:
    """Put what StarVLA calls in its forward pass in the place of our preprocessing: for every sample a chat template, then
    the Hugging Face processor over all pictures and texts, then the model's own rule for positions."""
    from PIL import Image

    processor, rule = load_processor(folder), backbone.vlm.model.get_rope_index

    def inputs(
        images: Any, texts: Any, suffix: str = "", *_: Any, device: Any = None, **__: Any
    ) -> PromptInputs:
        views = [[Image.fromarray(frame.numpy()) for frame in view] for view in images]
        samples = [list(pictures) for pictures in zip(*views, strict=True)]
        chats = [
            [{"role": "user", "content": [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]}]
            for pictures, text in zip(samples, texts, strict=True)
        ]  # fmt: skip
        rendered = processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        prompts = [text + suffix for text in rendered]
        found = processor(text=prompts, images=samples, padding=True, return_tensors="pt")
        arguments: dict[str, Any] = dict(found)
        arguments["position_ids"], _ = rule(**{k: v for k, v in found.items() if k != "pixel_values"})
        mask = found["attention_mask"].bool()
        if mask.all():
            arguments["attention_mask"] = None
        places = found["mm_token_type_ids"].nonzero()[:, 1].view(len(texts), -1)
        grids = [tuple(grid) for grid in found["image_grid_thw"][: len(views)].tolist()]
        return PromptInputs(arguments, grids, places, mask)

    backbone.inputs = inputs


def make(name: str, workers: int, options: Options, out: Path) -> tuple[Trainer, Spent, BehaviourCloning]:
    body = make_body(options)
    ones = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
    stats = VectorStats(count=10, **{key: (value,) * 7 for key, value in ones.items()})
    normalizers = {part: Normalizer(getattr(body, part), stats) for part in ("state", "action")}
    config = QwenOFTConfig(horizon=4, execute=3, head="mlp", head_width=256)
    policy = make_policy("qwen_oft", config, body, normalizers, seed=0)
    spent = Spent()
    if name == "forward":
        as_starvla(policy.backbone, Path(resolve_vlm(config.vlm)))
    spent.around(policy.backbone, "inputs", "preprocessing in the training process")
    strategy = BehaviourCloning(
        Windows(body, 4), None, options.batch_size, workers=workers,
        preprocess=policy.preprocess if workers else None,
    )  # fmt: skip
    optimizer = OptimizerConfig(kind="adamw", lr=1e-4)
    run = RunConfig(
        out=str(out / f"{name}{workers}"), batch_size=options.batch_size, optimizer=optimizer, device="cpu",
        tensorboard=False,
    )  # fmt: skip
    trainer = Trainer(policy, strategy, run)
    spent.around(trainer.engine, "backward", "backward pass")
    spent.around(trainer.engine, "step", "optimiser")
    spent.around(policy, "forward", "forward pass, with preprocessing if it is there")
    return trainer, spent, strategy


def main(options: Options) -> dict[str, Any]:
    if options.threads:
        torch.set_num_threads(options.threads)
    ways = {"in forward (StarVLA's way)": ("forward", 0), "ours, 0 workers": ("ours", 0)}
    ways[f"ours, {options.workers} workers"] = ("ours", options.workers)
    with tempfile.TemporaryDirectory() as folder:
        made = {title: make(*way, options, Path(folder)) for title, way in ways.items()}
        rates, waits, works, losses = (defaultdict(list) for _ in range(4))
        for number in range(options.rounds + 1):
            for title, (trainer, spent, _) in made.items():
                begin, worked, waited = time.perf_counter(), time.process_time(), 0.0
                for _ in range(options.steps):
                    report = trainer._train_step()
                    trainer.step += 1
                    waited += report.waited
                    losses[title].append(report.loss)
                seconds = time.perf_counter() - begin
                if number:  # the first round warms up
                    rates[title].append(options.steps * options.batch_size / seconds)
                    waits[title].append(waited / seconds)
                    works[title].append((time.process_time() - worked) / options.steps)
                else:
                    spent.seconds.clear()
        for _, _, strategy in made.values():
            strategy.close()
    first = next(iter(made))
    for title in made:
        np.testing.assert_allclose(losses[title], losses[first], rtol=1e-3)
    figures = {
        title: {
            "samples_per_second": float(np.median(rates[title])),
            "data_wait": float(np.median(waits[title])),
            "times": float(np.median(np.array(rates[title]) / np.array(rates[first]))),
            "cpu_per_step": float(np.median(works[title])),
            "times_by_cpu": float(np.median(np.array(works[first]) / np.array(works[title]))),
            "profile": {k: v / (options.rounds * options.steps) for k, v in made[title][1].seconds.items()},
        }
        for title in made
    }
    _show(figures)
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "figures": figures}, indent=2))
    return figures


def _show(figures: dict[str, Any]) -> None:
    table = Table(
        "way",
        "samples/s",
        "data wait",
        "times the first",
        "CPU of a step",
        "times by CPU",
        "preprocessing",
        "forward",
        "backward",
        "optimiser",
    )
    for title, found in figures.items():
        profile = {name.split()[0].rstrip(","): 1000 * value for name, value in found["profile"].items()}
        parts = [f"{profile.get(k, 0):.0f} ms" for k in ("preprocessing", "forward", "backward", "optimiser")]
        rate, wait = f"{found['samples_per_second']:.1f}", f"{100 * found['data_wait']:.1f} %"
        cpu = f"{1000 * found['cpu_per_step']:.0f} ms", f"{found['times_by_cpu']:.2f}"
        table.add_row(title, rate, wait, f"{found['times']:.2f}", *cpu, *parts)
    Console(width=140).print(table)


if __name__ == "__main__":
    main(replace(tyro.cli(Options)))
