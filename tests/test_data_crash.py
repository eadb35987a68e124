"""Nothing that was saved is ever lost: killed between any two operations, killed at random times, disk full."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_examples import (
    ACTION,
    ARM,
    assert_is_example,
    check_as_lerobot,
    read_acknowledged,
    record,
    record_until_killed,
)

from vla_agents.data import atomic, create_dataset, open_dataset
from vla_agents.data.recording import journal
from vla_agents.data.video import encode as video_module
from vla_agents.embodiment import Camera, Embodiment
from vla_agents.errors import DatasetNotFoundError, RecordingError

# 160x160 is above the size up to which pictures are encoded on the spot: here a thread per camera, to a file.
LARGE = Embodiment("large", ACTION, (), (Camera("a", 160, 160), Camera("b", 160, 160)), 20.0)
CASES = {
    "lerobot": ("lerobot", ARM, {}),
    "lerobot-threads": ("lerobot", LARGE, {}),
    "lerobot-not-durable": ("lerobot", ARM, {"durable": False}),
    "hdf5": ("hdf5", ARM, {}),
}
Case = tuple[str, Embodiment, dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where possible: an fsync of a real disk takes milliseconds, and these tests make thousands."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    found = Path(tempfile.mkdtemp(dir=memory))
    yield found
    shutil.rmtree(found)


@pytest.fixture(autouse=True)
def no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread writes at any moment, and cannot be counted; see test_data_repair.py."""
    monkeypatch.setattr(journal, "PERIOD", 1e9)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def forked() -> Iterator[Callable[..., Any]]:
    """Start `record_until_killed` in a process that a clean server forks: nothing of this one is shared."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["data_examples", "vla_agents.data.lerobot.writer", "vla_agents.data.hdf5.writer", "av", "h5py"]
    )

    def start(path: Path, case: Case, count: int, at: int) -> Any:
        kind, body, options = case
        options = {**options, "body": body, "resume": True}
        process = context.Process(
            target=record_until_killed, args=(str(path), kind, options, count, f"{path}.saved", at)
        )
        process.start()
        return process

    yield start


def check_saved(path: Path, case: Case, saved: int) -> int:
    """Every episode whose save returned is there (and at most the one that was being saved); the number found."""
    kind, body, _ = case
    try:
        reader = open_dataset(path)
    except DatasetNotFoundError:
        assert saved == 0
        return 0
    assert saved <= len(reader) <= saved + 1
    for k in range(len(reader)):
        assert_is_example(reader.read(k), k, body)
    if kind == "lerobot":
        assert check_as_lerobot(path) == len(reader)
    return len(reader)


def resume_and_check(path: Path, case: Case, found: int) -> None:
    """Recording goes on where it stands, and no leftovers remain."""
    kind, body, options = case
    with create_dataset(path, body, kind, resume=True, **options) as writer:
        assert len(writer) == found
        record(writer, found, body)
    assert check_saved(path, case, found + 1) == found + 1
    assert not list((path / atomic.TEMPORARY).iterdir())
    if kind == "lerobot":
        assert len(list((path / "data").rglob("*.parquet"))) == found + 1
        assert len(list((path / "videos").rglob("*.mp4"))) == (found + 1) * len(body.cameras)
    else:
        assert len(list(path.glob("*.hdf5"))) == found + 1


def count_operations(path: Path, case: Case, monkeypatch: pytest.MonkeyPatch, episodes: int) -> list[str]:
    """The operations on the disk of recording some episodes."""
    kind, body, options = case
    seen: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "hook", lambda operation, where: seen.append(operation))
        with create_dataset(path, body, kind, **options) as writer:
            for k in range(episodes):
                record(writer, k, body)
    return seen


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("lerobot", 1),
        ("hdf5", 1),
        ("lerobot-threads", 3),
        pytest.param("lerobot-threads", 1, marks=pytest.mark.slow),
    ],
)
def test_killed_between_any_two_operations(
    name: str, every: int, folder: Path, forked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    seen = count_operations(folder / "whole", case, monkeypatch, 2)
    assert seen.count("rename") >= 3 and "fsync" in seen
    counts = set()
    for at in range(1, len(seen) + 1, every):
        path = folder / f"{at}"
        process = forked(path, case, 2, at)
        process.join()
        assert process.exitcode == 9, f"operation {at} of {len(seen)} was not reached"
        found = check_saved(path, case, read_acknowledged(Path(f"{path}.saved")))
        counts.add(found)
        resume_and_check(path, case, found)
        shutil.rmtree(path)
    assert counts == {0, 1, 2} if every == 1 else {0, 1} <= counts


def test_killed_while_cleaning_up_after_a_kill(
    folder: Path, forked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["lerobot"]
    first = len(count_operations(folder / "whole", case, monkeypatch, 2))
    for back in (1, 2):  # just before, and just after meta/episodes has the new row
        for at in range(1, 12):
            path = folder / f"{back}-{at}"
            forked(path, case, 2, first - back).join()
            saved = read_acknowledged(Path(f"{path}.saved"))
            assert saved == 1
            forked(path, case, saved, at).join()  # opens, cleans up, and dies while at it
            resume_and_check(path, case, check_saved(path, case, saved))
            shutil.rmtree(path)


def kill_at_random(path: Path, case: Case, forked: Callable[..., Any], kills: int) -> None:
    rng = np.random.default_rng()
    found = 0
    for _ in range(kills):
        process = forked(path, case, 100_000, -1)
        started, before = time.monotonic(), read_acknowledged(Path(f"{path}.saved"))
        while read_acknowledged(Path(f"{path}.saved")) == before and time.monotonic() < started + 60:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.join()
        saved = read_acknowledged(Path(f"{path}.saved"))
        # A save that was on disk, but not yet acknowledged, is counted from the next start on.
        notes = Path(f"{path}.saved")
        last = int(notes.read_text().split()[-1]) + 1
        assert saved > before
        found = check_saved(path, case, last)
    resume_and_check(path, case, found)


@pytest.mark.parametrize("name", ["lerobot", "lerobot-threads", "hdf5"])
def test_killed_at_random_times(name: str, folder: Path, forked: Callable[..., Any]) -> None:
    kill_at_random(folder / "set", CASES[name], forked, 4)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", CASES)
def test_killed_a_hundred_times(name: str, folder: Path, forked: Callable[..., Any]) -> None:
    for part in range(5):  # a folder of its own now and then: each check reads all episodes
        kill_at_random(folder / f"set{part}", CASES[name], forked, 20)


# ---- errors of the disk ------------------------------------------------------------------------------------
def test_error_in_any_operation(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th operation of the second episode fails, for every n: the others are intact, and recording goes on."""
    kind, body, options = case
    one = len(count_operations(folder / "one", case, monkeypatch, 1))
    two = len(count_operations(folder / "two", case, monkeypatch, 2))
    for at in range(1, two - one + 1):
        path = folder / f"{at}"
        writer = create_dataset(path, body, kind, **options)
        record(writer, 0, body)
        left, code = at, (errno.ENOSPC, errno.EIO)[at % 2]

        def fail(operation: str, where: Path) -> None:
            nonlocal left
            left -= 1
            if left <= 0:  # a full disk stays full
                raise OSError(code, os.strerror(code), str(where))  # noqa: B023 - called in this turn

        monkeypatch.setattr(atomic, "hook", fail)
        with pytest.raises(RecordingError, match="MB free") as caught:
            record(writer, 1, body)
        assert caught.value.errno == code and str(path) in str(caught.value)
        assert "intact" in caught.value.remedy
        with pytest.raises(RecordingError):
            writer.save()
        assert len(writer) == 1
        committed = check_saved(path, case, 1)  # 2 where only the last fsync failed: then it is there
        writer.discard()
        monkeypatch.setattr(atomic, "hook", lambda operation, where: None)
        assert record(writer, committed, body) == committed
        writer.close()
        assert check_saved(path, case, committed + 1) == committed + 1
        resume_and_check(path, case, committed + 1)
        shutil.rmtree(path)


