"""How fast the policies act and learn on a GPU, in the real sizes with random weights: for a machine that has one.

    python benchmarks/inference_gpu.py                       # Qwen2.5-VL-3B and Qwen3-VL-4B, all frameworks, all ways
    python benchmarks/inference_gpu.py --size 3b --framework gr00t pi --train gr00t --out gpu.json
    python benchmarks/inference_gpu.py --device cpu --size tiny --rounds 3 --ways eager   # tries the script itself

An act: two 224 px views (uint8, on the CPU), an instruction and a state -> a chunk of 8 x 7 on the CPU, batch 1. VLM and
flow head in bfloat16; noise and Euler steps in float32. Times: `policy.plan`, median and 99th percentile, after warming up.

    eager     as written                     compiled   torch.compile, no CUDA graphs             graph   with CUDA graphs
    floor     bytes of weights an act reads / measured copy bandwidth (benchmarks/inference_floor.py)

Training: samples per second of forward, backward and AdamW step at batch 16, all weights learning.

Exit status: 0 measured, 1 results of two ways differ, 2 there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inference_floor import copy_bandwidth, parameters_by_part, synchronize, weights_read
from inference_models import BODY, FRAMEWORKS, INSTRUCTION, SIZES, make_backbone, make_policy
from rich.console import Console
from rich.table import Table

from vla_agents.policies.policy import Batch

WAYS = ("eager", "compiled", "graph")
GOALS = {("3b", "gr00t"): 12.0, ("3b", "pi"): 20.0}
"""Milliseconds of an act on an H200, by its fastest way."""
SAMPLES_GOAL = 30.0
TIMES_FLOOR = 5.0
NO_GPU = "no GPU here: torch finds no CUDA device, and this benchmark measures one. Nothing was run."
TRY = "To try the script itself: --device cpu --size tiny --ways eager --rounds 3"
TOLERANCE = {"cuda": 0.1, "cpu": 1e-4}
"""Largest difference between two ways' actions: of bfloat16 on a GPU, of float32 on a CPU."""


def observation(seed: int = 0) -> dict[str, Any]:
    """Two views of noise, a state, an instruction."""
    rng = np.random.default_rng(seed)
    images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in BODY.cameras}
    return {"images": images, "state": rng.uniform(-1, 1, 8).astype(np.float32), "instruction": INSTRUCTION}


def make(framework: str, size: str, device: torch.device) -> Any:
    """A policy with random weights: bfloat16 on a GPU, float32 on a CPU."""
    half = device.type == "cuda"
    backbone = make_backbone(SIZES[size], dtype=torch.bfloat16 if half else torch.float32, device=str(device))
    policy = make_policy(framework, backbone, head_dtype="bfloat16" if half else "float32")
    if hasattr(policy, "draw_noise"):
        noise = torch.randn(1, policy.horizon, BODY.action_dim, generator=torch.Generator().manual_seed(0))
        policy.draw_noise = lambda *_: noise.to(device)  # every way starts from the same
    return policy


def latencies(act: Callable[[], Any], rounds: int, device: torch.device) -> np.ndarray:
    """Milliseconds of each act, after three that do not count."""
    spent = []
    for number in range(rounds + 3):
        synchronize(device)
        start = time.perf_counter()
        act()
        synchronize(device)
        if number >= 3:
            spent.append(1000 * (time.perf_counter() - start))
    return np.array(spent)


def measure_acting(
    framework: str, size: str, options: argparse.Namespace, bandwidth: float
) -> dict[str, Any]:
    """One framework, all ways."""
    device = torch.device(options.device)
    policy, obs = make(framework, size, device), observation()
    with torch.no_grad():
        words = 1 if hasattr(policy, "head") else len(policy.generate(_batch(policy, obs))[0])
    read = weights_read(policy, words)
    found: dict[str, Any] = {
        "size": size,
        "framework": framework,
        "parameters": parameters_by_part(policy),
        "read_bytes": read,
        "floor_ms": 1000 * read / bandwidth,
        "words": words,
        "ways": {},
    }
    first = None
    for way in options.ways:
        if way != "eager":
            policy.train().eval()  # forgets what was compiled before
            torch.compiler.reset()
            policy.compile_acting(graphs=way == "graph")
        chunk = policy.plan([obs])
        first = chunk if first is None else first
        spent = latencies(lambda: policy.plan([obs]), options.rounds, device)
        found["ways"][way] = {
            "p50_ms": float(np.percentile(spent, 50)),
            "p99_ms": float(np.percentile(spent, 99)),
            "difference": float(np.abs(chunk - first).max()),
        }
    return found


