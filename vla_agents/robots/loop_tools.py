"""What the control loop needs beside the loop: its state, a share of the interpreter, a log that does not flood."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from vla_agents.robots.robot import Reading
from vla_agents.robots.safety import INTERVENTIONS

SWITCH = 0.0005  # s: how long a busy Python thread may keep the interpreter to itself while a robot moves
LOG_EVERY = 5.0  # s


@dataclass(frozen=True)
class Now:
    """What the loop last did.

    Args:
        number: Of the tick.
        time: When it began, monotonic, s.
        reading: The newest reading there is; its own time says how old it is.
        command: What was really sent, (J,); None as long as nothing was.
        state: Of the safety filter: waiting, running, holding, stopped.
        counts: Interventions since the start.
    """

    number: int
    time: float
    reading: Reading | None
    command: np.ndarray | None
    state: str
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Aim:
    """On the way from `start` to `goal`, both (J,), from tick `first` on, in `ticks` steps. `drive`: see `aim`."""

    start: np.ndarray
    goal: np.ndarray
    first: int
    ticks: int
    time: float  # of the agent's action
    drive: bool = False

    def at(self, number: int) -> np.ndarray:
        """Where the arm shall be at tick `number`, (J,)."""
        share = min(max(number - self.first, 0) / self.ticks, 1.0) if self.ticks else 1.0
        return self.start + share * (self.goal - self.start) if share < 1.0 else self.goal


class RareLog:
    """Interventions as log lines, each kind once per `LOG_EVERY` seconds."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._since: Counter[str] = Counter()

    def lines(self, found: tuple[str, ...], now: float) -> list[str]:
        """Lines that are due."""
        self._since.update(found)
        due = [
            name for name in dict.fromkeys(found) if now - self._last.get(name, float("-inf")) >= LOG_EVERY
        ]
        self._last.update(dict.fromkeys(due, now))
        return [f"{name} x{self._since.pop(name)} ({INTERVENTIONS[name]})" for name in due]


def favour_this_thread(priority: int = 5) -> str:
    """Before other threads, as far as the system lets us; returns how: `"real time"`, `"nice"` or `"usual"`.

    Real time needs the right to it (`ulimit -r`, see docs/robots.md). A thread of that kind runs when its sleep is
    over, whatever else the machine does; it sleeps most of the time, and what it starts is not of that kind.
    """
    thread = threading.get_native_id()
    with contextlib.suppress(OSError, AttributeError):
        how = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(thread, how, os.sched_param(priority))
        return "real time"
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, thread, -10)
        return "nice"
    return "usual"


_switching = {"users": 0, "before": 0.0}
_switching_lock = threading.Lock()


@contextlib.contextmanager
def quick_switching() -> Iterator[None]:
    """Let no Python thread keep the interpreter for long while a robot is driven or a policy served."""
    with _switching_lock:
        if not _switching["users"]:
            _switching["before"] = sys.getswitchinterval()
            sys.setswitchinterval(min(SWITCH, _switching["before"]))
        _switching["users"] += 1
    try:
        yield
    finally:
        with _switching_lock:
            _switching["users"] -= 1
            if not _switching["users"]:
                sys.setswitchinterval(_switching["before"])
