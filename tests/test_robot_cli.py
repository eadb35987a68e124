"""`vla-agents robot ...` end to end against emulated arms: find, setup, calibrate, check."""

from __future__ import annotations

import builtins
import time

import numpy as np
import pytest
from emulators.arms import RANGES, SO101Emulator, dynamixel_arm
from emulators.feetech import FeetechEmulator, signed, sts3215
from emulators.new_arm import NewArm

from vla_agents import robot_cli
from vla_agents.cli import main
from vla_agents.errors import CalibrationError
from vla_agents.robots.buses.feetech import FeetechBus
from vla_agents.robots.buses.line import SerialLine
from vla_agents.robots.calibrate import calibrate
from vla_agents.robots.drivers import servo_arm
from vla_agents.robots.drivers.calibration import Calibration, calibration_path
from vla_agents.robots.drivers.dynamixel_arms import Koch, ViperX
from vla_agents.robots.drivers.so101 import SO101

pytest.importorskip("serial")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(servo_arm, "SINK_S", 0.05)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(robot_cli._console, "width", 200)
    monkeypatch.setattr(FeetechBus, "broadcast_wait_s", 0.003)


class Hands:
    """Somebody who does what is asked: moves an emulated arm to its middle, then through its ranges."""

    def __init__(self, device, arm, ranges, forget=(), let_go=False):
        self.device, self.arm, self.ranges, self.forget, self.let_go = device, arm, ranges, forget, let_go
        self.asked = []

    def motors(self):
        return [
            (name, self.device.servos[motor]) for j in self.arm.joints for name, motor in j.motors.items()
        ]

    def encoder(self, servo):  # the position without the offset
        return servo.position - self.device.homing_sign * self.device.offset(servo)

    def ask(self, text):
        self.asked.append(text)
        if "middle" in text:
            for name, servo in self.motors():
                servo.position = sum(self.ranges[name]) / 2 + self.device.homing_sign * self.device.offset(
                    servo
                )

    def show_ranges(self, text, measure):
        assert not any(servo.table[self.device.torque] for _, servo in self.motors()), "the arm is limp"
        for end in (0, 1):
            for name, servo in self.motors():
                if name not in self.forget:
                    servo.position = self.ranges[name][end] + self.device.homing_sign * self.device.offset(
                        servo
                    )
            measure()


REAL = {  # where the encoders truly are at the ends
    "shoulder_pan": (1200, 3900), "shoulder_lift": (300, 2700), "elbow_flex": (600, 2900),
    "wrist_flex": (900, 3300), "wrist_roll": (0, 4094), "gripper": (1700, 3200),
}  # fmt: skip


# ---- calibrate ------------------------------------------------------------------------------------------------
def test_a_calibrated_arm_connects_and_its_middle_is_zero(tmp_path):
    with FeetechEmulator() as device:
        with FeetechBus(SerialLine(device.path, 1_000_000), timeout_s=0.05) as bus:
            hands = Hands(device, SO101, REAL)
            calibration = calibrate(SO101, bus, hands)
        for name, motor in calibration.motors.items():
            low, high = REAL[name]
            span = (0, 4095) if name == "wrist_roll" else (2047 - (high - low) / 2, 2047 + (high - low) / 2)
            assert (motor.range_min, motor.range_max) == pytest.approx(span, abs=1)
            assert signed(device.get(motor.id, 31, 2), 11) == motor.homing_offset
        assert len(hands.asked) == 2 and "hold it" in hands.asked[0]
        hands.ask("middle")
        with SO101(device.path, calibration=calibration.save(tmp_path / "c.json"), timeout_s=0.05) as robot:
            np.testing.assert_allclose(robot.observe().position, [0, 0, 0, 0, 0, 0.5], atol=2e-3)


