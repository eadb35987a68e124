"""What a robot can do and may do, axis by axis: the description from which the safety filter works.

An axis is one number of a command: a joint, a slide, a gripper. Every value is in the axis' own unit (`unit`),
the same in `Limits`, in commands, in readings and in the embodiment's action.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ConfigError, UnknownNameError

ForwardKinematics = Callable[[np.ndarray], np.ndarray]
"""float64 (N, J) axis positions -> float64 (N, P, 3): the points to be kept in the box, m, base frame."""


@dataclass(frozen=True)
class Axis:
    """One axis of a robot.

    Args:
        name: Unique within the robot, e.g. `"shoulder_pan"`.
        low: Smallest position that may be commanded.
        high: Largest position that may be commanded.
        velocity: Largest speed, unit / s.
        acceleration: Largest acceleration, and the deceleration with which it brakes, unit / s².
        home: Position at which episodes start.
        unit: `"rad"`, `"m"`, or "" for 0 .. 1.
        kind: What the number is, one of `vla_agents.embodiment.KINDS`; `"gripper_open_01"` for a gripper.
        lead: How far a command may run ahead of the measured position. None: the way of half a second at
            full speed.
        effort: Largest force, torque or current the axis may measure (in the unit of `Reading.effort`)
            before its command yields; infinite where the robot measures none.
        resolution: What the device rounds commands to (one encoder count); 0 where it does not.
    """

    name: str
    low: float
    high: float
    velocity: float
    acceleration: float
    home: float
    unit: str = "rad"
    kind: str = "joint_position"
    lead: float | None = None
    effort: float = np.inf
    resolution: float = 0.0

    def __post_init__(self) -> None:
        finite = (self.low, self.high, self.velocity, self.acceleration, self.home)
        if not np.isfinite(finite).all():
            raise ConfigError(
                f"axis {self.name!r}: low, high, velocity, acceleration and home must be finite"
            )
        if not self.low < self.high or not self.low <= self.home <= self.high:
            raise ConfigError(
                f"axis {self.name!r}: low {self.low}, home {self.home} and high {self.high} are not in order"
            )
        lead = np.inf if self.lead is None else self.lead
        if not (min(self.velocity, self.acceleration, lead, self.effort) > 0 and self.resolution >= 0):
            raise ConfigError(
                f"axis {self.name!r}: velocity, acceleration, lead and effort must be above 0, "
                "resolution must not be negative"
            )


@dataclass(frozen=True)
class Workspace:
    """A box that some points of the robot must not leave, whatever the joints could do.

    Args:
        low: Smallest x, y, z, m, base frame.
        high: Largest x, y, z.
        points: Forward kinematics of the points (tool tip, elbow, ...), for many positions at once. It must be
            a pure and quick function: it is called several times per control period.
        margin: The filter stays so far inside the box, m.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    points: ForwardKinematics
    margin: float = 0.001

    def __post_init__(self) -> None:
        low, high = np.asarray(self.low, float), np.asarray(self.high, float)
        if low.shape != (3,) or high.shape != (3,) or not (low + 2 * self.margin < high).all():
            raise ConfigError(f"workspace from {self.low} to {self.high} is not a box of three dimensions")


@dataclass(frozen=True)
class Limits:
    """What commands to a robot must keep to. The safety filter enforces all of it.

    Args:
        axes: In the order of a command.
        workspace: Box for some points of the robot; None for none.
        stale_after: A reading older than this, s, stops the arm: it brakes and holds until there is a new one.
        watchdog: Without a new action for this long, s, the arm brakes and holds.
        give_up: Without any answer from the device for this long, s, the stop is latched and the caller gets
            the device's error.
    """

    axes: tuple[Axis, ...]
    workspace: Workspace | None = None
    stale_after: float = 0.2
    watchdog: float = 0.3
    give_up: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))
        if not self.axes or len(set(self.names)) != len(self.axes):
            raise ConfigError(f"the axes of a robot need different names: {list(self.names)}")
        times = (self.stale_after, self.watchdog, self.give_up)
        if not (np.isfinite(times).all() and min(times) > 0):
            raise ConfigError(
                f"stale_after, watchdog and give_up are {times} s; they must be above 0 and finite"
            )

    def __len__(self) -> int:
        return len(self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """The axes' names, in order."""
        return tuple(axis.name for axis in self.axes)

    @cached_property
    def low(self) -> np.ndarray:
        """float64 (J,)"""
        return self._column("low")

    @cached_property
    def high(self) -> np.ndarray:
        """float64 (J,)"""
        return self._column("high")

    @cached_property
    def velocity(self) -> np.ndarray:
        """float64 (J,), unit / s."""
        return self._column("velocity")

    @cached_property
    def acceleration(self) -> np.ndarray:
        """float64 (J,), unit / s²."""
        return self._column("acceleration")

    @cached_property
    def home(self) -> np.ndarray:
        """float64 (J,)"""
        return self._column("home")

    @cached_property
    def lead(self) -> np.ndarray:
        """float64 (J,)"""
        leads = [0.5 * axis.velocity if axis.lead is None else axis.lead for axis in self.axes]
        return _frozen(np.array(leads, np.float64))

    @cached_property
    def effort(self) -> np.ndarray:
        """float64 (J,), infinite where there is no limit."""
        return self._column("effort")

    @cached_property
    def resolution(self) -> np.ndarray:
        """float64 (J,)"""
        return self._column("resolution")

    def _column(self, name: str) -> np.ndarray:
        return _frozen(np.array([getattr(axis, name) for axis in self.axes], np.float64))

    def scaled(self, velocity: float = 1.0, acceleration: float | None = None) -> Limits:
        """The same robot, slower: `scaled(0.2)` for the first run of a new policy.

        Args:
            velocity: Factor on all speeds, in (0, 1].
            acceleration: Factor on all accelerations; None: that of the speeds.
        """
        factor = velocity if acceleration is None else acceleration
        if not (0 < velocity <= 1 and 0 < factor <= 1):
            raise ConfigError(f"limits scaled by {velocity} and {factor}", "factors lie in (0, 1]")
        axes = tuple(
            dataclasses.replace(
                axis, velocity=axis.velocity * velocity, acceleration=axis.acceleration * factor
            )
            for axis in self.axes
        )
        return dataclasses.replace(self, axes=axes)

    def index(self, name: str) -> int:
        """Where an axis stands in a command."""
        if name not in self.names:
            raise UnknownNameError("axis", name, self.names)
        return self.names.index(name)

    def embodiment(self, name: str, control_hz: float) -> Embodiment:
        """The embodiment of a plain position-controlled robot: one part per axis, state and action alike."""
        parts = tuple(Part(a.name, 1, a.kind, a.low, a.high, a.unit) for a in self.axes)
        return Embodiment(name=name, action=parts, state=parts, control_hz=control_hz)


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def check_tighter(ours: Limits, robots: Limits) -> None:
    """Limits of an env may restrict the robot's, never widen them.

    Raises:
        ConfigError: They are wider somewhere, or of other axes.
    """
    tighter = ours.names == robots.names and bool(
        (ours.low >= robots.low).all()
        and (ours.high <= robots.high).all()
        and (ours.velocity <= robots.velocity).all()
        and (ours.acceleration <= robots.acceleration).all()
        and (ours.effort <= robots.effort).all()
        and (ours.lead <= robots.lead).all()
        and (robots.workspace is None or ours.workspace is not None)
    )
    if not tighter:
        raise ConfigError("the limits given are wider than the robot's own", "start from robot.limits")
