"""The instruction of each step of a LeRobot dataset: meta/tasks, or what the index says where that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_agents.data.guards import COPY
from vla_agents.data.lerobot import layout as lerobot
from vla_agents.data.lerobot.index import Index
from vla_agents.data.lerobot.info import Info
from vla_agents.errors import DatasetError


class Tasks:
    """The instructions by `task_index`.

    Args:
        info: The dataset's meta/info.json.
        skip_bad: Do without meta/tasks where it is missing or damaged: an episode then has the instruction that the index
            gives it, and cannot be read where those are several.

    Attributes:
        error: What is wrong with meta/tasks, if anything.
    """

    def __init__(self, info: Info, *, skip_bad: bool = False) -> None:
        self.error: DatasetError | None = None
        self._tasks: Sequence[str | None] = ()
        if not info.total_episodes:
            return
        read = lerobot.read_tasks if info.version == lerobot.VERSION else lerobot.read_tasks_v2
        try:
            self._tasks = read(info.path)
        except DatasetError as error:
            if not skip_bad:
                raise
            self.error = error

    def note(self, index: Index) -> str:
        """What to tell where `error` is set."""
        assert self.error is not None
        where = index.where.relative_to(index.info.path)
        return f"{self.error.path.name}: {self.error.problem}; instructions are those of {where}"

    def of(self, index: Index, episode: int, numbers: np.ndarray, file: Path) -> tuple[str, ...]:
        """The instruction of each step of an episode.

        Args:
            index: The dataset's episodes.
            episode: Which.
            numbers: int64 (T,): its column `task_index`.
            file: Where that was read.
        """
        if self.error is not None:
            return (self._only(index, episode, numbers, self.error),) * len(numbers)
        known = len(self._tasks)
        found = [self._tasks[k] if 0 <= k < known else None for k in numbers.tolist()]
        told = tuple(task for task in found if task is not None)
        if len(told) < len(found):
            raise DatasetError(
                file,
                f"episode {episode}: task_index {numbers[found.index(None)]} is none of the {known} in meta/tasks",
                "files of two datasets were mixed: copy the dataset again",
            )
        return told

    @staticmethod
    def _only(index: Index, episode: int, numbers: np.ndarray, error: DatasetError) -> str:
        tasks = index.tasks[episode]
        if len(tasks) != 1 or np.ptp(numbers):
            where = index.where.relative_to(index.info.path)
            raise DatasetError(
                error.path,
                f"{error.problem}, and {where} gives episode {episode} {len(tasks)} instructions",
                COPY,
            )
        return tasks[0]
