"""The keyboard device: a real pseudo-terminal, the kernel's events, and devices without a person."""

from __future__ import annotations

import sys
import types

import gymnasium as gym
import numpy as np
import pytest
from device_fakes import OBS, TABLETOP, Clock, DeviceFile
from test_keys import Terminal

import vla_agents.envs  # noqa: F401  the ids
from vla_agents.collect.devices.held_keys import TAP_S, TerminalKeys
from vla_agents.collect.devices.keyboard import KeyboardDevice, KeyboardSource
from vla_agents.collect.keys import OPERATOR_KEYS, KeyReader
from vla_agents.collect.teleop import Event, make_device
from vla_agents.errors import ConfigError, MissingDependencyError, RobotError, UnknownNameError

IDLE = [0, 0, 0, 0, 0, 0, -1]

PROGRAM = """
    import time
    import numpy as np
    from vla_agents.collect.devices.keyboard import KeyboardDevice
    from vla_agents.embodiment import Embodiment
    from vla_agents.envs.tabletop.env import tabletop_embodiment

    class Body: pass
    body = Body()
    body.embodiment, body.unwrapped = tabletop_embodiment(16, 16, ()), body
    obs = {"state": np.zeros(8, np.float32), "instruction": ""}
    with KeyboardDevice(body) as device:
        print("ready", flush=True)
        total, events = np.zeros(6), []
        while "quit" not in events:
            action = device.act(obs)
            total += action[:6]
            events += device.events()
            if action[:6].any(): print("moves", flush=True)
            time.sleep(0.02)
        print("TOTAL", *np.sign(total).astype(int), int(action[6]), *events, flush=True)
"""


def test_keys_of_a_terminal_lead_and_ask():
    terminal = Terminal(PROGRAM)
    terminal.wait_for("ready")
    terminal.press(b"w")
    terminal.wait_for("moves")
    terminal.press(b"w" * 3)
    terminal.press(b"\x1b[D")
    terminal.press(b"L ")  # caps lock: still the l key
    terminal.press(b"\r\tq")
    text = terminal.wait_for("quit")
    assert "TOTAL 1 1 0 0 0 -1 1 save takeover quit" in text
    assert terminal.end() == 0


def keyboard(clock: Clock) -> tuple[KeyboardDevice, TerminalKeys]:
    device = KeyboardDevice(TABLETOP, keys=KeyReader(), clock=clock)
    keys = device.source._backend
    keys._inbox = keys._reader.inbox()
    device.act(OBS)
    return device, keys


def test_a_press_moves_for_a_moment_and_a_repeated_key_until_it_stops():
    clock = Clock()
    device, keys = keyboard(clock)
    keys._inbox.put("w", clock.now)
    assert device.act(OBS)[0] == pytest.approx(0.25)
    clock.now += TAP_S + 0.001
    assert device.act(OBS).tolist() == IDLE
    for _ in range(10):
        clock.now += 0.033
        keys._inbox.put("w", clock.now)
        assert device.act(OBS)[0] > 0
    clock.now += TAP_S + 0.001  # the connection is lost, or the key let go
    assert device.act(OBS).tolist() == IDLE


def test_speed_gripper_and_shared_keys():
    clock = Clock()
    device, keys = keyboard(clock)
    for key in ("-", "-", "w", "space", "enter"):
        keys._inbox.put(key, clock.now)
    action = device.act(OBS)
    assert action[0] == pytest.approx(0.25 * 0.64) and action[6] == 1
    assert device.events() == []  # the reader's owner sees to them
    keys._reader.ended = True
    assert "gone" in keys.trouble and device.act(OBS)[:6].tolist() == [0] * 6


def test_moving_keys_and_the_operators_keys_are_different_ones():
    from vla_agents.collect.devices.keyboard import FASTER, GRIP, MOVES, SLOWER

    assert not set(OPERATOR_KEYS) & {*MOVES, *GRIP, *SLOWER, *FASTER}
    assert set(KeyboardSource(TerminalKeys(KeyReader())).controls()) >= {"enter", "tab", "space, g"}


