"""Every driver with a wire passes `check_robot` against its emulated device."""

from __future__ import annotations

import pytest
from test_driver_safety import NEEDS, WIRES

from vla_agents.robots.check import check_robot

DRIVERS = [name for name in WIRES if name not in ("recording", "simulated_arm")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    from vla_agents.robots.drivers import servo_arm

    monkeypatch.setattr(servo_arm, "SINK_S", 0.02)


@pytest.mark.parametrize(
    "name",
    [name if name in ("so101", "ros") else pytest.param(name, marks=pytest.mark.slow) for name in DRIVERS],
)
def test_drivers_keep_to_the_protocol(name):
    pytest.importorskip(NEEDS.get(name, "numpy"))
    with WIRES[name]() as (robot, _):
        assert "connecting moves nothing" in check_robot(robot, moves=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIVERS)
def test_drivers_keep_to_the_protocol_in_motion(name):
    pytest.importorskip(NEEDS.get(name, "numpy"))
    with WIRES[name]() as (robot, _):
        check_robot(robot)
