"""Datasets as other programs write them, made here with plain h5py: what each holds is known to the bit."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

OSC = {"type": "OSC_POSE", "control_delta": True, "output_max": [0.05] * 3 + [0.5] * 3}
ENV_ARGS = {
    "env_name": "Lift",
    "type": 1,
    "env_kwargs": {
        "robots": ["Panda"],
        "control_freq": 20,
        "controller_configs": OSC,
        "reward_shaping": False,
    },
}
LENGTHS = (5, 7, 4)


def pictures(seed: int, length: int, height: int, width: int) -> np.ndarray:
    """uint8 (T, H, W, 3), no two alike, none symmetric."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, height)[:, None, None] + np.linspace(0, 60, width)[None, :, None]
    colours = rng.integers(0, 75, (length, 1, 1, 3))
    return (ramp[None] + colours).astype(np.uint8)


def numbers(seed: int, length: int, size: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, size)).astype(dtype)


def aloha(path: Path, *, jpeg: bool = False, mobile: bool = False, bgr: bool = False, size: int = 14) -> Path:
    """`episode_0.hdf5` ... `episode_10.hdf5`-style files; the pictures' colours as `bgr` says."""
    path.mkdir(parents=True)
    for k, length in enumerate(LENGTHS):
        number = k * 5  # 0, 5, 10: by name, 10 would come before 5
        with h5py.File(path / f"episode_{number}.hdf5", "w", rdcc_nbytes=1024**2 * 2) as file:
            file.attrs["sim"] = not mobile
            if jpeg:
                file.attrs["compress"] = True
            obs = file.create_group("observations")
            image = obs.create_group("images")
            sizes = []
            for c, camera in enumerate(("cam_high", "cam_left_wrist")):
                frames = pictures(10 * k + c, length, 32, 48)
                frames = frames[..., ::-1] if bgr else frames
                if not jpeg:
                    image.create_dataset(camera, data=frames, chunks=(1, 32, 48, 3))
                    continue
                packed = [opencv_jpeg(f) for f in frames]
                longest = max(map(len, packed)) + 3
                sizes.append([float(len(p)) for p in packed])
                padded = np.zeros((length, longest), np.uint8)
                for row, content in zip(padded, packed, strict=True):
                    row[: len(content)] = np.frombuffer(content, np.uint8)
                image.create_dataset(camera, data=padded, chunks=(1, longest))
            obs["qpos"] = numbers(k, length, size, np.float64)
            obs["qvel"] = numbers(k + 50, length, size, np.float64)
            obs["effort"] = numbers(k + 60, length, size, np.float64)
            file["action"] = numbers(k + 70, length, size, np.float64)
            if mobile:
                file["base_action"] = numbers(k + 80, length, 2, np.float64)
            if jpeg:
                file["compress_len"] = np.array(sizes)
    return path


def opencv_jpeg(frame: np.ndarray) -> bytes:
    """What `cv2.imencode(".jpg", frame)` makes of an array, whose first channel it takes for blue."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame[..., ::-1])).save(sink, "jpeg", quality=50)
    return sink.getvalue()


def from_jpeg(content: bytes) -> np.ndarray:
    """What `cv2.imdecode(..., 1)` makes of it."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[..., ::-1]


