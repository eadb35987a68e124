"""`RobotEnv`: a robot is an env like any other, and nothing reaches it but through the filter."""

from __future__ import annotations

import logging
import os
import pty
import signal
import threading
import time
import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from robot_fakes import RecordingRobot, planar_limits

import vla_agents
from vla_agents.agent import ExpertAgent
from vla_agents.async_agent import AsyncAgent, asynchronous_for
from vla_agents.collect.recorder import Recorder
from vla_agents.data import create_dataset, open_dataset
from vla_agents.embodiment import Camera
from vla_agents.errors import (
    ActionError,
    CameraError,
    ConfigError,
    EmbodimentMismatchError,
    EmergencyStopError,
    MotorError,
    PortNotFoundError,
    RobotError,
    RobotStateError,
    UnknownNameError,
)
from vla_agents.robots.env import RobotEnv
from vla_agents.robots.estop import EStop
from vla_agents.robots.robot import Frame
from vla_agents.robots.scene import Operator
from vla_agents.rollout import rollout

ARM = "vla_agents/SimulatedArm-v0"


class FakeCamera:
    """A camera whose clock can be stopped."""

    def __init__(self, name: str = "front", size: int = 8) -> None:
        self.camera = Camera(name, size, size)
        self.size, self.frozen, self.open = size, 0.0, False
        self.broken: Exception | None = None

    def connect(self) -> None:
        if self.broken:
            raise self.broken
        self.open = True

    def latest(self) -> Frame:
        now = self.frozen or time.monotonic()
        return Frame(np.full((self.size, self.size, 3), 7, np.uint8), now, int(now * 100))

    def close(self) -> None:
        self.open = False


@pytest.fixture
def env():
    made = RobotEnv(RecordingRobot(hz=50, period=0.02), cameras=[FakeCamera()], instruction="go")
    yield made
    made.close()


HOME = planar_limits().home.astype(np.float32)


