"""Plots as inline SVG: no library, no external resource, colours from the page's style sheet.

Every function returns an `<svg>` that scales with the page, or "" where there is nothing to show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 480  # of every plot, in its own units; the page shows them at about that many pixels
MOST = 300  # points per line
Points = Sequence[tuple[float, float]]


def success_bars(rows: Sequence[tuple[str, int, int, float, float]]) -> str:
    """A bar per row with its interval.

    Args:
        rows: `(label, successes, episodes, low, high)`, the interval as shares.
    """
    left, right, pitch = 140, 134, 28
    span = WIDTH - left - right
    parts = []
    short = _short([label for label, *_ in rows], 20)
    for index, (label, successes, episodes, low, high) in enumerate(rows):
        middle = index * pitch + pitch / 2
        share = successes / episodes if episodes else 0.0
        text = f"{100 * share:.1f} % ({successes}/{episodes})"
        hint = f"{label}: {text}, 95 % interval {100 * low:.1f} - {100 * high:.1f} %"
        parts.append(
            f"<g><title>{escape(hint)}</title>"
            f"{_text('label', left - 10, middle + 4, short[index], 'end')}"
            f'<rect class="track" x="{left}" y="{middle - 8:.1f}" width="{span}" height="16" rx="3"/>'
            f'<rect class="ok" x="{left}" y="{middle - 8:.1f}" width="{span * share:.1f}" height="16" '
            f'rx="3"/>'
            f'<path class="whisker" d="M{left + span * low:.1f} {middle:.1f}H{left + span * high:.1f}'
            f"M{left + span * low:.1f} {middle - 5:.1f}v10M{left + span * high:.1f} {middle - 5:.1f}v10"
            f'"/>{_text("label", left + span + 10, middle + 4, text)}</g>'
        )
    base = len(rows) * pitch + 14
    ticks = [_text("tick", left + span * k / 4, base, f"{25 * k} %", "middle") for k in range(5)]
    return _svg(len(rows) * pitch + 22, parts + ticks)


def histogram(good: Sequence[float], bad: Sequence[float], *, bins: int = 24, unit: str = "steps") -> str:
    """Stacked counts: successes below, failures on top."""
    values = [*good, *bad]
    if not values:
        return ""
    low, high = min(values), max(values)
    width = max(1, math.ceil((high - low + 1) / bins))
    count = math.ceil((high - low + 1) / width)
    stacks = [[0, 0] for _ in range(count)]
    for which, series in enumerate((good, bad)):
        for value in series:
            stacks[int((value - low) // width)][which] += 1
    top = max(sum(stack) for stack in stacks)
    left, bottom, height = 44, 150, 130
    pitch = (WIDTH - left - 10) / max(count, 8)
    ticks = sorted({0, top // 2, top})
    parts = [_grid_line(left, bottom - height * k / top, f"{k}") for k in ticks]
    for index, stack in enumerate(stacks):
        x, base = left + index * pitch, float(bottom)
        start = low + index * width
        name = f"{start:g}" if width == 1 else f"{start:g} - {start + width - 1:g}"
        bars = ""
        for which, number in enumerate(stack):
            tall = height * number / top
            base -= tall
            if number:
                bars += (
                    f'<rect class="{("ok", "bad")[which]}" x="{x + 1:.1f}" y="{base:.1f}" '
                    f'width="{max(pitch - 2, 1):.1f}" height="{tall:.1f}"/>'
                )
        parts.append(f"<g><title>{name} {unit}: {stack[0]} succeeded, {stack[1]} failed</title>{bars}</g>")
    step = max(1, math.ceil(count / 10))
    for index in range(0, count, step):
        x = left + (index + 0.5) * pitch
        parts.append(_text("tick", x, bottom + 16, f"{low + index * width:g}", "middle"))
    parts.append(
        f'<text class="tick" x="{WIDTH - 8}" y="{bottom + 32}" text-anchor="end">{escape(unit)}</text>'
    )
    return _svg(bottom + 36, parts)


def lines(
    series: Mapping[str, Points], *, logarithmic: bool = False, share: bool = False, unit: str = "step"
) -> str:
    """A line per series, with a legend; points that cannot be drawn (NaN, <= 0 on a log axis) are left out.

    Args:
        series: Name -> (x, y) points.
        logarithmic: Whether y is.
        share: Whether the y axis shall reach from 0 to 1 at least.
        unit: Of x.
    """
    shown = {name: _usable(points, logarithmic) for name, points in series.items()}
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return ""
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    ys += [0.0, 1.0] if share else []
    box = _Box(min(xs), max(xs), min(ys), max(ys))
    parts = []
    for k in range(5):
        y = box.y_low + (box.y_high - box.y_low) * k / 4
        parts.append(_grid_line(box.left, box.at(box.x_low, y)[1], f"{10**y if logarithmic else y:.3g}"))
    for x in _round_numbers(box.x_low, box.x_high):
        parts.append(_text("tick", box.at(x, 0.0)[0], box.bottom + 16, f"{x:g}", "middle"))
    parts.append(_text("tick", WIDTH - 10, box.bottom + 34, unit, "end"))
    legend = box.left
    for index, (name, points) in enumerate(shown.items()):
        place = [box.at(x, y) for x, y in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in place)
        few = len(place) <= 30
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in place) if few else ""
        parts.append(
            f'<g class="s{index % 6}"><title>{escape(name)}</title><path class="line" d="M{path}"/>{dots}'
            f'<rect x="{legend:.1f}" y="{box.bottom + 28:.1f}" width="12" height="4"/>'
            f"{_text('label', legend + 18, box.bottom + 34, name)}</g>"
        )
        legend += 40 + 7 * len(name)
    return _svg(box.bottom + 42, parts)


@dataclass(frozen=True)
class _Box:
    """The drawing area of a line plot: from values to places."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    left: float = 52.0
    bottom: float = 166.0
    height: float = 150.0

    def __post_init__(self) -> None:
        if self.y_high - self.y_low < 1e-12:  # a flat line lies in the middle
            object.__setattr__(self, "y_low", self.y_low - 0.5)
            object.__setattr__(self, "y_high", self.y_high + 0.5)

    def at(self, x: float, y: float) -> tuple[float, float]:
        share = (x - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        up = (y - self.y_low) / (self.y_high - self.y_low)
        return self.left + (WIDTH - self.left - 14) * share, self.bottom - self.height * up


def _round_numbers(low: float, high: float) -> list[float]:
    """Some four to eight round numbers from `low` to `high`."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(k * unit for k in (1, 2, 5, 10) if k * unit >= rough * 0.999)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _usable(points: Points, logarithmic: bool) -> list[tuple[float, float]]:
    """What can be drawn, in order; many points become the means of neighbours."""
    found = sorted((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))
    if logarithmic:
        found = [(x, math.log10(y)) for x, y in found if y > 0]
    size = math.ceil(len(found) / MOST)
    groups = [found[k : k + size] for k in range(0, len(found), max(size, 1))]
    return [(_mean(x for x, _ in group), _mean(y for _, y in group)) for group in groups]


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


def _grid_line(left: float, y: float, label: str) -> str:
    line = f'<path class="grid" d="M{left:.1f} {y:.1f}H{WIDTH - 10}"/>'
    return line + _text("tick", left - 8, y + 4, label, "end")


def _svg(height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img">{"".join(parts)}</svg>'


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(labels: Sequence[str], length: int) -> list[str]:
    """Long labels without the words they share at both ends (LIBERO's tasks differ in the middle)."""
    texts = list(labels)
    if len(labels) > 1 and max(map(len, labels)) > length:
        start = _common(labels)
        end = _common([label[:start:-1] for label in labels])
        cut = [label[start : len(label) - end] for label in labels]
        texts = cut if all(cut) else texts
    return [text if len(text) <= length else text[: length - 1] + "…" for text in texts]


def _common(texts: Sequence[str]) -> int:
    """Length of the whole words that all texts begin with."""
    first, last = min(texts), max(texts)
    same = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return max((k + 1 for k in range(same) if first[k] in "_ "), default=0)
