"""`vla-agents train --dry-run`: what a run would do, before it does it; nothing is trained.

Shapes of the first batch, what learns, how much memory it takes, and the first samples as a picture: what the policy sees,
what it is told, and what it shall do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from vla_agents.policies.learning import learning_table
from vla_agents.policies.policy import Batch, Policy
from vla_agents.train.config import TrainConfig
from vla_agents.train.optimizers import make_optimizers
from vla_agents.train.strategy import Strategy

SHOWN = 8  # samples in the picture


def dry_run(policy: Policy, strategy: Strategy, config: TrainConfig, console: Console | None = None) -> Path:
    """Tell; returns the picture's path."""
    console = console or Console()
    batch: Any = strategy.batches(0, 1, 0, 1)[0]
    console.print(_shapes(batch))
    console.print(str(learning_table(policy)), highlight=False, markup=False)
    optimizers = make_optimizers(policy, config.optimizer)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            numbers = sum(p.numel() for p in group["params"])
            name = type(optimizer).__name__
            console.print(
                f"{name}: {numbers:,} numbers, learning rate {group['lr']:g}, weight decay {group['weight_decay']:g}",
                highlight=False,
            )
    console.print(_memory(policy, batch, config, optimizers))
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    window = batch if isinstance(batch, Batch) else getattr(batch, "actions", None)
    if window is None:
        return out
    picture = out / "first_batch.png"
    draw_batch(window, policy, picture, _origins(window, strategy))
    console.print(f"the first samples: {picture}", highlight=False, soft_wrap=True)
    return picture


def _shapes(batch: Any) -> Table:
    table = Table("what", "shape", "type", "range", title="first micro-batch")

    def add(name: str, value: Tensor) -> None:
        span = ""
        if value.numel() and value.dtype not in (torch.bool, torch.int64):
            span = f"{float(value.min()):.3g} .. {float(value.max()):.3g}"
        table.add_row(name, str(tuple(value.shape)), str(value.dtype).removeprefix("torch."), span)

    for name, value in _tensors(batch):
        add(name, value)
    texts = getattr(batch, "instructions", None)
    if texts:
        table.add_row(
            "instructions", f"{len(texts)} texts, {len(set(texts))} different", "str", repr(texts[0])
        )
    return table


def _tensors(batch: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            found.append((prefix + name, value))
        elif isinstance(value, dict):
            found += [(f"{prefix}{name}.{key}", v) for key, v in value.items() if isinstance(v, Tensor)]
        elif isinstance(value, Batch):
            found += _tensors(value, f"{name}.")
    return found


def _memory(
    policy: nn.Module, batch: Any, config: TrainConfig, optimizers: Sequence[torch.optim.Optimizer]
) -> Table:
    """By arithmetic, but for the activations, which are measured on one sample."""
    table = Table("memory", "GB", "how", title="estimate for each process that holds everything")
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    learning = [p for p in policy.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in learning)
    states = sum(
        (1 if isinstance(optimizer, torch.optim.Muon) else 2) * p.numel() * p.element_size()
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    )
    rows = [
        ("weights", weights, "as loaded"),
        ("gradients", gradients, "of what learns"),
        ("optimiser", states, "AdamW two, Muon one average per number that learns"),
        ("moving average", weights if config.ema else 0, "--ema"),
    ]
    one = activation_bytes(policy, batch, half=config.mixed_precision == "bf16")
    if one is not None:
        rows.append(
            ("activations", one * config.batch_size, f"measured on one sample, times {config.batch_size}")
        )
    total = sum(size for _, size, _ in rows)
    for name, size, how in rows:
        table.add_row(name, f"{size / 1e9:.3f}", how)
    table.add_row("together", f"{total / 1e9:.3f}", "FSDP2, ZeRO-3: all but activations are shared out")
    return table


def activation_bytes(policy: nn.Module, batch: Any, *, half: bool = False) -> int | None:
    """Bytes that the forward pass of one sample keeps for the backward pass (in bfloat16 where it is computed by halves);
    None where a batch cannot be cut."""
    cut = getattr(batch, "sample", None)
    if cut is None:
        return None
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    was, state = policy.training, torch.get_rng_state()
    device = next(policy.parameters()).device
    policy.train()
    try:
        keeping = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with keeping, torch.autocast(device.type, torch.bfloat16, enabled=half):
            losses = policy(cut(0).to(device))
            del losses
    finally:
        policy.train(was)
        torch.set_rng_state(state)
    return sum(kept.values())


def _origins(batch: Batch, strategy: Strategy) -> list[str]:
    describe = getattr(strategy, "describe", None)
    if describe is None or batch.rows is None:
        return [""] * len(batch)
    found: list[str] = describe(batch.rows[:SHOWN].tolist())
    return found


def draw_batch(batch: Batch, policy: Policy, file: Path, origins: Sequence[str]) -> None:
    """A row per sample: its pictures as the policy gets them, its actions as curves, its instruction."""
    from matplotlib.figure import Figure

    names = [
        part.name if part.size == 1 else f"{part.name}[{k}]"
        for part in policy.embodiment.action
        for k in range(part.size)
    ]
    cameras, count = list(batch.images), min(SHOWN, len(batch))
    columns = len(cameras) + 1
    figure = Figure(figsize=(2.4 * columns + 3.2, 2.3 * count), layout="constrained")
    grid = figure.add_gridspec(count, columns, width_ratios=[1.0] * len(cameras) + [2.2])
    for row in range(count):
        for column, camera in enumerate(cameras):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(batch.images[camera][row].reshape(-1, *batch.images[camera].shape[-3:])[-1].numpy())
            axes.set_axis_off()
            if row == 0:
                axes.set_title(camera, fontsize=9)
        axes = figure.add_subplot(grid[row, columns - 1])
        assert batch.action is not None
        target = np.asarray(policy.normalizers["action"].normalize(batch.action[row : row + 1])[0])
        inside = len(target) if batch.mask is None else int(batch.mask[row].sum())
        for k, name in enumerate(names):
            axes.plot(range(inside), target[:inside, k], marker=".", label=name)
        axes.set_xlim(-0.5, len(target) - 0.5)
        axes.set_xticks(range(0, len(target), max(1, len(target) // 8)))
        axes.set_ylim(min(-1.1, float(target.min()) * 1.1), max(1.1, float(target.max()) * 1.1))
        axes.set_title(f"{batch.instructions[row]}\n{origins[row]}", fontsize=7, loc="left")
        axes.tick_params(labelsize=6)
        axes.grid(alpha=0.3)
        if row == 0:
            axes.legend(fontsize=6, ncols=2)
        if row == count - 1:
            axes.set_xlabel("step of the chunk; normalised action", fontsize=7)
    figure.savefig(file, dpi=80)
