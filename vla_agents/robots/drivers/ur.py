"""Universal Robots (CB3 from 3.10, e-Series): joint positions over RTDE, followed by a small script in the controller.

The script (`ur.script`) runs `servoj` at the controller's own rate towards the newest target. It stops the arm by itself
when no command has come for `limits.watchdog`, and takes up again only from where the arm stands.

**Stopping.** `stop` and the watchdog decelerate and hold; `close` decelerates and ends the script, the arm holds itself.
A protective or emergency stop of the robot is an error that only the pendant takes back. **Before the first run**: remote
control must be on (e-Series), power on, brakes released, and the safety limits of the installation set for the place.

Efforts are joint currents in A, the gripper's too.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, MotorError, RobotError, RobotStateError, UnknownNameError
from vla_agents.robots.buses.robotiq import RobotiqGripper
from vla_agents.robots.buses.rtde import RtdeClient, open_tcp
from vla_agents.robots.limits import Axis, Limits
from vla_agents.robots.robot import CameraSource, Reading, Robot, check_target

JOINTS = ("base", "shoulder", "elbow", "wrist_1", "wrist_2", "wrist_3")
HOME = (0.0, -math.pi / 2, 0.0, -math.pi / 2, 0.0, 0.0)  # straight up
HZ = 125.0
RUNNING = 7  # robot_mode
SAFE = {1: "normal", 2: "reduced"}
STOPS = {
    3: "a protective stop", 4: "recovery mode", 5: "a safeguard stop", 6: "an emergency stop of the system",
    7: "an emergency stop", 8: "a safety violation", 9: "a fault",
}  # fmt: skip
WAIT, FOLLOW = 0, 1  # and the number of the run: end; an end of an earlier run is none of this one
START_S = 3.0  # how long the script may take to start
NEAR = 0.05  # rad: an arm that was stopped follows again only from where it stands
_OUTPUTS = (
    "timestamp", "actual_q", "actual_current", "robot_mode", "safety_mode", "output_int_register_24",
    "output_int_register_25",
)  # fmt: skip
_GOALS = tuple(f"input_double_register_{24 + k}" for k in range(6))


class UR(Robot):
    """A UR arm, with a Robotiq gripper if it has one.

    Args:
        host: Address of the controller.
        gripper: `"robotiq"`, or empty for none.
        limits: Joint -> (low, high) in rad, narrower than -2 pi to 2 pi, e.g. `{"shoulder": (-3.2, 0.0)}`.
        home: Where episodes start, rad, six joints; straight up by default.
        velocity: Of every joint, rad / s.
        acceleration: Of every joint, rad / s².
        control_hz: Actions per second.
        lookahead_s: How much `servoj` smooths, 0.03 to 0.2 s.
        gain: How hard `servoj` follows, 100 to 2000.
        deceleration: Of stops by the controller, rad / s².
        timeout_s: How long `observe` waits for data.
        rtde_port, script_port, gripper_port: Where the controller listens.
    """

    cameras: Sequence[CameraSource] = ()

    def __init__(
        self,
        host: str,
        *,
        gripper: str = "",
        limits: Mapping[str, Sequence[float]] | None = None,
        home: Sequence[float] = HOME,
        velocity: float = 1.0,
        acceleration: float = 4.0,
        control_hz: float = 30.0,
        lookahead_s: float = 0.1,
        gain: float = 300.0,
        deceleration: float = 4.0,
        timeout_s: float = 0.05,
        rtde_port: int = 30004,
        script_port: int = 30002,
        gripper_port: int = 63352,
    ) -> None:
        if gripper not in ("", "robotiq"):
            raise UnknownNameError("gripper", gripper, ("robotiq",))
        if len(home) != len(JOINTS):
            raise ConfigError(f"home has {len(home)} values, a UR has {len(JOINTS)} joints")
        if not (0.03 <= lookahead_s <= 0.2 and 100 <= gain <= 2000 and deceleration > 0):
            raise ConfigError(
                f"lookahead_s {lookahead_s}, gain {gain} or deceleration {deceleration} is out of range"
            )
        self.host, self.timeout_s, self._script_port = host, timeout_s, script_port
        self._script = {"LOOKAHEAD": lookahead_s, "GAIN": gain, "DECELERATION": deceleration}
        ranges = dict(limits or {})
        for name in ranges:
            if name not in JOINTS:
                raise UnknownNameError("joint", name, JOINTS)
        axes = []
        for name, rest in zip(JOINTS, home, strict=True):
            low, high = ranges.get(name, (-2 * math.pi, 2 * math.pi))
            axes.append(Axis(name, low, high, velocity, acceleration, float(rest)))
        if gripper:
            axes.append(Axis("gripper", 0.0, 1.0, 2.0, 20.0, 1.0, "", "gripper_open_01", resolution=1 / 255))
        self.limits = Limits(axes=tuple(axes))
        self.embodiment: Embodiment = self.limits.embodiment("ur", control_hz)
        self.gripper = RobotiqGripper(host, gripper_port) if gripper else None
        self._client = RtdeClient(host, rtde_port)
        self._connected = False
        self._number = self._beat = self._run = 0
        self._q = np.zeros(6)
        self._struck = False

    # ---- Robot --------------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """Connect, check that the arm is ready, start the script. Nothing moves. See `Robot.connect`."""
        if self._connected:
            raise RobotStateError(f"the UR at {self.host} is connected already")
        self._client.connect()
        try:
            inputs = ("input_int_register_24", "input_int_register_25", *_GOALS)
            self._client.start(_OUTPUTS, inputs, HZ)
            state, _, self._number = self._client.state(0, 2.0)
            self._require_ready(state)
            self._q = np.array(state["actual_q"])
            self._send(WAIT, self._q)
            if self.gripper is not None:
                self.gripper.connect()
            self._start_script()
        except BaseException:
            self._hang_up()
            raise
        self._connected, self._struck = True, False

    def observe(self) -> Reading:
        """The next package of the controller. See `Robot.observe`."""
        self._require_connected()
        state, captured, self._number = self._client.state(self._number, self.timeout_s)
        self._require_ready(state)
        if state["output_int_register_25"] != self._run or state["output_int_register_24"] == 0:
            raise MotorError(
                f"the control script at {self.host} has ended",
                "another program was started, or somebody stopped it at the pendant; close and connect again",
            )
        self._struck = state["output_int_register_24"] == 2
        self._q = np.array(state["actual_q"])
        position, current = self._q, np.array(state["actual_current"])
        if self.gripper is not None:
            opening, effort, _ = self.gripper.read()
            position, current = np.append(position, opening), np.append(current, effort)
        return Reading(position, captured, effort=current)

    def command(self, target: np.ndarray) -> np.ndarray:
        """Set the target that the script follows. See `Robot.command`."""
        self._require_connected()
        values = check_target(target, self.limits)
        if self._struck:
            away = float(np.abs(values[:6] - self._q).max())
            if away > NEAR:
                raise MotorError(
                    f"no command reached the arm for {self.limits.watchdog:g} s: it stopped, {away:.2f} rad away",
                    "clear the stop: the arm then starts from where it stands",
                )
            self._send(WAIT, self._q)
            if self._client.wait(lambda state: state["output_int_register_24"] == 1, self.timeout_s) is None:
                raise MotorError(
                    f"the control script at {self.host} does not take up again", "close and connect again"
                )
            self._struck = False
        self._send(FOLLOW, values[:6])
        sent = values.copy()
        if self.gripper is not None:
            sent[6] = self.gripper.move(values[6])
        return sent

    def stop(self) -> None:
        """Let the script decelerate. See `Robot.stop`."""
        self._require_connected()
        self._send(WAIT, self._q)

    def close(self) -> None:
        """Decelerate, end the script, hang up; the arm holds itself. See `Robot.close`."""
        if self._connected:
            self._connected = False
            try:
                self._send(self._run, self._q)
                self._client.wait(lambda state: state["output_int_register_24"] == 0, 1.0)
            except RobotError:
                pass  # the script stops the arm by itself when nothing comes any more
        self._hang_up()

    # ---- inside -------------------------------------------------------------------------------------------------
    def _hang_up(self) -> None:
        self._client.close()
        if self.gripper is not None:
            self.gripper.close()

    def _require_connected(self) -> None:
        if not self._connected:
            raise RobotStateError(f"the UR at {self.host} is not connected", "call connect() first")

    def _require_ready(self, state: Mapping[str, Any]) -> None:
        if state["safety_mode"] not in SAFE:
            stop = STOPS.get(state["safety_mode"], f"safety mode {state['safety_mode']}")
            raise MotorError(
                f"the UR at {self.host} is in {stop}", "look why, and take it back at the pendant"
            )
        if state["robot_mode"] != RUNNING:
            raise MotorError(
                f"the UR at {self.host} is not running", "switch it on and release the brakes at the pendant"
            )

    def _send(self, mode: int, q: np.ndarray) -> None:
        self._beat = (self._beat + 1) % (1 << 30)
        goals = dict(zip(_GOALS, map(float, q), strict=True))
        self._client.send({"input_int_register_24": mode, "input_int_register_25": self._beat, **goals})

    def _start_script(self) -> None:
        self._run = secrets.randbelow(1 << 30) + 1000
        text = Path(__file__).with_name("ur.script").read_text(encoding="utf-8")
        for word, value in {**self._script, "RUN": self._run, "WATCHDOG": self.limits.watchdog}.items():
            text = text.replace(f"@{word}@", f"{value}")
        with open_tcp(self.host, self._script_port, 3.0) as connection:
            connection.sendall(text.encode())
            started = self._client.wait(lambda state: state["output_int_register_25"] == self._run, START_S)
        if started is None:
            raise RobotError(
                f"the UR at {self.host} did not start the control script",
                "switch remote control on at the pendant (e-Series: top right), and end other programs",
            )
