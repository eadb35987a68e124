"""Windows over episodes held in memory: observation at t, actions t..t+H-1, and where the episode had ended.

For datasets that fit into memory (64x64 pictures: 12 kB each). Every picture is decoded once; a batch is then
a few numpy index operations. Works with `torch.utils.data.DataLoader` (it has `__len__` and `__getitem__`),
and needs no torch itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.episode import EpisodeReader
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, DatasetError


@dataclass
class _Store:
    """All episodes, one after the other; shared by the views of a split."""

    images: dict[str, np.ndarray]  # camera -> uint8 (N, H, W, 3)
    state: np.ndarray  # float32 (N, S)
    action: np.ndarray  # float32 (N, D)
    intervened: np.ndarray  # bool (N,)
    instructions: list[str]  # per episode
    successes: list[bool | None]  # per episode
    starts: np.ndarray  # int64 (E,)
    lengths: np.ndarray  # int64 (E,)


class WindowDataset:
    """A map-style dataset of windows, all in memory.

    Args:
        readers: One dataset, or several of the same embodiment.
        horizon: H, the number of actions of a window.
        cameras: Which cameras to decode; all by default.
        progress: Show a progress bar while decoding.
        threads: Threads that decode.

    Attributes:
        embodiment: Of the data.
        horizon: H.
        episode_of: int64 (N,): which episode (index into `lengths`, `instructions`) each window is of.
        step_of: int64 (N,): its index within the episode.
        lengths: int64 (E,): steps per episode.
        instructions: One per episode.
        successes: One per episode.
    """

    def __init__(
        self,
        readers: EpisodeReader | Sequence[EpisodeReader],
        horizon: int,
        *,
        cameras: Sequence[str] | None = None,
        progress: bool = False,
        threads: int = 2,
    ) -> None:
        sources = list(readers) if isinstance(readers, Sequence) else [readers]
        if not sources or horizon < 1:
            raise ConfigError(
                f"WindowDataset got {len(sources)} datasets and horizon {horizon}, needs at least 1 of each"
            )
        for other in sources[1:]:
            sources[0].embodiment.require(
                other.embodiment, ours=f"dataset {sources[0].path}", theirs=f"dataset {other.path}"
            )
        self.embodiment: Embodiment = _with_cameras(sources[0].embodiment, cameras)
        self.horizon = horizon
        self._store = _load(sources, self.embodiment, progress=progress, threads=threads)
        self._select(np.arange(len(self._store.lengths)))

    def _select(self, episodes: np.ndarray) -> None:
        """Show these episodes, in this order."""
        store = self._store
        self._episodes = episodes
        self.lengths = store.lengths[episodes]
        self.instructions = [store.instructions[k] for k in episodes]
        self.successes = [store.successes[k] for k in episodes]
        self.episode_of = np.repeat(np.arange(len(episodes)), self.lengths)
        self.step_of = np.arange(len(self.episode_of)) - np.repeat(
            np.cumsum(self.lengths) - self.lengths, self.lengths
        )
        self._at = np.repeat(store.starts[episodes], self.lengths) + self.step_of  # (N,) into the store

    def __len__(self) -> int:
        return len(self._at)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory (shared between the views of a split)."""
        arrays = (*self._store.images.values(), self._store.state, self._store.action, self._store.intervened)
        return sum(array.nbytes for array in arrays)

    @property
    def state(self) -> np.ndarray:
        """float32 (N, S): the state of every window (a copy)."""
        return self._store.state[self._at]

    @property
    def action(self) -> np.ndarray:
        """float32 (N, D): the first action of every window (a copy)."""
        return self._store.action[self._at]

    @property
    def intervened(self) -> np.ndarray:
        """bool (N,): whether a human had taken over (a copy)."""
        return self._store.intervened[self._at]

    def get_batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Several windows at once.

        Args:
            indices: (B,) of 0..len-1.

        Returns:
            `images` {camera: uint8 (B, H, W, 3)}, `state` float32 (B, S), `instruction` list of B, `action`
            float32 (B, horizon, D) with the last one repeated past the episode's end, `mask` bool (B,
            horizon), False there.
        """
        wanted = np.asarray(indices, np.int64)
        store, at, episodes = self._store, self._at[wanted], self.episode_of[wanted]
        steps = self.step_of[wanted][:, None] + np.arange(self.horizon)
        last = self.lengths[episodes][:, None] - 1
        mask = steps <= last
        ahead = at[:, None] + np.minimum(steps, last) - self.step_of[wanted][:, None]
        return {
            "images": {name: frames[at] for name, frames in store.images.items()},
            "state": store.state[at],
            "instruction": [self.instructions[k] for k in episodes],
            "action": store.action[ahead],
            "mask": mask,
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"no window {index}, there are {len(self)}")
        batch = self.get_batch([index % len(self)])
        images = {name: frames[0] for name, frames in batch.pop("images").items()}
        return {"images": images, **{name: value[0] for name, value in batch.items()}}

    def split(self, validation_fraction: float, seed: int = 0) -> tuple[WindowDataset, WindowDataset]:
        """Two views `(training, validation)` by whole episodes; pictures are not copied.

        Args:
            validation_fraction: Share of the episodes, 0 to 1; at least one episode where it is above 0.
            seed: Decides which.
        """
        total = len(self._episodes)
        if not 0 <= validation_fraction < 1:
            raise ConfigError(f"validation_fraction is {validation_fraction}, expected 0 <= fraction < 1")
        count = max(1, round(total * validation_fraction)) if validation_fraction else 0
        if count >= total:
            raise ConfigError(
                f"cannot set {count} of {total} episodes aside for validation",
                "record more, or lower the fraction",
            )
        order = np.random.default_rng(seed).permutation(total)
        return self._view(np.sort(order[count:])), self._view(np.sort(order[:count]))

    def _view(self, episodes: np.ndarray) -> WindowDataset:
        view = object.__new__(WindowDataset)
        view.embodiment, view.horizon, view._store = self.embodiment, self.horizon, self._store
        view._select(self._episodes[episodes])
        return view


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


def _with_cameras(embodiment: Embodiment, names: Sequence[str] | None) -> Embodiment:
    if names is None:
        return embodiment
    by_name = {camera.name: camera for camera in embodiment.cameras}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ConfigError(f"the dataset has no camera {missing}", f"it has {sorted(by_name)}")
    return dataclasses.replace(embodiment, cameras=tuple(by_name[name] for name in names))


def _load(sources: list[EpisodeReader], embodiment: Embodiment, *, progress: bool, threads: int) -> _Store:
    lengths = np.concatenate([source.lengths() for source in sources])
    frames = int(lengths.sum())
    if not frames:
        raise DatasetError(sources[0].path, "holds no episodes", "record some first")
    needed, free = required_bytes(embodiment, frames), available_bytes()
    if free is not None and needed > free:
        raise ConfigError(
            f"{frames:,} frames take {needed / 1e9:.1f} GB in memory, {free / 1e9:.1f} GB are free",
            "use fewer cameras, smaller pictures or fewer episodes",
        )
    starts = np.cumsum(lengths) - lengths
    store = _Store(
        images={c.name: np.empty((frames, c.height, c.width, 3), np.uint8) for c in embodiment.cameras},
        state=np.empty((frames, embodiment.state_dim), np.float32),
        action=np.empty((frames, embodiment.action_dim), np.float32),
        intervened=np.empty(frames, bool),
        instructions=[""] * len(lengths),
        successes=[None] * len(lengths),
        starts=starts,
        lengths=lengths,
    )
    jobs = [(source, k) for source in sources for k in range(len(source))]

    def load_one(number: int) -> None:
        source, index = jobs[number]
        _copy_episode(store, source, index, number)

    with ThreadPoolExecutor(threads) as pool, _bar(len(jobs), needed, progress) as advance:
        for _ in pool.map(load_one, range(len(jobs))):
            advance()
    return store


def _copy_episode(store: _Store, source: EpisodeReader, index: int, number: int) -> None:
    episode = source.read(index)
    start, length = int(store.starts[number]), int(store.lengths[number])
    if len(episode) != length:
        raise DatasetError(source.path, f"episode {index} has {len(episode)} steps, its index says {length}")
    where = slice(start, start + length)
    for name, frames in store.images.items():
        frames[where] = episode.images[name]
    if episode.state is not None:
        store.state[where] = episode.state
    store.action[where] = episode.action
    for what, values in (("state", store.state[where]), ("action", store.action[where])):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise DatasetError(
                source.path,
                f"{what} is not finite in episode {index}, frame {bad[0]}",
                "leave this episode out",
            )
    store.intervened[where] = episode.intervened
    store.instructions[number] = episode.instruction
    store.successes[number] = episode.success


@contextmanager
def _bar(total: int, nbytes: int, shown: bool) -> Iterator[Any]:
    """A progress bar, or nothing; yields the function that advances it."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"Decoding {total:,} episodes into {nbytes / 1e6:,.0f} MB", total=total)
        yield lambda: progress.advance(task)
