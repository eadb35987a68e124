"""Devices that lead the tool: clutch, dead zone, scales, units, and what happens when they are lost."""

from __future__ import annotations

import numpy as np
import pytest
from device_fakes import OBS, TABLETOP, Body, Clock, DeviceFile, FakeHand, joints_body
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_agents.collect.devices.evdev import ABS, KEY, choose_input, explain_open, list_inputs
from vla_agents.collect.devices.gamepad import HAT_Y, LEFT_Y, RB, SOUTH, START, GamepadDevice
from vla_agents.collect.devices.hand import EndEffectorDevice, Motion
from vla_agents.collect.devices.spacemouse import SpaceMouseDevice, list_spacemice
from vla_agents.collect.teleop import DEVICES, Event, make_device
from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ConfigError, PortNotFoundError, PortPermissionError, UnknownNameError
from vla_agents.robots.env import RobotEnv
from vla_agents.robots.kinematics import Kinematics

IDLE = [0, 0, 0, 0, 0, 0, -1]
AHEAD = np.array([1.0, 0, 0, 0, 0, 0])


def device(hand=None, env=TABLETOP, armed=True, **options) -> tuple[EndEffectorDevice, FakeHand]:
    hand = hand or FakeHand()
    made = EndEffectorDevice(env, hand, **options)
    made.connect()
    if armed:
        made.act(OBS)
    return made, hand


# ---- units -------------------------------------------------------------------------------------------------------
def test_a_rate_becomes_a_delta_in_the_envs_units():
    led, hand = device(speed=0.25, turn=1.0, curve=1.0)
    hand.motion = Motion(rate=np.array([1.0, 0, 0, 0, 0, -1.0]), held=True)
    action = led.act(OBS)
    # 0.25 m/s and 1 rad/s at 20 Hz; 1.0 stands for 0.05 m and 0.5 rad.
    assert np.allclose(action, [0.25, 0, 0, 0, 0, -0.1, -1]) and action.dtype == np.float32


def test_the_hands_own_way_is_followed_one_to_one_and_never_faster_than_allowed():
    led, hand = device()
    hand.motion = Motion(way=np.array([0.01, 0, 0, 0, 0, 0]), held=True)
    assert np.allclose(led.act(OBS)[:3], [0.2, 0, 0])  # 10 mm
    hand.motion = Motion(way=np.array([5.0, 0, 0, 0, 0, 0]), held=True)  # a leap
    assert np.allclose(led.act(OBS)[0], 0.5)  # 0.5 m/s
    hand.motion = Motion(held=True)
    rest = [led.act(OBS)[0] for _ in range(6)]
    assert np.allclose(rest, [0.5, 0.5, 0, 0, 0, 0])  # 0.1 s of it were kept, the rest was dropped


def test_where_the_operator_stands_turns_the_axes():
    led, hand = device(yaw=90.0, curve=1.0)
    hand.motion = Motion(rate=AHEAD, held=True)
    assert np.allclose(led.act(OBS)[:3], [0, 0.25, 0], atol=1e-7)


def test_faster_than_the_env_allows_keeps_its_direction():
    led, hand = device(speed=5.0, curve=1.0, deadzone=0.0)
    hand.motion = Motion(rate=np.array([1.0, 0.5, 0, 0, 0, 0]), held=True)
    action = led.act(OBS)
    assert np.allclose(action[:2], [1.0, 0.5]) and np.abs(action).max() <= 1


def test_the_gripper_in_every_convention():
    for kind, closed, opened in (
        ("gripper_open_01", 0, 1),
        ("gripper_close_01", 1, 0),
        ("gripper_close_pm1", 1, -1),
        ("gripper_open_pm1", -1, 1),
        ("gripper_position", 0.01, 0.05),
    ):
        low, high = sorted((closed, opened))
        parts = (
            Part("p", 3, "delta_xyz", -1, 1, "cm"),
            Part("g", 1, kind, low, high),
        )
        led, hand = device(env=Body(Embodiment("b", parts, (Part("g", 1, kind, low, high),))), armed=False)
        obs = {"state": np.array([opened], np.float32)}
        for opening, value in ((0.0, closed), (1.0, opened), (None, opened)):
            hand.motion = Motion(grip=opening, held=False)
            assert led.act(obs)[3] == pytest.approx(value)


