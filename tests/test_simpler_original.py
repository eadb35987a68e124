"""SimplerEnv's original: what is published, and the env around it; its simulator where `VLA_AGENTS_TEST_ENVS` has it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_agents.doctor.checks import Target
from vla_agents.doctor.software import assets
from vla_agents.envs.simpler import SimplerOriginalEnv, google_robot_embodiment
from vla_agents.envs.simpler import original as module
from vla_agents.envs.simpler.original import StickyGripper
from vla_agents.envs.simpler.original_files import published
from vla_agents.envs.simpler.published import GOOGLE_ROBOT, TASKS, WIDOWX, find_task
from vla_agents.envs.vector import make_env
from vla_agents.errors import ConfigError, RenderingError, SimulatorError, UnknownNameError
from vla_agents.eval.suites import SUITES

ENVS = os.environ.get("VLA_AGENTS_TEST_ENVS", "")
installed = pytest.mark.skipif(
    not (ENVS and (Path(ENVS) / "simpler-original").is_dir()),
    reason="VLA_AGENTS_TEST_ENVS does not name the folder of `vla-agents envs install simpler-original`",
)


# ---- what is published ----------------------------------------------------------------------------------------
def test_the_suites_are_as_many_episodes_as_the_scripts_play() -> None:
    counted = {name: SUITES.get(f"simpler_google_{name}").episodes for name in GOOGLE_ROBOT}
    assert counted == {
        "pick_coke_can_matching": 300, "pick_coke_can_variants": 675, "move_near_matching": 240, "move_near_variants": 480,
        "drawer_matching": 216, "drawer_variants": 378, "apple_in_drawer_matching": 108, "apple_in_drawer_variants": 189,
    }  # fmt: skip
    assert all(SUITES.get(f"simpler_original_{name}").episodes == 24 for name in WIDOWX)


@pytest.mark.parametrize("name", TASKS)
def test_every_episode_of_a_suite_is_another(name: str) -> None:
    task = find_task(name)
    seeds = [
        seed
        for suite in SUITES
        if SUITES.get(suite).env_args.get("task") == name
        for seed in SUITES.get(suite).seeds()
    ]
    assert seeds == list(range(task.trials * len(task.parts)))
    episodes = {
        (scene.sim, scene.stage, tuple(sorted(scene.options.items())), place)
        for _, scene, place in map(task.episode, seeds)
    }
    assert len(episodes) == len(seeds)
    assert task.episode(len(seeds)) == task.episode(0)


def test_some_episodes_read_off_the_scripts() -> None:
    part, scene, place = find_task("pick_coke_can_matching").episode(100 + 25 + 6)
    assert (part, scene.name, scene.options["upright"]) == ("standing", "recolor_tabletop_1", True)
    assert place.robot == (0.35, 0.2, 0.0) and place.photo == "google_coke_can_real_eval_1.png"
    assert np.allclose(place.objects, (-0.2925, 0.09))
    part, scene, place = find_task("drawer_matching").episode(36 * 4 + 9 * 3 + 8)
    assert (part, scene.sim) == ("close_middle", "CloseMiddleDrawerCustomInScene-v0")
    assert scene.options == {
        "station_name": "mk_station_recolor", "light_mode": "simple", "disable_bad_material": True, "shader_dir": "rt",
        "urdf_version": "recolor_cabinet_visual_matching_1",
    }  # fmt: skip
    assert (place.robot, place.photo) == ((0.865, 0.222, -0.025), "open_drawer_c2.png")
    _, scene, place = find_task("apple_in_drawer_variants").episode(27 * 6 + 26)
    assert (scene.options["station_name"], place.robot) == ("mk_station3", (0.65, 0.2, 0.0))
    assert np.allclose(place.objects, (-0.02, 0.08))


def test_the_gripper_of_the_google_robot_is_sticky() -> None:
    told = StickyGripper()
    assert [told(opening) for opening in (1.0, 1.0, 0.8)] == pytest.approx(
        [0.0, 0.0, 0.2]
    )  # small changes pass
    assert [told(opening) for opening in [0.1] + [1.0] * 14] == pytest.approx([0.7] * 15)
    assert told(1.0) == 0.0  # it is open, which nobody may have told it meanwhile; as in SimplerEnv
    assert told(0.0) == 1.0


# ---- the env around a simulator -------------------------------------------------------------------------------
class Simulator:
    """Notes what it is asked, as the real one is asked it."""

    def __init__(self) -> None:
        self.resets: list[tuple[Any, Any]] = []
        self.actions: list[np.ndarray] = []
        self.closed = 0
        pose = SimpleNamespace(p=np.array([0.5, 0.0, 0.9]), q=np.array([1.0, 0, 0, 0]))
        arm = SimpleNamespace(ee_pose_at_base=pose)
        self.agent = SimpleNamespace(
            controller=SimpleNamespace(controllers={"arm": arm}), get_gripper_closedness=lambda: 0.25
        )
        self.rgb_overlay_img: Any = None

    @property
    def unwrapped(self) -> Simulator:
        return self

    def reset(self, seed: Any = None, options: Any = None) -> Any:
        self.resets.append((seed, options))
        return self.seen(), {}

    def step(self, action: np.ndarray) -> Any:
        self.actions.append(action)
        done = len(self.actions) == 3
        told = {
            "success": done,
            "is_grasped": np.bool_(True),
            "elapsed_steps": 1,
            "qpos": np.float32(0.1),
            "episode_stats": {},
        }
        return self.seen(), 0.0, done, False, told

    def seen(self) -> Any:
        return {"image": {"overhead_camera": {"rgb": np.full((512, 640, 3), 90, np.uint8)}}}

    def get_language_instruction(self) -> str:
        return "pick coke can"

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def sims(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Simulator]:
    from PIL import Image

    made: list[Simulator] = []
    monkeypatch.setattr(
        SimplerOriginalEnv, "_make", lambda self, scene, place: made.append(Simulator()) or made[-1]
    )
    monkeypatch.setattr(module, "require_original", lambda: None)
    monkeypatch.setattr(module, "version", lambda name: "2.2.2")
    monkeypatch.setenv("MS2_REAL2SIM_ASSET_DIR", str(tmp_path))
    (tmp_path / "real_inpainting").mkdir()
    for photo in ("google_coke_can_real_eval_1.png", "open_drawer_a0.png", "open_drawer_b0.png"):
        Image.new("RGB", (8, 6), (51, 102, 153)).save(tmp_path / "real_inpainting" / photo)
    return made


def test_an_episode_begins_as_in_a_simulator_built_for_it(sims: list[Simulator]) -> None:
    env = SimplerOriginalEnv(task="pick_coke_can_matching", stage="dummy_tabletop", max_steps=4)
    obs, info = env.reset(seed=7)
    assert env.observation_space.contains(obs) and env.embodiment == google_robot_embodiment()
    assert obs["state"][6] == 0.75  # open, where the simulator says how far it is closed
    (first, second) = sims[0].resets
    assert first == (2022, {"reconfigure": True}) and second[0] is None
    robot = second[1]["robot_init_options"]
    assert np.allclose(robot["init_xy"], (0.35, 0.2)) and np.allclose(robot["init_rot_quat"], (0, 0, 0, 1))
    assert np.allclose(
        second[1]["obj_init_options"]["init_xy"], find_task("pick_coke_can_matching").episode(7)[2].objects
    )
    assert sims[0].rgb_overlay_img.shape == (6, 8, 3) and np.allclose(
        sims[0].rgb_overlay_img[0, 0], (0.2, 0.4, 0.6)
    )
    assert (info["task"], info["variant"], info["success"]) == ("horizontal", "own_colours", False)
    assert "stand-ins" in info["caution"] and "dummy_tabletop" in info["assets"]

    seen = [env.step(np.array([0.1, 0, 0, 0, 0, 9, opening], np.float32)) for opening in (1, 0, 0, 0)]
    assert [action[6] for action in sims[0].actions] == [0, 1, 1, 1]
    assert np.allclose([action[5] for action in sims[0].actions], np.pi / 2)  # clipped
    assert [step[4]["success"] for step in seen] == [False, False, True, False]
    assert [step[3] for step in seen] == [False, False, False, True] and seen[3][4]["solved_once"]
    assert seen[0][4]["is_grasped"] is True and seen[0][4]["qpos"] == pytest.approx(0.1)
    env.reset(seed=8)
    assert len(sims) == 1, "the same scene"
    env.reset(seed=25)
    assert len(sims) == 2 and sims[0].closed == 1
    env.close()
    assert sims[1].closed == 1


def test_the_robot_stands_turned_as_the_scripts_turn_it(sims: list[Simulator]) -> None:
    env = SimplerOriginalEnv(task="drawer_matching", stage="dummy_drawer", shader="ibl")
    for seed, turn in ((0, -0.03), (3, 0.0)):
        env.reset(seed=seed)
        w, x, y, z = sims[0].resets[-1][1]["robot_init_options"]["init_rot_quat"]
        wanted = Rotation.from_euler("z", turn) * Rotation.from_quat([0, 0, 1, 0])
        assert (wanted.inv() * Rotation.from_quat([x, y, z, w])).magnitude() < 1e-9
    assert not hasattr(env, "expert_action")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mani_skill2_real2sim(.|\n)*envs install simpler-original"):
        make_env("vla_agents/SimplerOriginal-v0")
    with pytest.raises(UnknownNameError, match="Did you mean 'move_near_matching'"):
        make_env("vla_agents/SimplerOriginal-v0", task="move_near_match")
    monkeypatch.setattr(module, "require_original", lambda: None)
    monkeypatch.setattr(module, "version", lambda name: "2.2.2")
    monkeypatch.setenv("MS2_REAL2SIM_ASSET_DIR", str(tmp_path))
    with pytest.raises(
        SimulatorError,
        match=r"missing: .*google_pick_coke_can_1_v4.glb and 2 more(.|\n)*MS2_REAL2SIM_ASSET_DIR",
    ):
        SimplerOriginalEnv(task="move_near_matching")
    for file in published("drawer_variants"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"another")
    monkeypatch.setattr(module, "_has_nvidia", lambda: False)
    with pytest.raises(RenderingError, match=r"ray tracing(.|\n)*shader=.ibl"):
        SimplerOriginalEnv(task="drawer_variants")
    env = SimplerOriginalEnv(task="drawer_variants", shader="ibl")
    assert env._about["assets"].count(".glb") == 3 and "no scores" in env._about["caution"]


def test_the_doctor_looks_where_the_environment_has_its_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = Target("s", suite="simpler_google_pick_coke_can_matching", where="simpler-original")
    assert target.needs_vulkan
    monkeypatch.setenv("VLA_AGENTS_ENVS", str(tmp_path))
    monkeypatch.delenv("MS2_REAL2SIM_ASSET_DIR", raising=False)
    assert list(assets(target)) == []
    site = tmp_path / "simpler-original" / "lib" / "python3.11" / "site-packages"
    package = tmp_path / "clone" / "mani_skill2_real2sim"
    site.mkdir(parents=True)
    package.mkdir(parents=True)
    (site / package.name).symlink_to(package)
    (row,) = assets(target)
    assert row.status == "missing" and str(tmp_path / "clone" / "data") in row.found
    (file,) = published("pick_coke_can_matching")
    (tmp_path / "clone" / "data" / file).parent.mkdir(parents=True)
    (tmp_path / "clone" / "data" / file).write_bytes(b"another")
    (row,) = assets(target)
    assert row.status == "warning" and file in row.found


# ---- in its own Python ------------------------------------------------------------------------------------------
def play(env: Any, seed: int) -> tuple[bytes, dict[str, Any]]:
    """What was seen, and the last info, of an episode of the expert."""
    obs, info = env.reset(seed=seed)
    seen, over = [], False
    while not over:
        seen.append(
            obs["images"][env.unwrapped.embodiment.camera_names[0]].tobytes()[::997] + obs["state"].tobytes()
        )
        obs, _, terminated, truncated, info = env.step(env.unwrapped.expert_action())
        over = terminated or truncated
    return b"".join(seen), info


@pytest.fixture
def can() -> Iterator[Any]:
    python = str(Path(ENVS) / "simpler-original" / "bin" / "python")
    env = make_env(
        "vla_agents/Isolated-v0", where=python, env="vla_agents/SimplerOriginal-v0",
        task="pick_coke_can_matching", stage="dummy_tabletop",
    )  # fmt: skip
    yield env
    env.close()


@installed
@pytest.mark.skipif(not (Path(ENVS) / "simpler").is_dir(), reason="ManiSkill's port is not installed")
@pytest.mark.timeout(900)
def test_maniskills_port_of_a_widowx_task_is_the_same_to_the_eye_and_to_the_hand() -> None:
    """Measured: 0.2 of 256 grey levels at first, 0.5 after 20 actions; 4.5 mm, 0.0015 rad, 0.05 of the gripper's way."""
    rng, seen = np.random.default_rng(0), []
    turns = rng.uniform(-0.15, 0.15, (20, 3))
    ways = rng.uniform(-0.02, 0.02, (20, 3))
    for name, task in (("simpler-original", "widowx_stack_cube"), ("simpler", "stack_cube")):
        python = str(Path(ENVS) / name / "bin" / "python")
        kind = "SimplerOriginal" if name == "simpler-original" else "SimplerWidowX"
        env = make_env("vla_agents/Isolated-v0", where=python, env=f"vla_agents/{kind}-v0", task=task)
        obs = [env.reset(seed=9)[0]]
        for step, (way, turn) in enumerate(zip(ways, turns, strict=True)):
            obs.append(env.step(np.r_[way, turn, 1 if step < 10 else -1].astype(np.float32))[0])
        seen.append(obs)
        env.close()
    states = np.abs(np.array([[one["state"] for one in obs] for obs in seen]))
    apart = np.abs(states[0] - states[1]).max(axis=0)
    assert apart[:3].max() < 0.006 and apart[3:6].max() < 0.003 and apart[6] < 0.08
    pictures = [[one["images"]["third_view"].astype(int) for one in obs] for obs in seen]
    assert np.abs(pictures[0][0] - pictures[1][0]).mean() < 0.5
    assert np.abs(pictures[0][-1] - pictures[1][-1]).mean() < 1.0


@installed
@pytest.mark.timeout(900)
def test_the_expert_picks_the_can_and_an_episode_follows_from_its_seed(can: Any) -> None:
    first, info = play(can, 7)
    assert info["success"] and info["is_grasped"] and info["instruction"] == "pick coke can"
    assert play(can, 107)[1]["success"], "standing"
    assert play(can, 7)[0] == first