# ---- the env ----------------------------------------------------------------------------------------------
def test_the_simulated_arm_passes_gymnasiums_check():
    env = gymnasium.make(ARM, renderer="raycast", image_size=16, hz=50, camera_timeout=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(render|spec).*")
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_reset_drives_home_and_step_moves(env):
    robot = env.robot
    robot.position = robot.limits.home + np.array([0.2, -0.3, 0.05, -0.4])
    obs, info = env.reset(options={"instruction": "do it"})
    assert obs["instruction"] == "do it" and env.observation_space.contains(obs)
    np.testing.assert_allclose(obs["state"], HOME, atol=0.05)
    np.testing.assert_allclose(info["sent"], HOME, atol=1e-6)
    np.testing.assert_allclose(
        robot.wire[0][1], robot.limits.home + np.array([0.2, -0.3, 0.05, -0.4]), atol=1e-3
    )
    action = HOME + np.float32([0.001, 0, 0, 0])
    obs, reward, terminated, truncated, info = env.step(action)
    np.testing.assert_allclose(info["sent"], action, atol=1e-6)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info["interventions"] == {} and info["safety_state"] == "running" and not info["limited"]
    assert set(info["capture_times"]) == {"state", "front"}
    assert 0 <= time.monotonic() - env.capture_time < 1


class Rounding(RecordingRobot):
    """Its device knows steps of 0.0015 only, as a servo does."""

    def command(self, target):
        super().command(target)
        return np.round(target / 0.0015) * 0.0015


def test_between_episodes_nobody_is_silent():
    """Driven home, or its episode over, the arm holds; no watchdog waits for actions, and none is counted."""
    axes = [replace(axis, resolution=0.0015) for axis in planar_limits().axes]
    env = RobotEnv(Rounding(planar_limits(axes=axes), hz=50, period=0.02), max_steps=1)
    env.reset()
    time.sleep(2 * env.robot.limits.watchdog)
    *_, truncated, _ = env.step(HOME + np.float32([0.3, 0, 0, 0]))
    time.sleep(2 * env.robot.limits.watchdog)
    counts = env._loop.now.counts
    env.close()
    assert truncated and counts["watchdog"] == 0


def test_what_was_sent_is_told_where_limits_changed_it(env):
    env.reset()
    far = HOME + np.float32([0.5, 0, 0, 0])
    *_, info = env.step(far)
    assert info["limited"] and info["interventions"]["velocity"] >= 1
    assert info["sent"][0] < far[0]
    np.testing.assert_allclose(info["sent"], info["command"], atol=1e-6)
    np.testing.assert_array_equal(env.robot.wire[-1][1], info["command"])


def test_slow_agents_miss_ticks_and_the_rate_is_kept():
    env = RobotEnv(RecordingRobot(hz=50, period=0.01), divide=2)
    env.reset()
    for _ in range(4):
        env.step(HOME)
    begun, number = time.monotonic(), env._loop.now.number
    for step in range(10):
        if step == 5:
            time.sleep(0.2)
        *_, info = env.step(HOME)
    periods = (time.monotonic() - begun) * 50
    assert 9 <= info["missed_ticks"] <= periods  # ten of them, give or take a busy machine
    assert env._loop.now.number - number >= 2 * 10 + 2 * 9
    assert env.rate().hz == 100 and env.rate().ticks > 20
    env.close()


def test_between_actions_the_loop_interpolates():
    env = RobotEnv(RecordingRobot(hz=10, period=0.02), divide=5)
    env.reset()
    env.step(HOME)
    env.step(HOME + np.float32([0.002, 0, 0, 0]))
    first = [command[0] for _, command in env.robot.wire[-6:]]
    steps = np.diff(first)
    assert (steps >= -1e-12).all() and 0 < steps.max() < 0.001  # no jump
    assert first[-1] == pytest.approx(HOME[0] + 0.002, abs=1e-6)
    env.close()


def test_it_is_made_by_name():
    env = gymnasium.make("vla_agents/Robot-v0", robot="simulated_arm", robot_args={"cameras": []})
    assert env.unwrapped.embodiment.action_dim == 7 and not env.unwrapped.embodiment.cameras
    assert env.spec.nondeterministic
    env.close()
    with pytest.raises(UnknownNameError, match="simulated_arm"):
        RobotEnv("simulated_arms")
    with pytest.raises(ConfigError, match="robot_args"):
        RobotEnv(RecordingRobot(), robot_args={"port": "x"})


def test_a_person_puts_the_scene_in_order():
    asked, answers = [], ["", "something else", ""]

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return answers.pop(0)

    scene = Operator(["lift it", "drop it"], ask=ask)
    robot = RecordingRobot(hz=50, start=planar_limits().home + np.array([0.1, 0, 0, 0]))
    env = RobotEnv(robot, scene=scene, home=False)
    said = [env.reset()[0]["instruction"] for _ in range(3)]
    assert said == ["lift it", "something else", "lift it"]
    assert "Next: drop it." in asked[1]
    assert np.ptp([command[0] for _, command in robot.wire]) == 0  # and nothing drove home
    env.close()


# ---- bad input --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "action",
    [
        HOME * np.nan,
        HOME.astype(float) * 1e300,
        HOME[:3],
        np.stack([HOME, HOME]),
        ["a", "b", "c", "d"],
        None,
        [[0.0], 0.0, 0.0, 0.0],
        HOME + 0.1j,
        HOME > 0,
        HOME.astype(object),
        {"action": HOME},
    ],
)
def test_actions_that_are_none_move_nothing(env, action):
    env.reset()
    before = env.robot.wire[-1][1]
    with pytest.raises(ActionError):
        env.step(action)
    time.sleep(0.1)
    np.testing.assert_array_equal(env.robot.wire[-1][1], before)
    env.step(HOME)  # and it goes on


def test_calls_in_the_wrong_order(env):
    with pytest.raises(RobotStateError, match="reset"):
        env.step(HOME)
    with pytest.raises(RobotStateError):
        env.hold_action()
    with pytest.raises(RobotStateError):
        env.rate()
    env.reset()
    env.close()
    env.close()
    with pytest.raises(RobotStateError):
        env.step(HOME)
    env.reset()  # connects again
    env.step(HOME)


