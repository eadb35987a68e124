"""`vla-agents info`: what a dataset, a checkpoint or an env is, and what is installed."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
from rich.console import Console
from rich.table import Table

from vla_agents.embodiment import Embodiment, embodiment_of
from vla_agents.errors import ConfigError, suggest


def print_info(name: str, console: Console | None = None) -> None:
    """Describe a dataset folder, a checkpoint or run folder, or an env id; with an empty name, this installation."""
    console = console or Console()
    if not name:
        _installation(console)
    elif name in gymnasium.registry:
        _env(name, console)
    elif any((Path(name) / part / "policy.yaml").is_file() for part in ("", "best", "last")):
        _checkpoint(name, console)
    elif Path(name).exists():
        _dataset(name, console)
    else:
        ids = [env_id for env_id in gymnasium.registry if "vla_agents" in env_id]
        raise ConfigError(f"{name!r} is no folder and no env{suggest(name, ids)}", f"envs: {', '.join(ids)}")


def _installation(console: Console) -> None:
    import torch

    from vla_agents.envs.rendering import choose_renderer
    from vla_agents.versions import package_versions

    table = Table("package", "version", title="vla-agents")
    for package, version in package_versions().items():
        table.add_row(package, version)
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    table.add_row("GPU", gpu)
    table.add_row("renderer", choose_renderer("auto"))
    console.print(table)
    console.print("envs: " + ", ".join(env_id for env_id in gymnasium.registry if "vla_agents" in env_id))


def _env(name: str, console: Console) -> None:
    from vla_agents.envs.vector import make_env

    env = make_env(name)
    try:
        _embodiment(embodiment_of(env), name, console)
        obs, info = env.reset(seed=0)
        console.print(f"instruction at seed 0: {obs['instruction']!r}; info keys: {', '.join(info)}")
    finally:
        env.close()


def _checkpoint(name: str, console: Console) -> None:
    from vla_agents.config import load_yaml
    from vla_agents.policies.checkpoint import find_checkpoint, load_policy

    folder = find_checkpoint(name)
    record = load_yaml(folder / "policy.yaml")
    policy = load_policy(folder, device="cpu", merge_lora=True)
    table = Table("", "", title=f"checkpoint {folder}", show_header=False)
    table.add_row("policy", record["policy"])
    table.add_row("parameters", f"{sum(p.numel() for p in policy.parameters()) / 1e6:.2f} M")
    attention = f"{policy.backbone.attention} (asked for: {policy.backbone.attention_asked}; here: cpu)"
    table.add_row("attention kernels", attention)
    for key, value in (record.get("config") or {}).items():
        table.add_row(key, str(value))
    for key, value in (record.get("extra") or {}).items():
        table.add_row(key, str(value))
    for what, normalizer in policy.normalizers.items():
        table.add_row(f"{what} normalisation", str(normalizer.modes))
    console.print(table)
    _embodiment(policy.embodiment, "trained for", console)


def _dataset(name: str, console: Console) -> None:
    from collections import Counter

    from vla_agents.data import open_dataset

    reader = open_dataset(name)
    lengths = reader.lengths()
    table = Table("", "", title=f"dataset {name}", show_header=False)
    table.add_row("format", type(reader).__name__.removesuffix("Reader"))
    table.add_row("episodes", str(len(reader)))
    if len(reader):
        table.add_row(
            "steps", f"{lengths.sum()} ({lengths.min()} to {lengths.max()}, median {int(np.median(lengths))})"
        )
    for instruction, count in Counter(reader.instructions()).most_common(12):
        table.add_row(f"  {instruction}", f"{count} episodes")
    console.print(table)
    _embodiment(reader.embodiment, "recorded with", console)


def _embodiment(embodiment: Embodiment, title: str, console: Console) -> None:
    table = Table(
        "what",
        "name",
        "size",
        "convention",
        "unit",
        title=f"{title}: {embodiment.name}, {embodiment.control_hz:g} Hz",
    )
    for what, parts in (("action", embodiment.action), ("state", embodiment.state)):
        for part in parts:
            table.add_row(what, part.name, str(part.size), part.kind, part.unit)
    for camera in embodiment.cameras:
        table.add_row(
            "camera", camera.name, f"{camera.height}x{camera.width}", camera.orientation, "uint8 RGB"
        )
    console.print(table)