def test_absolute_poses_start_from_the_state():
    parts = (Part("at", 3, "xyz", -1, 1, "m"), Part("q", 4, "quaternion_xyzw"))
    body = Body(Embodiment("posed", parts, parts, (), 10.0))
    led, hand = device(env=body, armed=False, speed=0.1, turn=1.0, curve=1.0)
    obs = {"state": np.array([0.2, 0.3, 0.4, 0, 0, 0, 1], np.float32)}
    assert np.allclose(led.act(obs), obs["state"])
    hand.motion = Motion(rate=np.array([0, 0, 1.0, 0, 0, 1.0]), held=True)
    action = led.act(obs)
    assert np.allclose(action[:3], [0.2, 0.3, 0.41])
    assert np.allclose(action[3:], [0, 0, np.sin(0.05), np.cos(0.05)])


def test_units_that_are_not_stated_are_refused():
    body = Body(Embodiment("b", (Part("p", 3, "delta_xyz", -1, 1),)))
    with pytest.raises(ConfigError, match=r"how far 1\.0 is"):
        EndEffectorDevice(body, FakeHand())
    with pytest.raises(ConfigError, match="model="):
        EndEffectorDevice(joints_body("abc"), FakeHand())
    with pytest.raises(ConfigError, match="speed=-1"):
        EndEffectorDevice(TABLETOP, FakeHand(), speed=-1)


# ---- clutch ------------------------------------------------------------------------------------------------------
def test_nothing_moves_unless_the_switch_is_held():
    led, hand = device(curve=1.0)
    hand.motion = Motion(rate=AHEAD, way=AHEAD, held=False)
    assert led.act(OBS).tolist() == IDLE and not led.engaged
    hand.motion = Motion(rate=AHEAD, held=True)
    assert led.act(OBS)[0] > 0 and led.engaged


def test_after_connect_and_reset_it_has_to_be_neutral_once():
    led, hand = device(armed=False)
    hand.motion = Motion(rate=AHEAD, held=True)  # somebody holds it already
    for _ in range(3):
        assert led.act(OBS).tolist() == IDLE and "neutral" in led.trouble
    hand.motion = Motion(held=False)
    led.act(OBS)
    hand.motion = Motion(rate=AHEAD, held=True)
    assert led.act(OBS)[0] > 0 and not led.trouble
    led.reset(seed=1)
    assert led.act(OBS).tolist() == IDLE


def test_a_stick_that_does_not_rest_in_the_middle_never_arms():
    led, hand = device(armed=False)
    hand.motion = Motion(rate=0.5 * AHEAD, held=False)
    led.act(OBS)
    hand.motion = Motion(rate=0.5 * AHEAD, held=True)
    assert led.act(OBS).tolist() == IDLE and "neutral" in led.trouble


def test_a_lost_device_moves_nothing_and_does_not_go_on_by_itself():
    led, hand = device()
    hand.motion = Motion(rate=AHEAD, held=True)
    assert led.act(OBS)[0] > 0
    hand.lost = "unplugged"
    assert led.act(OBS).tolist() == IDLE and led.trouble == "unplugged"
    hand.lost = ""  # it is back, and still says what it said
    assert led.act(OBS).tolist() == IDLE and not led.engaged


