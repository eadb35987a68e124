"""Statistics of a dataset: exact, of the rows alone, and what LeRobot means by quantiles beside them."""

from __future__ import annotations

import json
from pathlib import Path

import foreign_sets as foreign
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_examples import ARM, record
from test_data_lerobot import DATA1, nan_action, set_column

from vla_agents.data import create_dataset, open_dataset
from vla_agents.data.statistics import LEVELS, load_statistics, save_statistics, statistics
from vla_agents.data.subset import SubsetReader
from vla_agents.embodiment import Part
from vla_agents.errors import ConfigError, DatasetError, UnknownNameError
from vla_agents.normalize import Normalizer


@pytest.fixture(scope="module", params=["lerobot", "hdf5"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / request.param
    with create_dataset(path, ARM, request.param, durable=False) as writer:
        for k in range(8):
            record(writer, k)
    return path


def test_they_are_those_of_all_rows(recorded: Path) -> None:
    reader = open_dataset(recorded)
    rows = np.concatenate([reader.read(k, images=False).action for k in range(8)]).astype(np.float64)
    found = statistics(reader, envelope=True)
    assert set(found) == {"observation.state", "action"}
    action = found["action"]
    assert action.count == len(rows) and action.skipped == 0 and not action.constant.any()
    for name in ("mean", "std", "min", "max"):
        assert np.allclose(getattr(action, name), getattr(rows, name)(axis=0), rtol=1e-12, atol=1e-12), name
    for name, level in LEVELS.items():
        assert np.allclose(action.quantiles[name], np.quantile(rows, level, axis=0), rtol=1e-7), name
        each = [
            np.quantile(reader.read(k, images=False).action.astype(float), level, axis=0) for k in range(8)
        ]
        extreme = np.min(each, axis=0) if level <= 0.5 else np.max(each, axis=0)
        assert np.allclose(action.envelope[name], extreme, rtol=1e-6), name
    assert np.abs(action.envelope["q50"] - action.quantiles["q50"]).max() > 0.1  # which is why they are named


def test_pictures_are_not_decoded(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    path = Path(shutil.copytree(recorded, tmp_path / "set"))
    for video in path.rglob("*.mp4"):
        video.unlink()
    monkeypatch.setattr("vla_agents.data.hdf5.reader.stored_frames", None)
    assert statistics(open_dataset(path))["action"].count == open_dataset(path).lengths().sum()


def test_rows_that_are_not_finite_are_named_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "set"
    with create_dataset(path, ARM, durable=False) as writer:
        for k in range(3):
            record(writer, k)
    nan_action(path)
    with pytest.raises(DatasetError, match=r"action is not finite in episode 1, frame 2: .*nan.*1 such rows"):
        statistics(open_dataset(path))
    found = statistics(open_dataset(path), ["action"], skip_nonfinite=True)["action"]
    assert found.skipped == 1 and found.count == 11
    values = np.full((4, 7), np.inf, np.float32)
    set_column(path / DATA1, "action", pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 7))
    with pytest.raises(DatasetError, match=r"episode 1, frame 0.*4 such rows"):
        statistics(open_dataset(path))


def test_constants_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "set"
    with create_dataset(path, ARM, durable=False) as writer:
        for k in range(3):
            record(writer, k)
    for k, length in enumerate((3, 4, 5)):
        file = path / f"data/chunk-000/file-{k:03d}.parquet"
        values = np.array(pq.read_table(file)["action"].to_pylist(), np.float32)
        values[:, 2] = 0.1  # no float32 number; a sum of many of them would be off
        set_column(file, "action", pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 7))
        assert len(values) == length
    found = statistics(open_dataset(path), ["action"])["action"]
    assert found.constant.tolist() == [False, False, True, False, False, False, False]
    assert found.std[2] == 0 and found.mean[2] == found.min[2] == found.quantiles["q50"][2] == np.float32(0.1)
    rows = open_dataset(path).columns()["action"]
    for mode in ("mean_std", "min_max", "q01_q99"):
        normalizer = Normalizer((Part("a", 7, "other"),), found.vector_stats(), {"*": mode})
        normal = normalizer.normalize(rows)
        assert np.array_equal(normal[:, 2], np.zeros(len(rows))) and np.isfinite(normal).all()
        back = normalizer.unnormalize(normal)
        assert np.array_equal(back[:, 2], rows[:, 2]) and np.allclose(back, rows, atol=1e-5)


def test_on_disk_and_back(recorded: Path, tmp_path: Path) -> None:
    found = statistics(open_dataset(recorded), envelope=True)
    save_statistics(tmp_path / "stats.json", found)
    again = load_statistics(tmp_path / "stats.json")
    for name, column in found.items():
        assert json.dumps(column.to_json()) == json.dumps(again[name].to_json())
    for bad in ("{", "[]", "{}", '{"format": "vla_agents_statistics", "columns": {"a": {"count": 1}}}'):
        (tmp_path / "bad.json").write_text(bad)
        with pytest.raises(ConfigError, match=r"bad\.json: not statistics"):
            load_statistics(tmp_path / "bad.json")


def test_other_columns_and_other_formats(recorded: Path, tmp_path: Path) -> None:
    reader = open_dataset(recorded)
    found = statistics(reader, ["next.reward", "intervention"])
    assert found["next.reward"].mean.shape == (1,) and 0 <= found["intervention"].mean[0] <= 1
    with pytest.raises(UnknownNameError, match="acton"):
        statistics(reader, ["acton"])
    some = statistics(SubsetReader(reader, [5, 2]), ["action"])["action"]
    rows = np.concatenate([reader.read(k, images=False).action for k in (5, 2)])
    assert some.count == len(rows) and np.array_equal(some.max, rows.max(0).astype(float))
    demos = open_dataset(foreign.robomimic(tmp_path / "lift.hdf5"))
    found = statistics(demos, ["states", "action"])
    assert found["states"].mean.shape == (32,) and found["action"].count == 16
    single = statistics(SubsetReader(reader, [0]), ["action"])["action"]
    assert single.count == 3


def test_one_row(tmp_path: Path) -> None:
    from data_examples import make_steps

    with create_dataset(tmp_path / "set", ARM, durable=False) as writer:
        writer.begin("go")
        writer.add(make_steps(0, 1)[0])
        writer.save()
    found = statistics(open_dataset(tmp_path / "set"), envelope=True)["action"]
    assert found.constant.all() and np.array_equal(found.quantiles["q01"], found.max)
