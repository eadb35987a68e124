"""`vla-agents envs`: Python environments for simulators whose packages do not go with ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import rich
import tyro
from rich.table import Table

from vla_agents.cli import parse
from vla_agents.envs.isolated import environments
from vla_agents.errors import ConfigError, suggest


@dataclass(frozen=True)
class InstallConfig:
    """Make the environment of a simulator from its lock file; nothing to do where it is ready."""

    name: tyro.conf.Positional[str]
    """See `vla-agents envs list`."""
    python: str = ""
    """The Python to make it with; empty: our own."""
    source: str = ""
    """A clone of the simulator's git repository, where one is needed; empty: it is fetched."""


@dataclass(frozen=True)
class RemoveConfig:
    """Delete the environment of a simulator."""

    name: tyro.conf.Positional[str]
    """See `vla-agents envs list`."""


@dataclass(frozen=True)
class ListConfig:
    """Which environments there are, and which are installed."""


def _install(config: InstallConfig) -> None:
    tell = rich.get_console().print
    options = {"python": config.python} if config.python else {}
    environments.install(
        config.name,
        lambda line: tell(line, highlight=False, markup=False),
        source=config.source,
        **options,
    )


def _remove(config: RemoveConfig) -> None:
    rich.print(f"deleted: {environments.remove(config.name)}")


def _list(config: ListConfig) -> None:
    table = Table("name", "state", "what it is", title=f"environments in {environments.home()}")
    for recipe in environments.RECIPES.values():
        table.add_row(recipe.name, environments.status(recipe.name), recipe.about)
    rich.print(table)


_COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "install": (InstallConfig, _install),
    "list": (ListConfig, _list),
    "remove": (RemoveConfig, _remove),
}


def main(args: Sequence[str]) -> None:
    """`vla-agents envs ...`"""
    if not args or args[0] in ("-h", "--help"):
        lines = [f"  {name:<8} {(config.__doc__ or '').strip()}" for name, (config, _) in _COMMANDS.items()]
        rich.print("usage: vla-agents envs COMMAND\n\n" + "\n".join(lines) + "\n")
        return
    if args[0] not in _COMMANDS:
        raise ConfigError(
            f"unknown: vla-agents envs {args[0]}{suggest(args[0], _COMMANDS)}",
            f"known: {', '.join(_COMMANDS)}",
        )
    config, run = _COMMANDS[args[0]]
    run(parse(config, args[1:], f"envs {args[0]}"))
