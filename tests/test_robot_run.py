"""`vla-agents robot run`: a flow policy drives an emulated SO-101, from the command to the wire."""

from __future__ import annotations

import json

import numpy as np
import pytest
from emulators.arms import SO101Emulator
from tiny_flow import flow_policy

from vla_agents import robot_cli
from vla_agents.cli import main
from vla_agents.policies.checkpoint import save_policy
from vla_agents.robots import make_robot
from vla_agents.robots.cameras import make_camera
from vla_agents.robots.drivers import servo_arm
from vla_agents.robots.env import RobotEnv

pytest.importorskip("serial")
STEPS = 24


@pytest.fixture(scope="module")
def arm():
    with SO101Emulator() as device:
        yield device


@pytest.fixture(scope="module")
def checkpoint(arm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    robot = make_robot("so101", port=arm.path, calibration=arm.calibration)
    body = RobotEnv(robot, cameras=[make_camera("synthetic", "front", 32, 32)]).embodiment
    return save_policy(flow_policy("gr00t", body=body, horizon=16, execute=4, positions=16), folder / "best")


@pytest.fixture
def run(arm, checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(servo_arm, "SINK_S", 0.05)
    monkeypatch.setattr(robot_cli._console, "width", 200)
    file = arm.calibration.save(tmp_path / "arm.json")

    def command(*more: str, size: int = 32) -> int:
        return main([
            "robot", "run", "so101", "--port", arm.path, "--robot-args", f"calibration={file}", "timeout_s=0.2",
            "--cameras", "front=synthetic", "--camera-size", str(size), str(size), "--agent", str(checkpoint),
            "--instructions", "pick up the cup", "--episodes", "1", "--max-steps", str(STEPS), "--reset-time", "0",
            "--countdown", "0", "--view", "none", "--videos", "0", "--out", str(tmp_path / "out"), *more,
        ])  # fmt: skip

    return command


def test_a_flow_policy_drives_the_arm_and_nobody_judges_it(arm, run, tmp_path, capsys):
    arm.goals.clear()
    assert run() == 0
    said = capsys.readouterr().out
    assert "1 of 1 episodes were judged by nobody" in said and "0.0 %" not in said
    assert "pick up the cup" in said
    assert "chunks go on from what is committed" in said and "chunks planned" in said
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["steps"] for row in report["episodes"]] == [STEPS]
    ways = np.array([raw for _, motor, raw in arm.goals if motor == 1])
    assert len(ways) > 1.5 * STEPS  # 30 actions a second are commands at 60
    assert np.ptp(ways) > 0 and not any(
        servo.table[40] for servo in arm.servos.values()
    )  # it moved, and is let go


def test_chunks_can_begin_anew_and_the_arm_can_wait(run, capsys):
    assert run("--agent-args", "continue_chunks=false", "execute=4") == 0
    assert "chunks begin anew" in capsys.readouterr().out
    assert run("--agent-args", "asynchronous=false") == 0
    assert "synchronous, the arm waits" in capsys.readouterr().out


def test_a_camera_of_another_size_moves_nothing(arm, run, capsys):
    arm.goals.clear()
    assert run(size=48) == 1
    said = capsys.readouterr().err
    assert "camera 'front': checkpoint" in said and "--camera-size HEIGHT WIDTH" in said and not arm.goals
