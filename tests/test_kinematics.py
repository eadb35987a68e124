"""Inverse kinematics against forward kinematics, and against the textbook."""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from device_fakes import FakeHand
from emulators.ur import UREmulator
from scipy.spatial.transform import Rotation

from vla_agents.collect.devices.hand import EndEffectorDevice, Motion
from vla_agents.errors import ConfigError, UnknownNameError
from vla_agents.robots import make_robot
from vla_agents.robots.env import RobotEnv
from vla_agents.robots.kinematics import Kinematics, Pose

HOLDS = ("watchdog", "stale_reading")

# Universal Robots' published table of the UR5e: a, d, alpha.
DH = [
    (0, 0.1625, np.pi / 2), (-0.425, 0, 0), (-0.3922, 0, 0), (0, 0.1333, np.pi / 2), (0, 0.0997, -np.pi / 2), (0, 0.0996, 0)
]  # fmt: skip
FIVE = """<mujoco><worldbody>
  <body><joint name="pan" axis="0 0 1" range="-110 110" limited="true"/><geom size=".01"/>
  <body pos="0 0 .1"><joint name="lift" axis="0 1 0" range="-100 100" limited="true"/><geom size=".01"/>
  <body pos="0 0 .12"><joint name="elbow" axis="0 1 0" range="-100 100" limited="true"/><geom size=".01"/>
  <body pos="0 0 .13"><joint name="flex" axis="0 1 0" range="-95 95" limited="true"/><geom size=".01"/>
  <body pos="0 0 .06"><joint name="roll" axis="0 0 1" range="-160 160" limited="true"/><geom size=".01"/>
  <site name="tip" pos="0 0 .05"/></body></body></body></body></body></worldbody></mujoco>"""


@pytest.fixture(scope="module")
def ur5e() -> Kinematics:
    return Kinematics("ur5e")


def textbook(joints: np.ndarray) -> np.ndarray:
    total = np.eye(4)
    for angle, (a, d, alpha) in zip(joints, DH, strict=True):
        turn = np.eye(4)
        turn[:3, :3] = (Rotation.from_euler("z", angle) * Rotation.from_euler("x", alpha)).as_matrix()
        turn[:3, 3] = Rotation.from_euler("z", angle).apply([a, 0, d])
        total = total @ turn
    return total


def test_forward_kinematics_are_those_of_the_published_table(ur5e):
    for joints in np.random.default_rng(0).uniform(-3, 3, (50, 6)):
        pose, wanted = ur5e.forward(joints), textbook(joints)
        assert np.allclose(pose.position, wanted[:3, 3], atol=1e-9)
        assert np.allclose(pose.rotation.as_matrix(), wanted[:3, :3], atol=1e-9)


def test_the_jacobian_is_the_derivative(ur5e):
    joints, small = np.array([0.3, -1.2, 1.4, -0.8, -1.1, 0.5]), 1e-6
    columns = [ur5e.forward(joints).error(ur5e.forward(joints + small * unit)) / small for unit in np.eye(6)]
    assert np.allclose(ur5e.jacobian(joints), np.array(columns).T, atol=1e-5)


def test_round_trip_within_a_tenth_of_a_millimetre(ur5e):
    random = np.random.default_rng(1)
    for joints in random.uniform(-3, 3, (150, 6)):
        goal = ur5e.forward(joints)
        found = ur5e.inverse(goal, joints + random.normal(0, 0.2, 6), iterations=100)
        reached = ur5e.forward(found.joints)
        assert np.linalg.norm(reached.position - goal.position) <= 1e-4
        assert (reached.rotation * goal.rotation.inv()).magnitude() <= 1e-3
        assert (found.joints >= ur5e.low).all() and (found.joints <= ur5e.high).all()


def test_a_goal_out_of_reach_is_approached_within_limits(ur5e):
    start = np.array([0.0, -1.5, 1.5, -1.5, -1.5, 0.0])
    goal = Pose(np.array([3.0, 0.0, 0.5]), ur5e.forward(start).rotation)
    found = ur5e.inverse(goal, start, iterations=200)
    assert np.isfinite(found.joints).all() and found.position_error > 1.5
    before = np.linalg.norm(goal.position - ur5e.forward(start).position)
    assert found.position_error < before
    assert (found.joints >= ur5e.low).all() and (found.joints <= ur5e.high).all()


def test_near_singular_positions_a_small_step_stays_small(ur5e):
    """Stretched out straight and with the wrist straight, the plain pseudo-inverse explodes."""
    period = 0.05
    for start in (
        np.zeros(6),
        np.array([0, -1.57, 0, -1.57, 0, 0.0]),
        np.array([0.3, -1, 1e-6, 0.5, 1e-7, 0]),
    ):
        here = ur5e.forward(start)
        for direction in np.concatenate([np.eye(6), -np.eye(6)]):
            step = np.concatenate([direction[:3] * 0.01, direction[3:] * 0.05])
            found = ur5e.inverse(here.moved(step), start, low=start - period, high=start + period)
            assert np.abs(found.joints - start).max() <= period + 1e-12


def test_five_joints_keep_the_position_and_give_up_the_orientation():
    import mujoco

    arm = Kinematics(mujoco.MjModel.from_xml_string(FIVE))
    assert arm.joints == ("pan", "lift", "elbow", "flex", "roll")
    start = np.array([0.1, 0.4, 0.6, 0.5, 0.2])
    goal = arm.forward(start).moved(np.array([0.02, 0.03, -0.02, 0, 0, 0]))
    found = arm.inverse(goal, start, rotation_weight=0.01)
    assert found.position_error <= 1e-3


