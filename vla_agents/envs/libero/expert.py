"""A scripted expert for LIBERO's pick-and-place tasks. It reads the simulator's state, which no policy sees.

Every goal predicate `on(object, place)` or `in(object, place)` becomes: above the object, down, close, lift,
carry, lower, open. Each phase is a generator of actions that looks at the present state at every step, so it
recovers from being pushed aside; what fails is tried again with another grasp.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np

from vla_agents.envs.libero.grasping import Shape, choose_grasp
from vla_agents.envs.libero.simulator import LiberoSimulator
from vla_agents.errors import ConfigError

OPEN, CLOSE = -1.0, 1.0
_STEP = 0.05  # metres of an action of 1
_TURN = 0.5  # radians of an action of 1
_GAIN = 1.6  # above 1: the controller follows with a lag of three steps
_ATTEMPTS = 5
_CORRIDOR = 0.08  # half the width, in metres, of the way that must be clear
_PATIENCE = 12  # steps without coming nearer after which a grasp is given up
_HOVER = 0.08  # metres above the grasp from which the hand goes straight down


class PickPlaceExpert:
    """The expert for one episode, made right after the simulator's reset.

    Args:
        simulator: The simulator, in its initial state.

    Attributes:
        obstacle: Why it cannot do the task, or an empty string.
    """

    def __init__(self, simulator: LiberoSimulator) -> None:
        self._sim = simulator
        self._down = simulator.hand_pose()[1]  # the hand's initial orientation: fingers down
        self._shapes: dict[str, Shape] = {}
        foreign = [p for p in simulator.goal if p[0] not in ("on", "in") or p[1] not in simulator.movable]
        self.obstacle = f"its goal has {' '.join(foreign[0])!r}" if foreign else ""
        self._plan = self._whole_task()

    def act(self) -> np.ndarray:
        """The next action, float32 (7,). To be called once per simulator step."""
        if self.obstacle:
            raise ConfigError(
                f"the scripted expert only picks and places; {self.obstacle}",
                "choose another task (LiberoEnv.expert_can says which), or a recorded dataset",
            )
        return next(self._plan)

    # ---- plan ---------------------------------------------------------------------------------------------
    def _whole_task(self) -> Iterator[np.ndarray]:
        for attempt in range(_ATTEMPTS):
            for predicate in self._sim.goal:
                if not self._sim.holds(predicate):
                    yield from self._pick_and_place(predicate[1], predicate[2], attempt)
        while True:
            position, rotation = self._sim.hand_pose()
            yield self._towards(position, rotation, OPEN)

    def _pick_and_place(self, name: str, place: str, attempt: int) -> Iterator[np.ndarray]:
        grasp = choose_grasp(
            self._points(name),
            self._obstacles(name),
            base=self._sim.base()[:2],
            place=self._place(place)[:2],
            attempt=attempt,
        )
        rotation = _turned(grasp.yaw) @ self._down
        before = self._points(name)[:, 2].min()
        if (yield from self._descend(grasp.position, rotation)):
            yield from self._close_fingers(grasp.position, rotation)
            before = self._points(name)[:, 2].min()
            yield from self._move(grasp.position + _up(0.05), rotation, CLOSE, reach=0.02)
        if self._points(name)[:, 2].min() < before + 0.01:
            yield from self._move(grasp.position + _up(_HOVER), rotation, OPEN, reach=0.03)
            return
        yield from self._carry(name, place, rotation)

    def _carry(self, name: str, place: str, rotation: np.ndarray) -> Iterator[np.ndarray]:
        """Bring the held object over the place, lower it, let go."""
        hand, offset, hang = self._held(name)
        top = max(hand[2], self._clear_height(name, place) + hang)
        yield from self._move(np.array([*hand[:2], top]), rotation, CLOSE, reach=0.03)
        over = np.array([*(self._place(place)[:2] - offset), top])
        yield from self._move(over, rotation, CLOSE, reach=0.015)
        _, now, hang = self._held(name)
        if np.linalg.norm(now - offset) > 0.05:
            return  # lost on the way
        target = self._place(place)
        down = np.array([*(target[:2] - now), target[2] + 0.01 + hang])
        yield from self._move(down, rotation, CLOSE, reach=0.012, limit=40)
        position = self._sim.hand_pose()[0]
        for _ in range(8):
            yield self._towards(position, rotation, OPEN)
        yield from self._move(position + _up(0.10), rotation, OPEN, reach=0.03)

    # ---- motions ------------------------------------------------------------------------------------------
    def _towards(self, position: np.ndarray, rotation: np.ndarray, fingers: float) -> np.ndarray:
        """The action, float32 (7,), that pulls the hand towards a pose."""
        here, turned = self._sim.hand_pose()
        move = _GAIN * (position - here) / _STEP
        turn = _GAIN * _rotation_vector(rotation @ turned.T) / _TURN
        return np.array([*_shortened(move), *_shortened(turn), fingers], np.float32)

    def _move(
        self,
        position: np.ndarray,
        rotation: np.ndarray,
        fingers: float,
        *,
        reach: float,
        turn: float = 0.1,
        limit: int = 80,
    ) -> Iterator[np.ndarray]:
        """Towards a pose until it is within `reach` metres and `turn` radians, or `limit` steps are over."""
        for _ in range(limit):
            here, turned = self._sim.hand_pose()
            if (
                np.linalg.norm(position - here) < reach
                and np.linalg.norm(_rotation_vector(rotation @ turned.T)) < turn
            ):
                return
            yield self._towards(position, rotation, fingers)

    def _descend(self, position: np.ndarray, rotation: np.ndarray) -> Generator[np.ndarray, None, bool]:
        """Down to a pose through a funnel: the farther to the side or turned, the higher the hand stays.

        Returns whether the pose was reached; gives up where nothing gets nearer for a while.
        """
        nearest, since = np.inf, 0
        for _ in range(80):
            here, turned = self._sim.hand_pose()
            aside = float(np.linalg.norm((position - here)[:2]))
            twist = float(np.linalg.norm(_rotation_vector(rotation @ turned.T)))
            height = min(_HOVER, 6.0 * max(0.0, aside - 0.004) + 0.5 * max(0.0, twist - 0.08))
            if height < 0.01 and abs(here[2] - position[2]) < 0.006:
                return True
            error = float(np.linalg.norm(position - here)) + 0.1 * twist
            nearest, since = (error, 0) if error < nearest - 0.001 else (nearest, since + 1)
            if since > _PATIENCE:
                return error < 0.02  # touching something, but near enough to close the fingers
            yield self._towards(position + _up(height), rotation, OPEN)
        return False

    def _close_fingers(self, position: np.ndarray, rotation: np.ndarray) -> Iterator[np.ndarray]:
        """Close until the fingers no longer move."""
        opening = self._sim.finger_opening()
        for count in range(15):
            yield self._towards(position, rotation, CLOSE)
            before, opening = opening, self._sim.finger_opening()
            if count >= 4 and abs(before - opening) < 0.0005:
                return

    # ---- where things are ---------------------------------------------------------------------------------
    def _points(self, name: str) -> np.ndarray:
        if name not in self._shapes:
            self._shapes[name] = Shape(self._sim.model, self._sim.bodies[name])
        return self._shapes[name].points(self._sim.data)

    def _origin(self, name: str) -> np.ndarray:
        """The point (3,) of an object that LIBERO's predicates look at."""
        return np.array(self._sim.data.xpos[self._sim.bodies[name]])

    def _obstacles(self, name: str) -> np.ndarray:
        return np.concatenate([np.zeros((0, 3)), *(self._points(n) for n in self._sim.bodies if n != name)])

    def _place(self, place: str) -> np.ndarray:
        """Where an object's origin (x, y) and lowest point (z) should come to be, (3,)."""
        region = self._sim.region_position(place)
        if region is not None:
            return region
        return np.array([*self._origin(place)[:2], self._points(place)[:, 2].max()])

    def _held(self, name: str) -> tuple[np.ndarray, np.ndarray, float]:
        """The hand (3,), the object's origin seen from it (2,), and how far the object hangs below it."""
        hand = self._sim.hand_pose()[0]
        return hand, self._origin(name)[:2] - hand[:2], float(hand[2] - self._points(name)[:, 2].min())

    def _clear_height(self, name: str, place: str) -> float:
        """Height at which an object's lowest point passes over everything on the straight way to the place."""
        start, target, others = self._origin(name), self._place(place), self._obstacles(name)
        way = target[:2] - start[:2]
        along = np.clip((others[:, :2] - start[:2]) @ way / max(1e-6, way @ way), 0.0, 1.0)
        aside = np.linalg.norm(others[:, :2] - start[:2] - along[:, None] * way, axis=1)
        return float(max(target[2] + 0.05, others[aside < _CORRIDOR, 2].max(initial=-np.inf) + 0.03))


def _up(metres: float) -> np.ndarray:
    return np.array([0.0, 0.0, metres])


def _shortened(vector: np.ndarray) -> np.ndarray:
    """The vector (3,), scaled so that no component exceeds 1, its direction kept."""
    return vector / max(1.0, float(np.abs(vector).max()))


def _turned(yaw: float) -> np.ndarray:
    """Rotation matrix (3, 3) about the vertical."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """Axis * angle (3,), the angle in [0, pi], of a rotation matrix."""
    angle = np.arccos(np.clip((np.trace(matrix) - 1) / 2, -1.0, 1.0))
    axis = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    length = float(np.linalg.norm(axis))
    return np.zeros(3) if length < 1e-8 else axis / length * angle
