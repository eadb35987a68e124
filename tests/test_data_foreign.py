"""HDF5 files of ALOHA, robomimic, LIBERO and plain groups: every number, every pixel, and what is said about them."""

from __future__ import annotations

import json
from pathlib import Path

import foreign_sets as foreign
import h5py
import numpy as np
import pytest
from foreign_sets import LENGTHS, TASKS, numbers, pictures

from vla_agents.data import open_dataset
from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ConfigError, DatasetError, UnknownNameError


def f32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


# ---- ALOHA -------------------------------------------------------------------------------------------------
def test_aloha(tmp_path: Path) -> None:
    reader = open_dataset(foreign.aloha(tmp_path / "set"), instruction="fold the towel")
    assert reader.format == "ALOHA HDF5" and reader.lengths().tolist() == list(LENGTHS)
    assert reader.embodiment.camera_names == ("cam_high", "cam_left_wrist")
    assert [p.kind for p in reader.embodiment.action] == ["joint_position", "gripper_open_01"] * 2
    for k, length in enumerate(LENGTHS):
        episode = reader.read(k)
        assert np.array_equal(episode.state, f32(numbers(k, length, 14, np.float64)))
        assert np.array_equal(episode.action, f32(numbers(k + 70, length, 14, np.float64)))
        assert np.array_equal(
            episode.extras["observation.velocity"], f32(numbers(k + 50, length, 14, np.float64))
        )
        assert np.array_equal(
            episode.extras["observation.effort"], f32(numbers(k + 60, length, 14, np.float64))
        )
        assert np.array_equal(episode.images["cam_left_wrist"], pictures(10 * k + 1, length, 32, 48))
        assert episode.instruction == "fold the towel" and episode.success is None
        assert np.array_equal(episode.time, np.arange(length) / 50)
        assert episode.metadata["attributes"] == {"sim": True}


def test_aloha_says_what_it_assumes_and_may_be_told(tmp_path: Path) -> None:
    path = foreign.aloha(tmp_path / "set", bgr=True)
    notes = " ".join(open_dataset(path).notes)
    assert "50 Hz assumed" in notes and "instruction=" in notes and 'colour="bgr"' in notes
    told = open_dataset(path, colour="bgr", fps=30, instruction="go")
    assert told.notes == [] and told.embodiment.control_hz == 30 and told.read(0).time[1] == 1 / 30
    assert np.array_equal(told.read(0).images["cam_high"], pictures(0, LENGTHS[0], 32, 48))
    assert not np.array_equal(open_dataset(path).read(0).images["cam_high"], pictures(0, LENGTHS[0], 32, 48))
    with pytest.raises(UnknownNameError, match="rgb"):
        open_dataset(path, colour="grey")
    with pytest.raises(ConfigError, match="instruction, fps, colour"):
        open_dataset(path, mask="train")


@pytest.mark.parametrize("bgr", [False, True])
def test_aloha_jpeg_and_base(bgr: bool, tmp_path: Path) -> None:
    path = foreign.aloha(tmp_path / "set", jpeg=True, mobile=True, bgr=bgr)
    reader = open_dataset(path, colour="bgr" if bgr else "rgb")
    assert reader.embodiment.action_dim == 16 and reader.embodiment.action[-1].name == "base"
    for k, length in enumerate(LENGTHS):
        episode = reader.read(k)
        assert np.array_equal(episode.action[:, 14:], f32(numbers(k + 80, length, 2, np.float64)))
        with h5py.File(path / f"episode_{5 * k}.hdf5") as file:
            rows = file["observations/images/cam_high"][()]
        as_driven = np.stack([foreign.from_jpeg(row.tobytes()) for row in rows])
        assert np.array_equal(episode.images["cam_high"], as_driven[..., ::-1] if bgr else as_driven)
        near = np.abs(episode.images["cam_high"].astype(int) - pictures(10 * k, length, 32, 48))
        assert near.mean() < 6  # quality 50


def test_aloha_of_another_size(tmp_path: Path) -> None:
    reader = open_dataset(foreign.aloha(tmp_path / "set", size=7))
    assert reader.embodiment.action == (Part("action", 7, "unknown"),)
    assert reader.embodiment.state == (Part("qpos", 7, "unknown"),)


