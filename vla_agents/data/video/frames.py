"""The pictures of one camera, by row: `frames[rows]` is uint8 (..., H, W, 3) for rows of any shape.

A row is a step of the dataset, counted through all its episodes. An array in memory is the plainest source; here are
those that read from disk. All can be sent to another process (fork or spawn), where they open their files anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vla_agents.data.episode import EpisodeReader
from vla_agents.data.video.single import POOL

_EPISODES = 2  # kept whole per process


class Frames(Protocol):
    """Pictures by row."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)"""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """uint8 (..., H, W, 3) for int64 rows (...); a copy."""


@dataclass(frozen=True)
class VideoFiles:
    """Which video holds each episode of one camera.

    Args:
        files: The distinct videos.
        file_of: int64 (E,): index into `files`.
        start: float64 (E,): where the episode begins inside its video, seconds.
        fps: Nominal frames per second.
    """

    files: tuple[Path, ...]
    file_of: np.ndarray
    start: np.ndarray
    fps: float


class VideoFrames:
    """Frames straight from the videos.

    Args:
        videos: Where each episode lies.
        lengths: int64 (E,): steps per episode.
        timestamps: (N,): seconds since the beginning of the episode, as the dataset stores them.
        size: `(height, width)`.
    """

    def __init__(
        self, videos: VideoFiles, lengths: np.ndarray, timestamps: np.ndarray, size: tuple[int, int]
    ) -> None:
        self._files, self._fps, self._size = videos.files, videos.fps, size
        self._file_of = np.repeat(videos.file_of.astype(np.int32), lengths)
        self._times = np.repeat(videos.start, lengths) + timestamps.astype(np.float64)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)"""
        return (len(self._times), *self._size, 3)

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """uint8 (..., H, W, 3)."""
        flat = np.asarray(rows, np.int64).reshape(-1)
        out = np.empty((len(flat), *self._size, 3), np.uint8)
        files = self._file_of[flat]
        order = np.argsort(files, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(files[order])) + 1) if len(flat) else ():
            path = self._files[files[part[0]]]
            if len(part) == 1:  # no copy
                POOL.read(path, self._times[flat[part]], self._fps, self._size, out[part[0] : part[0] + 1])
            else:
                found = np.empty((len(part), *self._size, 3), np.uint8)
                POOL.read(path, self._times[flat[part]], self._fps, self._size, found)
                out[part] = found
        return out.reshape(*np.shape(rows), *self._size, 3)


class ReaderFrames:
    """Frames of one camera through a reader, for what is not video.

    Args:
        episodes: The dataset; shared by its cameras.
        camera: The camera's name.
        lengths: int64 (E,): steps per episode.
        size: `(height, width)`.
    """

    def __init__(
        self, episodes: WholeEpisodes, camera: str, lengths: np.ndarray, size: tuple[int, int]
    ) -> None:
        self._episodes, self._camera, self._size = episodes, camera, size
        self._ends = np.cumsum(lengths)
        self._starts = self._ends - lengths

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)"""
        return (int(self._ends[-1]) if len(self._ends) else 0, *self._size, 3)

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """uint8 (..., H, W, 3)."""
        flat = np.asarray(rows, np.int64).reshape(-1)
        out = np.empty((len(flat), *self._size, 3), np.uint8)
        episodes = np.searchsorted(self._ends, flat, side="right")
        for episode in np.unique(episodes):
            wanted = np.flatnonzero(episodes == episode)
            steps = flat[wanted] - self._starts[episode]
            out[wanted] = self._episodes.frames(int(episode), self._camera, steps)
        return out.reshape(*np.shape(rows), *self._size, 3)


class WholeEpisodes:
    """Pictures of a dataset: by `reader.frames(episode, camera, steps)` where the reader has that, else by reading
    whole episodes, of which the last few are kept.

    Args:
        reader: The dataset; must be picklable if other processes are to read.
    """

    def __init__(self, reader: EpisodeReader) -> None:
        self._reader = reader
        self._kept: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def frames(self, episode: int, camera: str, steps: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, 3)."""
        read = getattr(self._reader, "frames", None)
        if read is not None:
            return read(episode, camera, steps)
        with self._lock:
            images = self._kept.get(episode)
            if images is None:
                images = self._kept[episode] = self._reader.read(episode).images
                while len(self._kept) > _EPISODES:
                    self._kept.popitem(last=False)
        return images[camera][steps]

    def __reduce__(self) -> tuple[Any, ...]:
        return WholeEpisodes, (self._reader,)


class Resized:
    """Frames at another size, resized each time they are asked for.

    Args:
        frames: As recorded.
        size: `(height, width)`.
    """

    def __init__(self, frames: Frames, size: tuple[int, int]) -> None:
        self._frames, self._size = frames, size

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)"""
        return (self._frames.shape[0], *self._size, 3)

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """uint8 (..., H, W, 3)."""
        return resize_all(self._frames[rows], self._size)


def resize_all(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (..., H, W, 3) at another size, as `ResizeImages` does it when the policy acts."""
    from vla_agents.transforms import ResizeImages

    if images.shape[-3:-1] == size:
        return images
    if not images.size:
        return np.empty((*images.shape[:-3], *size, 3), np.uint8)
    return ResizeImages(*size).observation({"images": {"": images}})["images"][""]


class Concatenated:
    """The frames of several datasets, one after the other.

    Args:
        parts: Frames of one size.
    """

    def __init__(self, parts: Sequence[Frames]) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([part.shape[0] for part in parts])
        self._size = self._parts[0].shape[1:]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)"""
        return (int(self._ends[-1]), *self._size)

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """uint8 (..., H, W, 3)."""
        flat = np.asarray(rows, np.int64).reshape(-1)
        out = np.empty((len(flat), *self._size), np.uint8)
        which = np.searchsorted(self._ends, flat, side="right")
        for number in np.unique(which):
            at = np.flatnonzero(which == number)
            first = self._ends[number] - self._parts[number].shape[0]
            out[at] = self._parts[number][flat[at] - first]
        return out.reshape(*np.shape(rows), *self._size)


def frames_of(
    reader: EpisodeReader, cameras: Sequence[str], columns: Mapping[str, np.ndarray]
) -> dict[str, Frames]:
    """The pictures of a dataset, read from its own files.

    Args:
        reader: The dataset.
        cameras: The cameras' names.
        columns: `reader.columns()`.
    """
    sizes = {camera.name: (camera.height, camera.width) for camera in reader.embodiment.cameras}
    lengths, episodes = reader.lengths(), WholeEpisodes(reader)
    found: dict[str, Frames] = {}
    for camera in cameras:
        videos: VideoFiles | None = reader.videos(camera) if hasattr(reader, "videos") else None
        if videos is None:
            found[camera] = ReaderFrames(episodes, camera, lengths, sizes[camera])
        else:
            found[camera] = VideoFrames(videos, lengths, columns["timestamp"], sizes[camera])
    return found
