"""What an evaluation found: per episode, per task, over all; as JSON, as a table (`page.py`: as a page)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from vla_agents.errors import ConfigError
from vla_agents.eval.ledger import Entry, finite, from_row, to_row
from vla_agents.eval.stats import Aggregate, aggregate, by_task, percent
from vla_agents.rollout import EpisodeResult

SCHEMA = "vla_agents.eval/1"


@dataclass(frozen=True)
class Timing:
    """What the clock said; the only part of a report that differs between two runs with the same seeds.

    Args:
        seconds: Wall time of the whole rollout.
        act_seconds: Of that, spent in `agent.act`.
        actions: Number of actions of all episodes together.
        episodes: Wall seconds of each episode; with several envs they overlap.
        num_envs: Environments side by side.
        asynchronous: Whether each had a process of its own.
    """

    seconds: float = 0.0
    act_seconds: float = 0.0
    actions: int = 0
    episodes: tuple[float, ...] = ()
    num_envs: int = 1
    asynchronous: bool = False

    def per_action(self) -> tuple[float, float]:
        """Milliseconds per action: all together, and of that in `agent.act`."""
        count = max(self.actions, 1)
        return 1000 * self.seconds / count, 1000 * self.act_seconds / count


@dataclass(frozen=True)
class EvalReport:
    """The outcome of an evaluation.

    Args:
        episodes: In the order of the seeds.
        config: What was asked for, as plain data.
        versions: Package name -> version.
        renderer: `info["renderer"]`, "" where the env names none.
        timing: Wall times.
        partial: The evaluation was interrupted; `episodes` are those that were finished.
        digests: For each episode those of its first and last observation (see `ledger.Entry`); empty where not taken.
    """

    episodes: tuple[EpisodeResult, ...]
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    renderer: str = ""
    timing: Timing = Timing()
    partial: bool = False
    digests: tuple[tuple[str, str], ...] = ()

    @property
    def overall(self) -> Aggregate:
        """Over all episodes."""
        return aggregate(self.episodes)

    @property
    def tasks(self) -> dict[str, Aggregate]:
        """Per task."""
        return by_task(self.episodes)

    @property
    def success(self) -> float:
        """Share of successful episodes."""
        return self.overall.success

    def entries(self) -> list[Entry]:
        """The episodes with their digests."""
        digests = self.digests or (("", ""),) * len(self.episodes)
        return [Entry(result, *pair) for result, pair in zip(self.episodes, digests, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data. Without `"timing"` it is the same for the same seeds, agent and versions."""
        wall, infer = self.timing.per_action()
        return {
            "schema": SCHEMA,
            "partial": self.partial,
            "config": self.config,
            "versions": self.versions,
            "renderer": self.renderer,
            "overall": self.overall.to_dict(),
            "tasks": {task: found.to_dict() for task, found in self.tasks.items()},
            "episodes": [to_row(entry) for entry in self.entries()],
            "timing": {
                "seconds": self.timing.seconds,
                "act_seconds": self.timing.act_seconds,
                "actions": self.timing.actions,
                "ms_per_action": wall,
                "infer_ms_per_action": infer,
                "episodes": list(self.timing.episodes),
                "num_envs": self.timing.num_envs,
                "asynchronous": self.timing.asynchronous,
            },
        }

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        text = json.dumps(finite(self.to_dict()), indent=1, ensure_ascii=False, allow_nan=False, default=str)
        path = Path(path)
        new = path.with_name(path.name + ".new")
        new.write_text(text + "\n", encoding="utf-8")
        new.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> EvalReport:
        """Read what `save` wrote."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["schema"] != SCHEMA:
                raise ConfigError(f"{path}: schema {data['schema']!r}, this version reads {SCHEMA!r}")
            times = data["timing"]["episodes"]
            entries = [
                from_row(row | {"seconds": seconds})
                for row, seconds in zip(data["episodes"], times, strict=True)
            ]
            known = ("seconds", "act_seconds", "actions", "num_envs", "asynchronous")
            timing = Timing(**{k: v for k, v in data["timing"].items() if k in known}, episodes=tuple(times))
            return cls(
                tuple(entry.result for entry in entries),
                data["config"],
                data["versions"],
                data["renderer"],
                timing,
                data["partial"],
                tuple((entry.first, entry.last) for entry in entries),
            )
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file", "`vla-agents eval` writes results.json") from None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}: not a report ({error!r})", "`vla-agents eval` writes results.json"
            ) from error

    def table(self, title: str = "") -> Table:
        """For the terminal: success per task with intervals."""
        table = Table(
            title=title or None, title_justify="left", caption=self.summary(), caption_justify="left"
        )
        table.add_column("task", overflow="fold")
        names = (
            "success",
            "95 % interval",
            "episodes",
            "steps",
            *(("errors",) if self.overall.errors else ()),
        )
        for name in names:
            table.add_column(name, justify="right")
        tasks = self.tasks
        for task, found in tasks.items():
            table.add_row(task or "(unnamed)", *_cells(found)[: len(names)])
        if len(tasks) != 1:
            table.add_section()
            table.add_row("all", *_cells(self.overall)[: len(names)], style="bold")
        return table

    def summary(self) -> str:
        """One line about the run itself."""
        wall, infer = self.timing.per_action()
        line = f"{self.timing.seconds:.1f} s, {wall:.1f} ms per action, of that {infer:.1f} ms agent"
        if self.renderer:
            line += f", renderer {self.renderer}"
        if unjudged := self.overall.unjudged:
            line += f"\n{unjudged} of {len(self.episodes)} episodes were judged by nobody: they do not count"
        for caution in dict.fromkeys(str(r.info["caution"]) for r in self.episodes if "caution" in r.info):
            line += f"\ncaution: {caution}"
        errors = [result for result in self.episodes if result.error]
        if errors:
            line += f"\n{len(errors)} episodes are errors, not counted as failures; the first (seed {errors[0].seed}): "
            line += errors[0].error
        return ("interrupted, only finished episodes; " if self.partial else "") + line


def _cells(found: Aggregate) -> tuple[str, ...]:
    known = found.episodes > 0
    return (
        percent(found.success) if known else "-",
        f"{100 * found.low:.1f} - {100 * found.high:.1f} %" if known else "-",
        f"{found.successes}/{found.episodes}",
        f"{found.mean_steps:.1f}",
        f"{found.errors}",
    )
