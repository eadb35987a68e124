"""The files SimplerEnv's original is made of: where they are, which are missing, and which are not its own."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from vla_agents.envs.simpler.published import TASKS
from vla_agents.envs.simpler.tasks import git_digest
from vla_agents.errors import ConfigError, SimulatorError

MODULE = "mani_skill2_real2sim"
ENVIRONMENT = "simpler-original"
INSTALL = f"vla-agents envs install {ENVIRONMENT}"
# Git's own digests of files in github.com/simpler-env/ManiSkill2_real2sim at ef7a4d4, folder data: the stages, and objects
# that the simulator would go without and only log it.
_STAGES = {
    "Baked_sc1_staging_objaverse_cabinet1_h870": "a7be88852f799a5b8da7e789addf3aeaaf27d936",
    "Baked_sc1_staging_objaverse_cabinet2_h870": "52a8d522c1d302682f1cc2ae3ddb4f348f3bcb74",
    "bridge_table_1_v1": "0eb8c869fc5503c834e20efc45fe2dedb5a599ce",
    "bridge_table_1_v2": "893b8a2f17f4b8acd1aa496433f8708d4b3cdb3b",
    "frl_apartment_stage_simple": "426d217f64ec4cace11f91cad56f7dac22484fac",
    "google_pick_coke_can_1_v4": "002d9a550666a2902ef079301387ea08053b2bf9",
    "google_pick_coke_can_1_v4_alt_background": "ca7763842982d9e9516a259367238594ba4ec159",
    "google_pick_coke_can_1_v4_alt_background_2": "29867b7d87a49ea799147a35c4dea1cf3c778fcf",
    "modern_bedroom_no_roof": "83a08b80d95675216290093f4792df6aad832729",
    "modern_office_no_roof": "8d7deb7f9aceebb8e7fe6c5625c1d819c99737ab",
}
_OBJECTS = {
    "baked_opened_redbull_can": "c34602503ef5111b4b08806a4f96a4541413fad7",
    "blue_plastic_bottle": "8084e739b16f50986bfec6b3cba9dcdb3770d043",
    "eggplant": "ad841cda35d5bfab937b82609547816290e18d1a",
    "opened_redbull_can": "7463c686c4df82edce2a028873dfcf63a28ba4e6",
}
_SEEN = {  # simulator -> those of the objects above that appear in it
    "MoveNearGoogleBakedTexInScene-v0": ("baked_opened_redbull_can", "blue_plastic_bottle"),
    "MoveNearGoogleInScene-v0": ("opened_redbull_can", "blue_plastic_bottle"),
    "PutEggplantInBasketScene-v0": ("eggplant",),
}


def package_folder() -> Path | None:
    """Where ManiSkill2_real2sim is in this Python; None where it is not. It is not imported."""
    spec = find_spec(MODULE)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def asset_root(package: Path | None = None) -> Path:
    """Its data: `$MS2_REAL2SIM_ASSET_DIR`, or data/ beside the package, which is this Python's where none is given."""
    chosen = os.environ.get("MS2_REAL2SIM_ASSET_DIR")
    package = package or package_folder()
    return Path(chosen) if chosen else (package.resolve().parent if package else Path()) / "data"


def published(task: str, without_stage: bool = False) -> dict[str, str]:
    """The decisive files of a task, below the data folder, and their digests."""
    scenes = [scene for scenes in TASKS[task].parts.values() for scene in scenes]
    stages = {scene.stage for scene in scenes if scene.stage in _STAGES and not without_stage}
    objects = {model for scene in scenes for model in _SEEN.get(scene.sim, ())}
    return {
        **{f"hab2_bench_assets/stages/{stage}.glb": _STAGES[stage] for stage in sorted(stages)},
        **{f"custom/models/{model}/textured.dae": _OBJECTS[model] for model in sorted(objects)},
    }


def missing_files(task: str, root: Path, without_stage: bool = False) -> list[Path]:
    """The decisive files of a task that are not below a data folder."""
    paths = [root / file for file in published(task, without_stage)]
    return [path for path in paths if not path.is_file()]


def stand_ins(task: str, root: Path) -> list[str]:
    """The decisive files of a task that are there, and not SimplerEnv's own."""
    return [
        file
        for file, digest in published(task).items()
        if (root / file).is_file() and git_digest(root / file) != digest
    ]


def require_original() -> None:
    """Raise `ConfigError` unless ManiSkill2_real2sim is in this Python."""
    if package_folder() is None:
        raise ConfigError(
            f"vla_agents/SimplerOriginal-v0 needs {MODULE}, and this Python does not have it",
            f"{INSTALL}; then --env vla_agents/Isolated-v0 --env-args where={ENVIRONMENT} "
            "env=vla_agents/SimplerOriginal-v0",
        )


def require_files(task: str, without_stage: bool = False) -> None:
    """Raise `SimulatorError` unless the decisive files of a task are there: without one, the simulator logs it and goes on
    with a scene in which objects fall into the depth, or are not to be seen.
    """
    missing = missing_files(task, asset_root(), without_stage)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SimulatorError(
            f"a file of SimplerEnv is missing: {missing[0]}{more}",
            f"vla-agents envs remove {ENVIRONMENT} && {INSTALL}; or set MS2_REAL2SIM_ASSET_DIR to the folder data/ of a "
            "complete github.com/simpler-env/ManiSkill2_real2sim",
        )
