"""Questions and answers about pictures of the table: the miniature of what a VLM is pretrained on.

Places are told as Qwen-VL tells points, in image coordinates, here as two numbers from 00 to 99: columns from the left,
then rows from the top, in hundredths of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from vla_agents.envs.tabletop.env import TabletopEnv
from vla_agents.envs.tabletop.scene import COLOURS
from vla_agents.envs.tabletop.tasks import FAMILIES
from vla_agents.envs.tabletop.world import World

TABLE = 0.15  # m from the middle to where blocks lie at most (in the medium setting)
_NUMBERS = ("0", "1", "2", "3", "4", "5", "6")


def locate(world: World, camera: str = "front") -> dict[str, np.ndarray]:
    """Where things are in a camera's picture: name -> (column, row), each in [0, 1) where the thing is in view."""
    return {name: _project(world, camera, point) for name, point in _points(world).items()}


def _points(world: World) -> dict[str, np.ndarray]:
    """Name -> centre of the thing, metres, world frame (3,)."""
    points = {f"{colour} block": world.position(colour) for colour in world.blocks}
    points |= {f"{colour} pad": np.array([x, y, 0.0]) for colour, (x, y) in world.layout.pads.items()}
    points["gripper"] = world.eef_position
    return points


class Question(NamedTuple):
    """A question about a picture.

    Args:
        text: What is asked.
        answer: The answer in words.
        place: Where on the table the thing is that the answer names, (x, y) in units of half the table, so within
            [-1, 1]; None where the answer names no place. For a model that points instead of speaking.
    """

    text: str
    answer: str
    place: tuple[float, float] | None = None


def questions(world: World, camera: str = "front") -> list[Question]:
    """Every question there is about the present scene, with its answer."""
    places = {name: uv for name, uv in locate(world, camera).items() if (uv >= 0).all() and (uv < 1).all()}
    tables = {
        name: (float(point[0]) / TABLE, float(point[1]) / TABLE) for name, point in _points(world).items()
    }
    asked = [Question(where_is(name), point_text(uv), tables[name]) for name, uv in places.items()]
    # An order is answered with the place where to grasp, as affordance data do it (RoboPoint: Yuan et al. 2024).
    blocks = [colour for colour in world.blocks if f"{colour} block" in places]
    for colour in blocks:
        name = f"{colour} block"
        asked.append(Question(FAMILIES["lift"].say(0, colour, ""), point_text(places[name]), tables[name]))
    for colour in COLOURS:
        asked.append(Question(f"is there a {colour} block?", "yes" if colour in blocks else "no"))
    asked.append(Question("how many blocks are there?", _NUMBERS[len(blocks)]))
    if "gripper" in places and len(blocks) > 1:
        gripper = world.eef_position[:2]
        gaps = {colour: float(np.linalg.norm(world.position(colour)[:2] - gripper)) for colour in blocks}
        first, second = sorted(gaps, key=gaps.__getitem__)[:2]
        if gaps[second] - gaps[first] > 0.02:  # a tie has no answer
            asked.append(Question("which block is nearest to the gripper?", first))
    return asked


def where_is(name: str) -> str:
    """The question after a thing's place."""
    return f"where is the {name}?"


def point_text(uv: np.ndarray) -> str:
    """(column, row) in [0, 1) -> two numbers from 00 to 99."""
    column, row = np.clip((np.asarray(uv) * 100).astype(int), 0, 99)
    return f"{column:02d} {row:02d}"


def parse_point(text: str) -> np.ndarray | None:
    """The inverse of `point_text` (the middle of the cell), or None where the text is no point."""
    words = text.split()
    if len(words) != 2 or not all(len(word) == 2 and word.isdigit() for word in words):
        return None
    return (np.array([int(word) for word in words]) + 0.5) / 100


def ask_about_scenes(
    count: int, seed: int, *, moving: float = 0.5, camera: str = "front", **env_args: Any
) -> Iterator[tuple[np.ndarray, list[Question]]]:
    """`count` pictures, uint8 (H, W, 3), each with all its questions and answers.

    Args:
        count: How many scenes.
        seed: Of scenes and motions.
        moving: Share of the scenes in which the gripper is already on its way (up to 9 noisy expert steps).
        camera: Whose picture.
        **env_args: Of `TabletopEnv`, e.g. difficulty, task, image_size.
    """
    env = TabletopEnv(cameras=(camera,), **env_args)
    rng = np.random.default_rng([seed, 0x9A5])
    try:
        for _ in range(count):
            obs, _ = env.reset(seed=int(rng.integers(2**31)))
            if rng.random() < moving:
                obs = _advance(env, obs, rng)
            yield obs["images"][camera], questions(env.world, camera)
    finally:
        env.close()


def _advance(env: TabletopEnv, obs: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    for _ in range(int(rng.integers(1, 10))):
        action = env.expert_action()
        action[:3] += rng.normal(0.0, 0.2, 3)
        obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            break
    return obs


def _project(world: World, camera: str, point: np.ndarray) -> np.ndarray:
    """A point in metres, world frame -> (column, row) of a square picture, in units of its side."""
    model, data = world.model, world.data
    index = model.camera(camera).id
    seen = data.cam_xmat[index].reshape(3, 3).T @ (point - data.cam_xpos[index])  # x right, y up, z back
    focal = 0.5 / np.tan(np.deg2rad(model.cam_fovy[index]) / 2)
    return np.array([0.5 + focal * seen[0] / -seen[2], 0.5 - focal * seen[1] / -seen[2]])