def test_dynamixel_offsets_have_the_other_sign():
    for kind in (Koch, ViperX):
        with dynamixel_arm(kind) as device, kind.open_bus(SerialLine(device.path, 1_000_000)) as bus:
            bus.timeout_s = 0.05
            ranges = {name: (700 + 10 * j.id, 3000) for j in kind.joints for name in j.motors}
            ranges.update({f"{j.name}_shadow": ranges[j.name] for j in kind.joints if j.shadow})
            hands = Hands(device, kind, ranges)
            calibration = calibrate(kind, bus, hands)
            hands.ask("middle")
            bus.close()
            with kind(device.path, calibration=calibration, timeout_s=0.05) as robot:
                np.testing.assert_allclose(
                    robot.observe().position, [0.0] * (len(kind.joints) - 1) + [0.5], atol=2e-3
                )
        assert all(2000 < (m.range_min + m.range_max) / 2 < 2100 for m in calibration.motors.values())


def test_a_joint_that_was_forgotten_and_an_interrupted_calibration_change_nothing():
    with SO101Emulator() as device, FeetechBus(SerialLine(device.path, 1_000_000), timeout_s=0.05) as bus:
        before = {motor: bytes(servo.table[:40]) for motor, servo in device.servos.items()}
        with pytest.raises(CalibrationError, match="elbow_flex was moved by 0 counts"):
            calibrate(SO101, bus, Hands(device, SO101, REAL, forget=("elbow_flex",)))
        assert {motor: bytes(servo.table[:40]) for motor, servo in device.servos.items()} == before

        class Leaves(Hands):
            def show_ranges(self, text, measure):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            calibrate(SO101, bus, Leaves(device, SO101, REAL))
        assert {motor: bytes(servo.table[:40]) for motor, servo in device.servos.items()} == before


def enter_does(monkeypatch, *actions):
    """Each Enter at the terminal comes after the next of these."""
    todo = list(actions)

    def read(*_):
        if todo:
            todo.pop(0)()
        return ""

    monkeypatch.setattr(builtins, "input", read)


def test_calibrate_at_the_terminal(monkeypatch, capsys):
    with FeetechEmulator() as device:
        hands = Hands(device, SO101, REAL)

        def move_all():
            for end in (0, 1):
                for name, servo in hands.motors():
                    servo.position = REAL[name][end] - device.offset(servo)
                time.sleep(0.3)

        enter_does(monkeypatch, lambda: None, lambda: hands.ask("middle"), move_all)
        assert main(["robot", "calibrate", "so101", "--port", device.path, "--name", "left"]) == 0
        said = capsys.readouterr().out
        assert str(calibration_path("left")) in said and "elbow_flex" in said
        assert Calibration.load(calibration_path("left")).motors["elbow_flex"].range_max == pytest.approx(
            3197, abs=2
        )
        assert main(["robot", "check", "so101", "--port", device.path, "--name", "left", "--seconds", "0.2",
                     "--robot-args", "timeout_s=0.05", "control_hz=4"]) == 0  # fmt: skip


def test_restore_writes_a_file_into_the_motors(monkeypatch, tmp_path, capsys):
    enter_does(monkeypatch)
    with SO101Emulator() as device:
        file = device.calibration.save(tmp_path / "arm.json")
        device.servos[3].table[31:33] = b"\x00\x00"
        check = ["robot", "check", "so101", "--port", device.path, "--seconds", "0.1"]
        options = ["--robot-args", f"calibration={file}", "timeout_s=0.05", "control_hz=4"]
        assert main([*check, *options]) == 1
        assert "--restore" in capsys.readouterr().err
        assert (
            main(["robot", "calibrate", "so101", "--port", device.path, "--file", str(file), "--restore"])
            == 0
        )
        assert main([*check, *options]) == 0


# ---- setup ----------------------------------------------------------------------------------------------------
def test_setup_gives_each_motor_its_id_and_speed(monkeypatch, capsys):
    with FeetechEmulator([sts3215(1)], baud=115_200) as device:
        names = ["gripper", "wrist_roll", "wrist_flex", "elbow_flex", "shoulder_lift", "shoulder_pan"]
        set_up = []

        def next_motor():
            if device.servos:
                set_up.extend(device.servos)
            device.servos = {1: sts3215(1)}
            device.servos[1].table[6] = 4
            device.baud = 115_200

        enter_does(monkeypatch, *[next_motor] * 6)
        assert main(["robot", "setup", "so101", "--port", device.path]) == 0
        assert set_up[1:] == [6, 5, 4, 3, 2] and list(device.servos) == [1]
        assert device.baud == 1_000_000
        said = capsys.readouterr().out
        assert all(f"{name}: id 1 ->" in said for name in names)
        device.servos = {1: sts3215(1), 2: sts3215(2)}
        assert main(["robot", "setup", "so101", "--port", device.path]) == 1
        assert "connect one motor alone" in capsys.readouterr().err


