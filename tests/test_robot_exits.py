"""However a program ends, the arm brakes within its limits, and the robot is closed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from robot_fakes import planar_limits

SCRIPT = Path(__file__).with_name("exit_script.py")
LIMITS = planar_limits(box=False)


def ended(how: str, path: Path) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """Lines of the log, and how the process ended."""
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), how, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        if how.startswith("SIG") or how == "closed":
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            time.sleep(0.1)
            process.send_signal(getattr(signal, how, signal.SIGTERM))
        out, err = process.communicate(timeout=60)
    return path.read_text().split("\n")[:-1], subprocess.CompletedProcess([], process.returncode, out, err)


def motion(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    rows = [line.split() for line in lines if line[0].isdigit()]
    return np.array([float(row[0]) for row in rows]), np.array([[float(v) for v in row[1:]] for row in rows])


EXITS = {
    "exception": 1, "exit": 3, "garbage": 0, "thread": 0, "driver": 1,
    "SIGINT": -signal.SIGINT, "SIGTERM": 128 + signal.SIGTERM, "SIGHUP": 128 + signal.SIGHUP,
}  # fmt: skip
FAST = ("exception", "SIGINT", "SIGTERM")


@pytest.mark.parametrize(
    "how", [how if how in FAST else pytest.param(how, marks=pytest.mark.slow) for how in EXITS]
)
def test_the_arm_comes_to_rest_and_the_robot_is_closed(how, tmp_path):
    lines, process = ended(how, tmp_path / "log")
    assert process.returncode in (EXITS[how], 130 if how == "SIGINT" else EXITS[how]), process.stderr
    assert lines[-1] == ("collected" if how == "garbage" else "closed"), process.stderr
    assert lines.count("closed") == 1
    times, ways = motion(lines)
    dt = np.diff(times)[:, None]
    speeds = np.diff(ways, axis=0) / dt
    moving = [line for line in lines if line[0].isdigit() or line == "moving"].index("moving")
    assert np.abs(speeds[moving - 2, 0]) > 0.5  # it was on its way
    assert np.abs(speeds[-1]).max() == 0  # and came to rest
    changes, allowed = np.abs(np.diff(speeds, axis=0)), LIMITS.acceleration * (dt[1:] + dt[:-1]) / 2
    steady = (np.maximum(dt[1:], dt[:-1]) < 0.045) & (
        np.minimum(dt[1:], dt[:-1]) > 0.01
    )  # else the machine was busy
    # The times in the log are not quite those that the filter went by.
    assert (changes[steady[:, 0]] <= 1.25 * allowed[steady[:, 0]] + 0.1).all()


@pytest.mark.slow
def test_without_a_robot_a_signal_does_what_it_always_did(tmp_path):
    lines, process = ended("closed", tmp_path / "log")
    assert process.returncode == -signal.SIGTERM and lines[-1] == "closed"


def test_a_program_that_hangs_is_stopped_by_the_watchdog(tmp_path):
    lines, _ = ended("blocked", tmp_path / "log")
    hung = lines.index("moving")
    times, ways = motion(lines[hung + 1 : lines.index("woke")])
    speed = np.abs(np.diff(ways[:, 0]))
    stopped = times[1:][speed == 0][0] - times[0]
    assert (
        0.1 < stopped < LIMITS.watchdog + (2.0 / 8.0) + 0.3
    )  # the watchdog, the way to stop, a busy machine
    assert (speed[times[1:] >= times[0] + stopped] == 0).all()
    assert times[-1] - times[0] > 1.0  # it goes on holding


def test_after_kill_9_nothing_more_is_sent(tmp_path):
    """What is left then is the device's own behaviour: a servo holds its last goal. It was a small step away."""
    lines, process = ended("SIGKILL", tmp_path / "log")
    assert process.returncode == -signal.SIGKILL and "closed" not in lines
    _, ways = motion(lines)
    assert (np.abs(np.diff(ways, axis=0)) <= LIMITS.velocity / 50 * 2.6 + 1e-6).all()
