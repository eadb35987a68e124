"""A robot as a `gymnasium.Env`: `reset` drives home, `step` moves for one period of the agent's rate.

    agent -> action -> ActionMap -> ControlLoop (thread, control rate: interpolation, safety filter) -> robot

The env owns no way around the loop. The agent's period is `divide` periods of the control loop; `step` returns
when they are over, with what was measured then. An agent that takes longer than its period misses ticks, which
are counted; the arm reaches the last target meanwhile and holds.
"""

from __future__ import annotations

import dataclasses
import math
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from vla_agents.errors import ActionError, CameraError, ConfigError, RobotError, RobotStateError
from vla_agents.robots.actions import ActionMap, Direct, check_action
from vla_agents.robots.camera_set import CameraSet
from vla_agents.robots.driving import drive
from vla_agents.robots.estop import EStop
from vla_agents.robots.limits import Limits, check_tighter
from vla_agents.robots.loop import ControlLoop
from vla_agents.robots.loop_tools import Now
from vla_agents.robots.robot import CameraSource, Reading, Robot
from vla_agents.robots.scene import Scene
from vla_agents.robots.shutdown import stop_on_signals
from vla_agents.robots.timing import RateReport

Observation = dict[str, Any]
USUAL_RATE = 50.0  # Hz: where nothing else is said, the loop runs at the agent's rate times what leads here


