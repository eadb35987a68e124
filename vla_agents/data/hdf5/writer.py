"""Writes our HDF5 layout (see `hdf5`): one file per episode, complete before it has its name."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from vla_agents.data import atomic
from vla_agents.data.episode import Step, camera_times, stacked_or_none
from vla_agents.data.hdf5.reader import DATASET, FLAGS, FORMAT, VERSION, Hdf5Reader, episode_file
from vla_agents.data.numbers import json_text
from vla_agents.data.recording.journal import CameraLog
from vla_agents.data.recording.recorder import StepWriter
from vla_agents.data.recording.status import WriterOptions
from vla_agents.embodiment import Camera, Embodiment
from vla_agents.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    import h5py

_BLOCK = 1 << 19  # bytes of pictures written (and compressed) together


class Hdf5Writer(StepWriter):
    """Records episodes in our HDF5 layout; holds the open one in memory, compressed.

    Args:
        path: The dataset's folder; made where missing.
        embodiment: What the numbers and pixels mean.
        fps: Nominal rate; the embodiment's `control_hz` by default.
        compression: Of the pictures: `"gzip"` (level 1) or `"none"`.
        options: `resume`, `durable`, `metadata`, ... (see `StepWriter`).
    """

    marker = DATASET

    def __init__(
        self,
        path: str | Path,
        embodiment: Embodiment,
        *,
        fps: float | None = None,
        compression: str = "gzip",
        **options: Unpack[WriterOptions],
    ) -> None:
        if compression not in ("gzip", "none"):
            raise UnknownNameError("compression", compression, ("gzip", "none"))
        for camera in embodiment.cameras:
            if "/" in camera.name or camera.name in (".", ".."):
                raise ConfigError(
                    f"camera {camera.name!r} cannot be stored in HDF5", "use a name without '/'"
                )
        self.fps = float(embodiment.control_hz if fps is None else fps)
        self._compression = {} if compression == "none" else {"compression": "gzip", "compression_opts": 1}
        self._embodiment_text = json.dumps(embodiment.to_dict())
        self._episodes = 0
        self._file: h5py.File | None = None
        self._numbers: list[Step] = []
        self._waiting: dict[str, list[np.ndarray]] = {}
        super().__init__(path, embodiment, **options)

    def __len__(self) -> int:
        return self._episodes

    def _create(self) -> None:
        content = {
            "format": FORMAT,
            "version": VERSION,
            "fps": self.fps,
            "embodiment": self.embodiment.to_dict(),
        }
        body = json.dumps(content, indent=1) + "\n"
        atomic.write_file(self.path, self.path / DATASET, body.encode(), durable=self.durable)

    def _load(self) -> None:
        reader = Hdf5Reader(self.path)
        reader.embodiment.require(
            self.embodiment, ours=f"dataset {self.path}", theirs="the embodiment to record"
        )
        if reader.fps != self.fps:
            raise ConfigError(
                f"{self.path}: has {reader.fps:g} fps, asked to append at {self.fps:g}",
                f"pass fps={reader.fps:g}",
            )
        self._episodes = len(reader)
        self._empty_temporary()

    def _start(self) -> None:
        import h5py

        self._numbers, self._waiting = [], {camera.name: [] for camera in self.embodiment.cameras}
        # In memory: the HDF5 library does not survive an error of the disk in the middle of a file.
        self._file = h5py.File("episode", "w", driver="core", backing_store=False, block_size=_BLOCK)
        for camera in self.embodiment.cameras:
            shape = (camera.height, camera.width, 3)
            self._file.create_dataset(
                f"images/{camera.name}",
                (0, *shape),
                np.uint8,
                maxshape=(None, *shape),
                chunks=(self._block(camera), *shape),
                **self._compression,
            )
        self._logs = {
            camera.name: CameraLog(self._journal, number)
            for number, camera in enumerate(self.embodiment.cameras)
        }

    def _append(self, images: dict[str, np.ndarray], numbers: Step) -> None:
        self._numbers.append(numbers)
        for camera in self.embodiment.cameras:
            waiting = self._waiting[camera.name]
            waiting.append(images[camera.name].copy())
            if len(waiting) == self._block(camera):
                self._flush(camera.name)

    def _flush(self, camera: str) -> None:
        """Write the pictures that wait; a whole block is compressed once, for the file and for the journal."""
        assert self._file is not None
        frames, self._waiting[camera] = self._waiting[camera], []
        if not frames:
            return
        dataset = self._file[f"images/{camera}"]
        start = dataset.shape[0]
        dataset.resize(start + len(frames), axis=0)
        if len(frames) < dataset.chunks[0]:
            dataset[start:] = np.stack(frames)
            return
        content = np.stack(frames).tobytes()
        compressed = zlib.compress(content, 1 if self._compression else 0)
        dataset.id.write_direct_chunk((start, 0, 0, 0), compressed if self._compression else content)
        if self._repairable:
            self._logs[camera].block(len(frames), compressed)

    def _block(self, camera: Camera) -> int:
        """Pictures compressed together: few enough that little time is lost when the process dies."""
        size = camera.height * camera.width * 3
        return max(1, min(16, int(self.fps / 4), _BLOCK // size))

    def _options(self) -> dict[str, Any]:
        return {"format": "hdf5", "fps": self.fps, "compression": "gzip" if self._compression else "none"}

    def _finish(self, success: bool | None) -> int:
        assert self._file is not None
        for camera in self.embodiment.camera_names:
            self._flush(camera)
        for name, values in _stacked(self.embodiment, self._numbers).items():
            self._file.create_dataset(name, data=values)
        attributes: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "instruction": self._instruction,
            "fps": self.fps,
            "embodiment": self._embodiment_text,
            "metadata": json_text(self._metadata),
        }
        if success is not None:
            attributes["success"] = success
        for name, value in attributes.items():
            self._file.attrs[name] = value
        self._file.flush()
        content = self._file.id.get_file_image()
        atomic.write_file(self.path, episode_file(self.path, self._episodes), content, durable=self.durable)
        self._drop()
        self._episodes += 1
        return self._episodes - 1

    def _drop(self) -> None:
        self._numbers, self._waiting = [], {}
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _stacked(embodiment: Embodiment, steps: list[Step]) -> dict[str, np.ndarray]:
    """The steps' numbers by the names of their datasets."""
    found = {
        "action": np.stack([s.action for s in steps]),
        "reward": np.array([s.reward for s in steps], np.float32),
        **{name: np.array([getattr(s, name) for s in steps], bool) for name in FLAGS},
        "time": np.array([s.time for s in steps], np.float64),
    }
    if embodiment.state_dim:
        found["state"] = np.stack([np.asarray(s.state) for s in steps])
    for name in ("executed", "commanded"):
        values = stacked_or_none(steps, name)
        if values is not None:
            found[name] = values
    found |= {f"extras/{name}": values for name, values in camera_times(embodiment, steps).items()}
    if any(s.repeated for s in steps):
        found["repeated"] = np.array([s.repeated for s in steps], bool)
    return found
