"""Two emulated SO-101 on this machine, for trying the commands of docs/robots.md without hardware.

    PYTHONPATH=tests python -m emulators --follower /tmp/follower --leader /tmp/leader

The leader is led through slow waves by nobody's hand. Their calibrations are saved under the names "follower" and
"leader". With `--new` they come from the factory, and whatever `robot setup` and `robot calibrate` ask for is done when
you press Enter. Ctrl-C ends both.
"""

from __future__ import annotations

import argparse
import math
import time
from contextlib import ExitStack
from pathlib import Path

from emulators.arms import SO101Emulator
from emulators.new_arm import NewArm
from vla_agents.robots.drivers.calibration import calibration_path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--follower", type=Path, default=Path("/tmp/follower"))
    parser.add_argument("--leader", type=Path, default=Path("/tmp/leader"))
    parser.add_argument("--new", action="store_true", help="without ids and calibration")
    options = parser.parse_args()
    with ExitStack() as stack:
        arms = {}
        for name, path in (("follower", options.follower), ("leader", options.leader)):
            arm = stack.enter_context(NewArm(shift=37 * len(arms)) if options.new else SO101Emulator())
            path.unlink(missing_ok=True)
            path.symlink_to(arm.path)
            stack.callback(path.unlink)
            if not options.new:
                arm.calibration.save(calibration_path(name))
            print(f"{name}: {path} -> {arm.path}", flush=True)
            arms[name] = arm
        leader = arms["leader"]
        while options.new and not leader.calibrated:
            time.sleep(0.1)
        middle = {number: servo.position for number, servo in leader.servos.items()}
        while True:
            for number, servo in leader.servos.items():
                servo.position = middle[number] + 200 * math.sin(0.6 * time.monotonic() + number)
            time.sleep(0.01)


if __name__ == "__main__":
    main()