def test_a_writer_with_a_full_disk_can_be_closed(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, body, options = case
    with create_dataset(tmp_path / "set", body, kind, **options) as writer:
        record(writer, 0, body)

        def fail(operation: str, where: Path) -> None:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(atomic, "hook", fail)
        with pytest.raises(RecordingError, match=r"No space left on device"):
            record(writer, 1, body)
    monkeypatch.undo()
    resume_and_check(tmp_path / "set", case, check_saved(tmp_path / "set", case, 1))


def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "-o", "size=300k")


def test_a_disk_that_is_really_full(case: Case, small_disk: Path) -> None:
    kind, body, options = case
    path = small_disk / "set"
    writer = create_dataset(path, body, kind, **options)
    saved = 0
    with pytest.raises(RecordingError, match=r"No space left on device \(\d+ MB free\)") as caught:
        for k in range(200):
            record(writer, k, body)
            saved += 1
    assert saved >= 2 and caught.value.errno == errno.ENOSPC
    writer.close()
    assert check_saved(path, case, saved) == saved
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    resume_and_check(path, case, saved)


def test_a_folder_that_is_read_only(case: Case, small_disk: Path) -> None:
    kind, body, options = case
    with create_dataset(small_disk / "set", body, kind, **options) as writer:
        record(writer, 0, body)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for path, resume in ((small_disk / "set", True), (small_disk / "new", False)):
        with pytest.raises(RecordingError, match="Read-only file system") as caught:
            create_dataset(path, body, kind, resume=resume, **options)
        assert str(path) in str(caught.value) and "may be written" in caught.value.remedy
    check_saved(small_disk / "set", case, 1)