def robomimic(path: Path, *, env_args: dict[str, Any] | None = ENV_ARGS, images: bool = True) -> Path:
    """demo_0, demo_2, demo_10, with masks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(LENGTHS)
        if env_args is not None:
            data.attrs["env_args"] = json.dumps(env_args)
        for k, length in enumerate(LENGTHS):
            demo = data.create_group(f"demo_{(0, 2, 10)[k]}")
            demo.attrs["num_samples"] = length
            demo.attrs["model_file"] = "<mujoco model='base'/>"
            demo["actions"] = np.clip(numbers(k, length, 7, np.float64), -1, 1)
            demo["states"] = numbers(k + 5, length, 32, np.float64)
            demo["rewards"] = np.array([0.0] * (length - 1) + [float(k != 1)])
            demo["dones"] = np.array([0] * (length - 1) + [1])
            for group, shift in (("obs", 0), ("next_obs", 1)):
                obs = demo.create_group(group)
                obs["robot0_eef_pos"] = numbers(k + 10, length + 1, 3, np.float64)[shift : length + shift]
                obs["robot0_eef_quat"] = numbers(k + 20, length + 1, 4, np.float64)[shift : length + shift]
                obs["robot0_gripper_qpos"] = numbers(k + 30, length + 1, 2, np.float64)[
                    shift : length + shift
                ]
                obs["object"] = numbers(k + 40, length + 1, 10, np.float64)[shift : length + shift]
                if images:
                    frames = pictures(k, length + 1, 36, 48)[shift : length + shift]
                    obs.create_dataset("agentview_image", data=frames, compression="gzip")
        mask = file.create_group("mask")
        mask["train"] = np.array([b"demo_0", b"demo_10"])
        mask["valid"] = np.array([b"demo_2"])
    return path


TASKS = ("pick up the black bowl and place it on the plate", "open the top drawer")


def libero(path: Path) -> Path:
    """A folder of two files, a task each, with two demos each; pictures bottom row first."""
    path.mkdir(parents=True)
    for t, task in enumerate(TASKS):
        with h5py.File(path / f"{task.replace(' ', '_')}_demo.hdf5", "w") as file:
            data = file.create_group("data")
            data.attrs["env_name"] = "Libero_Tabletop_Manipulation"
            info = {"problem_name": "libero_tabletop_manipulation", "domain_name": "robosuite"}
            data.attrs["problem_info"] = json.dumps(info | {"language_instruction": task})
            data.attrs["macros_image_convention"] = "opengl"
            data.attrs["bddl_file_name"] = f"{task}.bddl"
            data.attrs["env_args"] = json.dumps(
                {"type": 1, "env_name": "Libero", "env_kwargs": ENV_ARGS["env_kwargs"]}
            )
            data.attrs["num_demos"] = 2
            total = 0
            for k, length in enumerate((6, 5)):
                seed = 10 * t + k
                demo = data.create_group(f"demo_{k}")
                demo.attrs["num_samples"] = length
                demo.attrs["init_state"] = numbers(seed, 1, 20, np.float64)[0]
                demo["actions"] = np.clip(numbers(seed + 1, length, 7, np.float64), -1, 1)
                demo["states"] = numbers(seed + 2, length, 20, np.float64)
                demo["robot_states"] = numbers(seed + 3, length, 9, np.float64)
                for name in ("rewards", "dones"):
                    demo[name] = np.array([0] * (length - 1) + [1], np.uint8)
                obs = demo.create_group("obs")
                position, rotation = (
                    numbers(seed + 4, length, 3, np.float64),
                    numbers(seed + 5, length, 3, np.float64),
                )
                obs["ee_pos"], obs["ee_ori"] = position, rotation
                obs["ee_states"] = np.hstack([position, rotation])
                obs["gripper_states"] = numbers(seed + 6, length, 2, np.float64) * 0.01
                obs["joint_states"] = numbers(seed + 7, length, 7, np.float64)
                obs["agentview_rgb"] = pictures(seed, length, 64, 64)[:, ::-1]
                obs["eye_in_hand_rgb"] = pictures(seed + 50, length, 64, 64)[:, ::-1]
                obs["agentview_depth"] = numbers(seed + 8, length, 64 * 64).reshape(length, 64, 64, 1)
                total += length
            data.attrs["total"] = total
    return path


def groups(path: Path, *, cameras: bool = False) -> Path:
    """`episode_0`, `episode_5`, `episode_10`, as collecting scripts write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for k, length in enumerate(LENGTHS):
            group = file.create_group(f"episode_{5 * k}")
            if cameras:
                for c, name in enumerate(("left", "right")):
                    group[f"images/{name}"] = pictures(k + 100 * c, length, 32, 40)
            else:
                group.create_dataset("images", data=pictures(k, length, 32, 40))
            group.create_dataset("actions", data=numbers(k, length, 6, np.float64))
            group.create_dataset("robot_state", data=numbers(k + 10, length, 5, np.float64))
            group.create_dataset("instruction", data=f"touch the blöck {k}")
            if k == 1:
                group.create_dataset("success", data=True)
    return path