def test_joints_at_their_limit_let_the_others_work():
    import mujoco

    arm = Kinematics(mujoco.MjModel.from_xml_string(FIVE))
    start = np.array([0.0, 0.3, arm.high[2], 0.1, 0.0])  # the elbow cannot bend further
    goal = arm.forward(start).moved(np.array([-0.03, 0, -0.03, 0, 0, 0]))
    found = arm.inverse(goal, start, rotation_weight=0.001, iterations=200)
    assert (found.joints <= arm.high).all() and found.position_error <= 1e-3


URDF = """<robot name="two">
  <link name="base"><visual><geometry><mesh filename="meshes/nobody_has_this.stl"/></geometry></visual></link>
  <joint name="pan" type="revolute"><parent link="base"/><child link="a"/><origin xyz="0 0 0.05"/><axis xyz="0 0 1"/>
    <limit lower="-1.9" upper="1.9" effort="1" velocity="1"/></joint>
  <link name="a"/>
  <joint name="lift" type="revolute"><parent link="a"/><child link="b"/><origin xyz="0 0 0.1" rpy="0 0.2 0"/>
    <axis xyz="0 1 0"/><limit lower="-1.7" upper="1.7" effort="1" velocity="1"/></joint>
  <link name="b"/>
  <joint name="frame" type="fixed"><parent link="b"/><child link="tool"/><origin xyz="0 0 0.2"/></joint>
  <link name="tool"/>
</robot>"""


def test_a_urdf_without_its_meshes(tmp_path):
    file = tmp_path / "two.urdf"
    file.write_text(URDF)
    arm = Kinematics(str(file), "tool")
    assert arm.joints == ("pan", "lift") and np.allclose(arm.high, [1.9, 1.7])
    wanted = [0.2 * np.sin(0.2), 0, 0.15 + 0.2 * np.cos(0.2)]
    assert np.allclose(arm.forward(np.zeros(2)).position, wanted)
    file.write_text("<robot")
    with pytest.raises(ConfigError, match="MuJoCo can read"):
        Kinematics(str(file), "tool")


def test_the_example_leads_the_arm_along_its_figure(tmp_path):
    path = Path(__file__).parent.parent / "examples" / "lead_an_arm.py"
    spec = importlib.util.spec_from_file_location("lead_an_arm", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    joints, reached, wanted = example.main(str(tmp_path / "picture.png"))
    assert np.linalg.norm(reached - wanted, axis=1).max() <= 1e-3 and np.ptp(reached[:, 1]) > 0.29
    assert np.abs(np.diff(joints, axis=0)).max() < 0.05 and (tmp_path / "picture.png").exists()


def test_a_hand_leads_an_emulated_ur():
    """Hand -> inverse kinematics -> safety filter -> RTDE -> the controller's emulator."""
    arm = Kinematics("ur5e")
    home = [0.0, -1.4, 1.6, -1.8, -1.57, 0.0]
    with UREmulator() as controller:
        controller.q, controller.speed = list(home), 10.0
        robot = make_robot("ur", host="127.0.0.1", timeout_s=0.5, home=home, **controller.ports)
        env = RobotEnv(robot, hz=20)
        try:
            obs, _ = env.reset()
            hand = FakeHand(has_clutch=False, motion=Motion())
            device = EndEffectorDevice(env, hand, model="ur5e", speed=0.1, curve=1.0)
            device.connect()
            assert np.allclose(device.act(obs), home, atol=1e-3)
            start = arm.forward(np.array(home)).position
            hand.motion = Motion(rate=np.array([0, 0, 1.0, 0, 0, 0]))
            steps, held = 0, Counter()

            def lead(until):
                """5 mm a step; where the arm was held meanwhile, on a busy machine, that way is not made up for."""
                nonlocal obs, steps
                while (moved := arm.forward(np.array(controller.q)).position - start)[
                    2
                ] < until and steps < 200:
                    obs, *_, info = env.step(device.act(obs))
                    held.update(name for name in HOLDS if name in info["interventions"])
                    steps += 1
                return moved

            lead(0.05)
            usual = 10 <= steps <= 13  # 10, and what the arm lags behind
            assert usual or held or env._missed
            time.sleep(
                2 * robot.limits.watchdog
            )  # nobody acts: it rests where it was told to be, and goes on
            moved = lead(0.1)
            assert env._missed and np.allclose(moved[:2], 0, atol=2e-3) and 0.1 <= moved[2] < 0.11
            hand.motion = Motion()
            for _ in range(10):
                obs, *_ = env.step(device.act(obs))
            rest = arm.forward(np.array(controller.q)).position - start
            assert (
                np.allclose(rest[:2], 0, atol=2e-3) and moved[2] - 1e-3 <= rest[2] < 0.125
            )  # the lag, made up for
        finally:
            env.close()


def test_errors_name_what_there_is():
    with pytest.raises(ConfigError, match="ur5e"):
        Kinematics("no-such-arm")
    with pytest.raises(UnknownNameError, match="flange"):
        Kinematics("ur5e", tip="flang")
    with pytest.raises(UnknownNameError, match="wrist_1"):
        Kinematics("ur5e", joints=["wrist_9"])
