"""`vla-agents data check|view`: options, and a few lines over the library."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from vla_agents.data.check import SEVERITIES, Finding, Report, check_dataset, copy_without
from vla_agents.data.convert.targets import format_of
from vla_agents.data.episode import EpisodeReader
from vla_agents.data_commands import Reading, name_skipped
from vla_agents.errors import DatasetError

_console = Console(highlight=False, soft_wrap=True, markup=False)
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}
_ROWS = 40


# ---- check ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CheckConfig(Reading):
    """Find what spoils training: misaligned pictures, broken times, jumps, doubles, missing words. Changes nothing."""

    path: Positional[Path]
    """Folder or HDF5 file."""
    images: Literal["off", "sample", "all"] = "sample"
    """How many pictures are decoded: none, a few of up to 50 episodes, or all."""
    json: Path | None = None
    """Write all findings to this JSON file."""
    fix_hints: bool = False
    """Print the command that mends each finding."""
    all: bool = False
    """Print all findings, not the first 40."""


def run_check(config: CheckConfig) -> int:
    """Print a table; 1 where there are errors."""
    reader, refused = _opened(config)
    report = check_dataset(reader, images=config.images, progress=True, refused=refused)
    show(report, most=len(report.findings) if config.all else _ROWS)
    if config.fix_hints:
        _hints(report.findings)
    mend = copy_without(report, format_of(reader), skip_bad=refused is not None)
    if mend:
        _console.print(f"A copy without the {len(report.bad_episodes)} episodes in question:\n  {mend}")
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(
            json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        _console.print(f"{config.json}: {len(report.findings)} findings")
    return int(report.count("error") > 0)


def _opened(config: CheckConfig) -> tuple[EpisodeReader, DatasetError | None]:
    """The dataset with all its episodes, and why it would not be opened without --skip-bad."""
    try:
        return dataclasses.replace(config, skip_bad=False).open(config.path), None
    except DatasetError as error:
        return dataclasses.replace(config, skip_bad=True).open(config.path), error


def show(report: Report, most: int = _ROWS) -> None:
    """The findings as a table, the worst first."""
    looked = (
        f", {report.pictures:,} pictures looked at" if report.images != "off" else ", no picture looked at"
    )
    _console.print(
        f"{report.path}: {report.format}, {report.episodes} episodes, {report.steps:,} steps{looked}"
    )
    if report.findings:
        table = Table("", "episode", "step", "found", "what to do")
        for f in report.findings[:most]:
            times = f" ({f.count} steps)" if f.count > 1 and f.step is not None else ""
            table.add_row(
                Text(f.severity, style=_COLOURS[f.severity]),
                "all" if f.episode is None else str(f.episode),
                "" if f.step is None else str(f.step),
                Text(f.message + times),
                Text(f.remedy),
            )
        Console().print(table)
        if len(report.findings) > most:
            _console.print(f"... and {len(report.findings) - most} more: --all, or --json FILE")
    counts = ", ".join(f"{report.count(s)} {s}s" for s in SEVERITIES)
    _console.print(counts if report.findings else "nothing found")


def _hints(findings: list[Finding]) -> None:
    for f in findings:
        if f.command:
            where = "all" if f.episode is None else f"episode {f.episode}"
            _console.print(f"{f.check}, {where}:\n  {f.command}")


# ---- view -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ViewConfig(Reading):
    """Look at a dataset in a web browser: pictures of all cameras, curves, times, findings. For this machine only."""

    path: Positional[Path]
    """Folder or HDF5 file."""
    port: int = 0
    """Port on 127.0.0.1; 0 takes a free one."""
    open_browser: Annotated[bool, tyro.conf.arg(name="open")] = False
    """Open the browser."""
    check: bool = True
    """Look for defects meanwhile (no picture is decoded for it)."""
    export: Path | None = None
    """Write one episode as a page that needs no server into this new folder, and end."""
    episode: int = 0
    """Which one to export."""


def run_view(config: ViewConfig) -> None:
    """Serve until Ctrl-C, or export."""
    import webbrowser

    from vla_agents.data.view import Content, Viewer, export

    reader = config.open(config.path, checked=True)
    if name_skipped(reader):
        _console.print("the episodes are counted without them")
    if config.export is not None:
        content = Content(reader, check=config.check)
        content.wait()
        file = export(content, config.episode, config.export, progress=True)
        _console.print(f"open {file}")
        return
    viewer = Viewer(Content(reader, check=config.check), config.port)
    _console.print(f"{config.path}: {reader.format}, {len(reader)} episodes\n{viewer.url}\nCtrl-C ends it")
    try:
        if config.open_browser:
            webbrowser.open(viewer.url)
        viewer.serve_forever()
    except KeyboardInterrupt:
        _console.print("ended")
    finally:
        viewer.close()