# ---- robomimic ---------------------------------------------------------------------------------------------
def test_robomimic(tmp_path: Path) -> None:
    reader = open_dataset(foreign.robomimic(tmp_path / "lift.hdf5"))
    assert reader.format == "robomimic HDF5" and reader.lengths().tolist() == list(LENGTHS)
    assert [(p.kind, p.unit) for p in reader.embodiment.action] == [
        ("delta_xyz", "0.05 m"), ("delta_axis_angle", "0.5 rad"), ("gripper_close_pm1", ""),
    ]  # fmt: skip
    assert [p.kind for p in reader.embodiment.state] == ["xyz", "quaternion_xyzw", "gripper_position"]
    assert reader.embodiment.control_hz == 20 and reader.successes() == [True, False, True]
    for k, length in enumerate(LENGTHS):
        episode = reader.read(k)
        state = [numbers(k + 10, length + 1, 3, np.float64), numbers(k + 20, length + 1, 4, np.float64)]
        state.append(numbers(k + 30, length + 1, 2, np.float64))
        assert np.array_equal(episode.state, f32(np.concatenate(state, axis=1)[:-1]))
        assert np.array_equal(episode.action, f32(np.clip(numbers(k, length, 7, np.float64), -1, 1)))
        assert np.array_equal(episode.images["agentview"], pictures(k, length + 1, 36, 48)[:-1])
        assert episode.terminated.tolist() == [False] * (length - 1) + [True]
        assert episode.reward[-1] == float(k != 1)
        assert np.array_equal(episode.extras["states"], numbers(k + 5, length, 32, np.float64))
        assert np.array_equal(episode.extras["obs.object"], numbers(k + 40, length + 1, 10, np.float64)[:-1])
        assert episode.metadata["attributes"]["model_file"] == "<mujoco model='base'/>"
        assert episode.metadata["masks"] == [("train", "valid", "train")[k]]


def test_robomimic_filters_and_state_keys(tmp_path: Path) -> None:
    path = foreign.robomimic(tmp_path / "lift.hdf5")
    train = open_dataset(path, mask="train")
    assert train.lengths().tolist() == [5, 4]
    assert np.array_equal(train.read(1).action, open_dataset(path).read(2).action)
    with pytest.raises(UnknownNameError, match="train, valid"):
        open_dataset(path, mask="test")
    body = open_dataset(path, state_keys=("object", "robot0_eef_pos")).embodiment
    assert [(p.name, p.kind) for p in body.state] == [("object", "unknown"), ("robot0_eef_pos", "xyz")]
    with pytest.raises(ConfigError, match="no observation 'x'"):
        open_dataset(path, state_keys=("x",))


def test_robomimic_without_a_known_controller_guesses_nothing(tmp_path: Path) -> None:
    for number, args in enumerate(
        (None, {"env_name": "x", "env_kwargs": {"controller_configs": {"type": "OSC"}}})
    ):
        reader = open_dataset(foreign.robomimic(tmp_path / f"{number}.hdf5", env_args=args, images=False))
        assert reader.embodiment.action == (Part("action", 7, "unknown"),)
        assert any("action: env_args do not state" in note for note in reader.notes)
        assert any("20 Hz assumed" in note for note in reader.notes)
    new = {"type": "BASIC", "body_parts": {"right": {**foreign.OSC, "control_delta": False}}}
    args = {
        "env_name": "Lift",
        "env_kwargs": {"robots": ["Panda"], "controller_configs": new, "control_freq": 10},
    }
    body = open_dataset(foreign.robomimic(tmp_path / "new.hdf5", env_args=args, images=False)).embodiment
    assert [p.kind for p in body.action] == [
        "xyz",
        "axis_angle",
        "gripper_close_pm1",
    ] and body.control_hz == 10


# ---- LIBERO ------------------------------------------------------------------------------------------------
def test_libero_fits_our_env(tmp_path: Path) -> None:
    from vla_agents.envs.libero import libero_embodiment

    reader = open_dataset(foreign.libero(tmp_path / "libero_toy"))
    assert reader.format == "LIBERO HDF5" and reader.notes == []
    assert reader.embodiment == libero_embodiment(image_size=64)
    assert reader.instructions() == [TASKS[1]] * 2 + [TASKS[0]] * 2  # files by name
    for k, seed in enumerate((10, 11, 0, 1)):
        episode = reader.read(k)
        length = (6, 5)[seed % 10]
        parts = [numbers(seed + 4, length, 3, np.float64), numbers(seed + 5, length, 3, np.float64)]
        parts.append(numbers(seed + 6, length, 2, np.float64) * 0.01)
        assert np.array_equal(episode.state, f32(np.concatenate(parts, axis=1)))
        assert np.array_equal(episode.images["agentview"], pictures(seed, length, 64, 64))  # upright
        assert np.array_equal(episode.images["wrist"], pictures(seed + 50, length, 64, 64))
        assert episode.success is True and episode.terminated[-1] and episode.reward[-1] == 1
        assert episode.extras["obs.agentview_depth"].shape == (length, 64, 64, 1)
        assert set(reader.read(k, images=False).extras) == {
            "states", "robot_states", "obs.ee_states", "obs.joint_states",
        }  # fmt: skip
    single = open_dataset(tmp_path / "libero_toy" / f"{TASKS[1].replace(' ', '_')}_demo.hdf5")
    assert len(single) == 2 and np.array_equal(single.read(1).action, reader.read(1).action)


