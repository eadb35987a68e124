"""Planning while the last chunk plays: `act` hands out the next action at once, whatever the policy is doing.

    tick        0    1    2    3    4    5    6    7
    chunk A    a0   a1   a2   a3 | a4   a5   ...              planned from what was seen at tick 0
    planning             [------------]                       from what was seen at tick 2
    chunk B              b0   b1   b2 | b3   b4   ...         b0 .. b2 are stale when it arrives: dropped

Every chunk starts at the capture time of the observation it was planned from, so an action is carried out at the
time it was meant for or not at all. A policy that can continue a prefix (flow heads) is told which actions of the old
chunk will have been carried out by the time it is done (real-time chunking, Black, Galliker, Levine 2025,
arXiv:2506.07339), and the new chunk goes on from there without a jump. When the next chunk is late the arm holds, or
plays what is left more slowly.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from vla_agents.agent import Agent, Observation, batch_size, check_observation
from vla_agents.base_agent import Plans
from vla_agents.chunking import ActionUnits
from vla_agents.errors import ActionError, ConfigError, PlanningError, UnknownNameError, VlaAgentsError

LATE = ("hold", "slow")
SLOWEST = 0.25  # of the normal pace
REMEMBERED = 8  # latencies of the last plans; the longest is what the next one is expected to take


class Planner(Plans, Protocol):
    """What an `AsyncAgent` plans with; `PolicyAgent` is one."""

    def plan(self, obs: Observation, prefix: np.ndarray | None = None, committed: int = 0) -> np.ndarray:
        """A chunk (H, D) in the env's units for one observation.

        Args:
            obs: A single one.
            prefix: (P, D): the actions from this observation on that are known already.
            committed: How many of those will be carried out for sure.
        """

    def reset(self, *, seed: int | None = None) -> None:
        """Forget what belongs to the last episode."""

    def close(self) -> None:
        """Release what it holds."""


@dataclass(frozen=True)
class AsyncReport:
    """How the planning kept up since the last reset.

    Args:
        ticks: Calls of `act`.
        idle: How many of them had no action to hand out, and held.
        slow: How many played at less than the normal pace.
        plans: Chunks that arrived.
        dropped: Actions that were stale when their chunk arrived.
        surprises: Chunks that took longer than expected, so that their beginning was not what had been committed.
        latency: Longest time from asking for a chunk to the tick it was used in, in ticks.
    """

    ticks: int = 0
    idle: int = 0
    slow: int = 0
    plans: int = 0
    dropped: int = 0
    surprises: int = 0
    latency: int = 0

    def __add__(self, other: AsyncReport) -> AsyncReport:
        """Of two episodes together."""
        mine, theirs = asdict(self), asdict(other)
        added = {name: value + theirs[name] for name, value in mine.items()}
        return AsyncReport(**added | {"latency": max(self.latency, other.latency)})

    def __str__(self) -> str:
        """One line."""
        line = f"{self.plans} chunks planned, the slowest took {self.latency} ticks; {self.idle} of {self.ticks} ticks idle"
        return f"{line}, {self.slow} slowed down" if self.slow else line


@dataclass(frozen=True)
class _Chunk:
    actions: np.ndarray  # (H, D)
    at: float  # playing time of the observation it was planned from, in ticks


@dataclass(frozen=True)
class _Request:
    future: Future[np.ndarray]
    at: float
    tick: int
    expected: int  # ticks
    follows: bool  # a chunk that is being played
    generation: int


class AsyncAgent(Agent):
    """A planner whose `act` never waits.

    Args:
        planner: Plans chunks; called in a thread, one call at a time.
        execute: How many actions of a chunk to carry out before the next takes over, if that is possible; None: the
            planner's default. Sooner where a chunk would otherwise end before the next is expected.
        when_late: `"hold"`, or `"slow"`: stretch what is left (never below a quarter of the pace), then hold.
        continue_chunks: Real-time chunking; None: where the planner can.
        capture_time: Tells when the observation that `act` is called with was captured, s. None: observations come
            at the embodiment's rate, one per call, as in a simulator.
        hold: Tells the action that leaves the body where it is. None: what the embodiment says (no delta; the
            last action; the measured state).
        executor: Runs the planning; None: a thread of its own.
    """

    def __init__(
        self,
        planner: Planner,
        *,
        execute: int | None = None,
        when_late: str = "hold",
        continue_chunks: bool | None = None,
        capture_time: Callable[[], float] | None = None,
        hold: Callable[[], np.ndarray] | None = None,
        executor: Executor | None = None,
    ) -> None:
        if when_late not in LATE:
            raise UnknownNameError("when_late", when_late, LATE)
        self.execute = planner.default_execute if execute is None else execute
        if not 1 <= self.execute <= planner.horizon:
            raise ConfigError(f"execute={execute} must lie between 1 and the horizon {planner.horizon}")
        if continue_chunks and not planner.continues:
            raise ConfigError(
                "this policy cannot continue a chunk", "use a flow policy, or continue_chunks=False"
            )
        self.planner, self.embodiment = planner, planner.embodiment
        self._slows = when_late == "slow"
        self._continue = planner.continues if continue_chunks is None else continue_chunks
        self._capture_time, self._hold_of_env = capture_time, hold
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="planning")
        self._units = ActionUnits(self.embodiment)
        self._latencies: deque[int] = deque(maxlen=REMEMBERED)
        self._generation = 0
        self._request: _Request | None = None
        self._forget()

    def _forget(self) -> None:
        self._generation += 1
        self._chunk: _Chunk | None = None
        self._playing = 0.0  # playing time, ticks
        self._pace = 1.0  # of the playing since the last call
        self._first = math.nan
        self._tick = 0
        self._last: np.ndarray | None = None
        self._instruction: str | None = None
        self._counts = dict.fromkeys(AsyncReport.__dataclass_fields__, 0)

    # ---- Agent --------------------------------------------------------------------------------------------
    def reset(self, mask: np.ndarray | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        """Drop chunk and plans; a plan under way is ignored when it arrives."""
        self._forget()
        self.planner.reset(seed=int(seed[0]) if isinstance(seed, Sequence) else seed)

    def replan(self, mask: np.ndarray | None = None) -> None:
        """Drop chunk and plans, and hold until there is a new one; the counts go on."""
        self._chunk = None
        self._generation += 1

    def follow(self, obs: Observation, action: np.ndarray) -> None:
        """Somebody else acts with `action` (D,): until there is a new plan, hold that."""
        self._last = np.asarray(action, np.float32)

    def act(self, obs: Observation) -> np.ndarray:
        """The action for now, float32 (D,), at once.

        Raises:
            ObservationError: The observation does not fit.
            PlanningError: Planning failed, since the last call; other errors of this library come as they are.
        """
        if batch_size(obs) is not None:
            raise ConfigError(
                "an asynchronous agent drives one env", "use asynchronous=False for vector envs"
            )
        check_observation(obs, self.embodiment)
        if obs["instruction"] != self._instruction:
            self._instruction, self._chunk = obs["instruction"], None
            self._generation += 1
        self._pass_time()
        self._harvest()
        self._ask(obs)
        if self._chunk is None and self._last is None and not self._can_hold(obs):
            self._wait_for_the_first(obs)
        action = self._next(obs)
        self._last = action
        return action

    def close(self) -> None:
        """End the thread, when the plan under way is done; a planner that can is told to give it up."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self.planner.close()
        self._executor.shutdown(wait=True)

    @property
    def continues_chunks(self) -> bool:
        """Whether a new chunk goes on from what is committed of the old one (real-time chunking)."""
        return self._continue

    def report(self) -> AsyncReport:
        """Numbers since the last reset."""
        return AsyncReport(**self._counts)

    # ---- time ---------------------------------------------------------------------------------------------
    def _pass_time(self) -> None:
        """Ticks since the last call, by capture time; at least one. Playing time stands while there is nothing to play."""
        before = self._tick
        self._tick += 1
        if self._capture_time is not None:
            captured = self._capture_time()
            if math.isnan(self._first):
                self._first = captured
            self._tick = max(self._tick, round((captured - self._first) * self.embodiment.control_hz) + 1)
        if self._chunk is not None:
            end = self._chunk.at + len(self._chunk.actions)
            self._playing = min(self._playing + self._pace * (self._tick - before), end)
        self._counts["ticks"] += 1

    def _left(self) -> float:
        """Ticks after this one that the chunk has actions for; negative where it has none for this one."""
        return -1.0 if self._chunk is None else self._chunk.at + len(self._chunk.actions) - 1 - self._playing

    def _choose_pace(self) -> float:
        """Less than 1 where what is left has to be stretched until the plan under way should be there."""
        request = self._request
        if not self._slows or request is None:
            return 1.0
        missing = request.tick + request.expected - self._tick
        if missing < 1:  # overdue: it may well take as long again as it is overdue
            missing = max(1 - missing, math.ceil(request.expected / 2))
        return min(max((self._left() + 1) / missing, SLOWEST), 1.0)

    # ---- planning -----------------------------------------------------------------------------------------
    def _harvest(self) -> None:
        """Take a plan that is done, unless it belongs to the past."""
        request = self._request
        if request is None or not request.future.done():
            return
        self._request = None
        took = self._tick - request.tick
        if request.generation != self._generation:
            return
        error = request.future.exception()
        if isinstance(error, VlaAgentsError):
            raise error
        if error is not None:
            raise PlanningError(
                f"planning failed: {error!r}", "the arm holds; see the error above"
            ) from error
        actions = np.asarray(request.future.result(), np.float32)
        if actions.ndim != 2 or actions.shape[1] != self.embodiment.action_dim or not len(actions):
            raise ActionError(
                f"the policy planned {actions.shape}, expected (H, {self.embodiment.action_dim})"
            )
        if not np.isfinite(actions).all():
            raise ActionError("the policy planned actions that are not finite", "check the checkpoint")
        self._latencies.append(took)
        self._chunk = _Chunk(actions, request.at)
        self._counts["plans"] += 1
        self._counts["dropped"] += min(math.ceil(self._playing - request.at), len(actions))
        self._counts["surprises"] += request.follows and took > request.expected
        self._counts["latency"] = max(self._counts["latency"], took)

    def _ask(self, obs: Observation) -> None:
        """Ask for a chunk from here on, where it is time to."""
        if self._request is not None:
            return
        expected = max(self._latencies, default=1)
        chunk, prefix, committed = self._chunk, None, 0
        if chunk is not None and self._left() >= 0:
            played = self._playing - chunk.at
            if played < max(self.execute - expected, 1) and self._left() > expected:
                return
            if self._continue:
                prefix = chunk.actions[round(played) :].copy()
                committed = min(expected, len(prefix))
        future = self._executor.submit(self.planner.plan, obs, prefix, committed)
        self._request = _Request(
            future, self._playing, self._tick, expected, chunk is not None, self._generation
        )

    def _wait_for_the_first(self, obs: Observation) -> None:
        """For a body of which nothing tells how it holds: once, before anything has moved."""
        while self._chunk is None:
            self._ask(obs)
            if self._request is not None:
                wait([self._request.future])
            self._harvest()

    # ---- acting -------------------------------------------------------------------------------------------
    def _next(self, obs: Observation) -> np.ndarray:
        if self._chunk is None or self._left() < 0:
            self._counts["idle"] += 1
            return self._hold(obs)
        self._pace = self._choose_pace()
        self._counts["slow"] += self._pace < 1.0
        return self._units.between(self._chunk.actions, self._playing - self._chunk.at, self._pace)

    def _can_hold(self, obs: Observation) -> bool:
        return self._hold_of_env is not None or self._units.hold(None, obs.get("state")) is not None

    def _hold(self, obs: Observation) -> np.ndarray:
        if self._hold_of_env is not None:
            return np.asarray(self._hold_of_env(), np.float32)
        held = self._units.hold(self._last, obs.get("state"))
        assert held is not None
        return held


def asynchronous_for(planner: Planner, env: Any = None, **options: Any) -> AsyncAgent:
    """An asynchronous agent that takes from the env what it can tell: capture times, and how to hold.

    Args:
        planner: Plans chunks.
        env: A `RobotEnv`, maybe wrapped; another env, or None.
        **options: Of `AsyncAgent`; None means not given.
    """
    if hasattr(env, "num_envs"):
        raise ConfigError("an asynchronous agent drives one env", "use asynchronous=False for vector envs")
    base: Any = getattr(env, "unwrapped", None)
    if hasattr(base, "capture_time"):
        options.setdefault("capture_time", lambda: base.capture_time)
    if hasattr(base, "hold_action"):
        options.setdefault("hold", base.hold_action)
    return AsyncAgent(planner, **{key: value for key, value in options.items() if value is not None})
