"""The Callback that draws a run's curves: `curves.png`, and `run.html`, which also says what made the run."""

from __future__ import annotations

import base64
import html
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vla_agents.train.callbacks import Callback
from vla_agents.train.metrics import read_entries

if TYPE_CHECKING:
    from vla_agents.train.trainer import Trainer

_log = logging.getLogger(__name__)
_PANELS = (
    ("loss", ("loss", "val_loss"), True),
    ("success", ("success",), False),
    ("learning rate", ("lr",), False),
    ("norm of the gradient", ("grad_norm",), True),
    ("samples per second", ("samples_per_second",), False),
    ("share of the time waiting for data", ("data_wait",), False),
)
_OTHER = ("memory_gb", "success_low", "success_high")


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


def _plot(entries: Sequence[dict[str, float]], file: Path) -> None:
    from matplotlib.figure import Figure

    known = {key for entry in entries for key in entry} - {"step"}
    panels = [(title, [k for k in keys if k in known], log) for title, keys, log in _PANELS]
    panels = [panel for panel in panels if panel[1]]
    other = sorted(known - {k for _, keys, _ in _PANELS for k in keys} - set(_OTHER))
    if other:
        panels.insert(1, ("parts", other, False))
    figure = Figure(figsize=(11, 2.6 * ((len(panels) + 1) // 2)), layout="constrained")
    for number, (title, keys, logarithmic) in enumerate(panels, start=1):
        axes = figure.add_subplot((len(panels) + 1) // 2, 2, number)
        for key in keys:
            points = [(entry["step"], entry[key]) for entry in entries if key in entry]
            axes.plot(
                *zip(*points, strict=True), label=key, marker="o" if len(points) < 12 else None, markersize=3
            )
        if logarithmic and all(e[k] > 0 for e in entries for k in keys if k in e):
            axes.set_yscale("log")
        if title.startswith("success") or title.startswith("share"):
            axes.set_ylim(-0.02, 1.02)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
        if len(keys) > 1:
            axes.legend(fontsize=8)
    figure.savefig(file, dpi=100, format="png")


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
