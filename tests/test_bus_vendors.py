"""The vendors' own packages as witnesses: they talk to the emulators, and our packets are theirs byte for byte."""

from __future__ import annotations

import pytest
from emulators.dynamixel import DynamixelEmulator
from emulators.feetech import FeetechEmulator
from emulators.wire import Wire
from hypothesis import given
from hypothesis import strategies as st

from vla_agents.errors import MotorError, MotorSilentError
from vla_agents.robots.buses import dynamixel
from vla_agents.robots.buses.dynamixel import DynamixelBus
from vla_agents.robots.buses.feetech import FeetechBus
from vla_agents.robots.buses.line import SerialLine

scservo_sdk = pytest.importorskip("scservo_sdk")
dynamixel_sdk = pytest.importorskip("dynamixel_sdk")


class Port:
    """What the vendors' packages take for a port: it keeps what is written and never answers."""

    is_using = property(lambda self: False, lambda self, value: None)

    def __init__(self) -> None:
        self.written = []

    def clearPort(self):
        pass

    def writePort(self, data):
        self.written.append(bytes(data))
        return len(data)

    def setPacketTimeout(self, length):
        pass

    def readPort(self, length):
        return []

    def isPacketTimeout(self):
        return True


def open_port(sdk, device):
    port = sdk.PortHandler(device.path)
    assert port.openPort() and port.setBaudRate(1_000_000)
    return port


def sent_by(bus, *calls):
    for call in calls:
        with pytest.raises(MotorSilentError):
            call()
    return bus.line.sent


# ---- Feetech --------------------------------------------------------------------------------------------------
def test_feetechs_package_talks_to_the_emulator():
    sdk = scservo_sdk
    with FeetechEmulator() as device:
        port, handler = open_port(sdk, device), sdk.PacketHandler(0)
        assert handler.ping(port, 3)[:2] == (777, sdk.COMM_SUCCESS)
        assert handler.read2ByteTxRx(port, 2, 56)[:2] == (2048, sdk.COMM_SUCCESS)
        assert handler.write2ByteTxRx(port, 2, 42, 1000)[0] == sdk.COMM_SUCCESS
        assert device.goals[-1][1:] == (2, 1000)
        reader = sdk.GroupSyncRead(port, handler, 56, 2)
        for motor in range(1, 7):
            reader.addParam(motor)
        assert reader.txRxPacket() == sdk.COMM_SUCCESS
        assert [reader.getData(motor, 56, 2) for motor in range(1, 7)] == [2048] * 6
        assert handler.ping(port, 9)[1] == sdk.COMM_RX_TIMEOUT
        port.closePort()


def test_our_feetech_packets_are_the_vendors():
    port, handler = Port(), scservo_sdk.PacketHandler(0)
    handler.ping(port, 1)
    handler.read2ByteTxRx(port, 2, 56)
    handler.write2ByteTxRx(port, 3, 42, 1234)
    handler.write1ByteTxRx(port, 253, 40, 1)
    handler.syncReadTx(port, 56, 2, [1, 2, 6], 3)
    handler.syncWriteTxOnly(port, 42, 2, [1, 0x34, 0x12, 4, 0xFF, 0x0F], 6)

    bus = FeetechBus(Wire(), timeout_s=0.0, retries=0)
    sent = sent_by(
        bus,
        lambda: bus.ping(1),
        lambda: bus.read("position", 2),
        lambda: bus.write("goal_position", 3, 1234),
        lambda: bus.write("torque_enable", 253, 1),
        lambda: bus.sync_read("position", [1, 2, 6]),
    )
    bus.sync_write("goal_position", {1: 0x1234, 4: 0x0FFF})
    assert sent == port.written


# ---- Dynamixel ------------------------------------------------------------------------------------------------
def test_robotis_package_talks_to_the_emulator():
    sdk = dynamixel_sdk
    with DynamixelEmulator() as device:
        port, handler = open_port(sdk, device), sdk.PacketHandler(2.0)
        assert handler.ping(port, 3)[:2] == (1200, sdk.COMM_SUCCESS)
        assert sorted(handler.broadcastPing(port)[0]) == [1, 2, 3, 4, 5, 6]
        assert handler.write4ByteTxRx(port, 2, 116, 1000) == (sdk.COMM_SUCCESS, 0)
        assert handler.write4ByteTxRx(port, 2, 116, 5000) == (sdk.COMM_SUCCESS, 4), "beyond its limits"
        assert device.goals[-1][1:] == (2, 1000)
        assert handler.write1ByteTxRx(port, 2, 64, 1) == (sdk.COMM_SUCCESS, 0)
        assert handler.write1ByteTxRx(port, 2, 11, 4) == (sdk.COMM_SUCCESS, 7), "not while torque is on"
        reader = sdk.GroupSyncRead(port, handler, 132, 4)
        bulk = sdk.GroupBulkRead(port, handler)
        for motor in range(1, 7):
            reader.addParam(motor)
            bulk.addParam(motor, *((132, 4) if motor % 2 else (146, 1)))
        assert reader.txRxPacket() == sdk.COMM_SUCCESS
        assert [reader.getData(motor, 132, 4) for motor in (1, 3, 4, 5, 6)] == [2048] * 5
        assert bulk.txRxPacket() == sdk.COMM_SUCCESS
        assert bulk.getData(1, 132, 4) == 2048 and bulk.getData(4, 146, 1) == 31
        port.closePort()


