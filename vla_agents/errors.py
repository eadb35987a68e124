"""Every error this library raises on purpose, in one tree.

Each says what was found, where, and what to do about it; the `remedy` is printed on its own line. Catch
`VlaAgentsError` to catch them all. Those that are also a `ValueError`, `KeyError`, ... can be caught as
such.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "ActionError",
    "AuthorizationError",
    "CalibrationError",
    "CameraError",
    "CheckpointError",
    "CommunicationError",
    "ConfigError",
    "ConnectionLostError",
    "DatasetError",
    "DatasetExistsError",
    "DatasetNotFoundError",
    "EmbodimentError",
    "EmbodimentMismatchError",
    "EmergencyStopError",
    "FrameError",
    "MissingDependencyError",
    "MotorError",
    "MotorSilentError",
    "ObservationError",
    "OutOfMemoryError",
    "PlanningError",
    "PolicyCheckError",
    "PortBusyError",
    "PortNotFoundError",
    "PortPermissionError",
    "RecordingError",
    "RemotePolicyError",
    "RenderingError",
    "RobotError",
    "RobotStateError",
    "ServerBusyError",
    "ServingError",
    "SimulatorError",
    "TokenDecodeError",
    "TrainingError",
    "UnknownNameError",
    "VlaAgentsError",
    "suggest",
]


class VlaAgentsError(Exception):
    """Base of all errors raised on purpose.

    Args:
        problem: What is wrong, naming the thing (file, field, value).
        remedy: What the user can do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(problem + (f"\n  -> {remedy}" if remedy else ""))

    def __str__(self) -> str:  # KeyError would show the repr of the message, OSError the errno alone
        return str(self.args[0]) if self.args else ""

    def __reduce__(
        self,
    ) -> tuple[Any, ...]:  # subclasses take other arguments than `args`; workers send errors home
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[VlaAgentsError], args: tuple[Any, ...], state: dict[str, Any]) -> VlaAgentsError:
    base: Any = (
        cls  # becomes the one whose layout it has: of a RuntimeError that is an OSError too, the latter
    )
    while base.__module__ != "builtins":
        base = base.__base__
    error: VlaAgentsError = base.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(VlaAgentsError, ValueError):
    """A configuration value or key that cannot be used."""


class EmbodimentError(VlaAgentsError, ValueError):
    """An embodiment that contradicts itself."""


class EmbodimentMismatchError(EmbodimentError):
    """Two embodiments that must be alike and are not.

    Attributes:
        differences: One line per difference, naming both sides and the transform that would mend it.
    """

    def __init__(self, ours: str, theirs: str, differences: list[str], remedy: str = "") -> None:
        self.ours, self.theirs, self.differences = ours, theirs, list(differences)
        listing = "\n".join(f"  - {line}" for line in differences)
        super().__init__(f"{ours} does not fit {theirs}:\n{listing}", remedy)


class ObservationError(VlaAgentsError, ValueError):
    """An observation outside its space: a camera missing, a wrong size, NaN in the state, ..."""


class ActionError(VlaAgentsError, ValueError):
    """An action that must not reach an env, a dataset or a motor: NaN, infinite, wrong length.

    Attributes:
        actions: Where an agent for several envs raises it, what it would have answered, (N, D): only the rows that are
            not finite are to blame.
    """

    actions: Any = None


class TokenDecodeError(ActionError):
    """Token sequences that stand for no chunk of actions.

    Attributes:
        problems: Index of the sequence -> what is wrong with it.
    """

    def __init__(self, problems: Mapping[int, str], total: int) -> None:
        self.problems = dict(problems)
        listing = "; ".join(f"{index}: {problem}" for index, problem in list(self.problems.items())[:4])
        super().__init__(
            f"{len(self.problems)} of {total} token sequences are no chunk of actions ({listing})",
            "an untrained model says such things; decode_valid() gives a mask instead",
        )


class DatasetError(VlaAgentsError):
    """A dataset file that is damaged or contradicts itself."""

    def __init__(self, path: str | Path, problem: str, remedy: str = "") -> None:
        self.path = Path(path)
        super().__init__(f"{path}: {problem}", remedy)


class DatasetNotFoundError(DatasetError, FileNotFoundError):
    """No dataset there."""


class DatasetExistsError(DatasetError, FileExistsError):
    """A dataset is already there, and would have been overwritten."""


class RecordingError(VlaAgentsError, OSError):
    """Recording could not go on (disk full, folder not writable, ...); what was saved before is intact."""


