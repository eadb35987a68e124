"""Every format to every other and back: each number, each pixel, each fact about an episode."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_sets as foreign
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_examples import ARM, SHARED, check_as_lerobot, check_by_lerobot, record
from test_data_lerobot import code, decode_code
from test_data_lerobot import foreign as foreign_lerobot

from vla_agents.data import Episode, EpisodeReader, create_dataset, open_dataset
from vla_agents.data.check import check_dataset
from vla_agents.data.convert.convert import by_task, convert, fractions, losses, merge, split
from vla_agents.data.convert.targets import TARGETS, TargetOptions, format_of
from vla_agents.data.subset import SubsetReader
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import (
    ConfigError,
    DatasetError,
    DatasetExistsError,
    EmbodimentMismatchError,
    UnknownNameError,
)

LOSSLESS = TargetOptions(video_quality="lossless")
FIELDS = ("action", "state", "executed", "commanded", "reward", "terminated", "truncated", "intervened")
FIELDS += ("repeated", "time")


def recorded(path: Path, kind: str = "hdf5") -> Path:
    with create_dataset(path, ARM, kind, durable=False) as writer:
        for k in range(4):
            record(writer, k, executed=k == 1, commanded=k == 2)
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {
    "hdf5": lambda p: recorded(p / "set"),
    "lerobot": lambda p: recorded(p / "set", "lerobot"),
    "lerobot-images": lambda p: foreign_lerobot(p / "set", images="image"),
    "aloha": lambda p: foreign.aloha(p / "set", mobile=True),
    "robomimic": lambda p: foreign.robomimic(p / "set.hdf5"),
    "libero": lambda p: foreign.libero(p / "set"),
    "groups": lambda p: foreign.groups(p / "set.hdf5"),
}


def place(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}{TARGETS[kind][1]}"


def assert_same(ours: Episode, theirs: Episode, *, body: bool = True) -> None:
    """All but pictures and metadata."""
    for name in FIELDS:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and np.array_equal(a, b)), name
    assert (ours.instruction, ours.success, ours.tasks) == (theirs.instruction, theirs.success, theirs.tasks)
    extras = [{k.replace("/", "."): v for k, v in e.extras.items()} for e in (ours, theirs)]
    assert set(extras[0]) == set(extras[1])
    for name, values in extras[0].items():
        assert values.dtype == extras[1][name].dtype and np.array_equal(values, extras[1][name]), name
    if body:
        assert ours.embodiment == theirs.embodiment


def assert_same_pictures(ours: Episode, theirs: Episode) -> None:
    assert set(ours.images) == set(theirs.images)
    for name, frames in ours.images.items():
        assert np.array_equal(frames, theirs.images[name]), name


def assert_alike(made: EpisodeReader, source: EpisodeReader) -> None:
    assert made.lengths().tolist() == source.lengths().tolist()
    assert made.instructions() == source.instructions() and made.successes() == source.successes()
    assert made.embodiment == source.embodiment
    for k in range(len(source)):
        ours, theirs = made.read(k), source.read(k)
        assert_same(ours, theirs)
        assert_same_pictures(ours, theirs)


# Each source and each target at least once; the rest takes half a minute.
QUICK = {
    ("hdf5", "robomimic"), ("hdf5", "lerobot-v3.0"), ("lerobot", "libero"), ("lerobot-images", "lerobot-v2.1"),
    ("aloha", "groups"), ("robomimic", "lerobot-v2.0"), ("libero", "aloha"), ("groups", "hdf5"), ("libero", "robomimic"),
}  # fmt: skip
PAIRS = [
    pytest.param(name, kind, marks=() if (name, kind) in QUICK else pytest.mark.slow, id=f"{name}-{kind}")
    for name in SOURCES
    for kind in TARGETS
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_there_and_back(name: str, kind: str, tmp_path: Path) -> None:
    source = open_dataset(SOURCES[name](tmp_path))
    if kind == "aloha" and not source.embodiment.state:
        pytest.skip("ALOHA's files need a state")
    there = place(tmp_path, "there", kind)
    report = convert(source, there, kind, LOSSLESS)
    made = open_dataset(there)
    assert format_of(made) == kind and report.episodes == len(source) and not report.skipped
    assert_alike(made, source)
    for k in range(len(source)):
        kept = dict(source.read(k, images=False).metadata)
        assert kept.items() <= made.read(k, images=False).metadata.items() or kind in ("robomimic", "libero")
    again = format_of(source)
    back = place(tmp_path, "back", again)
    convert(made, back, again, LOSSLESS)
    assert format_of(open_dataset(back)) == again
    assert_alike(open_dataset(back), source)
    if kind == "lerobot-v3.0":
        check_by_lerobot(there)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        {"set" + TARGETS[again][1], there.name, back.name}
    )


def test_text_for_each_step(tmp_path: Path) -> None:
    """A column of text comes back from every format, as text."""
    path = foreign_lerobot(tmp_path / "set", images="image")
    file = path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    notes = ["", "grün", "取る"] * table.num_rows
    pq.write_table(table.append_column("note", pa.array(notes[: table.num_rows])), file)
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["note"] = {"dtype": "string", "shape": [1], "names": None}
    (path / "meta/info.json").write_text(json.dumps(info))
    source = open_dataset(path)
    assert source.columns()["note"].tolist() == notes[: table.num_rows]
    assert source.read(0).extras["note"][:3].tolist() == ["", "grün", "取る"]
    for kind in TARGETS:
        there, back = place(tmp_path, f"there-{kind}", kind), tmp_path / f"back-{kind}"
        convert(source, there, kind, LOSSLESS)
        assert_alike(open_dataset(there), source)
        convert(open_dataset(there), back, "lerobot-v3.0", LOSSLESS)
        assert_alike(open_dataset(back), source)
        made = json.loads((back / "meta/info.json").read_text())
        assert made["features"]["note"] == info["features"]["note"]


def test_cameras_with_names_of_all_kinds(tmp_path: Path) -> None:
    """LeRobot refuses "/" alone."""
    cameras = tuple(Camera(name, 32, 32) for name in ("Cam 1", "käfer", "left.wrist-2"))
    body = dataclasses.replace(ARM, cameras=cameras)
    with create_dataset(tmp_path / "set", body, "lerobot", durable=False) as writer:
        record(writer, 0, body)
    source = open_dataset(tmp_path / "set")
    assert source.embodiment.camera_names == ("Cam 1", "käfer", "left.wrist-2")
    convert(source, tmp_path / "hdf5", "hdf5")
    convert(open_dataset(tmp_path / "hdf5"), tmp_path / "back", "lerobot", LOSSLESS)
    assert_alike(open_dataset(tmp_path / "back"), source)
    for name in ("a/b", "..", ".hidden", "a\\b", "a\nb", "a\0b"):
        with pytest.raises(ConfigError, match="cannot be part of a file name"):
            create_dataset(tmp_path / "bad", dataclasses.replace(ARM, cameras=(Camera(name, 32, 32),)))


# ---- LeRobot to LeRobot ------------------------------------------------------------------------------------
@pytest.mark.parametrize("images", ["h264", "av1", "image"])
def test_lerobot_versions_without_a_loss(images: str, tmp_path: Path) -> None:
    """Several episodes in one video with key frames far apart, tasks that change inside: all comes back."""
    source = open_dataset(foreign_lerobot(tmp_path / "set", images=images))
    frames = [source.read(k).images["top"] for k in range(4)]
    before = source.path
    for step, kind in enumerate(("lerobot-v2.1", "lerobot-v3.0", "lerobot-v2.0", "lerobot-v2.1")):
        path = tmp_path / f"step{step}"
        reader = open_dataset(before)
        # The key frames of the source lie elsewhere than the episodes: the first copy cannot be a cut.
        report = convert(reader, path, kind)
        cut = images != "image" and step == 0
        assert ("videos encoded anew, because they could not be cut without a loss" in report.done) == cut
        made = open_dataset(path)
        assert format_of(made) == kind and made.embodiment == source.embodiment
        for k in range(4):
            assert_same(made.read(k), reader.read(k))
            now = made.read(k).images["top"]
            assert [decode_code(image) for image in now] == [decode_code(image) for image in frames[k]]
            if not cut:
                assert_same_pictures(made.read(k), reader.read(k))
        assert made.info.features.keys() == source.info.features.keys()
        before = path


@pytest.mark.parametrize("name", ["v20_from_v21", "v21_033_image", "v30_main_h264"])
def test_datasets_of_lerobot_change_version(name: str, tmp_path: Path) -> None:
    path = SHARED / "lerobot_datasets" / name
    if not path.exists():
        pytest.skip("../shared/lerobot_datasets is not there")
    source = open_dataset(path)
    for kind in ("lerobot-v3.0", "lerobot-v2.1", "lerobot-v2.0"):
        report = convert(source, tmp_path / kind, kind)
        made = open_dataset(tmp_path / kind)
        assert_alike(made, source)
        assert made.info.features == source.info.features
        assert set(report.done) <= {"videos copied without a loss"}
        if kind == "lerobot-v3.0":
            assert check_as_lerobot(tmp_path / kind) == 3
        for key, values in source.columns().items():
            assert np.array_equal(made.columns()[key], values), key


def test_v21_files_are_as_lerobot_has_them(tmp_path: Path) -> None:
    path = SHARED / "lerobot_datasets" / "v21_033_image"
    if not path.exists():
        pytest.skip("../shared/lerobot_datasets is not there")
    convert(open_dataset(path), tmp_path / "v3", "lerobot")
    convert(open_dataset(tmp_path / "v3"), tmp_path / "v2", "lerobot-v2.1")
    names = [
        {p.relative_to(r).as_posix() for p in r.rglob("*") if p.is_file()} for r in (path, tmp_path / "v2")
    ]
    assert names[0] == names[1]
    for name in ("meta/info.json",):
        ours, theirs = (json.loads((r / name).read_text()) for r in (tmp_path / "v2", path))
        assert ours == theirs
    for name in ("meta/tasks.jsonl", "meta/episodes.jsonl", "meta/episodes_stats.jsonl"):
        ours, theirs = (
            [json.loads(line) for line in (r / name).read_text().splitlines()]
            for r in (tmp_path / "v2", path)
        )
        if "stats" in name:
            for a, b in zip(ours, theirs, strict=True):
                for key in ("action", "observation.state", "observation.images.front", "next.reward"):
                    for which in ("min", "max", "mean", "std"):
                        mine, real = (np.array(x["stats"][key][which], np.float64) for x in (a, b))
                        assert mine.shape == real.shape and np.allclose(mine, real, atol=1e-6), (key, which)
        else:
            assert ours == theirs
    file = "data/chunk-000/episode_000001.parquet"
    ours, theirs = pq.read_table(tmp_path / "v2" / file), pq.read_table(path / file)
    assert ours.column_names == theirs.column_names and ours.schema.types == theirs.schema.types
    assert ours.drop_columns([c for c in ours.column_names if "images" in c]).equals(
        theirs.drop_columns([c for c in ours.column_names if "images" in c])
    )
    features = [json.loads(t.schema.metadata[b"huggingface"])["info"]["features"] for t in (ours, theirs)]
    assert features[0] == features[1]


def test_video_quality_and_codec(tmp_path: Path) -> None:
    source = open_dataset(recorded(tmp_path / "set"))
    lines = losses(source, "lerobot")
    assert lines == [
        'pictures: h264 video with crf 18 is near the original, not equal ("lossless" keeps them)'
    ]
    assert losses(source, "lerobot", LOSSLESS) == [] == losses(source, "hdf5") == losses(source, "robomimic")
    sizes, errors = [], []
    for quality in (5, 18, 40):
        report = convert(source, tmp_path / f"q{quality}", "lerobot", TargetOptions(video_quality=quality))
        near = open_dataset(tmp_path / f"q{quality}").read(3).images["front"].astype(int)
        sizes.append(sum(p.stat().st_size for p in (tmp_path / f"q{quality}/videos").rglob("*.mp4")))
        errors.append(np.abs(near - source.read(3).images["front"]).mean())
        assert report.done == {"videos encoded": 8}
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors) and errors[1] < 2
    convert(open_dataset(tmp_path / "q18"), tmp_path / "again", "lerobot-v2.1")
    assert_same_pictures(open_dataset(tmp_path / "again").read(1), open_dataset(tmp_path / "q18").read(1))
    convert(source, tmp_path / "av1", "lerobot", TargetOptions(codec="av1"))
    info = open_dataset(tmp_path / "av1").info
    assert info.features["observation.images.front"]["info"]["video.codec"] == "av1"
    for bad in ({"video_quality": 60}, {"video_quality": "good"}, {"compression": "zip"}):
        with pytest.raises((ConfigError, UnknownNameError)):
            TargetOptions(**bad)


def test_what_is_lost_is_said_before(tmp_path: Path) -> None:
    source = open_dataset(foreign.robomimic(tmp_path / "set.hdf5"))
    assert losses(source, "robomimic") == []
    lines = losses(source, "hdf5")
    assert any("actions: float64 in the files, float32 in an episode" in line for line in lines)
    assert any("crf 18" in line for line in losses(source, "lerobot"))
    with h5py.File(tmp_path / "set.hdf5", "a") as file:
        file["data/demo_0"].attrs["model_file"] = "x" * 40_000
    lines = losses(open_dataset(tmp_path / "set.hdf5"), "lerobot", LOSSLESS)
    assert any("model_file, too large" in line for line in lines)
    report = convert(open_dataset(tmp_path / "set.hdf5"), tmp_path / "out", "lerobot", LOSSLESS)
    assert report.lost == lines
    attributes = open_dataset(tmp_path / "out").read(0, images=False).metadata["attributes"]
    assert "model_file" not in attributes and attributes["num_samples"] == 5
    quantiles = losses(open_dataset(tmp_path / "out"), "lerobot-v2.1", LOSSLESS)
    assert quantiles == ["statistics: quantiles of each episode (v2.1 has none)"]


def test_rates_that_lerobot_cannot_hold(tmp_path: Path) -> None:
    slow = dataclasses.replace(ARM, control_hz=12.5)
    with create_dataset(tmp_path / "set", slow, "hdf5", durable=False) as writer:
        record(writer, 0, slow)
    source = open_dataset(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"whole number.*12\.5"):
        convert(source, tmp_path / "out", "lerobot")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    options = TargetOptions(fps=12)
    assert any("12.5 Hz is called 12" in line for line in losses(source, "lerobot", options))
    convert(source, tmp_path / "out", "lerobot", options)
    there = open_dataset(tmp_path / "out")
    assert np.array_equal(there.read(0).time, source.read(0).time)
    assert there.fps == 12 and there.embodiment.control_hz == 12.5  # 12 is only LeRobot's word for it


RATES = [("lerobot", "lerobot"), ("hdf5", "lerobot-v2.1"), ("lerobot", "aloha")]
RATES += [("lerobot-images", kind) for kind in ("lerobot-v2.1", "hdf5", "robomimic")]


@pytest.mark.parametrize(("source", "kind"), RATES)
def test_another_nominal_rate(tmp_path: Path, source: str, kind: str) -> None:
    old = open_dataset(SOURCES[source](tmp_path))
    fps = 7 if old.fps != 7 else 8  # no multiple
    assert f"rate: {old.fps:g} Hz is called {fps}" in "".join(losses(old, kind, TargetOptions(fps=fps)))
    out = tmp_path / "out.file"  # a file is known by its content, not by its suffix
    convert(old, out, kind, TargetOptions(fps=fps))
    new = open_dataset(out)
    assert new.fps == new.embodiment.control_hz == fps
    for k in range(len(old)):
        ours, theirs = new.read(k), old.read(k)
        stored = source != "lerobot-images"  # else there are no times but the nominal ones
        assert np.allclose(ours.time, theirs.time if stored else theirs.time * old.fps / fps, atol=1e-6)
        assert np.array_equal(ours.action, theirs.action)
        for camera in theirs.images if "lerobot" in source or "lerobot" not in kind else ():
            assert np.array_equal(ours.images[camera], theirs.images[camera])
    if "lerobot" in kind:
        stamps = new.columns(["timestamp", "frame_index"])
        assert np.allclose(stamps["timestamp"], stamps["frame_index"] / fps, atol=1e-6)
        found = check_dataset(new, images="all").findings
        assert not [f for f in found if f.severity == "error"], found
        text = (out / "meta/info.json").read_text()
        assert f'"video.fps": {old.fps:g}' not in text


# ---- what other programs see -------------------------------------------------------------------------------
def test_robomimic_files_hold_what_robomimic_reads(tmp_path: Path) -> None:
    source = open_dataset(recorded(tmp_path / "set"))
    convert(source, tmp_path / "out.hdf5", "robomimic")
    with h5py.File(tmp_path / "out.hdf5", "r", swmr=True, libver="latest") as file:
        assert json.loads(file["data"].attrs["env_args"])["env_kwargs"]["control_freq"] == 20
        assert file["data"].attrs["total"] == source.lengths().sum() and len(file["data"]) == 4
        for k in range(4):
            demo, episode = file[f"data/demo_{k}"], source.read(k)
            assert demo.attrs["num_samples"] == len(episode)
            assert np.array_equal(demo["actions"], episode.action)
            assert np.array_equal(demo["obs/position"], episode.state[:, :3])
            assert np.array_equal(demo["obs/front_image"], episode.images["front"])
            for key in demo["obs"]:
                assert np.array_equal(demo["next_obs"][key][:-1], demo["obs"][key][1:])
                assert np.array_equal(demo["next_obs"][key][-1], demo["obs"][key][-1])
            assert np.array_equal(demo["dones"], episode.terminated | episode.truncated)
            assert np.array_equal(demo["rewards"], episode.reward)


def test_libero_files_hold_what_libero_reads(tmp_path: Path) -> None:
    source = open_dataset(foreign.libero(tmp_path / "set"))
    convert(source, tmp_path / "between", "hdf5")
    convert(open_dataset(tmp_path / "between"), tmp_path / "out", "libero")
    files = sorted((tmp_path / "out").iterdir())
    assert [f.name for f in files] == sorted(f.name for f in (tmp_path / "set").iterdir())
    for file in files:
        with h5py.File(file) as ours, h5py.File(tmp_path / "set" / file.name) as theirs:
            assert set(theirs["data"].attrs) == set(ours["data"].attrs)
            for name in theirs["data"].attrs:
                assert ours["data"].attrs[name] == theirs["data"].attrs[name], name
            for demo in theirs["data"]:
                for name in theirs[f"data/{demo}/obs"]:
                    a, b = ours[f"data/{demo}/obs/{name}"][()], theirs[f"data/{demo}/obs/{name}"][()]
                    assert np.array_equal(a, b.astype(a.dtype)) and a.shape == b.shape, (
                        name
                    )  # upside down again
                for name in ("states", "robot_states", "dones", "rewards"):
                    assert np.array_equal(ours[f"data/{demo}/{name}"], theirs[f"data/{demo}/{name}"])


def test_demos_of_the_same_kind_keep_their_precision(tmp_path: Path) -> None:
    for name, kind in (("robomimic", "robomimic"), ("libero", "libero")):
        path = SOURCES[name](tmp_path / name)
        out = place(tmp_path, f"out_{name}", kind)
        convert(open_dataset(path), out, kind)
        pairs = [(path, out)] if path.is_file() else [(f, out / f.name) for f in path.iterdir()]
        for theirs_file, ours_file in pairs:
            with h5py.File(theirs_file) as theirs, h5py.File(ours_file) as ours:
                for k, demo in enumerate(sorted(theirs["data"], key=lambda n: int(n.split("_")[1]))):
                    a, b = theirs[f"data/{demo}"], ours[f"data/demo_{k}"]
                    assert a["actions"].dtype == np.float64 == b["actions"].dtype
                    assert np.array_equal(a["actions"], b["actions"])
                    for group in ("obs", "next_obs") if kind == "robomimic" else ("obs",):
                        for key in a[group]:
                            assert np.array_equal(a[group][key], b[group][key])
                    for attribute in a.attrs:
                        assert np.array_equal(a.attrs[attribute], b.attrs[attribute])
                if kind == "robomimic":
                    assert list(ours["mask/train"]) == [b"demo_0", b"demo_2"]
                    assert list(ours["mask/valid"]) == [b"demo_1"]


def test_aloha_files_hold_what_act_reads(tmp_path: Path) -> None:
    source = open_dataset(foreign.aloha(tmp_path / "set", mobile=True))
    convert(source, tmp_path / "between", "lerobot", LOSSLESS)
    convert(open_dataset(tmp_path / "between"), tmp_path / "out", "aloha")
    for k, number in enumerate((0, 5, 10)):
        with (
            h5py.File(tmp_path / f"out/episode_{k}.hdf5") as ours,
            h5py.File(tmp_path / f"set/episode_{number}.hdf5") as theirs,
        ):
            for name in (
                "action",
                "base_action",
                "observations/qpos",
                "observations/qvel",
                "observations/effort",
            ):
                assert np.array_equal(ours[name], theirs[name][()].astype(np.float32)), name
            for camera in theirs["observations/images"]:
                name = f"observations/images/{camera}"
                assert np.array_equal(ours[name], theirs[name])
            assert bool(ours.attrs["sim"]) == bool(theirs.attrs["sim"])
    bare = Embodiment("bare", (Part("a", 2, "other"),))
    with create_dataset(tmp_path / "bare", bare, "hdf5", durable=False) as writer:
        record(writer, 0, bare)
    with pytest.raises(ConfigError, match="need a state"):
        convert(open_dataset(tmp_path / "bare"), tmp_path / "no", "aloha")


# ---- merge and split ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["hdf5", "lerobot", "robomimic"])
def test_merge(kind: str, tmp_path: Path) -> None:
    names = {"hdf5": "hdf5", "lerobot": "lerobot", "robomimic": "robomimic"}
    first, second = (open_dataset(SOURCES[names[kind]](tmp_path / n)) for n in ("a", "b"))
    out = place(tmp_path, "out", format_of(first))
    report = merge([first, second], out)
    made = open_dataset(out)
    assert report.episodes == len(made) == len(first) + len(second) and report.frames == made.lengths().sum()
    for k in range(len(made)):
        source, at = (first, k) if k < len(first) else (second, k - len(first))
        assert_same(made.read(k), source.read(at))
        assert_same_pictures(made.read(k), source.read(at))
    if kind == "lerobot":
        assert check_as_lerobot(out) == 8 and report.done == {"videos copied without a loss": 16}


def test_merge_of_versions_and_other_bodies(tmp_path: Path) -> None:
    first = open_dataset(recorded(tmp_path / "a", "lerobot"))
    convert(first, tmp_path / "b", "lerobot-v2.1")
    report = merge([first, open_dataset(tmp_path / "b")], tmp_path / "out", "lerobot")
    assert report.episodes == 8 and check_as_lerobot(tmp_path / "out") == 8
    third = open_dataset(recorded(tmp_path / "c", "hdf5"))
    merge([first, third], tmp_path / "mixed", "lerobot-v2.1")
    mixed = open_dataset(tmp_path / "mixed")
    for k in range(4):
        assert_same(mixed.read(k), first.read(k))
        assert_same_pictures(mixed.read(k), first.read(k))
        assert_same(mixed.read(k + 4), third.read(k))
    other = dataclasses.replace(ARM, action=(*ARM.action[:2], Part("grip", 1, "gripper_open_pm1")))
    with create_dataset(tmp_path / "d", other, "hdf5", durable=False) as writer:
        record(writer, 0, other)
    with pytest.raises(EmbodimentMismatchError, match="gripper"):
        merge([first, open_dataset(tmp_path / "d")], tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_split(tmp_path: Path) -> None:
    source = open_dataset(recorded(tmp_path / "set", "lerobot"))
    reports = split(source, tmp_path / "out", {"train": [3, 0], "val": [2]})
    assert [r.episodes for r in reports.values()] == [2, 1]
    train = open_dataset(tmp_path / "out" / "train")
    for k, at in enumerate((3, 0)):
        assert_same(train.read(k), source.read(at))
        assert_same_pictures(train.read(k), source.read(at))
    assert check_as_lerobot(tmp_path / "out" / "train") == 2
    tasks = by_task(source)
    assert tasks == {"task_0": [0, 3], "task_1": [1], "task_2": [2]}
    split(source, tmp_path / "tasks", tasks, "robomimic")
    assert len(open_dataset(tmp_path / "tasks" / "task_0.hdf5")) == 2
    for bad in ({}, {"a": []}, {"a": [4]}, {"../a": [0]}):
        with pytest.raises(ConfigError):
            split(source, tmp_path / "no", bad)
    assert not (tmp_path / "no").exists()


def test_fractions() -> None:
    for count, shares in ((10, [0.8, 0.2]), (7, [0.5, 0.25, 0.25]), (3, [0.5])):
        parts = fractions(count, shares, seed=1)
        flat = [k for part in parts for k in part]
        assert len(set(flat)) == len(flat) and (len(flat) == count or sum(shares) < 1)
        assert fractions(count, shares, seed=1) == parts
    assert fractions(5, [0.6, 0.4], seed=None) == [[0, 1, 2], [3, 4]]
    for bad in ([], [0.0], [0.7, 0.7], [-1]):
        with pytest.raises(ConfigError):
            fractions(3, bad)


def test_a_choice_of_episodes_is_a_dataset(tmp_path: Path) -> None:
    source = open_dataset(recorded(tmp_path / "set", "lerobot"))
    some = SubsetReader(source, [2, 0])
    assert some.lengths().tolist() == source.lengths()[[2, 0]].tolist()
    assert some.instructions() == ["task 2", "task 0"] and some.successes() == [None, True]
    assert np.array_equal(some.frames(0, "front", np.array([1])), source.frames(2, "front", np.array([1])))
    assert np.array_equal(np.stack(list(some.stream(1, "wrist"))), source.read(0).images["wrist"])
    assert np.array_equal(some.columns()["action"][: len(source.read(2))], source.read(2).action)


# ---- nothing is overwritten, nothing half is left ------------------------------------------------------------
def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = open_dataset(recorded(tmp_path / "set"))
    (tmp_path / "file").write_text("thesis")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("set", "file", "folder", "link"):
        with pytest.raises(DatasetExistsError, match="nothing is overwritten"):
            convert(source, tmp_path / name, "lerobot")
    with pytest.raises(ConfigError, match="inside the dataset"):
        convert(source, tmp_path / "set" / "inner", "hdf5")
    assert (tmp_path / "file").read_text() == "thesis"


def damage(path: Path, number: int) -> None:
    file = path / f"episode_{number:06d}.hdf5"
    file.write_bytes(file.read_bytes()[:5000])


def test_bad_episodes_stop_or_are_skipped(tmp_path: Path) -> None:
    path = recorded(tmp_path / "set")
    damage(path, 2)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    for kind in TARGETS:
        out = place(tmp_path, f"out-{kind}", kind)
        with pytest.raises(DatasetError, match=r"episode_000002\.hdf5"):
            convert(open_dataset(path), out, kind)
        assert not out.exists() and not list(tmp_path.glob(".*"))
        report = convert(open_dataset(path), out, kind, skip_bad=True)
        assert list(report.skipped) == ["episode 2"] and "HDF5" in report.skipped["episode 2"]
        made = open_dataset(out)
        assert len(made) == report.episodes == 3
        assert_same(made.read(2), open_dataset(path).read(3))
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before
    kept = open_dataset(path, skip_bad=True)
    assert len(kept) == 3 and list(kept.skipped) == ["episode 2"]
    report = convert(kept, tmp_path / "chosen", "hdf5")
    assert report.episodes == 3 and list(report.skipped) == ["episode 2"]
    for k in (0, 1, 3):
        damage(path, k)
    with pytest.raises(DatasetError, match="none of 4 episodes"):
        convert(open_dataset(path), tmp_path / "none", "lerobot", skip_bad=True)
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob(".*"))


def test_a_video_cut_short_is_skipped_while_copying(tmp_path: Path) -> None:
    path = recorded(tmp_path / "set", "lerobot")
    video = path / "videos/observation.images.wrist/chunk-000/file-001.mp4"
    video.write_bytes(video.read_bytes()[:700])
    with pytest.raises(DatasetError, match=r"file-001\.mp4"):
        convert(open_dataset(path), tmp_path / "no", "lerobot-v2.1")
    report = convert(open_dataset(path), tmp_path / "out", "lerobot-v2.1", skip_bad=True)
    assert list(report.skipped) == ["episode 1"] and len(open_dataset(tmp_path / "out")) == 3
    assert len(list((tmp_path / "out").rglob("*.mp4"))) == 6


CHILD = """
import sys, time
from vla_agents.data import open_dataset
from vla_agents.data.convert import convert as module
real = module.target_class("{kind}").add
def slow(self, source, index):
    real(self, source, index)
    print("added", flush=True)
    time.sleep(0.3)