def test_a_new_arm_needs_nothing_but_enter(monkeypatch, capsys):
    """The commands of docs/robots.md, with the emulated hands that one can try them with (`python -m emulators --new`)."""
    with NewArm(sweep_s=0.5) as device:
        enter_does(monkeypatch)
        assert main(["robot", "setup", "so101", "--port", device.path]) == 0
        assert sorted(device.servos) == [1, 2, 3, 4, 5, 6]
        enter_does(monkeypatch, lambda: None, lambda: None, lambda: time.sleep(1.0))
        assert main(["robot", "calibrate", "so101", "--port", device.path, "--name", "new"]) == 0
        assert main(["robot", "check", "so101", "--port", device.path, "--name", "new", "--seconds", "0.2",
                     "--robot-args", "timeout_s=0.05", "control_hz=4"]) == 0  # fmt: skip
        said = capsys.readouterr().out
        assert "Now chain the motors" in said and str(calibration_path("new")) in said and "well" in said


# ---- find and check ---------------------------------------------------------------------------------------------
def test_find_says_who_answers_and_which_calibration_fits(capsys):
    with SO101Emulator() as device:
        device.calibration.save(calibration_path("so101"))
        assert main(["robot", "find", "--port", device.path, "--no-cameras"]) == 0
        said = capsys.readouterr().out
        assert "feetech at 1000000 baud: 1 STS3215" in said
        assert "robot: so100 or so101" in said and str(calibration_path("so101")) in said
    with dynamixel_arm(Koch) as device:
        assert main(["robot", "find", "--port", device.path, "--no-cameras", "--host", "127.0.0.9"]) == 0
        said = capsys.readouterr().out
        assert "dynamixel at 1000000 baud: 1 XL430-W250" in said and "robot: koch" in said
        assert "no robot answers" in said
    assert main(["robot", "find", "--port", "/dev/ttyNOPE", "--no-cameras"]) == 1
    assert "there is no port" in capsys.readouterr().out


def test_check_prints_latency_losses_and_motors_and_knows_a_bad_wire(capsys):
    with SO101Emulator() as device:
        device.calibration.save(calibration_path("so101"))
        check = ["robot", "check", "so101", "--port", device.path, "--seconds", "1.0"]
        options = ["--robot-args", "timeout_s=0.02", "control_hz=4"]
        assert main([*check, *options]) == 0
        said = capsys.readouterr().out
        assert (
            "latency in ms: p50" in said
            and "0 answers lost" in said
            and "elbow_flex" in said
            and "well" in said
        )
        device.faults.corrupt = 0.15
        device.alarm[2] = 1
        assert main([*check, *options, "retries=20"]) == 1
        said = capsys.readouterr().out
        assert "lost or damaged" in said and "shoulder_lift reports: voltage" in said


def test_what_the_commands_refuse(capsys):
    assert main(["robot"]) == 1 and main(["robot", "--help"]) == 0
    assert "calibrate" in capsys.readouterr().out
    assert main(["robot", "chek"]) == 1
    assert "Did you mean 'check'" in capsys.readouterr().err
    assert main(["robot", "check", "so102", "--port", "x"]) == 1
    assert "unknown robot 'so102'" in capsys.readouterr().err
    assert main(["robot", "check", "so101", "--port", "/dev/ttyNOPE"]) == 1
    assert "there is no calibration" in capsys.readouterr().err
    with SO101Emulator() as device:
        device.calibration.save(calibration_path("so101"))
        assert main(["robot", "check", "so101", "--port", device.path, "--robot-args", "unit=deg"]) == 1
        assert "cannot be made of these options" in capsys.readouterr().err
    assert RANGES.keys() == REAL.keys()
