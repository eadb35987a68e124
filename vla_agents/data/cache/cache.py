"""Decode once: the pictures of a dataset at the size a policy sees them, kept on disk so that training never decodes video.

A cache belongs to one state of the dataset's files and one set of cameras, sizes and format. It is written under another
name and renamed when it is complete. What a killed build had finished is kept, and the next one goes on from there; a
cache whose dataset has changed is made anew (or refused), never used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vla_agents.data.cache.build import Builder, MakeBar, building
from vla_agents.data.cache.files import CachedFrames, CacheSettings, amount, fingerprint, what_is_wrong
from vla_agents.data.episode import EpisodeReader
from vla_agents.data.video.frames import Frames, frames_of
from vla_agents.errors import ConfigError, DatasetError

_log = logging.getLogger(__name__)
_SHARE = 0.25  # of the free space that a cache without a given format may take as raw pictures


def default_folder() -> Path:
    """Where caches lie unless told otherwise: `$VLA_AGENTS_CACHE`, else in the user's cache folder."""
    if os.environ.get("VLA_AGENTS_CACHE"):
        return Path(os.environ["VLA_AGENTS_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla_agents" / "frames"


def cached_frames(
    reader: EpisodeReader,
    cameras: Sequence[str],
    columns: Mapping[str, np.ndarray],
    *,
    size: tuple[int, int] | None = None,
    folder: str | Path | None = None,
    format: str = "auto",
    stale: str = "rebuild",
    threads: int = 2,
    bar: MakeBar | None = None,
) -> dict[str, Frames]:
    """The pictures of a dataset from its cache, which is made first where there is none.

    Args:
        reader: The dataset.
        cameras: Which cameras.
        columns: `reader.columns()`.
        size: `(height, width)` of the cached pictures; None: as recorded.
        folder: Where caches lie; None: `default_folder()`.
        format: `"raw"`, `"jpeg"` (quality 90), or `"auto"`: raw where that takes at most a quarter of the free space.
        stale: `"rebuild"` or `"refuse"` a cache that is damaged or whose dataset has changed.
        threads: Threads that decode.
        bar: Makes a progress bar: a context manager over `(title, total)` that yields the function to advance it.

    Raises:
        ConfigError: Not enough space, or the folder cannot be written to.
        DatasetError: The dataset cannot be read, or the cache is stale and `stale` is `"refuse"`.
    """
    if format not in ("auto", "raw", "jpeg") or stale not in ("rebuild", "refuse"):
        raise ConfigError(f"cache format {format!r}, stale {stale!r}", "auto, raw or jpeg; rebuild or refuse")
    recorded = {c.name: (c.height, c.width) for c in reader.embodiment.cameras}
    sizes = {name: size or recorded[name] for name in cameras}
    root = Path(folder) if folder is not None else default_folder()
    frames = frames_of(reader, cameras, columns)
    source = fingerprint(reader, frames)
    for known in ("raw", "jpeg") if format == "auto" else (format,):  # one that is there is taken
        settings = CacheSettings(sizes, known)
        if not what_is_wrong(_place(root, reader, settings), settings, source):
            return _open(_place(root, reader, settings), settings)
    builder = Builder(reader.lengths(), sizes, frames, threads)
    try:
        root.mkdir(parents=True, exist_ok=True)
        settings = CacheSettings(sizes, _choose_format(builder, root, reader, format))
        place = _place(root, reader, settings)
        with _only_one(place):
            problem = what_is_wrong(place, settings, source)  # another process may just have made it
            if problem:
                _handle_stale(place, problem, stale)
                builder.build(place, settings, source, bar)
    except OSError as error:
        raise _disk_error(error, root) from error
    return _open(place, settings)


def _place(root: Path, reader: EpisodeReader, settings: CacheSettings) -> Path:
    """The folder of a cache: the same dataset and settings have the same."""
    path = reader.path.resolve()
    key = hashlib.sha256(json.dumps([str(path), settings.to_dict()], sort_keys=True).encode()).hexdigest()
    return root / f"{path.name}-{key[:16]}"


def _choose_format(builder: Builder, root: Path, reader: EpisodeReader, wanted: str) -> str:
    """Raw or JPEG; refuses what does not fit on the disk."""

    def free_for(format: str) -> int:
        place = _place(root, reader, CacheSettings(builder.sizes, format))
        there = (file for folder in (place, building(place)) for file in folder.glob("*"))
        return shutil.disk_usage(root).free + sum(file.stat().st_size for file in there)

    if wanted == "auto":
        wanted = "raw" if builder.size("raw") <= _SHARE * free_for("raw") else "jpeg"
    needed, free = builder.size(wanted), free_for(wanted)
    if needed > 0.95 * free:
        raise ConfigError(
            f"{root}: the cache would take {amount(needed)} as {wanted}, {amount(free)} are free",
            "use jpeg, a smaller size, another folder (--cache PATH), or --cache off",
        )
    return wanted


def _open(place: Path, settings: CacheSettings) -> dict[str, Frames]:
    return {name: CachedFrames(place, name, size, settings.format) for name, size in settings.sizes.items()}


def _handle_stale(place: Path, problem: str, stale: str) -> None:
    if not place.exists():
        return
    if stale == "refuse":
        raise DatasetError(place, f"the cache cannot be used: {problem}", "let it be rebuilt, or delete it")
    _log.warning("making the cache %s anew: %s", place, problem)
    shutil.rmtree(place)


def _disk_error(error: OSError, root: Path) -> ConfigError:
    existing = next(p for p in (root, *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ConfigError(
        f"{root}: the cache cannot be written: {reason} ({amount(free)} free)",
        "choose another folder (--cache PATH) or none (--cache off); what was cached so far is kept",
    )


@contextmanager
def _only_one(place: Path) -> Iterator[None]:
    """Others who want the same cache wait here until it is there; the lock ends with its holder."""
    descriptor = os.open(place.with_name(place.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another process that makes the cache %s", place)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