@pytest.mark.parametrize(
    "error", [PortNotFoundError("/dev/ttyACM9: no such device"), MotorError("motor 3 is missing")]
)
def test_what_the_driver_says_comes_before_anything_moves(error):
    robot, camera = RecordingRobot(hz=50), FakeCamera()
    robot.trouble["connect"] = error
    env = RobotEnv(robot, cameras=[camera])
    with pytest.raises(type(error), match=str(error)):
        env.reset()
    assert not robot.wire and not camera.open


def test_cameras():
    robot, good, bad = RecordingRobot(hz=50), FakeCamera("front"), FakeCamera("wrist")
    bad.broken = CameraError("no picture")
    env = RobotEnv(robot, cameras=[good, bad], camera_timeout=0.1)
    with pytest.raises(CameraError, match="no picture"):
        env.reset()
    assert not good.open and not robot.calls  # the robot was not even connected
    bad.broken = None
    bad.size = 9
    with pytest.raises(CameraError, match=r"wrist.*expected"):
        env.reset()
    bad.size = 8
    env.reset()
    good.frozen = time.monotonic() - 0.2
    with pytest.raises(CameraError, match="no new picture from front"):
        env.step(HOME + np.float32(0.1))
    np.testing.assert_allclose(robot.wire[-1][1], HOME, atol=1e-6)  # it held
    threading.Timer(0.05, lambda: setattr(good, "frozen", 0.0)).start()
    env.step(HOME)  # came back in time
    env.close()
    assert not good.open
    with pytest.raises(ConfigError, match="same name"):
        RobotEnv(robot, cameras=[good, FakeCamera("front")])


def test_limits_can_only_be_tightened():
    RobotEnv(RecordingRobot(), limits=planar_limits().scaled(0.2))
    for wider in (planar_limits(box=False), planar_limits(axes=planar_limits().axes[:3])):
        with pytest.raises(ConfigError, match="wider"):
            RobotEnv(RecordingRobot(), limits=wider)
    with pytest.raises(ConfigError):
        RobotEnv(RecordingRobot(), max_steps=0)


def test_home_that_cannot_be_reached_is_an_error():
    robot = RecordingRobot(hz=50)
    robot.position = robot.limits.home + np.array([0.3, 0, 0, 0])
    robot._move = lambda: setattr(robot, "_last", time.monotonic())  # it is stuck
    env = RobotEnv(robot)
    with pytest.raises(RobotError, match="shoulder is off by"):
        env.reset()
    env.close()


# ---- stopping ---------------------------------------------------------------------------------------------
def test_a_stop_needs_clear_and_then_reset(env):
    env.reset()
    env.stop("red button")
    with pytest.raises(EmergencyStopError, match="red button"):
        for _ in range(5):
            env.step(HOME)
    with pytest.raises(EmergencyStopError):
        env.reset()
    env.clear()
    with pytest.raises(RobotStateError, match="reset"):
        env.step(HOME)  # an action from before
    env.reset()
    env.step(HOME)