def test_our_dynamixel_packets_are_the_vendors():
    port, handler = Port(), dynamixel_sdk.PacketHandler(2.0)
    handler.ping(port, 1)
    handler.read4ByteTxRx(port, 2, 132)
    handler.write4ByteTxRx(port, 3, 116, 0x00FEFFFF)
    handler.write1ByteTxRx(port, 252, 64, 1)
    handler.syncReadTx(port, 132, 4, [1, 2, 6], 3, False)
    handler.bulkReadTx(port, [1, 132, 0, 4, 0, 2, 146, 0, 1, 0], 10, False)
    handler.reboot(port, 5)
    handler.syncWriteTxOnly(port, 116, 4, [1, 0xFF, 0xFF, 0xFE, 0, 4, 0xFF, 0x0F, 0, 0], 10)

    bus = DynamixelBus(Wire(), timeout_s=0.0, retries=0)
    sent = sent_by(
        bus,
        lambda: bus.ping(1),
        lambda: bus.read("position", 2),
        lambda: bus.write("goal_position", 3, 0x00FEFFFF),
        lambda: bus.write("torque_enable", 252, 1),
        lambda: bus.sync_read("position", [1, 2, 6]),
        lambda: bus.bulk_read({1: "position", 2: "temperature"}),
        lambda: bus.reboot(5),
    )
    bus.sync_write("goal_position", {1: 0x00FEFFFF, 4: 0x0FFF})
    assert sent == port.written


def test_a_header_inside_the_data_is_stuffed_as_the_vendor_does():
    """Its sending half (4.1.0) makes the stuffed packet and then sends the other; its receiving half is right."""
    ours = dynamixel.packet(3, b"\x03\x74\x00\xff\xff\xfd\x00")
    plain = [0xFF, 0xFF, 0xFD, 0, 3, 9, 0, 3, 0x74, 0, 0xFF, 0xFF, 0xFD, 0, 0, 0]
    assert bytes(dynamixel_sdk.PacketHandler(2.0).addStuffing(plain))[:-2] == ours[:-2]
    with DynamixelEmulator() as device:
        device.servos[3].table[116:120] = b"\xff\xff\xfd\x00"
        port = open_port(dynamixel_sdk, device)
        assert dynamixel_sdk.PacketHandler(2.0).read4ByteTxRx(port, 3, 116)[0] == 0x00FDFFFF
        port.closePort()
        with DynamixelBus(SerialLine(device.path, 1_000_000)) as bus:
            assert bus.read("goal_position", 3) == 0x00FDFFFF
            device.servos[3].table[48:52] = b"\xff\xff\xff\x00"
            bus.write("goal_position", 3, 0x00FDFFFF)
            assert device.goals[-1][1:] == (3, 0x00FDFFFF)


@given(st.binary(max_size=60) | st.lists(st.sampled_from([b"\xff", b"\xfd", b"\x00"])).map(b"".join))
def test_any_content_survives_a_dynamixel_packet(content):
    bus = DynamixelBus(Wire())
    buffer = bytearray(dynamixel.packet(7, b"\x55\x00" + content))
    assert buffer.find(b"\xff\xff\xfd\x00", 1) < 0
    handler = dynamixel_sdk.PacketHandler(2.0)
    assert handler.updateCRC(0, buffer[:-2], len(buffer) - 2) == int.from_bytes(buffer[-2:], "little")
    assert bus.parse(buffer).data == content and not buffer


def test_what_a_dynamixel_refuses_is_said():
    with DynamixelEmulator() as device, DynamixelBus(SerialLine(device.path, 1_000_000)) as bus:
        bus.write("torque_enable", 2, 1)
        with pytest.raises(MotorError, match=r"motor 2 .*torque is on"):
            bus.write("mode", 2, 4)
        with pytest.raises(MotorError, match=r"out of range"):
            bus.write("goal_position", 2, 5000)
        assert bus.bulk_read({1: "position", 4: "temperature"}) == {1: 2048, 4: 31}
