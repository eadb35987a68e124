"""LeRobot's robots in this process and in another; the real LeRobot where it is installed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vla_agents.errors import (
    CalibrationError,
    CameraError,
    CommunicationError,
    ConfigError,
    MotorError,
    PortNotFoundError,
    RobotStateError,
)
from vla_agents.robots import make_robot
from vla_agents.robots.drivers import lerobot_host

FAKE = str(Path(__file__).parent / "emulators" / "fake_lerobot")


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Makes robots of the fake LeRobot, here ("") or in another process."""
    monkeypatch.setenv("PYTHONPATH", FAKE + os.pathsep + os.environ.get("PYTHONPATH", ""))
    monkeypatch.syspath_prepend(FAKE)
    for name in [name for name in sys.modules if name.split(".")[0] in ("lerobot", "draccus")]:
        monkeypatch.delitem(sys.modules, name)
    made = []

    def make(python="", **options):
        config = {"type": "toy", "trouble": str(tmp_path / "trouble"), "log": str(tmp_path / "log")}
        config.update(options.pop("config", {}))
        made.append(make_robot("lerobot", config=config, python=python, **{"timeout_s": 5.0, **options}))
        return made[-1]

    yield make
    for robot in made:
        robot.close()
    for name in [name for name in sys.modules if name.split(".")[0] in ("lerobot", "draccus")]:
        del sys.modules[name]


BOTH = pytest.mark.parametrize("python", ["", sys.executable], ids=["here", "another process"])


@BOTH
def test_positions_pictures_and_what_was_sent(toy, python):
    robot = toy(python)
    assert robot.limits.names == ("pan.pos", "lift.pos", "gripper.pos")
    assert robot.limits.low.tolist() == [-100, -100, 0] and robot.embodiment.name == "toy"
    camera = robot.cameras[0]
    with pytest.raises(RobotStateError, match="not connected"):
        robot.observe()
    with pytest.raises(CameraError, match="connect the robot first"):
        camera.latest()
    camera.connect()  # an env connects the cameras before the robot
    assert (camera.latest().image == 1).all()
    with robot:
        first = robot.observe()
        assert first.position.tolist() == [1.0, 2.0, 50.0]
        camera.connect()
        assert camera.latest().image.shape == (12, 16, 3) and camera.camera.height == 12
        sent = robot.command(np.array([10.4, -20.6, 30.0]))
        assert sent.tolist() == [10.0, -21.0, 30.0], "what LeRobot says it has sent"
        assert robot.observe().position.tolist() == [10.0, -21.0, 30.0]
        assert (camera.latest().image == camera.latest().number).all()
        with pytest.raises(RobotStateError, match="already"):
            robot.connect()
    robot.close()
    with robot:  # and once more
        robot.observe()


@BOTH
def test_its_errors_are_ours(toy, python, tmp_path):
    trouble = tmp_path / "trouble"
    robot = toy(python)
    trouble.write_text("port")
    with pytest.raises(PortNotFoundError, match="Could not connect on port"):
        robot.connect()
    trouble.write_text("")
    robot.connect()
    for word, kind in (("read", CommunicationError), ("motor", MotorError)):
        trouble.write_text(word)
        with pytest.raises(kind):
            robot.observe()
        trouble.write_text("")
        robot.observe()
    with pytest.raises(CalibrationError, match="lerobot-calibrate"):
        toy(python, config={"calibrated": False}).connect()


@BOTH
def test_what_cannot_be_made(toy, python):
    with pytest.raises(ConfigError, match="needs `type`"):
        make_robot("lerobot", config={})
    with pytest.raises(ConfigError, match="cannot make a robot"):
        toy(python, config={"type": "so1001"})
    with pytest.raises(ConfigError, match=r"no 'pan'. Did you mean 'pan.pos'"):
        toy(python, axes={"pan": {}})
    with pytest.raises(ConfigError, match=r"'base.vel' is no position"):
        toy(python, config={"wheels": True})
    with pytest.raises(ConfigError, match="in degrees and says no limits"):
        toy(python, config={"use_degrees": True})
    with pytest.raises(ConfigError, match="speed"):
        toy(python, axes={"pan.pos": {"low": 0, "high": 1, "speed": 2}})
    degrees = {"low": -90, "high": 90, "velocity": 60, "acceleration": 240, "unit": "deg"}
    robot = toy(python, config={"use_degrees": True}, axes={"pan.pos": degrees, "lift.pos": degrees})
    assert robot.limits.high.tolist() == [90, 90, 100]


