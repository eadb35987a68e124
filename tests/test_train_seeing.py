"""Seeing a run: the display on a terminal and in a log file, the curves, and how the search for a batch size ends."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

from vla_agents import cli
from vla_agents.train import bar
from vla_agents.train.bar import TrainingBar, in_words
from vla_agents.train.batch_size import Tried, tell, why_it_ended
from vla_agents.train.config import RunConfig
from vla_agents.train.curves import draw_run, panels_of

METRICS = {
    "val_loss": 0.25, "val_loss/lift": 0.2, "val_loss/push": 0.3,
    "success": 0.45, "success_low": 0.357, "success_high": 0.547, "success/lift": 0.4, "success/push": 0.5,
}  # fmt: skip


def test_metrics_in_words_have_the_tasks_behind_what_they_are_parts_of() -> None:
    assert (
        in_words(METRICS) == "val_loss 0.25 [lift 0.2, push 0.3]  success 45 % (36-55) [lift 40 %, push 50 %]"
    )
    assert in_words({"stage": 1.0, "answers_right": 0.8}) == "stage 1  answers_right 80 %"


def test_a_log_file_gets_a_short_plain_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 4))  # every look at the clock is 4 s later
    monkeypatch.setattr(bar.time, "monotonic", lambda: float(next(clock)))
    written = io.StringIO()
    with TrainingBar(3000, "training qwen_oft", console=Console(file=written, width=40)) as shown:
        for step in range(1, 3001):
            shown.update(step, {"loss": 1 / step, "samples/s": "400"})
            if step == 1000:
                shown.validated(step, METRICS)
    lines = written.getvalue().splitlines()
    assert lines[0] == "training qwen_oft: step 4/3000  loss 0.25  samples/s 400  3.3 h left"
    assert lines[-1] == "training qwen_oft: step 3000/3000  loss 0.0003333  samples/s 400"
    assert f"validation at step 1000: {in_words(METRICS)}" in lines  # whole, however narrow
    assert 30 < len(lines) < 100  # of 12,000 s: more often in the beginning
    assert "\x1b" not in written.getvalue()


def test_a_terminal_gets_a_bar_and_the_numbers_below_it() -> None:
    written = io.StringIO()
    console = Console(file=written, width=60, force_terminal=True, color_system=None)
    with TrainingBar(100, "training", console=console) as shown:
        shown.validated(10, METRICS)
        shown.update(20, {"loss": 0.125, "samples/s": "400"})
    text = written.getvalue()
    assert "20/100" in text and "loss 0.125  samples/s 400" in text
    assert "validation at step 10: val_loss 0.25" in text and "push 50 %" in text
    assert not any("━" in line and "loss" in line for line in text.splitlines())


def test_log_lines_stand_above_the_display() -> None:
    written = io.StringIO()
    record = logging.LogRecord(
        "vla_agents.train", logging.INFO, "x.py", 1, "stage 'easy' is over", None, None
    )
    handler = cli._ToStderr()
    with TrainingBar(9, "training", console=Console(file=written, width=60, force_terminal=True)) as shown:
        shown.update(1, {"loss": 0.5})
        handler.emit(record)
    assert "stage 'easy' is over" in written.getvalue()  # through the display, which knows where it stands


def test_things_of_different_kinds_are_drawn_apart(tmp_path: Path) -> None:
    steps = [
        {"step": k, "loss": 1 / k, "action_l1": 0.6 / k, "language": 0.4 / k, "grad_norm": 1.0, "lr": 1e-3,
         "samples_per_second": 400.0, "data_wait": 0.01, "memory_gb": 1.0}
        for k in (10, 20)
    ]  # fmt: skip
    found = [
        *steps,
        {"step": 20, **METRICS, "stage": 1.0, "stage_success": 0.5, "returns/a": -3.0, "returns/b": 2.0},
    ]
    panels = {panel.title: set(panel.keys) for panel in panels_of(found)}
    assert panels["loss"] == {"loss", "val_loss"}
    assert panels["parts of the loss"] == {"action_l1", "language"}
    assert panels["validation loss of each"] == {"val_loss/lift", "val_loss/push"}
    assert panels["success, closed loop"] == {"success", "success/lift", "success/push", "stage_success"}
    assert panels["stage"] == {"stage"} and panels["returns"] == {"returns/a", "returns/b"}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in found))
    draw_run(tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 10_000 and (tmp_path / "run.html").is_file()


@pytest.mark.parametrize(
    ("rates", "chosen", "why"),
    [
        ([10, 20, 38, 39, 37], 4, "samples/s do not grow any more, so larger ones than 16 were not tried"),
        ([10, 20, 40, None], 4, "8 samples do not fit"),
        ([10, 20, 40], 4, "larger ones than 4 were not tried"),
    ],
)
def test_a_batch_size_is_chosen_and_why_the_search_ended_is_said(
    rates: list[float | None], chosen: int, why: str
) -> None:
    tried = [Tried(2**k, None if rate is None else 10**9, rate) for k, rate in enumerate(rates)]
    assert why_it_ended(tried) == why
    written = io.StringIO()
    tell(tried, RunConfig(batch_size=32, accumulation=1), Console(file=written, width=200))
    assert f"--batch-size {chosen}; " in written.getvalue()
    assert f"--batch-size {chosen} --accumulation {32 // chosen}" in written.getvalue()