def test_silence_counts_as_lost():
    clock = Clock()
    led, hand = device(clock=clock, silence=0.3)
    hand.motion = Motion(rate=AHEAD, held=True, time=clock.now)
    assert led.act(OBS)[0] > 0
    clock.now += 0.31
    assert led.act(OBS).tolist() == IDLE and "0.3 s" in led.trouble


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=12, max_size=12),
            st.booleans(),
            st.sampled_from(["", "lost"]),
            st.floats(0, 1),
        ),
        max_size=25,
    )
)
def test_whatever_a_device_says_actions_are_legal_and_idle_ones_are_zero(story):
    clock = Clock()
    led, hand = device(clock=clock, armed=False)
    space = TABLETOP.embodiment.action_space()
    for numbers, held, lost, pause in story:
        clock.now += 0.05
        hand.motion = Motion(np.array(numbers[:6]), np.array(numbers[6:]), None, held, clock.now - pause)
        hand.lost = lost
        action = led.act(OBS)
        assert space.contains(action)
        assert np.linalg.norm(action[:3]) * 0.05 <= (0.25 + 0.5) / 20 + 1e-6  # m: both speeds together
        if lost or not held or pause > 0.3 or not np.isfinite(numbers).all():
            assert action.tolist() == IDLE


def test_the_dead_zone_leaves_no_jump_at_its_edge():
    led, hand = device(deadzone=0.1, curve=1.0)
    said = []
    for deflection in np.linspace(0, 1, 201):
        hand.motion = Motion(rate=deflection * AHEAD, held=True)
        said.append(led.act(OBS)[0])
    assert not any(said[:21]) and said[-1] == pytest.approx(0.25)
    assert np.diff(said).max() < 0.25 / 150


# ---- joints ------------------------------------------------------------------------------------------------------
START_JOINTS = np.array([0.0, -1.57, 1.57, -1.57, -1.57, 0.0], np.float32)
NAMES = ("base", "shoulder", "elbow", "wrist_1", "wrist_2", "wrist_3")


def test_a_joint_robot_is_led_through_inverse_kinematics():
    arm = Kinematics("ur5e")
    led, hand = device(env=joints_body(NAMES, gripper=True), armed=False, model="ur5e", speed=0.2, curve=1.0)
    obs = {"state": np.append(START_JOINTS, 1.0).astype(np.float32)}
    assert np.array_equal(led.act(obs), obs["state"])  # at rest: the same joints, to the bit
    start = arm.forward(START_JOINTS)
    hand.motion = Motion(rate=np.array([0, 0, -1.0, 0, 0, 0]), grip=0.0, held=True)
    for _ in range(20):  # 1 s at 0.2 m/s
        action = led.act(obs)
    here = arm.forward(action[:6])
    assert np.linalg.norm(here.position - start.position - [0, 0, -0.2]) <= 1e-3
    assert (here.rotation * start.rotation.inv()).magnitude() <= 5e-3 and action[6] == 0
    hand.motion = Motion(held=False)
    assert np.array_equal(led.act(obs)[:6], action[:6])


def test_a_robot_may_bring_its_own_kinematics():
    env = RobotEnv("simulated_arm", robot_args={"cameras": ()})
    obs, _ = env.reset()
    led = EndEffectorDevice(env, FakeHand(), speed=0.2, curve=1.0)
    before = led.map.action(obs, np.zeros(6), None)
    moved = led.map.action(obs, np.array([0, 0, -0.01, 0, 0, 0]), None) - before
    assert np.allclose(moved[:3], [0, 0, -0.01], atol=1e-4)
    env.close()


def test_at_the_edge_of_its_reach_it_neither_leaps_nor_winds_up():
    led, hand = device(env=joints_body(NAMES), armed=False, model="ur5e", speed=0.5, curve=1.0)
    obs = {"state": START_JOINTS}
    last = led.act(obs)
    hand.motion = Motion(rate=-AHEAD, held=True)
    for _ in range(80):  # 2 m: the arm is stretched long before
        action = led.act(obs)
        assert np.abs(action - last).max() <= 1.5 / 20 + 1e-6
        last = action
    arm = Kinematics("ur5e")
    at = arm.forward(last).position
    hand.motion = Motion(rate=AHEAD, held=True)
    for _ in range(8):  # back: obeyed at once, and not after the metre that was asked for too much
        back = led.act(obs)
    assert arm.forward(back).position[0] > at[0] + 0.02


