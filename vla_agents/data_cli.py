"""`vla-agents data COMMAND`: what can be done with recorded datasets. Each is a few lines over the library."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from tyro.conf import Positional

from vla_agents import data_commands as commands
from vla_agents import data_look as look
from vla_agents.cli import parse
from vla_agents.errors import ConfigError, VlaAgentsError, suggest

_console = Console(highlight=False, soft_wrap=True, markup=False)


@dataclass(frozen=True)
class RepairConfig:
    """Make episodes of what was open when a recording died."""

    path: Positional[Path]
    """Folder of the dataset."""
    yes: bool = False
    """Do not ask."""
    delete: bool = False
    """Delete what is left instead of making episodes of it."""


def repair(config: RepairConfig) -> int:
    """Show what can be repaired, ask, and do it; 1 where something is left after all."""
    from vla_agents.data import open_dataset
    from vla_agents.data.atomic import remove
    from vla_agents.data.recording.repair import find, usable
    from vla_agents.data.recording.repair import repair as repair_one

    found = find(config.path)
    reader = open_dataset(config.path)
    _console.print(f"{config.path}: {len(reader)} episodes are saved, {len(found)} were not finished")
    left = 0
    for one in found:
        rows = usable(one, reader.embodiment)
        seconds = one.steps[rows - 1].time - one.steps[0].time if rows else 0.0
        _console.print(
            f"{one.instruction!r}: {rows} rows with all their pictures, {seconds:.1f} s "
            f"({len(one.steps) - rows} rows without)"
        )
        if config.delete or not rows:
            if not _agreed(config, f"Delete {one.folder}?"):
                left += 1
                continue
            remove(one.folder)
            _console.print("deleted")
            continue
        if not _agreed(config, f"Append it as episode {len(open_dataset(config.path))}?"):
            left += 1
            continue
        try:
            index = repair_one(config.path, one)
            _console.print(f"it is episode {index} now; its success is unknown, its metadata say 'recovered'")
        except VlaAgentsError as error:
            left += 1
            _console.print(f"not repaired: {error}")
    return int(left > 0)


def _agreed(config: RepairConfig, question: str) -> bool:
    if config.yes:
        return True
    try:
        return _console.input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # nobody is there to be asked
        _console.print("no answer: nothing is changed (--yes does not ask)")
        return False


# Command -> its options, what runs, what it is for.
COMMANDS: dict[str, tuple[type, Any, str]] = {
    "info": (commands.InfoConfig, commands.info, "say what a dataset is, and what had to be assumed"),
    "stats": (commands.StatsConfig, commands.stats, "exact statistics of its numbers"),
    "convert": (commands.ConvertConfig, commands.run_convert, "write it in another format"),
    "merge": (commands.MergeConfig, commands.run_merge, "write several datasets as one"),
    "split": (commands.SplitConfig, commands.run_split, "write parts of it as datasets of their own"),
    "check": (look.CheckConfig, look.run_check, "find what spoils training, and say how to mend it"),
    "view": (look.ViewConfig, look.run_view, "look at it in a web browser"),
    "repair": (RepairConfig, repair, "make episodes of what was open when a recording died"),
}


def main(args: Sequence[str]) -> int:
    """`vla-agents data ...`"""
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {text}" for name, (_, _, text) in COMMANDS.items()]
        sys.stdout.write("usage: vla-agents data COMMAND [options]\n\n" + "\n".join(lines) + "\n")
        return 0 if args else 1
    if args[0] not in COMMANDS:
        raise ConfigError(
            f"unknown command {args[0]!r}{suggest(args[0], COMMANDS)}",
            f"known: {', '.join(sorted(COMMANDS))}",
        )
    config, run, _ = COMMANDS[args[0]]
    return run(parse(config, args[1:], f"data {args[0]}")) or 0
