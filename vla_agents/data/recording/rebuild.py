"""Pictures of an unfinished episode: checked by their checksums, copied into a new video without encoding them again."""

from __future__ import annotations

import io
import itertools
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.atomic import TempFile
from vla_agents.data.recording import journal
from vla_agents.data.recording.unfinished import Unfinished
from vla_agents.data.video.encode import VideoSettings
from vla_agents.embodiment import Camera
from vla_agents.errors import DatasetError

_RAW = {"h264": "h264", "av1": "obu"}  # codec -> FFmpeg's name of a bare stream
_START = b"\0\0\0\1"  # before each unit of a bare h264 stream
_NEXT_PICTURE = b"\x12\0"  # before each picture of a bare av1 stream


def intact(found: Unfinished, number: int, camera: Camera) -> int:
    """How many pictures of a camera are there whole, from the first on."""
    count = 0
    for picture, _ in _contents(found, number, camera):
        count += picture.count
    return count


def _contents(found: Unfinished, number: int, camera: Camera) -> Iterator[tuple[journal.Picture, bytes]]:
    """The compressed pictures of a camera until one is damaged."""
    files: dict[Path, Any] = {}
    try:
        for picture in found.pictures.get(number, ()):
            path = picture.file or found.folder / f"{camera.name}.mp4"
            if path not in files:
                if path.is_symlink() or not path.is_file():
                    return
                files[path] = open(path, "rb")  # noqa: SIM115 - closed below
            files[path].seek(picture.offset)
            content = files[path].read(picture.size)
            if len(content) != picture.size or zlib.crc32(content) != picture.crc:
                return
            yield picture, content
    finally:
        for file in files.values():
            file.close()


class CopiedVideo:
    """A video put together from the pictures of an unfinished episode; a `PictureSink` whose pictures are there already.

    Args:
        found: The episode.
        number: Which camera.
        camera: The same.
        settings: How its video was encoded.
        rows: How many pictures to take.
        target: Where the mp4 goes; None keeps it in memory.
    """

    def __init__(
        self,
        found: Unfinished,
        number: int,
        camera: Camera,
        settings: VideoSettings,
        rows: int,
        target: TempFile | None,
    ) -> None:
        self.frames = 0
        self.extradata = found.extradata.get(camera.name, b"")
        self._rows, self._target, self._memory = rows, target, io.BytesIO()
        self._settings, self._camera = settings, camera
        stream = _Stream(self._bare(found, number))
        self._copy(stream)

    def add(self, image: np.ndarray) -> bool:
        """Count a picture, which is in the video already."""
        self.frames += 1
        return False

    def finish(self) -> bytes:
        """The video, where it is kept in memory."""
        if self._target is not None:
            self._target.finish()
        return self._memory.getvalue()

    def abandon(self) -> None:
        """Delete what was written."""
        if self._target is not None:
            self._target.abandon()

    def pictures(self) -> Iterator[np.ndarray]:
        """The pictures, decoded: uint8 (H, W, 3)."""
        import av

        source = io.BytesIO(self._memory.getvalue()) if self._target is None else str(self._target.path)
        with av.open(source, "r") as container:
            container.streams.video[0].codec_context.thread_count = 1
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")

    def _bare(self, found: Unfinished, number: int) -> Iterator[bytes]:
        """The bare stream, picture by picture."""
        h264 = self._settings.codec == "h264"
        if h264:
            yield self.extradata
        contents = _contents(found, number, self._camera)
        for picture, content in itertools.islice(contents, self._rows):
            if not h264:
                yield _NEXT_PICTURE + content.removeprefix(_NEXT_PICTURE)
            elif picture.file is None:
                yield _with_start_codes(content)
            else:
                yield content

    def _copy(self, stream: _Stream) -> None:
        import av

        codec, fps = self._settings.codec, self._settings.fps
        try:
            with (
                av.open(stream, "r", format=_RAW[codec], options={"framerate": str(fps)}) as source,
                av.open(self._target or self._memory, "w", format="mp4") as result,
            ):
                # av1: the decoder's name is not an encoder's, so that the stream cannot be looked up by it
                copied = result.add_stream_from_template(source.streams.video[0], opaque=codec != "h264")
                done = 0
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = done
                        packet.duration, packet.time_base, packet.stream = 1, Fraction(1, fps), copied
                        result.mux(packet)
                        done += 1
        except av.FFmpegError as error:
            raise DatasetError(stream.name, f"the pictures cannot be put together ({error})") from error
        if done != self._rows:
            raise DatasetError(stream.name, f"{self._rows} pictures became {done} frames")


class _Stream:
    """Pieces of bytes as a file that can be read, and nothing else."""

    name = "pictures of an unfinished episode"

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        if not self._left:
            self._left = next(self._pieces, b"")
        found, self._left = self._left[:size], self._left[size:]
        return found


def _with_start_codes(content: bytes) -> bytes:
    """A picture of an mp4, in which each unit stands behind its length, as in a bare stream."""
    found, at = [], 0
    while at + 4 <= len(content):
        end = at + 4 + int.from_bytes(content[at : at + 4], "big")
        found += [_START, content[at + 4 : end]]
        at = end
    return b"".join(found)


def lossless(found: Unfinished, number: int, camera: Camera, rows: int) -> Iterator[np.ndarray]:
    """The pictures of a camera that were kept without loss: uint8 (H, W, 3)."""
    shape = (camera.height, camera.width, 3)
    size = camera.height * camera.width * 3
    left = rows
    for picture, content in _contents(found, number, camera):
        data = zlib.decompressobj().decompress(content, picture.count * size)
        if len(data) < picture.count * size:
            raise DatasetError(found.folder, f"camera {camera.name!r}: a block of pictures is too short")
        yield from np.frombuffer(data, np.uint8).reshape(-1, *shape)[:left]
        left -= picture.count
        if left <= 0:
            return
