"""A robot behind rosbridge, over a real websocket: both generations of ROS, a bad network, wrong descriptions."""

from __future__ import annotations

import time

import numpy as np
import pytest
import yaml

from vla_agents.errors import (
    ActionError,
    CommunicationError,
    ConfigError,
    PortNotFoundError,
    RobotError,
    RobotStateError,
)
from vla_agents.robots import make_robot

pytest.importorskip("websockets")
from emulators.rosbridge import RosbridgeEmulator

JOINTS = ("shoulder", "elbow", "gripper")
AXES = [
    {"name": "shoulder", "low": -2.0, "high": 2.0, "velocity": 2.0, "acceleration": 8.0, "home": 0.0},
    {"name": "elbow", "low": -1.0, "high": 2.5, "velocity": 2.0, "acceleration": 8.0, "home": 0.5},
    {"name": "gripper", "low": 0.0, "high": 0.08, "velocity": 0.2, "acceleration": 1.0, "home": 0.0, "unit": "m",
     "kind": "gripper_position"},
]  # fmt: skip
DESCRIPTION = {
    "name": "test_arm",
    "axes": AXES,
    "commands": [{"topic": "/arm_controller/commands", "joints": list(JOINTS)}],
}


@pytest.fixture
def device():
    with RosbridgeEmulator(JOINTS, order=["elbow", "other_joint", "gripper", "shoulder"]) as emulator:
        yield emulator


def robot_of(device, description=None, **options):
    options = {"timeout_s": 0.5, **options}
    return make_robot(
        "ros", host="127.0.0.1", port=device.port, description=description or DESCRIPTION, **options
    )


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


def test_joints_by_their_names_and_goals_at_once(device):
    device.position.update(shoulder=0.1, elbow=0.2, gripper=0.03)
    device.goal.update(device.position)
    with robot_of(device) as robot:
        assert not device.commands, "connecting moves nothing"
        first = robot.observe()
        np.testing.assert_allclose(first.position, [0.1, 0.2, 0.03])
        assert first.effort.tolist() == [1.5, 1.5, 1.5] and robot.observe().time > first.time
        sent = robot.command(np.array([0.3, 0.1, 0.05]))
        wait_until(lambda: device.commands)
        topic, message = device.commands[-1][1:]
        assert topic == "/arm_controller/commands" and message["data"] == sent.tolist() == [0.3, 0.1, 0.05]
        wait_until(lambda: np.allclose(robot.observe().position, sent))
        assert robot.embodiment.name == "test_arm" and robot.limits.names == JOINTS
        with pytest.raises(RobotStateError, match="already"):
            robot.connect()
        with pytest.raises(ActionError, match="nothing was sent"):
            robot.command(np.full(3, np.nan))
    robot.close()
    with pytest.raises(RobotStateError, match="not connected"):
        robot.observe()


@pytest.mark.parametrize("ros", [1, 2])
def test_trajectories_of_both_generations(ros, tmp_path):
    file = tmp_path / "arm.yaml"
    commands = [
        {"topic": "/arm/joint_trajectory", "joints": ["elbow", "shoulder"], "type": "trajectory"},
        {"topic": "/gripper/commands", "joints": ["gripper"]},
    ]
    file.write_text(yaml.safe_dump({**DESCRIPTION, "ros": ros, "commands": commands}))
    with RosbridgeEmulator(JOINTS, ros=ros) as device, robot_of(device, file, control_hz=50) as robot:
        robot.command(np.array([0.3, 0.1, 0.05]))
        wait_until(lambda: len(device.commands) == 2)
        assert device.goals[0][1] == {"elbow": 0.1, "shoulder": 0.3} and device.goals[1][1] == {
            "gripper": 0.05
        }
        duration = device.commands[0][2]["points"][0]["time_from_start"]
        assert duration == (
            {"sec": 0, "nanosec": 20_000_000} if ros == 2 else {"secs": 0, "nsecs": 20_000_000}
        )
        kind = "sensor_msgs/msg/JointState" if ros == 2 else "sensor_msgs/JointState"
        assert device.subscriptions == [("/joint_states", kind)]


def test_a_bad_network(device):
    device.lose, device.garbage, device.delay_s = 0.3, 0.3, 0.005
    with robot_of(device) as robot:
        times = [robot.observe().time for _ in range(20)]
        assert (np.diff(times) > 0).all()
        assert "not rosbridge's" in robot.client.complaints[-1]
        device.null = {"elbow"}
        robot.timeout_s = 0.05
        time.sleep(0.1)
        with pytest.raises(CommunicationError, match="no joint state"):
            for _ in range(3):  # what came before may still be waiting
                robot.observe()


def test_a_lost_server_is_an_error_in_time_and_comes_back(device):
    with robot_of(device, timeout_s=0.1) as robot:
        robot.observe()
        device.hang_up()
        start = time.monotonic()
        with pytest.raises(CommunicationError):
            for _ in range(3):
                robot.observe()
        assert time.monotonic() - start < 1.0

        def refused():
            try:
                robot.command(np.zeros(3))
            except CommunicationError:
                return True

        wait_until(refused)
        device.come_back()

        def seen():
            try:
                return robot.observe()
            except CommunicationError:
                return None

        wait_until(seen)
        robot.command(np.array([0.2, 0.2, 0.02]))
        wait_until(lambda: device.goals and device.goals[-1][1]["shoulder"] == 0.2)


def test_nobody_there_and_no_such_joint(device):
    with pytest.raises(RobotError, match=r"no position of wrist on /joint_states \(heard of: elbow, gripper"):
        axes = [*AXES[:2], {**AXES[2], "name": "wrist"}]
        commands = [{"topic": "/c", "joints": ["shoulder", "elbow", "wrist"]}]
        robot_of(device, {**DESCRIPTION, "axes": axes, "commands": commands}, wait_s=0.3).connect()
    with pytest.raises(
        RobotError, match=r"heard of: nobody\); rosbridge says: no message type sensor_msgs/JointState"
    ):
        robot_of(device, {**DESCRIPTION, "ros": 1}, wait_s=0.3).connect()
    device.close()
    with pytest.raises(PortNotFoundError, match="rosbridge_websocket_launch"):
        robot_of(device).connect()


def test_a_camera_behind_rosbridge(device):
    camera = {"name": "front", "topic": "/camera/image/compressed", "height": 48, "width": 64}
    with robot_of(device, {**DESCRIPTION, "cameras": [camera]}) as robot:
        source = robot.cameras[0]
        source.connect()
        first = source.latest()
        wait_until(lambda: source.latest().number > first.number)
        assert first.image.shape == (48, 64, 3)
        source.close()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"axes": []}, "needs `axes`"),
        ({"axis": []}, "unknown key 'axis'. Did you mean 'axes'"),
        ({"ros": 3}, "ros is 3"),
        ({"axes": [{"nam": "x"}]}, "unknown key 'nam'"),
        ({"axes": [{"name": "x"}]}, "missing"),
        ({"axes": ["x"]}, "is no axis"),
        ({"commands": [{"topic": "/c", "joints": ["elbow"]}]}, "each axis needs one command"),
        ({"commands": [{"topic": "/c", "joints": list(JOINTS), "type": "x"}]}, "unknown type 'x'"),
    ],
)
def test_descriptions_that_are_refused(change, problem):
    with pytest.raises(ConfigError, match=problem):
        make_robot("ros", host="x", description={**DESCRIPTION, **change})


def test_a_description_that_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        make_robot("ros", host="x", description=tmp_path / "none.yaml")
