"""Windows in memory: which observation goes with which actions, and where the episode had ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_examples import ARM, make_steps, record, success_of

from vla_agents.data import LeRobotWriter, WindowDataset, create_dataset, open_dataset
from vla_agents.data.loading import store
from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ConfigError, DatasetError, EmbodimentMismatchError


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("windows") / "set"
    with LeRobotWriter(path, ARM, durable=False) as writer:
        for k in range(6):
            record(writer, k)
    return path


@pytest.fixture(scope="module")
def data(path: Path) -> WindowDataset:
    return WindowDataset(open_dataset(path), 4)


def test_every_window_against_the_episodes(path: Path, data: WindowDataset) -> None:
    reader = open_dataset(path)
    episodes = [reader.read(k) for k in range(6)]
    assert len(data) == sum(map(len, episodes)) and data.lengths.tolist() == [len(e) for e in episodes]
    batch = data.get_batch(np.arange(len(data)))
    assert batch["mask"].dtype == bool and batch["action"].dtype == np.float32
    n = 0
    for k, episode in enumerate(episodes):
        for t in range(len(episode)):
            assert (data.episode_of[n], data.step_of[n]) == (k, t)
            assert batch["instruction"][n] == episode.instruction
            assert np.array_equal(batch["state"][n], episode.state[t])
            for name, frames in episode.images.items():
                assert np.array_equal(batch["images"][name][n], frames[t])
            for h in range(4):
                inside = t + h < len(episode)
                assert batch["mask"][n, h] == inside
                assert np.array_equal(batch["action"][n, h], episode.action[t + h if inside else -1])
            n += 1
    assert np.array_equal(data.action, batch["action"][:, 0]) and np.array_equal(data.state, batch["state"])
    assert np.array_equal(data.intervened, np.concatenate([e.intervened for e in episodes]))
    assert data.successes == [success_of(k) for k in range(6)]


def test_any_order_and_repetition(data: WindowDataset) -> None:
    all_of_them = data.get_batch(range(len(data)))
    some = data.get_batch([7, 7, 0, len(data) - 1])
    for name in ("state", "action", "mask"):
        assert np.array_equal(some[name], all_of_them[name][[7, 7, 0, -1]])
    assert some["images"]["front"].flags.writeable  # a copy: augmentation may write to it
    some["images"]["front"][:] = 0
    assert data.get_batch([7])["images"]["front"].any()


def test_the_horizon_may_be_longer_than_an_episode(path: Path) -> None:
    data = WindowDataset(open_dataset(path), 50)
    batch = data.get_batch([0, len(data) - 1])
    assert batch["mask"].sum(axis=1).tolist() == [3, 1] and batch["action"].shape == (2, 50, 7)
    assert np.all(batch["action"][1] == batch["action"][1, 0])


def test_split_by_whole_episodes_without_copying(data: WindowDataset) -> None:
    training, validation = data.split(0.3, seed=1)
    assert (len(training.lengths), len(validation.lengths)) == (4, 2)
    assert len(training) + len(validation) == len(data)
    told = lambda view: {tuple(view.state[k]) for k in range(len(view))}  # noqa: E731
    assert not told(training) & told(validation) and told(training) | told(validation) == told(data)
    for view in (training, validation):
        assert view._store is data._store and view.nbytes == data.nbytes
        batch = view.get_batch(np.arange(len(view)))
        last = np.cumsum(view.lengths) - 1
        assert (batch["mask"][last].sum(axis=1) == 1).all()
        assert view.instructions[view.episode_of[-1]] == batch["instruction"][-1]
    again, other = data.split(0.3, seed=1)[1], data.split(0.3, seed=2)[1]
    assert np.array_equal(again.state, validation.state) and told(other) != told(validation)
    whole, none = data.split(0)
    assert len(whole) == len(data) and len(none) == 0
    half = training.split(0.5)[1]  # a view of a view
    assert told(half) < told(training)
    for fraction in (1, -0.1, 0.99):
        with pytest.raises(ConfigError):
            data.split(fraction)


def test_torch_loads_it(data: WindowDataset) -> None:
    from torch.utils.data import DataLoader

    batch = next(iter(DataLoader(data, batch_size=5)))
    expected = data.get_batch(range(5))
    assert np.array_equal(batch["images"]["front"].numpy(), expected["images"]["front"])
    assert (
        np.array_equal(batch["action"].numpy(), expected["action"])
        and batch["instruction"] == ["task 0"] * 3 + ["task 1"] * 2
    )
    with pytest.raises(IndexError):
        data[len(data)]


def test_several_datasets_and_chosen_cameras(path: Path, tmp_path: Path) -> None:
    with create_dataset(tmp_path / "more", ARM, "hdf5", durable=False) as writer:
        record(writer, 7)
    both = WindowDataset([open_dataset(path), open_dataset(tmp_path / "more")], 2, cameras=["wrist"])
    assert list(both.get_batch([0])["images"]) == ["wrist"] == list(both.embodiment.camera_names)
    assert np.array_equal(both.get_batch([-1])["state"][0], make_steps(7, 6)[-1].state)
    with pytest.raises(ConfigError, match=r"no camera \['left'\]"):
        WindowDataset(open_dataset(path), 2, cameras=["left"])
    body = Embodiment("other", (Part("a", 7, "other"),))
    with create_dataset(tmp_path / "other", body, durable=False) as writer:
        record(writer, 0, body)
    with pytest.raises(EmbodimentMismatchError, match="other"):
        WindowDataset([open_dataset(path), open_dataset(tmp_path / "other")], 2)


def test_memory_is_told_and_checked_before_decoding(
    path: Path, data: WindowDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.nbytes == store.required_bytes(ARM, len(data))
    free = store.available_bytes()
    assert free is not None and free > 1e6
    reader = open_dataset(path)
    monkeypatch.setattr(reader, "read", lambda index: pytest.fail("decoded"))
    monkeypatch.setattr(store, "available_bytes", lambda: 100_000)
    with pytest.raises(ConfigError, match=r"GB in memory, 0\.0 GB are free"):
        WindowDataset(reader, 2)


def test_bad_input(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="horizon 0"):
        WindowDataset(open_dataset(path), 0)
    with create_dataset(tmp_path / "empty", ARM) as _:
        pass
    with pytest.raises(DatasetError, match="no episodes"):
        WindowDataset(open_dataset(tmp_path / "empty"), 2)
    reader = open_dataset(path)
    read = reader.read

    def with_nan(index: int) -> Any:
        episode = read(index)
        if index == 4:
            episode.state[1, 2] = np.nan
        return episode

    monkeypatch.setattr(reader, "read", with_nan)
    with pytest.raises(DatasetError, match="state is not finite in episode 4, frame 1"):
        WindowDataset(reader, 2)


def test_progress_is_shown_where_asked_and_seen(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    WindowDataset(open_dataset(path), 2)
    WindowDataset(open_dataset(path), 2, progress=True)  # not a terminal
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    WindowDataset(open_dataset(path), 2, progress=True)
    assert "Decoding 6 episodes" in capsys.readouterr().out
