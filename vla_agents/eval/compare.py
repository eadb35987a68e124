"""Two evaluations on the same episodes: which agent is better, and is the difference more than chance?

Episodes are paired by their seed, so what makes a scene easy or hard cancels out: only episodes that one agent solves
and the other does not say anything (McNemar 1947, exact binomial form).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from rich.table import Table

from vla_agents.errors import ConfigError
from vla_agents.eval.ledger import differ
from vla_agents.eval.report import EvalReport
from vla_agents.eval.run import RESULTS
from vla_agents.eval.stats import percent
from vla_agents.eval.suites import FREE

ALPHA = 0.05
POWER = 0.8
# What of a config is the protocol; the rest (agent, execute, ...) is what one wants to compare.
_PROTOCOL = ("suite", "env", "env_args", "swapped", "max_steps")


@dataclass(frozen=True)
class Comparison:
    """What the paired episodes of two evaluations say.

    Args:
        both: Episodes that both agents solve.
        only_a: That only the first solves.
        only_b: That only the second solves.
        neither: That neither does.
        difference: Success of B minus that of A.
        low: Lower end of its 95 % interval (Agresti and Min 2005: Wald's, half an episode more in every cell).
        high: Upper end.
        p: Two-sided p value of McNemar's exact test: how probable so unequal a split is by chance alone.
        needed: About how many episodes it takes to tell a difference of this size from chance with a power of 80 %
            (Connor 1987); None where the agents do not differ at all.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    low: float
    high: float
    p: float
    needed: int | None

    @property
    def episodes(self) -> int:
        """Pairs."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def verdict(self) -> str:
        """In words."""
        span = f"95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f} points, p = {self.p:.2g}"
        if self.p < ALPHA:
            better = "B" if self.difference > 0 else "A"
            return f"{better} is better, by {abs(100 * self.difference):.1f} points ({span})."
        points = f"{100 * self.difference:+.1f} points"
        line = f"The difference of {points} is not distinguishable from chance at n = {self.episodes}"
        if self.needed is None:
            return f"{line} ({span})."
        return f"{line} ({span}); if it is real, it takes about {self.needed} episodes to tell."


def mcnemar(both: int, only_a: int, only_b: int, neither: int) -> Comparison:
    """The comparison of four counts of paired episodes."""
    from scipy.stats import binomtest

    count = both + only_a + only_b + neither
    if count == 0:
        raise ConfigError(
            "there is no episode that both evaluations judged", "evaluate both on the same seeds"
        )
    unequal = only_a + only_b
    difference = (only_b - only_a) / count
    p = float(binomtest(only_a, unequal).pvalue) if unequal else 1.0
    z = NormalDist().inv_cdf(1 - ALPHA / 2)
    centre = (only_b - only_a) / (count + 2)
    half = z * math.sqrt(max((unequal + 1) / (count + 2) - centre * centre, 0.0) / (count + 2))
    needed = None
    if difference:
        share = unequal / count
        spread = math.sqrt(max(share - difference * difference, 0.0))
        needed = math.ceil(((z * math.sqrt(share) + NormalDist().inv_cdf(POWER) * spread) / difference) ** 2)
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Comparison(both, only_a, only_b, neither, difference, low, high, p, needed)


def compare(a: EvalReport, b: EvalReport) -> dict[str, Comparison]:
    """Per task, and under "" over all.

    Episodes that are errors in either, or that nobody judged, are left out.

    Raises:
        ConfigError: The protocols differ, the scenes differ, or no seed occurs in both.
    """
    _require_same_protocol(a, b)
    ours, theirs = ({entry.result.seed: entry for entry in report.entries()} for report in (a, b))
    cells: dict[str, list[int]] = {"": [0, 0, 0, 0]}
    same_pictures = _pictures(a) == _pictures(b)
    for seed in sorted(ours.keys() & theirs.keys()):
        one, other = ours[seed], theirs[seed]
        if one.result.task != other.result.task or (
            same_pictures and one.first and other.first and one.first != other.first
        ):
            raise ConfigError(
                f"the episode of seed {seed} began with another scene in the two evaluations "
                f"(renderers {a.renderer or '?'} and {b.renderer or '?'}, first pictures {one.first} and {other.first})",
                "evaluate both with the same versions and renderer: results.json holds them",
            )
        if any(entry.result.error or not entry.result.judged for entry in (one, other)):
            continue
        cell = 2 * (not one.result.success) + (not other.result.success)  # both, only a, only b, neither
        for task in ("", one.result.task):
            cells.setdefault(task, [0, 0, 0, 0])[cell] += 1
    whole = mcnemar(*cells.pop(""))
    return {"": whole} | {task: mcnemar(*found) for task, found in sorted(cells.items()) if task}


def _pictures(report: EvalReport) -> dict[str, Any]:
    """What decides the first observation beside the scene."""
    given = report.config.get("env_args", {})
    return {key: given[key] for key in FREE if key in given}


def _require_same_protocol(a: EvalReport, b: EvalReport) -> None:
    def protocol(report: EvalReport) -> dict[str, Any]:
        found = {key: report.config.get(key) for key in _PROTOCOL}
        args = found["env_args"] or {}
        return found | {"env_args": {key: value for key, value in args.items() if key not in FREE}}

    differences = differ(protocol(a), protocol(b))
    if differences:
        raise ConfigError(
            f"the two evaluations follow different protocols: {'; '.join(differences)}",
            "evaluate both agents with the same --suite, or the same --env and --env-args",
        )


def table(found: dict[str, Comparison]) -> Table:
    """For the terminal."""
    shown = Table(caption=found[""].verdict, caption_justify="left")
    shown.add_column("task", overflow="fold")
    for name in ("A", "B", "difference", "95 % interval", "only A", "only B", "p"):
        shown.add_column(name, justify="right")
    tasks = [task for task in found if task]
    for task in [*(tasks if len(tasks) > 1 else []), ""]:
        one = found[task]
        n = one.episodes
        shown.add_row(
            task or "all",
            percent((one.both + one.only_a) / n),
            percent((one.both + one.only_b) / n),
            f"{100 * one.difference:+.1f}",
            f"{100 * one.low:+.1f} to {100 * one.high:+.1f}",
            str(one.only_a),
            str(one.only_b),
            f"{one.p:.2g}",
            style="" if task else "bold",
        )
    return shown


def load(path: Path) -> EvalReport:
    """The report in a folder of an evaluation, or a results.json."""
    return EvalReport.load(path / RESULTS if path.is_dir() else path)


def save(found: dict[str, Comparison], path: Path) -> None:
    """As JSON."""
    data = {task or "all": asdict(one) | {"verdict": one.verdict} for task, one in found.items()}
    path.write_text(
        json.dumps({"schema": "vla_agents.compare/1", "tasks": data}, indent=1) + "\n", encoding="utf-8"
    )
