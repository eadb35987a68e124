"""Servo buses over a pseudo-terminal: bytes like the vendors', and every way a wire can fail."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time

import pytest
from emulators.dynamixel import DynamixelEmulator
from emulators.feetech import FeetechEmulator
from emulators.wire import Wire
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_agents.errors import (
    CommunicationError,
    ConfigError,
    MotorSilentError,
    PortBusyError,
    PortNotFoundError,
    UnknownNameError,
)
from vla_agents.robots.buses.dynamixel import DynamixelBus, packet
from vla_agents.robots.buses.feetech import FeetechBus
from vla_agents.robots.buses.line import PortInfo, SerialLine
from vla_agents.robots.buses.registers import Register

pytest.importorskip("serial")


KINDS = {"feetech": (FeetechEmulator, FeetechBus, 777), "dynamixel": (DynamixelEmulator, DynamixelBus, 1200)}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def device(kind):
    with KINDS[kind][0]() as emulator:
        yield emulator


@pytest.fixture
def bus(kind, device):
    with open_bus(kind, device) as bus:
        yield bus


def open_bus(kind, device, **options):
    return KINDS[kind][1](SerialLine(device.path, 1_000_000), **options)


# ---- both -----------------------------------------------------------------------------------------------------
def test_read_write_and_motion(kind, bus, device):
    assert bus.scan() == dict.fromkeys(range(1, 7), KINDS[kind][2])
    assert bus.sync_read("position", range(1, 7)) == dict.fromkeys(range(1, 7), 2048)
    bus.write("torque_enable", 2, 1)
    bus.sync_write("goal_position", {2: 2148, 3: 2148})
    time.sleep(0.06)
    assert bus.read("position", 2) == 2148
    assert bus.read("position", 3) == 2048, "its torque is off"
    assert [goal[1:] for goal in device.goals] == [(2, 2148), (3, 2148)]
    bus.write("homing_offset", 3, -700)
    assert bus.read("homing_offset", 3) == -700
    with pytest.raises(UnknownNameError, match="position"):
        bus.read("posiion", 2)
    with pytest.raises(ConfigError, match="does not fit"):
        bus.write("torque_enable", 2, 256)


def test_scs_servos_write_high_bytes_first():
    wire = Wire([b"\xff\xff\x01\x04\x00\x02\x00\xf8"])
    bus = FeetechBus(wire, series="scs", timeout_s=0.0, retries=0)
    assert bus.sync_read("position", [1]) == {1: 512}
    bus.sync_write("goal_position", {1: 512})
    assert wire.sent[0][4] == FeetechBus.READ, "no sync read on SCS"
    assert wire.sent[1][7:10] == b"\x01\x02\x00"


@given(value=st.integers(-32767, 32767), bit=st.sampled_from([10, 11, 15]))
def test_signs_survive(value, bit):
    entry = Register(0, 2, sign=bit)
    if abs(value) < 1 << bit:
        assert entry.decode(entry.encode(value)) == value
    else:
        with pytest.raises(ConfigError, match="does not fit"):
            entry.encode(value)


# ---- a bad wire -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fault", [{"lose": 0.1}, {"corrupt": 0.1}, {"truncate": 0.1}, {"noise": 0.2}], ids=lambda f: next(iter(f))
)
def test_every_reading_is_right_on_a_bad_wire(kind, device, fault):
    for motor in range(1, 7):
        device.servos[motor].position = 1000.0 + motor
    for name, value in fault.items():
        setattr(device.faults, name, value)
    with open_bus(kind, device, timeout_s=0.01, retries=8) as bus:
        for _ in range(25):
            assert bus.sync_read("position", range(1, 7)) == {m: 1000 + m for m in range(1, 7)}
            assert bus.read("goal_position", 4) == 2048
        assert bus.stats.repeated or "noise" in fault
        assert bus.stats.corrupt or "lose" in fault


def test_late_answers_are_not_taken_for_others(kind, device):
    """The position's answer comes after the goal was asked for; both have two bytes and the same motor.

    Nothing in the protocols tells an answer that is later still, as the emulator's are on a busy machine: three tries.
    """
    device.servos[4].position = 1111.0
    device.faults.delay, device.faults.delay_s = 0.3, 0.025
    mixed_up = []
    for _ in range(3):
        with open_bus(kind, device, timeout_s=0.02, retries=30) as bus:
            pairs = [(bus.read("position", 4), bus.read("goal_position", 4)) for _ in range(25)]
            assert bus.stats.lost > 0
        mixed_up.append(sum(pair != (1111, 2048) for pair in pairs))
        if not mixed_up[-1]:
            return
    raise AssertionError(f"answers taken for others: {mixed_up}")


def test_a_silent_motor_is_named(bus, device):
    device.faults.mute.add(3)
    with pytest.raises(MotorSilentError, match="motor 3 does not answer") as caught:
        bus.sync_read("position", range(1, 7))
    assert caught.value.motors == [3]
    assert bus.sync_read("position", [1, 2, 4]), "the others still do"


def test_alarms_are_kept(kind, bus, device):
    if kind == "feetech":
        device.alarm[5] = 0b100100
        words = "overheated, overload"
    else:
        device.servos[5].table[70] = 0b100000
        words = "hardware error"
    bus.read("position", 5)
    assert bus.describe_alarm(bus.alarms[5]) == words
    if kind == "feetech":
        device.alarm.clear()
    else:
        assert bus.describe_hardware_error(bus.read("hardware_error", 5)) == "overload"
        bus.reboot(5)
    bus.read("position", 5)
    assert not bus.alarms


@settings(deadline=None, max_examples=100)
@given(
    garbage=st.lists(
        st.sampled_from(
            [b"\xff", b"\x00", b"\xff\xff", b"\xff\xff\x03", b"\x07\x09", b"\xff\xff\xfd\x00\x03"]
        ),
        max_size=8,
    ),
    cut=st.integers(1, 12),
    feetech=st.booleans(),
)
def test_an_answer_is_found_behind_any_garbage(garbage, cut, feetech):
    if feetech:
        bus, answer = FeetechBus(Wire(), timeout_s=0.0, retries=0), b"\xff\xff\x03\x04\x00\xd2\x04\x22"
    else:
        bus = DynamixelBus(Wire(), timeout_s=0.0, retries=0)
        answer = packet(3, b"\x55\x00" + (1234).to_bytes(4, "little"))
    stream = b"".join(garbage) + answer
    bus.line.answers = [stream[i : i + cut] for i in range(0, len(stream), cut)]
    assert bus.read("position", 3) == 1234


def test_threads_share_a_bus(bus, device):
    bus.timeout_s = 1.0  # a late answer is another matter: on a busy machine some would be
    for motor in range(1, 7):
        device.servos[motor].position = 1000.0 + motor
    wrong = []

    def reader(motor):
        for _ in range(40):
            if bus.read("position", motor) != 1000 + motor:
                wrong.append(motor)

    threads = [threading.Thread(target=reader, args=(motor,)) for motor in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(bus.stats.latency_s) >= 240  # more where a busy machine made it ask again


# ---- the port -------------------------------------------------------------------------------------------------
def test_wrong_speed_is_found_out(kind):
    with (
        KINDS[kind][0](range(1, 4), baud=115_200) as device,
        open_bus(kind, device, timeout_s=0.01, retries=0) as bus,
    ):
        assert bus.scan() == {}
        assert bus.find_baud() == {115_200: [1, 2, 3]}
        assert bus.line.baud == 1_000_000
        bus.line.set_baud(115_200)
        assert bus.ping(2) == KINDS[kind][2]


def test_missing_and_busy_ports(device, tmp_path):
    with pytest.raises(PortNotFoundError, match=r"there is no port /dev/ttyNOPE[\s\S]*robot find"):
        SerialLine("/dev/ttyNOPE", 1_000_000)
    code = (
        f"import serial, sys; port = serial.Serial({device.path!r}, exclusive=True)\n"
        "print(flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(PortBusyError, match=rf"in use by another program \(.*process {holder.pid}"):
            SerialLine(device.path, 1_000_000)
    finally:
        holder.communicate()
    SerialLine(device.path, 1_000_000).close()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(PortNotFoundError, match="cannot be opened"):
        SerialLine(str(file), 1_000_000)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's rights can only be tried by root")
def test_no_permission_prints_the_udev_line(device):
    os.chmod(device.path, stat.S_IRUSR | stat.S_IWUSR)
    code = (
        "import os, serial.tools.list_ports\n"
        "from vla_agents.errors import PortPermissionError\n"
        "from vla_agents.robots.buses.line import SerialLine\n"
        "os.setuid(65534)\n"
        f"try: SerialLine({device.path!r}, 1000000)\n"
        "except PortPermissionError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    name = os.path.basename(device.path)  # not all of the machine's terminals
    assert "no permission" in said and "dialout" in said
    assert f'SUBSYSTEM=="tty", KERNEL=="{name}", MODE="0666"' in said
    rule = PortInfo("/dev/ttyACM0", vendor="1a86", product="55d3").udev_rule
    assert rule == 'SUBSYSTEM=="tty", ATTRS{idVendor}=="1a86", ATTRS{idProduct}=="55d3", MODE="0666"'


def test_a_pulled_cable(kind, device):
    bus = open_bus(kind, device, timeout_s=0.01, retries=0)
    bus.ping(1)
    device.pull_the_cable()
    with pytest.raises(CommunicationError):
        bus.sync_read("position", [1])
    bus.close()
    bus.close()
