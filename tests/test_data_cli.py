"""`vla-agents data ...` as it is typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import foreign_sets as foreign
import pytest
from data_examples import ARM, check_as_lerobot, record

from vla_agents.cli import main
from vla_agents.data import create_dataset, open_dataset
from vla_agents.data_commands import episode_numbers, part_numbers
from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ConfigError


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    with create_dataset(tmp_path / "set", ARM, "hdf5", durable=False) as writer:
        for k in range(4):
            record(writer, k)
    return tmp_path / "set"


def run(capsys: pytest.CaptureFixture[str], *args: object, status: int = 0) -> str:
    found = main(["data", *map(str, args)])
    shown = capsys.readouterr()
    assert found == status, shown.err
    return re.sub(r"\s+", " ", shown.out + shown.err)


def test_info(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "info", recorded)
    for words in (
        "vla_agents HDF5",
        "18",
        "task 0: 2",
        "front: 64x64 upright",
        "move [3] delta_xyz",
        "yes: 2",
    ):
        assert words in text, words
    main(["data", "info", str(recorded), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["episodes"] == 4 and found["steps"] == 18 and found["success"]["nobody judged"] == 1
    assert "no such folder" in run(capsys, "info", recorded / "nothing", status=1)


def test_info_of_foreign_files_says_what_is_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = foreign.aloha(tmp_path / "aloha")
    assert "50 Hz assumed" in run(capsys, "info", path)
    told = run(capsys, "info", path, "--rate", "30", "--instruction", "go", "--colour", "bgr")
    assert "assumed" not in told and "go: 3" in told
    (path / "episode_5.hdf5").write_bytes(b"none")
    assert "cannot be read as HDF5" in run(capsys, "info", path, status=1)
    text = run(capsys, "info", path, "--skip-bad", status=1)
    assert "episodes 2" in text.replace("│", "").replace("  ", " ") and "cannot be read as HDF5" in text


def test_convert_says_what_is_lost_and_what_was_done(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = recorded.parent / "out"
    text = run(capsys, "convert", recorded, out, "--dry-run")
    assert "LeRobot v3.0 cannot hold" in text and "crf 18" in text and not out.exists()
    text = run(capsys, "convert", recorded, out, "--strict", status=1)
    assert "1 things would be lost" in text and not out.exists()
    text = run(
        capsys, "convert", recorded, out, "--video-quality", "lossless", "--strict", "--report", f"{out}.json"
    )
    assert "LeRobot v3.0 can hold all of it" in text and "4 episodes, 18 steps" in text
    assert check_as_lerobot(out) == 4
    report = json.loads(Path(f"{out}.json").read_text())
    assert report[0]["episodes"] == 4 and report[0]["lost"] == []
    assert "nothing is overwritten" in run(capsys, "convert", recorded, out, status=1)
    assert "Did you mean 'robomimic'" in run(
        capsys, "convert", recorded, f"{out}2", "--to", "robomimc", status=1
    )
    assert "--video-quality is 'best'" in run(
        capsys, "convert", recorded, f"{out}2", "--video-quality", "best", status=1
    )
    text = run(capsys, "convert", recorded, f"{out}3.hdf5", "--to", "groups", "--episodes", "1:3")
    assert "2 episodes" in text and open_dataset(f"{out}3.hdf5").instructions() == ["task 1", "task 2"]


def test_convert_with_an_embodiment_and_bad_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = foreign.groups(tmp_path / "set.hdf5")
    plain = open_dataset(path).embodiment
    body = Embodiment(
        "mine", (Part("joints", 6, "joint_position", unit="rad"),), plain.state, plain.cameras, 20.0
    )
    body.save(tmp_path / "mine.json")
    out = tmp_path / "out"
    run(capsys, "convert", path, out, "--to", "lerobot-v2.1", "--embodiment", tmp_path / "mine.json")
    assert open_dataset(out).embodiment == body
    import h5py

    with h5py.File(path, "a") as file:
        del file["episode_5/images"]
    assert "episode_5" in run(capsys, "convert", path, tmp_path / "no", status=1)
    text = run(capsys, "convert", path, tmp_path / "two", "--skip-bad", status=1)
    assert "left out: episode 1:" in text and len(open_dataset(tmp_path / "two")) == 2


def test_merge_and_split(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded.parent
    text = run(capsys, "merge", recorded, recorded, folder / "both", "--to", "lerobot")
    assert "8 episodes, 36 steps" in text
    assert "give two datasets or more" in run(capsys, "merge", recorded, folder / "no", status=1)
    run(capsys, "split", folder / "both", folder / "parts", "--parts", "train=0.75", "val=0.25")
    assert [len(open_dataset(folder / "parts" / n)) for n in ("train", "val")] == [6, 2]
    run(capsys, "split", folder / "both", folder / "tasks", "--by-task", "--to", "robomimic")
    assert sorted(p.name for p in (folder / "tasks").iterdir()) == [f"task_{k}.hdf5" for k in range(3)]
    assert "either --parts or --by-task" in run(capsys, "split", recorded, folder / "no", status=1)


def test_stats(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = recorded.parent / "stats.json"
    text = run(capsys, "stats", recorded, "--envelope", "--out", out)
    assert "action: 18 rows" in text and "envelope" in text and "grip" in text
    columns = json.loads(out.read_text())["columns"]
    assert {"q01", "envelope_q01"} <= set(columns["action"])
    assert "is there already" in run(capsys, "stats", recorded, "--out", out, status=1)
    assert "unknown column" in run(capsys, "stats", recorded, "--columns", "x", status=1)


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "--help")
    assert all(name in text for name in ("convert", "merge", "split", "stats", "info", "repair"))
    with pytest.raises(ConfigError, match="Did you mean 'convert'"):
        from vla_agents.data_cli import main as data

        data(["convrt"])


def test_episode_numbers_and_parts() -> None:
    assert episode_numbers("0:3,7,-1", 10) == [0, 1, 2, 7, 9] and episode_numbers("8:", 10) == [8, 9]
    for bad in ("x", "10", "0,0", "1:x", ""):
        with pytest.raises(ConfigError):
            episode_numbers(bad, 10)
    assert part_numbers(["a=0:2", "b=2:4"], 4, 0) == {"a": [0, 1], "b": [2, 3]}
    assert sorted(k for part in part_numbers(["a=0.5", "b=0.5"], 4, 0).values() for k in part) == [0, 1, 2, 3]
    for bad in (["a"], ["a=0.5", "a=0.5"], ["a=0.5", "b=1:2"], ["a=0.9", "b=0.9"]):
        with pytest.raises(ConfigError):
            part_numbers(bad, 4, 0)
