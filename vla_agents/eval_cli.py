"""`vla-agents eval`: evaluate, compare, merge, list the suites."""

from __future__ import annotations

from collections.abc import Sequence

from vla_agents.cli import parse
from vla_agents.errors import ConfigError
from vla_agents.eval.commands import COMMANDS, SuitesConfig, run_suites
from vla_agents.eval.evaluate import EvalConfig
from vla_agents.eval.run import run_eval


def main(args: Sequence[str]) -> None:
    """`vla-agents eval ...`"""
    if args and args[0] in COMMANDS:
        config, run = COMMANDS[args[0]]
        run(parse(config, args[1:], f"eval {args[0]}"))
        return
    if args and not args[0].startswith("-"):
        raise ConfigError(
            f"unknown: vla-agents eval {args[0]}",
            f"options begin with --; the commands are {', '.join(COMMANDS)}",
        )
    config_ = parse(EvalConfig, args, "eval")
    if config_.suite == "list":
        run_suites(SuitesConfig())
        return
    run_eval(config_)
