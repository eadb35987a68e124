"""The frames of a video at given times, through PyAV; the ones LeRobot would return, pixel for pixel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.errors import DatasetError

SAME = 1e-4  # seconds; a frame this near is the one asked for


def decode(path: Path, times: np.ndarray, fps: float, shape: tuple[int, int]) -> np.ndarray:
    """The frames of a video at given times, all at once: uint8 (T, H, W, 3). Arguments as of `frames_at`."""
    out = np.empty((len(times), *shape, 3), np.uint8)
    for _ in frames_at(path, times, fps, shape, out):
        pass
    return out


def frames_at(
    path: Path, times: np.ndarray, fps: float, shape: tuple[int, int], out: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """The frames of a video at given times, one by one.

    Args:
        path: The mp4.
        times: float64 (T,), seconds inside the video, rising.
        fps: Nominal rate; the nearest frame may be off by a quarter of a period, else it is an error.
        shape: Expected `(height, width)`.
        out: uint8 (T, H, W, 3) to write to; by default each frame is an array of its own.

    Yields:
        uint8 (H, W, 3), T of them.
    """
    import av

    done = 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = video_stream(container)
            # libavcodec itself refuses frames beyond this, before it makes room for them.
            stream.codec_context.options = {"max_pixels": str(max(4 * shape[0] * shape[1], 1 << 16))}
            found = stream.codec_context.height, stream.codec_context.width
            if found != shape:
                raise DatasetError(
                    path,
                    f"pictures are {found[0]}x{found[1]}, meta/info.json says {shape[0]}x{shape[1]}",
                    "files of two datasets or cameras were mixed: copy the dataset again",
                )
            convert = Converter()
            for frame in _frames_at(container, stream, times, 0.25 / fps):
                image = np.empty((*shape, 3), np.uint8) if out is None else out[done]
                convert(frame, image)
                yield image
                done += 1
    except FileNotFoundError:
        raise DatasetError(
            path, "the video is missing", "copy the dataset again, with its videos/ folder"
        ) from None
    except (av.FFmpegError, IndexError) as error:
        raise DatasetError(
            path, f"the video cannot be decoded ({error})", "it is cut short or damaged: copy it again"
        ) from error
    if done < len(times):
        raise DatasetError(
            path,
            f"no frame at {times[done]:.3f} s (frame {done} of {len(times)} of the episode)",
            "the video is cut short, or has another frame rate than meta/info.json says: copy it again",
        )


def video_stream(container: Any) -> Any:
    """The (first) video of a file, to be decoded by one thread.

    Raises:
        IndexError: There is none, or of an unknown kind.
    """
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise IndexError("a video of unknown kind")
    stream.codec_context.thread_count = 1
    return stream


def _frames_at(container: Any, stream: Any, times: np.ndarray, tolerance: float) -> Iterator[Any]:
    """The nearest frame to each time, until one is further away than `tolerance` seconds."""
    base = float(stream.time_base)
    if times[0] > tolerance:
        container.seek(int((times[0] - tolerance) / base), stream=stream, backward=True)
    k, previous, before = 0, None, -np.inf
    for frame in container.decode(stream):
        now = -np.inf if frame.pts is None else frame.pts * base
        while k < len(times) and now >= times[k] - SAME:
            earlier = times[k] - before < abs(now - times[k])
            if min(times[k] - before, abs(now - times[k])) > tolerance:
                return
            yield previous if earlier else frame
            k += 1
        if k == len(times):
            return
        previous, before = frame, now
    while k < len(times) and times[k] - before <= tolerance:
        yield previous
        k += 1


class Converter:
    """Decoded frame -> RGB, with one conversion context for the whole episode."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter, self._single = VideoReformatter(), single_thread()

    def __call__(self, frame: Any, out: np.ndarray) -> None:
        """Write the frame to `out`, uint8 (H, W, 3)."""
        if (frame.height, frame.width) != out.shape[:2]:
            raise IndexError(
                f"a frame of {frame.height}x{frame.width} among those of {out.shape[0]}x{out.shape[1]}"
            )
        plane = self._reformatter.reformat(frame, format="rgb24", **self._single).planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        out[:] = rows[: out.shape[0], : out.shape[1] * 3].reshape(out.shape)


@cache
def single_thread() -> dict[str, Any]:
    """`threads=1` where this PyAV has it: for small pictures a thread pool costs more than the conversion."""
    import av
    from av.video.reformatter import VideoReformatter

    try:
        VideoReformatter().reformat(av.VideoFrame(16, 16, "rgb24"), format="yuv444p", threads=1)
    except TypeError:
        return {}
    return {"threads": 1}
