"""Where episodes are played: a simulated env by its id, or a robot with its cameras."""

from __future__ import annotations

from typing import Any

import gymnasium

from vla_agents.envs.vector import make_env
from vla_agents.errors import ConfigError
from vla_agents.robots import make_robot
from vla_agents.robots.cameras import make_camera
from vla_agents.robots.env import RobotEnv


def make_station(config: Any, wrappers: tuple[Any, ...] = ()) -> gymnasium.Env:
    """The env that the options of a command describe.

    Args:
        config: With `env` and `env_args`, or with `robot` and what belongs to it: `port`, `name`, `robot_args`, `cameras`,
            `camera_size`, `hz`, `speed`, `max_steps`.
        wrappers: Of the env, in order.

    Raises:
        ConfigError: Options that do not go together.
        UnknownNameError: No such env or robot.
    """
    if not config.robot:
        wrong = [name for name in ("port", "name", "robot_args", "cameras", "hz") if getattr(config, name)]
        if wrong or config.speed != 1.0:
            raise ConfigError(
                f"{', '.join(wrong or ['speed'])}: belongs to a robot, and none is named",
                "name it with --robot, or give options of the env with --env-args",
            )
        return make_env(config.env, wrappers, **config.env_args)
    if getattr(config, "env_args", None):
        raise ConfigError("--env-args belong to an env, and a robot is named", "use --robot-args")
    given = {key: value for key in ("port", "name") if (value := getattr(config, key))}
    try:
        robot = make_robot(config.robot, **given, **config.robot_args)
    except TypeError as error:
        raise ConfigError(f"the robot {config.robot!r} cannot be made of these options ({error})") from error
    height, width = config.camera_size
    env: gymnasium.Env = RobotEnv(
        robot,
        cameras=[make_camera(source, name, height, width) for name, source in config.cameras.items()],
        hz=config.hz,
        limits=None if config.speed == 1.0 else robot.limits.scaled(config.speed),
        max_steps=config.max_steps,
    )
    for wrapper in wrappers:
        env = wrapper(env)
    return env
