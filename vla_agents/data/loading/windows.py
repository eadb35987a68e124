"""Windows over episodes: the observations up to step t, actions t..t+H-1, and where the episode begins and ends.

The numbers of all episodes are in memory; the pictures there as well (small sets: a batch is then a few numpy
operations), or on disk (see `Pictures`). Works with `torch.utils.data.DataLoader` (it has `__len__` and
`__getitem__`, and can be sent to other processes), and needs no torch itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from vla_agents.bodies import Body, can_be_kept
from vla_agents.data.episode import EpisodeReader
from vla_agents.data.loading.store import Pictures, load_store
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError
from vla_agents.normalize import StatsAccumulator, VectorStats
from vla_agents.relative import RelativeActions, is_relative
from vla_agents.transforms import Compose, ResizeImages, Transform

_MOST_ROWS = 2_000_000  # of relative actions that statistics are taken over
_BLOCK = 65_536  # windows at a time


class WindowDataset:
    """A map-style dataset of windows.

    Args:
        readers: One dataset, or several of the same embodiment (see `Mixture` for others).
        horizon: H, the number of actions of a window.
        cameras: Which cameras to decode; all by default.
        progress: Show a progress bar while decoding.
        threads: Threads that decode.
        pictures: Where pictures come from, and their size; None: in memory, as recorded.
        history: How many observations a window has: the one at t, and those before it.
        stride: Steps between them.
        actions: `"absolute"`: as recorded; `"relative"`: the chunk relative to the state at t (`RelativeActions`).
        transforms: From the dataset to the policy, in order, before actions are made relative.
        fps: Steps per second; where the dataset has another rate, its actions are cut anew (`resample`).

    Attributes:
        embodiment: Of the windows: that of the data, after size, rate and transforms.
        transform: All that lies between the dataset and the windows but the rate; acting needs the same.
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
        pictures: Pictures | None = None,
        history: int = 1,
        stride: int = 1,
        actions: Literal["absolute", "relative"] = "absolute",
        transforms: Sequence[Transform] = (),
        fps: float | None = None,
    ) -> None:
        sources = list(readers) if isinstance(readers, Sequence) else [readers]
        if not sources or min(horizon, history, stride) < 1:
            raise ConfigError(
                f"WindowDataset got {len(sources)} datasets, horizon {horizon}, history {history} and stride {stride}, "
                "needs at least 1 of each"
            )
        pictures = pictures or Pictures(progress=progress, threads=threads)
        body = common_embodiment(sources, cameras, fps)
        self.horizon, self.history, self.stride = horizon, history, stride
        resize = () if pictures.size is None else (ResizeImages(*pictures.size),)
        self.transform = _transform_of(body, (*resize, *transforms), actions)
        self.embodiment: Embodiment = self.transform.embodiment(body)
        self._body = body
        self._store = load_store(sources, body, pictures, fps)
        self._paths = [(str(source.path), k) for source in sources for k in range(len(source))]
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
        return self._store.nbytes

    @property
    def state(self) -> np.ndarray:
        """float32 (N, S): the state of every window."""
        found = self.transform.state(self._store.state[self._at])
        return np.zeros((len(self), 0), np.float32) if found is None else found

    @property
    def action(self) -> np.ndarray:
        """float32 (N, D): the first action of every window."""
        return self._chunks(np.arange(len(self)), 1)[0][:, 0]

    @property
    def intervened(self) -> np.ndarray:
        """bool (N,): whether a human had taken over (a copy)."""
        return self._store.intervened[self._at]

    def chunks(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The actions of several windows, without their pictures.

        Args:
            indices: (B,) of 0..len-1.

        Returns:
            float32 (B, horizon, D) with the last one repeated past the episode's end, and bool (B, horizon), False
            there.
        """
        return self._chunks(np.asarray(indices, np.int64), self.horizon)

    def rows_of(self, vector: str) -> np.ndarray:
        """float32 (M, S) or (M, D): what statistics of the `"state"` or `"action"` are over: every step of every episode.

        Chunks that are relative to a state have another distribution at each of their steps: then it is all
        actions of all chunks that lie inside their episodes, or, of more than two million, an even sample of chunks.
        """
        if vector == "state":
            return self.state
        if not is_relative(self.embodiment):
            return self.action
        indices = np.arange(0, len(self), max(1, len(self) * self.horizon // _MOST_ROWS))
        blocks = np.split(indices, range(_BLOCK, len(indices), _BLOCK))
        return np.concatenate([action[mask] for action, mask in map(self.chunks, blocks)])

    def statistics(self) -> dict[str, VectorStats]:
        """Exact statistics of `"state"` (where there is one) and `"action"` over `rows_of`."""
        found = {}
        for vector, size in (("state", self.embodiment.state_dim), ("action", self.embodiment.action_dim)):
            if size:
                gathered = StatsAccumulator(size)
                gathered.update(self.rows_of(vector), where=f"{vector}s of the dataset")
                found[vector] = gathered.finish()
        return found

    def _chunks(self, wanted: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        store, at = self._store, self._at[wanted]
        steps = self.step_of[wanted][:, None] + np.arange(horizon)
        last = self.lengths[self.episode_of[wanted]][:, None] - 1
        ahead = at[:, None] + np.minimum(steps, last) - self.step_of[wanted][:, None]
        state = store.state[at] if self._body.state else None
        return self.transform.chunk(store.action[ahead], state), steps <= last

    def get_batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Several windows at once.

        Args:
            indices: (B,) of 0..len-1.

        Returns:
            `images` {camera: uint8 (B, H, W, 3)}, `state` float32 (B, S), `instruction` list of B, `action`
            float32 (B, horizon, D) with the last one repeated past the episode's end, `mask` bool (B,
            horizon), False there. With `history` n > 1, images and state have an axis of n after B (oldest first, the
            first observation repeated before the episode's beginning), and `observed` bool (B, n) is False there.
        """
        wanted = np.asarray(indices, np.int64)
        store = self._store
        action, mask = self.chunks(wanted)
        back = np.arange(self.history - 1, -1, -1) * self.stride
        seen = self._at[wanted][:, None] - np.minimum(back, self.step_of[wanted][:, None])  # (B, n)
        if self.history == 1:
            seen = seen[:, 0]
        batch = self.transform.observation(
            {
                "images": {name: frames[store.rows[seen]] for name, frames in store.frames.items()},
                "state": store.state[seen],
                "instruction": [self.instructions[k] for k in self.episode_of[wanted]],
            }
        )
        batch |= {"action": action, "mask": mask}
        if self.history > 1:
            batch["observed"] = back <= self.step_of[wanted][:, None]
        return batch

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"no window {index}, there are {len(self)}")
        batch = self.get_batch([index % len(self)])
        images = {name: frames[0] for name, frames in batch.pop("images").items()}
        return {"images": images, **{name: value[0] for name, value in batch.items()}}

    def describe(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        """Where windows come from, in words: `episode 3 of data/lift, step 17`."""
        found = []
        for index in indices:
            path, episode = self._paths[int(self._episodes[self.episode_of[index]])]
            found.append(f"episode {episode} of {path}, step {self.step_of[index]}")
        return found

    def bodies(self) -> dict[str, Body]:
        """The body the data are of, and what lies between it and the windows: what a checkpoint needs for acting.

        Empty where `transforms` were given, which a checkpoint cannot keep.
        """
        steps = self.transform.transforms
        return {self._body.name: Body(self._body, steps)} if can_be_kept(steps) else {}

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
                "record more, or hold none out: --validation-share 0",
            )
        order = np.random.default_rng(seed).permutation(total)
        return self._view(np.sort(order[count:])), self._view(np.sort(order[:count]))

    def _view(self, episodes: np.ndarray) -> WindowDataset:
        view = object.__new__(WindowDataset)
        view.__dict__.update(self.__dict__)
        view._select(self._episodes[episodes])
        return view


