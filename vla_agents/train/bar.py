"""The progress of a run, on a terminal a live display and in a log file a short line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import Progress
from rich.text import Text

from vla_agents.data.bars import columns

_SHARES = ("success", "stage_success", "played_success", "answers_right")  # told in per cent
_FIRST, _LONGEST = 15.0, 300.0  # seconds between two lines of a log file, at first and in a long run


class TrainingBar:
    """Step, losses, samples/s, time left, and what the last validation found, task by task.

    Args:
        total: Steps of the run.
        title: What is trained.
        start: Steps that were taken before.
        show: False for all processes but the first.
        console: Where to; None: standard error.
    """

    def __init__(
        self, total: int, title: str, *, start: int = 0, show: bool = True, console: Console | None = None
    ) -> None:
        self._console = console or Console(stderr=True)
        self._show, self._title, self._total, self._start = show, title, total, start
        self._live = show and self._console.is_terminal
        self._began = self._last_line = time.monotonic()
        self._progress = _Display(
            *columns("[bold]{task.description}"),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._progress.add_task(title, total=total, completed=start)

    def __enter__(self) -> TrainingBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, step: int, values: Mapping[str, float | str]) -> None:
        """Show where we are, with numbers by name."""
        status = "  ".join([_words(name, value) for name, value in values.items()])
        self._progress.now = status
        self._progress.update(self._task, completed=step)
        now = time.monotonic()
        pause = min(_LONGEST, max(_FIRST, (now - self._began) / 20))
        if self._show and not self._live and (now - self._last_line > pause or step == self._total):
            self._last_line = now
            self.message(f"{self._title}: step {step}/{self._total}  {status}{self._left(step, now)}")

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show what a validation found; in a log file it has a line of its own."""
        if not metrics:
            return
        self._progress.validation = f"validation at step {step}: {in_words(metrics)}"
        if not self._live:
            self.message(self._progress.validation)

    def message(self, text: str) -> None:
        """A line above the bar."""
        if self._show:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _left(self, step: int, now: float) -> str:
        if step <= self._start or step >= self._total:
            return ""
        seconds = (now - self._began) / (step - self._start) * (self._total - step)
        return f"  {seconds / 60:.0f} min left" if seconds < 5400 else f"  {seconds / 3600:.1f} h left"


class _Display(Progress):
    """The bar, and below it two lines of numbers, as long as they need to be.

    Attributes:
        now: Of the step.
        validation: Of the last validation.
    """

    now = ""
    validation = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and what there is to tell below it."""
        yield from super().get_renderables()
        yield from (Text(f"  {line}") for line in (self.now, self.validation) if line)


def in_words(metrics: Mapping[str, float]) -> str:
    """Metrics of a validation, those of tasks behind what they are parts of: `val_loss 0.2 [lift 0.1, push 0.3]`.

    Bounds of an interval are told as such: `success 45 % (36-55)`.
    """
    groups: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        whole, _, part = name.partition("/")
        groups.setdefault(whole, {})[part] = value
    low, high = groups.pop("success_low", {}).get(""), groups.pop("success_high", {}).get("")
    told = []
    for name, parts in groups.items():
        line = _words(name, parts.pop("")) if "" in parts else name
        if name == "success" and low is not None and high is not None:
            line = f"{line} ({100 * low:.0f}-{100 * high:.0f})"
        each = ", ".join(f"{part} {_number(name, value)}" for part, value in parts.items())
        told.append(f"{line} [{each}]" if each else line)
    return "  ".join(told)


def _words(name: str, value: float | str) -> str:
    return f"{name} {value if isinstance(value, str) else _number(name, value)}"


def _number(name: str, value: float) -> str:
    return f"{100 * value:.0f} %" if name in _SHARES else f"{value:.4g}"
