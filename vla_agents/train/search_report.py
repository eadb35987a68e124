"""What a study has found: tables and pictures."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

from vla_agents.config import save_yaml

_log = logging.getLogger(__name__)


def write_report(study: Any, out: Path) -> None:
    """`best.yaml`, `trials.csv`, and where there are enough trials `importance.png` and `history.png`."""
    trials = study.get_trials(deepcopy=False)
    names = sorted({name for trial in trials for name in trial.params})
    with (out / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["trial", "state", "value", "folder", *names])
        for trial in trials:
            value = trial.value if trial.value is not None else ""
            given = values_of(trial)
            values = [given.get(name, "") for name in names]
            rows.writerow(
                [trial.number, trial.state.name, value, trial.user_attrs.get("folder", ""), *values]
            )
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not complete:
        return
    best = study.best_trial
    save_yaml(
        {
            "metric": study.user_attrs.get("metric"), "value": best.value, "trial": best.number,
            "folder": best.user_attrs.get("folder"), "values": values_of(best),
        },
        out / "best.yaml",
    )  # fmt: skip
    try:
        _draw(study, complete, out)
    except (ValueError, RuntimeError, ImportError) as error:  # e.g. all trials alike
        _log.warning("no picture of the importances: %s", error)


def values_of(trial: Any) -> dict[str, Any]:
    """A trial's values as a run takes them (Optuna is given choices as JSON, since it takes no lists)."""
    return {
        name: json.loads(value) if isinstance(value, str) else value for name, value in trial.params.items()
    }


def _draw(study: Any, complete: list[Any], out: Path) -> None:
    from matplotlib.figure import Figure
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    metric = str(study.user_attrs.get("metric"))
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([t.number for t in complete], [t.value for t in complete], "o", label="trials")
    better = max if study.direction.name == "MAXIMIZE" else min
    values = [t.value for t in complete]
    best = [better(values[: k + 1]) for k in range(len(values))]
    axes.step([t.number for t in complete], best, where="post", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out / "history.png", dpi=110)
    if len(complete) < 4:
        return
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(list(found)[::-1], list(found.values())[::-1])
    axes.set_title(f"how much of {metric} each value decides ({len(complete)} trials)", fontsize=10)
    axes.set_xlim(0, 1)
    figure.savefig(out / "importance.png", dpi=110)