class RobotEnv(gymnasium.Env[Observation, np.ndarray]):
    """A robot, its cameras and its control loop.

    Args:
        robot: A `Robot`, or the name of one (`vla_agents.robots.ROBOTS`) that is made from `robot_args`.
        robot_args: See there.
        cameras: Cameras beside the robot's own.
        instruction: The task; `reset(options={"instruction": ...})` and the scene's come before it.
        hz: Actions per second; by default the embodiment's.
        divide: Control periods per action; by default so many that the loop runs at 50 Hz or more.
        actions: What actions mean; by default they are the targets of the axes.
        limits: To keep to, where they shall be tighter than the robot's own.
        scene: Is put in order at each reset, and judges; `Operator()` asks a person.
        home: Whether a reset drives home first.
        estop: An emergency stop to obey, maybe shared with other robots.
        max_steps: Steps after which an episode is truncated.
        camera_timeout: A picture older than this, s, stops the arm, and after as long again is an error.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        robot: Robot | str,
        *,
        robot_args: dict[str, Any] | None = None,
        cameras: Sequence[CameraSource] = (),
        instruction: str = "",
        hz: float | None = None,
        divide: int | None = None,
        actions: ActionMap | None = None,
        limits: Limits | None = None,
        scene: Scene | None = None,
        home: bool = True,
        estop: EStop | None = None,
        max_steps: int | None = None,
        camera_timeout: float = 0.5,
    ) -> None:
        self.robot = _robot(robot, robot_args)
        self._cameras = CameraSet((*self.robot.cameras, *cameras), camera_timeout)
        self._actions = actions or Direct(self.robot.embodiment.action)
        self.embodiment = dataclasses.replace(
            self.robot.embodiment,
            action=self._actions.parts,
            cameras=self._cameras.cameras,
            control_hz=hz or self.robot.embodiment.control_hz,
        )
        rate = self.embodiment.control_hz
        self._divide = divide or max(1, math.ceil(USUAL_RATE / rate))
        if (max_steps is not None and max_steps < 1) or self._divide < 1 or camera_timeout <= 0:
            raise ConfigError(
                f"max_steps={max_steps}, divide={divide}, camera_timeout={camera_timeout}: below 1, or 0"
            )
        self.observation_space = self.embodiment.observation_space()
        self.action_space = self.embodiment.action_space()
        self.metadata = {**self.metadata, "render_fps": rate}
        self._limits = limits or self.robot.limits
        check_tighter(self._limits, self.robot.limits)
        self.estop = estop or EStop()
        self._scene, self._instruction, self._said = scene, instruction, instruction
        self._max_steps, self._home = max_steps, home
        self._loop: ControlLoop | None = None
        self._finalizer: weakref.finalize | None = None
        self._due = self._steps = self._missed = 0
        self._ready = False
        self._before: Counter[str] = Counter()
        self._seen: Reading | None = None
        self._pictures: dict[str, float] = {}

    # ---- Gymnasium ----------------------------------------------------------------------------------------
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Connect (the first time), drive home, put the scene in order.

        Args:
            seed: Handed to the scene.
            options: `"instruction"`: the task of this episode. Everything else is handed to the scene.

        Raises:
            RobotError: What the driver says; the stop is latched; home cannot be reached.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        loop = self._connected()
        self._ready = False
        if self._home:
            self.go_home()
        info: dict[str, Any] = {}
        if self._scene is not None:
            info = dict(self._scene.reset(seed, options))
        self._said = str(info.get("instruction") or options.get("instruction") or self._instruction)
        now = loop.wait(loop.now.number + 1)
        self._due, self._steps, self._missed = now.number, 0, 0
        self._before = Counter(now.counts)
        self._ready = True
        return self._observe(now), info | self._info(now, Counter(), None)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move for one period of the agent's rate.

        Raises:
            ActionError: Wrong shape, or not finite; the arm holds.
            EmergencyStopError: The stop is latched.
            RobotError: The robot or a camera has failed; the arm holds.
        """
        if not self._ready or self._loop is None or self._seen is None:
            raise RobotStateError("the episode has not been started", "call env.reset() first")
        loop = self._loop
        asked = self._checked(action)
        late = max(loop.now.number - self._due, 0)
        missed, late = divmod(late, self._divide)
        self._missed += missed
        self._due += missed * self._divide
        reading = self._seen
        self._hold_if_blind(loop)
        loop.aim(self._actions.target(asked, reading), self._divide - late if self._divide > 1 else 0)
        self._due += self._divide
        now = loop.wait(self._due, timeout=1.0 + 2 * self._divide * loop.period)
        self._steps += 1
        found = Counter(now.counts)
        found.subtract(self._before)
        self._before = Counter(now.counts)
        sent = None if now.command is None else self._actions.action(now.command, reading, asked)
        info = self._info(now, +found, asked if sent is None or _close(sent, asked) else sent)
        judged = {} if self._scene is None else self._scene.judge()
        success = bool(judged.get("success", False))
        truncated = self._max_steps is not None and self._steps >= self._max_steps
        terminated = success or bool(judged.get("wrong", False))
        if terminated or truncated:
            loop.aim(None)  # the episode is over: hold, and expect no more actions
        return self._observe(now), float(success), terminated, truncated, judged | info

    def close(self) -> None:
        """Brake, hold, close robot and cameras. May be called twice."""
        self._ready = False
        if self._finalizer is not None:
            self._finalizer()
        self._loop = None

    # ---- beyond Gymnasium ---------------------------------------------------------------------------------
    def connect(self) -> None:
        """Open cameras and robot, and hold; `reset` does it where it has not been done. Nothing moves.

        Raises:
            RobotError: What driver and cameras say.
        """
        self._connected()

    @property
    def capture_time(self) -> float:
        """Monotonic time at which the state of the last observation was measured, s."""
        return -math.inf if self._seen is None else self._seen.time

    def hold_action(self) -> np.ndarray:
        """The action that leaves the arm where it was last told to be, float32 (D,)."""
        now = None if self._loop is None else self._loop.now
        if now is None or now.command is None:
            raise RobotStateError("the robot is not connected", "call env.reset() first")
        return np.asarray(self._actions.hold(now.command), np.float32)

    def look(self) -> Observation:
        """What is seen and measured now, while the arm holds (between episodes). Not part of an episode."""
        seen, pictures = self._seen, dict(self._pictures)
        try:
            return self._observe(self._connected().now)
        finally:
            self._seen, self._pictures = seen, pictures

    def stop(self, reason: str = "stop() was called") -> None:
        """Latch the stop; from any thread."""
        if self._loop is not None:
            self._loop.stop(reason)

    def clear(self) -> None:
        """Take the stop back. Nothing moves until `reset`."""
        self._ready = False
        if self._loop is not None:
            self._loop.clear()

    def rate(self) -> RateReport:
        """How well the control rate was kept since the robot was connected."""
        if self._loop is None:
            raise RobotStateError("the robot is not connected", "call env.reset() first")
        return self._loop.report()

    def go_home(self) -> None:
        """Drive the robot's way home, within its limits.

        Raises:
            RobotError: It does not get there.
        """
        loop = self._connected()
        command = loop.now.command
        *passing, home = self.robot.home(loop.limits.home if command is None else command)
        for target in passing:
            self.go(target, tolerance=1.0)
        self.go(home)

    def go(self, target: np.ndarray, tolerance: float = 0.02) -> None:
        """Drive the axes to a target (J,) and wait until they are there.

        Args:
            target: In the axes' units.
            tolerance: Of the measured position, share of each axis' range; 1 to look at the commands alone.

        Raises:
            RobotError: Not reached in three times the time it should take.
        """
        drive(self._connected(), target, tolerance)

    # ---- inside -------------------------------------------------------------------------------------------
    def _connected(self) -> ControlLoop:
        if self._loop is None:
            loop = ControlLoop(
                self.robot, self.embodiment.control_hz * self._divide, limits=self._limits, estop=self.estop
            )
            self._cameras.connect()
            try:
                loop.connect()
            except BaseException:
                self._cameras.close()
                raise
            # Runs when this env is closed, collected as garbage, or still there when the program ends.
            self._finalizer = weakref.finalize(self, _shut_down, loop, self._cameras)
            stop_on_signals(loop)
            self._loop = loop
        self._loop.check()
        return self._loop

    def _checked(self, action: Any) -> np.ndarray:
        assert self._loop is not None
        try:
            return check_action(action, self.embodiment.action_dim)
        except ActionError:
            self._loop.aim(None)
            raise

    def _hold_if_blind(self, loop: ControlLoop) -> None:
        """Wait for the pictures as long as they are old; the arm holds meanwhile."""
        until = time.monotonic() + self._cameras.timeout
        while old := self._cameras.old():
            loop.aim(None)
            if time.monotonic() > until:
                raise CameraError(
                    f"no new picture from {', '.join(old)} for {2 * self._cameras.timeout:g} s",
                    "check the cable; the arm holds",
                )
            loop.wait(loop.now.number + 1)
            self._due = max(self._due, loop.now.number)

    def _observe(self, now: Now) -> Observation:
        if now.reading is None:
            raise RobotError("the robot has not been read")
        self._seen = now.reading
        images, self._pictures = self._cameras.pictures()
        observation: Observation = {"images": images} if images else {}
        if self.embodiment.state:
            state = now.reading.position if now.reading.state is None else now.reading.state
            space = self.observation_space["state"]  # type: ignore[index]
            observation["state"] = np.clip(state.astype(np.float32), space.low, space.high)
        return observation | {"instruction": self._said}

    def _info(self, now: Now, found: Counter[str], sent: np.ndarray | None) -> dict[str, Any]:
        times = {"state": -math.inf if now.reading is None else now.reading.time, **self._pictures}
        return {
            "sent": self.hold_action() if sent is None else np.asarray(sent, np.float32),
            "command": now.command,
            "safety_state": now.state,
            "interventions": dict(found),
            "limited": bool(found),
            "missed_ticks": self._missed,
            "capture_times": times,
        }


def _robot(robot: Robot | str, options: dict[str, Any] | None) -> Robot:
    if isinstance(robot, str):
        from vla_agents.robots import make_robot

        return make_robot(robot, **(options or {}))
    if options:
        raise ConfigError("robot_args belong to a robot that is named", "make the robot with them")
    return robot


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-5))


def _shut_down(loop: ControlLoop, cameras: CameraSet) -> None:
    loop.close()
    cameras.close()
