"""What arguments that several commands share stand for: options as KEY=VALUE, an agent by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import gymnasium
import yaml
from gymnasium.vector import VectorEnv
from tyro.constructors import PrimitiveConstructorSpec

from vla_agents.agent import Agent, ExpertAgent, RandomAgent, load_agent
from vla_agents.embodiment import embodiment_of
from vla_agents.errors import ConfigError, UnknownNameError, suggest

_SCRIPTED = ("expert", "random")


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """`["task=lift", "image_size=64", "cameras=[front]"]` -> a dict; the values are read as YAML.

    Raises:
        ConfigError: A pair without `=`, a key that comes twice, a value that is not YAML.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"{pair!r} is not of the form KEY=VALUE", "e.g. task=lift image_size=64")
        if key in options:
            raise ConfigError(f"{key!r} is given twice: {options[key]!r} and {text!r}")
        try:
            options[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{pair!r}: the value is not YAML ({error})") from error
    return options


def format_options(options: dict[str, Any]) -> list[str]:
    """The inverse of `parse_options`."""
    return [f"{key}={_flow(value)}" for key, value in options.items()]


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).split("\n")[0]


def _parse_for_tyro(pairs: list[str]) -> dict[str, Any]:
    try:
        return parse_options(pairs)
    except ConfigError as error:  # tyro reports ValueErrors whose message is one line
        raise ValueError(str(error).replace("\n", " ")) from error


Options = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[KEY=VALUE [KEY=VALUE ...]]",
        instance_from_str=_parse_for_tyro,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=format_options,
    ),
]
"""A dict given on the command line as KEY=VALUE pairs, and in YAML as a mapping."""


def make_agent(name: str, env: gymnasium.Env | VectorEnv, *, seed: int = 0, **overrides: Any) -> Agent:
    """The agent a command names, for an env.

    Args:
        name: `"expert"` (the env's own), `"random"`, or a checkpoint: a folder or a hub id.
        env: A single or vector env; a checkpoint made for another embodiment is refused.
        seed: Of the random agent, where nothing reseeds it.
        **overrides: Of `load_agent`, e.g. `execute` or `device`; only for checkpoints; None means not given.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    if name in _SCRIPTED:
        if given:
            raise ConfigError(
                f"{', '.join(sorted(given))}: the agent {name!r} has no such option", "leave it out"
            )
        return ExpertAgent(env) if name == "expert" else RandomAgent(embodiment_of(env), seed)
    near = suggest(name, _SCRIPTED)
    if near and not Path(name).exists() and "/" not in name:
        raise UnknownNameError("agent", name, (*_SCRIPTED, "a checkpoint folder"))
    return load_agent(name, env=env, **given)
