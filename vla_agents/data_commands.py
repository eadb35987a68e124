"""`vla-agents data info|stats|convert|merge|split`: options, and a few lines over the library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from vla_agents.data.convert.convert import Report, by_task, convert, fractions, losses, merge, split
from vla_agents.data.convert.targets import ALIASES, LOSSLESS, TARGETS, TargetOptions, format_of
from vla_agents.data.describe import describe
from vla_agents.data.episode import EpisodeReader
from vla_agents.data.open import open_dataset, open_with_bad
from vla_agents.data.statistics import DEFAULT, ColumnStats, save_statistics, statistics
from vla_agents.data.subset import SubsetReader
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, DatasetError

_console = Console(highlight=False, soft_wrap=True, markup=False)
_FORMATS = ", ".join([*TARGETS, *ALIASES])


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a dataset is opened."""

    instruction: str | None = None
    """For HDF5 files that hold no instruction."""
    rate: float | None = None
    """Steps per second, for HDF5 files that do not state it."""
    colour: str | None = None
    """ALOHA: rgb or bgr, the order in which the cameras' driver handed over the colours."""
    mask: str | None = None
    """robomimic, LIBERO: only the demos of this filter key."""
    state_keys: tuple[str, ...] = ()
    """robomimic, LIBERO: the observations that make up the state, in order."""
    embodiment: Path | None = None
    """JSON that says what numbers and pixels mean (Embodiment.save), where the dataset does not."""
    skip_bad: bool = False
    """Leave out episodes that cannot be read, and name them."""

    def open(self, path: Path, *, checked: bool = False) -> EpisodeReader:
        """The dataset; with `skip_bad` without bad episodes if `checked`, else with all, under their own numbers."""
        options: dict[str, Any] = {"instruction": self.instruction, "fps": self.rate, "colour": self.colour}
        options |= {"mask": self.mask, "state_keys": self.state_keys or None}
        body = None if self.embodiment is None else Embodiment.load(self.embodiment)
        given = {name: value for name, value in options.items() if value is not None}
        if self.skip_bad and not checked:
            return open_with_bad(path, embodiment=body, **given)
        return open_dataset(path, embodiment=body, skip_bad=self.skip_bad, **given)


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a dataset is written."""

    video_quality: str | None = None
    """LeRobot: 0 (best) to 51, or "lossless" for PNG pictures. By default video of LeRobot is copied as it is, and
    other pictures become video as recordings do: 18 for small ones, 20 for larger ones."""
    codec: str = "h264"
    """LeRobot: h264 or av1, where video is encoded."""
    compression: str | None = None
    """HDF5: gzip or none, for the pictures."""
    fps: float | None = None
    """The nominal rate to write, where the target cannot hold the real one, or the source says a wrong one. Steps stay
    the ones they are."""
    robot_type: str | None = None
    """LeRobot's field of that name."""

    def options(self) -> TargetOptions:
        """For the library."""
        quality: int | str | None = self.video_quality
        if quality not in (None, LOSSLESS):
            try:
                quality = int(str(quality))
            except ValueError:
                raise ConfigError(
                    f"--video-quality is {quality!r}", f"give a number from 0 to 51, or {LOSSLESS}"
                ) from None
        return TargetOptions(self.fps, quality, self.codec, self.compression, self.robot_type)


# ---- info -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class InfoConfig(Reading):
    """Say what a dataset is: format, episodes, cameras, what its numbers mean, and what had to be assumed."""

    path: Positional[Path]
    """Folder or HDF5 file."""
    json: bool = False
    """Print JSON."""


def info(config: InfoConfig) -> int:
    """Print it; 1 where episodes were left out."""
    reader = config.open(config.path, checked=True)
    found = describe(reader)
    skipped = int(bool(getattr(reader, "skipped", None)))
    if config.json:
        print_json(found)
        return skipped
    table = Table("", "", title=str(config.path), show_header=False)
    for key, value in found.items():
        if isinstance(value, dict):
            lines = [f"{name}: {entry}" for name, entry in value.items()]
        else:
            lines = value if isinstance(value, list) and key != "length" else [_words(key, value)]
        for number, line in enumerate(lines[:12]):
            table.add_row("" if number else key.replace("_", " "), str(line))
        if len(lines) > 12:
            table.add_row("", f"... and {len(lines) - 12} more")
    Console().print(table)
    return skipped


def name_skipped(reader: EpisodeReader) -> int:
    """Print which episodes were left out, and why; 1 where there are any."""
    skipped = getattr(reader, "skipped", {})
    for name, error in skipped.items():
        _console.print(f"left out: {name}: {error.problem}")
    return int(bool(skipped))


def print_json(content: Any) -> None:
    """JSON to the standard output, as it is."""
    _console.print(json.dumps(content, indent=1, ensure_ascii=False))


