"""The Callback that draws a run's curves: `curves.png`, and `run.html`, which also says what made the run."""

from __future__ import annotations

import base64
import html
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_agents.train.callbacks import Callback
from vla_agents.train.metrics import read_entries

if TYPE_CHECKING:
    from vla_agents.train.trainer import Trainer

_log = logging.getLogger(__name__)
# Title, what belongs there (a name, or a name and "/" and a task), and how it is drawn.
_PANELS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("loss", ("loss", "val_loss"), "log"),
    ("validation loss of each", ("val_loss/",), "log"),
    ("success, closed loop", ("success", "success/", "stage_success", "played_success"), "share"),
    ("stage", ("stage",), "stairs"),
    ("round", ("round",), "stairs"),
    ("episodes in the buffer", ("buffer_episodes",), "from 0"),
    ("questions answered right", ("answers_right",), "share"),
    ("learning rate", ("lr",), ""),
    ("norm of the gradient", ("grad_norm",), "log"),
    ("samples per second", ("samples_per_second",), ""),
    ("share of the time waiting for data", ("data_wait",), "share"),
    ("memory, GB", ("memory_gb",), "from 0"),
)
_BAND = ("success_low", "success_high")  # around success: its 95 % interval
_LEGEND = 8  # curves that a legend within the panel has room for
_LABEL = 40  # characters of a name in it


@dataclass(frozen=True)
class Panel:
    """Curves of one kind on axes of their own.

    Args:
        title: Above it.
        keys: Of the entries.
        style: `log`, `share` (0 to 1), `stairs`, `from 0` or nothing.
    """

    title: str
    keys: tuple[str, ...]
    style: str = ""

    @property
    def crowded(self) -> bool:
        """Too many curves for a legend within."""
        return len(self.keys) > _LEGEND


