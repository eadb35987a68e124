"""Robots: a `Robot` says where its axes are and is told where to be; `RobotEnv` makes it a `gymnasium.Env`.

`ROBOTS` names them; a driver is registered with one line and imported when it is first asked for.
"""

from __future__ import annotations

from typing import Any

from vla_agents.registry import Registry

__all__ = ["ROBOTS", "make_robot"]

ROBOTS = Registry(
    "robot",
    {
        "franka": "vla_agents.robots.drivers.franka:Franka",
        "koch": "vla_agents.robots.drivers.dynamixel_arms:Koch",
        "koch_leader": "vla_agents.robots.drivers.dynamixel_arms:KochLeader",
        "simulated_arm": "vla_agents.robots.simulated_arm:SimulatedArm",
        "lerobot": "vla_agents.robots.drivers.lerobot:LeRobotRobot",
        "ros": "vla_agents.robots.drivers.ros:RosRobot",
        "so100": "vla_agents.robots.drivers.so101:SO100",
        "so101": "vla_agents.robots.drivers.so101:SO101",
        "ur": "vla_agents.robots.drivers.ur:UR",
        "viperx": "vla_agents.robots.drivers.dynamixel_arms:ViperX",
        "widowx": "vla_agents.robots.drivers.dynamixel_arms:WidowX",
        "xarm": "vla_agents.robots.drivers.xarm:XArm",
    },
)
"""Name -> class (or function) that makes the robot from its options."""


def make_robot(name: str, /, **options: Any) -> Any:
    """A robot by name, not connected yet; the options are those of its class."""
    return ROBOTS.get(name)(**options)
