"""What lies on the table and where: colours, sizes, difficulties, the MJCF text and the sampled layout.

Base frame: origin in the middle of the table top, x to the right and y away as the front camera sees it,
z up; metres.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BLOCK_HALF = 0.025
PAD_HALF = 0.042
FINGER_OPEN = 0.045  # joint position of an open finger; the gap between the fingers is twice that
WORKSPACE = np.array([[-0.26, -0.24, 0.012], [0.26, 0.28, 0.32]])  # of the point between the finger tips
ROTATION_LIMIT = np.array([1.8, 0.5, 0.5])  # yaw, pitch, roll

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.80, 0.10),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.95, 0.90, 0.10),
}
DISTRACTOR_COLOURS: dict[str, tuple[float, float, float]] = {
    "purple": (0.55, 0.15, 0.75),
    "orange": (1.00, 0.50, 0.05),
    "white": (0.92, 0.92, 0.92),
}
DISTRACTOR_KINDS = ("sphere", "cylinder", "sphere")
CAMERAS = ("front", "wrist")


@dataclass(frozen=True)
class Difficulty:
    """How full and how turned the table is.

    Args:
        blocks: Number of blocks.
        colours: The colours they are drawn from.
        low: Smallest x and y of an object's centre, m.
        high: Largest x and y.
        yaw: Blocks lie at any angle, not square to the gripper.
        distractors: Fewest and most distractors.
    """

    blocks: int
    colours: tuple[str, ...]
    low: tuple[float, float]
    high: tuple[float, float]
    yaw: bool = False
    distractors: tuple[int, int] = (0, 0)


DIFFICULTIES: dict[str, Difficulty] = {
    "easy": Difficulty(2, ("red", "green", "blue"), (-0.11, -0.11), (0.11, 0.11)),
    "medium": Difficulty(3, ("red", "green", "blue"), (-0.15, -0.15), (0.15, 0.15)),
    "hard": Difficulty(
        4, ("red", "green", "blue", "yellow"), (-0.165, -0.15), (0.165, 0.20), yaw=True, distractors=(1, 3)
    ),
}


@dataclass(frozen=True)
class Layout:
    """Where everything is when an episode starts.

    Args:
        blocks: Colour -> (x, y, yaw).
        pads: Colour -> (x, y).
        distractors: (colour, x, y) of each, in the order of `DISTRACTOR_KINDS`.
        gripper: x, y, z of the finger tips.
    """

    blocks: dict[str, tuple[float, float, float]]
    pads: dict[str, tuple[float, float]] = field(default_factory=dict)
    distractors: tuple[tuple[str, float, float], ...] = ()
    gripper: tuple[float, float, float] = (0.0, 0.0, 0.15)


def sample_layout(
    rng: np.random.Generator, difficulty: Difficulty, *, pads: int = 0, distractors: int | None = None
) -> Layout:
    """Draw a layout in which no two objects are nearer than 11 cm (10 cm where it is crowded)."""
    fewest, most = difficulty.distractors
    extras = int(rng.integers(fewest, most + 1)) if distractors is None else distractors
    count = difficulty.blocks + pads + extras
    low, high = np.array(difficulty.low), np.array(difficulty.high)
    points = scatter(rng, count, low, high, 0.11 if count <= 4 else 0.10)  # (count, 2)
    colours = [difficulty.colours[i] for i in rng.permutation(len(difficulty.colours))]
    yaws = rng.uniform(-np.pi / 4, np.pi / 4, difficulty.blocks) * difficulty.yaw
    pad_colours = [difficulty.colours[i] for i in rng.permutation(len(difficulty.colours))[:pads]]
    strange = [list(DISTRACTOR_COLOURS)[i] for i in rng.permutation(len(DISTRACTOR_COLOURS))]
    xy = [(float(x), float(y)) for x, y in points]
    first_extra = difficulty.blocks + pads
    start = (*rng.uniform(-0.12, 0.12, 2), rng.uniform(0.12, 0.18))
    return Layout(
        blocks={c: (*xy[i], float(yaws[i])) for i, c in enumerate(colours[: difficulty.blocks])},
        pads={c: xy[difficulty.blocks + i] for i, c in enumerate(pad_colours)},
        distractors=tuple((strange[i % len(strange)], *xy[first_extra + i]) for i in range(extras)),
        gripper=(float(start[0]), float(start[1]), float(start[2])),
    )


def scatter(
    rng: np.random.Generator, count: int, low: np.ndarray, high: np.ndarray, apart: float
) -> np.ndarray:
    """`count` points in a rectangle, at least `apart` from each other: float (count, 2)."""
    while True:
        points = np.empty((0, 2))
        for _ in range(40 * count):
            if len(points) == count:
                return points
            candidate = rng.uniform(low, high)
            if not len(points) or np.linalg.norm(points - candidate, axis=1).min() >= apart:
                points = np.vstack([points, candidate])
        # Jammed (the first few left no room for the rest): begin again.


# ---- MJCF -------------------------------------------------------------------------------------------------
def scene_xml(blocks: int, pads: int, distractors: int) -> str:
    """The MJCF text of a table with so many blocks, pads and distractors.

    They are named `block0`, ..., `pad0`, ..., `extra0`, ...; place and colour are set at each reset.
    """
    things = [_block(i) for i in range(blocks)]
    things += [_distractor(i) for i in range(distractors)]
    flat = [
        f'<body name="pad{i}" mocap="true"><geom name="pad{i}" type="box" size="{PAD_HALF} {PAD_HALF} 0.001"'
        ' contype="0" conaffinity="0"/></body>'
        for i in range(pads)
    ]
    return f"""
