"""Some episodes of a dataset, as a dataset of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vla_agents.data.base import BaseReader
from vla_agents.data.episode import Episode, EpisodeReader
from vla_agents.data.video.frames import VideoFiles
from vla_agents.errors import DatasetError


class SubsetReader(BaseReader):
    """The chosen episodes of another reader, in the order given.

    Args:
        source: Where they are read from.
        indices: Which.
        skipped: Name of an episode that was left out -> what is wrong with it.
    """

    def __init__(
        self,
        source: EpisodeReader,
        indices: Sequence[int],
        skipped: dict[str, DatasetError] | None = None,
    ) -> None:
        self.source, self.indices = source, [int(k) for k in indices]
        self.skipped = dict(skipped or {})
        self.path, self.embodiment, self.format = source.path, source.embodiment, source.format
        self.fps = float(getattr(source, "fps", source.embodiment.control_hz))
        self.notes = list(source.notes)

    def __len__(self) -> int:
        return len(self.indices)

    def lengths(self) -> np.ndarray:
        """int64 (N,): steps per episode."""
        return np.array([self._head(k)[0] for k in self.indices], np.int64)

    def instructions(self) -> list[str]:
        """The instruction of each episode."""
        return [self._head(k)[1] for k in self.indices]

    def successes(self) -> list[bool | None]:
        """Whether each episode succeeded; None where nobody judged."""
        return [self._head(k)[2] for k in self.indices]

    def read(self, index: int, *, images: bool = True) -> Episode:
        """One whole episode; `images=False` skips decoding (then `images` is empty)."""
        return self.source.read(self.indices[self._checked(index)], images=images)

    def stream(self, index: int, camera: str) -> Iterator[np.ndarray]:
        """The pictures of one camera, uint8 (H, W, 3), one by one."""
        return self.source.stream(self.indices[self._checked(index)], camera)

    def frames(self, index: int, camera: str, steps: np.ndarray) -> np.ndarray:
        """Some pictures of one episode, in any order: uint8 (n, H, W, 3)."""
        return self.source.frames(self.indices[self._checked(index)], camera, steps)

    def videos(self, camera: str, episodes: Sequence[int] | None = None) -> VideoFiles | None:
        """Which video holds each episode of a camera; None where its pictures are stored one by one."""
        if episodes is not None:
            return SubsetReader(self.source, [self.indices[k] for k in episodes]).videos(camera)
        source: Any = self.source
        return source.videos(camera, self.indices) if hasattr(source, "videos") else None

    def columns(self) -> dict[str, np.ndarray]:
        """All numbers, as of every reader; of LeRobot also its `timestamp`, by which frames are found."""
        found = super().columns()
        source: Any = self
        chosen = list(range(len(self)))
        while isinstance(source, SubsetReader):
            chosen, source = [source.indices[k] for k in chosen], source.source
        if hasattr(source, "rows") and "timestamp" not in found:
            stamps = [source.rows(k)["timestamp"] for k in chosen]
            found["timestamp"] = np.concatenate([np.zeros(0, np.float32), *stamps])
        return found

    def _head(self, index: int) -> tuple[int, str, bool | None]:
        episode = self.source.read(index, images=False)
        return len(episode), episode.instruction, episode.success


def readable(source: EpisodeReader) -> SubsetReader:
    """The episodes whose numbers, first and last pictures can be read, and what is wrong with the others."""
    skipped: dict[str, DatasetError] = dict(getattr(source, "skipped", {}))
    good = []
    for k in range(len(source)):
        try:
            last = len(source.read(k, images=False)) - 1
            for camera in source.embodiment.camera_names:
                source.frames(k, camera, np.array([0, last]))
            good.append(k)
        except DatasetError as error:
            skipped[f"episode {k}"] = error
    return SubsetReader(source, good, skipped)