class CheckpointError(VlaAgentsError):
    """A checkpoint that is missing, incomplete or damaged."""

    def __init__(self, path: str | Path, problem: str, remedy: str = "") -> None:
        self.path = Path(path)
        super().__init__(f"{path}: {problem}", remedy)


class PolicyCheckError(VlaAgentsError, AssertionError):
    """A policy that does not hold to what every policy must (see `vla_agents.policies.check_policy`).

    Attributes:
        failed: Check -> (what is wrong, what to do about it).
        report: The whole report.
    """

    def __init__(self, policy: str, failed: Mapping[str, tuple[str, str]], report: Any = None) -> None:
        self.failed, self.report = dict(failed), report
        listing = "\n".join(
            f"  - {name}: {problem}" + (f"\n    -> {remedy}" if remedy else "")
            for name, (problem, remedy) in self.failed.items()
        )
        super().__init__(f"{policy} fails {len(self.failed)} checks:\n{listing}")


class TrainingError(VlaAgentsError, RuntimeError):
    """Training cannot go on (a loss that is not finite, no data, ...)."""


class OutOfMemoryError(TrainingError, MemoryError):
    """Training needs more memory than there is; says what to change."""


class RenderingError(VlaAgentsError, RuntimeError):
    """No renderer could be made; says which packages would help."""


class SimulatorError(VlaAgentsError, RuntimeError):
    """A simulator that does not run: in a wrong version, a file missing; or, in a process of its own, died or silent."""


class PlanningError(VlaAgentsError, RuntimeError):
    """Planning in the background failed; raised by the `act` that would have needed its actions."""


# ---- serving ----------------------------------------------------------------------------------------------
class ServingError(VlaAgentsError, RuntimeError):
    """Base of what can go wrong between a policy server and its clients."""


class FrameError(ServingError, ValueError):
    """What came over the wire is no message of the protocol: malformed, too large, of a type that is not allowed."""


class AuthorizationError(ServingError):
    """The server wants a token, and this is not it."""


class ConnectionLostError(ServingError, ConnectionError):
    """Nobody answers at that address, or the connection broke and did not come back in time."""


class ServerBusyError(ServingError):
    """The server takes no more: too many clients or requests, or it is about to stop."""


class RemotePolicyError(ServingError):
    """The policy on the server failed; the server's log tells why, under the request id named here."""


# ---- robots -----------------------------------------------------------------------------------------------
class RobotError(VlaAgentsError, RuntimeError):
    """Base of what can go wrong with a robot or a camera."""


class PortNotFoundError(RobotError):
    """No such device file, or nobody listens at that address."""


class PortPermissionError(RobotError):
    """The device is there and this user may not open it; says which udev rule or group helps."""


class PortBusyError(RobotError):
    """Another program holds the device."""


class MotorError(RobotError):
    """A motor that does not answer, is of another model, or reports a fault."""


class CalibrationError(RobotError):
    """No calibration, or that of another arm."""


class CommunicationError(RobotError):
    """The device gave no answer, or a damaged one, after the driver's own retries."""


class MotorSilentError(CommunicationError):
    """Motors that do not answer.

    Attributes:
        motors: Their ids.
    """

    def __init__(self, motors: Iterable[int], port: str, baud: int, attempts: int) -> None:
        self.motors = list(motors)
        who = f"motor {self.motors[0]} does" if len(self.motors) == 1 else f"motors {self.motors} do"
        super().__init__(
            f"{who} not answer on {port} at {baud} baud ({attempts} attempts)",
            "check the power supply and the cables between the motors; "
            f"`vla-agents robot find --port {port}` lists who answers, at every speed",
        )


class RobotStateError(RobotError):
    """A call in the wrong order: connect twice, command before connect or after close."""


class EmergencyStopError(RobotError):
    """The stop is latched: nothing moves until it is cleared."""


class CameraError(RobotError):
    """A camera that is missing, busy, gives no picture, or pictures of another size."""


class MissingDependencyError(VlaAgentsError, ImportError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed",
            f"pip install 'vla-agents[{extra}]'",
        )


class UnknownNameError(VlaAgentsError, KeyError):
    """A name that is not among the known ones; lists them and suggests the nearest."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        self.name, self.known = name, names
        super().__init__(
            f"unknown {kind} {name!r}{suggest(str(name), names)}",
            f"known: {', '.join(names) if names else '(none)'}",
        )


def suggest(name: str, known: Iterable[str]) -> str:
    """`". Did you mean 'x'?"`, or an empty string where nothing comes near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f". Did you mean {near[0]!r}?" if near else ""