def test_degrees_and_order_where_names_differ():
    names = [f"joint{i}" for i in range(6)]
    led, hand = device(env=joints_body(names, -170, 170, "deg"), armed=False, model="ur5e", curve=1.0)
    obs = {"state": np.degrees(START_JOINTS)}
    led.act(obs)
    hand.motion = Motion(rate=np.array([0, 0, 1.0, 0, 0, 0]), held=True)
    action = np.radians(led.act(obs))
    arm = Kinematics("ur5e")
    moved = arm.forward(action).position - arm.forward(START_JOINTS).position
    assert np.allclose(moved, [0, 0, 0.25 / 20], atol=1e-4)
    with pytest.raises(ConfigError, match="the right tip"):
        EndEffectorDevice(joints_body(names[:4]), FakeHand(), model="ur5e")


def test_following_a_policy_then_taking_over_starts_where_it_left():
    led, hand = device(env=joints_body(NAMES), armed=False, model="ur5e")
    hand.motion = Motion(held=False)
    left = START_JOINTS + 0.3
    for share in np.linspace(0, 1, 5):
        led.follow({"state": START_JOINTS}, START_JOINTS + np.float32(0.3 * share))
    hand.motion = Motion(held=True)
    assert np.allclose(led.act({"state": START_JOINTS}), left, atol=1e-6)  # not the state, which lags behind


def test_who_takes_over_does_not_let_go_of_what_the_policy_holds():
    led, hand = device()
    hand.motion = Motion(grip=1.0, held=False)
    led.act(OBS)
    closed = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    led.follow(OBS, closed)
    hand.motion = Motion(rate=AHEAD, grip=1.0, held=True)  # still says open: nobody has asked for it since
    assert led.act(OBS)[6] == 1
    hand.motion = Motion(grip=0.0, held=True)
    led.act(OBS)
    hand.motion = Motion(grip=1.0, held=True)
    assert led.act(OBS)[6] == -1


def test_the_button_toggles_the_gripper_as_it_is():
    led, hand = device()
    led.follow(OBS, np.array([0, 0, 0, 0, 0, 0, 1], np.float32))
    hand.motion = Motion(toggle=True, held=False)
    assert led.act(OBS)[6] == -1
    assert led.act(OBS)[6] == 1


def test_a_robot_that_is_held_back_by_its_limits_obeys_at_once_when_the_hand_returns():
    """The safety filter's box stops the arm; what was asked for beyond it does not pile up."""
    arm, body = Kinematics("ur5e"), joints_body(NAMES)
    told = START_JOINTS.copy()
    body.hold_action = lambda: told
    led, hand = device(env=body, armed=False, model="ur5e", speed=0.25, curve=1.0)
    obs = {"state": START_JOINTS}
    led.act(obs)
    hand.motion = Motion(rate=np.array([0, 0, -1.0, 0, 0, 0]), held=True)
    for _ in range(60):  # 75 cm down, and the robot stays where it is
        asked = led.act(obs)
        assert np.abs(asked - told).max() <= 3 * 1.5 / 20 + 1e-6
    hand.motion = Motion(rate=np.array([0, 0, 1.0, 0, 0, 0]), held=True)
    start = arm.forward(told).position[2]
    heights = [arm.forward(led.act(obs)).position[2] for _ in range(12)]
    assert heights[-1] > start


# ---- real formats ------------------------------------------------------------------------------------------------
LISTING = """\
I: Bus=0003 Vendor=045e Product=028e Version=0110
N: Name="Microsoft X-Box 360 pad"
H: Handlers=event7 js0
B: EV=20000b
B: KEY=7cdb000000000000 0 0 0 0
B: ABS=3003f

I: Bus=0011 Vendor=0001 Product=0001 Version=ab41
N: Name="AT Translated Set 2 keyboard"
H: Handlers=sysrq kbd event0 leds
B: EV=120013
B: KEY=402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe
"""


