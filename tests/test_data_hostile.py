"""Datasets from anybody: what is damaged, contradicts itself, or was made to harm is named, and the rest stays usable."""

from __future__ import annotations

import io
import json
import random
import re
import shlex
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_sets as foreign
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_examples import ARM, record
from test_data_lerobot import change, cut, set_column
from test_data_lerobot import foreign as foreign_lerobot

from vla_agents.cli import main
from vla_agents.data import Pictures, WindowDataset, create_dataset, open_dataset
from vla_agents.data.convert.convert import convert
from vla_agents.data.guards import fill_template
from vla_agents.data.video.decode import decode
from vla_agents.errors import DatasetError, VlaAgentsError

Damage = Callable[[Path], Any]


def held() -> int:
    """Most memory this process has held, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.fixture(autouse=True)
def no_memory_for_bombs() -> Any:
    before = held()
    yield
    assert held() - before < 300 << 20


@pytest.fixture
def v21(tmp_path: Path) -> Path:
    with create_dataset(tmp_path / "v3", ARM, "lerobot", durable=False) as writer:
        for k in range(3):
            record(writer, k)
    convert(open_dataset(tmp_path / "v3"), tmp_path / "v21", "lerobot-v2.1")
    return tmp_path / "v21"


def rewrite(name: str, edit: Callable[[list[dict[str, Any]]], Any]) -> Damage:
    """Change the lines of a .jsonl file."""

    def apply(path: Path) -> None:
        rows = [json.loads(line) for line in (path / name).read_text().splitlines()]
        edit(rows)
        (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    return apply


def link_out(name: str) -> Damage:
    """Put a link to a file outside in the place of a file."""

    def apply(path: Path) -> None:
        outside = path.parent / "outside"
        outside.write_bytes((path / name).read_bytes())
        (path / name).unlink()
        (path / name).symlink_to(outside)

    return apply


EPISODES, DATA1 = "meta/episodes.jsonl", "data/chunk-000/episode_000001.parquet"
VIDEO1 = "videos/chunk-000/observation.images.wrist/episode_000001.mp4"
DEEP = "[" * 200_000 + "]" * 200_000
OPENING: dict[str, tuple[Damage, str]] = {
    "episodes gone": (lambda p: (p / EPISODES).unlink(), r"episodes\.jsonl: the file is missing"),
    "episodes cut": (lambda p: cut(p / EPISODES), r"episodes\.jsonl: line \d cannot be read as JSON"),
    "a list": (lambda p: (p / EPISODES).write_text("[]\n"), "line 1 is not a JSON object"),
    "a gap": (rewrite(EPISODES, lambda rows: rows.pop(1)), "episode 1 is missing.*total_episodes = 3"),
    "twice": (rewrite(EPISODES, lambda rows: rows.append(rows[0])), "episode 0 is there twice"),
    "length 0": (rewrite(EPISODES, lambda rows: rows[1].update(length=0)), "episode 1 has length 0"),
    "length text": (
        rewrite(EPISODES, lambda rows: rows[1].update(length="4")),
        "field 'episode_index' or 'length'",
    ),
    "length wrong": (rewrite(EPISODES, lambda rows: rows[1].update(length=5)), "adds up to 13"),
    "tasks": (rewrite(EPISODES, lambda rows: rows[1].update(tasks=[1])), "episode 1: field 'tasks'"),
    "tasks gone": (lambda p: (p / "meta/tasks.jsonl").unlink(), r"tasks\.jsonl: the file is missing"),
    "tasks far": (
        rewrite("meta/tasks.jsonl", lambda rows: rows[0].update(task_index=1 << 60)),
        "list of tasks",
    ),
    "too many": (
        rewrite(EPISODES, lambda rows: rows.extend(dict(rows[0], episode_index=k) for k in range(9, 2000))),
        "more lines than",
    ),
    "deep": (lambda p: (p / "meta/info.json").write_text(DEEP), r"info\.json: cannot be read as JSON"),
    "deep embodiment": (lambda p: (p / "meta/embodiment.json").write_text(DEEP), "cannot be read as JSON"),
    "v1": (lambda p: change(p, codebase_version="v1.6"), r"'v1\.6', known: v2\.0, v2\.1, v3\.0"),
    "many": (lambda p: change(p, total_episodes=10**15), "field 'total_episodes'"),
    "wide": (lambda p: change(p, action__shape=[1 << 40]), "feature 'action' has no valid dtype and shape"),
    "wide too": (lambda p: change(p, action__shape=[1 << 20, 1 << 20]), "no row is that large"),
    "no number": (
        lambda p: change(p, timestamp__dtype="string"),
        "feature 'timestamp' is .* expected one number",
    ),
    "info linked": (link_out("meta/info.json"), r"info\.json: is a link that leads out"),
    "episodes linked": (link_out(EPISODES), r"episodes\.jsonl: is a link that leads out"),
    "embodiment linked": (link_out("meta/embodiment.json"), r"embodiment\.json: is a link that leads out"),
    "modality": (lambda p: (p / "meta/modality.json").write_text("[]"), r"modality\.json: is not an object"),
}
READING: dict[str, tuple[Damage, str]] = {
    "task unknown": (
        rewrite("meta/tasks.jsonl", lambda rows: rows[1].update(task_index=9)),
        "task_index 1 is none of the 10",
    ),
    "data linked": (link_out(DATA1), "leads out of the dataset"),
    "video linked": (link_out(VIDEO1), "leads out of the dataset"),
    "data cut": (lambda p: cut(p / DATA1), r"episode_000001\.parquet: cannot be read as parquet"),
    "video cut": (lambda p: cut(p / VIDEO1), r"episode_000001\.mp4: the video cannot be decoded"),
    "of another": (
        lambda p: (p / DATA1).write_bytes((p / DATA1.replace("1.", "2.")).read_bytes()), "episode 1 has 0 rows",
    ),
    "billions of rows": (lambda p: many_rows(p / DATA1), "claims 1,500,000 rows"),
    "endless lists": (lambda p: endless(p / DATA1), "claims .* values in 4 rows"),
}  # fmt: skip
TEMPLATES = {
    "dots": "../{episode_index}.parquet", "absolute": "/etc/{episode_index}", "unknown": "data/{user}.parquet",
    "attribute": "{episode_index.__class__}", "index": "{episode_index[0]}", "conversion": "{episode_index!r}",
    "wide": "{episode_index:0999999999d}", "nested": "{episode_index:{episode_chunk}}", "open": "{episode_index",
}  # fmt: skip


def many_rows(file: Path) -> None:
    """A file of some kB that claims a million and a half rows."""
    ones = pa.array(np.ones(1_500_000, np.int64))
    pq.write_table(pa.table({"episode_index": ones}), file, row_group_size=2_000_000)
    assert file.stat().st_size < 100_000


def endless(file: Path) -> None:
    """Lists of three million numbers in place of seven."""
    numbers = pa.array(np.zeros(12_000_000, np.float32))
    set_column(file, "action", pa.FixedSizeListArray.from_arrays(numbers, 3_000_000))
    assert file.stat().st_size < 1_000_000


@pytest.mark.parametrize("name", OPENING)
def test_v2_that_cannot_be_opened(name: str, v21: Path) -> None:
    damage, says = OPENING[name]
    damage(v21)
    with pytest.raises(DatasetError, match=says) as caught:
        open_dataset(v21)
    assert caught.value.remedy and caught.value.path.is_relative_to(v21)


@pytest.mark.parametrize("kind", ["lerobot", "lerobot-v2.1"])
@pytest.mark.parametrize("damage", ["gone", "cut", "linked"])
def test_without_its_tasks(
    kind: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused; with `skip_bad` the index tells the instruction of all episodes that have only one."""
    whole = foreign_lerobot(
        tmp_path / "v3", images="image"
    )  # the instruction of one episode changes inside it
    path = tmp_path / "set"
    convert(open_dataset(whole), path, kind)
    expected = open_dataset(path)
    changing = [k for k in range(len(expected)) if len(set(expected.tasks(k))) > 1]
    assert len(changing) == 1
    (file,) = (path / "meta").glob("tasks.*")
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    else:
        link_out(str(file.relative_to(path)))(path)
    with pytest.raises(DatasetError, match=file.name) as caught:
        open_dataset(path)
    assert caught.value.path == file and caught.value.remedy
    kept = open_dataset(path, skip_bad=True)
    assert list(kept.skipped) == [f"episode {k}" for k in changing]
    assert f"episode {changing[0]} 2 instructions" in str(kept.skipped[f"episode {changing[0]}"])
    others = [k for k in range(len(expected)) if k not in changing]
    assert (
        kept.instructions() == [expected.instructions()[k] for k in others]
        and len(set(kept.instructions())) > 1
    )
    assert any(file.name in note and "instructions are those of" in note for note in kept.notes)
    new = tmp_path / "new"
    assert main(["data", "convert", str(path), str(new), "--to", kind, "--skip-bad"]) == 1
    assert f"left out: episode {changing[0]}" in capsys.readouterr().out
    assert open_dataset(new).instructions() == kept.instructions()


