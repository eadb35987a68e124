"""Our own HDF5 layout: a folder with `dataset.json` and one self-describing file per episode; pictures are lossless.

    dataset.json            format, version, fps, embodiment
    episode_000000.hdf5     attributes: format, version, instruction, success, fps, embodiment, metadata
        action (T, D)  state (T, S)  executed (T, D)  reward (T,)  terminated (T,)  truncated (T,)
        intervened (T,)  time (T,)  images/<camera> (T, H, W, 3)

A file gets its name only when it is complete, and that is all it takes for the episode to exist: nothing else counts
episodes. `state` and `executed` are absent where there is none, and so is the attribute `success` where nobody judged.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_agents.data import atomic
from vla_agents.data.episode import Episode, Step
from vla_agents.data.recorder import StepWriter, json_text, without_images
from vla_agents.embodiment import Camera, Embodiment
from vla_agents.errors import (
    ConfigError,
    DatasetError,
    DatasetNotFoundError,
    EmbodimentError,
    UnknownNameError,
)

if TYPE_CHECKING:
    import h5py

FORMAT = "vla_agents_episodes"
VERSION = 1
DATASET = "dataset.json"
_FILE = re.compile(r"episode_(\d{6,})\.hdf5")
_BLOCK = 1 << 19  # bytes of pictures written (and compressed) together
_VECTORS = ("state", "action", "executed")
_FLAGS = ("terminated", "truncated", "intervened")
_DAMAGED = "the file is cut short or damaged: copy it again, or delete it if it is the last one"


def episode_file(path: Path, index: int) -> Path:
    """The file of one episode."""
    return path / f"episode_{index:06d}.hdf5"


class Hdf5Writer(StepWriter):
    """Records episodes in our HDF5 layout.

    Args:
        path: The dataset's folder; made where missing.
        embodiment: What the numbers and pixels mean.
        fps: Nominal rate; the embodiment's `control_hz` by default.
        resume: Append to the dataset that is there (or start one).
        compression: Of the pictures: `"gzip"` (level 1) or `"none"`.
        durable: Whether a saved episode also survives a power cut (fsync), not only `kill -9`.
        metadata: Facts stored with every episode.
    """

    marker = DATASET

    def __init__(
        self,
        path: str | Path,
        embodiment: Embodiment,
        *,
        fps: float | None = None,
        resume: bool = False,
        compression: str = "gzip",
        durable: bool = True,
        metadata: dict[str, Any] | None = None,
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
        self._target: atomic.TempFile | None = None
        self._file: h5py.File | None = None
        self._numbers: list[Step] = []
        self._waiting: dict[str, list[np.ndarray]] = {}
        super().__init__(path, embodiment, resume=resume, durable=durable, metadata=metadata)

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
        temporary = self.path / atomic.TEMPORARY / "episode.hdf5"
        self._target = atomic.TempFile(temporary, durable=self.durable)
        self._file = h5py.File(self._target, "w", track_order=True)
        for camera in self.embodiment.cameras:
            shape = (camera.height, camera.width, 3)
            self._file.create_dataset(
                f"images/{camera.name}",
                (0, *shape),
                np.uint8,
                maxshape=(None, *shape),
                chunks=(_frames_per_block(camera), *shape),
                **self._compression,
            )

    def _append(self, step: Step) -> None:
        self._numbers.append(without_images(step))
        for camera in self.embodiment.cameras:
            waiting = self._waiting[camera.name]
            waiting.append(step.images[camera.name].copy())
            if len(waiting) == _frames_per_block(camera):
                self._flush(camera.name)

    def _flush(self, camera: str) -> None:
        assert self._file is not None
        frames, self._waiting[camera] = self._waiting[camera], []
        if frames:
            dataset = self._file[f"images/{camera}"]
            dataset.resize(dataset.shape[0] + len(frames), axis=0)
            dataset[-len(frames) :] = np.stack(frames)

    def _finish(self, success: bool | None) -> int:
        assert self._file is not None and self._target is not None
        for camera in self.embodiment.camera_names:
            self._flush(camera)
        # Through an Episode, so that both formats stack (and fill in `executed`) alike.
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
        self._file.close()
        self._target.finish()
        transaction = atomic.Transaction(self.path, durable=self.durable)
        transaction.stage(episode_file(self.path, self._episodes), self._target.path)
        transaction.commit()
        self._file = self._target = None
        self._episodes += 1
        return self._episodes - 1

    def _drop(self) -> None:
        file, target = self._file, self._target
        self._file = self._target = None
        self._numbers, self._waiting = [], {}
        if target is not None:
            target.abandon()
        if file is not None:
            file.close()


class Hdf5Reader:
    """Random access to the episodes of a folder written by `Hdf5Writer`; may be used from several threads.

    Args:
        path: The folder that holds dataset.json.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        content = _read_dataset_json(self.path)
        self.fps = float(content["fps"])
        try:
            self.embodiment = Embodiment.from_dict(content["embodiment"], where=str(self.path / DATASET))
        except EmbodimentError as error:
            raise DatasetError(self.path / DATASET, str(error.problem), "copy the dataset again") from error
        numbers = sorted(int(m.group(1)) for m in map(_FILE.fullmatch, _names(self.path)) if m)
        if numbers != list(range(len(numbers))):
            missing = next(k for k in range(len(numbers)) if k not in set(numbers))
            raise DatasetError(
                episode_file(self.path, missing),
                f"is missing, but there are episodes up to {numbers[-1]}",
                "copy it again, or rename the later files so that they count 0, 1, 2, ...",
            )
        self._count = len(numbers)
        self._heads: dict[int, tuple[int, str, bool | None]] = {}

    def __len__(self) -> int:
        return self._count

    def lengths(self) -> np.ndarray:
        """int64 (N,): steps per episode."""
        return np.array([self._head(k)[0] for k in range(len(self))], np.int64)

    def instructions(self) -> list[str]:
        """The instruction of each episode."""
        return [self._head(k)[1] for k in range(len(self))]

    def successes(self) -> list[bool | None]:
        """Whether each episode succeeded; None where nobody judged."""
        return [self._head(k)[2] for k in range(len(self))]

    def columns(self) -> dict[str, np.ndarray]:
        """All numbers of the whole dataset, without pictures, by LeRobot's names: feature -> (N,) or (N, D)."""
        episodes = [self.read(k, images=False) for k in range(len(self))]
        sizes = [len(episode) for episode in episodes]
        found: dict[str, list[np.ndarray]] = {
            "action": [e.action for e in episodes],
            "executed_action": [e.action if e.executed is None else e.executed for e in episodes],
            "next.reward": [e.reward for e in episodes],
            "next.done": [e.terminated | e.truncated for e in episodes],
            "next.truncated": [e.truncated for e in episodes],
            "next.terminated": [e.terminated for e in episodes],
            "intervention": [e.intervened for e in episodes],
            "capture_time": [e.time for e in episodes],
            "frame_index": [np.arange(size) for size in sizes],
            "episode_index": [np.full(size, k) for k, size in enumerate(sizes)],
        }
        if self.embodiment.state_dim:
            found["observation.state"] = [e.state for e in episodes if e.state is not None]
        empty = {
            "action": np.zeros((0, self.embodiment.action_dim), np.float32),
            "executed_action": np.zeros((0, self.embodiment.action_dim), np.float32),
            "observation.state": np.zeros((0, self.embodiment.state_dim), np.float32),
        }
        return {
            name: np.concatenate(rows) if rows else empty.get(name, np.zeros(0))
            for name, rows in found.items()
        }

    def read(self, index: int, *, images: bool = True) -> Episode:
        """One whole episode; `images=False` skips decoding (then `images` is empty)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: no episode {index}, there are {len(self)}")
        path = episode_file(self.path, index % len(self))
        with _Opened(path) as file:
            length, instruction, success = file.head()
            body = self.embodiment
            state = file.array("state", np.float32, (length, body.state_dim)) if body.state_dim else None
            shape = (length, body.action_dim)
            return Episode(
                embodiment=body,
                instruction=instruction,
                images={
                    c.name: file.array(f"images/{c.name}", np.uint8, (length, c.height, c.width, 3))
                    for c in body.cameras
                    if images
                },
                state=state,
                action=file.array("action", np.float32, shape),
                reward=file.array("reward", np.float32, (length,)),
                **{name: file.array(name, bool, (length,)) for name in _FLAGS},
                time=file.array("time", np.float64, (length,)),
                success=success,
                executed=file.array("executed", np.float32, shape) if file.has("executed") else None,
                metadata=file.metadata(),
            )

    def _head(self, index: int) -> tuple[int, str, bool | None]:
        if index not in self._heads:
            with _Opened(episode_file(self.path, index)) as file:
                self._heads[index] = file.head()
        return self._heads[index]


class _Opened:
    """An episode's file; whatever is wrong with it is a `DatasetError` that names it.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        self._path = path
        self._hard_link = h5py.HardLink
        try:
            self._file = h5py.File(path, "r")
        except FileNotFoundError:
            raise DatasetError(path, "the file is missing", "copy the dataset again") from None
        except OSError as error:
            raise DatasetError(path, f"cannot be read as HDF5 ({error})", _DAMAGED) from error

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def has(self, name: str) -> bool:
        """Whether there is such a dataset."""
        return name in self._file

    def head(self) -> tuple[int, str, bool | None]:
        """`(length, instruction, success)`."""
        length = len(self._dataset("action"))
        if length < 1:
            raise DatasetError(self._path, "has no steps", "delete it if it is the last one")
        success = self._attribute("success", optional=True)
        return length, str(self._attribute("instruction")), None if success is None else bool(success)

    def metadata(self) -> dict[str, Any]:
        """What was stored with the episode."""
        try:
            return json.loads(self._attribute("metadata"))
        except (ValueError, TypeError) as error:
            raise DatasetError(self._path, f"attribute 'metadata' is not JSON ({error})", _DAMAGED) from error

    def array(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        """A dataset of known type and shape; vectors must be finite."""
        dataset = self._dataset(name)
        if dataset.shape != shape or dataset.dtype != dtype:
            raise DatasetError(
                self._path,
                f"{name!r} is {dataset.dtype} {dataset.shape}, expected {np.dtype(dtype)} {shape}",
                "the file is of another dataset, or was changed",
            )
        try:
            values = dataset[()]
        except OSError as error:
            raise DatasetError(self._path, f"{name!r} cannot be read ({error})", _DAMAGED) from error
        if name in _VECTORS:
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(bad):
                raise DatasetError(
                    self._path,
                    f"{name!r} is not finite in frame {bad[0]}",
                    "leave this episode out, or mend it",
                )
        return values

    def _dataset(self, name: str) -> h5py.Dataset:
        try:
            link = self._file.get(name, getlink=True)
            dataset = self._file[name]
            inside = isinstance(link, self._hard_link) and not dataset.is_virtual and not dataset.external
        except (KeyError, OSError, AttributeError, RuntimeError) as error:
            raise DatasetError(self._path, f"has no dataset {name!r} ({error})", _DAMAGED) from error
        if not inside:
            raise DatasetError(
                self._path, f"{name!r} leads out of the file", "do not open it: it was tampered with"
            )
        return dataset

    def _attribute(self, name: str, *, optional: bool = False) -> Any:
        try:
            found = self._file.attrs.get(name)
        except (OSError, RuntimeError) as error:
            raise DatasetError(
                self._path, f"attribute {name!r} cannot be read ({error})", _DAMAGED
            ) from error
        if found is None and not optional:
            raise DatasetError(self._path, f"has no attribute {name!r}", _DAMAGED)
        return found


def _frames_per_block(camera: Camera) -> int:
    return max(1, min(16, _BLOCK // (camera.height * camera.width * 3)))


def _stacked(embodiment: Embodiment, steps: list[Step]) -> dict[str, np.ndarray]:
    """The steps' numbers by the names of their datasets."""
    found = {
        "action": np.stack([s.action for s in steps]),
        "reward": np.array([s.reward for s in steps], np.float32),
        **{name: np.array([getattr(s, name) for s in steps], bool) for name in _FLAGS},
        "time": np.array([s.time for s in steps], np.float64),
    }
    if embodiment.state_dim:
        found["state"] = np.stack([np.asarray(s.state) for s in steps])
    if any(s.executed is not None for s in steps):
        found["executed"] = np.stack([s.action if s.executed is None else s.executed for s in steps])
    return found


def _names(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir()]


def _read_dataset_json(path: Path) -> dict[str, Any]:
    file = path / DATASET
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetNotFoundError(
            path, f"no HDF5 dataset there: {DATASET} is missing", "give the folder that holds it"
        ) from None
    except (ValueError, OSError) as error:
        raise DatasetError(file, f"cannot be read as JSON ({error})", "copy the dataset again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DatasetError(file, f"field 'format' is not {FORMAT!r}", "it is not a dataset of vla_agents")
    if content.get("version") != VERSION:
        raise DatasetError(
            file, f"field 'version' is {content.get('version')!r}, known: {VERSION}", "use a newer vla_agents"
        )
    if not isinstance(content.get("fps"), int | float) or not isinstance(content.get("embodiment"), dict):
        raise DatasetError(file, "field 'fps' or 'embodiment' is missing", "copy the dataset again")
    return content
