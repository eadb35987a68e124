"""`vla-agents demo`: the whole loop in a few minutes on a laptop CPU, all of it on the library's own path.

Scripted expert -> LeRobot dataset -> Qwen-OFT trained by behaviour cloning -> closed-loop evaluation on scenes never
seen, and three things beside it: the same scenes with another instruction (does it listen?), the untrained policy, and
the expert.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from vla_agents.agent import Agent, ExpertAgent, PolicyAgent
from vla_agents.collect.collect import CollectConfig, collect
from vla_agents.config import save_yaml
from vla_agents.envs.vector import make_vec
from vla_agents.envs.wrappers import SwappedInstruction
from vla_agents.errors import ConfigError
from vla_agents.eval.evaluate import evaluate
from vla_agents.eval.page import Section, write_page
from vla_agents.eval.report import EvalReport
from vla_agents.eval.video import Clip, VideoRecorder
from vla_agents.policies.checkpoint import load_policy, make_policy
from vla_agents.policies.policy import Policy
from vla_agents.policies.qwen_oft import QwenOFTConfig
from vla_agents.train.config import OptimizerConfig, TrainConfig
from vla_agents.train.pretrain_tiny import PretrainConfig, pretrain_tiny
from vla_agents.train.run import train

ENV = "vla_agents/Tabletop-v0"
ENV_ARGS: dict[str, Any] = {"task": "lift", "difficulty": "medium", "image_size": 64, "cameras": ("front",)}
_MARK = "demo.yaml"  # a folder with this file is a demo's own and may be replaced by the next one


@dataclass(frozen=True)
class DemoConfig:
    """Demonstrations, training, evaluation on the tabletop; ends with a table, a page and a video."""

    out: Path = Path("runs/demo")
    """Folder for everything; an earlier demo in it is replaced."""
    seed: int = 0
    """Of the demonstrations, the policy's head, the order of samples, and the scenes of the evaluation."""
    episodes: int = 100
    """Scenes in the evaluation, none of them seen in training."""
    json: Path | None = None
    """Write the figures to this file too."""
    demonstrations: int = 1500
    """Episodes of the scripted expert to learn from."""
    steps: int = 1000
    """Gradient steps."""
    from_scratch: bool = False
    """Do not take the tiny pretrained VLM that ships with us but pretrain one now (some six minutes more)."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""


def demo(config: DemoConfig) -> dict[str, Any]:
    """Run it; returns the figures (see `docs/demo.md`)."""
    started = time.monotonic()
    console = Console(highlight=False)
    out = _prepare(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    seconds: dict[str, float] = {}

    def stage(name: str, title: str, work: Callable[[], Any]) -> Any:
        console.print(f"[bold]{title}[/bold]")
        begin = time.monotonic()
        result = work()
        seconds[name] = time.monotonic() - begin
        return result

    vlm = "tiny"
    if config.from_scratch:
        vlm = str(
            stage(
                "pretrain",
                "Pretraining a tiny Qwen-VL on questions about pictures",
                lambda: _pretrain(config, out),
            )
        )
    stage(
        "collect",
        f"1  {config.demonstrations} demonstrations of the scripted expert",
        lambda: _collect(config, out),
    )
    run = train_config(config, out, vlm)
    stage("train", f"2  Training Qwen-OFT, {run.steps} steps", lambda: _train(run))
    policy = load_policy(out / "train", device="cpu")
    reports, clips = stage(
        "evaluate",
        f"3  Evaluation on {config.episodes} unseen scenes",
        lambda: _evaluate(config, out, policy, run),
    )
    seconds["total"] = time.monotonic() - started
    figures = _figures(config, reports, seconds)
    _write(config, out, reports, clips, figures)
    _tell(console, out, reports, clips, figures)
    return figures


def train_config(config: DemoConfig, out: Path, vlm: str) -> TrainConfig:
    """The training run of the demo: also what docs/training.md calls the tiny recipe."""
    return TrainConfig(
        dataset=(str(out / "dataset"),),
        out=str(out / "train"),
        model=QwenOFTConfig(vlm=vlm, horizon=4, execute=3, head="mlp", head_width=256),
        # Rotations hardly occur here: scaled up to full size, their noise would drown the rest.
        normalization={"delta_rotation": "none", "eef_orientation": "none"},
        optimizer=OptimizerConfig(kind="muon", lr=2e-3, muon_lr=0.02, final_lr=0.02),
        steps=config.steps,
        batch_size=32,
        first_steps=4,
        first_steps_weight=3.0,
        validate_every=max(1, config.steps // 3),
        save_every=0,
        seed=config.seed,
        device="cpu",
        threads=config.threads,
    )


def _prepare(config: DemoConfig) -> Path:
    for name in ("episodes", "demonstrations", "steps"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}, it must be at least 1")
    out = config.out
    if out.exists() and any(out.iterdir()):
        if not (out / _MARK).is_file():
            raise ConfigError(f"{out} holds something that is not a demo", "choose another folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    save_yaml(config, out / _MARK)
    return out


def _pretrain(config: DemoConfig, out: Path) -> Path:
    folder, _ = pretrain_tiny(
        replace(
            PretrainConfig(),
            out=str(out / "pretrain"),
            seed=config.seed,
            threads=config.threads,
            device="cpu",
        )
    )
    return folder


def _collect(config: DemoConfig, out: Path) -> None:
    collect(
        CollectConfig(
            out=out / "dataset",
            env=ENV,
            env_args=dict(ENV_ARGS),
            episodes=config.demonstrations,
            seed=config.seed * 1_000_000,
            noise=0.3,
            bursts=0.4,
            durable=False,  # can be made again
        )
    )


def _train(run: TrainConfig) -> None:
    if train(run).interrupted:
        raise KeyboardInterrupt


def _evaluate(
    config: DemoConfig, out: Path, policy: Policy, run: TrainConfig
) -> tuple[dict[str, EvalReport], dict[str, list[Clip]]]:
    """The four rows of the table."""
    first = 500_000_000 + config.seed * 1_000_000
    seeds = range(first, first + config.episodes)
    untrained = make_policy(run.policy, run.model, policy.embodiment, policy.normalizers, seed=config.seed)
    rows: list[tuple[str, Policy | None, tuple[Any, ...]]] = [
        ("trained", policy, ()),
        ("swapped", policy, (SwappedInstruction,)),
        ("untrained", untrained, ()),
        ("expert", None, ()),
    ]
    reports, clips = {}, {}
    for name, actor, wrappers in rows:
        envs = make_vec(ENV, min(25, config.episodes), wrappers=wrappers, **ENV_ARGS)
        try:
            agent: Agent = ExpertAgent(envs) if actor is None else PolicyAgent(actor)
            videos = VideoRecorder(out / "videos" / name, 4)
            reports[name] = evaluate(envs, agent, seeds, listeners=[videos], title=f"evaluating: {name}")
            clips[name] = videos.finish()
        finally:
            envs.close()
    return reports, clips


def _figures(config: DemoConfig, reports: dict[str, EvalReport], seconds: dict[str, float]) -> dict[str, Any]:
    trained, swapped = reports["trained"].overall, reports["swapped"].overall
    return {
        "success": trained.success,
        "success_95": [trained.low, trained.high],
        "episodes": config.episodes,
        "language_followed": swapped.success,
        "language_followed_95": [swapped.low, swapped.high],
        "minutes": seconds["total"] / 60,
        "expert": reports["expert"].success,
        "untrained": reports["untrained"].success,
        "seed": config.seed,
        "pretrained_here": config.from_scratch,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "versions": reports["trained"].versions,
        "renderer": reports["trained"].renderer,
    }


_NOTES = {
    "trained": "Scenes it has never seen, told to pick up the named block.",
    "swapped": "The same scenes with another block named. Success here means that it listens: it takes the block that is "
    "named, not the one these scenes' seeds would have asked for.",
    "untrained": "The same network before training: pretrained eyes, random hands.",
    "expert": "The script that gave the demonstrations, which knows where everything is.",
}


def _write(
    config: DemoConfig,
    out: Path,
    reports: dict[str, EvalReport],
    clips: dict[str, list[Clip]],
    figures: dict[str, Any],
) -> None:
    for name, report in reports.items():
        report.save(out / f"{name}.json")
    sections = [Section(name, report, _NOTES[name], clips[name]) for name, report in reports.items()]
    intro = (
        f"A Qwen3-VL with a million parameters and an OFT head, trained on {config.demonstrations} demonstrations "
        f"in {figures['minutes']:.1f} minutes, everything included, on {torch.get_num_threads()} CPU threads."
    )
    metrics = out / "train" / "metrics.jsonl"
    write_page(out / "report.html", sections, title="vla-agents demo", intro=intro, metrics=metrics)
    text = json.dumps(figures, indent=2) + "\n"
    for path in (out / "figures.json", config.json):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def _tell(
    console: Console,
    out: Path,
    reports: dict[str, EvalReport],
    clips: dict[str, list[Clip]],
    figures: dict[str, Any],
) -> None:
    table = Table(
        "agent",
        "success",
        "95 % interval",
        "episodes",
        "steps",
        title=f"{figures['minutes']:.1f} minutes in all",
    )
    names = {
        "trained": "trained",
        "swapped": "trained, other instruction",
        "untrained": "untrained",
        "expert": "expert",
    }
    for name, report in reports.items():
        found = report.overall
        table.add_row(
            names[name],
            f"{100 * found.success:.1f} %",
            f"{100 * found.low:.1f} - {100 * found.high:.1f} %",
            f"{found.successes}/{found.episodes}",
            f"{found.mean_steps:.1f}",
        )
    console.print(table)
    shown = next((clip.path for clip in clips["trained"] if clip.success), None)
    lines = [f"page:  {out / 'report.html'}", f"agent: {out / 'train' / 'best'}"]
    if shown is not None:
        lines.insert(1, f"video: {shown}")
    console.print("\n".join(lines), soft_wrap=True, markup=False)