def test_the_kernels_keys_have_releases(tmp_path):
    file = DeviceFile(tmp_path / "event0")
    with KeyboardDevice(TABLETOP, backend="evdev", path=file.path) as device:
        device.act(OBS)
        file.events((1, 17, 1))  # w down
        assert [device.act(OBS)[0] > 0 for _ in range(5)] == [True] * 5
        file.events((1, 17, 2))  # the kernel repeats
        file.events((1, 17, 0), (1, 28, 1))
        assert device.act(OBS).tolist() == IDLE and device.events() == [Event.SAVE]
    file.close()


def test_pynput_where_it_is_there(monkeypatch):
    device = KeyboardDevice(TABLETOP, backend="pynput")
    monkeypatch.setitem(sys.modules, "pynput", None)
    with pytest.raises((MissingDependencyError, RobotError), match="pynput"):
        device.connect()
    listeners = []

    class Listener:
        def __init__(self, on_press, on_release):
            self.press, self.release = on_press, on_release
            listeners.append(self)

        def start(self): ...
        def stop(self): ...

    module = types.ModuleType("pynput")
    module.keyboard = types.SimpleNamespace(Listener=Listener)
    monkeypatch.setitem(sys.modules, "pynput", module)
    with KeyboardDevice(TABLETOP, backend="pynput") as device:
        device.act(OBS)
        (listener,) = listeners
        listener.press(types.SimpleNamespace(char="w"))
        listener.press(types.SimpleNamespace(name="page_up"))
        assert (device.act(OBS)[[0, 2]] > 0).all()
        listener.release(types.SimpleNamespace(char="w"))
        listener.release(types.SimpleNamespace(name="page_up"))
        assert device.act(OBS).tolist() == IDLE


def test_backends_are_named():
    with pytest.raises(UnknownNameError, match="evdev"):
        make_device("keyboard", TABLETOP, backend="evdevs")


def test_the_simulated_arm_is_led_by_its_joints():
    from device_fakes import FakeHand

    from vla_agents.collect.devices.hand import EndEffectorDevice, Motion

    env = gym.make("vla_agents/SimulatedArm-v0", cameras=(), actions="axes")
    try:
        obs, _ = env.reset(seed=0)
        hand = FakeHand(has_clutch=False, motion=Motion())
        device = EndEffectorDevice(env, hand, speed=0.1, curve=1.0)
        device.connect()
        assert np.allclose(device.act(obs)[:3], obs["state"][:3], atol=0.02)
        hand.motion = Motion(rate=np.array([0, 1.0, 0, 0, 0, 0]))
        start = obs["state"][:3].copy()
        for _ in range(20):
            obs, *_ = env.step(device.act(obs))
        assert obs["state"][1] - start[1] > 0.06 and abs(obs["state"][0] - start[0]) < 0.01
    finally:
        env.close()


def test_the_expert_and_a_replay_are_devices_too(tmp_path):
    from vla_agents.collect.collect import CollectConfig, collect

    options = {"task": "lift", "cameras": []}
    collect(CollectConfig(tmp_path / "data", env_args=options, episodes=1, seed=3), progress=False)
    env = gym.make("vla_agents/Tabletop-v0", **options)

    def play(device) -> bool:
        with device:
            obs, info = env.reset(seed=3)
            device.reset(seed=3)
            for _ in range(300):
                obs, _, terminated, truncated, info = env.step(device.act(obs))
                if terminated or truncated:
                    return info["success"]
                assert device.engaged and not device.trouble
        return False

    assert play(make_device("expert", env))
    replay = make_device("replay", env, dataset=str(tmp_path / "data"))
    assert play(replay)
    assert replay.events() == [Event.SAVE] and replay.events() == []
    with pytest.raises(ConfigError, match="no episode 7"):
        make_device("replay", env, dataset=str(tmp_path / "data"), episode=7)
    with pytest.raises(ConfigError, match="dataset=FOLDER"):
        make_device("replay", env)
    env.close()