def _words(key: str, value: Any) -> str:
    if key == "bytes":
        return f"{value / 1e6:,.1f} MB"
    if key == "length" and value:
        return f"{value[0]} to {value[2]} steps, median {value[1]}"
    return f"{value:,}" if isinstance(value, int) else str(value)


# ---- stats ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class StatsConfig(Reading):
    """Exact statistics of a dataset's numbers; no picture is decoded."""

    path: Positional[Path]
    """Folder or HDF5 file."""
    columns: tuple[str, ...] = ()
    """Which columns; state and action by default."""
    envelope: bool = False
    """Also what LeRobot's files call quantiles: the envelope of the episodes' quantiles."""
    skip_nonfinite: bool = False
    """Leave out rows with NaN or infinities, and count them, instead of refusing them."""
    out: Path | None = None
    """Write JSON to this file (must not exist)."""


def stats(config: StatsConfig) -> int:
    """Print them, and write them where asked; 1 where episodes were left out."""
    if config.out is not None and config.out.exists():
        raise ConfigError(f"{config.out} is there already", "choose another name: nothing is overwritten")
    reader = config.open(config.path, checked=True)
    found = statistics(reader, config.columns, envelope=config.envelope, skip_nonfinite=config.skip_nonfinite)
    for name, column in found.items():
        table = _stats_table(reader, name, column)
        Console(width=max(Console().width, 24 + 13 * len(table.columns))).print(table)
    if config.out is not None:
        save_statistics(config.out, found)
        _console.print(f"statistics: {config.out}")
    return name_skipped(reader)


def _stats_table(reader: EpisodeReader, name: str, found: ColumnStats) -> Table:
    skipped = f", {found.skipped} rows left out that were not finite" if found.skipped else ""
    heads = ["mean", "std", "min", *found.quantiles, "max", *(f"envelope {n}" for n in found.envelope)]
    table = Table("", *heads, title=f"{name}: {found.count:,} rows{skipped}")
    columns = [
        found.mean,
        found.std,
        found.min,
        *found.quantiles.values(),
        found.max,
        *found.envelope.values(),
    ]
    parts = reader.embodiment.state if name == DEFAULT[0] else reader.embodiment.action
    labels = [p.name if p.size == 1 else f"{p.name}.{k}" for p in parts for k in range(p.size)]
    for k in range(len(found.mean)):
        label = labels[k] if name in DEFAULT and len(labels) == len(found.mean) else str(k)
        table.add_row(label + (" (constant)" if found.constant[k] else ""), *(f"{c[k]:.5g}" for c in columns))
    return table


# ---- convert, merge, split --------------------------------------------------------------------------------
@dataclass(frozen=True)
class ConvertConfig(Reading, Writing):
    """Write a dataset in another format; the original is only read, and nothing is overwritten."""

    source: Positional[Path]
    """Folder or HDF5 file."""
    target: Positional[Path]
    """The new one; must not exist."""
    to: Annotated[str, tyro.conf.arg(help=f"Format of the new one: {_FORMATS}.")] = "lerobot"
    episodes: str = ""
    """Only these, e.g. 0:50,60,72 (first:end, end excluded)."""
    dry_run: bool = False
    """Say what the new format cannot hold, and do nothing."""
    strict: bool = False
    """Refuse to convert where anything would be lost."""
    report: Path | None = None
    """Write the report to this JSON file, too."""


def run_convert(config: ConvertConfig) -> int:
    """Say what will be lost, do it, say what was done; 1 where episodes were skipped."""
    source, options = config.open(config.source), config.options()
    if config.episodes:
        source = SubsetReader(source, episode_numbers(config.episodes, len(source)))
    lost = losses(source, config.to, options)
    _announce([source], config.to, lost)
    if config.strict and lost:
        raise ConfigError(
            f"{config.target}: {len(lost)} things would be lost", "leave out --strict, or see above"
        )
    if config.dry_run:
        return 0
    done = convert(source, config.target, config.to, options, skip_bad=config.skip_bad, progress=True)
    return _finished([done], config.report)


@dataclass(frozen=True)
class MergeConfig(Reading, Writing):
    """Write several datasets of one embodiment as one; the originals are only read."""

    paths: Positional[tuple[Path, ...]]
    """The datasets, and at last the new one, which must not exist."""
    to: Annotated[
        str, tyro.conf.arg(help=f"Format of the new one, the first one's by default: {_FORMATS}.")
    ] = ""
    report: Path | None = None
    """Write the report to this JSON file, too."""


