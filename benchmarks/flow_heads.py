"""What the flow heads save per prediction by computing once what does not change: `python benchmarks/flow_heads.py`.

The plain way projects keys and values of the context, the time embedding and every token at every denoising step, as
StarVLA's `predict_action` does. Same weights, same process, same result (the last column is the largest difference). On one
CPU thread times are CPU time of this process, which other processes disturb less; the ratio of FLOPs is undisturbed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from inference_reference import plain_head
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vla_agents.policies.heads.flow import FlowHead, FlowHeadShape
from vla_agents.policies.heads.flow_schedule import FlowSchedule
from vla_agents.policies.heads.gr00t import GR00THead
from vla_agents.policies.heads.layerwise import LayerwiseHead

SCHEDULE = FlowSchedule()
HORIZON, ACTION, STATE = 8, 7, 8


def once(head: FlowHead, noise: Tensor, state: Tensor, contexts: list[Tensor], steps: int) -> Tensor:
    """The library's way."""
    return head.sample(noise, head.step_conditioning(SCHEDULE, steps), contexts, None, state)


def seconds(works: list[Callable[[], Tensor]], repeats: int, clock: Callable[[], float]) -> list[float]:
    """Median time of a call of each, taken in turns."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, kept in zip(works, times, strict=True):
            start = clock()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                kept.append(clock() - start)
    return [statistics.median(kept) for kept in times]


@torch.no_grad()
def compare(name: str, head: FlowHead, length: int, steps: int, repeats: int, device: str) -> None:
    """Print one row."""
    torch.manual_seed(0)
    head = head.eval().to(device)
    noise, state = torch.randn(1, HORIZON, ACTION, device=device), torch.randn(1, STATE, device=device)
    context = torch.randn(1, length, head.shape.context_dim, device=device)
    contexts = [context] * sum(head.crosses)
    works = [partial(way, head, noise, state, contexts, steps) for way in (plain_head, once)]
    results, flops = [], []
    once(head, noise, state, contexts, steps)  # what is kept from one prediction to the next is there
    for work in works:
        with FlopCounterMode(display=False) as counter:
            results.append(work())
        flops.append(counter.get_total_flops())
    error = (results[0] - results[1]).abs().max().item()
    own = device == "cpu" and torch.get_num_threads() == 1
    slow, fast = seconds(works, repeats, time.process_time if own else time.perf_counter)
    ratios = f"{slow / fast:>9.2f}{flops[0] / flops[1]:>9.2f}"
    print(f"{name:<36}{1000 * slow:>10.1f}{1000 * fast:>10.1f}{ratios}{error:>11.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512, help="width of the VLM")
    parser.add_argument("--layers", type=int, default=8, help="layers of the VLM (blocks of the PI head)")
    parser.add_argument(
        "--length", type=int, default=170, help="tokens of the prompt (two 224 px views: 128 + text)"
    )
    parser.add_argument("--steps", type=int, default=4, help="denoising steps")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hidden, layers = options.hidden, options.layers

    def shape(width: int, heads: int, depth: int) -> FlowHeadShape:
        return FlowHeadShape(ACTION, HORIZON, hidden, width, heads, depth, STATE)

    heads = {
        f"PI interleaved, {layers} blocks x {hidden}": LayerwiseHead(
            shape(hidden, hidden // 64, layers), "interleaved"
        ),
        f"PI cross_only, {layers} blocks x {hidden}": LayerwiseHead(
            shape(hidden, hidden // 64, layers), "cross_only"
        ),
        "GR00T DiT-B, 16 blocks x 768": GR00THead(shape(768, 12, 16)),
    }
    where = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"CPU, {options.threads} thread(s)" + ", its CPU time" * (options.threads == 1)
    )
    print(
        f"{where}; context {options.length} x {hidden}, {options.steps} steps, chunk {HORIZON} x {ACTION}, fp32"
    )
    print(f"{'head':<36}{'plain ms':>10}{'once ms':>10}{'ratio':>9}{'FLOPs':>9}{'max diff':>11}")
    for name, head in heads.items():
        compare(name, head, options.length, options.steps, options.repeats, options.device)


if __name__ == "__main__":
    main()