def test_libero_without_the_convention_says_so(tmp_path: Path) -> None:
    path = foreign.libero(tmp_path / "set")
    for file in path.iterdir():
        with h5py.File(file, "a") as opened:
            del opened["data"].attrs["macros_image_convention"]
    reader = open_dataset(path)
    assert any("bottom row first" in note for note in reader.notes)
    assert np.array_equal(reader.read(2).images["agentview"], pictures(0, 6, 64, 64))
    for file in path.iterdir():
        with h5py.File(file, "a") as opened:
            opened["data"].attrs["macros_image_convention"] = "opencv"
    assert np.array_equal(open_dataset(path).read(2).images["agentview"], pictures(0, 6, 64, 64)[:, ::-1])


# ---- groups ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cameras", [False, True])
def test_groups(cameras: bool, tmp_path: Path) -> None:
    reader = open_dataset(foreign.groups(tmp_path / "set.h5", cameras=cameras), fps=15)
    assert reader.format == "HDF5 with groups episode_N" and reader.embodiment.control_hz == 15
    assert reader.instructions() == [f"touch the blöck {k}" for k in range(3)]
    assert reader.successes() == [None, True, None]
    assert reader.embodiment.camera_names == (("left", "right") if cameras else ("image",))
    for k, length in enumerate(LENGTHS):
        episode = reader.read(k)
        assert np.array_equal(episode.action, f32(numbers(k, length, 6, np.float64)))
        assert np.array_equal(episode.state, f32(numbers(k + 10, length, 5, np.float64)))
        assert np.array_equal(episode.images["left" if cameras else "image"], pictures(k, length, 32, 40))
        if cameras:
            assert np.array_equal(episode.images["right"], pictures(k + 100, length, 32, 40))


# ---- common to all -----------------------------------------------------------------------------------------
def test_an_embodiment_may_be_given(tmp_path: Path) -> None:
    path = foreign.groups(tmp_path / "set.h5")
    found = open_dataset(path).embodiment
    assert {p.kind for p in (*found.action, *found.state)} == {"unknown"}
    mine = Embodiment("mine", (Part("a", 6, "joint_position", unit="rad"),), (), found.cameras, 15.0)
    reader = open_dataset(path, embodiment=mine)
    assert reader.embodiment == mine and reader.read(0).embodiment == mine and reader.read(0).state is None
    with pytest.raises(ConfigError, match=r"action has 5 values, the files have 6.*camera 'x' is not there"):
        wrong = Embodiment("wrong", (Part("a", 5, "other"),), (), (found.cameras[0].__class__("x", 1, 1),))
        open_dataset(path, embodiment=wrong)


@pytest.mark.parametrize("make", ["aloha", "robomimic", "libero", "groups"])
def test_frames_and_columns_are_those_of_the_episodes(make: str, tmp_path: Path) -> None:
    name = "set.hdf5" if make in ("robomimic", "groups") else "set"
    reader = open_dataset(getattr(foreign, make)(tmp_path / name))
    columns = reader.columns()
    assert np.array_equal(
        columns["action"], np.concatenate([reader.read(k).action for k in range(len(reader))])
    )
    assert np.array_equal(columns["episode_index"], np.repeat(np.arange(len(reader)), reader.lengths()))
    camera = reader.embodiment.camera_names[-1]
    whole = reader.read(1).images[camera]
    assert np.array_equal(np.stack(list(reader.stream(1, camera))), whole)
    assert np.array_equal(reader.frames(1, camera, np.array([3, 1, 1])), whole[[3, 1, 1]])


def test_hdf5_of_no_known_layout_says_what_it_holds(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["thesis"] = 1
    with pytest.raises(DatasetError, match="no known layout; it holds thesis"):
        open_dataset(tmp_path / "x.hdf5")


def test_metadata_is_json(tmp_path: Path) -> None:
    for make in ("aloha", "libero"):
        reader = open_dataset(getattr(foreign, make)(tmp_path / make))
        assert json.dumps(reader.read(0).metadata)