@pytest.mark.parametrize("name", READING)
def test_v2_with_one_bad_episode(name: str, v21: Path) -> None:
    damage, says = READING[name]
    damage(v21)
    reader = open_dataset(v21)
    with pytest.raises(DatasetError, match=says) as caught:
        reader.read(1)
    assert caught.value.path.is_relative_to(v21)
    assert len(reader.read(0)) == 3 and len(reader.read(2)) == 5
    kept = open_dataset(v21, skip_bad=True)
    assert len(kept) == 2 and list(kept.skipped) == ["episode 1"]
    report = convert(reader, v21.parent / "out.hdf5", "groups", skip_bad=True)
    assert report.episodes == 2 and list(report.skipped) == ["episode 1"]


LISTED: dict[str, tuple[Damage, int]] = {
    "length 0": (rewrite(EPISODES, lambda rows: rows[1].update(length=0)), 1),
    "missing": (rewrite(EPISODES, lambda rows: rows.pop(1)), 1),
    "line cut": (lambda p: (p / EPISODES).write_text((p / EPISODES).read_text()[:-20]), 2),
}


@pytest.mark.parametrize("name", LISTED)
def test_v2_with_an_episode_that_is_listed_wrongly(
    name: str, v21: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, bad = LISTED[name]
    damage(v21)
    with pytest.raises(DatasetError, match=r"episodes\.jsonl"):
        open_dataset(v21)
    kept = open_dataset(v21, skip_bad=True)
    assert list(kept.skipped) == [f"episode {bad}"] and len(kept.read(0)) == 3
    out = v21.parent / "out"
    assert main(["data", "convert", str(v21), str(out), "--to", "hdf5", "--skip-bad"]) == 1
    assert f"left out: episode {bad}: " in capsys.readouterr().out
    assert open_dataset(out).lengths().tolist() == kept.lengths().tolist()


def test_v3_with_an_episode_of_length_0(tmp_path: Path) -> None:
    path = foreign_lerobot(tmp_path / "set")
    set_column(path / "meta/episodes/chunk-000/file-000.parquet", "length", pa.array([7, 0]))
    with pytest.raises(DatasetError, match="episode 1 has length 0"):
        open_dataset(path)
    kept = open_dataset(path, skip_bad=True)
    assert list(kept.skipped) == ["episode 1"] and np.array_equal(kept.read(0).action[:, 0], np.arange(7))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("field", ["data_path", "video_path"])
def test_path_templates(name: str, field: str, v21: Path) -> None:
    change(v21, **{field: TEMPLATES[name]})
    with pytest.raises(DatasetError, match=f"'{field}'.*(leads out|is not a path template)"):
        open_dataset(v21).read(0)


def test_templates_of_lerobot_are_filled() -> None:
    values = {"episode_chunk": 2, "episode_index": 17, "video_key": "a.b"}
    filled = fill_template("v/chunk-{episode_chunk:03d}/{video_key}/e_{episode_index:06d}.mp4", values)
    assert filled == "v/chunk-002/a.b/e_000017.mp4"


def test_modality_that_contradicts(v21: Path) -> None:
    (v21 / "meta/embodiment.json").unlink()
    file = v21 / "meta/modality.json"
    for content, says in (
        ({"state": {"x": {"start": 0, "end": 9}}}, r"state 'x' is \[0:9\] of 5 values"),
        ({"action": {"x": {"start": 3, "end": 3}}}, r"action 'x' is \[3:3\]"),
        ({"video": {"x": {"original_key": "nothing"}}}, "video 'x' is of 'nothing'"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(DatasetError, match=says):
            open_dataset(v21)


# ---- meta of v3.0 ------------------------------------------------------------------------------------------
def test_rows_of_meta_that_unfold(tmp_path: Path) -> None:
    path = foreign_lerobot(tmp_path / "set", images="image")
    tasks, rows = path / "meta/tasks.parquet", path / "meta/episodes/chunk-000/file-000.parquet"
    good = {file: file.read_bytes() for file in (tasks, rows)}
    long = "x" * (30 << 20)
    pq.write_table(pa.table({"task_index": [0, 1], "task": [long, "b"]}), tasks, compression="zstd")
    with pytest.raises(DatasetError, match=r"tasks\.parquet: claims"):
        open_dataset(path)
    tasks.write_bytes(good[tasks])
    set_column(rows, "tasks", pa.array([[long], ["a"]]))
    with pytest.raises(DatasetError, match=r"file-000\.parquet: claims"):
        open_dataset(path)
    rows.write_bytes(good[rows])
    pq.write_table(pa.concat_tables([pq.read_table(rows)] * 2000), rows)
    with pytest.raises(DatasetError, match="claims 4,000 rows"):
        open_dataset(path)
    rows.write_bytes(good[rows])
    for name, value in (("length", pa.array(["5", "5"])), ("data/file_index", pa.array([0.5, 0.5]))):
        set_column(rows, name, value)
        with pytest.raises(DatasetError, match=f"column '{name}' holds"):
            open_dataset(path)
        rows.write_bytes(good[rows])
    assert len(open_dataset(path).read(3)) == 3


# ---- pictures ----------------------------------------------------------------------------------------------
def bare_png(width: int, height: int, extra: bytes = b"") -> bytes:
    """A PNG that claims a size, and holds nothing of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def bare_jpeg(width: int, height: int) -> bytes:
    """A JPEG with another size in its header."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(sink, "jpeg")
    content = bytearray(sink.getvalue())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def text_chunk() -> bytes:
    body = b"zTXt" + b"a\0\0" + zlib.compress(b"\0" * (100 << 20))
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize(
    "name", ["huge png", "huge jpeg", "empty png", "unfolding text", "tiff", "path out", "no bytes"]
)
def test_pictures_in_parquet(name: str, tmp_path: Path) -> None:
    path, key = foreign_lerobot(tmp_path / "set", images="image"), "observation.images.top"
    file = path / "data/chunk-000/file-000.parquet"
    rows = pq.read_table(file).column(key).to_pylist()
    (tmp_path / "secret.png").write_bytes(rows[3]["bytes"])
    entries: dict[str, tuple[bytes | None, str | None]] = {
        "huge png": (bare_png(60_000, 60_000), None), "huge jpeg": (bare_jpeg(65_000, 65_000), None),
        "empty png": (bare_png(64, 64), None), "unfolding text": (bare_png(64, 64, text_chunk()), None),
        "tiff": (b"II*\0" + bytes(100), None), "path out": (None, "../secret.png"), "no bytes": (None, None),
    }  # fmt: skip
    content, where = entries[name]
    rows[2] = {"bytes": content, "path": where}
    set_column(file, key, pa.array(rows, pq.read_schema(file).field(key).type))
    reader = open_dataset(path)
    with pytest.raises(DatasetError, match="episode 0, frame 2"):
        reader.read(0)
    assert len(reader.read(1)) == 5 and len(reader.read(0, images=False)) == 7


def test_pictures_beside_the_parquet_are_read_inside_the_dataset(tmp_path: Path) -> None:
    path, key = foreign_lerobot(tmp_path / "set", images="image"), "observation.images.top"
    file = path / "data/chunk-000/file-000.parquet"
    rows = pq.read_table(file).column(key).to_pylist()
    expected = open_dataset(path).read(0).images["top"]
    (path / "images").mkdir()
    for k in range(7):
        (path / f"images/{k}.png").write_bytes(rows[k]["bytes"])
        rows[k] = {"bytes": None, "path": f"images/{k}.png"}
    set_column(file, key, pa.array(rows, pq.read_schema(file).field(key).type))
    assert np.array_equal(open_dataset(path).read(0).images["top"], expected)


def test_a_video_that_grows_inside(tmp_path: Path) -> None:
    """A stream may announce larger frames midway: the decoder must not make room for them."""
    import av

    parts = []
    for size, name in ((64, "a"), (2048, "b")):
        with av.open(str(tmp_path / f"{name}.h264"), "w", format="h264") as container:
            stream: Any = container.add_stream("libx264", rate=10, options={"g": "1"})
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for _ in range(3):
                frame = av.VideoFrame.from_ndarray(np.zeros((size, size, 3), np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append((tmp_path / f"{name}.h264").read_bytes())
    with (
        av.open(io.BytesIO(b"".join(parts)), format="h264") as source,
        av.open(str(tmp_path / "set.mp4"), "w") as out,
    ):
        copy = out.add_stream_from_template(source.streams.video[0], opaque=True)
        for k, packet in enumerate(p for p in source.demux(video=0) if p.size):
            packet.pts = packet.dts = k * round(0.1 / packet.time_base)
            packet.stream = copy
            out.mux(packet)
    with pytest.raises(DatasetError, match=r"set\.mp4"):
        decode(tmp_path / "set.mp4", np.arange(6) / 10, 10, (64, 64))


# ---- HDF5 --------------------------------------------------------------------------------------------------
def hdf5_bomb(name: str, **options: Any) -> Damage:
    """Put a dataset in the place of another that claims more than it holds."""

    def apply(path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file[name]
            file.create_dataset(name, **options)

    return apply


def two_filters(path: Path) -> None:
    """Compressed twice: a ratio of a million instead of a thousand."""
    with h5py.File(path, "a") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((7, 6))
        for _ in range(2):
            plan.set_deflate(9)
        group = file["episode_5"]
        del group["actions"]
        space = h5py.h5s.create_simple((7, 6))
        made = h5py.h5d.create(group.id, b"actions", h5py.h5t.IEEE_F64LE, space, plan)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros((7, 6)))


def soft_link(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["episode_5/actions"]
        file["episode_5/actions"] = h5py.ExternalLink(str(path.parent / "other.hdf5"), "a")


HDF5: dict[str, tuple[Damage, str]] = {
    "endless rows": (
        hdf5_bomb("episode_5/actions", shape=(10**9, 6), dtype="f8", chunks=(1000, 6), compression="gzip"),
        "'episode_5/actions' claims 48,000,000,000 bytes",
    ),
    "endless pictures": (
        hdf5_bomb("episode_5/images", shape=(7, 100_000, 100_000, 3), dtype="u1", chunks=(1, 100, 100, 3)),
        "claims 210,000,000,000 bytes|expected uint8",
    ),
    "not stored": (
        hdf5_bomb("episode_5/actions", shape=(10**8, 6), dtype="f4"),
        "claims 2,400,000,000 bytes",
    ),
    "large chunk": (
        hdf5_bomb(
            "episode_5/actions",
            data=np.zeros((7, 6)),
            maxshape=(None, None),
            chunks=(4_000_000, 6),
            compression=9,
        ),
        "in chunks of 192,000,000",
    ),
    "two filters": (two_filters, "through 2 compressing filters"),
    "link": (soft_link, "leads out of the file"),
    "text": (hdf5_bomb("episode_5/actions", data="seven"), r"actions"),
    "other shape": (hdf5_bomb("episode_5/actions", data=np.zeros((7, 5))), "expected numbers of shape"),
    "no rows": (hdf5_bomb("episode_5/actions", data=np.zeros((0, 6))), "differ in length|has no steps"),
    "fewer pictures": (
        hdf5_bomb("episode_5/images", data=np.zeros((6, 32, 40, 3), np.uint8)),
        "expected uint8",
    ),
    "nan": (
        hdf5_bomb("episode_5/actions", data=np.full((7, 6), np.nan)),
        "not finite in episode episode_5, frame 0",
    ),
    "too large": (hdf5_bomb("episode_5/actions", data=np.full((7, 6), 1e300)), "not finite"),
    "instruction": (hdf5_bomb("episode_5/instruction", data=[1.5, 2.5]), "expected one text"),
}


@pytest.mark.parametrize("name", HDF5)
def test_hdf5_with_one_bad_episode(name: str, tmp_path: Path) -> None:
    path = foreign.groups(tmp_path / "set.hdf5")
    damage, says = HDF5[name]
    damage(path)
    reader = open_dataset(path)
    with pytest.raises(DatasetError, match=says) as caught:
        reader.read(1)
    assert caught.value.path == path and caught.value.remedy
    assert len(reader.read(0)) == 5 and len(reader.read(2)) == 4
    assert convert(reader, tmp_path / "out", "lerobot", skip_bad=True).episodes == 2


def test_aloha_and_robomimic_that_contradict(tmp_path: Path) -> None:
    path = foreign.aloha(tmp_path / "aloha", jpeg=True)
    with h5py.File(path / "episode_5.hdf5", "a") as file:
        padded = file["observations/images/cam_high"]
        bomb = bare_jpeg(60_000, 60_000)
        padded[3, : len(bomb)] = np.frombuffer(bomb, np.uint8)
    reader = open_dataset(path)
    with pytest.raises(DatasetError, match=r"episode_5\.hdf5: .*cam_high', frame 3: not a picture"):
        reader.read(1)
    assert len(reader.read(0)) == 5
    with h5py.File(path / "episode_0.hdf5", "a") as file:
        content = np.zeros(file["observations/images/cam_high"].shape[1], np.uint8)
        content[: len(bomb)] = np.frombuffer(bomb, np.uint8)
        file["observations/images/cam_high"][0] = content
    with pytest.raises(DatasetError, match=r"no camera has that many pixels|not a picture"):
        open_dataset(path)
    path = foreign.robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_2"].attrs["num_samples"] = 99
    with pytest.raises(DatasetError, match="num_samples is 99, actions has 7 rows"):
        open_dataset(path).read(1)
    assert len(open_dataset(path, skip_bad=True)) == 2


def test_links_in_a_folder_of_hdf5(tmp_path: Path) -> None:
    path = foreign.aloha(tmp_path / "aloha")
    (path / "episode_5.hdf5").rename(tmp_path / "outside.hdf5")
    (path / "episode_5.hdf5").symlink_to(tmp_path / "outside.hdf5")
    with pytest.raises(DatasetError, match=r"episode_5\.hdf5: is a link that leads out"):
        open_dataset(path).read(1)
    with create_dataset(tmp_path / "ours", ARM, "hdf5", durable=False) as writer:
        record(writer, 0)
    (tmp_path / "ours/episode_000000.hdf5").rename(tmp_path / "x.hdf5")
    (tmp_path / "ours/episode_000000.hdf5").symlink_to(tmp_path / "x.hdf5")
    with pytest.raises(DatasetError, match="is a link that leads out"):
        open_dataset(tmp_path / "ours").read(0)


# ---- damage at random --------------------------------------------------------------------------------------
SETS: dict[str, Callable[[Path], Path]] = {
    "lerobot": lambda p: foreign_lerobot(p / "set"),
    "images": lambda p: foreign_lerobot(p / "set", images="image"),
    "aloha": lambda p: foreign.aloha(p / "set"),
    "robomimic": lambda p: foreign.robomimic(p / "set.hdf5"),
}


def spoil(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    new = [
        content[:at],
        content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
        content[:at] + b"\xff" * 8 + content[at + 8 :],
        content[:at] + content[at + rng.randrange(1, 64) :],
    ]
    return rng.choice(new)


@pytest.mark.parametrize("name", SETS)
def test_any_damage_is_a_dataset_error(name: str, tmp_path: Path) -> None:
    """Cut, overwritten, shifted at random: an error of ours, or data; nothing else."""
    path, rng = SETS[name](tmp_path), random.Random(5)
    files = [p for p in (path, *sorted(path.rglob("*"))) if p.is_file()]
    caught = 0
    for _ in range(25):
        file = rng.choice(files)
        good = file.read_bytes()
        file.write_bytes(spoil(good, rng))
        try:
            reader = open_dataset(path)
            for k in range(len(reader)):
                try:
                    reader.read(k)
                except VlaAgentsError:
                    caught += 1
        except VlaAgentsError:
            caught += 1
        file.write_bytes(good)
    assert caught
    assert len(open_dataset(path).read(0))


# ---- the commands ------------------------------------------------------------------------------------------
def ours(path: Path) -> Path:
    convert(open_dataset(path), path.parent / "ours", "hdf5")
    return path.parent / "ours"


COMMANDS: dict[str, Callable[[Path], tuple[Path, str]]] = {
    "length 0": lambda p: (rewrite(EPISODES, lambda rows: rows[1].update(length=0))(p), (p, "has length 0"))[
        1
    ],
    "video gone": lambda p: ((p / VIDEO1).unlink(), (p, "the video is missing"))[1],
    "video linked": lambda p: (link_out(VIDEO1)(p), (p, "leads out of the dataset"))[1],
    "type": lambda p: (
        set_column(p / DATA1, "next.done", pa.array(np.full(4, 0.5))),
        (p, "holds float64, meta/info.json says bool"),
    )[1],
    "HDF5 gone": lambda p: (((q := ours(p)) / "episode_000001.hdf5").unlink(), (q, "is missing"))[1],
    "HDF5 cut": lambda p: (cut((q := ours(p)) / "episode_000001.hdf5"), (q, "cannot be read as HDF5"))[1],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_name_the_bad_episode_and_use_the_rest(
    name: str, v21: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, says = COMMANDS[name](v21)
    expected = [open_dataset(tmp_path / "v3").read(k) for k in (0, 2)]

    def run(command: str, *arguments: str) -> tuple[int, str]:
        code = main(["data", command, str(path), *arguments])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, " ".join((printed.out + printed.err).split())

    for command in (
        ["info"],
        ["stats"],
        ["convert", str(tmp_path / "new")],
        ["view", "--export", str(tmp_path / "p")],
    ):
        code, text = run(*command, "--skip-bad")
        assert code == int(command[0] != "view"), text
        assert says.replace(" ", "") in re.sub(r"[ \u2502\u2026]", "", text), text
        assert "episode 1" in text
    new = open_dataset(tmp_path / "new")
    assert [len(new.read(k)) for k in range(len(new))] == [3, 5]
    assert all(np.array_equal(new.read(k).action, e.action) for k, e in enumerate(expected))
    report = tmp_path / "check.json"
    assert run("check", "--json", str(report), "--fix-hints")[0] == 1
    found = json.loads(report.read_text())
    errors = [f for f in found["findings"] if f["severity"] == "error"]
    assert found["episodes"] == 3 and any(says in f["message"] and f["episode"] == 1 for f in errors), errors
    assert {f["episode"] for f in errors} <= {1, None}
    command = next(f["command"] for f in errors if f["episode"] == 1)
    assert main(shlex.split(command)[1:]) in (0, 1)  # as it was printed
    mended = open_dataset(f"{path}_mended")
    assert [len(mended.read(k)) for k in range(len(mended))] == [3, 5]


def test_meta_episodes_with_a_damaged_file(tmp_path: Path) -> None:
    """Of several files of meta/episodes one is cut: its episodes are bad, the others are not."""
    with create_dataset(tmp_path / "set", ARM, "lerobot", durable=False) as writer:
        for k in range(4):
            record(writer, k)
    file = tmp_path / "set/meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    for number, rows in enumerate((table.slice(0, 2), table.slice(2, 1), table.slice(3, 1))):
        pq.write_table(rows, file.with_name(f"file-00{number}.parquet"))
    whole = [open_dataset(tmp_path / "set").read(k) for k in range(4)]
    cut(file.with_name("file-001.parquet"))
    with pytest.raises(DatasetError, match=r"file-001\.parquet: cannot be read as parquet"):
        open_dataset(tmp_path / "set")
    kept = open_dataset(tmp_path / "set", skip_bad=True)
    assert list(kept.skipped) == ["episode 2"] and "is missing" in str(kept.skipped["episode 2"])
    assert any("file-001.parquet" in note for note in kept.notes)
    for k, episode in enumerate((whole[0], whole[1], whole[3])):
        assert np.array_equal(kept.read(k).action, episode.action)
        assert np.array_equal(kept.read(k).images["front"], episode.images["front"])
    file.with_name("file-001.parquet").unlink()  # fewer rows than meta/info.json counts
    assert list(open_dataset(tmp_path / "set", skip_bad=True).skipped) == ["episode 2"]


@pytest.mark.parametrize("source", ["memory", "files", "cache"])
def test_training_goes_on_without_the_bad_episode(source: Any, v21: Path, tmp_path: Path) -> None:
    whole = WindowDataset(open_dataset(v21), 4)
    link_out(VIDEO1)(v21)
    left = WindowDataset(
        open_dataset(v21, skip_bad=True), 4, pictures=Pictures(source, folder=tmp_path / "cache")
    )
    ours, theirs = left.get_batch(np.arange(8)), whole.get_batch([0, 1, 2, 7, 8, 9, 10, 11])
    assert len(left) == 8 and len(whole) == 12
    for name, images in theirs["images"].items():
        assert np.array_equal(ours["images"][name], images)
    assert np.array_equal(ours["action"], theirs["action"]) and ours["instruction"] == theirs["instruction"]