def test_no_lerobot_here_and_no_such_interpreter(monkeypatch):
    monkeypatch.setitem(sys.modules, "draccus", None)
    with pytest.raises(ConfigError, match=r"cannot be imported here[\s\S]*python="):
        make_robot("lerobot", config={"type": "x"})
    with pytest.raises(ConfigError, match="cannot be started"):
        make_robot("lerobot", config={"type": "x"}, python="/nowhere/python")
    with pytest.raises(ConfigError, match="does not answer"):
        make_robot("lerobot", config={"type": "x"}, python="/bin/false")


# ---- the other process ----------------------------------------------------------------------------------------
def test_a_late_answer_is_not_taken_for_the_next(toy, tmp_path):
    robot = toy(sys.executable, timeout_s=0.2)
    with robot:
        (tmp_path / "trouble").write_text("slow")
        with pytest.raises(CommunicationError, match="did not answer"):
            robot.observe()
        (tmp_path / "trouble").write_text("")
        time.sleep(0.6)
        assert robot.command(np.array([5.0, 6.0, 7.0])).tolist() == [5.0, 6.0, 7.0]
        assert robot.observe().position.tolist() == [5.0, 6.0, 7.0]


def test_a_crash_is_an_error_and_can_be_connected_again(toy, tmp_path):
    robot = toy(sys.executable)
    robot.connect()
    (tmp_path / "trouble").write_text("crash")
    with pytest.raises(CommunicationError, match="is gone"):
        robot.observe()
    with pytest.raises(CommunicationError, match="has ended"):
        robot.observe()
    (tmp_path / "trouble").write_text("")
    robot.close()
    with robot:
        robot.observe()


def test_the_robot_is_disconnected_when_this_process_dies(toy, tmp_path):
    code = (
        "import time\nfrom vla_agents.robots import make_robot\n"
        f"config = {{'type': 'toy', 'log': {str(tmp_path / 'log')!r}}}\n"
        f"robot = make_robot('lerobot', config=config, python={sys.executable!r}, timeout_s=5.0)\n"
        "robot.connect(); robot.observe(); print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        while owner.stdout.readline().strip() != "up":
            pass
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    end = time.monotonic() + 10
    while not (tmp_path / "log").exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_nobody_else_gets_in(monkeypatch, toy):
    """Another program that is quicker is turned away: it does not know the token."""
    real, seen = subprocess.Popen, []

    def popen(command, **options):
        with socket.create_connection(("127.0.0.1", int(command[2]))) as thief:
            thief.sendall(b"x" * 64)
            seen.append(thief)
            return real(command, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    robot = toy(sys.executable)
    with robot:
        assert robot.observe().position[0] == 1.0
    assert len(seen) == 1


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x02{{",
     b'\x00\x00\x00\x1a{"blobs": {"a": [1,2,"3"]}}', b'\x00\x00\x00"{"blobs": {"a": [99999,99999,3]}} ', b"\x00"],
)  # fmt: skip
def test_nonsense_on_the_wire_is_refused(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        ours.settimeout(2.0)
        with pytest.raises((ConnectionError, ValueError)):
            lerobot_host.receive(ours)


# ---- the real one -----------------------------------------------------------------------------------------------
def test_the_real_lerobot_and_our_driver_agree(tmp_path):
    pytest.importorskip("lerobot", reason="LeRobot has an environment of its own")
    from emulators.arms import SO101Emulator

    with SO101Emulator() as device:
        motors = {name: dataclasses.asdict(motor) for name, motor in device.calibration.motors.items()}
        for motor in motors.values():
            del motor["model"]
        (tmp_path / "arm.json").write_text(json.dumps(motors))
        config = {
            "type": "so101_follower",
            "port": device.path,
            "id": "arm",
            "calibration_dir": str(tmp_path),
        }
        for motor, place in zip(range(1, 7), (1000, 1500, 2000, 2500, 3000, 2400), strict=True):
            device.servos[motor].position = float(place)
            device.servos[motor].table[42:44] = place.to_bytes(2, "little")
        for python in ("", sys.executable):
            for attempt in range(5):  # LeRobot does not ask twice, and a busy machine answers late
                robot = make_robot(
                    "lerobot", config={**config, "use_degrees": False}, python=python, timeout_s=5.0
                )
                try:
                    with robot:
                        theirs = robot.observe().position
                    break
                except (MotorError, CommunicationError):
                    robot.close()
                    assert attempt < 4
            ours = make_robot(
                "so101", port=device.path, calibration=tmp_path / "arm.json", units="pm100", timeout_s=0.1
            )
            with ours:
                np.testing.assert_allclose(ours.observe().position, theirs, atol=1e-9)
