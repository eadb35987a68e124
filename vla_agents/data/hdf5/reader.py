"""Our own HDF5 layout: a folder with `dataset.json` and one self-describing file per episode; pictures are
lossless.

    dataset.json            format, version, fps, embodiment
    episode_000000.hdf5     attributes: format, version, instruction, success, fps, embodiment, metadata
        action (T, D)  state (T, S)  executed (T, D)  commanded (T, D)  reward (T,)  terminated (T,)
        truncated (T,)  intervened (T,)  repeated (T,)  time (T,)  images/<camera> (T, H, W, 3)

        tasks (T,) with task_names (JSON), where the instruction changes inside; extras/<name> (T, ...)

A file gets its name only when it is complete, and that is all it takes for the episode to exist: nothing else
counts episodes. `state`, `executed`, `commanded` and `repeated` are absent where there is none, and so is the attribute
`success` where nobody judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.base import MEND, BaseReader, fitted
from vla_agents.data.episode import Episode
from vla_agents.data.guards import COPY, read_json, require_inside
from vla_agents.data.hdf5.file import DAMAGED, Hdf5File, common_length
from vla_agents.embodiment import Embodiment
from vla_agents.errors import DatasetError, DatasetNotFoundError, EmbodimentError

FORMAT = "vla_agents_episodes"
VERSION = 1
DATASET = "dataset.json"
_FILE = re.compile(r"episode_(\d{6,})\.hdf5")
_MOST_MISSING = 100_000  # files
FLAGS = ("terminated", "truncated", "intervened")


def episode_file(path: Path, index: int) -> Path:
    """The file of one episode."""
    return path / f"episode_{index:06d}.hdf5"


class Hdf5Reader(BaseReader):
    """Random access to the episodes of a folder written by `Hdf5Writer`; may be used from several threads.

    Args:
        path: The folder that holds dataset.json.
        embodiment: What the numbers and pixels mean, where the dataset's own is wrong.
        skip_bad: Open it although files are missing; reading those episodes is an error.
    """

    format = "vla_agents HDF5"

    def __init__(
        self, path: str | Path, *, embodiment: Embodiment | None = None, skip_bad: bool = False
    ) -> None:
        self.path = Path(path)
        content = _read_dataset_json(self.path)
        self.fps = float(content["fps"])
        self.notes: list[str] = []
        try:
            found = Embodiment.from_dict(content["embodiment"], where=str(self.path / DATASET))
        except EmbodimentError as error:
            raise DatasetError(self.path / DATASET, str(error.problem), COPY) from error
        self._body = found
        self.embodiment = found if embodiment is None else fitted(embodiment, found, self.path)
        numbers = sorted(int(m.group(1)) for m in map(_FILE.fullmatch, _names(self.path)) if m)
        if numbers != list(range(len(numbers))) and not skip_bad:
            missing = next(k for k in range(len(numbers)) if k not in set(numbers))
            raise DatasetError(
                episode_file(self.path, missing),
                f"is missing, but there are episodes up to {numbers[-1]}",
                "copy it again, or rename the later files so that they count 0, 1, 2, ...",
            )
        self._count = min(numbers[-1] + 1, len(numbers) + _MOST_MISSING) if numbers else 0
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

    def stream(self, index: int, camera: str) -> Iterator[np.ndarray]:
        """The pictures of one camera, uint8 (H, W, 3), one by one."""
        with self._opened(self._checked(index)) as file:
            yield from stored_frames(file, f"images/{camera}", _head(file)[0], self._size_of(camera))

    def frames(self, index: int, camera: str, steps: np.ndarray) -> np.ndarray:
        """Some pictures of one episode, in any order: uint8 (n, H, W, 3)."""
        with self._opened(self._checked(index)) as file:
            found = stored_frames(file, f"images/{camera}", _head(file)[0], self._size_of(camera), steps)
            return np.stack(list(found))

    def _size_of(self, camera: str) -> tuple[int, int]:
        return next((c.height, c.width) for c in self._body.cameras if c.name == camera)

    def read(self, index: int, *, images: bool = True) -> Episode:
        """One whole episode; `images=False` skips decoding (then `images` is empty)."""
        with self._opened(self._checked(index)) as file:
            length, instruction, success = _head(file)
            shape = (length, self._body.action_dim)
            metadata = file.json("metadata")
            return Episode(
                embodiment=self.embodiment,
                instruction=instruction,
                images={
                    c.name: file.array(f"images/{c.name}", np.uint8, (length, c.height, c.width, 3))
                    for c in self.embodiment.cameras
                    if images
                },
                state=_vector(file, "state", (length, self._body.state_dim))
                if self.embodiment.state
                else None,
                action=_vector(file, "action", shape),
                reward=file.array("reward", np.float32, (length,)),
                success=success,
                metadata=metadata if isinstance(metadata, dict) else {},
                **read_beside(file, "", length, self._body.action_dim),
            )

    def _opened(self, index: int) -> Hdf5File:
        return Hdf5File(require_inside(self.path, episode_file(self.path, index)))

    def _head(self, index: int) -> tuple[int, str, bool | None]:
        if index not in self._heads:
            with self._opened(index) as file:
                self._heads[index] = _head(file)
        return self._heads[index]


def read_beside(file: Hdf5File, group: str, length: int, action_dim: int) -> dict[str, Any]:
    """What an episode holds beside observation, action and reward: flags, times, tasks, extras, by `Episode`'s names.

    Args:
        file: The file.
        group: Where it lies; `""` or a name that ends in `/`.
        length: T.
        action_dim: D.
    """
    found: dict[str, Any] = {name: file.array(group + name, bool, (length,)) for name in FLAGS}
    found["time"] = file.array(group + "time", np.float64, (length,))
    for name in ("executed", "commanded"):
        here = file.has(group + name)
        found[name] = _vector(file, group + name, (length, action_dim)) if here else None
    if file.has(group + "repeated"):
        found["repeated"] = file.array(group + "repeated", bool, (length,))
    if file.has(group + "tasks"):
        names = json_of(file, group + "task_names")
        numbers = file.array(group + "tasks", np.int32, (length,))
        if not isinstance(names, list) or numbers.min() < 0 or numbers.max() >= len(names):
            raise DatasetError(file.path, f"{group}tasks names a task that {group}task_names lacks", DAMAGED)
        found["tasks"] = tuple(str(names[k]) for k in numbers.tolist())
    found["extras"] = {}
    for name in file.names(f"{group}extras"):
        values = file.text_or_numbers(f"{group}extras/{name}")
        if values.shape[:1] != (length,) or values.dtype.kind not in "biufU":
            raise DatasetError(file.path, f"{group}extras/{name} is {values.dtype} {values.shape}", DAMAGED)
        found["extras"][name.replace("%2F", "/")] = values
    return found


def stored_frames(
    file: Hdf5File, name: str, length: int, size: tuple[int, int], steps: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Pictures of a uint8 (T, H, W, 3) dataset: some steps, or all, a block at a time."""
    dataset = file.dataset(name)
    if dataset.shape != (length, *size, 3) or dataset.dtype != np.uint8:
        raise DatasetError(
            file.path,
            f"{name!r} is {dataset.dtype} {dataset.shape}, expected uint8 {(length, *size, 3)}",
            "the file is of another dataset, or was changed",
        )
    if steps is None:
        block = dataset.chunks[0] if dataset.chunks else 16
        for start in range(0, length, block):
            yield from file.values(name, slice(start, start + block))
    else:
        for step in np.asarray(steps).tolist():
            yield file.values(name, step)


