"""A stretch of a video as an mp4 of its own: its packets as they are, without a loss, or encoded anew."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.video.decode import SAME, single_thread
from vla_agents.data.video.encode import VideoSettings, open_stream
from vla_agents.errors import DatasetError

_LATE = 16  # packets after the last wanted one that are looked at, because they come out of order


def copy_frames(
    source: Path, times: np.ndarray, fps: float, target: Path, target_fps: float | None = None
) -> bool:
    """Write the frames at these times to `target` without decoding them, the first at time 0.

    That is possible where the frames are a stretch of their own: it begins with a key frame, and none of its frames
    needs one outside. Episodes that were encoded one by one are, also in a file that they share.

    Args:
        source: The video.
        times: float64 (T,), seconds, rising, a frame each.
        fps: Nominal rate.
        target: The mp4 to write.
        target_fps: Nominal rate of the new one: each frame is shown that much longer or shorter; None keeps it.

    Returns:
        Whether it could be done; if not, there is no `target`.

    Raises:
        DatasetError: The source is missing or damaged.
    """
    import av

    try:
        with av.open(str(source), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            packets = _stretch(container, stream, times, fps)
            if packets is None:
                return False
            pace = Fraction(1) if target_fps is None else Fraction(fps) / Fraction(target_fps)
            if pace == 1 and _is_all(stream, packets) and abs(times[0]) < SAME:
                shutil.copyfile(source, target)
                return True
            _mux(stream, packets, target, pace)
            return True
    except FileNotFoundError:
        raise DatasetError(
            source, "the video is missing", "copy the dataset again, with its videos/ folder"
        ) from None
    except (av.FFmpegError, IndexError, ValueError) as error:
        target.unlink(missing_ok=True)
        raise DatasetError(
            source, f"the video cannot be copied ({error})", "it is cut short or damaged: copy it again"
        ) from error


def encode_frames(frames: Iterable[np.ndarray], settings: VideoSettings, target: Path) -> int:
    """Encode pictures, uint8 (H, W, 3), into an mp4; frame k is shown at k / fps. Returns how many there were."""
    import av
    from av.video.reformatter import VideoReformatter

    count = packets = 0
    reformatter, single = VideoReformatter(), single_thread()
    with _Finished(target), av.open(str(target), "w", format="mp4") as container:
        stream = open_stream(container, settings)
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = reformatter.reformat(frame, format=settings.pix_fmt, **single)
            frame.pts, frame.time_base = count, Fraction(1, settings.fps)
            packets += _write(container, stream.encode(frame))
            count += 1
        packets += _write(container, stream.encode(None))
        if packets != count:
            raise OSError(f"the encoder returned {packets} frames for {count}")
    return count


class _Finished(contextlib.AbstractContextManager[None]):
    """Deletes the file where it was not finished."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is not None:
            self._target.unlink(missing_ok=True)


def _write(container: Any, packets: list[Any]) -> int:
    for packet in packets:
        container.mux(packet)
    return len(packets)


def _stretch(container: Any, stream: Any, times: np.ndarray, fps: float) -> list[Any] | None:
    """The packets of the frames at these times, in the order of the file; None where they are no stretch of their own."""
    base, tolerance = float(stream.time_base), 0.25 / fps
    if times[0] > tolerance:
        container.seek(int((times[0] + SAME) / base), stream=stream, backward=True)
    found: list[Any] = []
    late = 0
    for packet in container.demux(stream):
        if packet.pts is None or packet.dts is None:
            continue
        now = packet.pts * base
        if times[0] - tolerance <= now <= times[-1] + tolerance:
            if late:  # a frame of the next stretch lies between: some of ours may need it
                return None
            found.append(packet)
        elif now > times[-1]:
            late += 1
            if late > _LATE:
                break
        elif found:  # an earlier frame lies between
            return None
    shown = np.sort([packet.pts * base for packet in found])
    if len(shown) != len(times) or np.abs(shown - times).max() > tolerance:
        return None
    first = found[0]
    return found if first.is_keyframe and first.pts == min(packet.pts for packet in found) else None


def _is_all(stream: Any, packets: list[Any]) -> bool:
    return stream.frames == len(packets) and len(stream.container.streams) == 1


def _mux(stream: Any, packets: list[Any], target: Path, pace: Fraction) -> None:
    """Write packets to an mp4, shifted so that the first frame is shown at 0, each for `pace` times as long."""
    import av

    shift = min(packet.pts for packet in packets)
    with _Finished(target), av.open(str(target), "w", format="mp4") as out:
        copy = out.add_stream_from_template(stream, opaque=True)  # there need be no encoder
        base = stream.time_base * pace  # another unit, the same numbers: nothing is rounded
        copy.time_base = base
        for packet in packets:
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream, packet.time_base = copy, base
            out.mux(packet)
