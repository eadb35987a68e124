"""Two emulated SO-101 on this machine, for trying the commands of docs/robots.md without hardware.

    PYTHONPATH=tests python -m emulators --follower /tmp/follower --leader /tmp/leader

The leader is led through slow waves by nobody's hand. Their calibrations are saved under the names "follower" and
"leader", unless `--uncalibrated`. Ctrl-C ends both.
"""

from __future__ import annotations

import argparse
import math
import time
from contextlib import ExitStack
from pathlib import Path

from emulators.arms import SO101Emulator
from emulators.feetech import FeetechEmulator
from vla_agents.robots.drivers.calibration import calibration_path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--follower", type=Path, default=Path("/tmp/follower"))
    parser.add_argument("--leader", type=Path, default=Path("/tmp/leader"))
    parser.add_argument("--uncalibrated", action="store_true", help="as new, but with ids")
    options = parser.parse_args()
    with ExitStack() as stack:
        arms = {}
        for name, path in (("follower", options.follower), ("leader", options.leader)):
            arm = stack.enter_context(FeetechEmulator() if options.uncalibrated else SO101Emulator())
            path.unlink(missing_ok=True)
            path.symlink_to(arm.path)
            stack.callback(path.unlink)
            if not options.uncalibrated:
                arm.calibration.save(calibration_path(name))
            print(f"{name}: {path} -> {arm.path}", flush=True)
            arms[name] = arm
        middle = {number: servo.position for number, servo in arms["leader"].servos.items()}
        while True:
            for number, servo in arms["leader"].servos.items():
                servo.position = middle[number] + 200 * math.sin(0.6 * time.monotonic() + number)
            time.sleep(0.01)


if __name__ == "__main__":
    main()
