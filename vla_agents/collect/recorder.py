"""Writes the episodes of a rollout to a dataset."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_agents.agent import Observation
from vla_agents.data.episode import EpisodeWriter, Step
from vla_agents.errors import RecordingError
from vla_agents.rollout import EpisodeResult, Listener, StepEvent

logger = logging.getLogger(__name__)

_OUTCOMES = ("success", "wrong")  # of a reset's info: not facts about the episode


@dataclass
class _Tape:
    """An episode under way; `steps` stays empty where they go straight to the writer."""

    instruction: str
    metadata: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    judged: bool = False
    lost: bool = False  # the disk refused it
    times: dict[str, float] = field(default_factory=dict)  # when the coming observation was taken
    result: EpisodeResult | None = None


class Recorder(Listener):
    """Writes episodes as they are played, in the order of their seeds.

    The label of a step is what was really sent (`info["sent"]` of an env that drives a robot; the agent's action where
    there is none), and what the agent asked for is kept beside it where it differs. But where a wrapper executed something
    else on purpose (`info["executed"]`, see `ActionNoise`), the label is what the agent asked for, and what was sent is
    kept beside it: demonstrations then show how to come back.

    With one slot the steps go straight to the writer. With several they wait in memory, because a writer holds one
    open episode, until all episodes with earlier seeds are over: the dataset is the same for any number of slots.

    Args:
        writer: Where episodes go. The recorder does not close it.
        only_success: Drop episodes that fail.
        limit: Save at most so many episodes.
        slots: Number of slots of the env.
        metadata: Facts stored with every episode, beside its seed and the plain values of the reset's info.
        on_saved: Called with the index of each saved episode.
        on_error: Called when the disk refuses an episode, which is then dropped (`failed` counts them) while the
            rollout goes on: a robot is not stopped in mid-air by a full disk. None: the error ends the rollout.
    """

    def __init__(
        self,
        writer: EpisodeWriter,
        *,
        only_success: bool = False,
        limit: int | None = None,
        slots: int = 1,
        metadata: dict[str, Any] | None = None,
        on_saved: Callable[[int], None] | None = None,
        on_error: Callable[[RecordingError], None] | None = None,
    ) -> None:
        self.saved = 0
        self.ended = 0
        self.succeeded = 0
        self.judged = 0
        self.steps = 0  # of the saved episodes
        self.failed_in_a_row = 0
        self.failed = 0  # episodes the disk refused
        self.refused: RecordingError | None = None  # the last such error
        self._writer, self._only_success, self.limit = writer, only_success, limit
        self._metadata, self._on_saved, self._on_error = dict(metadata or {}), on_saved, on_error
        self._streaming = slots == 1
        self._line: deque[_Tape] = deque()  # in the order of the seeds
        self._of_slot: dict[int, _Tape] = {}

    def on_reset(self, slot: int, seed: int, obs: Observation, info: dict[str, Any]) -> None:
        """Begin an episode."""
        plain = {
            k: v for k, v in info.items() if isinstance(v, str | bool | int | float) and k not in _OUTCOMES
        }
        tape = _Tape(str(obs["instruction"]), {**self._metadata, **plain, "seed": seed})
        tape.times = _times(info)
        self._line.append(tape)
        self._of_slot[slot] = tape
        if self._streaming:
            with self._told(tape):
                self._writer.begin(tape.instruction, tape.metadata)

    def on_step(self, slot: int, step: StepEvent) -> None:
        """Record a tick."""
        tape = self._of_slot[slot]
        tape.judged = "success" in step.info
        images = step.obs.get("images", {})
        label, executed, commanded = _actions(step)
        tick = Step(
            images=images,
            state=step.obs.get("state"),
            action=label,
            reward=step.reward,
            terminated=step.terminated,
            truncated=step.truncated,
            intervened=step.intervened,
            time=tape.times.get("state", step.time),
            camera_times={name: t for name, t in tape.times.items() if name in images},
            executed=executed,
            commanded=commanded,
        )
        tape.times = _times(step.info)
        if self._streaming:
            if not tape.lost:
                with self._told(tape):
                    self._writer.add(tick)
        else:
            tape.steps.append(tick)

    def on_end(self, slot: int, result: EpisodeResult) -> None:
        """Save or drop what is complete."""
        self._of_slot.pop(slot).result = result
        while self._line and self._line[0].result is not None:
            self._finish(self._line.popleft())

    def on_abort(self) -> None:
        """Drop open episodes, and those that wait for one with an earlier seed."""
        self._line.clear()
        self._of_slot.clear()
        try:
            self._writer.discard()
        except OSError as error:  # what interrupted the rollout is the error to see
            logger.warning("the unfinished episode could not be dropped: %s", error)

    def _finish(self, tape: _Tape) -> None:
        result = tape.result
        assert result is not None
        full = self.limit is not None and self.saved >= self.limit
        if full:
            if self._streaming:
                self._writer.discard()
            return
        if result.info.get("discarded", False):  # by the operator: as if it had not been
            if self._streaming:
                self._writer.discard()
            return
        self.ended += 1
        self.succeeded += result.success
        self.judged += result.judged
        self.failed_in_a_row = 0 if result.success else self.failed_in_a_row + 1
        if self._only_success and not result.success:
            if self._streaming:
                self._writer.discard()
            return
        if tape.lost:
            return
        with self._told(tape):
            if not self._streaming:
                self._writer.begin(tape.instruction, tape.metadata)
                for step in tape.steps:
                    self._writer.add(step)
            index = self._writer.save(result.success if tape.judged else None)
        if tape.lost:
            return
        self.saved += 1
        self.steps += result.steps
        if self._on_saved is not None:
            self._on_saved(index)

    @contextlib.contextmanager
    def _told(self, tape: _Tape) -> Iterator[None]:
        """Where somebody wants to be told of errors, they cost the episode and nothing else."""
        try:
            yield
        except RecordingError as error:
            if self._on_error is None:
                raise
            tape.lost = True
            self.failed, self.refused = self.failed + 1, error
            with contextlib.suppress(OSError):
                self._writer.discard()
            self._on_error(error)


def _actions(step: StepEvent) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The label, and what was executed and commanded where that differs from it."""
    executed, sent = step.info.get("executed"), step.info.get("sent")
    if executed is not None:  # disturbed on purpose
        return step.action, executed if sent is None else np.asarray(sent), None
    if sent is None or np.array_equal(sent, step.action):
        return step.action, None, None
    return np.asarray(sent), None, step.action


def _times(info: dict[str, Any]) -> dict[str, float]:
    """When the observation that comes with this info was really taken: camera (or `"state"`) -> monotonic seconds."""
    return {name: float(t) for name, t in info.get("capture_times", {}).items() if np.isfinite(t)}
