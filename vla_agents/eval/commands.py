"""`vla-agents eval`, and what can be done with its results: `eval compare`, `eval merge`, `eval suites`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich
import tyro

from vla_agents.eval import compare as comparing
from vla_agents.eval.page import Section, write_page
from vla_agents.eval.run import RESULTS, merge
from vla_agents.eval.suites import SUITES, Suite


@dataclass(frozen=True)
class CompareConfig:
    """Compare two evaluations on the same episodes: a paired test, and a verdict in words."""

    a: tyro.conf.Positional[Path]
    """Folder (or results.json) of the first evaluation."""
    b: tyro.conf.Positional[Path]
    """Folder (or results.json) of the second one."""
    json: Path | None = None
    """Write the figures here as well."""
    page: Path | None = None
    """Write a page with both evaluations one below the other."""


def run_compare(config: CompareConfig) -> None:
    """`vla-agents eval compare A B`."""
    a, b = comparing.load(config.a), comparing.load(config.b)
    found = comparing.compare(a, b)
    for name, report in (("A", a), ("B", b)):
        rich.print(f"{name}: {report.config.get('agent', '?')}, {len(report.episodes)} episodes")
        if report.partial or report.overall.errors:
            rich.print(f"   (partial: {report.partial}; errors, left out: {report.overall.errors})")
    console = rich.get_console()
    console.print(comparing.table(found))
    if config.json:
        comparing.save(found, config.json)
    if config.page:
        titles = [f"{name}: {report.config.get('agent', '?')}" for name, report in (("A", a), ("B", b))]
        sections = [Section(title, report) for title, report in zip(titles, (a, b), strict=True)]
        write_page(config.page, sections, title="A against B", intro=found[""].verdict)


@dataclass(frozen=True)
class MergeConfig:
    """Put parts of one evaluation together (see --shard)."""

    out: tyro.conf.Positional[Path]
    """Folder to write."""
    parts: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of the parts."""


def run_merge(config: MergeConfig) -> None:
    """`vla-agents eval merge OUT PART PART ...`."""
    report = merge(config.parts, config.out)
    console = rich.get_console()
    console.print(report.table(f"{len(config.parts)} parts, {len(report.episodes)} episodes"))
    console.print(f"Written: {config.out / RESULTS}", soft_wrap=True, markup=False, highlight=False)


@dataclass(frozen=True)
class SuitesConfig:
    """List the benchmarks, or say one's protocol and where it is written down."""

    name: tyro.conf.Positional[str] = ""
    """A suite."""


def run_suites(config: SuitesConfig) -> None:
    """`vla-agents eval suites [NAME]`."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    if not config.name:
        listing = Table(
            *(Column(title, no_wrap=True) for title in ("suite", "episodes", "needs")), box=SIMPLE_HEAD
        )
        for name in SUITES:
            suite: Suite = SUITES.get(name)
            own = suite.env_args.get("where", "")
            needs = f"the extra {suite.extra}" if suite.extra else f"envs install {own}" if own else ""
            listing.add_row(name, f"{suite.tasks} x {suite.trials}", needs)
        rich.print(listing)
        rich.print(
            "Not yet: RoboCasa, RoboTwin, CALVIN, BEHAVIOR, RLBench. Any other registered env: --env ID."
        )
        return
    suite = SUITES.get(config.name)
    told = Table(title=suite.name, title_justify="left", show_header=False)
    told.add_row("episodes", f"{suite.tasks} task{'s' * (suite.tasks > 1)} x {suite.trials} trials")
    told.add_row("environment", f"{suite.env} {suite.env_args}")
    for key, value in suite.protocol.items():
        told.add_row(key, value)
    told.add_row("source", suite.source)
    rich.print(told)


COMMANDS: dict[str, tuple[type, Any]] = {
    "compare": (CompareConfig, run_compare),
    "merge": (MergeConfig, run_merge),
    "suites": (SuitesConfig, run_suites),
}
