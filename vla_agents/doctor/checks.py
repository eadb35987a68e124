"""What a check is told, what it answers, and how checks are run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import gymnasium

from vla_agents.errors import UnknownNameError, VlaAgentsError
from vla_agents.eval.suites import SUITES
from vla_agents.versions import extras

Status = Literal["ok", "missing", "warning", "absent"]
DRAWN_BY_OPENGL = ("libero", "metaworld", "robosuite")
DRAWN_BY_VULKAN = ("simpler", "simpler-original")
ON_SERIAL_PORTS = ("robots", "teleop")


@dataclass(frozen=True)
class Row:
    """One line of what the doctor says.

    Args:
        name: What was looked at.
        status: `"ok"`; `"missing"`: it is needed for what was asked about; `"warning"`: it works, but not well;
            `"absent"`: it is not there, and what was asked about does not need it.
        found: What was found, in a sentence.
        command: What to type to mend it, to the letter.
        advice: What to do where no single command does it.
    """

    name: str
    status: Status
    found: str
    command: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Target:
    """What the doctor is asked about; everything "" means: this installation as it is.

    Args:
        name: As it was asked for.
        extra: The extra of ours that it needs.
        env: Id of its environment.
        suite: Name of the suite.
        where: The environment of its own that its simulator runs in (`vla-agents envs list`).
    """

    name: str = ""
    extra: str = ""
    env: str = ""
    suite: str = ""
    where: str = ""

    @property
    def needs_opengl(self) -> bool:
        """Whether it cannot draw without."""
        return bool({self.extra, self.where}.intersection(DRAWN_BY_OPENGL))

    @property
    def needs_vulkan(self) -> bool:
        """Whether it cannot draw without."""
        return bool({self.extra, self.where}.intersection(DRAWN_BY_VULKAN))

    @property
    def needs_ports(self) -> bool:
        """Whether it speaks to servos."""
        return self.extra in ON_SERIAL_PORTS


def lacking(*, needed: bool) -> Status:
    """The status of something that is not there."""
    return "missing" if needed else "absent"


def find_target(name: str) -> Target:
    """A suite, the id of an environment or an extra of ours, by its name.

    Raises:
        UnknownNameError: It is none of these.
    """
    if not name:
        return Target()
    if name in SUITES:
        suite = SUITES.get(name)
        where = str(suite.env_args.get("where", ""))
        return Target(name, extra=suite.extra, env=suite.env, suite=name, where=where)
    if name in gymnasium.registry or ":" in name:
        extra = next((SUITES.get(suite).extra for suite in SUITES if SUITES.get(suite).env == name), "")
        return Target(name, extra=extra, env=name)
    if name in extras() and name:
        env = next((SUITES.get(suite).env for suite in SUITES if SUITES.get(suite).extra == name), "")
        return Target(name, extra=name, env=env)
    ids = [env_id for env_id in gymnasium.registry if "vla_agents" in env_id]
    raise UnknownNameError("suite, env or extra", name, [*SUITES, *ids, *filter(None, extras())])


# ---- checks -------------------------------------------------------------------------------------------------
Check = Callable[[Target], Iterable[Row]]


def examine(target: Target, checks: Mapping[str, Check], slow: Mapping[str, Check]) -> list[Row]:
    """Every check's rows, in the order of the checks.

    Args:
        target: What is asked about.
        checks: Run side by side.
        slow: Run after them, one by one, and only where nothing is missing.
    """
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda name: run_check(name, checks[name], target), checks)
        rows = [row for several in found for row in several]
    lacks = list(dict.fromkeys(row.name for row in rows if row.status == "missing"))
    for name, check in slow.items():
        if lacks:
            rows.append(Row(name, "warning", f"not tried: first {', '.join(lacks)}"))
        else:
            rows.extend(run_check(name, check, target))
    return rows


def run_check(name: str, check: Check, target: Target) -> list[Row]:
    """A check's rows; one that raises is a row like any other."""
    try:
        return list(check(target))
    except VlaAgentsError as error:
        return [Row(name, "missing", f"failed: {error.problem}", advice=error.remedy)]
    except Exception as error:  # whatever is broken here is what the doctor is asked about
        return [Row(name, "missing", f"failed: {type(error).__name__}: {error}")]
