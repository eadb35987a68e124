"""Who is there: serial ports and the motors behind them, cameras, and robots at an address."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

from vla_agents.errors import CalibrationError, RobotError
from vla_agents.robots import ROBOTS
from vla_agents.robots.buses.bus import ServoBus
from vla_agents.robots.buses.dynamixel import DynamixelBus
from vla_agents.robots.buses.feetech import FeetechBus
from vla_agents.robots.buses.line import PortInfo, SerialLine, list_ports, port_info
from vla_agents.robots.drivers.calibration import Calibration, find_calibrations
from vla_agents.robots.drivers.joints import motors_of
from vla_agents.robots.drivers.servo_arm import ServoArm, read_calibration

SERVICES = {30004: "UR (RTDE)", 30002: "UR (scripts)", 502: "xArm", 9090: "rosbridge"}


@dataclass
class Found:
    """What was found on a serial port.

    Attributes:
        port: The port.
        bus: `"feetech"`, `"dynamixel"`, or empty where nobody answered.
        baud: At which they answer.
        motors: Id -> name of the model.
        robots: Kinds of arm whose motors these are.
        calibrations: Files that fit the values in the motors.
        problem: Why the port could not be searched.
    """

    port: PortInfo
    bus: str = ""
    baud: int = 0
    motors: dict[int, str] = field(default_factory=dict)
    robots: list[str] = field(default_factory=list)
    calibrations: list[str] = field(default_factory=list)
    problem: str = ""


def find_arms(port: str = "") -> Iterator[Found]:
    """Search one port, or all USB adapters of this machine; only harmless questions are sent.

    Args:
        port: e.g. `/dev/ttyACM0`; empty: all USB serial ports.
    """
    for info in [port_info(port)] if port else [p for p in list_ports() if p.vendor]:
        found = Found(info)
        try:
            _search(found)
        except RobotError as error:
            found.problem = str(error)
        yield found


def _search(found: Found) -> None:
    line = SerialLine(found.port.path, 1_000_000)
    try:
        for name, kind in (("feetech", FeetechBus), ("dynamixel", DynamixelBus)):
            bus: ServoBus = kind(line)
            speeds = {1_000_000: sorted(bus.scan())} if bus.scan() else bus.find_baud()
            if not speeds:
                continue
            found.bus, found.baud = name, next(iter(speeds))
            line.set_baud(found.baud)
            models = bus.scan(speeds[found.baud])
            found.motors = {motor: bus.models.get(model, f"model {model}") for motor, model in models.items()}
            for robot, arm in servo_arms():
                ids = motors_of(arm.joints)
                if set(ids.values()) == set(models) and _fits(arm, models):
                    found.robots.append(robot)
                    found.calibrations += [c for c in _calibrations(bus, arm) if c not in found.calibrations]
            return
    finally:
        line.close()


def servo_arms() -> Iterator[tuple[str, type[ServoArm]]]:
    """Name and class of the arms made of bus servos."""
    for name in ROBOTS:
        kind = ROBOTS.get(name)
        if isinstance(kind, type) and issubclass(kind, ServoArm):
            yield name, kind


def _fits(arm: type[ServoArm], models: dict[int, int]) -> bool:
    return all(models[motor] in joint.models for joint in arm.joints for motor in joint.motors.values())


def _calibrations(bus: ServoBus, arm: type[ServoArm]) -> list[str]:
    there, fitting = read_calibration(bus, arm.joints), []
    for file in find_calibrations():
        try:
            calibration = Calibration.load(file)
            calibration.require(arm.kind, motors_of(arm.joints), file)
        except CalibrationError:
            continue
        if not calibration.differences(there):
            fitting.append(str(file))
    return fitting


def find_services(host: str, timeout_s: float = 1.0) -> dict[int, str]:
    """TCP ports of a robot's address that answer: port -> what usually listens there."""
    found = {}
    for port, what in SERVICES.items():
        try:
            with socket.create_connection((host, port), timeout_s):
                found[port] = what
        except OSError:
            continue
    return found
