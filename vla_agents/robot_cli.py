"""`vla-agents robot COMMAND`: find, set up, calibrate, check and move a robot. Each is a few lines over the library."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from vla_agents.arguments import Options
from vla_agents.cli import parse
from vla_agents.errors import CalibrationError, ConfigError, suggest
from vla_agents.eval.on_robot import RunConfig

_console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class FindConfig:
    """List serial ports and the motors behind them, cameras, teleoperation devices, and what answers at an address."""

    port: str = ""
    """Search this serial port only, e.g. /dev/ttyACM0; by default all USB adapters."""
    host: str = ""
    """Also see which robot's services answer at this address."""
    cameras: bool = True
    """Whether to open each camera shortly."""
    devices: bool = True
    """Whether to list gamepads, keyboards and SpaceMice."""


def find(config: FindConfig) -> int:
    """Print what is there; 1 where a port that was named does not answer."""
    from vla_agents.robots.cameras.opencv import find_cameras
    from vla_agents.robots.find import find_arms, find_services

    heard = quiet = 0
    for found in find_arms(config.port):
        port = found.port
        usb = f"  {port.description}  {port.vendor}:{port.product} {port.serial}" if port.vendor else ""
        _console.print(f"[bold]{port.path}[/bold]{usb}")
        if found.problem:
            _console.print(f"  {found.problem}")
        elif found.motors:
            listing = ", ".join(f"{motor} {model}" for motor, model in found.motors.items())
            _console.print(f"  {found.bus} at {found.baud} baud: {listing}")
            _console.print(f"  robot: {' or '.join(found.robots) or 'none that is known here'}")
            for file in found.calibrations:
                _console.print(f"  calibrated: {file}")
        else:
            _console.print("  nobody answers, at no speed: no servos, or no power")
        heard, quiet = heard + bool(found.motors), quiet + (not found.motors)
    if not heard and not quiet:
        _console.print("no USB serial port: plug an adapter in, or name a port with --port")
    if config.host:
        services = find_services(config.host)
        listing = ", ".join(f"{port} {what}" for port, what in services.items())
        _console.print(f"[bold]{config.host}[/bold]  {listing or 'no robot answers'}")
    if config.cameras:
        cameras = find_cameras()
        for device, name, size in cameras:
            _console.print(f"[bold]{device}[/bold]  camera, {size}  {name}")
        if not cameras:
            _console.print("no camera that gives pictures")
    if config.devices and not config.port:
        _list_devices()
    return 1 if config.port and quiet else 0


def _list_devices() -> None:
    """Gamepads, keyboards and SpaceMice, and what to do where one may not be opened."""
    from vla_agents.collect.devices.evdev import list_inputs
    from vla_agents.collect.devices.spacemouse import list_spacemice

    there = [(info, info.kind) for info in list_inputs() if info.kind]
    there += [(mouse, "spacemouse") for mouse in list_spacemice()]  # type: ignore[misc]
    for device, kind in there:
        _console.print(f"[bold]{device.path}[/bold]  {kind}  {device.name}", highlight=False)
        if not os.access(device.path, os.R_OK):
            _console.print(
                f"  may not be opened; line for /etc/udev/rules.d/70-teleop.rules: {device.udev_rule}",
                markup=False,
            )
    if not there:
        _console.print("no gamepad, keyboard or SpaceMouse")


@dataclass(frozen=True)
class SetupConfig:
    """Give the motors of a new arm their ids and speed, one motor after the other."""

    robot: Positional[str]
    """Kind of arm, e.g. so101."""
    port: str
    """Serial port, e.g. /dev/ttyACM0."""


def setup(config: SetupConfig) -> int:
    """Asks for one motor at a time, from the gripper down."""
    from vla_agents.robots.buses.line import SerialLine
    from vla_agents.robots.calibrate import set_up_motor
    from vla_agents.robots.terminal import TerminalPrompt

    arm, prompt = _servo_arm(config.robot), TerminalPrompt(_console)
    with arm.open_bus(SerialLine(config.port, arm.baud)) as bus:
        for joint in reversed(arm.joints):
            for name, motor in joint.motors.items():
                prompt.ask(f"Connect the motor of [bold]{name}[/bold] alone to the adapter.")
                _console.print(f"{name}: {set_up_motor(bus, joint, name, motor, arm.baud)}")
    _console.print(
        f"Now chain the motors and run: vla-agents robot calibrate {config.robot} --port {config.port}"
    )
    return 0