def run_merge(config: MergeConfig) -> int:
    """Merge."""
    if len(config.paths) < 3:
        raise ConfigError(
            f"merge got {len(config.paths)} paths", "give two datasets or more, and then the new one"
        )
    *paths, target = config.paths
    sources, options = [config.open(path) for path in paths], config.options()
    kind = config.to or format_of(sources[0])
    _announce(sources, kind, list(dict.fromkeys(line for s in sources for line in losses(s, kind, options))))
    done = merge(sources, target, kind, options, skip_bad=config.skip_bad, progress=True)
    return _finished([done], config.report)


@dataclass(frozen=True)
class SplitConfig(Reading, Writing):
    """Write parts of a dataset as datasets of their own; the original is only read."""

    source: Positional[Path]
    """Folder or HDF5 file."""
    target: Positional[Path]
    """The new folder, which must not exist; it gets a dataset for each part."""
    parts: tuple[str, ...] = ()
    """NAME=SHARE (train=0.8 val=0.2) or NAME=EPISODES (train=0:80 val=80:100); all of one kind."""
    by_task: bool = False
    """A part for each instruction."""
    seed: int | None = 0
    """Decides which episodes make up a share; None takes them as they come."""
    to: Annotated[
        str, tyro.conf.arg(help=f"Format of the new ones, the source's by default: {_FORMATS}.")
    ] = ""
    report: Path | None = None
    """Write the report to this JSON file, too."""


def run_split(config: SplitConfig) -> int:
    """Split."""
    source, options = config.open(config.source), config.options()
    if config.by_task == bool(config.parts):
        raise ConfigError("split needs either --parts or --by-task", "e.g. --parts train=0.8 val=0.2")
    parts = by_task(source) if config.by_task else part_numbers(config.parts, len(source), config.seed)
    kind = config.to or format_of(source)
    _announce([source], kind, losses(source, kind, options))
    done = split(source, config.target, parts, kind, options, skip_bad=config.skip_bad, progress=True)
    return _finished(list(done.values()), config.report)


def episode_numbers(text: str, count: int) -> list[int]:
    """`"0:50,60,-1"` -> episode numbers; the end of a range is excluded."""
    found: list[int] = []
    for piece in text.split(","):
        try:
            if ":" in piece:
                found += range(count)[slice(*(int(n) if n else None for n in piece.split(":")))]
            else:
                found.append(range(count)[int(piece)])
        except (ValueError, IndexError):
            raise ConfigError(
                f"episodes {text!r}: {piece!r} is none of {count}", "give numbers and ranges: 0:50,60,72"
            ) from None
    if len(set(found)) != len(found):
        raise ConfigError(f"episodes {text!r} names one twice", "name each once")
    return found


def part_numbers(parts: Sequence[str], count: int, seed: int | None) -> dict[str, list[int]]:
    """NAME=SHARE or NAME=EPISODES -> episode numbers by name."""
    pairs = [part.partition("=")[::2] for part in parts]
    names = [name for name, _ in pairs]
    if not all(name and value for name, value in pairs) or len(set(names)) != len(names):
        raise ConfigError(f"parts are {list(parts)}", "give NAME=SHARE or NAME=EPISODES, each name once")
    try:
        shares = [float(value) for _, value in pairs if "." in value or value == "1"]
    except ValueError:
        shares = []
    if len(shares) == len(pairs):
        return dict(zip(names, fractions(count, shares, seed), strict=True))
    if shares:
        raise ConfigError(f"parts are {list(parts)}: shares and episodes mixed", "give all of one kind")
    return {name: episode_numbers(value, count) for name, value in pairs}


def _announce(sources: Sequence[EpisodeReader], kind: str, lost: Sequence[str]) -> None:
    for source in sources:
        _console.print(f"{source.path}: {source.format}, {len(source)} episodes")
        for note in source.notes:
            _console.print(f"  {note}")
    name = TARGETS[ALIASES.get(kind, kind)][2] if ALIASES.get(kind, kind) in TARGETS else kind
    _console.print(f"What {name} cannot hold of it:" if lost else f"{name} can hold all of it.")
    for line in lost:
        _console.print(f"  {line}")


def _finished(reports: Sequence[Report], file: Path | None) -> int:
    skipped = 0
    for report in reports:
        _console.print(
            f"{report.path}: {report.format}, {report.episodes} episodes, {report.frames:,} steps, "
            f"{report.nbytes / 1e6:,.1f} MB, {report.seconds:.1f} s"
        )
        for what, count in report.done.items():
            _console.print(f"  {count} {what}")
        for name, why in report.skipped.items():
            _console.print(f"  left out: {name}: {why}")
        skipped += len(report.skipped)
    if file is not None:
        content = [vars(report) | {"path": str(report.path)} for report in reports]
        try:
            with open(file, "x", encoding="utf-8") as opened:
                json.dump(content, opened, indent=1)
        except OSError as error:
            raise DatasetError(file, f"the report cannot be written ({error.strerror})") from error
    return int(skipped > 0)
