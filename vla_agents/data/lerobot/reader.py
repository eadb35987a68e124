"""Reads LeRobot datasets v2.0, v2.1 and v3.0, our own and LeRobot's: values and pixels as LeRobot returns them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vla_agents.data.base import BaseReader, fitted, require_finite
from vla_agents.data.episode import Episode
from vla_agents.data.guards import COPY
from vla_agents.data.lerobot import layout as lerobot
from vla_agents.data.lerobot.columns import Columns, Rows
from vla_agents.data.lerobot.embodiment import load_embodiment
from vla_agents.data.lerobot.images import pictures
from vla_agents.data.lerobot.index import read_index
from vla_agents.data.lerobot.info import Info
from vla_agents.data.lerobot.layout import ACTION, COMMANDED, EXECUTED, SCALARS, STATE
from vla_agents.data.lerobot.tables import episode_table
from vla_agents.data.lerobot.tasks import Tasks
from vla_agents.data.video.frames import VideoFiles
from vla_agents.embodiment import Embodiment
from vla_agents.errors import DatasetError

_WIDE = 1024  # numbers per step


class LeRobotReader(BaseReader):
    """Random access to the episodes of a LeRobot dataset; may be used from several threads.

    Only the index (meta/) is read at first. `meta/info.json` decides how many episodes there are: what a
    recording that was killed left beyond that count is ignored.

    Args:
        path: The folder that holds meta/ and data/.
        embodiment: What the numbers and pixels mean, where the dataset does not say so or is wrong.
        skip_bad: Open it although some episodes are listed wrongly, or meta/tasks cannot be read; reading what that
            spoils is an error.
    """

    def __init__(
        self, path: str | Path, *, embodiment: Embodiment | None = None, skip_bad: bool = False
    ) -> None:
        self.path = Path(path)
        self.info = Info.load(self.path)
        stored = load_embodiment(self.info)
        self.embodiment = (
            stored.embodiment if embodiment is None else fitted(embodiment, stored.embodiment, self.path)
        )
        self.overridden = embodiment is not None
        self.cameras = stored.cameras  # camera name -> feature
        self.format = f"LeRobot {self.info.version}"
        self.fps = float(self.info.fps)
        self.notes = [] if embodiment is not None else list(stored.notes)
        self._tasks = Tasks(self.info, skip_bad=skip_bad)
        self.index = read_index(self.info, skip_bad=skip_bad)
        self.notes += self.index.notes
        if self._tasks.error is not None:
            self.notes.append(self._tasks.note(self.index))
        self._columns = Columns(self.index, self._names)
        self._wide = Columns(self.index, [*self._wide_names, "episode_index"], cached=False)
        shown = {*self._names, *self._wide_names, *self._text_names, *self.cameras.values()}
        left_out = [key for key in self.info.features if key not in shown]
        if left_out:
            self.notes.append(f"columns that no episode shows: {', '.join(left_out)}")

    def __len__(self) -> int:
        return self.info.total_episodes

    def lengths(self) -> np.ndarray:
        """int64 (N,): steps per episode."""
        return self.index.lengths.copy()

    def instructions(self) -> list[str]:
        """The instruction of each episode; where it changes inside one, that of its first step."""
        return [
            tasks[0] if len(tasks) == 1 else self._tasks_of(k, self._columns.rows(k))[0]
            for k, tasks in enumerate(self.index.tasks)
        ]

    def successes(self) -> list[bool | None]:
        """Whether each episode succeeded; None where nobody judged."""
        return [self._success(k) for k in range(len(self))]

    def metadata(self, index: int) -> dict[str, Any]:
        """What was stored with an episode when it was recorded."""
        text = self._ours(lerobot.METADATA, index)
        try:
            found = json.loads(text) if text else {}
        except (ValueError, TypeError, RecursionError) as error:
            raise DatasetError(
                self.path, f"episode {index}: column {lerobot.METADATA!r} is not JSON ({error})", COPY
            ) from None
        return found if isinstance(found, dict) else {}

    def columns(self, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Numbers and text of the whole dataset, in the order of the episodes: feature -> (N,) or (N, D); all by default.

        State and action are there as `observation.state` and `action`, whatever the dataset calls them.
        """
        roles = {STATE: self.info.state_keys, ACTION: self.info.action_keys}
        renamed = {name: keys for name, keys in roles.items() if keys and keys != (name,)}
        wanted = list(self._names if names is None else names)
        texts = self._text_names if names is None else [n for n in wanted if n in self._text_names]
        read = [key for name in wanted if name not in texts for key in renamed.get(name, (name,))]
        if names is None:
            wanted += [*renamed, *texts]
        found = self._columns.all(list(dict.fromkeys(read)))
        if texts:
            parts = [self._texts(k) for k in range(len(self))]
            found |= {name: np.concatenate([np.zeros(0, str), *(p[name] for p in parts)]) for name in texts}
        for name, keys in renamed.items():
            if name in wanted:
                found[name] = np.concatenate([found[key] for key in keys], axis=1)
        return {name: found[name] for name in wanted}

    def camera_key(self, camera: str) -> str:
        """The feature of a camera, e.g. `"observation.images.front"`."""
        return self.cameras[camera]

    def tasks(self, index: int) -> tuple[str, ...]:
        """The instruction of each step of one episode."""
        index = self._checked(index)
        return self._tasks_of(index, self._columns.rows(index))

    def rows(self, index: int) -> Rows:
        """The numbers of one episode by feature: views, not to be written to."""
        return self._columns.rows(self._checked(index))

    def images(self, index: int) -> dict[str, np.ndarray]:
        """Camera -> uint8 (T, H, W, 3) of one episode."""
        return self._images(self._checked(index))

    def stream(self, index: int, camera: str) -> Iterator[np.ndarray]:
        """The pictures of one camera, uint8 (H, W, 3), one by one."""
        index = self._checked(index)
        stamps = self._columns.rows(index)["timestamp"]
        return pictures(self.index, index, self.cameras[camera], stamps, np.arange(len(stamps)))

    def frames(self, index: int, camera: str, steps: np.ndarray) -> np.ndarray:
        """Some pictures of one episode, in any order: uint8 (n, H, W, 3)."""
        index = self._checked(index)
        chosen, back = np.unique(steps, return_inverse=True)
        stamps = self._columns.rows(index)["timestamp"]
        return np.stack(list(pictures(self.index, index, self.cameras[camera], stamps, chosen)))[back]

    def videos(self, camera: str, episodes: Sequence[int] | None = None) -> VideoFiles | None:
        """Which video holds each episode of a camera (by default of all); None where its pictures are stored one by one."""
        key = self.cameras[camera]
        if not self.info.is_video(key):
            return None
        chosen = range(len(self)) if episodes is None else episodes
        files = [self.index.video_file(k, key) for k in chosen]
        distinct = {file: k for k, file in enumerate(dict.fromkeys(files))}
        return VideoFiles(
            files=tuple(distinct),
            file_of=np.array([distinct[file] for file in files], np.int64),
            start=np.array([self.index.video_start(k, key) for k in chosen], np.float64),
            fps=self.info.fps,
        )

    def wide(self, index: int) -> dict[str, np.ndarray]:
        """Extras too large to be read with an episode's numbers (depth pictures): name -> (T, ...)."""
        index = self._checked(index)
        if not self._wide_names:
            return {}
        rows = self._wide.rows(index)
        return {name: rows[name].copy() for name in self._wide_names}

    def read(self, index: int, *, images: bool = True) -> Episode:
        """One whole episode; `images=False` skips decoding (then `images` is empty)."""
        index = self._checked(index)
        rows = self._columns.rows(index)
        length = len(rows["timestamp"])
        no = np.zeros(length, bool)
        scalar = {name: rows[name].copy() if self._is_scalar(name) else None for name in SCALARS}
        truncated = _or(scalar["next.truncated"], no)
        terminated = _or(scalar["next.terminated"], _or(scalar["next.done"], no) & ~truncated)
        tasks = self._tasks_of(index, rows)
        return Episode(
            embodiment=self.embodiment,
            instruction=tasks[0],
            images=self._images(index) if images else {},
            state=self._vector(index, rows, self.info.state_keys) if self.embodiment.state_dim else None,
            action=self._vector(index, rows, self.info.action_keys),
            reward=_or(scalar["next.reward"], np.zeros(length, np.float32)),
            terminated=terminated,
            truncated=truncated,
            intervened=_or(scalar["intervention"], no.copy()),
            time=_or(scalar["capture_time"], rows["timestamp"].astype(np.float64)),
            success=self._success(index),
            executed=self._given(index, rows, EXECUTED, lerobot.HAS_EXECUTED),
            commanded=self._given(index, rows, COMMANDED, lerobot.HAS_COMMANDED),
            repeated=_or(scalar[lerobot.REPEATED], no.copy()),
            metadata=self.metadata(index),
            tasks=None if len(set(tasks)) == 1 else tasks,
            extras={name: rows[name].copy() for name in self.extras}
            | self._texts(index)
            | (self.wide(index) if images else {}),
        )

    # ---- inside -------------------------------------------------------------------------------------------
    @cached_property
    def reduced(self) -> list[str]:
        """What an episode holds with less precision than the files, a sentence each."""
        wide = [key for key in self._vectors if self.info.features[key]["dtype"] in ("float64", "int64")]
        return [
            f"{key}: {self.info.features[key]['dtype']} in the files, float32 in an episode" for key in wide
        ]

    @cached_property
    def extras(self) -> tuple[str, ...]:
        """Columns of numbers that have no place of their own in an episode."""
        return tuple(name for name in self._names if name not in self._vectors and not self._is_scalar(name))

    def _is_scalar(self, name: str) -> bool:
        return name in self.info.features and self.info.is_scalar(name)

    @cached_property
    def _vectors(self) -> tuple[str, ...]:
        ours = [key for key in (EXECUTED, COMMANDED) if key in self.info.features]
        return (*self.info.state_keys, *self.info.action_keys, *ours)

    @cached_property
    def _names(self) -> list[str]:
        """The columns that hold numbers; state and action first."""
        rest = [
            key
            for key in self.info.features
            if key not in self._vectors and self.info.numeric_dtype(key) is not None
        ]
        return [*self._vectors, *(key for key in rest if key not in self._wide_names)]

    @cached_property
    def _wide_names(self) -> list[str]:
        """Columns of numbers so large that they are read on their own."""
        sizes = {
            key: self.info.size(key) for key in self.info.features if self.info.numeric_dtype(key) is not None
        }
        return [key for key, size in sizes.items() if size > _WIDE and key not in self._vectors]

    @cached_property
    def _text_names(self) -> list[str]:
        """Columns with a text per step."""
        return [
            key
            for key, f in self.info.features.items()
            if f["dtype"] == "string" and self.info.size(key) == 1
        ]

    def _texts(self, index: int) -> dict[str, np.ndarray]:
        """Text columns of one episode: str (T,)."""
        if not self._text_names:
            return {}
        table = episode_table(self.index, index, self._text_names)
        for name in self._text_names:
            kind, column = table.schema.field(name).type, table.column(name)
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)) or column.null_count:
                raise DatasetError(
                    self.index.data_file(index),
                    f"column {name!r} holds {kind} with {column.null_count} gaps, meta/info.json says string",
                    "mend or leave out those rows",
                )
        return {name: np.array(table.column(name).to_pylist(), str) for name in self._text_names}

    def _tasks_of(self, index: int, rows: Rows) -> tuple[str, ...]:
        """The instruction of each step."""
        return self._tasks.of(self.index, index, rows["task_index"], self.index.data_file(index))

    def _ours(self, name: str, index: int) -> Any:
        return self.index.columns[name][index] if name in self.index.columns else None

    def _success(self, index: int) -> bool | None:
        if lerobot.SUCCESS in self.index.columns:
            found = self.index.columns[lerobot.SUCCESS][index]
            return None if found is None else bool(found)
        if "next.success" not in self.info.features:
            return None
        return bool(self._columns.rows(index)["next.success"].any())

    def _vector(self, index: int, rows: Rows, keys: tuple[str, ...]) -> np.ndarray:
        """float32 (T, D): features side by side, finite."""
        for key in keys:
            require_finite(self.index.data_file(index), rows[key], key, index)
        return rows[keys[0]].copy() if len(keys) == 1 else np.concatenate([rows[key] for key in keys], axis=1)

    def _given(self, index: int, rows: Rows, key: str, flag: str) -> np.ndarray | None:
        """A column that repeats the label where nothing was given; `flag` says whether."""
        if key not in rows or self._ours(flag, index) is False:
            return None
        return self._vector(index, rows, (key,))

    def _images(self, index: int) -> dict[str, np.ndarray]:
        found = {}
        length = int(self.index.lengths[index])
        for camera in self.embodiment.cameras:
            out = np.empty((length, camera.height, camera.width, 3), np.uint8)
            for k, image in enumerate(self.stream(index, camera.name)):
                out[k] = image
            found[camera.name] = out
        return found


def _or(values: np.ndarray | None, otherwise: np.ndarray) -> np.ndarray:
    return otherwise if values is None else values
