"""Our own HDF5 layout: a folder with `dataset.json` and one self-describing file per episode; pictures are
lossless.

    dataset.json            format, version, fps, embodiment
    episode_000000.hdf5     attributes: format, version, instruction, success, fps, embodiment, metadata
        action (T, D)  state (T, S)  executed (T, D)  commanded (T, D)  reward (T,)  terminated (T,)
        truncated (T,)  intervened (T,)  repeated (T,)  time (T,)  images/<camera> (T, H, W, 3)

A file gets its name only when it is complete, and that is all it takes for the episode to exist: nothing else
counts episodes. `state`, `executed`, `commanded` and `repeated` are absent where there is none, and so is the attribute
`success` where nobody judged.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_agents.data.episode import Episode
from vla_agents.embodiment import Embodiment
from vla_agents.errors import (
    DatasetError,
    DatasetNotFoundError,
    EmbodimentError,
)

if TYPE_CHECKING:
    import h5py

FORMAT = "vla_agents_episodes"
VERSION = 1
DATASET = "dataset.json"
_FILE = re.compile(r"episode_(\d{6,})\.hdf5")
_VECTORS = ("state", "action", "executed", "commanded")
FLAGS = ("terminated", "truncated", "intervened")
_DAMAGED = "the file is cut short or damaged: copy it again, or delete it if it is the last one"


def episode_file(path: Path, index: int) -> Path:
    """The file of one episode."""
    return path / f"episode_{index:06d}.hdf5"


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
        """All numbers of the dataset, without pictures, by LeRobot's names: feature -> (N,) or (N, D)."""
        episodes = [self.read(k, images=False) for k in range(len(self))]
        sizes = [len(episode) for episode in episodes]
        found: dict[str, list[np.ndarray]] = {
            "action": [e.action for e in episodes],
            "executed_action": [e.action if e.executed is None else e.executed for e in episodes],
            "commanded_action": [e.action if e.commanded is None else e.commanded for e in episodes],
            "next.reward": [e.reward for e in episodes],
            "next.done": [e.terminated | e.truncated for e in episodes],
            "next.truncated": [e.truncated for e in episodes],
            "next.terminated": [e.terminated for e in episodes],
            "intervention": [e.intervened for e in episodes],
            "repeated_frame": [e.repeated for e in episodes],
            "capture_time": [e.time for e in episodes],
            "frame_index": [np.arange(size) for size in sizes],
            "episode_index": [np.full(size, k) for k, size in enumerate(sizes)],
        }
        if self.embodiment.state_dim:
            found["observation.state"] = [e.state for e in episodes if e.state is not None]
        empty = {
            "action": np.zeros((0, self.embodiment.action_dim), np.float32),
            "executed_action": np.zeros((0, self.embodiment.action_dim), np.float32),
            "commanded_action": np.zeros((0, self.embodiment.action_dim), np.float32),
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
                **{name: file.array(name, bool, (length,)) for name in FLAGS},
                time=file.array("time", np.float64, (length,)),
                success=success,
                executed=file.array("executed", np.float32, shape) if file.has("executed") else None,
                commanded=file.array("commanded", np.float32, shape) if file.has("commanded") else None,
                repeated=file.array("repeated", bool, (length,))
                if file.has("repeated")
                else np.zeros(length, bool),
                metadata=file.metadata(),
            )

    def frames(self, index: int, camera: str, steps: np.ndarray) -> np.ndarray:
        """Some pictures of one episode, in any order: uint8 (n, H, W, 3)."""
        size = next((c.height, c.width) for c in self.embodiment.cameras if c.name == camera)
        with _Opened(episode_file(self.path, index)) as file:
            return file.rows(f"images/{camera}", steps, (*size, 3))

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

    def rows(self, name: str, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Some rows of a uint8 dataset, each of known shape."""
        dataset = self._dataset(name)
        if dataset.shape[1:] != shape or dataset.dtype != np.uint8:
            raise DatasetError(
                self._path,
                f"{name!r} is {dataset.dtype} {dataset.shape[1:]}, expected uint8 {shape}",
                "the file is of another dataset, or was changed",
            )
        try:
            return np.stack([dataset[int(row)] for row in rows])
        except (OSError, IndexError, ValueError) as error:
            raise DatasetError(self._path, f"{name!r} cannot be read ({error})", _DAMAGED) from error

    def _dataset(self, name: str) -> h5py.Dataset:
        parts = name.split("/")
        inside, dataset = True, None
        try:
            links = [self._file.get("/".join(parts[: k + 1]), getlink=True) for k in range(len(parts))]
            inside = all(link is None or isinstance(link, self._hard_link) for link in links)
            if inside:
                dataset = self._file[name]
                inside = not dataset.is_virtual and not dataset.external
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
