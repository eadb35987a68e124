"""The tables of mp4 files: what FFmpeg finds in them, and nothing where a file is not plain, cut short or damaged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from data_examples import SHARED
from test_data_frames import make_video

from vla_agents.data.video import single
from vla_agents.data.video.decode import decode
from vla_agents.data.video.mp4 import index_of
from vla_agents.data.video.single import DecoderPool
from vla_agents.errors import DatasetError

SIZE = (48, 64)


def packets_of(path: Path) -> list[tuple[float, int, int, bool]]:
    """Time shown, place, bytes and whether it is a key frame, of each packet, as FFmpeg has it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        found = [p for p in container.demux(stream) if p.pts is not None]
        return [(float(p.pts * p.time_base), p.pos, p.size, p.is_keyframe) for p in found]


def assert_as_ffmpeg(path: Path) -> None:
    index, expected = index_of(path), packets_of(path)
    assert index is not None and len(index.pts) == len(expected)
    assert np.allclose(index.pts * index.base, [p[0] for p in expected], atol=1e-9)
    assert index.offset.tolist() == [p[1] for p in expected]
    assert index.size.tolist() == [p[2] for p in expected]
    assert index.keys.tolist() == [k for k, p in enumerate(expected) if p[3]]
    assert np.allclose(index.shown, sorted(p[0] for p in expected), atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"bf": "0", "g": "2"},
        {"bf": "3", "g": "12"},
        {"b-pyramid": "normal", "g": "30"},
        {"bf": "0", "g": "1"},
    ],
)
def test_tables_are_those_that_ffmpeg_reads(tmp_path: Path, options: dict[str, str]) -> None:
    make_video(tmp_path / "a.mp4", 50, 25, options)
    assert_as_ffmpeg(tmp_path / "a.mp4")


def test_files_of_lerobot() -> None:
    files = sorted((SHARED / "lerobot_datasets").glob("*/videos/*/*/*.mp4"))
    if not files:
        pytest.skip("no datasets of LeRobot here")
    for file in files:
        assert_as_ffmpeg(file)


def remuxed(source: Path, target: Path, *, options: dict[str, str] | None = None, late: int = 0) -> Path:
    """The same packets in a file of another make; `late`: they begin at that tick."""
    with av.open(str(source)) as container, av.open(str(target), "w", options=options or {}) as out:
        stream = container.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts + late, packet.dts + late, copy
                out.mux(packet)
    return target


def test_files_that_are_not_plain_are_left_to_ffmpeg(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 30, 25, {"bf": "2", "g": "10"})
    times = np.arange(30) / 25
    expected = decode(tmp_path / "a.mp4", times, 25, SIZE)
    fast = remuxed(tmp_path / "a.mp4", tmp_path / "fast.mp4", options={"movflags": "faststart"})
    assert_as_ffmpeg(fast)
    fragments = remuxed(
        tmp_path / "a.mp4", tmp_path / "f.mp4", options={"movflags": "frag_keyframe+empty_moov"}
    )
    matroska = remuxed(tmp_path / "a.mp4", tmp_path / "m.mkv")
    late = remuxed(tmp_path / "a.mp4", tmp_path / "late.mp4", late=25_600)  # begins with an empty edit
    for path in (fragments, matroska, late, tmp_path / "missing.mp4", tmp_path):
        assert index_of(path) is None
    pool = DecoderPool()
    for path in (fast, fragments, matroska, late):
        shift = min(packet[0] for packet in packets_of(path))
        out = np.zeros((5, *SIZE, 3), np.uint8)
        rows = [20, 3, 4, 29, 0]
        pool.read(path, times[rows] + shift, 25, SIZE, out)
        assert np.array_equal(out, expected[rows])


def test_a_file_that_was_replaced_is_looked_at_anew(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 20, 25, {"bf": "0", "g": "2"})
    make_video(tmp_path / "b.mp4", 40, 25, {"bf": "3", "g": "12"})
    pool, out = DecoderPool(), np.zeros((1, *SIZE, 3), np.uint8)
    path, time = tmp_path / "set.mp4", np.array([8 / 25])
    for name in "ab":
        shutil.copy(tmp_path / f"{name}.mp4", tmp_path / "new")
        os.replace(tmp_path / "new", path)
        expected = decode(path, time, 25, SIZE)
        for _ in range(2):
            pool.read(path, time, 25, SIZE, out)
            assert np.array_equal(out, expected)
    found = pool._indices[path]
    assert found is not None and len(found.pts) == 40 and not pool._idle
    path.unlink()
    with pytest.raises(DatasetError, match="the video is missing"):
        pool.read(path, time, 25, SIZE, out)


def test_tables_take_no_more_than_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(6):
        make_video(tmp_path / f"{k}.mp4", 10 + k, 25, {"bf": "0", "g": "2"})
    one = index_of(tmp_path / "5.mp4")
    assert one is not None
    pool, out = DecoderPool(tables=3 * one.nbytes), np.zeros((1, *SIZE, 3), np.uint8)
    opened: list[str] = []
    real = av.open
    monkeypatch.setattr(av, "open", lambda path, *a, **k: opened.append(path) or real(path, *a, **k))
    for k in (0, 1, 2, 3, 4, 5, 5, 0):
        pool.read(tmp_path / f"{k}.mp4", np.array([3 / 25]), 25, SIZE, out)
        assert pool._bytes == sum(found.nbytes for found in pool._indices.values() if found)
        assert pool._bytes <= pool.tables
    assert [path.name for path in pool._indices] == ["4.mp4", "5.mp4", "0.mp4"]
    assert len(opened) == 1  # encoded alike, though each says another bit rate: FFmpeg is asked once


def test_damaged_tables_never_do_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "a.mp4", 20, 25, {"bf": "2", "g": "10"})
    content = (tmp_path / "a.mp4").read_bytes()
    start = content.index(b"moov")
    rng, times = np.random.default_rng(0), np.arange(20) / 25
    expected = decode(tmp_path / "a.mp4", times, 25, SIZE)
    monkeypatch.setattr(single.VideoFile, "read", lambda *a: (_ for _ in ()).throw(DatasetError("a", "left")))
    kept = 0
    for trial in range(300):
        bad = bytearray(content)
        for at in rng.integers(start + 4, len(content), 1 + trial % 4):
            bad[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
        if trial % 10 == 0:
            del bad[int(rng.integers(start, len(bad))) :]
        file = tmp_path / f"{trial}.mp4"
        file.write_bytes(bad)
        out = np.zeros((1, *SIZE, 3), np.uint8)
        row = int(rng.integers(20))
        try:
            DecoderPool().read(file, times[row : row + 1], 25, SIZE, out)
        except DatasetError:  # FFmpeg's turn
            continue
        kept += np.array_equal(out[0], expected[row])
    assert kept > 30