def test_the_kernels_listing_is_read(tmp_path):
    listing = tmp_path / "devices"
    listing.write_text(LISTING)
    pad, keyboard = list_inputs(listing)
    assert (pad.path, pad.kind, pad.vendor) == ("/dev/input/event7", "gamepad", "045e")
    assert (keyboard.path, keyboard.kind) == ("/dev/input/event0", "keyboard")
    assert choose_input("gamepad", listing=listing).info == pad
    assert list_inputs(tmp_path / "none") == []
    refused = explain_open(PermissionError(13, "Permission denied"), pad.path, pad.name, pad.udev_rule)
    assert isinstance(refused, PortPermissionError)
    assert 'ATTRS{idVendor}=="045e"' in str(refused) and "70-teleop.rules" in str(refused)


def test_robot_find_lists_devices_and_says_how_to_get_permission(tmp_path, monkeypatch, capsys):
    from vla_agents.cli import main
    from vla_agents.collect.devices import evdev, spacemouse
    from vla_agents.robots import find

    monkeypatch.setattr(find, "list_ports", list)
    monkeypatch.setattr(evdev, "PROC", tmp_path / "devices")
    monkeypatch.setattr(spacemouse, "SYSFS", tmp_path / "hid")
    assert main(["robot", "find", "--no-cameras"]) == 0
    assert "no gamepad, keyboard or SpaceMouse" in capsys.readouterr().out
    (tmp_path / "devices").write_text(LISTING)
    folder = tmp_path / "hid" / "hidraw4" / "device"
    folder.mkdir(parents=True)
    (folder / "uevent").write_text(
        "HID_ID=0003:0000256F:0000C62F\nHID_NAME=3Dconnexion SpaceMouse Wireless\n"
    )
    assert main(["robot", "find", "--no-cameras"]) == 0
    said = capsys.readouterr().out
    assert "/dev/input/event7  gamepad  Microsoft X-Box 360 pad" in said
    assert "/dev/hidraw4  spacemouse  3Dconnexion SpaceMouse Wireless" in said
    assert 'SUBSYSTEM=="input", KERNEL=="event*", ATTRS{idVendor}=="045e"' in said
    assert 'KERNEL=="hidraw*", ATTRS{idVendor}=="256f", TAG+="uaccess"' in said


def test_a_gamepads_events(tmp_path):
    file = DeviceFile(tmp_path / "event7")
    with GamepadDevice(TABLETOP, path=file.path, curve=1.0, deadzone=0.0) as pad:
        assert pad.act(OBS).tolist() == IDLE
        file.events((ABS, LEFT_Y, -32768))
        assert pad.act(OBS).tolist() == IDLE  # the switch is open
        file.events((KEY, RB, 1))
        assert np.allclose(pad.act(OBS)[:3], [0.25, 0, 0]) and pad.engaged
        file.events((KEY, SOUTH, 1), (KEY, START, 1))
        assert pad.act(OBS)[6] == 1 and pad.events() == [Event.SAVE] and pad.events() == []
        file.events((ABS, HAT_Y, -1))
        file.events((ABS, HAT_Y, 0), (ABS, HAT_Y, 1), (ABS, HAT_Y, 0))
        pad.act(OBS)
        assert pad.events() == [Event.SUCCESS, Event.FAILURE]
        file.events((0, 3, 0))  # SYN_DROPPED: what comes until the next report is not whole
        file.events((KEY, RB, 0))
        assert pad.act(OBS)[6] == 1
    file.close()


def test_half_an_event_is_kept_until_the_rest_comes(tmp_path):
    from vla_agents.collect.devices.evdev import EVENT

    file = DeviceFile(tmp_path / "event7")
    with GamepadDevice(TABLETOP, path=file.path) as pad:
        pad.act(OBS)
        whole = EVENT.pack(0, 0, KEY, RB, 1)
        file.write(whole[:10])
        assert not pad.act(OBS)[0] and not pad.engaged
        file.write(whole[10:])
        pad.act(OBS)
        assert pad.engaged
    file.close()


