"""The decode-once cache: the same pictures, never a stale or damaged one, and a killed build goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_examples import SHARED
from test_data_loading import ARM, LENGTHS, example, make_dataset

from vla_agents.data import Pictures, WindowDataset, open_dataset
from vla_agents.data.cache import build as cache_build
from vla_agents.data.cache import files as cache_files
from vla_agents.data.cache.cache import cached_frames, default_folder
from vla_agents.data.cache.files import CachedFrames, verify_cache
from vla_agents.data.video.frames import frames_of, resize_all
from vla_agents.errors import ConfigError, DatasetError

CAMERAS = ARM.camera_names


def make(reader: Any, folder: Path, **options: Any) -> dict[str, Any]:
    return cached_frames(reader, reader.embodiment.camera_names, reader.columns(), folder=folder, **options)


def contents(reader: Any) -> dict[str, np.ndarray]:
    return {n: np.concatenate([reader.read(k).images[n] for k in range(len(reader))]) for n in CAMERAS}


def only_folder(root: Path) -> Path:
    (found,) = (path for path in root.iterdir() if path.is_dir())
    return found


@pytest.mark.parametrize("kind", ["lerobot", "hdf5"])
@pytest.mark.parametrize("size", [None, (16, 24)])
def test_raw_pictures_are_the_same_to_the_bit(tmp_path: Path, kind: str, size: Any) -> None:
    reader, _ = example(kind)
    found = make(reader, tmp_path, size=size, format="raw")
    rng = np.random.default_rng(0)
    for name, frames in contents(reader).items():
        expected = frames if size is None else resize_all(frames, size)
        assert found[name].shape == expected.shape
        for rows in (np.arange(18), rng.permutation(18), rng.integers(0, 18, (3, 2)), np.array(4)):
            assert np.array_equal(found[name][rows], expected[rows])
    data = WindowDataset(
        reader, 3, history=2, pictures=Pictures("cache", size, folder=tmp_path, format="raw")
    )
    straight = WindowDataset(reader, 3, history=2, pictures=Pictures("files", size))
    ours, theirs = data.get_batch(np.arange(18)), straight.get_batch(np.arange(18))
    assert all(np.array_equal(ours["images"][n], theirs["images"][n]) for n in CAMERAS)
    assert data.embodiment == straight.embodiment


def test_datasets_of_stills(tmp_path: Path) -> None:
    path = SHARED / "lerobot_datasets" / "v30_main_image"
    if not path.exists():
        pytest.skip("the example is not here")
    reader = open_dataset(path)
    names = reader.embodiment.camera_names
    for name, frames in cached_frames(reader, names, reader.columns(), folder=tmp_path).items():
        assert np.array_equal(frames[np.arange(9)], reader.read(0).images[name][:9])


def test_jpeg_is_near_and_small(tmp_path: Path) -> None:
    reader, _ = example()
    found = make(reader, tmp_path, format="jpeg")
    for name, frames in contents(reader).items():
        shown = found[name][np.arange(18)]
        assert np.abs(shown.astype(int) - frames).mean() < 2.5
        assert not np.array_equal(shown, frames)
    sizes = [file.stat().st_size for file in only_folder(tmp_path).glob("*.bin")]
    assert sum(sizes) < 0.5 * sum(frames.nbytes for frames in contents(reader).values())


def test_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, _ = example()
    make(reader, tmp_path, format="raw")
    before = {file: file.stat().st_mtime_ns for file in only_folder(tmp_path).iterdir()}
    monkeypatch.setattr(cache_build.Builder, "build", lambda *_: pytest.fail("built again"))
    make(open_dataset(reader.path), tmp_path, format="raw")
    make(reader, tmp_path, format="auto")  # the one that is there
    assert before == {file: file.stat().st_mtime_ns for file in only_folder(tmp_path).iterdir()}
    assert verify_cache(only_folder(tmp_path)) == 2 * sum(LENGTHS)


def test_other_settings_have_a_cache_of_their_own(tmp_path: Path) -> None:
    reader, _ = example()
    for options in ({"format": "raw"}, {"format": "jpeg"}, {"format": "raw", "size": (16, 16)}):
        make(reader, tmp_path, **options)
    cached_frames(reader, ["wrist"], reader.columns(), folder=tmp_path, format="raw")
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 4


def test_a_dataset_that_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "set"
    reader = make_dataset(path, kind="hdf5")
    make(reader, tmp_path / "cache", format="raw")
    shutil.rmtree(path)
    reader = make_dataset(path, kind="hdf5", seed=5)  # as many episodes of the same lengths
    with pytest.raises(DatasetError, match="the dataset has changed since"):
        make(reader, tmp_path / "cache", format="raw", stale="refuse")
    found = make(reader, tmp_path / "cache", format="raw")
    assert "anew: the dataset has changed since" in caplog.text
    assert np.array_equal(found["front"][np.arange(18)], contents(reader)["front"])
    os.utime(next(path.glob("*.hdf5")))  # touched: perhaps changed
    with pytest.raises(DatasetError, match="the dataset has changed since"):
        make(reader, tmp_path / "cache", format="raw", stale="refuse")


def test_a_reader_that_turns_pictures(tmp_path: Path) -> None:
    """No file changes, and the pictures do."""

    class Turned:
        def __init__(self, reader: Any) -> None:
            self._reader = reader

        def __getattr__(self, name: str) -> Any:
            if name in ("frames", "videos"):
                raise AttributeError(name)
            return getattr(self._reader, name)

        def read(self, index: int) -> Any:
            episode = self._reader.read(index)
            return replace(episode, images={n: x[:, ::-1, ::-1] for n, x in episode.images.items()})

    reader, _ = example("hdf5")
    straight, turned = (make(each, tmp_path, format="raw")["front"] for each in (reader, Turned(reader)))
    for row in (0, 9):
        assert np.array_equal(turned[np.array(row)], contents(reader)["front"][row, ::-1, ::-1])
    assert np.array_equal(straight[np.array(9)], contents(reader)["front"][9])  # its file is still open


@pytest.mark.parametrize("damage", ["short", "missing", "table", "manifest"])
def test_a_truncated_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    reader, _ = example()
    make(reader, tmp_path, format="raw")
    folder = only_folder(tmp_path)
    file = (
        folder
        / {"short": "front.bin", "missing": "front.bin", "table": "wrist.npy", "manifest": "cache.json"}[
            damage
        ]
    )
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-10])
    with pytest.raises(DatasetError, match="cannot be used"):
        make(reader, tmp_path, format="raw", stale="refuse")
    assert np.array_equal(
        make(reader, tmp_path, format="raw")["front"][np.arange(18)], contents(reader)["front"]
    )
    assert file.read_bytes() == content


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_damage_while_it_is_read_is_an_error(tmp_path: Path, format: str) -> None:
    reader, _ = example()
    found = make(reader, tmp_path, format=format)
    file = only_folder(tmp_path) / "front.bin"
    content = file.read_bytes()
    os.truncate(file, len(content) - 300)
    with pytest.raises(DatasetError, match=r"front\.bin: the cache is damaged at byte"):
        found["front"][np.array([17])]
    with pytest.raises(DatasetError, match="cut short"):
        verify_cache(file.parent)
    file.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(DatasetError, match="checksum"):
        verify_cache(file.parent)
    with pytest.raises(DatasetError, match="no cache there"):
        verify_cache(tmp_path)


def _build_and_die(path: str, folder: str, blocks: int) -> None:
    """In a process of its own, which ends like after `kill -9` when so many blocks have been written."""
    cache_build._BLOCK, cache_build._SYNC = 2, 1
    append = cache_build.Journal.append
    written = 0

    def append_or_die(self: Any, pictures: Any) -> None:
        nonlocal written
        if written == blocks:
            self._files["front"].write(b"half a block")
            self._files["front"].flush()
            os._exit(9)
        append(self, pictures)
        written += 1

    cache_build.Journal.append = append_or_die  # type: ignore[method-assign]
    make(open_dataset(path), Path(folder), format="jpeg")


def test_a_killed_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it had written twice or half is as if it had not been; what was complete is not decoded again."""
    reader, _ = example()
    whole = make(reader, tmp_path / "whole", format="jpeg")
    context = multiprocessing.get_context("fork")
    for blocks in (0, 1, 4):
        child = context.Process(
            target=_build_and_die, args=(str(reader.path), str(tmp_path / "cache"), blocks)
        )
        child.start()
        child.join(60)
        assert child.exitcode == 9
    assert only_folder(tmp_path / "cache").name.endswith(".building")
    monkeypatch.setattr(cache_build, "_BLOCK", 2)
    decoded = []
    encoded = cache_build.Builder._encoded
    monkeypatch.setattr(
        cache_build.Builder,
        "_encoded",
        lambda self, block, format: decoded.append(block) or encoded(self, block, format),
    )
    found = make(reader, tmp_path / "cache", format="jpeg")
    assert len([block for block in decoded if block[1] - block[0] == 2]) < 7  # 5 of the 10 blocks were there
    for name in CAMERAS:
        assert np.array_equal(found[name][np.arange(18)], whole[name][np.arange(18)])
    folder = only_folder(tmp_path / "cache")
    assert not folder.name.endswith(".building") and verify_cache(folder) == 36
    assert sorted(p.name for p in folder.iterdir()) == [
        "cache.json",
        "front.bin",
        "front.npy",
        "wrist.bin",
        "wrist.npy",
    ]


