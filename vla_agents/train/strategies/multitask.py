"""Several tasks at once, each with its share of the samples, however large it is.

A task is a dataset, or the episodes whose instruction matches a regular expression. Shares are given, or follow from the
number of steps n of each task and a temperature T: n ** (1 / T), normalised. T = 1 draws every step equally often, a large
T every task (Arivazhagan et al. 2019, "Massively Multilingual Neural Machine Translation in the Wild", for languages). The
validation loss is that of each task, and their mean.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_agents.data import Draws, Mixture, WindowDataset
from vla_agents.errors import ConfigError, UnknownNameError
from vla_agents.policies.policy import Batch
from vla_agents.train.strategies.ingredients import Ingredients
from vla_agents.train.strategy import BehaviourCloning
from vla_agents.train.strategy_config import MultitaskConfig


class Multitask(BehaviourCloning):
    """Behaviour cloning of several tasks.

    Args:
        train: Windows to learn from.
        validation: Windows held out.
        task_of: int (N,): task of every window to learn from ...
        validation_task_of: ... and of every window held out.
        shares: Task -> share of the samples.
        **draws: Of `BehaviourCloning`.
    """

    def __init__(
        self,
        train: Any,
        validation: Any,
        task_of: np.ndarray,
        validation_task_of: np.ndarray,
        shares: Mapping[str, float],
        **draws: Any,
    ) -> None:
        super().__init__(train, validation, **draws)
        self.shares = dict(shares)
        self._validation_task_of = validation_task_of
        within = np.where(train.step_of < draws["first_steps"], draws["first_steps_weight"], 1.0)
        self._order = Draws(weigh_groups(task_of, list(shares.values()), within), self.batch_size, self.seed)

    def validation(self) -> dict[str, list[Batch]]:  # type: ignore[override]
        """Of every task that has windows held out, at most some two thousand of them, evenly spread."""
        found = {}
        for number, name in enumerate(self.shares):
            batches = spread(self.held_out, np.flatnonzero(self._validation_task_of == number))
            if batches:
                found[name] = batches
        return found


def spread(windows: Any, rows: np.ndarray, most: int = 2048) -> list[Batch]:
    """Batches of at most `most` of some windows, evenly spread."""
    if windows is None or not len(rows):
        return []
    rows = rows[:: max(1, len(rows) // most)]
    return [Batch.from_numpy(windows.get_batch(part)) for part in np.split(rows, range(128, len(rows), 128))]


def weigh_groups(group_of: np.ndarray, shares: Sequence[float], within: np.ndarray) -> np.ndarray:
    """float64 (N,): weights of windows under which each group has its share.

    Args:
        group_of: int (N,); windows of a group below 0 are not drawn.
        shares: Of every group; where one has no windows, the others share alone.
        within: (N,) how much more often some windows of a group come than others.
    """
    weights = np.zeros(len(group_of))
    for number, share in enumerate(shares):
        mine = group_of == number
        if share and mine.any():
            weights[mine] = share * within[mine] / within[mine].sum()
    return weights


def instructions_of(windows: WindowDataset | Mixture) -> list[str]:
    """The instruction of every window."""
    if isinstance(windows, Mixture):
        return [text for part in windows.parts for text in instructions_of(part)]
    return [windows.instructions[k] for k in windows.episode_of]


def task_numbers(windows: WindowDataset | Mixture, tasks: Mapping[str, str]) -> np.ndarray:
    """int64 (N,): the task of every window, by regular expression or, without any, by dataset.

    Raises:
        ConfigError: Instructions that belong to no task, or an expression that is none.
    """
    if not tasks:
        return windows.dataset_of if isinstance(windows, Mixture) else np.zeros(len(windows), np.int64)
    texts = instructions_of(windows)
    number_of = {text: _task_of(text, tasks) for text in set(texts)}
    homeless = Counter(text for text in texts if number_of[text] < 0)
    if homeless:
        some = ", ".join(repr(text) for text, _ in homeless.most_common(5))
        raise ConfigError(
            f"multitask: {len(homeless)} instructions belong to no task, e.g. {some}",
            "add a task for them; '.*' at the end takes all that are left",
        )
    return np.array([number_of[text] for text in texts], np.int64)


def _task_of(text: str, tasks: Mapping[str, str]) -> int:
    for number, (name, pattern) in enumerate(tasks.items()):
        try:
            if re.search(pattern, text):
                return number
        except re.error as error:
            raise ConfigError(
                f"multitask: {pattern!r} of task {name!r} is no regular expression ({error})"
            ) from error
    return -1


def task_shares(settings: MultitaskConfig, counts: Mapping[str, int]) -> dict[str, float]:
    """Task -> share, adding up to 1.

    Args:
        settings: Weights or temperature.
        counts: Task -> number of steps.

    Raises:
        ConfigError: A task without steps, or whose weight is missing, not finite, or not above 0.
    """
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise ConfigError(
            f"multitask: no episode belongs to {', '.join(map(repr, empty))}",
            f"leave it out, or correct its expression; steps found: {dict(counts)}",
        )
    for name in settings.weights:
        if name not in counts:
            raise UnknownNameError("task in multitask.weights", name, counts)
    missing = [name for name in counts if settings.weights and name not in settings.weights]
    bad = {name: w for name, w in settings.weights.items() if not (np.isfinite(w) and w > 0)}
    if missing or bad:
        what = f"no weight for {', '.join(missing)}" if missing else f"weights {bad}"
        raise ConfigError(f"multitask: {what}", "give every task a weight above 0, or leave its data out")
    sizes = np.array([settings.weights.get(name, counts[name]) for name in counts], float)
    sizes = (sizes / sizes.max()) ** (1 / settings.temperature)
    return dict(zip(counts, (sizes / sizes.sum()).tolist(), strict=True))


def build(parts: Ingredients) -> Multitask:
    """As a run's configuration says."""
    settings, config = parts.config.multitask, parts.config
    if not settings.tasks and len(config.dataset) < 2:
        raise ConfigError(
            "multitask: one dataset, and nothing that tells tasks apart",
            "give several datasets, or tasks by regular expressions of their instructions",
        )
    if settings.tasks and config.weights:
        raise ConfigError(
            "weights of datasets contradict tasks by instruction", "give multitask.weights instead"
        )
    if not settings.tasks and len(set(config.dataset)) < len(config.dataset):
        raise ConfigError(
            f"multitask: the same dataset twice among {list(config.dataset)}",
            "its weight says how often it comes",
        )
    names = list(settings.tasks) or parts.train.names  # type: ignore[union-attr]
    task_of = task_numbers(parts.train, settings.tasks)
    counts = dict(zip(names, np.bincount(task_of, minlength=len(names)).tolist(), strict=True))
    if config.weights:
        settings = MultitaskConfig(weights=dict(zip(names, config.weights, strict=True)))
    shares = task_shares(settings, counts)
    held_out_of = task_numbers(parts.held_out, settings.tasks)
    return Multitask(parts.train, parts.held_out, task_of, held_out_of, shares, **parts.draws())
