"""One self-contained HTML page for one or several reports: bars, curves, videos, every episode."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import yaml

from vla_agents.eval.charts import Points, histogram, lines, success_bars
from vla_agents.eval.report import EvalReport
from vla_agents.eval.stats import Aggregate, percent
from vla_agents.eval.video import Clip
from vla_agents.rollout import EpisodeResult

logger = logging.getLogger(__name__)

EMBED = 24 * 2**20  # bytes of videos that go into the page itself; beyond, they are linked


@dataclass(frozen=True)
class Section:
    """A report on a page.

    Args:
        title: e.g. `"trained"`.
        report: What was found.
        note: A sentence about what is shown.
        clips: Videos, in the order in which they are shown.
    """

    title: str
    report: EvalReport
    note: str = ""
    clips: Sequence[Clip] = ()


def write_page(
    path: str | Path,
    sections: Sequence[Section],
    *,
    title: str | None = None,
    intro: str = "",
    metrics: str | Path | None = None,
) -> None:
    """Write the page.

    Args:
        path: The HTML file; its folder is made.
        sections: Shown one below the other; of several, a comparison stands on top.
        title: Of the page; None takes the first section's.
        intro: Plain text under the title.
        metrics: `metrics.jsonl` of a training run, whose curves are shown; a missing file is left out.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = [clip.path.stat().st_size for section in sections for clip in section.clips]
    folder = None if sum(sizes) <= EMBED else path.parent
    parts = [_comparison(sections)] if len(sections) > 1 else []
    if metrics is not None and Path(metrics).is_file():
        parts.append(_curves(Path(metrics)))
    parts += [_section(section, folder) for section in sections]
    template = Template(resources.files("vla_agents.eval").joinpath("page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(title or (sections[0].title if sections else "Evaluation")),
        intro=f'<p class="soft">{escape(intro)}</p>' if intro else "",
        body="\n".join(part for part in parts if part),
    )
    path.write_text(page, encoding="utf-8")


def read_metrics(path: str | Path) -> dict[str, Points]:
    """Name -> (step, value) points of a `metrics.jsonl`; a last line cut short by a crash is left out."""
    series: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line) if line.strip() else {}
            step = float(entry.pop("step")) if entry else 0.0
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            logger.warning("%s: line %d is not an entry with a step, it is left out", path, number)
            continue
        for name, value in entry.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                series.setdefault(name, []).append((step, float(value)))
    return dict(series)


def _comparison(sections: Sequence[Section]) -> str:
    rows = []
    for section in sections:
        found = section.report.overall
        rows.append((section.title, found.successes, found.episodes, found.low, found.high))
    return f"<section><h2>Success</h2>{success_bars(rows)}{_interval_note()}</section>"


def _interval_note() -> str:
    return '<p class="soft">Lines over the bars: 95 % Wilson intervals.</p>'


def _curves(path: Path) -> str:
    series = read_metrics(path)
    losses = {name: points for name, points in series.items() if name.endswith("loss")}
    rates = {n: p for n, p in series.items() if n.startswith(("success", "eval")) and n not in losses}
    others = {n: p for n, p in series.items() if n not in losses and n not in rates and len(p) > 1}
    first = [
        ("Loss (log scale)", lines(losses, logarithmic=True)),
        ("Success during training", lines(rates, share=True)),
    ]
    shown = _plots(first)
    rest = _plots([(name, lines({name: points})) for name, points in others.items()])
    if not shown and not rest:
        return ""
    more = f'<details><summary>More curves</summary><div class="pair">{rest}</div></details>' if rest else ""
    return f'<section><h2>Training</h2><div class="pair">{shown}</div>{more}</section>'