def test_a_folder_without_permission(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, body, options = case

    def fail(operation: str, where: Path) -> None:
        raise PermissionError(errno.EACCES, "denied", str(where))

    monkeypatch.setattr(atomic, "hook", fail)
    with pytest.raises(RecordingError, match="Permission denied") as caught:
        create_dataset(tmp_path / "set", body, kind, **options)
    assert "may be written" in caught.value.remedy


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordingError, match=r"file.*Not a directory|file.*File exists"):
        create_dataset(tmp_path / "file" / "set", ARM)


# ---- other errors in the middle ----------------------------------------------------------------------------
@pytest.mark.parametrize("body", [ARM, LARGE], ids=["small", "threads"])
def test_an_encoder_that_fails(body: Embodiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case: Case = ("lerobot", body, {})
    path = tmp_path / "set"
    with create_dataset(path, body) as writer:
        record(writer, 0, body)
        with monkeypatch.context() as patch:
            patch.setattr(video_module.VideoEncoder, "_mux", lambda self, packets: 1 / 0)
            with pytest.raises(RecordingError, match="ZeroDivisionError"):
                record(writer, 1, body)
        writer.discard()
        record(writer, 1, body)
        with monkeypatch.context() as patch:  # a frame that gets lost is found out, and nothing is saved
            patch.setattr(video_module.VideoEncoder, "_mux", lambda self, packets: None)
            with pytest.raises(RecordingError, match="0 frames for"):
                record(writer, 2, body)
    assert check_saved(path, case, 2) == 2


def test_ctrl_c_while_saving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interruption the writer knows again what is on disk."""
    operations = count_operations(folder / "one", CASES["lerobot"], monkeypatch, 1)
    for at in range(1, len(operations), 3):
        path = folder / f"{at}"
        writer = create_dataset(path, ARM)
        left = at

        def interrupt(operation: str, where: Path) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(atomic, "hook", interrupt)
            try:
                record(writer, 0)
            except KeyboardInterrupt:
                with pytest.raises(RecordingError):
                    writer.save()
        writer.discard()
        found = check_saved(path, CASES["lerobot"], 0)
        assert record(writer, found) == found
        writer.close()
        assert check_saved(path, CASES["lerobot"], found + 1) == found + 1
