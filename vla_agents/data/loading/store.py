"""What windows are cut from: the numbers of all episodes in memory, the pictures there or on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vla_agents.data.episode import Episode, EpisodeReader
from vla_agents.data.loading.resample import resample
from vla_agents.data.video.frames import Concatenated, Frames, Resized, frames_of, resize_all
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, DatasetError


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of windows come from.

    Args:
        source: `"memory"`: all are decoded at the start; `"files"`: each from its video when it is asked for;
            `"cache"`: from a decode-once cache on disk, which is made at the start where it is not there.
        size: `(height, width)` in which they are given (bicubic, as `ResizeImages`); None: as recorded.
        threads: Threads that decode at the start.
        progress: Show a progress bar meanwhile.
        folder: Where caches lie; None: `vla_agents.data.cache.cache.default_folder()`.
        format: Of the cache: `"raw"`, `"jpeg"`, or `"auto"`: raw where that takes at most a quarter of the free space.
        stale: `"rebuild"` or `"refuse"` a cache that is damaged or whose dataset has changed.
    """

    source: Literal["memory", "files", "cache"] = "memory"
    size: tuple[int, int] | None = None
    threads: int = 2
    progress: bool = False
    folder: str | Path | None = None
    format: Literal["auto", "raw", "jpeg"] = "auto"
    stale: Literal["rebuild", "refuse"] = "rebuild"

    def __post_init__(self) -> None:
        if self.source not in ("memory", "files", "cache"):
            raise ConfigError(f"pictures from {self.source!r}", "'memory', 'files' or 'cache'")


@dataclass
class Store:
    """All episodes, one after the other; shared by the views of a split."""

    frames: dict[str, Frames]  # camera -> pictures, by row of the datasets
    rows: np.ndarray  # int64 (N,): the row of each step (they differ where steps were cut anew)
    state: np.ndarray  # float32 (N, S)
    action: np.ndarray  # float32 (N, D)
    intervened: np.ndarray  # bool (N,)
    instructions: list[str]  # per episode
    successes: list[bool | None]  # per episode
    lengths: np.ndarray  # int64 (E,)

    @property
    def starts(self) -> np.ndarray:
        """int64 (E,): the first step of each episode."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        arrays = (self.state, self.action, self.intervened)
        pictures = (frames for frames in self.frames.values() if isinstance(frames, np.ndarray))
        return sum(array.nbytes for array in (*arrays, *pictures))


def load_store(
    sources: Sequence[EpisodeReader], embodiment: Embodiment, pictures: Pictures, fps: float | None = None
) -> Store:
    """Read datasets of one embodiment.

    Args:
        sources: The datasets.
        embodiment: Theirs; its cameras are the ones wanted.
        pictures: Where pictures come from.
        fps: The rate to bring them to; None: they are at the embodiment's.
    """
    lengths = np.concatenate([source.lengths() for source in sources])
    if not lengths.sum():
        raise DatasetError(sources[0].path, "holds no episodes", "record some first")
    if pictures.source == "memory":
        store = _into_memory(sources, embodiment, lengths, pictures)
    else:
        store = _numbers_only(sources, embodiment, lengths, pictures)
    return store if fps is None else _resampled(store, sources, embodiment, fps)


def required_bytes(embodiment: Embodiment, frames: int) -> int:
    """Memory that `frames` steps of this embodiment take, in bytes."""
    pictures = sum(c.height * c.width * 3 for c in embodiment.cameras)
    return frames * (pictures + 4 * (embodiment.state_dim + embodiment.action_dim) + 1)


def available_bytes() -> int | None:
    """Memory free without swapping (of the machine and of the container), or None where that is unknown."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            found.append(max(0, int(limit) - used))
    except (OSError, ValueError):
        pass
    return min(found) if found else None


# ---- everything in memory ---------------------------------------------------------------------------------
def _into_memory(
    sources: Sequence[EpisodeReader], embodiment: Embodiment, lengths: np.ndarray, pictures: Pictures
) -> Store:
    frames = int(lengths.sum())
    shown = embodiment if pictures.size is None else embodiment.with_image_size(*pictures.size)
    needed, free = required_bytes(shown, frames), available_bytes()
    if free is not None and needed > free:
        raise ConfigError(
            f"{frames:,} frames take {needed / 1e9:.1f} GB in memory, {free / 1e9:.1f} GB are free",
            "use pictures from files or a cache (`Pictures`), fewer cameras, smaller pictures or fewer episodes",
        )
    images = {c.name: np.empty((frames, c.height, c.width, 3), np.uint8) for c in shown.cameras}
    store = _empty_store(images, embodiment, lengths)  # type: ignore[arg-type]
    jobs = [(source, k) for source in sources for k in range(len(source))]

    def load_one(number: int) -> None:
        source, index = jobs[number]
        episode = source.read(index)
        where = _copy_numbers(store, source, index, number, episode)
        for name, target in images.items():
            target[where] = resize_all(episode.images[name], target.shape[1:3])

    title = f"Decoding {len(jobs):,} episodes into {needed / 1e6:,.0f} MB"
    with (
        ThreadPoolExecutor(pictures.threads) as pool,
        loading_bar(title, len(jobs), pictures.progress) as advance,
    ):
        for _ in pool.map(load_one, range(len(jobs))):
            advance(1)
    return store


