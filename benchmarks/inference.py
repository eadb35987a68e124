"""How fast the policies act: ours against the plain way, side by side in one process, with the same weights.

    python benchmarks/inference.py [--framework oft ...] [--hidden 512 --layers 8] [--compile]

The plain way does what StarVLA's `predict_action` does (benchmarks/inference_reference.py). Both take a raw observation
(two 224 px views, an instruction, a state) and give an un-normalised chunk of 8 x 7, batch 1, fp32, from the same noise.
They run in turns; the table has medians. On one thread (the default) times are CPU time of this process, which other
processes disturb less; the ratio of FLOPs is undisturbed. Exit status 1 where results differ by more than 1e-5.

The model is a Qwen3-VL with random weights, the proportions of Qwen3-VL-4B and Qwen's vocabulary of 151,936, as wide and as
deep as asked (benchmarks/inference_models.py). In a small model the vocabulary weighs more than in the real one: logits of
all positions are about 10 % of the FLOPs of the 4B model's forward pass, and what they are here the tables say.

"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from inference_models import BODY, FRAMEWORKS, INSTRUCTION, make_backbone, make_policy, scaled, twin
from inference_reference import Reference
from inference_stages import explain
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

BOUND = 1e-5
GOALS = {"oft": 1.3, "pi": 2.0, "pi-cross": 2.0, "gr00t": 1.5}
COLUMNS = (
    "framework",
    "plain ms",
    "ours ms",
    "ratio",
    "goal",
    "compiled ms",
    "ratio",
    "GFLOP plain",
    "ours",
    "ratio",
)


def observation(seed: int = 0) -> dict[str, Any]:
    """Two views of noise, a state, an instruction."""
    rng = np.random.default_rng(seed)
    images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in BODY.cameras}
    return {"images": images, "state": rng.uniform(-1, 1, 8).astype(np.float32), "instruction": INSTRUCTION}


class Clock:
    """Measures functions in turns.

    Args:
        rounds: Calls of each that count; one before them warms up.
        own: CPU time of this process instead of wall time.
    """

    def __init__(self, rounds: int, own: bool) -> None:
        self.rounds, self._now = rounds, time.process_time if own else time.perf_counter

    def medians(self, works: dict[str, Callable[[], Any]]) -> dict[str, float]:
        """Median seconds of a call of each; the order is turned round every time."""
        spent: dict[str, list[float]] = {name: [] for name in works}
        for number in range(self.rounds + 1):
            for name in list(works)[:: -1 if number % 2 else 1]:
                start = self._now()
                works[name]()
                if number:
                    spent[name].append(self._now() - start)
        return {name: statistics.median(kept) for name, kept in spent.items()}


def _packed_flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """Of `vla_agents.policies.packed`'s product, from the shapes of its arguments."""
    return 2 * math.prod(x) * weight[0]


def flops(work: Callable[[], Any]) -> float:
    """1e9 of one call: matrix products, convolutions, attention."""
    with FlopCounterMode(
        display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: _packed_flops}
    ) as counter:
        work()
    return counter.get_total_flops() / 1e9


@torch.no_grad()
def run(name: str, options: argparse.Namespace, console: Console) -> tuple[list[str], float]:
    """A row of the table for one framework, and the largest difference of the results."""
    policy = make_policy(name, make_backbone(scaled(options.hidden, options.layers, options.vocabulary)))
    reference, obs = Reference(policy), observation()
    noise = torch.randn(1, policy.horizon, BODY.action_dim, generator=torch.Generator().manual_seed(0))
    if hasattr(policy, "draw_noise"):
        policy.draw_noise = lambda *_: noise  # both start from the same
    works: dict[str, Callable[[], Any]] = {
        "plain": lambda: reference.act(obs, noise),
        "ours": lambda: policy.plan([obs])[0],
    }
    if options.compile:
        fast = twin(policy)
        fast.compile_acting()
        works["compiled"] = lambda: fast.plan([obs])[0]
    chunks = {way: work() for way, work in works.items()}
    difference = max(float(np.abs(chunks[way] - chunks["plain"]).max()) for way in works)
    clock = Clock(options.rounds, options.threads == 1)
    ms = {way: 1000 * seconds for way, seconds in clock.medians(works).items()}
    arithmetic = [flops(works[way]) for way in ("plain", "ours")]
    if not options.brief:
        explain(name, reference, obs, noise, clock.medians, console)
    goal = f"{GOALS[name]:.1f}" if name in GOALS else ""
    cells = [name, f"{ms['plain']:.0f}", f"{ms['ours']:.0f}", f"{ms['plain'] / ms['ours']:.2f}", goal]
    compiled = ms.get("compiled", 0.0)
    cells += [f"{compiled:.0f}", f"{ms['plain'] / compiled:.2f}"] if compiled else ["", ""]
    cells += [*(f"{number:.1f}" for number in arithmetic), f"{arithmetic[0] / arithmetic[1]:.2f}"]
    return cells, difference


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--framework", nargs="+", choices=FRAMEWORKS, default=list(FRAMEWORKS))
    parser.add_argument("--hidden", type=int, default=512, help="width of the language model (128 .. 2560)")
    parser.add_argument("--layers", type=int, default=8, help="its depth")
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--rounds", type=int, default=7, help="calls of each way that count")
    parser.add_argument("--threads", type=int, default=1, help="more than 1: wall time")
    parser.add_argument("--compile", action="store_true", help="our way compiled, too (takes minutes)")
    parser.add_argument("--brief", action="store_true", help="no table of stages")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run it; the exit status."""
    options, console = arguments(), Console(width=150)
    warnings.filterwarnings("ignore", message=".*torch.jit.*")
    torch.set_num_threads(options.threads)
    clock = "CPU time of 1 thread" if options.threads == 1 else f"wall time, {options.threads} threads"
    size = f"{options.layers} layers x {options.hidden}, two 224 px views, batch 1, fp32"
    table = Table(title=f"{size}; {clock}, medians of {options.rounds}")
    for column in (*COLUMNS, "max diff"):
        table.add_column(column, justify="right")
    differences = {}
    for name in options.framework:
        cells, differences[name] = run(name, options, console)
        table.add_row(*cells, f"{differences[name]:.1e}")
    console.print(table)
    wrong = [name for name, difference in differences.items() if not difference <= BOUND]
    console.print(f"[red]RESULTS DIFFER: {', '.join(wrong)}" if wrong else f"results equal within {BOUND:g}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