def _plots(named: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<div><h3>{escape(name)}</h3>{plot}</div>" for name, plot in named if plot)


def _section(section: Section, folder: Path | None) -> str:
    report, found = section.report, section.report.overall
    tasks = report.tasks
    note = f"<p>{escape(section.note)}</p>" if section.note else ""
    flag = (
        '<p class="flag">Interrupted: only the finished episodes are counted.</p>' if report.partial else ""
    )
    if found.errors:
        flag += f'<p class="flag">{found.errors} episodes are errors (the agent could not act); they are not counted.</p>'
    plots = ""
    if len(tasks) > 1:
        rows = [
            (task or "(unnamed)", a.successes, a.episodes, a.low, a.high)
            for task, a in tasks.items()
            if a.episodes
        ]
        plots += f"<div><h3>Success per task</h3>{success_bars(rows)}{_interval_note()}</div>"
    lengths = [[float(r.steps) for r in report.episodes if r.success is which] for which in (True, False)]
    plots += (
        f"<div><h3>Episode length (failures in orange)</h3>{histogram(*lengths)}</div>"
        if report.episodes
        else ""
    )
    clips = "".join(_clip(clip, folder) for clip in section.clips)
    videos = f'<h3>Videos, failures first</h3><div class="videos">{clips}</div>' if clips else ""
    return (
        f'<section><div class="head"><h2>{escape(section.title)}</h2>{_headline(found)}</div>{note}{flag}'
        f'<p class="soft">{escape(_facts(report, found))}</p><div class="pair">{plots}</div>{videos}'
        f"{_episodes(report.episodes)}{_settings(report)}</section>"
    )


def _headline(found: Aggregate) -> str:
    if not found.episodes:
        return '<span class="big">- <small>no episode was judged</small></span>'
    return (
        f'<span class="big">{percent(found.success)} <small>{found.successes} of {found.episodes} episodes, '
        f"95 % interval {100 * found.low:.1f} - {100 * found.high:.1f} %</small></span>"
    )


def _facts(report: EvalReport, found: Aggregate) -> str:
    facts = [f"{found.mean_steps:.1f} actions per episode"]
    if found.mean_steps_success is not None and found.successes < found.episodes:
        facts[0] += f" ({found.mean_steps_success:.1f} in successful ones)"
    facts += [f"{name} {percent(rate)}" for name, rate in found.rates.items()]
    return "; ".join([*facts, report.summary()])


def _clip(clip: Clip, folder: Path | None) -> str:
    if folder is None:
        data = base64.b64encode(clip.path.read_bytes()).decode("ascii")
        source = f"data:video/mp4;base64,{data}"
    else:
        source = escape(Path(os.path.relpath(clip.path, folder)).as_posix())
    outcome = "success" if clip.success else "failure"
    return (
        f'<figure class="{"" if clip.success else "failed"}">'
        f'<video src="{source}" controls loop muted playsinline preload="metadata"></video>'
        f"<figcaption>{escape(clip.instruction)}<br>"
        f'<span class="soft">{outcome}, {clip.steps} actions, seed {clip.seed}</span></figcaption></figure>'
    )


def _episodes(results: Sequence[EpisodeResult]) -> str:
    if not results:
        return ""
    flags = sorted({key for r in results for key, value in r.info.items() if isinstance(value, bool)})
    head = "".join(f"<th>{escape(name)}</th>" for name in flags)
    rows = "".join(_episode(result, flags) for result in sorted(results, key=lambda result: result.success))
    return (
        f"<details><summary>All {len(results)} episodes, failures first</summary><div class=scroll><table>"
        '<tr><th class="n">seed</th><th>outcome</th><th class="n">actions</th><th class="n">reward</th>'
        f"{head}<th>task</th><th>instruction</th></tr>{rows}</table></div></details>"
    )


def _episode(result: EpisodeResult, flags: Sequence[str]) -> str:
    outcome = "success" if result.success else ("failure" if result.terminated else "out of time")
    outcome = outcome if result.judged else "nobody judged it"
    outcome = f"error: {result.error}" if result.error else outcome
    cells = "".join(f"<td>{'yes' if result.info.get(name) else ''}</td>" for name in flags)
    reward = f"{result.reward:g}" if math.isfinite(result.reward) else ""
    return (
        f'<tr class="{"" if result.success else "failed"}"><td class="n">{result.seed}</td>'
        f'<td class="outcome">{outcome}</td><td class="n">{result.steps}</td><td class="n">{reward}</td>'
        f"{cells}<td>{escape(result.task)}</td><td>{escape(result.instruction)}</td></tr>"
    )


def _settings(report: EvalReport) -> str:
    if not report.config and not report.versions:
        return ""
    data = {"config": report.config, "versions": report.versions, "renderer": report.renderer}
    text = yaml.safe_dump(json.loads(json.dumps(data, default=str)), sort_keys=False, allow_unicode=True)
    return f"<details><summary>Settings and versions</summary><pre>{escape(text)}</pre></details>"