def _empty_store(frames: dict[str, Frames], embodiment: Embodiment, lengths: np.ndarray) -> Store:
    total = int(lengths.sum())
    return Store(
        frames=frames,
        rows=np.arange(total),
        state=np.empty((total, embodiment.state_dim), np.float32),
        action=np.empty((total, embodiment.action_dim), np.float32),
        intervened=np.zeros(total, bool),
        instructions=[""] * len(lengths),
        successes=[None] * len(lengths),
        lengths=lengths,
    )


def _copy_numbers(store: Store, source: EpisodeReader, index: int, number: int, episode: Episode) -> slice:
    """Copy all but the pictures; returns where the episode's steps are."""
    start, length = int(store.starts[number]), int(store.lengths[number])
    if len(episode) != length:
        raise DatasetError(source.path, f"episode {index} has {len(episode)} steps, its index says {length}")
    where = slice(start, start + length)
    if episode.state is not None:
        store.state[where] = episode.state
    store.action[where] = episode.action
    for what, values in (("state", store.state[where]), ("action", store.action[where])):
        _require_finite(source, index, what, values)
    store.intervened[where] = episode.intervened
    store.instructions[number] = episode.instruction
    store.successes[number] = episode.success
    return where


def _require_finite(source: EpisodeReader, index: int, what: str, values: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise DatasetError(
            source.path, f"{what} is not finite in episode {index}, frame {bad[0]}", "leave this episode out"
        )


@contextmanager
def loading_bar(title: str, total: int, shown: bool) -> Iterator[Any]:
    """A progress bar, or nothing where nobody looks; yields the function that advances it by a number."""
    if not shown:
        yield lambda number: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda number: progress.advance(task, number)


# ---- pictures on disk -------------------------------------------------------------------------------------
def _numbers_only(
    sources: Sequence[EpisodeReader], embodiment: Embodiment, lengths: np.ndarray, pictures: Pictures
) -> Store:
    store = _empty_store({}, embodiment, lengths)
    parts: dict[str, list[Frames]] = {name: [] for name in embodiment.camera_names}
    first = 0
    for source in sources:
        columns = source.columns()
        where = slice(first, first + len(columns["action"]))
        store.action[where] = columns["action"]
        if embodiment.state_dim:
            store.state[where] = columns["observation.state"]
        store.intervened[where] = columns.get("intervention", False)
        ends = np.cumsum(source.lengths())
        for what, values in (("state", store.state[where]), ("action", store.action[where])):
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(bad):
                index = int(np.searchsorted(ends, bad[0], side="right"))
                _require_finite(source, index, what, values[ends[index] - source.lengths()[index] :])
        for name, frames in _frames(source, embodiment.camera_names, columns, pictures).items():
            parts[name].append(frames)
        first = where.stop
    store.frames = {n: found[0] if len(found) == 1 else Concatenated(found) for n, found in parts.items()}
    store.instructions = [text for source in sources for text in source.instructions()]
    store.successes = [s for source in sources for s in source.successes()]
    return store


def _frames(
    source: EpisodeReader, cameras: Sequence[str], columns: dict[str, np.ndarray], pictures: Pictures
) -> dict[str, Frames]:
    if pictures.source == "cache":
        from vla_agents.data.cache.cache import cached_frames

        return cached_frames(
            source,
            cameras,
            columns,
            size=pictures.size,
            folder=pictures.folder,
            format=pictures.format,
            stale=pictures.stale,
            threads=pictures.threads,
            bar=partial(loading_bar, shown=pictures.progress),
        )
    found = frames_of(source, cameras, columns)
    if pictures.size is None:
        return found
    return {name: Resized(frames, pictures.size) for name, frames in found.items()}


# ---- another rate -----------------------------------------------------------------------------------------
def _resampled(store: Store, sources: Sequence[EpisodeReader], embodiment: Embodiment, fps: float) -> Store:
    """The same episodes, at `fps` steps a second."""
    rates = np.repeat([s.embodiment.control_hz for s in sources], [len(s) for s in sources])
    rows, actions = [], []
    for rate, start, length in zip(rates, store.starts, store.lengths, strict=True):
        steps = slice(int(start), int(start + length))
        if abs(rate - fps) < 1e-6:
            rows.append(np.arange(length) + start)
            actions.append(store.action[steps])
        else:
            body = dataclasses.replace(embodiment, control_hz=float(rate))
            found, action = resample(store.action[steps], body, fps)
            rows.append(found + start)
            actions.append(action)
    taken = np.concatenate(rows)
    return dataclasses.replace(
        store,
        rows=taken,
        state=store.state[taken],
        action=np.concatenate(actions),
        intervened=store.intervened[taken],
        lengths=np.array([len(found) for found in rows], np.int64),
    )
