"""What arms made of bus servos have in common: checks before anything moves, one question and one order per tick.

**Stopping.** The servos hold their last goal by themselves, also when this program dies. `stop` makes the measured
position the goal. `close` lets the arm sink: the motors grow weak over a second, then torque is off
(`on_close="release"`), or leaves it held (`on_close="hold"`, the motors stay warm and nobody watches them).
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_agents.embodiment import Embodiment
from vla_agents.errors import (
    CalibrationError,
    CommunicationError,
    ConfigError,
    MotorError,
    MotorSilentError,
    RobotError,
    RobotStateError,
)
from vla_agents.robots.buses.bus import ServoBus
from vla_agents.robots.buses.line import SerialLine, port_info
from vla_agents.robots.drivers.calibration import Calibration, MotorCalibration, calibration_path
from vla_agents.robots.drivers.joints import Joint, Scale, make_axes, motors_of
from vla_agents.robots.limits import Limits
from vla_agents.robots.robot import CameraSource, Reading, Robot, check_target

logger = logging.getLogger(__name__)
OUTSIDE = 128  # counts (11 degrees) that an arm may stand outside its calibrated range when it is switched on
SHADOW = 64  # counts (6 degrees) that two motors on one shaft may stand apart
SINK_S = 1.0  # how long a released arm takes to grow weak


class ServoArm(Robot):
    """An arm of servos on one serial bus.

    Args:
        port: e.g. `/dev/ttyACM0`.
        name: What this arm is called; its calibration is kept under this name. Empty: the kind of arm.
        calibration: File to use instead (ours or LeRobot's), or a `Calibration`.
        units: `"rad"`, or LeRobot's numbers: `"deg"`, `"pm100"` (see `joints.UNITS`).
        home: Joint -> where episodes start, in those units.
        effort: Joint -> largest effort; none where not named. The unit is the driver's.
        speed: Factor on the velocity and acceleration limits, above 0.
        control_hz: Actions per second.
        passive: Torque stays off: a leader arm that is led by hand. `command` is refused.
        on_close: `"release"` lets the arm sink, `"hold"` leaves it held.
        baud: Bits per second.
        timeout_s: How long an answer may take.
        retries: How often to ask again within one `observe`.
    """

    kind: str
    joints: tuple[Joint, ...]
    baud = 1_000_000
    cameras: Sequence[CameraSource] = ()

    def __init__(
        self,
        port: str,
        *,
        name: str = "",
        calibration: str | Path | Calibration = "",
        units: str = "rad",
        home: dict[str, float] | None = None,
        effort: dict[str, float] | None = None,
        speed: float = 1.0,
        control_hz: float = 30.0,
        passive: bool = False,
        on_close: str = "release",
        baud: int = 0,
        timeout_s: float = 0.01,
        retries: int = 2,
    ) -> None:
        if on_close not in ("release", "hold"):
            raise ConfigError(f"on_close is {on_close!r}", "it is 'release' or 'hold'")
        self.port, self.name, self.passive, self.on_close = port, name or self.kind, passive, on_close
        self.baud, self.timeout_s, self.retries = baud or self.baud, timeout_s, retries
        file = calibration or calibration_path(self.name)
        self.calibration = file if isinstance(file, Calibration) else Calibration.load(file)
        where = "given" if isinstance(file, Calibration) else str(file)
        self.calibration.require(self.kind, motors_of(self.joints), where)
        self._where = where
        self.scale = Scale(self.joints, self.calibration, units)
        limits = Limits(axes=make_axes(self.joints, self.scale, units, home, effort))
        self.limits = limits if speed == 1.0 else limits.scaled(speed)
        self.embodiment: Embodiment = self.limits.embodiment(self.kind, control_hz)
        self.ids = [joint.id for joint in self.joints]
        self.all_ids = list(motors_of(self.joints).values())
        self.bus: ServoBus | None = None
        self._warned: dict[int, int] = {}

    # ---- what differs between makes ---------------------------------------------------------------------------
    @classmethod
    @abstractmethod
    def open_bus(cls, line: SerialLine) -> ServoBus:
        """The bus behind a port."""

    @abstractmethod
    def configure(self, bus: ServoBus) -> None:
        """Bring the motors into the mode the driver wants, writing only what is not so already."""

    @abstractmethod
    def measure(self, bus: ServoBus) -> tuple[np.ndarray, np.ndarray]:
        """Positions (J,) in counts and efforts (J,), with one question."""

    @abstractmethod
    def weaken(self, bus: ServoBus, strength: float) -> None:
        """Limit the torque of all motors to this part (0 to 1) of what they may give."""

    @abstractmethod
    def is_fault(self, joint: Joint, alarm: int) -> bool:
        """Whether an alarm stops the arm; the others are only logged."""

    def explain_alarm(self, bus: ServoBus, joint: Joint, alarm: int) -> str:
        """An alarm in words."""
        return bus.describe_alarm(alarm)

    def before_command(self, bus: ServoBus) -> None:
        """Called before each order."""

    def set_watchdog(self, bus: ServoBus, on: bool) -> None:
        """Set or clear the watchdog in the motors."""

    # ---- Robot --------------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """Open the port, check motors and calibration, and hold where the arm is. See `Robot.connect`."""
        if self.bus is not None:
            raise RobotStateError(f"the {self.kind} on {self.port} is connected already")
        bus = self.open_bus(SerialLine(self.port, self.baud))
        try:
            bus.timeout_s, bus.retries = max(0.05, self.timeout_s), max(3, self.retries)
            check_motors(bus, self.joints)
            self._check_calibration(bus)
            self.configure(bus)
            if self.passive:
                set_torque(bus, self.all_ids, False)
            else:
                self._hold(bus)
                self.set_watchdog(bus, True)
        except BaseException:
            bus.close()
            raise
        bus.timeout_s, bus.retries = self.timeout_s, self.retries
        self.bus = bus

    def observe(self) -> Reading:
        """Positions and efforts of all joints, with one question on the bus. See `Robot.observe`."""
        bus = self._connected()
        before = time.monotonic()
        counts, effort = self.measure(bus)
        after = time.monotonic()
        self._check_alarms(bus)
        pushes = effort * np.sign(self.scale.factor)  # a joint that is turned around pushes the other way
        return Reading(self.scale.position(counts), (before + after) / 2, effort=pushes)

    def command(self, target: np.ndarray) -> np.ndarray:
        """Send goals to all joints with one packet, which nobody confirms. See `Robot.command`."""
        bus = self._connected()
        if self.passive:
            raise RobotStateError(
                f"the {self.kind} on {self.port} is passive", "connect it without passive=True to drive it"
            )
        counts = self.scale.counts(check_target(target, self.limits))
        self.before_command(bus)
        bus.sync_write("goal_position", dict(zip(self.ids, counts.tolist(), strict=True)))
        return self.scale.position(counts)

    def close(self) -> None:
        """Let the arm sink or leave it held (`on_close`), and give the port back. See `Robot.close`."""
        bus, self.bus = self.bus, None
        if bus is None:
            return
        try:
            bus.timeout_s, bus.retries = max(0.02, self.timeout_s), 3
            if not self.passive:
                self.set_watchdog(bus, False)
                if self.on_close == "release":
                    self._release(bus)
        except RobotError as error:
            logger.error(
                "%s on %s could not be released, it may hold its last position: %s",
                self.kind,
                self.port,
                error,
            )
        finally:
            bus.close()

    # ---- inside -------------------------------------------------------------------------------------------------
    def _connected(self) -> ServoBus:
        if self.bus is None:
            raise RobotStateError(f"the {self.kind} on {self.port} is not connected", "call connect() first")
        return self.bus

    def _check_calibration(self, bus: ServoBus) -> None:
        differences = self.calibration.differences(read_calibration(bus, self.joints))
        if not differences:
            return
        adapter = port_info(self.port).serial
        name = "" if self.name == self.kind else f" --name {self.name}"
        other = self.calibration.adapter and adapter and self.calibration.adapter != adapter
        raise CalibrationError(
            f"the calibration {self._where} does not fit the {self.kind} on {self.port}"
            + (f" (made with adapter {self.calibration.adapter}, this is {adapter})" if other else "")
            + ":\n  - "
            + "\n  - ".join(differences),
            "it is of another arm, or the arm was calibrated since. Give its own file, calibrate anew with "
            f"`vla-agents robot calibrate {self.kind} --port {self.port}{name}`, or write this file's values into the "
            "motors by adding --restore",
        )

    def _hold(self, bus: ServoBus) -> None:
        found = bus.sync_read("position", self.all_ids)
        counts = np.array([found[motor] for motor in self.ids])
        self._check_shadows(found)
        low, high = self.scale.count_low, self.scale.count_high
        outside = np.maximum(low - counts, counts - high)
        if (outside > OUTSIDE).any():
            worst = int(outside.argmax())
            raise CalibrationError(
                f"{self.joints[worst].name} stands at {counts[worst]}, far outside its calibrated range "
                f"{low[worst]} to {high[worst]}",
                "move it inside by hand and connect again; if it is inside, calibrate the arm anew",
            )
        goals = dict(zip(self.ids, np.clip(counts, low, high).tolist(), strict=True))
        bus.sync_write("goal_position", goals)
        self.weaken(bus, 1.0)
        set_torque(bus, self.all_ids, True)
        bus.sync_write("goal_position", goals)

    def _release(self, bus: ServoBus) -> None:
        steps = 20
        try:
            for step in range(steps, 0, -1):
                self.weaken(bus, step / steps)
                time.sleep(SINK_S / steps)
        finally:  # also where a second Ctrl-C is in a hurry
            set_torque(bus, self.all_ids, False)

    def _check_shadows(self, found: dict[int, int]) -> None:
        for joint in self.joints:
            apart = abs(found[joint.shadow] - found[joint.id]) if joint.shadow else 0
            if apart > SHADOW:
                raise CalibrationError(
                    f"the two motors of {joint.name} stand {apart} counts apart; switched on, they would fight",
                    "calibrate the arm anew; if that does not help, one of the two is mounted turned",
                )

    def _check_alarms(self, bus: ServoBus) -> None:
        for joint in self.joints:
            alarm = bus.alarms.get(joint.id, 0)
            if alarm and self.is_fault(joint, alarm):
                raise MotorError(
                    f"motor {joint.name!r} (id {joint.id}) on {self.port} reports: {self.explain_alarm(bus, joint, alarm)}",
                    "take the load off, let it cool down, then switch the power off and on",
                )
            if alarm and self._warned.get(joint.id) != alarm:
                logger.warning("motor %r reports: %s", joint.name, bus.describe_alarm(alarm))
            self._warned[joint.id] = alarm


# ---- also for the commands, which work on arms that are not calibrated yet ---------------------------------------
def check_motors(bus: ServoBus, joints: Sequence[Joint]) -> dict[str, int]:
    """Motor -> model number, where all motors are there and of the right kind.

    Raises:
        CommunicationError: Nobody answers; says at which other speed somebody would.
        MotorError: Motors are missing or of another model.
    """
    motors, found = motors_of(joints), dict[str, int]()
    for name, motor in motors.items():
        try:
            found[name] = bus.ping(motor)
        except MotorSilentError:
            if not found:
                _require_somebody(bus)
    missing = [f"{name} (id {motor})" for name, motor in motors.items() if name not in found]
    if missing:
        there = bus.scan()
        raise MotorError(
            f"no answer on {bus.line.path} from {', '.join(missing)}; there are {sorted(there)}",
            "check the cable that leads to it and the one before it, and that no two motors have the same id",
        )
    for joint in joints:
        for name in joint.motors:
            if found[name] not in joint.models:
                wanted = " or ".join(bus.models.get(model, str(model)) for model in joint.models)
                model = bus.models.get(found[name], f"model {found[name]}")
                raise MotorError(
                    f"motor {name!r} (id {motors[name]}) is a {model}, expected {wanted}",
                    "check the kind of robot and the ids of the motors",
                )
    return found


def _require_somebody(bus: ServoBus) -> None:
    if bus.scan():
        return
    elsewhere = bus.find_baud()
    if elsewhere:
        baud, motors = next(iter(elsewhere.items()))
        raise CommunicationError(
            f"nobody answers on {bus.line.path} at {bus.line.baud} baud, but motors {motors} do at {baud}",
            f"give the option baud={baud} (in commands `--robot-args baud={baud}`), or the motors their usual speed with "
            "`vla-agents robot setup`",
        )
    raise CommunicationError(
        f"nobody answers on {bus.line.path}, at no speed",
        "check that the arm has power and that this is its port (`vla-agents robot find`)",
    )


def read_calibration(bus: ServoBus, joints: Sequence[Joint]) -> dict[str, MotorCalibration]:
    """What stands in the memory of the motors."""
    motors = motors_of(joints)
    offset, low, high, model = (
        bus.sync_read(name, motors.values())
        for name in ("homing_offset", "min_position", "max_position", "model")
    )
    return {
        name: MotorCalibration(motor, offset[motor], low[motor], high[motor], model=model[motor])
        for name, motor in motors.items()
    }


def write_calibration(bus: ServoBus, joints: Sequence[Joint], calibration: Calibration) -> None:
    """Write offsets and ranges into the memory of the motors. Torque goes off first."""
    motors = motors_of(joints)
    set_torque(bus, list(motors.values()), False)
    for name, motor in motors.items():
        wanted = calibration.motors[name]
        bus.write("homing_offset", motor, wanted.homing_offset)
        bus.write("min_position", motor, wanted.range_min)
        bus.write("max_position", motor, wanted.range_max)


def set_torque(bus: ServoBus, ids: Sequence[int], on: bool) -> None:
    """Switch the torque of motors, each confirmed; all are tried before an error is raised."""
    failed: RobotError | None = None
    for motor in ids:
        try:
            if not on:
                bus.write("torque_enable", motor, 0)
            if "lock" in bus.table:  # Feetech: settings are kept only while unlocked
                bus.write("lock", motor, int(on))
            if on:
                bus.write("torque_enable", motor, 1)
        except RobotError as error:
            failed = error
    if failed is not None:
        raise failed