def json_of(file: Hdf5File, name: str) -> Any:
    """A scalar dataset of JSON."""
    try:
        return json.loads(file.text(name))
    except (ValueError, RecursionError) as error:
        raise DatasetError(file.path, f"{name!r} is not JSON ({error})", DAMAGED) from error


def _head(file: Hdf5File) -> tuple[int, str, bool | None]:
    """`(length, instruction, success)`."""
    length = common_length(file, ["action"])
    success = file.attribute("success", optional=True)
    return length, str(file.attribute("instruction")), None if success is None else bool(success)


def _vector(file: Hdf5File, name: str, shape: tuple[int, int]) -> np.ndarray:
    """float32 (T, D), finite."""
    values = file.array(name, np.float32, shape)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise DatasetError(file.path, f"{name!r} is not finite in frame {bad[0]}", MEND)
    return values


def _names(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir()]


def _read_dataset_json(path: Path) -> dict[str, Any]:
    file = path / DATASET
    try:
        content = read_json(path, file)
    except FileNotFoundError:
        raise DatasetNotFoundError(
            path, f"no HDF5 dataset there: {DATASET} is missing", "give the folder that holds it"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DatasetError(file, f"field 'format' is not {FORMAT!r}", "it is not a dataset of vla_agents")
    if content.get("version") != VERSION:
        raise DatasetError(
            file, f"field 'version' is {content.get('version')!r}, known: {VERSION}", "use a newer vla_agents"
        )
    if not isinstance(content.get("fps"), int | float) or not isinstance(content.get("embodiment"), dict):
        raise DatasetError(file, "field 'fps' or 'embodiment' is missing", "copy the dataset again")
    return content
