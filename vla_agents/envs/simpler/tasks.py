"""The four WidowX tasks of SimplerEnv as ManiSkill 3 has them, and the files they are made of."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vla_agents.errors import ConfigError, SimulatorError, UnknownNameError

LAYOUTS_PER_TASK = 64  # seeds of one task before the next one's turn; the eggplant has that many layouts


@dataclass(frozen=True)
class Task:
    """A task of SimplerEnv.

    Args:
        sim: Id in ManiSkill 3.
        instruction: SimplerEnv's own.
        max_steps: SimplerEnv's own.
        layouts: How many placements of the objects ManiSkill has.
        stage: The mesh it stands on.
    """

    sim: str
    instruction: str
    max_steps: int
    layouts: int
    stage: str


_TABLE, _SINK = "stages/bridge_table_1_v1.glb", "stages/bridge_table_1_v2.glb"
TASKS: dict[str, Task] = {
    "spoon_on_towel": Task("PutSpoonOnTableClothInScene-v1", "put the spoon on the towel", 60, 24, _TABLE),
    "carrot_on_plate": Task("PutCarrotOnPlateInScene-v1", "put carrot on plate", 60, 24, _TABLE),
    "stack_cube": Task(
        "StackGreenCubeOnYellowCubeBakedTexInScene-v1",
        "stack the green block on the yellow block",
        60,
        24,
        _TABLE,
    ),
    "eggplant_in_basket": Task(
        "PutEggplantInBasketScene-v1", "put eggplant into yellow basket", 120, 64, _SINK
    ),
}

# What a task needs, below data/ of ManiSkill's asset folder; and the command that fetches it.
FOLDERS: dict[str, str] = {
    "bridge_v2_real2sim": "tasks/bridge_v2_real2sim_dataset",
    "widowx250s": "robots/widowx",
}
_BRIDGE = FOLDERS["bridge_v2_real2sim"]
_EGGPLANT = "custom/models/eggplant"
# Git's own digests of files in github.com/simpler-env/ManiSkill2_real2sim at ef7a4d4, folder data.
PUBLISHED: dict[str, str] = {
    _TABLE: "0eb8c869fc5503c834e20efc45fe2dedb5a599ce",
    _SINK: "893b8a2f17f4b8acd1aa496433f8708d4b3cdb3b",
    f"{_EGGPLANT}/textured.dae": "ad841cda35d5bfab937b82609547816290e18d1a",
}


def select_tasks(wanted: Any) -> tuple[str, ...]:
    """The tasks that `wanted` names: a name, `"all"`, or several names."""
    names = tuple(TASKS) if wanted == "all" else (wanted,) if isinstance(wanted, str) else wanted
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"task is {wanted!r}", f"give a name, several names, or all: {', '.join(TASKS)}")
    for name in names:
        if name not in TASKS:
            raise UnknownNameError("SimplerEnv task", name, (*TASKS, "all"))
    return tuple(names)


def asset_root() -> Path:
    """ManiSkill's folder of assets: `$MS_ASSET_DIR/data`, or `~/.maniskill/data`."""
    return Path(os.environ.get("MS_ASSET_DIR") or Path.home() / ".maniskill") / "data"


def missing_assets() -> dict[str, Path]:
    """The downloads of ManiSkill that are not there: name -> folder."""
    folders = {name: asset_root() / folder for name, folder in FOLDERS.items()}
    return {
        name: folder for name, folder in folders.items() if not (folder.is_dir() and any(folder.iterdir()))
    }


def stand_ins(tasks: Iterable[str] = TASKS) -> list[str]:
    """The decisive files of tasks that are not SimplerEnv's own; scores with such are no scores of SimplerEnv."""
    wanted = {TASKS[name].stage for name in tasks}
    wanted |= {file for file in PUBLISHED if _EGGPLANT in file and "eggplant_in_basket" in tasks}
    return sorted(file for file in wanted if git_digest(asset_root() / _BRIDGE / file) != PUBLISHED[file])


def git_digest(path: Path) -> str:
    """As git names the content of a file; "" where it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def require_simpler() -> None:
    """Raise unless ManiSkill 3 and the assets are there.

    Raises:
        ConfigError: ManiSkill 3 is not installed in this Python.
        SimulatorError: Assets are missing.
    """
    try:
        found = version("mani_skill")
    except PackageNotFoundError:
        found = "none"
    if not found.startswith("3."):
        raise ConfigError(
            f"vla_agents/SimplerWidowX-v0 needs mani_skill 3, and this Python has {found}",
            "vla-agents envs install simpler; then --env vla_agents/Isolated-v0 --env-args where=simpler "
            "env=vla_agents/SimplerWidowX-v0",
        )
    for name, folder in missing_assets().items():
        raise SimulatorError(
            f"assets of SimplerEnv are missing: {folder}",
            f"{shlex.quote(sys.executable)} -m mani_skill.utils.download_asset {name} -y",
        )