def report(kind: int, *values: int) -> bytes:
    return bytes([kind]) + b"".join(value.to_bytes(2, "little", signed=True) for value in values)


def test_a_spacemouses_reports_old_and_new(tmp_path):
    file = DeviceFile(tmp_path / "hidraw0")
    with SpaceMouseDevice(TABLETOP, path=file.path, curve=1.0, deadzone=0.0) as mouse:
        assert mouse.act(OBS).tolist() == IDLE
        file.write(report(1, 0, -350, 0))  # pushed away, as the older ones say it
        assert np.allclose(mouse.act(OBS)[:6], [0.25, 0, 0, 0, 0, 0])
        file.write(report(2, 0, 0, 350))  # and turned clockwise, seen from above
        assert np.allclose(mouse.act(OBS)[:6], [0.25, 0, 0, 0, 0, -0.1])
        file.write(report(1, -350, 0, -350, 0, 0, 0))  # all six in one, as the newer ones say it
        assert np.allclose(mouse.act(OBS)[:3], np.array([0, 1, 1]) * 0.25 / np.sqrt(2), atol=1e-6)
        file.write(bytes([3, 1, 0]))
        file.write(bytes([3, 3, 0]))
        assert mouse.act(OBS)[6] == 1 and mouse.events() == [Event.SAVE]
        file.write(bytes([23, 77]))  # battery: not ours
        file.write(report(1, 0, 0, 0, 0, 0, 0))
        assert mouse.act(OBS)[:6].tolist() == [0] * 6
    file.close()


def test_spacemice_are_told_from_mice(tmp_path):
    for number, ids in enumerate(("0000256F:0000C635", "0000046D:0000C077", "0000046D:0000C626")):
        folder = tmp_path / f"hidraw{number}" / "device"
        folder.mkdir(parents=True)
        (folder / "uevent").write_text(f"DRIVER=hid-generic\nHID_ID=0003:{ids}\nHID_NAME=Device {number}\n")
    found = list_spacemice(tmp_path)
    assert [mouse.path for mouse in found] == ["/dev/hidraw0", "/dev/hidraw2"]
    assert 'ATTRS{idVendor}=="256f"' in found[0].udev_rule


def test_what_is_not_there_is_said_so(tmp_path):
    for made in (
        GamepadDevice(TABLETOP, path=str(tmp_path / "event9")),
        SpaceMouseDevice(TABLETOP, path=str(tmp_path / "hidraw9")),
    ):
        with pytest.raises(PortNotFoundError, match="robot find"):
            made.connect()
        made.close()
    with pytest.raises(UnknownNameError, match="gamepad"):
        make_device("gamepd", TABLETOP)
    with pytest.raises(ConfigError, match="no_such"):
        make_device("gamepad", TABLETOP, no_such=1)
    assert {"keyboard", "gamepad", "spacemouse", "leader", "phone", "expert", "replay"} <= set(DEVICES)


def test_a_gamepad_that_is_pulled_out_and_back(tmp_path, monkeypatch):
    from vla_agents.collect.devices import evdev

    file = DeviceFile(tmp_path / "event7")
    with GamepadDevice(TABLETOP, path=file.path) as pad:
        pad.act(OBS)
        file.events((KEY, RB, 1), (ABS, LEFT_Y, -32768))
        assert pad.act(OBS)[0] > 0
        gone, real = True, evdev.os.read

        def read(handle, size):
            if gone:
                raise OSError(19, "No such device")
            return real(handle, size)

        monkeypatch.setattr(evdev.os, "read", read)
        assert pad.act(OBS).tolist() == IDLE and "No such device" in pad.trouble
        gone = False
        monkeypatch.setattr(evdev, "RETRY_S", 0.0)
        pad.act(OBS)  # found again
        pad.act(OBS)
        assert not pad.trouble
        file.events((KEY, RB, 1), (ABS, LEFT_Y, -32768))
        assert pad.act(OBS)[0] > 0
    file.close()
