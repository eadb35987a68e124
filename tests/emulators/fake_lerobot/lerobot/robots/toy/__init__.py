"""An arm of two joints, a gripper and a camera, with everything that can go wrong on request."""

import os
import sys
import time
from dataclasses import dataclass

import numpy as np

from lerobot.robots.config import RobotConfig


@RobotConfig.register_subclass("toy")
@dataclass
class ToyConfig(RobotConfig):
    calibrated: bool = True
    use_degrees: bool = False
    wheels: bool = False
    trouble: str = ""  # a file whose text says what goes wrong now
    log: str = ""  # a file that is told when the robot is disconnected

    type = "toy"


class Toy:
    name = "toy"

    def __init__(self, config):
        self.config, self.is_connected, self.is_calibrated = config, False, config.calibrated
        self.position = {"pan.pos": 1.0, "lift.pos": 2.0, "gripper.pos": 50.0}
        self.frames = 0

    @property
    def action_features(self):
        return dict.fromkeys([*self.position, "base.vel"] if self.config.wheels else self.position, float)

    @property
    def observation_features(self):
        return {**dict.fromkeys(self.position, float), "front": (12, 16, 3)}

    def connect(self, calibrate=True):
        assert calibrate is False, "no dialogue"
        print("connected, says LeRobot on standard output")
        if self._trouble() == "port":
            raise ConnectionError("Could not connect on port '/dev/ttyNOPE'.")
        self.is_connected = True

    def get_observation(self):
        trouble = self._trouble()
        if trouble == "read":
            raise ConnectionError("Failed to sync read 'Present_Position'. There is no status packet!")
        if trouble == "motor":
            raise RuntimeError("Overload error!")
        if trouble == "slow":
            time.sleep(0.6)
        if trouble == "crash":
            os._exit(3)
        self.frames += 1
        return {**self.position, "front": np.full((12, 16, 3), self.frames, np.uint8)}

    def send_action(self, action):
        self.position.update({name: round(value) for name, value in action.items()})
        return dict(self.position)

    def disconnect(self):
        self.is_connected = False
        if self.config.log:
            with open(self.config.log, "a") as file:
                file.write("disconnected\n")
        sys.stdout.flush()

    def _trouble(self):
        if not self.config.trouble or not os.path.exists(self.config.trouble):
            return ""
        with open(self.config.trouble) as file:
            return file.read()
