"""Plots as inline SVG: no library, no external resource, colours from the page's style sheet (light and dark).

Every function returns an `<svg>` that scales with the page. Classes used: `ok`, `bad`, `axis`, `grid`, `label`, `value`,
`track`, and `s0` … `s5` for the series of a line plot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 640
Points = Sequence[tuple[float, float]]


def success_bars(rows: Sequence[tuple[str, int, int, float, float]]) -> str:
    """A bar per row with its interval.

    Args:
        rows: `(label, successes, episodes, low, high)`, the interval as shares.
    """
    left, right, pitch = 190, 150, 30
    span = WIDTH - left - right
    parts = []
    for index, (label, successes, episodes, low, high) in enumerate(rows):
        middle = index * pitch + pitch / 2
        share = successes / episodes if episodes else 0.0
        text = f"{100 * share:.1f} % ({successes}/{episodes})"
        hint = f"{label}: {text}, 95 % interval {100 * low:.1f} - {100 * high:.1f} %"
        parts.append(
            f"<g><title>{escape(hint)}</title>"
            f'<text class="label" x="{left - 10}" y="{middle + 4:.1f}" text-anchor="end">{escape(_short(label, 26))}</text>'
            f'<rect class="track" x="{left}" y="{middle - 8:.1f}" width="{span}" height="16" rx="3"/>'
            f'<rect class="ok" x="{left}" y="{middle - 8:.1f}" width="{span * share:.1f}" height="16" rx="3"/>'
            f'<path class="whisker" d="M{left + span * low:.1f} {middle:.1f}H{left + span * high:.1f}'
            f"M{left + span * low:.1f} {middle - 5:.1f}v10M{left + span * high:.1f} {middle - 5:.1f}v10"
            f'"/><text class="value" x="{left + span + 10}" y="{middle + 4:.1f}">{escape(text)}</text></g>'
        )
    ticks = [
        f'<text class="tick" x="{left + span * k / 4:.1f}" y="{len(rows) * pitch + 14}" text-anchor="middle">{25 * k} %</text>'
        for k in range(5)
    ]
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
    left, bottom, height = 44, 170, 150
    pitch = (WIDTH - left - 10) / max(count, 8)
    parts = [_grid_line(left, bottom - height * k / 2, f"{top * k / 2:g}") for k in range(3)]
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
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{low + index * width:g}</text>'
        )
    parts.append(
        f'<text class="tick" x="{WIDTH - 8}" y="{bottom + 32}" text-anchor="end">{escape(unit)}</text>'
    )
    return _svg(bottom + 36, parts)


def lines(series: Mapping[str, Points], *, logarithmic: bool = False, unit: str = "step") -> str:
    """A line per series, with a legend; points that are not finite (or not positive on a log axis) are left out.

    Args:
        series: Name -> (x, y) points.
        logarithmic: Whether y is.
        unit: Of x.
    """
    shown = {name: _usable(points, logarithmic) for name, points in series.items()}
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return ""
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(ys), max(ys)
    if y_high - y_low < 1e-12:
        y_low, y_high = y_low - 0.5, y_high + 0.5
    left, bottom, height = 58, 200, 180
    parts = []
    for k in range(5):
        y = y_low + (y_high - y_low) * k / 4
        parts.append(_grid_line(left, bottom - height * k / 4, f"{10**y if logarithmic else y:.3g}"))
    for k in range(5):
        x = x_low + (x_high - x_low) * k / 4
        at = left + (WIDTH - left - 14) * k / 4
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{x:.4g}</text>')
    parts.append(
        f'<text class="tick" x="{WIDTH - 14}" y="{bottom + 32}" text-anchor="end">{escape(unit)}</text>'
    )
    legend = float(left)
    for index, (name, points) in enumerate(shown.items()):
        place = [
            f"{left + (WIDTH - left - 14) * (x - x_low) / ((x_high - x_low) or 1):.1f} "
            f"{bottom - height * (y - y_low) / (y_high - y_low):.1f}"
            for x, y in points
        ]
        dots = (
            "".join(f'<circle cx="{p.split()[0]}" cy="{p.split()[1]}" r="2.5"/>' for p in place)
            if len(place) < 40
            else ""
        )
        parts.append(
            f'<g class="s{index % 6}"><title>{escape(name)}</title><path class="line" d="M{"L".join(place)}"/>{dots}'
            f'<rect x="{legend:.1f}" y="{bottom + 26}" width="12" height="4"/>'
            f'<text class="label" x="{legend + 18:.1f}" y="{bottom + 32}">{escape(name)}</text></g>'
        )
        legend += 40 + 7.5 * len(name)
    return _svg(bottom + 40, parts)


def _usable(points: Points, logarithmic: bool) -> list[tuple[float, float]]:
    found = sorted((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))
    return [(x, math.log10(y)) for x, y in found if y > 0] if logarithmic else found


def _grid_line(left: float, y: float, label: str) -> str:
    return (
        f'<path class="grid" d="M{left} {y:.1f}H{WIDTH - 10}"/>'
        f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _svg(height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img">{"".join(parts)}</svg>'


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
