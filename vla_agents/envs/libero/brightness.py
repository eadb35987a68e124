"""What LIBERO's first picture of each suite looks like when it is drawn as its demonstrations were: its mean grey level.

MuJoCo 3.3.3 and later draw `libero_object` about 36 of 255 grey levels darker than 2.3.7, with which the published data
were made, and say nothing; 3.3.0 draws what 2.3.7 drew (compared there: equal, pixel by pixel). So the version alone is not
trusted: a frame is drawn and compared with these numbers. (The first scenes of the other suites hardly notice: on average
3.17.0 draws those of spatial, goal and 90 within 0.1 grey levels of 3.3.0, that of `libero_10` within 1.7.)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Reset with seed 0 (task 0, initial state 0), 128 x 128, mujoco 3.3.0 on EGL (llvmpipe).
FRAME_MEANS: dict[str, dict[str, float]] = {
    "libero_spatial": {"agentview": 120.58, "wrist": 126.46},
    "libero_object": {"agentview": 139.06, "wrist": 140.16},
    "libero_goal": {"agentview": 117.71, "wrist": 117.15},
    "libero_10": {"agentview": 69.30, "wrist": 63.31},
    "libero_90": {"agentview": 111.87, "wrist": 132.86},
}
TOLERANCE = 2.0  # grey levels; what another driver may do
REMEDY = "mujoco==3.3.0"


def frame_means(images: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean grey level of pictures, uint8 (H, W, 3), by camera."""
    return {camera: float(image.mean()) for camera, image in images.items()}


def brightness_problem(suite: str, means: Mapping[str, float]) -> str:
    """What is wrong with the means of the suite's first pictures, in a sentence; "" where nothing is."""
    wrong = [
        f"{camera} {means[camera]:.1f} instead of {expected:.1f}"
        for camera, expected in FRAME_MEANS.get(suite, {}).items()
        if abs(means[camera] - expected) > TOLERANCE
    ]
    if not wrong:
        return ""
    darker = any(means[camera] < expected - TOLERANCE for camera, expected in FRAME_MEANS[suite].items())
    return f"drawn {'darker' if darker else 'otherwise'} than the published data (mean grey level: {', '.join(wrong)})"