def test_an_interrupted_build_of_another_state_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "set"
    reader = make_dataset(path, kind="hdf5")
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_build_and_die, args=(str(path), str(tmp_path / "cache"), 3))
    child.start()
    child.join(60)
    shutil.rmtree(path)
    reader = make_dataset(path, kind="hdf5", seed=5)
    found = make(reader, tmp_path / "cache", format="jpeg")
    assert np.abs(found["front"][np.arange(18)].astype(int) - contents(reader)["front"]).mean() < 2.5


def test_a_note_cut_short_or_ahead_of_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut: the last note is half, or says more than the files hold."""
    reader, _ = example()
    monkeypatch.setattr(cache_build, "_BLOCK", 2)
    for harm in ("note", "pictures"):
        folder = tmp_path / harm
        child = multiprocessing.get_context("fork").Process(
            target=_build_and_die, args=(str(reader.path), str(folder), 4)
        )
        child.start()
        child.join(60)
        building = only_folder(folder)
        if harm == "note":
            text = (building / "journal").read_text()
            (building / "journal").write_text(text[:-9])
        else:
            os.truncate(building / "wrist.bin", (building / "wrist.bin").stat().st_size - 20)
        found = make(reader, folder, format="jpeg")
        whole = make(reader, tmp_path / "whole", format="jpeg")
        for name in CAMERAS:
            assert np.array_equal(found[name][np.arange(18)], whole[name][np.arange(18)])
        assert verify_cache(only_folder(folder)) == 36


def test_what_is_told_beforehand_and_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader, _ = example()
    raw = sum(LENGTHS) * 32 * (48 + 32) * 3
    caplog.set_level("INFO")
    disk = shutil.disk_usage(tmp_path)

    def with_free(number: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: replace_free(disk, int(number)))

    with_free(0.5 * raw)
    with pytest.raises(ConfigError, match=r"(?s)would take 0\.1 MB as raw, .*--cache off"):
        make(reader, tmp_path, format="raw")
    with_free(1000)
    with pytest.raises(ConfigError, match="as jpeg"):
        make(reader, tmp_path, format="auto")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    with_free(3.9 * raw)
    assert all(f._format == "jpeg" for f in make(reader, tmp_path / "a", format="auto").values())
    assert "Caching 18 x 2 pictures as jpeg: 0.0 MB" in caplog.text
    with_free(4.1 * raw)
    assert all(f._format == "raw" for f in make(reader, tmp_path / "b", format="auto").values())
    for bad in ({"format": "png"}, {"stale": "ignore"}):
        with pytest.raises(ConfigError, match="auto, raw or jpeg"):
            make(reader, tmp_path, **bad)
    with pytest.raises(ConfigError, match="'memory', 'files' or 'cache'"):
        Pictures("disk")  # type: ignore[arg-type]


def replace_free(disk: Any, free: int) -> Any:
    return disk._replace(free=free)


def test_the_size_of_jpegs_is_guessed_well() -> None:
    reader, _ = example()
    frames = frames_of(reader, CAMERAS, reader.columns())
    builder = cache_build.Builder(reader.lengths(), {"front": (32, 48), "wrist": (32, 32)}, frames, 1)
    true = sum(
        len(cache_files.encode(image, "jpeg")) for images in contents(reader).values() for image in images
    )
    assert true <= builder.size("jpeg") < 1.25 * true
    assert builder.size("raw") == sum(images.nbytes for images in contents(reader).values())


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, _ = example()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"(?s)cannot be written: .*--cache PATH"):
        make(reader, tmp_path / "file", format="raw")

    def full(self: Any, pictures: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_build.Journal, "append", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        make(reader, tmp_path / "cache", format="raw")


def _make_there(path: str, folder: str, out: Any) -> None:
    try:
        frames = make(open_dataset(path), Path(folder), format="raw")
        out.put(frames["front"][np.arange(18)].tobytes())
    except BaseException as error:
        out.put(repr(error))


def test_several_processes_at_once_make_it_once(tmp_path: Path) -> None:
    """As the ranks of a distributed run do."""
    reader, _ = example()
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    children = [
        context.Process(target=_make_there, args=(str(reader.path), str(tmp_path), out)) for _ in range(3)
    ]
    for child in children:
        child.start()
    expected = contents(reader)["front"].tobytes()
    assert all(out.get(timeout=120) == expected for _ in children)
    for child in children:
        child.join(60)


def test_sent_to_another_process_it_is_small(tmp_path: Path) -> None:
    reader, _ = example()
    frames = make(reader, tmp_path, format="raw")["front"]
    packed = pickle.dumps(frames)
    assert len(packed) < 1000
    again = pickle.loads(packed)
    assert isinstance(again, CachedFrames) and again.shape == frames.shape
    assert np.array_equal(again[np.array([3])], frames[np.array([3])])


def test_where_caches_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.delenv("VLA_AGENTS_CACHE", raising=False)
    assert default_folder() == tmp_path / "x" / "vla_agents" / "frames"
    monkeypatch.setenv("VLA_AGENTS_CACHE", str(tmp_path / "y"))
    assert default_folder() == tmp_path / "y"
    reader, _ = example()
    WindowDataset(reader, 2, pictures=Pictures("cache", (8, 8)))
    assert json.loads((only_folder(tmp_path / "y") / "cache.json").read_text())["settings"]["format"] == "raw"


def test_names_of_cameras_cannot_lead_elsewhere() -> None:
    assert cache_files.camera_file("wrist_left-2") == "wrist_left-2.bin"
    for name in ("../x", "a/b", "a.b", "", "bild\u00e9"):
        assert "/" not in cache_files.camera_file(name) and cache_files.camera_file(name).isascii()
    assert len({cache_files.camera_file(n) for n in ("a", "a.b", "a/b", "ab")}) == 4


def test_a_set_of_one_step_episodes_and_rate(tmp_path: Path) -> None:
    """Together with resampling: rows of the cache are those of the dataset."""
    reader = make_dataset(tmp_path / "set", replace(ARM, control_hz=10.0))
    data = WindowDataset(reader, 2, fps=5.0, pictures=Pictures("cache", folder=tmp_path / "cache"))
    files = WindowDataset(reader, 2, fps=5.0, pictures=Pictures("files"))
    everything = np.arange(len(data))
    assert np.array_equal(
        data.get_batch(everything)["images"]["front"], files.get_batch(everything)["images"]["front"]
    )
