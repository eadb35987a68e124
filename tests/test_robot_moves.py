"""`vla-agents robot jog` and `replay` against emulated arms, through the safety filter."""

from __future__ import annotations

import numpy as np
import pytest
from emulators.arms import SO101Emulator

from vla_agents import robot_cli
from vla_agents.cli import main
from vla_agents.data import create_dataset
from vla_agents.data.episode import Step
from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ConfigError, RobotError
from vla_agents.robots import jog as jogging
from vla_agents.robots import make_robot
from vla_agents.robots.drivers import servo_arm
from vla_agents.robots.drivers.calibration import calibration_path
from vla_agents.robots.jog import jog

pytest.importorskip("serial")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(servo_arm, "SINK_S", 0.05)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(robot_cli._console, "width", 200)


@pytest.fixture
def device():
    with SO101Emulator() as emulator:
        emulator.calibration.save(calibration_path("so101"))
        yield emulator


def options(device):
    return ["so101", "--port", device.path, "--robot-args", "timeout_s=0.05"]


def test_jog_moves_one_axis_slowly_and_back(device, capsys):
    assert main(["robot", "jog", *options(device)]) == 0
    assert "elbow_flex" in capsys.readouterr().out and len(device.goals) == 12, "it only holds"
    device.goals.clear()
    start = device.servos[3].position
    move = ["--axis", "elbow_flex", "--by", "0.1", "--speed", "0.3", "--back"]
    assert main(["robot", "jog", *options(device), *move]) == 0
    assert "elbow_flex: from" in capsys.readouterr().out
    elbow = np.array([goal for _, motor, goal in device.goals if motor == 3])
    others = {motor: {goal for _, m, goal in device.goals if m == motor} for motor in (1, 2, 4, 5, 6)}
    assert elbow.max() == pytest.approx(start + 0.1 * 4096 / (2 * np.pi), abs=1.5)
    assert abs(elbow[-1] - start) <= 1
    assert all(len(goals) <= 2 for goals in others.values()), "nobody else moves"
    per_tick = 0.3 * 3.0 / 50 * 4096 / (2 * np.pi)
    assert np.abs(np.diff(elbow)).max() <= 2.5 * per_tick, "not faster than it may"


def test_what_a_jog_refuses(device, capsys, monkeypatch):
    assert main(["robot", "jog", *options(device), "--axis", "elbow_flex", "--to", "9"]) == 1
    assert "elbow_flex at 9 is outside its range" in capsys.readouterr().err
    assert main(["robot", "jog", *options(device), "--axis", "elbow", "--by", "0.1"]) == 1
    assert "Did you mean 'elbow_flex'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="either"):
        jog(make_robot("so101", port=device.path), "gripper", by=1.0, to=1.0)
    monkeypatch.setattr(jogging, "SETTLE_S", 0.2)
    device.servos[2].speed = 0.0  # blocked
    with pytest.raises(RobotError):
        jog(make_robot("so101", port=device.path, timeout_s=0.05), "shoulder_lift", by=0.2, speed=0.5)


def record(path, embodiment, actions):
    writer = create_dataset(path, embodiment, format="hdf5")
    writer.begin("wave")
    for number, action in enumerate(actions):
        state = actions[max(number - 1, 0)] if embodiment.state else None
        writer.add(Step(images={}, state=state, action=action, reward=0.0, terminated=False, truncated=False,
                        intervened=False, time=number / embodiment.control_hz))  # fmt: skip
    writer.save(True)
    writer.close()


def test_replay_sends_the_recorded_actions(device, tmp_path, capsys):
    robot = make_robot("so101", port=device.path, control_hz=20)
    waves = 0.2 * np.sin(np.linspace(0, 2 * np.pi, 20))[:, None] * np.ones(6)
    actions = np.clip(waves + np.array([0, 0, 0, 0, 0, 0.5]), 0 * waves - 3, 3).astype(np.float32)
    record(tmp_path / "data", robot.embodiment, actions)
    play = ["robot", "replay", *options(device), "--dataset", str(tmp_path / "data")]
    assert main(play) == 0
    said = capsys.readouterr().out
    assert "20 steps" in said and "largest difference from the recorded state" in said
    pan = np.array([goal for _, motor, goal in device.goals if motor == 1])
    wanted = 2115 + actions[:, 0] * 4096 / (2 * np.pi)
    assert all(np.abs(pan - value).min() <= 20 for value in wanted), "each of them, to a degree or two"
    assert main([*play, "--episode", "3"]) == 1
    assert "no episode 3" in capsys.readouterr().err
    assert main([*play, "--speed", "2"]) == 1
    assert "speed is 2" in capsys.readouterr().err


def test_replay_refuses_another_body(device, tmp_path, capsys):
    names = [axis.name for axis in make_robot("so101", port=device.path).limits.axes]
    other = Embodiment("koch", tuple(Part(f"{name}.pos", 1, "other") for name in names), control_hz=20)
    record(tmp_path / "data", other, np.zeros((3, 6), np.float32))
    play = ["robot", "replay", "so101", "--port", device.path, "--dataset", str(tmp_path / "data"), "--robot-args",
            "timeout_s=0.05"]  # fmt: skip
    assert main(play) == 1
    assert "does not fit" in capsys.readouterr().err and not device.goals
    assert main([*play, "units=pm100"]) == 0, "LeRobot's names, LeRobot's units"
