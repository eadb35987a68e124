"""A leader arm over its real wire protocol: an emulated bus on a pseudo-terminal."""

from __future__ import annotations

import time

import numpy as np
import pytest
from device_fakes import Body, joints_body
from emulators.arms import SO101Emulator, dynamixel_arm

from vla_agents.collect.devices.leader import LeaderDevice
from vla_agents.errors import (
    CalibrationError,
    ConfigError,
    EmbodimentMismatchError,
    PortNotFoundError,
)
from vla_agents.robots import make_robot
from vla_agents.robots.drivers import servo_arm
from vla_agents.robots.drivers.dynamixel_arms import Koch, KochLeader
from vla_agents.robots.env import RobotEnv

pytest.importorskip("serial")


@pytest.fixture
def emulator():
    with SO101Emulator() as device:
        yield device


def follower(emulator, units="rad") -> Body:
    arm = make_robot("so101", port="nowhere", calibration=emulator.calibration, units=units)
    return Body(arm.embodiment)


def lead(emulator, **options) -> LeaderDevice:
    options = {"calibration": emulator.calibration, "timeout_s": 0.05, **options}
    return LeaderDevice(follower(emulator), port=emulator.path, **options)


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


MIDDLE = np.array([0, 0, 0, 0, 0, 0.5], np.float32)


def obs(state=MIDDLE):
    return {"state": np.asarray(state, np.float32), "instruction": ""}


def test_torque_is_off_and_the_follower_closes_in_then_repeats(emulator):
    with lead(emulator) as leader:
        assert not any(servo.table[40] for servo in emulator.servos.values())
        start = np.array([0.5, -0.4, 0.3, 0, 0, 0.9], np.float32)
        low, high = leader._low, leader._high
        actions = [leader.act(obs(start))]
        most = 0.25 * (high - low) / 30
        last = start
        for action in actions:
            assert (np.abs(action - last) <= most + 1e-6).all()
            last = action
        for _ in range(200):
            action = leader.act(obs(start))
            assert (np.abs(action - last) <= most + 1e-6).all()
            last = action
        assert np.allclose(last, MIDDLE, atol=2e-3)  # the leader stands in the middle
        # Now it follows at once.
        emulator.servos[1].position += 300
        turned = 300 * 2 * np.pi / 4096
        until(lambda: abs(leader.act(obs())[0] - turned) < 2e-3)


def test_a_takeover_starts_from_what_the_policy_did(emulator):
    with lead(emulator) as leader:
        assert leader.switched
        leader.engaged = False
        policy = np.array([0.6, 0.6, 0, 0, 0, 1.0], np.float32)
        leader.follow(obs(), policy)
        assert np.allclose(leader.act(obs()), policy)  # not engaged: it holds
        leader.engaged = True
        assert np.abs(leader.act(obs()) - policy).max() < 0.05


def test_a_leader_that_is_lost_holds_and_comes_back_by_itself(emulator, monkeypatch):
    from vla_agents.collect.devices import leader as module

    monkeypatch.setattr(module, "RETRY_S", 0.1)
    with lead(emulator) as leader:
        for _ in range(200):
            held = leader.act(obs())
        emulator.faults.mute = set(emulator.servos)
        until(lambda: leader.trouble != "")
        for servo in emulator.servos.values():
            servo.position += 200
        assert np.array_equal(leader.act(obs()), held)
        emulator.faults.mute = set()
        until(lambda: not leader.trouble)
        assert np.abs(leader.act(obs()) - held).max() < 0.06  # closes in again, no leap


def test_the_leaders_range_ends_at_the_followers(emulator, caplog):
    names = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll"]
    narrow = joints_body(names, -0.5, 0.5, gripper=True, hz=30.0)
    with LeaderDevice(narrow, port=emulator.path, calibration=emulator.calibration, timeout_s=0.05) as leader:
        assert "it stops there" in caplog.text
        emulator.servos[1].position += 1000  # 1.5 rad
        for _ in range(300):
            action = leader.act(obs())
            time.sleep(0.001)
        assert action[0] == pytest.approx(0.5)


def test_a_dynamixel_leader_leads_its_follower():
    with dynamixel_arm(KochLeader) as device:
        calibration = dynamixel_arm(Koch).calibration
        follower = Koch("nowhere", calibration=calibration)
        with LeaderDevice(
            Body(follower.embodiment), robot="koch_leader", port=device.path,
            calibration=device.calibration, timeout_s=0.05,
        ) as leader:  # fmt: skip
            assert not any(servo.table[64] for servo in device.servos.values())
            for _ in range(200):
                action = leader.act({"state": np.zeros(6, np.float32)})
            assert np.allclose(action, [0, 0, 0, 0, 0, 0.5], atol=2e-3)


def test_leader_and_follower_over_two_buses(emulator, monkeypatch):
    monkeypatch.setattr(servo_arm, "SINK_S", 0.05)
    with SO101Emulator() as second:
        robot = make_robot(
            "so101", port=second.path, calibration=second.calibration, timeout_s=0.05, home={"gripper": 0.5}
        )
        env = RobotEnv(robot, instruction="follow")
        try:
            observation, _ = env.reset()
            with LeaderDevice(
                env, port=emulator.path, calibration=emulator.calibration, timeout_s=0.05
            ) as leader:
                leader.reset()
                emulator.servos[2].position += 150
                wanted = 150 * 2 * np.pi / 4096
                for _ in range(400):
                    observation, _, _, _, _ = env.step(leader.act(observation))
                    if abs(observation["state"][1] - wanted) < 0.02:
                        break
                assert abs(observation["state"][1] - wanted) < 0.02
        finally:
            env.close()


def test_errors_before_anything_moves(emulator, tmp_path):
    with pytest.raises(ConfigError, match="port=/dev"):
        LeaderDevice(follower(emulator))
    with pytest.raises(CalibrationError, match="robot calibrate"):
        LeaderDevice(follower(emulator), port=emulator.path)  # nobody has calibrated a "leader"
    with pytest.raises(PortNotFoundError, match="robot find"):
        LeaderDevice(
            follower(emulator), port=str(tmp_path / "tty"), calibration=emulator.calibration
        ).connect()
    emulator.servos[3].table[9:11] = (1).to_bytes(2, "little")  # another arm than the file says
    with pytest.raises(CalibrationError, match="elbow_flex"):
        lead(emulator).connect()


def test_a_leader_of_another_shape_is_refused(emulator):
    options = {"port": emulator.path, "calibration": emulator.calibration}
    with pytest.raises(EmbodimentMismatchError) as caught:
        LeaderDevice(joints_body([f"joint{i}" for i in range(7)]), **options)
    assert "the leader's 'shoulder_pan' has no joint" in str(caught.value)
    assert "the follower's 'joint6' is led by no joint" in str(caught.value)
    with pytest.raises(EmbodimentMismatchError, match="same units="):
        LeaderDevice(follower(emulator, "deg"), units="rad", joints={}, **options)
    assert LeaderDevice(follower(emulator, "deg"), **options).arm.limits.names[0] == "shoulder_pan.pos"
    names = {
        name: f"j{index}"
        for index, name in enumerate(
            ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
        )
    }
    LeaderDevice(joints_body(names.values(), gripper=True), joints=names, **options)
