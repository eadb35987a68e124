"""The expert of SimplerEnv's picking tasks, with a hand that goes where it is told."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import Rotation

from vla_agents.envs.simpler.expert import Hand, Things, narrow_side, pick


def test_the_expert_goes_over_down_closes_lifts_and_lays_down() -> None:
    state = np.array([0.3, 0.0, 0.2, 0.0, math.pi / 2, 0.0])  # fingers along y
    long_along_y = Things(
        np.array([0.4, 0.1, 0.02]),
        Rotation.identity(),
        np.array([0.03, 0.1, 0.04]),
        np.array([0.3, -0.1, 0.05]),
    )
    expert = pick(long_along_y, Hand(fingers=1, below=0.01, closing=3, lift=0.1), lambda: state)
    path, openings = [], []
    for _ in range(80):
        action = next(expert)
        assert np.linalg.norm(action[:3]) < 0.031 and np.linalg.norm(action[3:6]) < 0.151
        turned = Rotation.from_rotvec(action[3:6]) * Rotation.from_rotvec(state[3:])
        state = np.concatenate([state[:3] + action[:3], turned.as_rotvec()])
        path.append(state[:3])
        openings.append(action[6])
    closed = openings.index(0.0)
    opened = closed + openings[closed:].index(1.0)
    assert np.allclose(path[closed], [0.4, 0.1, 0.01], atol=0.011)  # one centimetre below its centre
    assert abs(Rotation.from_rotvec(state[3:]).as_matrix()[0, 1]) > 0.99  # now across it: along x
    assert max(place[2] for place in path[closed:opened]) > 0.1
    assert np.allclose(path[opened], [0.3, -0.1, 0.04], atol=0.021)
    assert set(openings[opened:]) == {1.0}


def test_an_expert_that_is_stopped_by_the_table_does_not_press_on() -> None:
    state = np.array([0.4, 0.0, 0.1, 0.0, 0.0, 0.0])
    expert = pick(
        Things(np.array([0.4, 0.0, 0.0]), Rotation.identity(), np.ones(3)),
        Hand(0, 0.05, 3, 0.1),
        lambda: state,
    )
    presses = 0
    for _ in range(30):
        action = next(expert)
        if action[6] == 0:
            break
        presses += state[2] <= 0.02 and action[2] < 0
        state = np.concatenate([np.maximum(state[:3] + action[:3], [-1, -1, 0.02]), state[3:]])
    assert 1 <= presses <= 4


def test_the_narrow_side() -> None:
    size = np.array([0.03, 0.1, 0.04])
    assert np.allclose(narrow_side(Rotation.from_euler("z", 90, degrees=True), size), [0, 1], atol=1e-9)
    standing = Rotation.from_euler("x", 90, degrees=True)  # the long side up: z lies along -y
    assert np.allclose(np.abs(narrow_side(standing, np.array([0.05, 0.1, 0.04]))), [0, 1], atol=1e-9)