def test_stops_by_key_and_by_signal():
    estop = EStop()
    master, slave = pty.openpty()
    with os.fdopen(slave, "r") as terminal:
        estop.on_key(" ", terminal)
        os.write(master, b"x")
        time.sleep(0.05)
        assert not estop.reason
        os.write(master, b" ")
        until = time.monotonic() + 5
        while not estop.reason and time.monotonic() < until:
            time.sleep(0.01)
        assert estop.reason == "key ' '"
        estop.close()
    os.close(master)
    estop.clear()
    before = signal.getsignal(signal.SIGUSR1)
    estop.on_signal(signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert estop.reason == "signal SIGUSR1"
    estop.trip("later")
    assert estop.reason == "signal SIGUSR1"  # the first one is told
    estop.close()
    assert signal.getsignal(signal.SIGUSR1) is before
    with open(os.devnull) as stream, pytest.raises(ConfigError, match="terminal"):
        estop.on_key(stream=stream)


def test_interventions_are_logged_not_poured(env, caplog):
    env.reset()
    with caplog.at_level(logging.WARNING, "vla_agents.robots.loop"):
        for step in range(20):
            env.step(HOME + np.float32([0.5 if step % 2 else -0.5, 0, 0, 0]))
    lines = [r.message for r in caplog.records if "velocity" in r.message]
    assert 1 <= len(lines) <= 2


def test_that_the_way_home_keeps_to_the_limits_is_no_warning(env, caplog):
    env.robot.position = env.robot.limits.home + np.array([0.4, -0.3, 0.05, -0.4])
    with caplog.at_level(logging.WARNING, "vla_agents.robots.loop"):
        env.reset()
    assert env._loop.now.counts["acceleration"] and not any("acceler" in r.message for r in caplog.records)


# ---- with everything else ---------------------------------------------------------------------------------
def test_the_expert_of_the_tabletop_drives_the_simulated_arm(tmp_path):
    env = gymnasium.make(ARM, renderer="raycast", image_size=16, max_steps=200, camera_timeout=5.0)
    tabletop = gymnasium.make("vla_agents/Tabletop-v0", image_size=16)
    tabletop.unwrapped.embodiment.require(env.unwrapped.embodiment)  # its agents run here unchanged
    writer = create_dataset(tmp_path / "data", env.unwrapped.embodiment, "hdf5")
    with ExpertAgent(env) as agent:
        results = rollout(env, agent, range(3), [Recorder(writer)])
    writer.close()
    env.close()
    assert sum(result.success for result in results) >= 2
    assert "safety_state" in results[0].info and "missed_ticks" in results[0].info
    episode = open_dataset(tmp_path / "data").read(0)
    assert len(episode) == results[0].steps
    # The limits changed some actions: what was sent is the label, what was asked for stands beside it.
    assert episode.commanded is not None and not np.allclose(episode.commanded, episode.action)
    between = np.diff(
        episode.time
    )  # capture times, at the control rate; single ticks may be late, then the next is early
    assert (between > 0).all() and np.median(between) > 0.04


def test_an_asynchronous_agent_drives_the_robot():
    class Planner:
        horizon, default_execute, continues = 40, 20, False

        def __init__(self, embodiment) -> None:
            self.embodiment = embodiment

        def plan(self, obs, prefix=None, committed=0):
            time.sleep(0.15)
            wave = np.cumsum(np.full(self.horizon, 0.0002))[:, None] * np.array([1, 0, 0, 0])
            return (obs["state"] + wave).astype(np.float32)

        def reset(self, *, seed=None) -> None: ...

        def close(self) -> None: ...

    env = RobotEnv(RecordingRobot(hz=50, period=0.02), instruction="go", max_steps=60)
    took: list[float] = []
    with asynchronous_for(Planner(env.embodiment), env) as agent:
        act = agent.act

        def timed(obs):
            begun = time.monotonic()
            action = act(obs)
            took.append(time.monotonic() - begun)
            return action

        agent.act = timed
        (result,) = rollout(env, agent, [0])
        report = agent.report()
    assert result.steps == 60
    assert report.plans >= 3
    assert report.idle < report.ticks / 2  # the wait for the first plan, and what a busy machine adds
    assert sum(t > 0.15 for t in took) < report.plans  # act did not wait for the 0.15 s of each plan
    env.close()


def test_load_agent_asynchronous(tmp_path, monkeypatch):
    from fake_env import FakePolicy

    monkeypatch.setattr(FakePolicy, "bodies", {}, raising=False)
    monkeypatch.setattr("vla_agents.policies.checkpoint.load_policy", lambda *_, **__: FakePolicy())
    with vla_agents.load_agent(tmp_path, asynchronous=True, when_late="slow", execute=2) as agent:
        assert isinstance(agent, AsyncAgent) and agent.execute == 2
    for wrong in ({"ensemble": "act"}, {"when_late": "hold", "asynchronous": False}):
        with pytest.raises(ConfigError, match="asynchronous"):
            vla_agents.load_agent(tmp_path, **({"asynchronous": True} | wrong))
    robot = RobotEnv(RecordingRobot())
    with pytest.raises(EmbodimentMismatchError):
        vla_agents.load_agent(tmp_path, env=robot, asynchronous=True)