module.target_class("{kind}").add = slow
module.convert(open_dataset("{source}"), "{out}", "{kind}")
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("kind", ["lerobot-v2.1", "robomimic"])
def test_stopped_in_the_middle(kind: str, sent: signal.Signals, tmp_path: Path) -> None:
    path = recorded(tmp_path / "set")
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    out = place(tmp_path, "out", kind)
    program = CHILD.format(kind=kind, source=path, out=out)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert child.stdout is not None and child.stdout.readline() == b"added\n"
    child.send_signal(sent)
    child.wait(30)
    assert child.returncode != 0 and not out.exists()
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before
    left = list(tmp_path.glob(".*"))
    assert len(left) == (1 if sent == signal.SIGKILL else 0)
    convert(open_dataset(path), out, kind)  # and what was left is cleaned away
    assert len(open_dataset(out)) == 4 and not list(tmp_path.glob(".*"))


def test_two_at_once(tmp_path: Path) -> None:
    path = recorded(tmp_path / "set")
    program = CHILD.format(kind="hdf5", source=path, out=tmp_path / "out")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None and child.stdout.readline() == b"added\n"
    with pytest.raises(DatasetExistsError, match="being written by another process"):
        convert(open_dataset(path), tmp_path / "out", "hdf5")
    assert child.wait(30) == 0 and len(open_dataset(tmp_path / "out")) == 4


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vla_agents.data.lerobot import target as lerobot_target
    from vla_agents.errors import RecordingError

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lerobot_target, "write_table", full)
    source = open_dataset(recorded(tmp_path / "set"))
    with pytest.raises(RecordingError, match="No space left"):
        convert(source, tmp_path / "out", "lerobot")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_progress_is_shown_on_a_terminal(tmp_path: Path) -> None:
    import pty

    path = recorded(tmp_path / "set")
    program = (
        "from vla_agents.data import open_dataset; from vla_agents.data.convert.convert import convert;"
        f"convert(open_dataset({str(path)!r}), {str(tmp_path / 'out')!r}, 'hdf5', progress=True)"
    )
    main, other = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", program], stderr=other, env=environment, check=True, timeout=60)
    os.close(other)
    shown = b""
    deadline = time.monotonic() + 5
    while b"4/4" not in shown and time.monotonic() < deadline:
        shown += os.read(main, 4096)
    assert b"Writing out" in shown and b"4/4" in shown


def test_camera_names_of_lerobot_and_code(tmp_path: Path) -> None:
    """Names that LeRobot cannot hold are refused before anything is written."""
    odd = dataclasses.replace(ARM, cameras=(Camera(".a b", 64, 64),))
    with create_dataset(tmp_path / "set", odd, "hdf5", durable=False) as writer:
        record(writer, 0, odd)
    with pytest.raises(ConfigError, match=r"'\.a b' cannot be part of a file name"):
        convert(open_dataset(tmp_path / "set"), tmp_path / "out", "lerobot")
    assert code(3).shape == (64, 64, 3)
