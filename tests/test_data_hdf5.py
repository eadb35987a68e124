"""Our HDF5 layout: self-describing, and damaged or hostile files are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_examples import ARM, assert_is_example, record

from vla_agents.data import Hdf5Reader, Hdf5Writer, open_dataset
from vla_agents.embodiment import Camera, Embodiment
from vla_agents.errors import ConfigError, DatasetError, DatasetNotFoundError, UnknownNameError


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "set"
    with Hdf5Writer(path, ARM, durable=False) as writer:
        for k in range(3):
            record(writer, k, executed=True, commanded=True)
    return path


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "set"))


def test_each_file_describes_itself(recorded: Path) -> None:
    with h5py.File(recorded / "episode_000001.hdf5") as file:
        assert Embodiment.from_dict(json.loads(file.attrs["embodiment"])) == ARM
        assert (file.attrs["instruction"], file.attrs["fps"]) == ("task 1", 20.0)
        assert bool(file.attrs["success"]) is False
        assert json.loads(file.attrs["metadata"]) == {"seed": 1}
        assert file["time"].dtype == np.float64 and np.all(np.diff(file["time"]) > 0)
        assert file["images/wrist"].shape == (4, 48, 64, 3) and file["images/wrist"].compression == "gzip"
        assert "success" not in h5py.File(recorded / "episode_000002.hdf5").attrs


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    def apply(path: Path) -> None:
        with h5py.File(path / "episode_000001.hdf5", "a") as file:
            value = change(file[name][()])
            del file[name]
            file[name] = value

    return apply


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def outside(kind: str) -> Callable[[Path], Any]:
    """Make a dataset a link to another file."""

    def apply(path: Path) -> None:
        other = path.parent / "other.hdf5"
        shutil.copy(path / EPISODE, other)
        with h5py.File(path / EPISODE, "a") as file:
            if kind == "group":
                del file["images"]
                file["images"] = h5py.ExternalLink(str(other), "images")
            elif kind == "virtual":
                del file["action"]
                layout = h5py.VirtualLayout((4, 7), np.float32)
                layout[:] = h5py.VirtualSource(str(other), "action", (4, 7))
                file.create_virtual_dataset("action", layout)
            elif kind == "external":
                del file["action"]
                file.create_dataset("action", (4, 7), np.float32, external=[(str(other), 0, 112)])
            else:
                del file["action"]
                file["action"] = h5py.ExternalLink(str(other), "action")

    return apply


def nan(values: np.ndarray) -> np.ndarray:
    values[2, 1] = np.nan
    return values


def remove(name: str, *, attribute: bool = False) -> Callable[[Path], Any]:
    def apply(path: Path) -> None:
        with h5py.File(path / EPISODE, "a") as file:
            del (file.attrs if attribute else file)[name]

    return apply


EPISODE = "episode_000001.hdf5"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda p: cut(p / EPISODE), "cannot be read as HDF5"),
    "not hdf5": (lambda p: (p / EPISODE).write_text("hello"), "cannot be read as HDF5"),
    "nan": (edit("action", nan), "'action' is not finite in frame 2"),
    "shorter": (
        edit("images/front", lambda v: v[:-1]),
        r"'images/front' is uint8 \(3, 64, 64, 3\), expected",
    ),
    "type": (edit("state", lambda v: v.astype(np.float64)), "'state' is float64"),
    "no rows": (edit("action", lambda v: v[:0]), "has no steps"),
    "no time": (remove("time"), "has no dataset 'time'"),
    "no camera": (remove("images/wrist"), "has no dataset 'images/wrist'"),
    "no instruction": (remove("instruction", attribute=True), "has no attribute 'instruction'"),
    "link": (outside("link"), "'action' leads out of the file"),
    "linked group": (outside("group"), "'images/front' leads out of the file"),
    "virtual": (outside("virtual"), "'action' leads out of the file"),
    "external": (outside("external"), "'action' leads out of the file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_to_one_episode_leaves_the_others_readable(name: str, copied: Path) -> None:
    damage, says = DAMAGE[name]
    damage(copied)
    reader = open_dataset(copied)
    with pytest.raises(DatasetError, match=says) as caught:
        reader.read(1)
    assert caught.value.path == copied / EPISODE and caught.value.remedy
    assert_is_example(reader.read(0), 0, executed=True, commanded=True)
    assert_is_example(reader.read(2), 2, executed=True, commanded=True)


def test_a_missing_episode_is_named(copied: Path) -> None:
    (copied / EPISODE).unlink()
    with pytest.raises(DatasetError, match=r"episode_000001\.hdf5: is missing.*up to 2"):
        open_dataset(copied)


def test_damaged_dataset_json(copied: Path) -> None:
    file = copied / "dataset.json"
    good = json.loads(file.read_text())
    for content, says in (
        ("{", "cannot be read as JSON"),
        (json.dumps({**good, "format": "x"}), "'format'"),
        (json.dumps({**good, "version": 2}), "'version' is 2"),
        (json.dumps({**good, "embodiment": {"name": "x"}}), "not an embodiment"),
        (json.dumps({**good, "fps": "x"}), "'fps'"),
    ):
        file.write_text(content)
        with pytest.raises(DatasetError, match=says):
            open_dataset(copied)
    file.unlink()
    with pytest.raises(DatasetNotFoundError):
        Hdf5Reader(copied)


def test_options(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="gzip"):
        Hdf5Writer(tmp_path / "a", ARM, compression="gzp")
    with pytest.raises(ConfigError, match="without '/'"):
        Hdf5Writer(tmp_path / "a", Embodiment("x", ARM.action, (), (Camera("a/b", 8, 8),)))
