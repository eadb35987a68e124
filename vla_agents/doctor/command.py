"""`vla-agents doctor [NAME]`: the checks as a table, and as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vla_agents.doctor import graphics, machine, software
from vla_agents.doctor.checks import Check, Row, Target, examine, find_target
from vla_agents.doctor.trial import trial
from vla_agents.errors import ConfigError
from vla_agents.versions import package_versions

# One line registers a check.
CHECKS: dict[str, Check] = {
    "Python": machine.python_version,
    "packages": software.base_packages,
    "extra": software.extra_packages,
    "own environment": software.own_environment,
    "assets": software.assets,
    "OpenGL": graphics.opengl,
    "Vulkan": graphics.vulkan,
    "GPU": graphics.gpu,
    "attention": graphics.attention,
    "video codecs": software.codecs,
    "memory": machine.memory,
    "disk": machine.disk,
    "writable folders": machine.writable,
    "serial ports": machine.serial_ports,
    "terminal": machine.terminal,
}
SLOW: dict[str, Check] = {"trial": trial}
_LOOK = {"ok": ("ok", "green"), "missing": ("missing", "bold red"), "warning": ("warning", "yellow")}
_ABSENT = ("-", "dim")
_ROOM_FOR_REMEDIES, _ROOM_FOR_A_TABLE = (
    110,
    60,
)  # columns; with fewer, remedies stand under the table, rows are sentences


@dataclass(frozen=True)
class DoctorConfig:
    """Look at this machine and say what is missing, with the command that mends it; exit status 1 if something is."""

    name: tyro.conf.Positional[str] = ""
    """A suite (libero_object), the id of an environment, or an extra (robots), to see what it needs beside the rest."""
    env: str = ""
    """The id of an environment, another way to say NAME."""
    quick: bool = False
    """Do not start the simulator (which takes seconds) to see whether it really runs and draws as it should."""
    json: Annotated[str, tyro.conf.arg(metavar="FILE|-")] = ""
    """Write everything here as JSON as well; - writes it to the standard output, instead of the table."""


def doctor(config: DoctorConfig, console: Console | None = None) -> int:
    """Run the checks and show them; returns the exit status."""
    if config.name and config.env:
        raise ConfigError(
            f"both {config.name!r} and --env {config.env} are given", "one of them: vla-agents doctor NAME"
        )
    target = find_target(config.name or config.env)
    console = console or Console(highlight=False)
    waiting = Console(stderr=True)
    with waiting.status(f"looking at {target.name or 'this machine'} ..."):
        rows = examine(target, CHECKS, SLOW if target.env and not config.quick else {})
    if config.json:
        _write_json(config.json, target, rows)
    if config.json != "-":
        show(target, rows, console)
    return int(any(row.status == "missing" for row in rows))


# ---- as a table -----------------------------------------------------------------------------------------------
def show(target: Target, rows: list[Row], console: Console) -> None:
    """The table; then, ready to be copied, the commands for what is missing; then the verdict."""
    wide = console.width >= _ROOM_FOR_REMEDIES
    if console.width >= _ROOM_FOR_A_TABLE:
        console.print(_table(target, rows, wide))
    else:
        for row in rows:
            word, style = _LOOK.get(row.status, _ABSENT)
            console.print(f"[{style}]{word}[/] [bold]{escape(row.name)}[/]: {escape(row.found)}")
    for status, title in (("missing", "To mend what is missing:"), ("warning", "To mend what is not well:")):
        remedies = list(dict.fromkeys(_remedy(row) for row in rows if row.status == status and _remedy(row)))
        if remedies and (status == "missing" or not wide):
            console.print(f"\n[bold]{title}[/]")
            for remedy in remedies:
                console.print(f"  {remedy}", soft_wrap=True, markup=False)
    console.print(f"\n{verdict(target, rows)}", soft_wrap=True, markup=False)


def _table(target: Target, rows: list[Row], wide: bool) -> Table:
    table = Table(title=f"vla-agents doctor {target.name}".strip(), title_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold", ratio=3 if wide else None)
    if wide:
        table.add_column("remedy", overflow="fold", ratio=2)
    for row in rows:
        word, style = _LOOK.get(row.status, _ABSENT)
        cells = [escape(row.name), f"[{style}]{word}[/]", escape(row.found)]
        table.add_row(*cells, *([escape(_remedy(row))] if wide else []))
    return table


def _remedy(row: Row) -> str:
    if row.status == "ok" and not row.command:
        return ""
    return f"{row.command}  # {row.advice}" if row.command and row.advice else row.command or row.advice


def verdict(target: Target, rows: list[Row]) -> str:
    """The whole, in a sentence."""
    missing = list(dict.fromkeys(row.name for row in rows if row.status == "missing"))
    warnings = sum(row.status == "warning" for row in rows)
    what = target.name or "vla-agents"
    beside = f"; {warnings} warning{'s' * (warnings > 1)}" if warnings else ""
    if missing:
        return f"{what} cannot run here, or not as it should: {', '.join(missing)}{beside}."
    return f"All that {what} needs is there{beside}."


# ---- as JSON --------------------------------------------------------------------------------------------------
def _write_json(where: str, target: Target, rows: list[Row]) -> None:
    record = {
        "target": asdict(target),
        "ok": not any(row.status == "missing" for row in rows),
        "verdict": verdict(target, rows),
        "versions": package_versions(),
        "rows": [asdict(row) for row in rows],
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    if where == "-":
        sys.stdout.write(text)
        return
    try:
        Path(where).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--json {where}: {error.strerror or error}", "name a file that can be written"
        ) from error