class Curves(Callback):
    """Draws at every validation and at the end, on the main process; a picture that cannot be drawn stops nothing."""

    def on_validated(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Draw."""
        self._draw(trainer)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Draw."""
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if not trainer.engine.is_main:
            return
        try:
            draw_run(trainer.out)
        except (OSError, ValueError, ImportError) as error:
            _log.warning("the curves were not drawn: %s", error)


def draw_run(out: Path) -> None:
    """`curves.png` and `run.html` of a run folder, from its `metrics.jsonl`."""
    entries = read_entries(out / "metrics.jsonl")
    if not entries:
        return
    picture = out / ".curves.png"
    _plot(entries, picture)
    os.replace(picture, out / "curves.png")
    page = out / ".run.html"
    page.write_text(_page(out), encoding="utf-8")
    os.replace(page, out / "run.html")


def panels_of(entries: Sequence[dict[str, float]]) -> list[Panel]:
    """What is drawn where: things of one kind together, things of different kinds never on the same axes."""
    known = dict.fromkeys(key for entry in entries for key in entry if key not in ("step", *_BAND))
    found = []
    for title, wanted, style in _PANELS:
        keys = [k for w in wanted for k in known if k == w or (w.endswith("/") and k.startswith(w))]
        for key in keys:
            del known[key]
        if keys:
            found.append(Panel(title, tuple(keys), style))
    parts = [key for key in known if any(key in entry and "loss" in entry for entry in entries)]
    if parts:
        found.insert(1, Panel("parts of the loss", tuple(parts), "log"))
    own: dict[str, list[str]] = {}  # of one's own evaluation or callback
    for key in known:
        if key not in parts:
            own.setdefault(key.partition("/")[0], []).append(key)
    return found + [Panel(name, tuple(keys)) for name, keys in own.items()]


def _plot(entries: Sequence[dict[str, float]], file: Path) -> None:
    from matplotlib.figure import Figure

    rows = _rows(panels_of(entries))
    figure = Figure(figsize=(12, 2.8 * len(rows)), layout="constrained")
    last = max(1.0, *(entry["step"] for entry in entries))
    for part, row in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        for column, panel in enumerate(row):
            axes = part.add_subplot(1, 1 if panel.crowded else 2, column + 1)
            _draw_panel(axes, panel, entries)
            axes.set_xlim(0, 1.02 * last)  # all panels alike, to compare them by eye
    figure.savefig(file, dpi=100, format="png")


def _rows(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Two in a row; one of many curves, whose legend stands beside it, alone."""
    rows: list[list[Panel]] = []
    for panel in panels:
        free = rows and len(rows[-1]) == 1 and not rows[-1][0].crowded
        if free and not panel.crowded:
            rows[-1].append(panel)
        else:
            rows.append([panel])
    return rows


def _draw_panel(axes: Any, panel: Panel, entries: Sequence[dict[str, float]]) -> None:
    from matplotlib import colormaps

    tasks = list(dict.fromkeys(key.partition("/")[2] for entry in entries for key in entry if "/" in key))
    palette = colormaps["tab20" if len(tasks) > 10 else "tab10"]
    for key in sorted(panel.keys, key=lambda k: tasks.index(k.partition("/")[2]) if "/" in k else -1):
        steps, values = zip(*[(e["step"], e[key]) for e in entries if key in e], strict=True)
        task = key.partition("/")[2]
        colour = {"color": palette(tasks.index(task) % palette.N)} if task else {}  # the same in all panels
        whole = key in ("loss", "val_loss", "success")  # beside its parts
        axes.plot(
            steps,
            values,
            label=(task or key)[:_LABEL],
            marker="o" if len(steps) < 30 else None,
            markersize=3,
            drawstyle="steps-post" if panel.style == "stairs" else "default",
            **({"color": "black", "linewidth": 2, "zorder": 3} if whole and len(panel.keys) > 2 else colour),
        )
    band = [(e["step"], *(e[key] for key in _BAND)) for e in entries if all(k in e for k in _BAND)]
    if band and "success" in panel.keys:
        axes.fill_between(*zip(*band, strict=True), color="gray", alpha=0.2, linewidth=0, label="95 %")
    _scale(axes, panel, [e[key] for e in entries for key in panel.keys if key in e])
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(alpha=0.3)
    if panel.crowded:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + len(panel.keys) // 14)
    elif len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=8)


def _scale(axes: Any, panel: Panel, values: Sequence[float]) -> None:
    if panel.style == "log" and min(values) > 0:
        from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

        narrow = max(values) < 30 * min(values)  # too few powers of ten to read off
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if narrow else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        if narrow:
            axes.yaxis.set_minor_locator(NullLocator())
    elif panel.style == "share":
        axes.set_ylim(-0.02, 1.02)
    elif panel.style == "stairs":
        axes.set_ylim(-0.2, max(values) + 0.2)
        axes.yaxis.get_major_locator().set_params(integer=True)
    elif panel.style == "from 0":
        axes.set_ylim(0, max(values) * 1.1 or 1)


def _page(out: Path) -> str:
    picture = base64.b64encode((out / "curves.png").read_bytes()).decode("ascii")
    parts = []
    for name in ("run.yaml", "environment.yaml"):
        if (out / name).is_file():
            text = html.escape((out / name).read_text(encoding="utf-8"))
            parts.append(f"<details><summary>{name}</summary><pre>{text}</pre></details>")
    links = [
        f'<li><a href="{name}/">{name}</a> &rarr; {html.escape((out / name).resolve().name)}</li>'
        for name in ("best", "last")
        if (out / name).exists()
    ]
    videos = [
        f'<figure><video controls muted width="320" src="{html.escape(str(clip.relative_to(out)))}"></video>'
        f"<figcaption>{html.escape(clip.parent.name)}</figcaption></figure>"
        for clip in sorted((out / "evaluations").glob("step_*/*.mp4"))[-8:]
    ]
    style = (
        "body{font:15px/1.5 sans-serif;max-width:72em;margin:2em auto;padding:0 1em}"
        "img{max-width:100%}figure{display:inline-block;margin:.5em}"
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(out.name)}</title><style>{style}</style>"
        f"<h1>{html.escape(str(out))}</h1><img alt='curves' src='data:image/png;base64,{picture}'>"
        f"<h2>Checkpoints</h2><ul>{''.join(links)}</ul>"
        + (f"<h2>Evaluations</h2>{''.join(videos)}" if videos else "")
        + f"<h2>What made it</h2>{''.join(parts)}</html>"
    )
