"""What both simulators of SimplerEnv's tasks have in common: how an episode runs, and what is told about it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.envs.common import check_view, checked_action, episode_number
from vla_agents.envs.explaining import explaining
from vla_agents.envs.simpler.expert import Hand, Things, pick
from vla_agents.errors import ConfigError, RenderingError
from vla_agents.rotations import unfolded_axis_angle

NATIVE = {"widowx": (480, 640), "google_robot": (512, 640)}  # height, width it is drawn with
HANDS = {"widowx": Hand(1, 0.01, 3, 0.08), "google_robot": Hand(1, 0.02, 8, 0.12)}
ABOVE = 0.005  # m above its goal an object is let go
_DRIVER = (
    "Failed to find a supported physical device",
    "ErrorIncompatibleDriver",
    "ErrorExtensionNotPresent",
    "suitable rendering device",
)


def hand_embodiment(name: str, size: tuple[int, int], camera: str, gripper: Part, hz: float) -> Embodiment:
    """An arm moved by its hand; poses and deltas in the frame of its base.

    Args:
        name: Of the body.
        size: Height and width of the pictures.
        camera: Its name.
        gripper: As it is told.
        hz: Actions per second.
    """
    return Embodiment(
        name=name,
        action=(
            Part("delta_position", 3, "delta_xyz", -1.0, 1.0, "m"),
            Part("delta_rotation", 3, "delta_axis_angle", -np.pi / 2, np.pi / 2, "rad"),
            gripper,
        ),
        state=(
            Part("eef_position", 3, "xyz", -3.0, 3.0, "m"),
            Part("eef_rotation", 3, "axis_angle", -2 * np.pi, 2 * np.pi, "rad"),
            Part("gripper", 1, "gripper_open_01", -0.1, 1.1),
        ),
        cameras=(Camera(camera, *size),),
        control_hz=hz,
    )


def hand_state(position: np.ndarray, quaternion: np.ndarray, opened: float) -> np.ndarray:
    """The state float32 (7,) of such an arm: position (3,), quaternion (4,) w x y z, opening 0 to 1."""
    w, *xyz = quaternion.astype(float)
    turn = unfolded_axis_angle(w, np.array(xyz))
    return np.concatenate([position, turn, [opened]]).astype(np.float32)


class SimplerBase(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Episodes of SimplerEnv's tasks. One goes on to its last step, and `info["success"]` is about the step it comes with.

    Args:
        embodiment: The body.
        image_size: Of the pictures, height and width; None: as drawn.
        stop_at_success: End at the first step that is a success.
        max_steps: Actions until truncation; None: the task's own.
        render_mode: None or `"rgb_array"`.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        image_size: int | None,
        stop_at_success: bool,
        max_steps: int | None,
        render_mode: str | None,
    ) -> None:
        camera = embodiment.cameras[0]
        check_view("SimplerEnv", (), (), camera.height if image_size is None else image_size, render_mode)
        if max_steps is not None and max_steps < 1:
            raise ConfigError(f"max_steps={max_steps}", "it is at least 1")
        self._size, self._stop, self._limit = image_size, stop_at_success, max_steps
        self.render_mode, self.embodiment = render_mode, embodiment
        self.observation_space = embodiment.observation_space()
        self.action_space = embodiment.action_space()
        self._about: dict[str, str] = {}  # of the simulator, for `info`
        self._drawn: np.ndarray | None = None
        self._steps, self._solved_once = 0, False
        self._told: dict[str, Any] = {}
        self._expert: Iterator[np.ndarray] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; there are no options."""
        super().reset(seed=seed)
        number = episode_number(self.np_random, seed, options)
        self._steps, self._solved_once, self._told, self._expert = 0, False, {}, None
        with explaining("SimplerEnv", self.extra) if self.extra else contextlib.nullcontext():
            try:
                self._drawn = self._begin(number)
            except RuntimeError as error:
                if not any(words in str(error) for words in _DRIVER):
                    raise
                raise RenderingError(
                    f"SimplerEnv draws with Vulkan, and SAPIEN found no driver it can draw with ({error})",
                    f"vla-agents doctor {self.doctor}; without a GPU see docs/simpler.md",
                ) from error
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Carry out one action, float (7,), clipped to the action space; reward 1 where the step is a success."""
        self._ready()
        self._drawn, self._told = self._carry_out(checked_action(action, self.embodiment))
        self._steps += 1
        success = bool(self._told["success"])
        self._solved_once |= success
        ended = success and self._stop
        truncated = self._steps >= (self._limit or self._own_limit()) and not ended
        return self._observe(), float(success), ended, truncated, self._info()

    def render(self) -> np.ndarray | None:
        """The picture as observed, uint8 (height, width, 3), or None without a render mode."""
        return None if self.render_mode is None else self._picture()

    def close(self) -> None:
        """Free the simulator."""
        self._drawn = None

    def _tell(self, stand_ins: list[str], **about: str) -> None:
        """What every `info` says of the simulator, and which of its files are not SimplerEnv's own."""
        named = ", ".join(stand_ins)
        self._about = {"assets": f"not SimplerEnv's own: {named}" if named else "SimplerEnv's own", **about}
        if named:
            self._about["caution"] = f"stand-ins for SimplerEnv's assets, no scores of its: {named}"

    @property
    def expert_action(self) -> Callable[[], np.ndarray]:
        """What the scripted expert would do now, float32 (7,); tasks of picking have one, others not this attribute."""
        if not self.has_expert:
            raise AttributeError(f"{self.embodiment.name}: this task has no scripted expert")
        return self._expert_action

    def _expert_action(self) -> np.ndarray:
        self._ready()
        if self._expert is None:
            self._expert = pick(self._things(), HANDS[self.robot], self._state)
        action = next(self._expert)
        low, high = self.embodiment.action[-1].bounds()
        action[6] = low[0] + action[6] * (high[0] - low[0])  # both robots' grippers open upwards
        return action.astype(np.float32)

    # ---- what each simulator does its own way -------------------------------------------------------------
    doctor = ""  # what to ask the doctor about
    extra = ""  # of ours, which says what versions it needs
    robot = "widowx"
    has_expert = True

    def _things(self) -> Things:
        """What the expert picks, as it lies now."""
        raise NotImplementedError

    def _begin(self, number: int) -> np.ndarray:
        """Start episode `number`; the picture uint8 (height, width, 3)."""
        raise NotImplementedError

    def _carry_out(self, action: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """One action (7,); the picture, and what is told about the step, `success` in it."""
        raise NotImplementedError

    def _own_limit(self) -> int:
        raise NotImplementedError

    def _state(self) -> np.ndarray:
        raise NotImplementedError

    def _instruction(self) -> str:
        raise NotImplementedError

    def _playing(self) -> dict[str, Any]:
        """What the episode is, for `info`."""
        raise NotImplementedError

    # ---- parts --------------------------------------------------------------------------------------------
    def _ready(self) -> np.ndarray:
        if self._drawn is None:
            raise ResetNeeded("call reset() first")
        return self._drawn

    def _picture(self) -> np.ndarray:
        picture = self._ready()
        if self._size is None:
            return picture.copy()
        from PIL import Image

        size = (self._size, self._size)
        return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))

    def _observe(self) -> dict[str, Any]:
        return {
            "images": {self.embodiment.cameras[0].name: self._picture()},
            "state": self._state(),
            "instruction": self._instruction(),
        }

    def _info(self) -> dict[str, Any]:
        return {
            "success": False,
            **self._told,
            "solved_once": self._solved_once,
            **self._playing(),
            "instruction": self._instruction(),
            "renderer": "vulkan",
            **self._about,
        }
