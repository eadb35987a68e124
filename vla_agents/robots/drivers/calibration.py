"""What was measured of one particular arm: where each joint's range lies. A file that fits no other arm.

The offset and the range also stand in the memory of each motor, and the two must agree: so a file of another arm, or
from before the arm was calibrated anew, is refused before anything moves. LeRobot's files are read as they are.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_agents.errors import CalibrationError

FORMAT = "vla_agents.calibration"


@dataclass(frozen=True)
class MotorCalibration:
    """One motor's part of it; positions are encoder counts after the offset.

    Args:
        id: On the bus.
        homing_offset: Stands in the motor; moves its zero so that the range does not wrap around.
        range_min: Smallest position the joint reaches.
        range_max: Largest position the joint reaches.
        drive_mode: 1 turns the joint's sign around.
        model: Model number; 0 where it is not known.
    """

    id: int
    homing_offset: int
    range_min: int
    range_max: int
    drive_mode: int = 0
    model: int = 0


@dataclass(frozen=True)
class Calibration:
    """The calibration of one arm.

    Args:
        robot: Which kind of arm, e.g. `"so101"`; empty where the file does not say.
        motors: Name -> its part.
        adapter: Serial number of the USB adapter it was made with; empty where it has none.
    """

    robot: str
    motors: Mapping[str, MotorCalibration]
    adapter: str = ""

    def save(self, path: str | Path) -> Path:
        """Write as JSON, whole or not at all."""
        path = Path(path)
        data = {"format": FORMAT, "version": 1, "robot": self.robot, "adapter": self.adapter}
        motors = {name: dataclasses.asdict(motor) for name, motor in self.motors.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(json.dumps({**data, "motors": motors}, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` or LeRobot wrote; `CalibrationError` where it is missing or damaged."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CalibrationError(
                f"there is no calibration {path}",
                "`vla-agents robot calibrate` makes one; LeRobot's file of this arm can be given too",
            ) from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CalibrationError(f"{path} cannot be read ({error})", "calibrate the arm again") from error
        if isinstance(data, dict) and data.get("format") == FORMAT:
            robot, adapter, motors = data.get("robot", ""), data.get("adapter", ""), data.get("motors")
        else:  # LeRobot: the motors alone
            robot, adapter, motors = "", "", data
        if not isinstance(motors, dict) or not motors:
            raise CalibrationError(f"{path} is no calibration", "calibrate the arm again")
        return cls(
            str(robot), {name: _motor(path, name, entry) for name, entry in motors.items()}, str(adapter)
        )

    def require(self, robot: str, ids: Mapping[str, int], where: str | Path) -> None:
        """Refuse a calibration of another kind of arm: other motors, or other ids."""
        problems = []
        if self.robot and self.robot != robot:
            problems.append(f"it is of a {self.robot}, this is a {robot}")
        for name in sorted({*ids, *self.motors}):
            if name not in self.motors or name not in ids:
                problems.append(f"motor {name!r} is {'not in it' if name in ids else 'not part of this arm'}")
            elif self.motors[name].id != ids[name]:
                problems.append(f"motor {name!r} has id {self.motors[name].id} in it, {ids[name]} here")
        if problems:
            raise CalibrationError(
                f"the calibration {where} is of another arm: {'; '.join(problems)}",
                "give the file of this arm, or make it with `vla-agents robot calibrate`",
            )

    def differences(self, found: Mapping[str, MotorCalibration]) -> list[str]:
        """What the motors' memory says otherwise; empty where it is the same arm in the same state."""
        lines = []
        for name, motor in self.motors.items():
            there = found[name]
            for field in ("homing_offset", "range_min", "range_max", "model"):
                ours, theirs = getattr(motor, field), getattr(there, field)
                if ours != theirs and not (field == "model" and 0 in (ours, theirs)):
                    lines.append(f"{name}: {field} is {ours} in the file, {theirs} in the motor")
        return lines


def calibration_path(name: str) -> Path:
    """Where the calibration of the arm called `name` is kept when no other place is given."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "vla_agents" / "calibration" / f"{name}.json"


def find_calibrations(folders: Sequence[Path] | None = None) -> list[Path]:
    """Calibration files of this user: ours, and LeRobot's."""
    if folders is None:
        home = os.environ.get("HF_LEROBOT_CALIBRATION")
        lerobot = Path(home) if home else Path.home() / ".cache/huggingface/lerobot/calibration"
        folders = [calibration_path("x").parent, lerobot]
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.rglob("*.json"))]


def _motor(path: str | Path, name: str, entry: Any) -> MotorCalibration:
    fields = {field.name for field in dataclasses.fields(MotorCalibration)}
    problem = ""
    if not isinstance(entry, dict):
        problem = "is not a mapping"
    elif set(entry) - fields or {"id", "homing_offset", "range_min", "range_max"} - set(entry):
        problem = f"has the fields {sorted(entry)}"
    elif not all(type(value) is int for value in entry.values()):
        problem = "has values that are not integers"
    elif entry["range_min"] >= entry["range_max"]:
        problem = f"has the range {entry['range_min']} to {entry['range_max']}"
    elif entry.get("drive_mode", 0) not in (0, 1):
        problem = f"has drive_mode {entry['drive_mode']}"
    if problem:
        raise CalibrationError(f"{path}: motor {name!r} {problem}", "calibrate the arm again")
    return MotorCalibration(**entry)
