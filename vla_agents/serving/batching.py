"""One thread that plans; requests of several clients that come within a few milliseconds go through the policy together.

The policy is never called from the server's event loop, so health, metrics and other clients are answered while it is
busy. A batch waits only for clients that usually ask again so soon, and never for more than half the time planning takes:
what is won by planning together is not lost by waiting. A request that fails in company is tried alone, so that it
spoils nobody else's.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_agents.errors import ActionError, ServerBusyError
from vla_agents.serving.mailbox import Door, Mailbox
from vla_agents.serving.planning import BatchPlanner, Done, Planned, PlanRequest, run_policy

SHORTEST_S = 0.001  # of a wait: the system's poll knows no shorter one, and there is nothing to be won
LATE = 3  # times its usual pause: then a client is not waited for any more
Brought = tuple[PlanRequest, Done]  # what comes through a door


@dataclass
class _Job:
    request: PlanRequest
    done: Done
    since: float

    @property
    def kind(self) -> tuple[int, int]:
        """Only requests of one kind go together: (actions known already or -1, how many are committed)."""
        prefixes = self.request.prefixes
        return (-1 if prefixes is None else len(prefixes[0]), self.request.committed)

    @property
    def size(self) -> int:
        return len(self.request.observations)


class Batcher:
    """Queue and planning thread.

    Args:
        max_batch: Observations per call of the policy (a single request may have more).
        wait_s: How long a batch waits for clients that are expected, at most.
        max_queued: Observations that may wait; beyond, requests are refused.
        observe: Told every (observations in the batch, seconds in the policy).
    """

    def __init__(
        self,
        *,
        max_batch: int = 16,
        wait_s: float = 0.01,
        max_queued: int = 256,
        observe: Callable[[int, float], None] = lambda batch, seconds: None,
    ) -> None:
        self._max_batch, self._wait_s, self._max_queued = max_batch, wait_s, max_queued
        self._observe = observe
        self._planner: BatchPlanner | None = None
        self.revision = 0
        self._incoming = Mailbox()  # of jobs; None: stop
        self.planning = 0  # requests that came through a door and are not answered yet
        self._waiting: deque[_Job] = deque()  # the planning thread's own
        self._lock = threading.Lock()
        self._queued = 0
        self._answered: dict[str, float] = {}  # client -> when it was
        self._pauses: dict[str, float] = {}  # client -> seconds from an answer to its next request, as a rule
        self._took = 0.0  # seconds in the policy, smoothed
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="planning", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Observations that wait."""
        return self._queued

    def swap(self, planner: BatchPlanner) -> None:
        """Plan with this one from the next batch on."""
        with self._lock:
            self._planner, self.revision = planner, self.revision + 1

    def submit(self, request: PlanRequest, done: Done) -> None:
        """Queue a request; `done` is called from the planning thread with the answer, or with what was raised instead.

        Raises:
            ServerBusyError: Too many wait already.
        """
        self._incoming.put(self._admitted(request, done))

    def _admitted(self, request: PlanRequest, done: Done) -> _Job:
        job = _Job(request, done, time.monotonic())
        with self._lock:
            if self._stop or self._queued + job.size > self._max_queued:
                raise ServerBusyError(f"{self._queued} observations are waiting already", "ask again later")
            self._queued += job.size
            answered = self._answered.pop(request.client, None)
            if answered is not None:
                pause = job.since - answered
                # One that is longer than usual says little, a short one shows how soon the client can ask.
                self._pauses[request.client] = min(pause, 1.3 * self._pauses.get(request.client, pause))
        return job

    def attach(self, door: Door) -> None:
        """Take requests at this door too: `Brought`, checked, or nothing."""
        self._incoming.attach(door)

    def forget(self, client: str) -> None:
        """Wait for this client no more."""
        with self._lock:
            self._answered.pop(client, None)
            self._pauses.pop(client, None)

    def close(self) -> None:
        """End the thread once the batch under way is done; what waits is refused."""
        with self._lock:
            self._stop = True
        self._incoming.put(None)
        self._thread.join(timeout=60)
        if not self._thread.is_alive():
            self._incoming.close()

    # ---- thread -------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while self._fill():
            self._plan_next()
        for job in self._waiting:
            job.done(ServerBusyError("the server stops"))

    def _fill(self) -> bool:
        """Wait for a request, then for those that may join it; False where the thread shall end."""
        while not self._waiting:
            if not self._receive(None):
                return False
        end = time.monotonic() + min(self._wait_s, self._took / 2)
        while sum(job.size for job in self._waiting) < self._max_batch:
            left = end - time.monotonic() if self._expects_somebody(end) else 0.0
            left = left if left >= SHORTEST_S else 0.0
            before = len(self._waiting)
            if not self._receive(left):
                return False
            if left <= 0 and len(self._waiting) == before:
                break
        return not self._stop

    def _receive(self, timeout: float | None) -> bool:
        """Take over what is there or comes first in that time; False where the thread shall end."""
        goes_on = True
        for job in self._incoming.take(timeout):
            if job is None:
                goes_on = False
            elif isinstance(job, _Job):
                self._waiting.append(job)
            else:
                self._bring(*job)
        return goes_on

    def _bring(self, request: PlanRequest, done: Done) -> None:
        """A request that came through a door joins those that wait, or is refused."""

        def answered(answer: Planned | Exception) -> None:
            self.planning -= 1
            done(answer)

        self.planning += 1
        try:
            self._waiting.append(self._admitted(request, answered))
        except ServerBusyError as error:
            answered(error)

    def _expects_somebody(self, end: float) -> bool:
        """Whether a client that was answered usually asks again before `end`, and is not overdue."""
        now = time.monotonic()
        with self._lock:
            for client, at in self._answered.items():
                pause = self._pauses.get(client)
                if pause is not None and at + pause < end and now < at + LATE * pause:
                    return True
        return False

    def _take(self) -> list[_Job]:
        """The oldest, and those of its kind that fit into its batch."""
        first = self._waiting.popleft()
        taken, size, left = [first], first.size, deque[_Job]()
        for job in self._waiting:
            if job.kind == first.kind and size + job.size <= self._max_batch:
                taken.append(job)
                size += job.size
            else:
                left.append(job)
        self._waiting = left
        return taken

    def _plan_next(self) -> None:
        """A batch; nothing of it, and not the planner either, is kept."""
        jobs = self._take()
        with self._lock:
            planner, revision = self._planner, self.revision
            self._queued -= sum(job.size for job in jobs)
        self._plan(jobs, planner, revision)

    def _plan(self, jobs: list[_Job], planner: BatchPlanner | None, revision: int) -> None:
        assert planner is not None
        begin = time.monotonic()
        try:
            chunks = run_policy(planner, [job.request for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].done(error)
                return
            for job in jobs:
                self._plan([job], planner, revision)
            return
        end = time.monotonic()
        seconds = end - begin
        self._took = seconds if not self._took else 0.7 * self._took + 0.3 * seconds
        with self._lock:
            self._answered.update((job.request.client, end) for job in jobs)
        finite = np.isfinite(chunks.reshape(len(chunks), -1)).all(axis=1)  # (n,)
        self._observe(len(chunks), seconds)
        start = 0
        for job in jobs:
            mine = slice(start, start + job.size)
            start += job.size
            if finite[mine].all():
                job.done(Planned(chunks[mine], len(chunks), begin - job.since, seconds, revision))
            else:
                job.done(ActionError("the policy planned actions that are not finite"))
