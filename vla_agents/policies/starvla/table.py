"""Compared quantities, and the table of them that `vla-agents check-starvla` prints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One compared quantity.

    Args:
        name: e.g. `"single.normalized_actions"`.
        error: The largest difference; of ids the number of entries that differ.
        bound: What it must not exceed.
        note: How it was measured.
        place: Where the largest error is, if that has a name.
    """

    name: str
    error: float
    bound: float
    note: str = ""
    place: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound (NaN is not)."""
        return self.error <= self.bound


def same(name: str, wanted: np.ndarray, own: Tensor) -> Row:
    """Numbers that must be equal."""
    found = own.detach().numpy()
    if wanted.shape != found.shape:
        return Row(name, np.inf, 0, f"shape {found.shape}, expected {wanted.shape}")
    return Row(name, float((wanted != found).sum()), 0, f"differ, of {wanted.size}")


def near(name: str, wanted: np.ndarray, own: Tensor, bound: float) -> Row:
    """Numbers that must not differ by more than a bound."""
    found = own.detach().double().numpy()
    if wanted.shape != found.shape:
        return Row(name, np.inf, bound, f"shape {found.shape}, expected {wanted.shape}")
    return Row(name, float(np.abs(wanted - found).max()), bound, "max |Δ|")


def print_rows(title: str, rows: Iterable[Row], assumed: Iterable[str] = ()) -> bool:
    """Print them, what was assumed first; returns whether there are any and all are within their bounds."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for line in assumed:
        console.print(f"assumed: {line}", highlight=False, soft_wrap=True)
    rows = list(rows)
    table = Table(title=title)
    for heading in ("quantity", "error", "bound", "", "measured as"):
        right = heading in ("error", "bound")
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "measured as")
    for row in rows:
        verdict = "[green]PASS" if row.passed else "[bold red]FAIL"
        table.add_row(row.name, f"{row.error:.3g}", f"{row.bound:.3g}", verdict, row.note)
    console.print(table)
    for row in rows:
        if row.place:
            console.print(f"{row.name}: largest at {row.place}", highlight=False, soft_wrap=True)
    failed = sum(not row.passed for row in rows)
    console.print(f"{len(rows) - failed} of {len(rows)} quantities within their bounds", highlight=False)
    return bool(rows) and not failed
