"""What the readers of other programs' HDF5 files share: finding demos, their order, times, and what we put beside."""

from __future__ import annotations

import dataclasses
import json
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.base import BaseReader, fitted, require_finite
from vla_agents.data.episode import Episode
from vla_agents.data.guards import COPY, require_inside
from vla_agents.data.hdf5.file import Hdf5File
from vla_agents.data.hdf5.reader import read_beside, stored_frames
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, DatasetError, DatasetNotFoundError, EmbodimentError

SUFFIXES = (".hdf5", ".h5", ".he5")
OURS = "vla_agents"  # attribute of a file, and group of a demo: what the other program has no place for


@dataclasses.dataclass(frozen=True)
class Demo:
    """Where an episode lies.

    Args:
        file: The file.
        group: Its group in that file: `""`, or a name that ends in `/`.
    """

    file: Path
    group: str

    @property
    def name(self) -> str:
        """For messages: file and group."""
        return f"{self.file.name}{':' if self.group else ''}{self.group.rstrip('/')}"


class DemoReader(BaseReader):
    """Base of the readers of other programs' HDF5 files.

    Args:
        path: A file, or a folder of files.
        embodiment: What the numbers and pixels mean, where the files do not say so.
        instruction: For episodes that hold none.
        fps: Steps per second, where the files do not say so (or to correct them).
        skip_bad: Leave out files that cannot be opened; they are in `skipped`.
    """

    default_fps = 20.0
    one_per_file = False
    is_ours = False  # whether we wrote the file
    reduced: Sequence[str] = ()  # what an episode holds with less precision than the files

    def __init__(
        self,
        path: str | Path,
        *,
        embodiment: Embodiment | None = None,
        instruction: str | None = None,
        fps: float | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self.skipped: dict[str, DatasetError] = {}
        self._skip_bad = skip_bad
        self._given_instruction, self._given_fps = instruction, fps
        self._heads: dict[int, tuple[int, str, bool | None]] = {}
        self._root = self.path if self.path.is_dir() else self.path.parent
        self._demos = self._find_demos()
        if not self._demos:
            raise DatasetNotFoundError(self.path, "holds no episodes", "look at it with `h5ls -r`")
        self._body: Embodiment = self._describe_first()
        if fps is not None:
            self._body = dataclasses.replace(self._body, control_hz=float(fps))
        self.fps = self._body.control_hz
        self.overridden = embodiment is not None or fps is not None or instruction is not None
        self.embodiment = self._body if embodiment is None else fitted(embodiment, self._body, self.path)

    # ---- what a layout supplies ---------------------------------------------------------------------------
    @abstractmethod
    def _groups(self, file: Hdf5File) -> list[str]:
        """The groups of a file's episodes, in order."""

    @abstractmethod
    def _derive(self, file: Hdf5File, group: str) -> Embodiment:
        """The embodiment as far as this demo tells; notes what it does not."""

    @abstractmethod
    def _length(self, file: Hdf5File, group: str) -> int:
        """Steps of a demo, at least one."""

    @abstractmethod
    def _language(self, file: Hdf5File, group: str) -> str | None:
        """The instruction that the file holds; None where it holds none."""

    @abstractmethod
    def _numbers(self, file: Hdf5File, group: str, length: int, *, wide: bool) -> dict[str, Any]:
        """`action`, `state` (or None), `reward`, `terminated`, `metadata` and `extras` of `Episode`.

        `wide`: also what has more than one dimension per step (depth pictures).
        """

    @abstractmethod
    def _camera(self, file: Hdf5File, group: str, camera: str) -> str:
        """The name of the dataset with a camera's pictures."""

    def _vectors(self, file: Hdf5File, group: str) -> list[str]:
        """The datasets of state and action."""
        return []

    def _judged(self, file: Hdf5File, group: str) -> bool | None:
        """Whether the demo succeeded; None where nobody says."""
        return None

    def _turned(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Pictures upright, RGB."""
        return frames

    # ---- reading ------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self._demos)

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
        return self._upright(index, camera, None)

    def frames(self, index: int, camera: str, steps: np.ndarray) -> np.ndarray:
        """Some pictures of one episode, in any order: uint8 (n, H, W, 3)."""
        return np.stack(list(self._upright(index, camera, steps)))

    def _upright(self, index: int, camera: str, steps: np.ndarray | None) -> Iterator[np.ndarray]:
        index = self._checked(index)
        with self._opened(index) as file:
            group = self._demos[index].group
            yield from self._turned(self._pictures(file, group, camera, self._length(file, group), steps))

    def read(self, index: int, *, images: bool = True) -> Episode:
        """One whole episode; `images=False` skips decoding (then `images` is empty)."""
        index = self._checked(index)
        with self._opened(index) as file:
            group = self._demos[index].group
            length, instruction, success = self._read_head(file, group)
            found = self._numbers(file, group, length, wide=images)
            for name in ("action", "state"):
                if found[name] is not None:
                    require_finite(file.path, found[name], name, self._demos[index].group.strip("/") or index)
            pictures = {}
            for camera in self.embodiment.cameras if images else ():
                frames = self._turned(self._pictures(file, group, camera.name, length, None))
                pictures[camera.name] = np.stack(list(frames))
            beside = self._beside(file, group, length)
            extras = found.pop("extras", {}) | beside.pop("extras", {})
            if not self.embodiment.state:
                found["state"] = None
            return Episode(
                embodiment=self.embodiment,
                instruction=instruction,
                images=pictures,
                success=success,
                extras=extras,
                **(found | beside),
            )

    def _beside(self, file: Hdf5File, group: str, length: int) -> dict[str, Any]:
        """Times, flags and the rest: what we wrote beside, or else what can be assumed."""
        ours = f"{group}{OURS}/"
        if file.has(ours + "time"):
            found = read_beside(file, ours, length, self._body.action_dim)
            if file.has(ours + "reward"):
                found["reward"] = file.array(ours + "reward", np.float32, (length,))
            metadata = file.json("metadata", ours, optional=True)
            return found | ({"metadata": metadata} if isinstance(metadata, dict) else {})
        no = np.zeros(length, bool)
        return {"truncated": no, "intervened": no.copy(), "time": np.arange(length) / self.fps}

    def _pictures(
        self, file: Hdf5File, group: str, camera: str, length: int, steps: np.ndarray | None
    ) -> Iterator[np.ndarray]:
        found = next(c for c in self._body.cameras if c.name == camera)
        name = self._camera(file, group, camera)
        return stored_frames(file, name, length, (found.height, found.width), steps)

    def wide(self, index: int) -> dict[str, np.ndarray]:
        """Extras too large to be read with an episode's numbers (depth pictures): name -> (T, ...)."""
        index = self._checked(index)
        with self._opened(index) as file:
            group = self._demos[index].group
            found = self._numbers(file, group, self._length(file, group), wide=True)["extras"]
        return {name: values for name, values in found.items() if values.ndim > 2}

    def demo(self, index: int) -> Demo:
        """Where an episode lies."""
        return self._demos[self._checked(index)]

    # ---- finding ------------------------------------------------------------------------------------------
    def _find_demos(self) -> list[Demo]:
        """All demos, in the order they were numbered in where we wrote them, else by file and group."""
        found: list[tuple[int | None, Demo]] = []
        for path in hdf5_files(self.path):
            if self.one_per_file:
                found.append((None, Demo(path, "")))
                continue
            try:
                with Hdf5File(require_inside(self._root, path)) as file:
                    for group in self._groups(file):
                        ours = f"{group}{OURS}"
                        number = file.attribute("index", ours, optional=True) if file.has(ours) else None
                        found.append((None if number is None else int(number), Demo(path, group)))
            except DatasetError as error:
                if not self._skip_bad:
                    raise
                self.skipped[path.name] = error
        numbers = [number for number, _ in found if number is not None]
        if len(numbers) == len(found):
            found.sort(key=lambda pair: pair[0] or 0)
        return [demo for _, demo in found]

    def _describe_first(self) -> Embodiment:
        """The body, from the first demo that can be read."""
        for k, demo in enumerate(self._demos):
            try:
                with self._opened(k) as file:
                    return self._describe(file, demo.group)
            except DatasetError:
                if not self._skip_bad or k + 1 == len(self._demos):
                    raise
                self.notes.clear()
        raise AssertionError

    def _describe(self, file: Hdf5File, group: str) -> Embodiment:
        stored = file.json(OURS, optional=True)
        self.is_ours = isinstance(stored, dict) and "embodiment" in stored
        self.reduced = [
            f"{name}: {file.dtype(name)} in the files, float32 in an episode"
            for name in self._vectors(file, group)
            if file.has(name) and file.dtype(name).kind in "iuf" and file.dtype(name).itemsize > 4
        ]
        derived = self._derive(file, group)
        if isinstance(stored, dict) and "embodiment" in stored:
            try:
                found = Embodiment.from_dict(stored["embodiment"], where=f"attribute {OURS!r}")
            except EmbodimentError as error:
                raise DatasetError(file.path, str(error.problem), COPY) from error
            self.notes.clear()
            try:
                return fitted(found, derived, file.path)
            except ConfigError as error:
                raise DatasetError(file.path, f"attribute {OURS!r}: {error.problem}", COPY) from error
        return derived

    def _opened(self, index: int) -> Hdf5File:
        return Hdf5File(require_inside(self._root, self._demos[index].file))

    def _head(self, index: int) -> tuple[int, str, bool | None]:
        if index not in self._heads:
            with self._opened(index) as file:
                self._heads[index] = self._read_head(file, self._demos[index].group)
        return self._heads[index]

    def _read_head(self, file: Hdf5File, group: str) -> tuple[int, str, bool | None]:
        ours = f"{group}{OURS}"
        length = self._length(file, group)
        if file.has(ours):
            instruction = file.attribute("instruction", ours, optional=True)
            success = file.attribute("success", ours, optional=True)
            if instruction is not None:
                return length, str(instruction), None if success is None else bool(success)
        language = self._language(file, group)
        return (
            length,
            self._given_instruction or "" if language is None else language,
            self._judged(file, group),
        )

    def _note_defaults(self, *, fps: bool, language: bool) -> None:
        """Say which of rate and instruction are not in the files."""
        if not fps and self._given_fps is None:
            self.notes.append(f"the files do not state a rate: {self.default_fps:g} Hz assumed (fps=...)")
        if not language and self._given_instruction is None:
            self.notes.append("the files hold no instruction: it is empty (instruction=...)")

    def _rate(self, found: Any) -> float:
        """The rate to assume, given what the file says (or None)."""
        good = isinstance(found, int | float) and not isinstance(found, bool) and 0 < found < 1e5
        return float(found) if good else self.default_fps


def hdf5_files(path: Path) -> list[Path]:
    """The file itself, or the HDF5 files of a folder, in the order of the numbers in their names."""
    if not path.is_dir():
        return [path]
    return sorted((p for p in path.iterdir() if p.suffix in SUFFIXES), key=lambda p: natural(p.name))


def natural(name: str) -> list[Any]:
    """A key by which `demo_10` comes after `demo_9`."""
    return [(1, int(t), "") if t.isdigit() else (0, 0, t) for t in re.split(r"(\d+)", name) if t]


def parse_json(text: Any) -> dict[str, Any]:
    """An object from JSON; empty where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
