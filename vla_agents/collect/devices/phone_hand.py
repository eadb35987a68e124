"""What the page of `phone` says, message by message, as the `Motion` of a hand; knows nothing of sockets.

What arrives late or out of order is dropped, and so is the way up to the next message: nothing leaps.
"""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from vla_agents.collect.devices.hand import Motion
from vla_agents.collect.teleop import Event

LATE_S = 0.25  # later than the quickest message by more than this: dropped
GAP_S = 0.3  # after such a pause a hand starts from where it is
LEAP = (0.1, 0.7)  # m, rad from message to message: more is lost tracking, not a hand
CREEP = 1e-4  # s per message by which the quickest may grow: clocks of phone and computer drift apart


class Hand:
    """What a page says, message by message -> a `Motion`. Knows nothing of sockets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.dropped = 0
        self.events: list[Event] = []
        self.newcomer()

    def newcomer(self) -> None:
        """Another page, or the same one again."""
        with self._lock:
            self._number, self._quickest = -1, math.inf
            self._time = -math.inf
            self._pose: tuple[np.ndarray, Rotation] | None = None
            self._rate, self._way = np.zeros(6), np.zeros(6)
            self._held, self._grip = False, None

    def take(self, text: str | bytes, now: float) -> None:
        """A message that arrived now; `ValueError` where it is none of ours."""
        message = json.loads(text)
        if not isinstance(message, dict):
            raise ValueError("not an object")
        number, sent = int(message["n"]), _numbers(message, "t", 1)[0] / 1000
        rate, position = _numbers(message, "rate", 6), _numbers(message, "p", 3)
        quaternion = _numbers(message, "q", 4)
        size = float(np.linalg.norm(quaternion))
        if not 0.9 < size < 1.1:
            raise ValueError("q is no orientation")
        grip = None if message.get("grip") is None else _numbers(message, "grip", 1)[0]
        events = [Event(name) for name in message.get("press", [])][:8]
        pose = position, Rotation.from_quat(quaternion)
        with self._lock:
            self._quickest = min(self._quickest + CREEP, now - sent)
            if number <= self._number or now - sent - self._quickest > LATE_S:
                self.dropped += 1
                self._pose = None  # the way up to the next message is not made
                self.events += events
                return
            self._number = number
            held = bool(message.get("on"))
            if held and self._held and self._pose is not None and now - self._time < GAP_S:
                self._add(self._pose, pose)
            self._pose = pose if held else None
            self._held, self._time = held, now
            self._rate, self._grip = np.clip(rate, -1, 1), grip
            self.events += events

    def _add(self, before: tuple[np.ndarray, Rotation], after: tuple[np.ndarray, Rotation]) -> None:
        moved, turned = after[0] - before[0], (after[1] * before[1].inv()).as_rotvec()
        if np.linalg.norm(moved) > LEAP[0] or np.linalg.norm(turned) > LEAP[1]:
            self.dropped += 1
            return
        self._way += np.concatenate([moved, turned])

    def take_events(self) -> list[Event]:
        """What was pressed since the last call."""
        with self._lock:
            events, self.events = self.events, []
        return events

    def motion(self) -> Motion:
        """What the hand wants, and its way since the last call."""
        with self._lock:
            way, self._way = self._way, np.zeros(6)
            return Motion(self._rate.copy(), way, self._grip, held=self._held, time=self._time)


def _numbers(message: dict[str, Any], key: str, count: int) -> np.ndarray:
    value = np.asarray(message[key], np.float64).reshape(-1)
    if value.shape != (count,) or not np.isfinite(value).all() or np.abs(value).max() > 1e15:
        raise ValueError(f"{key} is not {count} finite numbers")
    return value
