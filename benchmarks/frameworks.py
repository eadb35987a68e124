"""The four frameworks on the tabletop at equal data and equal time: the table in docs/policies.md.

    vla-agents collect --out data/lift --episodes 1500 --noise 0.3 --bursts 0.4 --no-durable \
        --env-args task=lift difficulty=medium 'cameras=[front]'
    python benchmarks/frameworks.py --dataset data/lift --out runs/frameworks

Each is trained by its recipe in examples/recipes on one thread. A step of each is timed first, in turns, in CPU seconds of
this process, which other processes disturb less than the clock on the wall; a budget of 1 is what Qwen-OFT's recipe takes
for all its steps, and the others take as many steps as fit in (`--budget 2`: twice that). Success is that on 100 scenes no
demonstration had, and on the same scenes told another block. Runs that are there are not trained again, and what
results.json holds already is kept, so the policies can be run one after another (`--policies qwen_fast`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from vla_agents.config import load_config
from vla_agents.data import WindowDataset, open_dataset
from vla_agents.eval.evaluate import EvalConfig, PolicyEvaluator
from vla_agents.policies.checkpoint import load_policy, make_policy
from vla_agents.train.config import TrainConfig
from vla_agents.train.run import action_chunks, fit_normalizers, train
from vla_agents.train.strategy import BehaviourCloning
from vla_agents.train.trainer import Trainer

RECIPES = Path(__file__).parent.parent / "examples" / "recipes"
BASELINE = "qwen_oft"
ENV_ARGS = {"task": "lift", "difficulty": "medium", "cameras": ("front",)}
FIRST_SEED = 500_000_000


@dataclass(frozen=True)
class Options:
    """Train and evaluate the recipes at equal CPU time."""

    dataset: str
    """Folder of the demonstrations."""
    out: Path = Path("runs/frameworks")
    """Folder of the runs, one for each policy and budget, and of results.json."""
    policies: tuple[str, ...] = ("qwen_oft", "qwen_gr00t", "qwen_pi", "qwen_fast")
    """Which recipes."""
    budget: float = 1.0
    """CPU time, in those of Qwen-OFT's whole recipe."""
    episodes: int = 100
    """Scenes of the evaluation."""
    seed: int = 0
    """Of the training runs."""
    rounds: int = 4
    """Rounds of the timing, five steps of each policy in each."""


def recipe(name: str, options: Options) -> TrainConfig:
    """The recipe of a policy, on these data, on one thread."""
    found = load_config(TrainConfig, RECIPES / f"{name}.yaml")
    return replace(found, dataset=(options.dataset,), threads=1, seed=options.seed, tensorboard=False)


def relative_cost(names: Iterable[str], options: Options) -> dict[str, float]:
    """CPU seconds of an optimiser step as a share of the baseline's, five of each policy in turn."""
    trainers = {}
    for name in dict.fromkeys([BASELINE, *names]):
        config = replace(recipe(name, options), out=str(options.out / "timing"))
        windows = WindowDataset(open_dataset(options.dataset), config.model.horizon)
        policy = make_policy(
            name, config.model, windows.embodiment, fit_normalizers(windows, config.normalization)
        )
        policy.prepare(action_chunks(windows))
        trainers[name] = Trainer(policy, BehaviourCloning(windows, None, config.batch_size), config)
        trainers[name]._train_step()
    spent = dict.fromkeys(trainers, 0.0)
    for _ in range(options.rounds):
        for name, trainer in trainers.items():
            begin = time.process_time()
            for _ in range(5):
                trainer.step += 1
                trainer._train_step()
            spent[name] += time.process_time() - begin
    return {name: seconds / spent[BASELINE] for name, seconds in spent.items()}


def run(name: str, steps: int, options: Options) -> dict[str, Any]:
    """Train and evaluate one policy."""
    out = options.out / f"{name}_{options.budget:g}_{options.seed}"
    begin = time.process_time()
    if not (out / "last").exists():
        third = max(1, steps // 3)
        config = replace(recipe(name, options), out=str(out), steps=steps, validate_every=third)
        if train(config, progress=False).interrupted:
            raise SystemExit(f"interrupted: remove {out} before the next try")
    found: dict[str, Any] = {
        "steps": steps,
        "cpu_seconds_with_loading": round(time.process_time() - begin, 1),
    }
    policy = load_policy(out / "last", device="cpu")
    found["parameters"] = sum(p.numel() for p in policy.parameters())
    for what in ("named", "swapped"):
        evaluator = PolicyEvaluator(
            EvalConfig(
                episodes=options.episodes,
                seed=FIRST_SEED,
                num_envs=25,
                env_args=dict(ENV_ARGS),
                swapped=what == "swapped",
            )
        )
        try:
            found[what] = evaluator(policy, steps)
            found["plan_ms"] = round(evaluator.reports[steps].timing.per_action()[1], 2)
        finally:
            evaluator.close()
    return found


def main(options: Options) -> None:
    torch.set_num_threads(1)
    console, file = Console(), options.out / "results.json"
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    cost = results.get("relative_cost", {})
    if missing := [name for name in options.policies if name not in cost]:
        cost |= relative_cost(missing, options)
        results = note(file, {"relative_cost": cost})
    everything = load_config(TrainConfig, RECIPES / f"{BASELINE}.yaml").steps
    for name in options.policies:
        steps = round(options.budget * everything / cost[name])
        results = note(file, {f"{name}_{options.budget:g}_{options.seed}": run(name, steps, options)})
        console.print(row(name, results, options), highlight=False, soft_wrap=True)


def note(file: Path, news: dict[str, Any]) -> dict[str, Any]:
    """Add to results.json, which another process may have added to meanwhile; returns all of it."""
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    results = (
        results | news | {"relative_cost": results.get("relative_cost", {}) | news.get("relative_cost", {})}
    )
    file.write_text(json.dumps(results, indent=2) + "\n")
    return results


def row(name: str, results: dict[str, Any], options: Options) -> str:
    """A line of the table, in Markdown."""
    found, cost = results[f"{name}_{options.budget:g}_{options.seed}"], results["relative_cost"]

    def share(what: str) -> str:
        success, low, high = (100 * found[what][key] for key in ("success", "success_low", "success_high"))
        return f"{success:.0f} % ({low:.0f}-{high:.0f})"

    cells = [
        name,
        f"{found['parameters'] / 1e6:.2f} M",
        str(found["steps"]),
        f"{cost[name]:.2f}",
        f"{found['cpu_seconds_with_loading']:.0f}",
        share("named"),
        share("swapped"),
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main(tyro.cli(Options))
