"""Benchmarks by name: which env, which episodes, under which protocol, and who says so.

    vla-agents eval --agent runs/mine --suite libero_object

A suite fixes what a published score depends on. Only what does not change the task may be chosen freely: size and choice of
pictures, which have to fit the policy anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from vla_agents.envs.simpler import published
from vla_agents.errors import ConfigError
from vla_agents.registry import Registry

_ABSENT = object()
FREE = ("cameras", "image_size", "render_mode", "renderer")  # options of an env that do not change the task


@dataclass(frozen=True)
class Suite:
    """A benchmark under its protocol.

    Args:
        name: By which it is asked for.
        env: Id of the environment.
        env_args: Its options.
        tasks: Number of tasks.
        trials: Episodes of each task.
        protocol: What decides a score, in words: initial states, step limit, settling, pictures, control mode.
        source: Where the protocol is written down.
        seed_of: Reset seed of (task, trial).
        extra: What to install, an extra of ours; "" where nothing.
    """

    name: str
    env: str
    tasks: int
    trials: int
    protocol: dict[str, str]
    source: str
    env_args: dict[str, Any] = field(default_factory=dict)
    seed_of: Callable[[int, int], int] = lambda task, trial: trial
    extra: str = ""

    @property
    def episodes(self) -> int:
        """Of a whole evaluation."""
        return self.tasks * self.trials

    def seeds(self, count: int | None = None) -> list[int]:
        """Reset seeds: all, or `count` spread over all tasks. Those of a task come together, for a reset to another one
        may cost ten times a reset to the same one.
        """
        spread = [(trial, task) for trial in range(self.trials) for task in range(self.tasks)]
        if count is not None and not 1 <= count <= len(spread):
            raise ConfigError(f"episodes is {count}; {self.name} has {len(spread)}", "give at most as many")
        return [self.seed_of(task, trial) for task, trial in sorted((b, a) for a, b in spread[:count])]


SUITES = Registry("suite")


def _libero(name: str, tasks: int, limit: int) -> Suite:
    return Suite(
        name=name,
        env="vla_agents/Libero-v0",
        env_args={"suite": name, "task": "all"},
        tasks=tasks,
        trials=50,
        seed_of=lambda task, trial: 50 * task + trial,
        extra="libero",
        protocol={
            "initial states": "the benchmark's own 50 of each task",
            "step limit": f"{limit} actions, after 10 idle ones while the scene settles",
            "pictures": "agentview and wrist, turned upright",
            "control": "7 values, deltas of the hand, 20 per second",
            "success": "the benchmark's own predicate, at any step",
        },
        source="openvla-oft, experiments/robot/libero/run_libero_eval.py (TASK_MAX_STEPS, num_steps_wait)",
    )


def _tabletop(name: str, task: str, difficulty: str) -> Suite:
    return Suite(
        name=name,
        env="vla_agents/Tabletop-v0",
        env_args={"task": task, "difficulty": difficulty},
        tasks=1,
        trials=200,
        seed_of=lambda task, trial: 100_000 + trial,
        protocol={
            "initial states": "reset seeds 100000 to 100199; recordings start at 0",
            "step limit": "the env's own, by task",
            "control": "7 values, deltas of the hand (LIBERO's convention)",
            "success": "the env's own predicate",
        },
        source="docs/tabletop.md",
    )


def _metaworld(name: str, tasks: int) -> Suite:
    first = 1_000_000  # a multiple of 50 x tasks, beyond what anybody records
    return Suite(
        name=f"metaworld_{name}",
        env="vla_agents/MetaWorld-v0",
        env_args={"task": name},
        tasks=tasks,
        trials=50,
        seed_of=lambda task, trial: first + 50 * task + trial,
        extra="metaworld",
        protocol={
            "initial states": f"50 of each task, drawn by reset seeds from {first} on; recordings start at 0",
            "step limit": "500 actions, ended by success",
            "pictures": "corner2 at the nearer place of VLA work, upright",
            "control": "4 values, steps of the hand and the gripper, 80 per second",
            "success": "the benchmark's own predicate, at any step",
        },
        source="Meta-World 3.1.1, metaworld/evaluation.py (50 episodes a task, terminate_on_success)",
    )


for _name, _tasks, _limit in (
    ("libero_spatial", 10, 220),
    ("libero_object", 10, 280),
    ("libero_goal", 10, 300),
    ("libero_10", 10, 520),
    ("libero_90", 90, 400),
):
    SUITES.register(_name, _libero(_name, _tasks, _limit))


def _robosuite(task: str, limit: int, source: str) -> Suite:
    return Suite(
        name=f"robosuite_{task.lower()}",
        env="vla_agents/Isolated-v0",
        env_args={"env": "vla_agents/Robosuite-v0", "where": "robosuite", "task": task},
        tasks=1,
        trials=50,
        seed_of=lambda task, trial: 1_000_000 + trial,
        protocol={
            "initial states": "reset seeds 1000000 to 1000049; recordings start at 0",
            "step limit": f"{limit} actions",
            "pictures": "agentview and wrist, upright",
            "control": "7 values, deltas of the hand in the base frame, 20 per second",
            "success": "the task's own predicate, at any step",
            "simulator": "robosuite 1.5.2 in an environment of its own: vla-agents envs install robosuite",
        },
        source=source,
    )


_ROBOMIMIC = "robomimic v0.3, exps/templates (rollout.n 50; horizon 400, tool hang 700)"
for _task, _limit, _source in (
    ("Lift", 400, _ROBOMIMIC),
    ("PickPlaceCan", 400, _ROBOMIMIC),
    ("NutAssemblySquare", 400, _ROBOMIMIC),
    ("ToolHang", 700, _ROBOMIMIC),
    ("Stack", 500, "robosuite 1.5 benchmark: horizon 500"),
    ("Door", 500, "robosuite 1.5 benchmark: horizon 500"),
):
    SUITES.register(f"robosuite_{_task.lower()}", _robosuite(_task, _limit, _source))


def _simpler(name: str, task: str) -> Suite:
    tasks = ("spoon_on_towel", "carrot_on_plate", "stack_cube", "eggplant_in_basket")
    wanted = tasks if task == "all" else (task,)

    def seed_of(number: int, trial: int) -> int:
        # ManiSkill turns the eggplant in eight ways at each of its eight places; SimplerEnv's three are these.
        layout = 8 * (trial // 3) + (1, 2, 0)[trial % 3] if wanted[number] == "eggplant_in_basket" else trial
        return 64 * number + layout

    return Suite(
        name=name,
        env="vla_agents/Isolated-v0",
        env_args={"env": "vla_agents/SimplerWidowX-v0", "where": "simpler", "task": task},
        tasks=len(wanted),
        trials=24,
        seed_of=seed_of,
        protocol={
            "initial states": "SimplerEnv's own 24 placements of each task (visual matching; the eggplant's turns as "
            "ManiSkill has them)",
            "step limit": "60 actions, eggplant 120; an episode goes on to its last step",
            "pictures": "third view, 480 x 640, upright, a photo behind the objects; image_size=N: the whole shrunk "
            "to N x N",
            "control": "7 values, deltas of the hand's target in the base frame in metres and radians, gripper -1 closed "
            "+1 open, 5 per second (arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos)",
            "success": "the task's own predicate at the last step; solved_once is reported beside it",
            "simulator": "ManiSkill 3.0.1, SAPIEN 3.0.3 in an environment of its own: vla-agents envs install simpler",
        },
        source="SimplerEnv, scripts/octo_bridge.sh and simpler_env/evaluation/maniskill2_evaluator.py; ManiSkill 3, "
        "digital_twins/bridge_dataset_eval",
    )


for _task in ("spoon_on_towel", "carrot_on_plate", "stack_cube", "eggplant_in_basket"):
    SUITES.register(f"simpler_widowx_{_task}", _simpler(f"simpler_widowx_{_task}", _task))
SUITES.register("simpler_widowx", _simpler("simpler_widowx", "all"))


def _simpler_original(name: str, task: str) -> Suite:
    told = published.find_task(task)
    google = task in published.GOOGLE_ROBOT
    photo = bool(told.placements[0].photo)
    count = told.trials // len(told.placements)
    arm = "7 values, deltas of the hand in the base frame in metres and radians, gripper "
    control = (
        f"{arm}0 closed 1 open (a change goes on for 15 actions), 3 per second (arm_pd_ee_delta_pose_align_interpolate_by_"
        "planner_gripper_pd_joint_target_delta_pos_interpolate_by_planner)"
        if google
        else f"{arm}-1 closed +1 open, 5 per second (arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos)"
    )
    script = told.script + ("" if not google else "_visual_matching" if photo else "_variant_agg")
    return Suite(
        name=name,
        env="vla_agents/Isolated-v0",
        env_args={"env": "vla_agents/SimplerOriginal-v0", "where": "simpler-original", "task": task},
        tasks=len(told.parts),
        trials=told.trials,
        seed_of=lambda number, trial: told.trials * number + trial,
        protocol={
            "setting": "visual matching" if photo else "variant aggregation",
            "initial states": f"{len(told.placements)} placements of objects and robot for each task"
            + (f", in {count} variants: {told.variants}" if count > 1 else ""),
            "step limit": f"{told.limit} actions; an episode goes on until then",
            "pictures": ("overhead camera, 512 x 640" if google else "third view, 480 x 640")
            + (", a photo behind the objects" if photo else "")
            + "; image_size=N: the whole shrunk to N x N",
            "control": control,
            "success": f"{told.success}; at the last step, solved_once is reported beside it",
            "simulator": "SimplerEnv's own on SAPIEN 2.2.2, in an environment of its own: vla-agents envs install "
            "simpler-original",
        },
        source=f"SimplerEnv, scripts/{script}.sh and tools/calc_metrics_evaluation_videos.py",
    )


for _name in published.GOOGLE_ROBOT:
    SUITES.register(f"simpler_google_{_name}", _simpler_original(f"simpler_google_{_name}", _name))
for _name in published.WIDOWX:
    SUITES.register(f"simpler_original_{_name}", _simpler_original(f"simpler_original_{_name}", _name))


def _libero_pro(base: str, change: str, limit: int, what: str) -> Suite:
    suite = _libero(f"{base}_{change}", 10, limit)
    protocol = {**suite.protocol, "changed": what, "step limit": f"{suite.protocol['step limit']}, as {base}"}
    return replace(
        suite, protocol=protocol, source="LIBERO-PRO (arXiv 2510.03827); limits of the suite it is made of"
    )


for _name, _limit in (
    ("libero_spatial", 220),
    ("libero_object", 280),
    ("libero_goal", 300),
    ("libero_10", 520),
):
    for _change, _what in (
        ("lan", "the instruction is worded otherwise"),
        ("object", "objects look otherwise"),
        ("swap", "objects have changed places"),
        ("task", "another goal in the same scene, and an instruction that says so"),
    ):
        SUITES.register(f"{_name}_{_change}", _libero_pro(_name, _change, _limit, _what))
for _name, _tasks in (("mt10", 10), ("mt50", 50)):
    SUITES.register(f"metaworld_{_name}", _metaworld(_name, _tasks))
for _level in ("easy", "medium", "hard"):
    SUITES.register(f"tabletop_{_level}", _tabletop(f"tabletop_{_level}", "all", _level))


def free_options(suite: Suite, given: dict[str, Any]) -> dict[str, Any]:
    """The suite's options of the env with those given beside them.

    Raises:
        ConfigError: One of those given would change the protocol.
    """
    for key, value in given.items():
        if key not in FREE and suite.env_args.get(key, _ABSENT) != value:
            raise ConfigError(
                f"--env-args {key}={value} contradicts the protocol of suite {suite.name!r}",
                f"leave it out (free are {', '.join(FREE)}), or evaluate without --suite: --env {suite.env} --env-args ...",
            )
    return {**suite.env_args, **given}