<mujoco model="tabletop">
  <option timestep="0.005" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <default><geom solref="0.01 1" solimp="0.95 0.99 0.001"/></default>
  <statistic center="0 0 0.05" extent="0.8"/>
  <visual>
    <map znear="0.01" zfar="20"/>
    <quality shadowsize="0" offsamples="0"/>
    <headlight ambient="0.5 0.5 0.5" diffuse="0.5 0.5 0.5" specular="0 0 0"/>
  </visual>
  <worldbody>
    <light name="lamp" pos="-0.45 -0.25 1.3" dir="0.33 0.2 -1" cutoff="60" diffuse="0.65 0.65 0.65"
      specular="0.15 0.15 0.15" castshadow="true" active="false"/>
    <geom name="table" type="plane" size="3 3 0.1" rgba="0.25 0.25 0.28 1" friction="0.5 0.005 0.0001"/>
    <camera name="front" pos="0 -0.42 0.50" xyaxes="1 0 0 0 0.766 0.643" fovy="40"/>
    <camera name="view" pos="0.34 -0.62 0.52" xyaxes="0.877 0.481 0 -0.285 0.520 0.805" fovy="33"/>
    {"".join(flat)}
    {_GRIPPER}
    {"".join(things)}
  </worldbody>
  {_ACTUATORS}
</mujoco>"""


def _block(index: int) -> str:
    size = f"{BLOCK_HALF} {BLOCK_HALF} {BLOCK_HALF}"
    return (
        f'<body name="block{index}"><freejoint name="block{index}"/><geom name="block{index}" type="box"'
        f' size="{size}" mass="0.05" friction="0.5 0.02 0.001" condim="4"/></body>'
    )


def _distractor(index: int) -> str:
    kind = DISTRACTOR_KINDS[index % len(DISTRACTOR_KINDS)]
    size = "0.022" if kind == "sphere" else "0.02 0.022"
    # Six-dimensional contacts have rolling friction: a sphere stays where it is put.
    return (
        f'<body name="extra{index}"><freejoint name="extra{index}"/><geom name="extra{index}" type="{kind}"'
        f' size="{size}" mass="0.05" friction="0.5 0.02 0.005" condim="6"/></body>'
    )


# The body's origin is the point between the finger tips: turning the hand leaves that point where it is, and
# with the centre of mass there too, turning and moving do not disturb each other. Slides come first, so they
# stay in the base frame; the hand's rotation is Rz(yaw) Ry(pitch) Rx(roll).
_GRIPPER = """
    <body name="hand" gravcomp="1">
      <joint name="x" type="slide" axis="1 0 0" damping="110"/>
      <joint name="y" type="slide" axis="0 1 0" damping="110"/>
      <joint name="z" type="slide" axis="0 0 1" damping="110"/>
      <joint name="yaw" type="hinge" axis="0 0 1" damping="0.5"/>
      <joint name="pitch" type="hinge" axis="0 1 0" damping="0.5"/>
      <joint name="roll" type="hinge" axis="1 0 0" damping="0.5"/>
      <inertial pos="0 0 0" mass="0.9" diaginertia="0.004 0.004 0.004"/>
      <geom name="palm" type="box" size="0.05 0.012 0.008" pos="0 0 0.065" rgba="0.9 0.9 0.9 1"/>
      <geom name="mount" type="cylinder" size="0.018 0.012" pos="0 0 0.085" rgba="0.75 0.75 0.78 1"
        contype="0" conaffinity="0"/>
      <camera name="wrist" pos="0 -0.085 0.115" xyaxes="1 0 0 0 0.755 0.656" fovy="66"/>
      <body name="left" gravcomp="1">
        <joint name="left" type="slide" axis="-1 0 0" range="0 0.05" limited="true" damping="20"
          armature="0.12"/>
        <inertial pos="0 0 0" mass="0.05" diaginertia="1e-4 1e-4 1e-4"/>
        <geom name="left" type="box" size="0.005 0.012 0.03" pos="-0.005 0 0.03" rgba="0.9 0.9 0.9 1"
          friction="1.5 0.03 0.001" condim="4"/>
      </body>
      <body name="right" gravcomp="1">
        <joint name="right" type="slide" axis="1 0 0" range="0 0.05" limited="true" damping="20"
          armature="0.12"/>
        <inertial pos="0 0 0" mass="0.05" diaginertia="1e-4 1e-4 1e-4"/>
        <geom name="right" type="box" size="0.005 0.012 0.03" pos="0.005 0 0.03" rgba="0.9 0.9 0.9 1"
          friction="1.5 0.03 0.001" condim="4"/>
      </body>
    </body>"""

# Stiff enough to be where it was told within one 50 ms step or two; forces limited so that pressing on a
# block does no harm. The fingers are coupled, as in a parallel gripper, so a block is centred between them.
_ACTUATORS = """
  <equality><joint joint1="left" joint2="right" solref="0.01 1"/></equality>
  <actuator>
    <position name="x" joint="x" kp="3500" forcerange="-60 60"/>
    <position name="y" joint="y" kp="3500" forcerange="-60 60"/>
    <position name="z" joint="z" kp="3500" forcerange="-60 60"/>
    <position name="yaw" joint="yaw" kp="16" forcerange="-4 4"/>
    <position name="pitch" joint="pitch" kp="16" forcerange="-4 4"/>
    <position name="roll" joint="roll" kp="16" forcerange="-4 4"/>
    <position name="left" joint="left" kp="600" forcerange="-10 10"/>
    <position name="right" joint="right" kp="600" forcerange="-10 10"/>
  </actuator>"""
