"""Datasets made of datasets: `convert`, `merge` and `split`, between all formats.

The new dataset is written beside its place under another name, and gets its own by one rename when it is complete: whatever
happens before, nothing lies under that name, and the originals are only ever read.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vla_agents.data import atomic
from vla_agents.data.bars import bar
from vla_agents.data.convert.targets import ALIASES, TARGETS, Target, TargetOptions, format_of, target_class
from vla_agents.data.episode import EpisodeReader
from vla_agents.data.subset import SubsetReader
from vla_agents.errors import ConfigError, DatasetError, DatasetExistsError, VlaAgentsError

_MARK = ".incomplete-"


@dataclass
class Report:
    """What became of a conversion.

    Args:
        path: The new dataset.
        format: What it is.
        episodes: How many were written.
        frames: Their steps.
        nbytes: Bytes on disk.
        seconds: How long it took.
        lost: What the format cannot hold, a line each.
        done: What was done -> how often.
        skipped: Episode -> why it was left out.
    """

    path: Path
    format: str
    episodes: int = 0
    frames: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def losses(source: EpisodeReader, format: str, options: TargetOptions | None = None) -> list[str]:
    """What of a dataset a format cannot hold, a line each; empty where nothing is lost."""
    return target_class(format).losses(source, options or TargetOptions())


def convert(
    source: EpisodeReader,
    path: str | Path,
    format: str,
    options: TargetOptions | None = None,
    *,
    skip_bad: bool = False,
    progress: bool = False,
) -> Report:
    """Write a dataset in another format.

    Args:
        source: The dataset, e.g. of `open_dataset`.
        path: The new one; must not exist.
        format: One of `TARGETS`.
        options: How to write.
        skip_bad: Leave out episodes that cannot be read, and name them in the report.
        progress: Show a progress bar.

    Raises:
        DatasetExistsError: There is something at `path`.
        DatasetError: An episode cannot be read, and `skip_bad` is not set; nothing is written then.
        ConfigError: The format cannot hold such a dataset at all.
        RecordingError: The disk is full or not writable; nothing is left behind.
    """
    return merge([source], path, format, options, skip_bad=skip_bad, progress=progress)


def merge(
    sources: Sequence[EpisodeReader],
    path: str | Path,
    format: str | None = None,
    options: TargetOptions | None = None,
    *,
    skip_bad: bool = False,
    progress: bool = False,
) -> Report:
    """Write several datasets of one embodiment as one, their episodes one after the other.

    Args:
        sources: The datasets.
        format: One of `TARGETS`; that of the first dataset by default.
        path: As of `convert`, and so are the other arguments.

    Raises:
        EmbodimentMismatchError: Numbers or pixels of two datasets do not mean the same.
    """
    if not sources:
        raise ConfigError("there is nothing to merge", "give one dataset or more")
    options = options or TargetOptions()
    kind = ALIASES.get(format or "", format) or format_of(sources[0])
    cls = target_class(kind)
    for other in sources[1:]:
        sources[0].embodiment.require(
            other.embodiment, ours=f"dataset {sources[0].path}", theirs=f"dataset {other.path}"
        )
    lost = list(dict.fromkeys(line for source in sources for line in cls.losses(source, options)))
    report = Report(Path(path), TARGETS[kind][2], lost=lost)
    start = time.monotonic()
    with _staged(report.path, [source.path for source in sources]) as staged:
        target = cls(staged, sources, options)
        _fill(target, sources, report, skip_bad=skip_bad, progress=progress)
    report.seconds = time.monotonic() - start
    return report


def split(
    source: EpisodeReader,
    path: str | Path,
    parts: Mapping[str, Sequence[int]],
    format: str | None = None,
    options: TargetOptions | None = None,
    *,
    skip_bad: bool = False,
    progress: bool = False,
) -> dict[str, Report]:
    """Write parts of a dataset as datasets of their own, in folders of the new folder `path`.

    Args:
        source: The dataset.
        path: The new folder; must not exist. It appears with all parts in it.
        parts: Name of a part -> its episodes.
        format: As of `merge`, and so are the other arguments.
    """
    options = options or TargetOptions()
    kind = ALIASES.get(format or "", format) or format_of(source)
    cls, suffix = target_class(kind), TARGETS[kind][1]
    _check_parts(source, parts)
    reports = {}
    with _staged(Path(path), [source.path]) as staged:
        staged.mkdir()
        for name, indices in parts.items():
            chosen = SubsetReader(source, indices)
            where = Path(path) / f"{name}{suffix}"
            reports[name] = Report(where, TARGETS[kind][2], lost=cls.losses(chosen, options))
            start = time.monotonic()
            target = cls(staged / where.name, [chosen], options)
            _fill(target, [chosen], reports[name], skip_bad=skip_bad, progress=progress)
            reports[name].seconds = time.monotonic() - start
    return reports


def fractions(count: int, shares: Sequence[float], seed: int | None = 0) -> list[list[int]]:
    """Episodes 0..count-1 in parts of these shares, each in rising order; `seed` None takes them as they come."""
    if not shares or min(shares) <= 0 or sum(shares) > 1 + 1e-9:
        raise ConfigError(f"fractions are {list(shares)}", "give numbers above 0 whose sum is at most 1")
    order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
    ends = np.round(np.cumsum(shares) * count).astype(int)
    starts = np.concatenate([[0], ends[:-1]])
    return [sorted(order[a:b].tolist()) for a, b in zip(starts, ends, strict=True)]


def by_task(source: EpisodeReader) -> dict[str, list[int]]:
    """Episodes by instruction; the names can be those of files."""
    found: dict[str, list[int]] = {}
    names: dict[str, str] = {}
    for k, task in enumerate(source.instructions()):
        if task not in names:
            plain = re.sub(r"[^A-Za-z0-9]+", "_", task).strip("_").lower()[:80] or "no_instruction"
            names[task] = plain if plain not in found else f"{plain}_{len(names)}"
        found.setdefault(names[task], []).append(k)
    return found


# ---- inside -----------------------------------------------------------------------------------------------
def _fill(
    target: Target, sources: Sequence[EpisodeReader], report: Report, *, skip_bad: bool, progress: bool
) -> None:
    total = sum(len(source) for source in sources)
    with bar(f"Writing {report.path.name}", total, shown=progress) as advance:
        for source in sources:
            for k in range(len(source)):
                try:
                    target.add(source, k)
                except DatasetError as error:
                    if not skip_bad:
                        raise
                    name = f"episode {k}" if len(sources) == 1 else f"{source.path}, episode {k}"
                    report.skipped[name] = str(error.problem)
                advance()
            for name, skipped in getattr(source, "skipped", {}).items():
                report.skipped[str(name)] = str(skipped.problem)
    if total and not target.episodes:
        raise DatasetError(
            sources[0].path, f"none of {total} episodes can be read", "look at the first: `data info`"
        )
    target.finish()
    files = [p for p in (target.path, *target.path.rglob("*")) if p.is_file()]
    for file in files:
        with open(file, "rb+") as opened:
            os.fsync(opened.fileno())
    report.episodes, report.frames, report.done = target.episodes, target.frames, target.notes
    report.nbytes = sum(file.stat().st_size for file in files)


@contextlib.contextmanager
def _staged(path: Path, sources: Sequence[Path]) -> Iterator[Path]:
    """A name to write under, which becomes `path` when all went well; otherwise nothing remains."""
    _check_place(path, sources)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        folder = path.parent / f".{path.name}{_MARK}{os.getpid()}"
        folder.mkdir()
    except OSError as error:
        if isinstance(error, VlaAgentsError):
            raise
        raise atomic.recording_error(error, path, "making the new dataset") from error
    try:
        lock = atomic.FolderLock(folder)
        try:
            staged = folder / path.name
            yield staged
            _give_name(staged, path)
        finally:
            lock.release()
    except OSError as error:
        if isinstance(error, VlaAgentsError):
            raise
        raise atomic.recording_error(error, path, "writing the new dataset") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _give_name(staged: Path, path: Path) -> None:
    """Rename, unless something has got that name meanwhile."""
    if path.exists() or path.is_symlink():
        raise DatasetExistsError(path, "something appeared there meanwhile", "choose another name")
    if staged.is_dir():
        os.rename(staged, path)  # fails where a folder with content is there
    else:
        os.link(staged, path)  # fails where anything is there
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_place(path: Path, sources: Sequence[Path]) -> None:
    if path.exists() or path.is_symlink():
        raise DatasetExistsError(path, "is there already", "choose another name: nothing is overwritten")
    for source in sources:
        if path.resolve().is_relative_to(source.resolve()):
            raise ConfigError(f"{path} lies inside the dataset {source}", "choose a place outside of it")


def _remove_stale(path: Path) -> None:
    """Delete what conversions to the same name left that were killed; one that is under way is left alone."""
    for folder in path.parent.glob(f".{path.name}{_MARK}*"):
        try:
            lock = atomic.FolderLock(folder)
        except DatasetError:
            raise DatasetExistsError(path, "is being written by another process", "wait for it") from None
        except OSError:
            continue
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _check_parts(source: EpisodeReader, parts: Mapping[str, Sequence[int]]) -> None:
    if not parts:
        raise ConfigError("there are no parts to split into", "give episodes, fractions or --by-task")
    for name, indices in parts.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name):
            raise ConfigError(
                f"part {name!r} cannot be the name of a file", "use letters, digits, '_', '-', '.'"
            )
        bad = [k for k in indices if not 0 <= k < len(source)]
        if bad or not indices:
            raise ConfigError(
                f"part {name!r} names episode {bad[0]}" if bad else f"part {name!r} is empty",
                f"{source.path} has {len(source)} episodes",
            )