def common_embodiment(
    sources: Sequence[EpisodeReader], cameras: Sequence[str] | None, fps: float | None
) -> Embodiment:
    """The one embodiment of all datasets (at rate `fps` where given), with these cameras."""
    bodies = [source.embodiment for source in sources]
    if fps is not None:
        bodies = [dataclasses.replace(body, control_hz=float(fps)) for body in bodies]
    for body, source in zip(bodies[1:], sources[1:], strict=True):
        bodies[0].require(body, ours=f"dataset {sources[0].path}", theirs=f"dataset {source.path}")
    if cameras is None:
        return bodies[0]
    by_name = {camera.name: camera for camera in bodies[0].cameras}
    missing = [name for name in cameras if name not in by_name]
    if missing:
        raise ConfigError(f"the dataset has no camera {missing}", f"it has {sorted(by_name)}")
    return dataclasses.replace(bodies[0], cameras=tuple(by_name[name] for name in cameras))


def _transform_of(body: Embodiment, transforms: Sequence[Transform], actions: str) -> Compose:
    if actions not in ("absolute", "relative"):
        raise ConfigError(f"actions is {actions!r}", "'absolute' or 'relative'")
    if actions == "absolute":
        return Compose(tuple(transforms))
    return Compose((*transforms, RelativeActions(Compose(tuple(transforms)).embodiment(body))))
