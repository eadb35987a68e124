"""Windows with a history, relative actions, another size or rate, from memory or straight from the files: each one
against the episodes themselves."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from data_examples import picture
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_agents.data import (
    Episode,
    EpisodeReader,
    Pictures,
    Step,
    WindowDataset,
    create_dataset,
    open_dataset,
)
from vla_agents.data.loading.resample import resample
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import ConfigError, DatasetError, EmbodimentMismatchError
from vla_agents.relative import RelativeActions
from vla_agents.transforms import GripperConvention, ResizeImages, SelectCameras

ARM = Embodiment(
    "pose",
    action=(
        Part("position", 3, "xyz", unit="m"),
        Part("turn", 3, "axis_angle"),
        Part("grip", 1, "gripper_open_01", 0, 1),
    ),
    state=(Part("eef", 3, "xyz", unit="m"), Part("face", 4, "quaternion_xyzw")),
    cameras=(Camera("front", 32, 48), Camera("wrist", 32, 32)),
    control_hz=10.0,
)
LENGTHS = (5, 1, 9, 3)


def make_dataset(path: Path, body: Embodiment = ARM, kind: str = "lerobot", seed: int = 0) -> EpisodeReader:
    rng = np.random.default_rng(seed)
    with create_dataset(path, body, kind, durable=False) as writer:
        for k, length in enumerate(LENGTHS):
            writer.begin(f"task {k} of {seed}")
            for t in range(length):
                state = rng.normal(size=body.state_dim).astype(np.float32)
                if body.state_dim == 7:
                    state[3:] /= np.linalg.norm(state[3:])
                action = rng.uniform(-1, 1, body.action_dim).astype(np.float32)
                images = {c.name: picture(rng, c.height, c.width) for c in body.cameras}
                writer.add(Step(images, state, action, time=t / 10, intervened=t == 1))
            writer.save(True)
    return open_dataset(path)


@cache
def example(kind: str = "lerobot") -> tuple[EpisodeReader, list[Episode]]:
    reader = make_dataset(Path(mkdtemp(prefix="loading-")) / kind, kind=kind)
    return reader, [reader.read(k) for k in range(len(reader))]


def brute_force(
    episode: Episode, t: int, horizon: int, history: int, stride: int, relative: bool
) -> dict[str, Any]:
    """One window, the slow way."""
    steps = [t - (history - 1 - k) * stride for k in range(history)]
    shown = [max(0, step) for step in steps]
    ahead = [min(t + h, len(episode) - 1) for h in range(horizon)]
    assert episode.state is not None
    action = episode.action[ahead]
    if relative:
        action = RelativeActions(episode.embodiment).chunk(action, episode.state[t])
    only = slice(None) if history > 1 else 0
    return {
        "images": {name: frames[shown][only] for name, frames in episode.images.items()},
        "state": episode.state[shown][only],
        "action": action,
        "mask": np.array([t + h < len(episode) for h in range(horizon)]),
        "observed": np.array([step >= 0 for step in steps]),
        "instruction": episode.instruction,
    }


def assert_windows(
    data: WindowDataset, episodes: list[Episode], indices: np.ndarray, relative: bool = False
) -> None:
    """These windows equal those cut from the episodes."""
    batch = data.get_batch(indices)
    assert ("observed" in batch) == (data.history > 1)
    for row, index in enumerate(indices):
        episode, t = episodes[data.episode_of[index]], int(data.step_of[index])
        expected = brute_force(episode, t, data.horizon, data.history, data.stride, relative)
        for name, frames in expected["images"].items():
            assert np.array_equal(batch["images"][name][row], frames)
        assert batch["instruction"][row] == expected["instruction"]
        for name in ("state", "action", "mask", *(["observed"] if data.history > 1 else [])):
            assert batch[name].dtype == expected[name].dtype and np.array_equal(
                batch[name][row], expected[name]
            )


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["lerobot", "hdf5"]),
    source=st.sampled_from(["memory", "files"]),
    horizon=st.integers(1, 12),
    history=st.integers(1, 4),
    stride=st.integers(1, 3),
    relative=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_windows_equal_brute_force(
    kind: str, source: Any, horizon: int, history: int, stride: int, relative: bool, seed: int
) -> None:
    reader, episodes = example(kind)
    data = WindowDataset(
        reader, horizon, pictures=Pictures(source), history=history, stride=stride,
        actions="relative" if relative else "absolute",
    )  # fmt: skip
    assert len(data) == sum(LENGTHS)
    rng = np.random.default_rng(seed)
    assert_windows(data, episodes, rng.integers(0, len(data), rng.integers(1, 6)), relative)
    training, held_out = data.split(0.5, seed % 1000)
    for part in (training, held_out):  # views keep all settings
        theirs = [episodes[k] for k in part._episodes]
        assert_windows(part, theirs, rng.integers(0, len(part), 3), relative)
    one = data[int(rng.integers(len(data)))]
    assert one["action"].shape == (horizon, data.embodiment.action_dim)


def test_every_window_at_both_ends() -> None:
    reader, episodes = example()
    data = WindowDataset(reader, 4, history=3, stride=2, pictures=Pictures("files"))
    everything = np.arange(len(data))
    assert_windows(data, episodes, everything)
    batch = data.get_batch(everything)
    first, last = np.cumsum(LENGTHS) - LENGTHS, np.cumsum(LENGTHS) - 1
    assert batch["observed"][first].tolist() == [[False, False, True]] * 4
    assert batch["mask"][last].tolist() == [[True, False, False, False]] * 4
    assert batch["observed"][2].tolist() == [False, True, True]  # t = 2: t-4 is not there, t-2 is the first
    assert batch["images"]["front"].shape == (18, 3, 32, 48, 3) and batch["state"].shape == (18, 3, 7)
    action, mask = data.chunks(everything)
    assert np.array_equal(action, batch["action"]) and np.array_equal(mask, batch["mask"])


def test_relative_actions_of_a_dataset() -> None:
    reader, episodes = example()
    data = WindowDataset(reader, 3, actions="relative")
    assert [p.kind for p in data.embodiment.action] == [
        "relative_xyz",
        "relative_axis_angle",
        "gripper_open_01",
    ]
    batch = data.get_batch(np.arange(len(data)))
    assert np.array_equal(data.action, batch["action"][:, 0])
    states = np.concatenate([e.state for e in episodes if e.state is not None])
    back = data.transform.inverse_chunk(batch["action"], states)  # what acting does
    plain = WindowDataset(reader, 3).get_batch(np.arange(len(data)))["action"]
    np.testing.assert_allclose(back, plain, atol=1e-5)
    with pytest.raises(EmbodimentMismatchError, match="RelativeActions"):
        data.embodiment.require(reader.embodiment)
    with pytest.raises(ConfigError, match="'absolute' or 'relative'"):
        WindowDataset(reader, 3, actions="delta")  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["memory", "files"])
def test_another_size_is_what_acting_resizes_to(source: Any) -> None:
    reader, episodes = example()
    data = WindowDataset(reader, 2, pictures=Pictures(source, size=(16, 24)), history=2)
    assert {(c.height, c.width) for c in data.embodiment.cameras} == {(16, 24)}
    batch = data.get_batch([3, 0])
    expected = ResizeImages(16, 24).observation({"images": {"front": episodes[0].images["front"]}})["images"][
        "front"
    ]
    assert np.array_equal(batch["images"]["front"][:, 1], expected[[3, 0]])
    assert batch["images"]["wrist"].shape == (2, 2, 16, 24, 3)


def test_transforms_are_those_of_acting() -> None:
    reader, episodes = example()
    chain = (SelectCameras(("wrist",)), GripperConvention("grip", "gripper_open_01", "gripper_close_pm1", 6))
    data = WindowDataset(reader, 2, transforms=chain, actions="relative", pictures=Pictures("files"))
    assert data.embodiment.camera_names == ("wrist",)
    assert [p.kind for p in data.embodiment.action][-1] == "gripper_close_pm1"
    batch = data.get_batch([6])
    assert list(batch["images"]) == ["wrist"]
    raw = episodes[2].action[:2, 6]
    np.testing.assert_allclose(batch["action"][0, :, 6], 1 - 2 * raw, atol=1e-6)


@pytest.mark.parametrize(("source", "hz"), [("memory", 5.0), ("files", 20.0), ("files", 7.0)])
def test_another_rate(source: Any, hz: float) -> None:
    """Windows over resampled episodes: each step's picture and state are those of its row, its actions cut anew."""
    reader, episodes = example()
    data = WindowDataset(reader, 3, history=2, pictures=Pictures(source), fps=hz)
    assert data.embodiment.control_hz == hz
    cut = []
    for episode in episodes:
        rows, action = resample(episode.action, ARM, hz)
        assert episode.state is not None
        images = {name: frames[rows] for name, frames in episode.images.items()}
        cut.append(replace(episode, images=images, state=episode.state[rows], action=action))
    assert data.lengths.tolist() == [len(episode) for episode in cut]
    assert_windows(data, cut, np.arange(len(data)))
    assert len(data.intervened) == len(data) == len(data.state)


