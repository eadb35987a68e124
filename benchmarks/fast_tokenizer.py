"""FAST tokenizer: ours against the plain procedure, in turns within one process; tokens and chunks must be equal.

    python benchmarks/fast_tokenizer.py [--rounds 15]

The plain procedure is what the published processor does: DCT of the batch, then for every chunk a string by `map(chr)`, the
tokenizer's `__call__` of transformers; back by its `decode`, `map(ord)` and an inverse DCT per chunk.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.fft import dct, idct
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from vla_agents.policies.fast_tokenizer import FastTokenizer

SHAPES = ((8, 4, 10, 1024), (8, 7, 10, 1024), (16, 7, 10, 2048), (50, 7, 10, 1024), (50, 14, 25, 2048))
BATCH = 64


class PlainFast:
    """The reference procedure over the same BPE."""

    def __init__(self, ours: FastTokenizer) -> None:
        self.scale, self.min_token = ours.scale, ours.min_token
        bpe = Tokenizer.from_str(ours.tokenizer_json)
        self.bpe = PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False)

    def encode(self, chunks: np.ndarray) -> list[list[int]]:
        """(B, T, D) -> B token lists."""
        tokens = []
        for row in np.around(dct(chunks, axis=1, norm="ortho") * self.scale):
            codes = np.maximum(row.flatten() - self.min_token, 0).astype(int)
            tokens.append(self.bpe("".join(map(chr, codes)))["input_ids"])
        return tokens

    def decode(self, tokens: list[list[int]], steps: int, dims: int) -> np.ndarray:
        """B token lists -> (B, T, D)."""
        chunks = []
        for row in tokens:
            codes = np.array(list(map(ord, self.bpe.decode(row)))) + self.min_token
            chunks.append(idct(codes.reshape(steps, dims) / self.scale, axis=0, norm="ortho"))
        return np.stack(chunks)


def smooth_chunks(count: int, steps: int, dims: int, seed: int) -> np.ndarray:
    """Normalised chunks such as robots make: a few slow waves per dimension, a gripper that switches."""
    rng = np.random.default_rng(seed)
    time_axis = np.linspace(0, 1, steps)[None, :, None, None]
    phase = rng.uniform(0, 2 * np.pi, (count, 1, dims, 3))
    speed = rng.uniform(0, 2, (count, 1, dims, 3)) * steps / 16
    size = rng.normal(0, 0.4, (count, 1, dims, 3))
    chunks = (size * np.sin(2 * np.pi * speed * time_axis + phase)).sum(-1)
    chunks += rng.normal(0, 0.01, chunks.shape)
    chunks[..., -1] = np.where(np.arange(steps) < rng.integers(0, 2 * steps, (count, 1)), -1, 1)
    return np.clip(chunks, -1, 1).astype(np.float32)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of one call (the machine may be busy with other things)."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(shape: tuple[int, int, int, int], rounds: int) -> tuple[list[str], bool]:
    """A row of the table, and whether all results were equal."""
    steps, dims, scale, vocabulary = shape
    ours = FastTokenizer.fit(smooth_chunks(4000, steps, dims, 0), scale, vocabulary)
    plain = PlainFast(ours)
    spent: dict[str, list[float]] = {}
    fine, lengths = True, []
    for round_ in range(rounds):
        chunks = smooth_chunks(2 * BATCH, steps, dims, 1 + round_)  # none seen before
        chunks = chunks[~ours.unknown_coefficients(chunks).any(axis=(1, 2))][:BATCH]
        tokens = plain.encode(chunks[:1])  # wakes both up
        fine &= ours.encode(chunks[:1]) == tokens
        work: dict[str, Callable[[], Any]] = {
            "plain": lambda chunks=chunks: plain.encode(chunks),  # type: ignore[misc]
            "ours": lambda chunks=chunks: ours.encode(chunks),  # type: ignore[misc]
        }
        order = list(work)[:: 1 if round_ % 2 else -1]
        for name in order:
            spent.setdefault(name, []).append(cpu_seconds(work[name]) / len(chunks))
        tokens = plain.encode(chunks)
        there = plain.decode(tokens, steps, dims)
        fine &= ours.encode(chunks) == tokens
        fine &= np.array_equal(ours.decode(tokens, steps, dims), there)
        spent.setdefault("back, plain", []).append(
            cpu_seconds(lambda tokens=tokens: plain.decode(tokens, steps, dims)) / len(chunks)  # type: ignore[misc]
        )
        spent.setdefault("back, ours", []).append(
            cpu_seconds(lambda tokens=tokens: ours.decode(tokens, steps, dims)) / len(chunks)  # type: ignore[misc]
        )
        lengths += [len(row) for row in tokens]
    t = {name: 1e6 * float(np.median(times)) for name, times in spent.items()}
    cells = [f"{steps}x{dims}", f"{scale}/{vocabulary}", f"{np.mean(lengths):.1f}"]
    cells += [f"{t['plain']:.1f}", f"{t['ours']:.1f}", f"{t['plain'] / t['ours']:.1f}x"]
    cells += [
        f"{t['back, plain']:.1f}",
        f"{t['back, ours']:.1f}",
        f"{t['back, plain'] / t['back, ours']:.1f}x",
    ]
    return cells, fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="batches measured per shape")
    rounds = parser.parse_args().rounds
    table = Table(title=f"FAST tokenizer, {BATCH} chunks a batch, CPU us per chunk ({platform.machine()})")
    names = (
        "chunk",
        "scale/vocab",
        "tokens",
        "encode plain",
        "ours",
        "ratio",
        "decode plain",
        "ours",
        "ratio",
    )
    for column in names:
        table.add_column(column, justify="right")
    equal = True
    for shape in SHAPES:
        cells, fine = measure(shape, rounds)
        equal &= fine
        table.add_row(*cells)
    console = Console(width=120)
    console.print(table)
    console.print("tokens and chunks equal" if equal else "[red]TOKENS OR CHUNKS DIFFER")
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
