"""Pictures in a terminal: two pixels per character (half blocks), or real ones by the protocol of kitty."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping

import numpy as np

KITTY_CHUNK = 4096  # characters of base64 per command


def colours(environment: Mapping[str, str] | None = None) -> int:
    """Of the terminal: 2**24 where it says so, else 256."""
    environment = os.environ if environment is None else environment
    return 2**24 if environment.get("COLORTERM", "") in ("truecolor", "24bit") else 256


def speaks_kitty(environment: Mapping[str, str] | None = None) -> bool:
    """Whether the terminal shows real pictures; a multiplexer between would swallow them."""
    environment = os.environ if environment is None else environment
    if environment.get("TMUX") or environment.get("STY"):
        return False
    program = environment.get("TERM_PROGRAM", "").lower()
    return bool(environment.get("KITTY_WINDOW_ID")) or program in ("wezterm", "ghostty", "kitty")


def fitted(shape: tuple[int, ...], columns: int, rows: int) -> tuple[int, int]:
    """The largest (columns, rows) of characters, twice as high as wide, that show a picture (H, W) undistorted."""
    height, width = shape[:2]
    scale = min(columns / width, 2 * rows / height)
    return max(1, int(width * scale)), max(1, int(height * scale / 2))


def half_blocks(image: np.ndarray, columns: int, rows: int, depth: int = 2**24) -> list[str]:
    """A picture as lines of text, each of `columns` characters.

    Args:
        image: uint8 (H, W, 3).
        columns: Of characters.
        rows: Of characters, each two pixels high.
        depth: Number of colours.
    """
    pixels = _shrunk(image, 2 * rows, columns)
    codes = _codes(pixels, depth)
    lines = []
    for row in range(rows):
        upper, lower = codes[2 * row], codes[2 * row + 1]
        pieces, last = [], ("", "")
        for pair in zip(upper, lower, strict=True):
            pieces.append("▀" if pair == last else f"\x1b[38;{pair[0]};48;{pair[1]}m▀")
            last = pair
        lines.append("".join(pieces) + "\x1b[0m")
    return lines


def kitty(image: np.ndarray, columns: int, rows: int, number: int) -> str:
    """The command that shows a picture where the cursor is, in place of the one of the same number."""
    height, width = image.shape[:2]
    data = base64.standard_b64encode(np.ascontiguousarray(image).tobytes()).decode()
    pieces = [data[k : k + KITTY_CHUNK] for k in range(0, len(data), KITTY_CHUNK)]
    head = f"a=T,f=24,s={width},v={height},c={columns},r={rows},i={number},p=1,C=1,q=2,"
    return "".join(
        f"\x1b_G{head if k == 0 else ''}m={int(k < len(pieces) - 1)};{piece}\x1b\\"
        for k, piece in enumerate(pieces)
    )


def _shrunk(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) -> uint8 (height, width, 3), by the mean of a few pixels each."""
    h, w = image.shape[:2]
    rows = ((np.arange(2 * height) + 0.5) * h / (2 * height)).astype(int)
    columns = ((np.arange(2 * width) + 0.5) * w / (2 * width)).astype(int)
    sampled = image[rows][:, columns].astype(np.uint16)
    return (sampled.reshape(height, 2, width, 2, 3).sum((1, 3)) // 4).astype(np.uint8)


def _codes(pixels: np.ndarray, depth: int) -> list[list[str]]:
    """Colour codes of pixels (H, W, 3)."""
    if depth < 2**24:  # the 6 x 6 x 6 cube
        cube = np.clip((pixels.astype(int) - 35) // 40, 0, 5)
        numbers = 16 + 36 * cube[..., 0] + 6 * cube[..., 1] + cube[..., 2]
        return [[f"5;{value}" for value in row] for row in numbers.tolist()]
    return [[f"2;{r};{g};{b}" for r, g, b in row] for row in pixels.tolist()]