def test_datasets_of_different_rates_are_refused_unless_told(tmp_path: Path) -> None:
    reader, _ = example()
    slow = make_dataset(tmp_path / "slow", replace(ARM, control_hz=5.0), seed=1)
    with pytest.raises(EmbodimentMismatchError, match=r"10 Hz.*5 Hz.*--fps"):
        WindowDataset([reader, slow], 2)
    both = WindowDataset([reader, slow], 2, fps=5.0, pictures=Pictures("files"))
    assert both.lengths.tolist() == [3, 1, 5, 2, *LENGTHS]
    alone = WindowDataset(slow, 2)
    ours, theirs = both.get_batch(np.arange(11, 29)), alone.get_batch(np.arange(18))
    for name in ("state", "action", "mask"):
        assert np.array_equal(ours[name], theirs[name])
    assert np.array_equal(ours["images"]["front"], theirs["images"]["front"])


def test_sent_to_another_process_it_is_small_and_the_same() -> None:
    reader, episodes = example()
    data = WindowDataset(reader, 3, history=2, pictures=Pictures("files"), actions="relative")
    data.get_batch([0, 5])
    packed = pickle.dumps(data)
    assert len(packed) < 60_000 < 18 * 32 * 80 * 3  # no pictures
    assert_windows(pickle.loads(packed), episodes, np.arange(len(data)), relative=True)


def test_memory_does_not_hold_the_pictures_of_files() -> None:
    reader, _ = example()
    files, memory = (WindowDataset(reader, 3, pictures=Pictures(s)) for s in ("files", "memory"))  # type: ignore[arg-type]
    pictures = sum(LENGTHS) * 32 * (48 + 32) * 3
    assert memory.nbytes - files.nbytes == pictures


def test_bad_numbers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = make_dataset(tmp_path / "set")
    columns = reader.columns()
    columns["action"][7, 2] = np.inf  # episode 2 begins at row 6
    monkeypatch.setattr(reader, "columns", lambda: columns)
    with pytest.raises(DatasetError, match="action is not finite in episode 2, frame 1"):
        WindowDataset(reader, 2, pictures=Pictures("files"))
    for bad in ({"history": 0}, {"stride": 0}):
        with pytest.raises(ConfigError, match="needs at least 1"):
            WindowDataset(reader, 2, **bad)  # type: ignore[arg-type]
