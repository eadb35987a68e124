"""What an evaluation found: per episode, per task, over all; as JSON, as a table (`page.py`: as a page)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from vla_agents.errors import ConfigError
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
    """

    seconds: float = 0.0
    act_seconds: float = 0.0
    actions: int = 0
    episodes: tuple[float, ...] = ()

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
    """

    episodes: tuple[EpisodeResult, ...]
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    renderer: str = ""
    timing: Timing = Timing()
    partial: bool = False

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
            "episodes": [_row(result) for result in self.episodes],
            "timing": {
                "seconds": self.timing.seconds,
                "act_seconds": self.timing.act_seconds,
                "actions": self.timing.actions,
                "ms_per_action": wall,
                "infer_ms_per_action": infer,
                "episodes": list(self.timing.episodes),
            },
        }

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        text = json.dumps(_finite(self.to_dict()), indent=1, ensure_ascii=False, allow_nan=False, default=str)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> EvalReport:
        """Read what `save` wrote."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["schema"] != SCHEMA:
                raise ConfigError(f"{path}: schema {data['schema']!r}, this version reads {SCHEMA!r}")
            times = data["timing"]["episodes"]
            rows = [
                EpisodeResult(**row, seconds=seconds)
                for row, seconds in zip(data["episodes"], times, strict=True)
            ]
            timing = Timing(
                **{k: data["timing"][k] for k in ("seconds", "act_seconds", "actions")}, episodes=tuple(times)
            )
            return cls(
                tuple(rows), data["config"], data["versions"], data["renderer"], timing, data["partial"]
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
        for name in ("success", "95 % interval", "episodes", "steps"):
            table.add_column(name, justify="right")
        tasks = self.tasks
        for task, found in tasks.items():
            table.add_row(task or "(unnamed)", *_cells(found))
        if len(tasks) != 1:
            table.add_section()
            table.add_row("all", *_cells(self.overall), style="bold")
        return table

    def summary(self) -> str:
        """One line about the run itself."""
        wall, infer = self.timing.per_action()
        line = f"{self.timing.seconds:.1f} s, {wall:.1f} ms per action, of that {infer:.1f} ms agent"
        if self.renderer:
            line += f", renderer {self.renderer}"
        return ("interrupted, only finished episodes; " if self.partial else "") + line


def _cells(found: Aggregate) -> tuple[str, ...]:
    return (
        percent(found.success),
        f"{100 * found.low:.1f} - {100 * found.high:.1f} %",
        f"{found.successes}/{found.episodes}",
        f"{found.mean_steps:.1f}",
    )


def _row(result: EpisodeResult) -> dict[str, Any]:
    """An episode without its wall time; values of `info` that stand elsewhere are left out."""
    told = ("renderer", "instruction", "task", "success")
    return {
        "seed": result.seed,
        "task": result.task,
        "instruction": result.instruction,
        "success": result.success,
        "steps": result.steps,
        "reward": result.reward,
        "terminated": result.terminated,
        "truncated": result.truncated,
        "info": {key: value for key, value in sorted(result.info.items()) if key not in told},
    }


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
