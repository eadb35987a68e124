"""A person at a recording: an env wrapper that waits before episodes and ends them when a key says so.

    rollout(Operated(env, session), agent, seeds, [Recorder(writer)])

    reset   the env's own, then: put the objects back, Enter or the time is up, 3, 2, 1
    step    the env's own at its rate, then: what was pressed. Save, success, failure, discard and redo end the episode;
            pause holds the arm and lets nothing be recorded until it is pressed again; quit ends everything.

The session holds what the views show (`live.screen`, `live.web`). They read it from threads of their own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from vla_agents.agent import Agent
from vla_agents.collect.keys import KeyInbox, events_of
from vla_agents.collect.live.meters import Meters
from vla_agents.collect.teleop import Device, Event
from vla_agents.embodiment import embodiment_of
from vla_agents.observations import Observation
from vla_agents.robots.env import RobotEnv
from vla_agents.robots.timing import Ticker

POLL_S = 0.02
HOMING, WAITING, COUNTDOWN, RECORDING, PAUSED, TYPING = (
    "getting ready", "put the objects back", "get ready", "recording", "paused", "type the task",
)  # fmt: skip


class Quit(KeyboardInterrupt):
    """The operator ends the recording; the open episode is dropped, as by Ctrl-C."""


class Session:
    """What the operator wants, and what is shown to him.

    Args:
        hz: Rate of the env.
        keys: Where his keys arrive; None where there is no terminal.
        device: His device, whose own buttons count as well.
        instructions: Tasks, one per saved episode in turn; none: the env's own, or what is typed.
        ask: Have the task typed before the first episode.
        reset_time: Seconds to put the objects back, which Enter cuts short; below 0: until Enter is pressed.
        countdown: Seconds that are counted down before an episode.
        saved: Tells how many episodes are saved.
        bell: Called where something begins or ends.
        clock, sleep: Of time.

    Attributes:
        phase: One of the words above.
        left: Seconds until the episode begins; below 0 where it waits for a key.
        images: The newest pictures.
        messages: What was said lately.
        typed: What has been typed of the task.
    """

    def __init__(
        self,
        hz: float,
        *,
        keys: KeyInbox | None = None,
        device: Device | None = None,
        instructions: Sequence[str] = (),
        ask: bool = False,
        reset_time: float = 0.0,
        countdown: float = 0.0,
        saved: Callable[[], int] = lambda: 0,
        bell: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.device = device
        self._agent: Agent | None = None
        self._keys, self._instructions, self._ask = keys, tuple(instructions), ask
        self._reset_time, self._countdown, self._saved, self.bell = reset_time, countdown, saved, bell
        self.clock, self.sleep = clock, sleep
        self.meters = Meters(hz, clock)
        self.phase, self.left, self.typed, self.instruction = HOMING, 0.0, "", ""
        self.images: dict[str, np.ndarray] = {}
        self.messages: deque[str] = deque(maxlen=4)
        self.redo = False  # the last episode is to be played once more
        self._chosen = ""  # typed

    def drives(self, agent: Agent) -> None:
        """Who acts; told so that plans from before a pause are dropped."""
        self._agent = agent

    @property
    def driver(self) -> str:
        """Who drives now, for the views."""
        name = "" if self.device is None else self.device.name
        if self._agent is None or self._agent is self.device:
            return name
        return f"you drive ({name})" if self._agent.intervened else "the policy drives"

    def say(self, text: str) -> None:
        """Show a line."""
        self.messages.append(text)

    def take_events(self) -> tuple[list[Event], list[str]]:
        """What was pressed since the last call: events of device and keys, and the keys."""
        keys = [] if self._keys is None else self._keys.take()
        events = [] if self.device is None else self.device.events()
        return [*events, *events_of(keys)], keys

    def take_redo(self) -> bool:
        """Whether the last episode is to be played once more; asked once."""
        redo, self.redo = self.redo, False
        return redo

    # ---- before an episode ---------------------------------------------------------------------------------
    def planned(self, envs: str) -> str:
        """The task of the coming episode."""
        if self._chosen:
            return self._chosen
        return self._instructions[self._saved() % len(self._instructions)] if self._instructions else envs

    def prepare(self, look: Callable[[], Observation], envs: str) -> bool:
        """Wait until the episode may begin; returns whether any time has passed.

        Args:
            look: What the cameras see now.
            envs: The env's own task.

        Raises:
            Quit: Instead.
        """
        self.instruction = self.planned(envs)
        self.take_events()  # what was pressed before
        started = self.clock()
        if self._ask and not self._chosen and self._keys is not None:
            self._type(look)
        if self._reset_time:
            self._wait(WAITING, self._reset_time, look)
        if self._countdown > 0:
            self._wait(COUNTDOWN, self._countdown, look)
        return self.clock() > started

    def _wait(self, phase: str, seconds: float, look: Callable[[], Observation]) -> None:
        until = self.clock() + seconds if seconds >= 0 else np.inf
        self.phase, whole = phase, 0
        while (left := until - self.clock()) > 0:
            self.left = left if np.isfinite(left) else -1.0
            if phase == COUNTDOWN and int(np.ceil(left)) != whole:
                whole = int(np.ceil(left))
                self.bell()
            self.images = look().get("images", {})
            events, keys = self.take_events()
            if Event.QUIT in events:
                raise Quit
            if Event.SAVE in events or Event.SUCCESS in events:  # Enter, or the button of a device
                return
            if phase == WAITING and "t" in keys and self._keys is not None:
                self._type(look)
                self.phase = phase
            self.sleep(POLL_S)

    def _type(self, look: Callable[[], Observation]) -> None:
        """Let the task be typed; Enter alone keeps the present one."""
        assert self._keys is not None
        self.phase, self.typed = TYPING, ""
        while True:
            self.images = look().get("images", {})
            for key in self._keys.take():
                if key == "enter":
                    self._chosen = self.instruction = self.typed.strip() or self.instruction
                    return
                if key == "escape":
                    raise Quit
                if key == "backspace":
                    self.typed = self.typed[:-1]
                else:
                    self.typed += " " if key == "space" else key if len(key) == 1 else ""
            self.sleep(POLL_S)

    # ---- during an episode ---------------------------------------------------------------------------------
    def switch(self) -> None:
        """The person takes over, or gives back."""
        device = self.device
        if device is None or not device.switched or self._agent is device:
            return
        device.engaged = not device.engaged

    def replan(self) -> None:
        """What was planned before a pause is over."""
        if self._agent is not None:
            self._agent.replan()


class Operated(gymnasium.Wrapper):
    """An env whose episodes a person begins and ends.

    Args:
        env: A single env. One that drives a robot keeps its rate itself.
        session: The person's wishes.
        paced: Whether a simulated env is kept at its rate.
        open_ended: A person decides when an episode is over; the step limit of the env does not count.
    """

    def __init__(
        self, env: gymnasium.Env, session: Session, *, paced: bool = True, open_ended: bool = False
    ) -> None:
        super().__init__(env)
        self.session = session
        self._real = isinstance(env.unwrapped, RobotEnv)
        self._hz = embodiment_of(env).control_hz
        self._paced, self._open_ended = paced and not self._real, open_ended
        self._ticker: Ticker | None = None
        self._obs: Observation = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Reset, let the person get ready, and begin."""
        session = self.session
        session.phase = HOMING
        obs, info = self.env.reset(seed=seed, options=options)
        self._obs = obs
        waited = session.prepare(self._look, str(obs.get("instruction", "")))
        if self._real and waited:  # what was seen before is old
            obs, info = self.env.reset(seed=seed, options=options)
        session.phase = RECORDING
        session.meters.begin(info)
        session.bell()
        if self._paced:
            self._ticker = Ticker(self._hz, session.clock, session.sleep)
            self._ticker.wait()
        return self._told(obs), info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Step at the env's rate, then see what was pressed."""
        session = self.session
        if self._ticker is not None:
            self._ticker.wait()
        obs, reward, terminated, truncated, info = self.env.step(action)
        truncated = truncated and not self._open_ended
        session.meters.step(info, 0 if self._ticker is None else self._ticker.missed)
        info = dict(info)
        events, _ = session.take_events()
        for event in events:
            if event is Event.PAUSE and not (terminated or truncated):
                obs, event = self._pause(obs)
            if event is Event.QUIT:
                raise Quit
            if event is Event.TAKEOVER:
                session.switch()
            elif event in (Event.SUCCESS, Event.FAILURE):
                terminated, info["success"] = True, event is Event.SUCCESS
            elif event in (Event.SAVE, Event.DISCARD, Event.REDO):
                truncated = True
                info["discarded"] = event is not Event.SAVE
                session.redo = event is Event.REDO
            if terminated or truncated:
                info["ended_by"] = str(event)
                break
        if terminated or truncated:
            session.bell()
        return self._told(obs), float(reward), terminated, truncated, info

    def _pause(self, obs: Observation) -> tuple[Observation, Event]:
        """Hold until pause is pressed again, or the episode is ended; returns what is seen then, and what was pressed."""
        session = self.session
        session.phase = PAUSED
        while True:
            if self._real:
                robot: Any = self.env.unwrapped
                obs, *_ = self.env.step(robot.hold_action())
                self._obs = obs
                session.images = obs.get("images", {})
            else:
                session.sleep(POLL_S)
            for event in session.take_events()[0]:
                if event is not Event.TAKEOVER:
                    session.phase = RECORDING
                    session.replan()
                    if self._paced:
                        self._ticker = Ticker(self._hz, session.clock, session.sleep)
                    return obs, event
                session.switch()

    def _look(self) -> Observation:
        base: Any = self.env.unwrapped
        return base.look() if self._real else self._obs

    def _told(self, obs: Observation) -> Observation:
        """With the operator's task."""
        self._obs = obs
        self.session.images = obs.get("images", {})
        return {**obs, "instruction": self.session.instruction or obs.get("instruction", "")}