@dataclass(frozen=True)
class CalibrateConfig:
    """Calibrate an arm of bus servos, guided step by step."""

    robot: Positional[str]
    """Kind of arm, e.g. so101."""
    port: str
    """Serial port, e.g. /dev/ttyACM0."""
    name: str = ""
    """What this arm is called, where there are several, e.g. left; by default the kind of arm."""
    file: str = ""
    """Write to this file instead of the place that belongs to the name."""
    restore: bool = False
    """Write the values of the file (ours or LeRobot's) into the motors instead of measuring."""
    baud: int = 0
    """Speed of the motors; by default the one that is usual for the arm."""


def calibrate(config: CalibrateConfig) -> int:
    """Measure, write into motors and file; or from the file into the motors."""
    from vla_agents.robots.buses.line import SerialLine
    from vla_agents.robots.calibrate import calibrate as measure
    from vla_agents.robots.drivers.calibration import Calibration, calibration_path
    from vla_agents.robots.drivers.joints import motors_of
    from vla_agents.robots.drivers.servo_arm import check_motors, write_calibration
    from vla_agents.robots.terminal import TerminalPrompt

    arm, prompt = _servo_arm(config.robot), TerminalPrompt(_console)
    path = Path(config.file) if config.file else calibration_path(config.name or config.robot)
    stored = Calibration.load(path) if config.restore else None
    if stored is not None:
        stored.require(arm.kind, motors_of(arm.joints), path)
    with arm.open_bus(SerialLine(config.port, config.baud or arm.baud)) as bus:
        bus.timeout_s = 0.05
        if stored is not None:
            check_motors(bus, arm.joints)
            prompt.ask("The motors are switched off now and the arm sinks: hold it.")
            write_calibration(bus, arm.joints, stored)
            _console.print(f"the values of {path} are in the motors")
            return 0
        calibration = measure(arm, bus, prompt)
    calibration.save(path)
    _console.print(f"calibration: {path}")
    return 0


@dataclass(frozen=True)
class CheckConfig:
    """See how quickly and how reliably a robot answers. It is connected and holds; it is not moved."""

    robot: Positional[str]
    """Kind of robot, e.g. so101, ur, ros."""
    port: str = ""
    """Serial port of an arm of bus servos."""
    name: str = ""
    """What this arm is called, where there are several."""
    robot_args: Options = field(default_factory=dict)
    """More options of the robot, e.g. units=deg, host=192.168.1.10."""
    seconds: float = 3.0
    """How long to measure."""


def check(config: CheckConfig) -> int:
    """Print latency, losses and the motors' state; 1 where something is wrong."""
    from vla_agents.robots.health import examine

    with _robot(config) as robot:
        health = examine(robot, config.seconds)
    numbers = "  ".join(f"{name} {value:.2f}" for name, value in health.percentiles_ms().items())
    total = len(health.latency_s) + health.failed
    _console.print(f"{total} readings at {health.hz:g} Hz, {health.failed} failed; latency in ms: {numbers}")
    most = max((count for _, count in health.histogram()), default=1)
    for label, count in health.histogram():
        _console.print(f"  {label:>12} ms  {count:6d}  {'#' * round(40 * count / most)}")
    if health.asked:
        _console.print(
            f"packets: {health.asked} questions, {health.lost} answers lost, {health.corrupt} damaged, "
            f"{health.repeated} repeated"
        )
    if health.motors:
        table = Table(*("motor", *next(iter(health.motors.values()))))
        for name, values in health.motors.items():
            table.add_row(name, *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values.values()))
        _console.print(table)
    for problem in health.problems:
        _console.print(f"[bold red]problem[/bold red]: {problem}")
    if not health.problems:
        _console.print("[bold green]well[/bold green]")
    return 1 if health.problems else 0


@dataclass(frozen=True)
class JogConfig:
    """Move one axis a little and slowly, through the safety filter."""

    robot: Positional[str]
    """Kind of robot, e.g. so101, ur, ros."""
    axis: str = ""
    """Its name, e.g. elbow_flex; without one, the axes are listed and nothing moves."""
    by: float | None = None
    """How far, in the axis' unit."""
    to: float | None = None
    """Where to, instead."""
    speed: float = 0.1
    """Part of the velocity limits."""
    back: bool = False
    """Go back to the start afterwards."""
    port: str = ""
    """Serial port of an arm of bus servos."""
    name: str = ""
    """What this arm is called, where there are several."""
    robot_args: Options = field(default_factory=dict)
    """More options of the robot, e.g. units=deg, host=192.168.1.10."""


