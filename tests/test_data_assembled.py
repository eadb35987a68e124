"""Recording into formats that are put together at the end: whole episodes, whatever happens before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_examples import ARM, assert_is_example, record

from vla_agents.data import EpisodeWriter, create_dataset, open_dataset
from vla_agents.data.convert.targets import TARGETS, format_of
from vla_agents.data.open import ASSEMBLED
from vla_agents.errors import (
    DatasetError,
    DatasetExistsError,
    DatasetNotFoundError,
    RecordingError,
    UnknownNameError,
)


def place(folder: Path, kind: str) -> Path:
    return folder / f"set{TARGETS[kind][1]}"


@pytest.mark.parametrize("kind", ASSEMBLED)
def test_what_was_recorded_is_there(kind: str, tmp_path: Path) -> None:
    path = place(tmp_path, kind)
    with create_dataset(path, ARM, kind, durable=False, metadata={"who": "me"}) as writer:
        assert isinstance(writer, EpisodeWriter)
        for k in range(3):
            assert record(writer, k, executed=k == 1) == k
        writer.begin("never saved")
        assert not path.exists()
    reader = open_dataset(path)
    assert format_of(reader) == kind and len(reader) == 3
    for k in range(3):
        assert_is_example(reader.read(k), k, executed=k == 1)
        assert reader.read(k, images=False).metadata["who"] == "me"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(DatasetExistsError, match="data merge"):
        create_dataset(path, ARM, kind, resume=True)


CHILD = """
import os, sys
from data_examples import ARM, record
from vla_agents.data import atomic, create_dataset
writer = create_dataset(sys.argv[1], ARM, sys.argv[2])
record(writer, 0), record(writer, 1)
writer.begin("open")
if sys.argv[3] == "close":
    from vla_agents.data.convert import convert
    convert._give_name = lambda *_: os._exit(9)
    writer.close()
os._exit(9)
"""


@pytest.mark.parametrize("when", ["before", "close"])
@pytest.mark.parametrize("kind", ["lerobot-v2.1", "robomimic"])
def test_killed_and_gone_on_with(kind: str, when: str, tmp_path: Path) -> None:
    path = place(tmp_path, kind)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run([sys.executable, "-c", CHILD, str(path), kind, when], env=environment)
    assert child.returncode == 9 and not path.exists()
    with pytest.raises(DatasetNotFoundError, match="resume=True"):
        open_dataset(path)
    with pytest.raises(DatasetExistsError, match="not closed"):
        create_dataset(path, ARM, kind)
    with create_dataset(path, ARM, kind, resume=True, keep_unfinished=False) as writer:
        assert len(writer) == 2
        record(writer, 2)
    for k in range(3):
        assert_is_example(open_dataset(path).read(k), k)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_at_the_end_keeps_the_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vla_agents.data.hdf5 import demo_targets as hdf5_demo_targets

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "set.hdf5"
    writer = create_dataset(path, ARM, "robomimic", durable=False)
    record(writer, 0)
    with monkeypatch.context() as patch:
        patch.setattr(hdf5_demo_targets, "write_ours", full)
        with pytest.raises(RecordingError, match="No space left"):
            writer.close()
    assert not path.exists()
    create_dataset(path, ARM, "robomimic", resume=True).close()
    assert_is_example(open_dataset(path).read(0), 0)


def test_an_error_in_between_keeps_the_episodes(tmp_path: Path) -> None:
    path = tmp_path / "set"
    with pytest.raises(ZeroDivisionError), create_dataset(path, ARM, "libero", durable=False) as writer:
        record(writer, 0)
        raise ZeroDivisionError
    assert not path.exists()
    with create_dataset(path, ARM, "libero", resume=True) as writer:
        assert len(writer) == 1
    assert len(open_dataset(path)) == 1


def test_nothing_recorded_and_two_at_once(tmp_path: Path) -> None:
    with create_dataset(tmp_path / "a", ARM, "aloha"), pytest.raises(DatasetError, match="is being written"):
        create_dataset(tmp_path / "a", ARM, "aloha", resume=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnknownNameError, match="Did you mean 'robomimic'"):
        create_dataset(tmp_path / "a", ARM, "robomimc")
