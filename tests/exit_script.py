"""Drives a robot and ends in one of many ways; a line per command goes to the file argv[2]. Run by test_robot_exits."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time

import numpy as np
from robot_fakes import RecordingRobot, planar_limits

from vla_agents.robots.env import RobotEnv
from vla_agents.robots.robot import Reading

how, path = sys.argv[1], sys.argv[2]
log = open(path, "w", buffering=1)  # noqa: SIM115


class Logged(RecordingRobot):
    ticked = 0.0

    def observe(self) -> Reading:
        self.ticked = (
            time.monotonic()
        )  # all but the time that the filter goes by; by a command's own some ms may be lost
        return super().observe()

    def command(self, target: np.ndarray) -> np.ndarray:
        sent = super().command(target)
        log.write(f"{self.ticked:.6f} " + " ".join(f"{value:.9f}" for value in sent) + "\n")
        return sent

    def close(self) -> None:
        super().close()
        log.write("closed\n")


def drive(env: RobotEnv, steps: int) -> None:
    for _ in range(steps):
        env.step((env.robot.limits.home - [1.6, 0, 0, 0]).astype(np.float32))


def main() -> None:
    env = RobotEnv(Logged(planar_limits(box=False), hz=50, period=0.02))
    env.reset()
    drive(env, 12)  # fast by now
    log.write("moving\n")
    if how == "exception":
        raise ZeroDivisionError("a bug in the user's program")
    if how == "exit":
        sys.exit(3)
    if how == "garbage":
        del env
        gc.collect()
        log.write("collected\n")
        return
    if how == "thread":  # the control loop's owner dies in a thread of its own
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        return
    if how == "blocked":  # the program hangs: the watchdog has to stop the arm
        time.sleep(1.5)
        log.write("woke\n")
        os._exit(0)
    if how == "driver":
        env.robot.trouble["observe"] = RuntimeError("a bug in the driver")
        drive(env, 50)
    if how == "closed":
        env.close()
        print("ready", flush=True)
        time.sleep(30)
    number = getattr(signal, how)
    print("ready", flush=True)
    if number != signal.SIGKILL:
        while True:
            drive(env, 1)
    time.sleep(30)


main()