def _batch(policy: Any, obs: dict[str, Any]) -> Batch:
    return Batch.from_observations([obs], policy.embodiment).to(policy.device)


def measure_training(framework: str, size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Samples per second of whole steps."""
    device, count = torch.device(options.device), options.batch
    policy = make(framework, size, device).train()
    if options.checkpointing:
        policy.backbone.set_gradient_checkpointing()
    learning = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=device.type == "cuda")
    batch = Batch.from_observations([observation(seed) for seed in range(count)], policy.embodiment).to(
        device
    )
    batch.action = torch.rand(count, policy.horizon, BODY.action_dim, device=device) - 0.5

    def step() -> None:
        loss = sum(policy(batch).values())
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    spent = latencies(step, max(3, options.rounds // 10), device)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return {
        "size": size,
        "framework": framework,
        "batch": count,
        "samples_per_second": 1000 * count / float(np.median(spent)),
        "memory_gib": memory,
    }


def report(results: dict[str, Any], console: Console) -> None:
    """Print the tables, goals beside."""
    table = Table(title=f"{results['machine']}; copies at {results['bandwidth'] / 1e9:.0f} GB/s")
    for column in (
        "size",
        "framework",
        "head",
        "floor ms",
        *(f"{way} p50 / p99" for way in WAYS),
        "best / floor",
        "goal",
    ):
        table.add_column(column, justify="left" if column in ("size", "framework") else "right")
    for row in results["acting"]:
        ways = [row["ways"].get(way) for way in WAYS]
        best = min(way["p50_ms"] for way in ways if way)
        goal = GOALS.get((row["size"], row["framework"]))
        met = best <= (goal or 0) and (row["framework"] != "gr00t" or best <= TIMES_FLOOR * row["floor_ms"])
        table.add_row(
            row["size"],
            row["framework"],
            f"{row['parameters']['head'] / 1e6:.0f} M",
            f"{row['floor_ms']:.2f}",
            *(f"{way['p50_ms']:.1f} / {way['p99_ms']:.1f}" if way else "" for way in ways),
            f"{best / row['floor_ms']:.1f}",
            "" if goal is None else f"{goal:g} ms: {'met' if met else 'missed'}",
        )
    console.print(table)
    for row in results["training"]:
        rate = row["samples_per_second"]
        verdict = "met" if rate >= SAMPLES_GOAL else "missed"
        console.print(
            f"training {row['framework']} over {row['size']}, batch {row['batch']}: {rate:.1f} samples/s "
            f"(goal {SAMPLES_GOAL:g}: {verdict}), {row['memory_gib']:.0f} GiB"
        )


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["3b", "4b"])
    parser.add_argument("--framework", nargs="*", choices=FRAMEWORKS, default=list(FRAMEWORKS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--train", nargs="*", choices=FRAMEWORKS, default=["gr00t"], help="frameworks to train"
    )
    parser.add_argument("--batch", type=int, default=16, help="of training")
    parser.add_argument("--checkpointing", action="store_true", help="training with gradient checkpointing")
    parser.add_argument("--rounds", type=int, default=200, help="acts of each way that count")
    parser.add_argument(
        "--device", default="cuda", help="cuda; cpu to try the script itself with --size tiny"
    )
    parser.add_argument("--out", help="JSON file to write")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run it; the exit status."""
    options, console = arguments(words), Console(width=150)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"{NO_GPU}\n{TRY}", file=sys.stderr)
        return 2
    on_gpu = device.type == "cuda"
    machine = (
        torch.cuda.get_device_name(device)
        if on_gpu
        else f"{platform.machine()} CPU: only the script is tried"
    )
    bandwidth = copy_bandwidth(device) if on_gpu else copy_bandwidth(device, 1 << 24, 3)
    results: dict[str, Any] = {"machine": machine, "torch": torch.__version__, "bandwidth": bandwidth}
    results |= {"acting": [], "training": []}
    for size in options.size:
        for kind, names in (("acting", options.framework), ("training", options.train)):
            for framework in names:
                console.print(f"{kind}: {framework} over {size} ...", style="dim")
                row = (
                    measure_acting(framework, size, options, bandwidth)
                    if kind == "acting"
                    else measure_training(framework, size, options)
                )
                results[kind].append(row)
                if on_gpu:
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(device)
    report(results, console)
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    worst = max((w["difference"] for r in results["acting"] for w in r["ways"].values()), default=0.0)
    if worst > TOLERANCE[device.type]:
        console.print(f"[red]RESULTS DIFFER by {worst:.2g}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