def jog(config: JogConfig) -> int:
    """List the axes, or move one."""
    from vla_agents.robots.jog import jog as move

    robot = _robot(config)
    if not config.axis:
        with robot:
            reading = robot.observe()
        table = Table("axis", "now", "lowest", "highest", "unit")
        for axis, value in zip(robot.limits.axes, reading.position, strict=True):
            table.add_row(axis.name, f"{value:.4g}", f"{axis.low:.4g}", f"{axis.high:.4g}", axis.unit)
        _console.print(table)
        return 0
    with _console.status(config.axis) as status:
        before, after = move(
            robot,
            config.axis,
            by=config.by,
            to=config.to,
            speed=config.speed,
            back=config.back,
            show=lambda told, seen: status.update(f"{config.axis}  told {told:.4g}  at {seen:.4g}"),
        )
    _console.print(f"{config.axis}: from {before:.4g} to {after:.4g}{', and back' if config.back else ''}")
    return 0


@dataclass(frozen=True)
class ReplayConfig:
    """Replay a recorded episode on a robot, through the safety filter."""

    robot: Positional[str]
    """Kind of robot, e.g. so101, ur, ros."""
    dataset: str
    """The dataset's folder."""
    episode: int = 0
    """Which episode."""
    speed: float = 1.0
    """Times the recorded rate; begin with 0.3."""
    port: str = ""
    """Serial port of an arm of bus servos."""
    name: str = ""
    """What this arm is called, where there are several."""
    robot_args: Options = field(default_factory=dict)
    """More options of the robot, e.g. units=deg, host=192.168.1.10."""


def replay(config: ReplayConfig) -> int:
    """Replay, and say how far the arm was from the recording."""
    from rich.progress import Progress

    from vla_agents.collect.replay import load_episode
    from vla_agents.collect.replay import replay as run

    episode = load_episode(config.dataset, config.episode)
    robot = _robot(config)
    where = f"episode {config.episode} of {config.dataset}"
    with Progress(console=_console) as bar:
        task = bar.add_task("replaying", total=len(episode))
        report = run(
            robot,
            episode,
            speed=config.speed,
            where=where,
            show=lambda number: bar.update(task, completed=number + 1),
        )
    changed = ", ".join(f"{name} {count}" for name, count in report.interventions.items())
    _console.print(
        f"{report.steps} steps; safety filter: {changed or 'nothing changed'}; {report.missed} periods missed"
    )
    if report.deviation is not None:
        worst = int(report.deviation.argmax())
        label = report.names[worst] if worst < len(report.names) else f"value {worst}"
        _console.print(f"largest difference from the recorded state: {report.deviation[worst]:.4g} ({label})")
    return 0


def run(config: RunConfig) -> int:
    """Run a policy; 130 where it was interrupted."""
    from vla_agents.eval.on_robot import run_on_robot

    return 130 if run_on_robot(config, console=_console).partial else 0


COMMANDS = {
    "find": (FindConfig, find, "serial ports, motors, cameras, teleoperation devices, robots at an address"),
    "setup": (SetupConfig, setup, "give the motors of a new arm their ids"),
    "calibrate": (CalibrateConfig, calibrate, "measure an arm of bus servos, guided"),
    "check": (CheckConfig, check, "latency, losses, and the state of the motors"),
    "jog": (JogConfig, jog, "move one axis a little, slowly"),
    "replay": (ReplayConfig, replay, "replay a recorded episode"),
    "run": (RunConfig, run, "run a policy, with a person beside it"),
}


def main(args: Sequence[str]) -> int:
    """`vla-agents robot ...`"""
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {text}" for name, (_, _, text) in COMMANDS.items()]
        sys.stdout.write("usage: vla-agents robot COMMAND [options]\n\n" + "\n".join(lines) + "\n")
        return 0 if args else 1
    if args[0] not in COMMANDS:
        raise ConfigError(
            f"unknown command {args[0]!r}{suggest(args[0], COMMANDS)}",
            f"known: {', '.join(sorted(COMMANDS))}",
        )
    shape, command, _ = COMMANDS[args[0]]
    return command(parse(shape, args[1:], f"robot {args[0]}"))  # type: ignore[operator]


def _servo_arm(name: str) -> Any:
    from vla_agents.robots import ROBOTS
    from vla_agents.robots.drivers.servo_arm import ServoArm

    arm = ROBOTS.get(name)
    if not (isinstance(arm, type) and issubclass(arm, ServoArm)):
        raise CalibrationError(f"a {name} is not calibrated here", "only arms of bus servos are")
    return arm


def _robot(config: Any) -> Any:
    from vla_agents.robots import make_robot

    given = {key: value for key in ("port", "name") if (value := getattr(config, key))}
    try:
        return make_robot(config.robot, **given, **config.robot_args)
    except TypeError as error:
        raise ConfigError(f"the robot {config.robot!r} cannot be made of these options ({error})") from error
