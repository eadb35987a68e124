"""Episodes to look at: what the cameras saw, side by side, instruction and outcome written underneath."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.agent import Observation
from vla_agents.errors import ConfigError
from vla_agents.rollout import EpisodeResult, Listener, StepEvent

HEIGHT = 256  # pixels; smaller cameras are enlarged to about this
MEMORY = 64 * 2**20  # bytes of pictures an open episode may hold; longer ones are thinned
_DARK, _WHITE, _GREY = (24, 24, 27), (244, 244, 245), (161, 161, 170)
_OUTCOME = {True: ("success", (45, 190, 150)), False: ("failure", (245, 120, 60))}


@dataclass(frozen=True)
class Clip:
    """A video on disk and what it shows."""

    path: Path
    seed: int
    task: str
    instruction: str
    success: bool
    steps: int


@dataclass
class _Take:
    """The pictures of an episode under way, every `stride`-th and the last one."""

    frames: list[dict[str, np.ndarray]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    stride: int = 1
    seen: int = 0

    def add(self, obs: Observation, *, last: bool = False) -> None:
        step, self.seen = self.seen, self.seen + 1
        if step % self.stride and not last:
            return
        self.frames.append(dict(obs.get("images", {})))
        self.steps.append(step)
        if sum(image.nbytes for image in self.frames[0].values()) * len(self.frames) > MEMORY:
            self.stride *= 2
            kept = [k for k, number in enumerate(self.steps) if number % self.stride == 0 or last]
            self.frames, self.steps = [self.frames[k] for k in kept], [self.steps[k] for k in kept]


class VideoRecorder(Listener):
    """Keeps videos of some episodes: failures first, but not only.

    Up to `count` failures and as many successes are encoded while the rollout runs; `finish` deletes what is
    too many.

    Args:
        folder: Where the mp4 files go; made when the first one is written.
        count: How many videos are wanted.
        control_hz: Actions per second of the env; short episodes are played slower, to last some seconds.
    """

    def __init__(self, folder: str | Path, count: int, control_hz: float = 20.0) -> None:
        self.folder, self.control_hz, self._count = Path(folder), control_hz, count
        self._takes: dict[int, _Take] = {}
        self._clips: dict[bool, list[Clip]] = {True: [], False: []}

    def adopt(self, results: Iterable[EpisodeResult]) -> None:
        """Take over the videos of these episodes that others, or an interrupted evaluation, left; too many are deleted."""
        for result in results:
            path = self._path(result)
            if not path.is_file():
                continue
            if len(self._clips[result.success]) < self._count:
                self._clips[result.success].append(_clip(path, result))
            else:
                path.unlink()

    def on_reset(self, slot: int, seed: int, obs: Observation, info: dict[str, Any]) -> None:
        """Start a take where one may still be wanted."""
        if obs.get("images") and any(len(clips) < self._count for clips in self._clips.values()):
            self._takes[slot] = _Take()
            self._takes[slot].add(obs)

    def on_step(self, slot: int, step: StepEvent) -> None:
        """Take a picture."""
        if slot in self._takes:
            self._takes[slot].add(step.next_obs, last=step.terminated or step.truncated)

    def on_end(self, slot: int, result: EpisodeResult) -> None:
        """Encode the take where it is wanted."""
        take = self._takes.pop(slot, None)
        clips = self._clips[result.success]
        if take is None or len(clips) >= self._count:
            return
        speed = len(take.frames) / max(take.seen, 1)
        fps = speed * min(self.control_hz, max(4.0, result.steps / 3))
        frames = [
            caption_frame(
                tile(images),
                result.instruction,
                f"step {step}/{result.steps}  seed {result.seed}",
                result.success if step == take.steps[-1] else None,
            )
            for step, images in zip(take.steps, take.frames, strict=True)
        ]
        frames += frames[-1:] * round(fps)  # the outcome stays for a second
        path = self._path(result)
        new = path.with_suffix(".new.mp4")
        write_video(new, frames, fps)
        new.replace(path)
        clips.append(_clip(path, result))

    def _path(self, result: EpisodeResult) -> Path:
        return self.folder / f"{result.seed:06d}_{_OUTCOME[result.success][0]}.mp4"

    def on_abort(self) -> None:
        """Drop the open takes."""
        self._takes.clear()

    def finish(self) -> list[Clip]:
        """The videos to keep, failures first, each group in the order of the seeds; the others are deleted.

        Where there are plenty of both, half show failures.
        """
        bad, good = self._clips[False], self._clips[True]
        failures = min(len(bad), max(self._count - len(good), (self._count + 1) // 2))
        by_seed = [sorted(clips, key=lambda clip: clip.seed) for clips in (bad, good)]
        kept = by_seed[0][:failures] + by_seed[1][: self._count - failures]
        for clip in (*bad, *good):
            if clip not in kept:
                clip.path.unlink(missing_ok=True)
        return kept


def _clip(path: Path, result: EpisodeResult) -> Clip:
    return Clip(path, result.seed, result.task, result.instruction, result.success, result.steps)


def tile(images: Mapping[str, np.ndarray], height: int = HEIGHT) -> np.ndarray:
    """Cameras side by side, enlarged by a whole factor without smoothing.

    Args:
        images: Camera name -> uint8 (H, W, 3); the cameras may differ in size.
        height: About how high the picture shall be, pixels.

    Returns:
        uint8 (H', W', 3)
    """
    if not images:
        raise ConfigError("there is no camera to show", "make the env with cameras")
    large = [
        np.kron(image, np.ones((max(1, round(height / len(image))),) * 2 + (1,), np.uint8))
        for image in images.values()
    ]
    rows = max(len(image) for image in large)
    parts: list[np.ndarray] = []
    for image in large:
        below = np.full((rows - len(image), image.shape[1], 3), _DARK, np.uint8)
        parts += [np.concatenate([image, below]), np.full((rows, 4, 3), _DARK, np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def caption_frame(image: np.ndarray, text: str, status: str, success: bool | None = None) -> np.ndarray:
    """Write the instruction and a status line under a picture; with an outcome, frame it in its colour.

    Args:
        image: uint8 (H, W, 3).
        text: The instruction; wrapped to the width.
        status: e.g. `"step 3/12"`.
        success: The outcome, None while it is open.

    Returns:
        uint8 (H', W', 3), H' and W' even
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = image.shape[:2]
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    lines = textwrap.wrap(text, max(12, width // 8))[:3] or [""]
    bar = 18 * len(lines) + 26
    canvas = Image.new("RGB", (width + width % 2, (height + bar) + (height + bar) % 2), _DARK)
    canvas.paste(Image.fromarray(np.ascontiguousarray(image)))
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        draw.text((8, height + 4 + 18 * row), line, _WHITE, font)
    draw.text((8, height + 6 + 18 * len(lines)), status, _GREY, small)
    if success is not None:
        word, colour = _OUTCOME[success]
        draw.text((width - 8, height + 5 + 18 * len(lines)), word.upper(), colour, font, anchor="ra")
        draw.rectangle((0, 0, width - 1, height - 1), outline=colour, width=4)
    return np.asarray(canvas)


def write_video(path: str | Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write an h264 mp4 that browsers play.

    Args:
        path: The file; its folder is made.
        frames: uint8 (H, W, 3) each, all of one size; an odd last row or column is doubled (h264 wants even).
        fps: Frames per second.
    """
    import av

    if not frames:
        raise ConfigError(f"{path}: a video needs at least one frame")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        rate = max(1, round(fps * 100))
        options = {"crf": "23", "preset": "veryfast"}
        stream: Any = container.add_stream("libx264", rate=Fraction(rate, 100), options=options)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.codec_context.thread_count = 1
        for image in frames:
            even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24"))
            )
        container.mux(stream.encode(None))


def write_gif(path: str | Path, frames: Iterable[np.ndarray], fps: float, *, colours: int = 64) -> None:
    """Write an animated picture that loops.

    Args:
        path: The file; its folder is made.
        frames: uint8 (H, W, 3) each, all of one size.
        fps: Frames per second (GIF knows hundredths of a second).
        colours: Size of the palette, which all frames share.
    """
    from PIL import Image

    images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    if not images:
        raise ConfigError(f"{path}: an animated picture needs at least one frame")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sample = np.concatenate([np.asarray(image) for image in images[:: max(1, len(images) // 8)]])
    palette = Image.fromarray(sample).quantize(colours, Image.Quantize.MEDIANCUT)
    small = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    small[0].save(path, save_all=True, append_images=small[1:], duration=max(20, round(1000 / fps)), loop=0)
