"""The demo: a short one for its files and figures, and the real one, which must learn what it claims."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vla_agents
from vla_agents.demo import DemoConfig, demo
from vla_agents.errors import ConfigError
from vla_agents.eval.report import EvalReport
from vla_agents.train.config import TrainConfig
from vla_agents.train.run import train
from vla_agents.train.trainer import TrainResult


def test_a_short_demo_leaves_everything_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figures_file = tmp_path / "demo", tmp_path / "figures" / "demo.json"
    config = DemoConfig(out=out, json=figures_file, demonstrations=12, steps=3, episodes=3, seed=4)
    figures = demo(config)
    assert figures == json.loads(figures_file.read_text()) == json.loads((out / "figures.json").read_text())
    assert {"success", "episodes", "language_followed", "minutes", "expert", "untrained"} <= set(figures)
    assert figures["episodes"] == 3 and figures["seed"] == 4 and figures["expert"] == 1.0
    assert not figures["pretrained_here"]
    told = " ".join(capsys.readouterr().out.split())
    for name in ("trained", "untrained", "expert", "report.html"):
        assert name in told
    page = (out / "report.html").read_text()
    assert all(name in page for name in ("swapped", "untrained", "expert", "<video"))
    reports = {
        name: EvalReport.load(out / f"{name}.json") for name in ("trained", "swapped", "untrained", "expert")
    }
    seeds = {tuple(row.seed for row in report.episodes) for report in reports.values()}
    assert len(seeds) == 1, "all four play the same scenes"
    for trained, swapped in zip(reports["trained"].episodes, reports["swapped"].episodes, strict=True):
        assert trained.instruction != swapped.instruction
        assert swapped.info["swapped_from"] == trained.instruction
    assert vla_agents.load_agent(out / "train").embodiment.camera_names == ("front",)  # type: ignore[attr-defined]

    demo(config)  # an earlier demo is replaced
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not a demo"):
        demo(DemoConfig(out=tmp_path / "thesis"))
    with pytest.raises(ConfigError, match="at least 1"):
        demo(DemoConfig(out=out, episodes=0))


def test_a_demo_interrupted_in_training_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(run: TrainConfig) -> TrainResult:
        return replace(train(run, progress=False), interrupted=True)

    monkeypatch.setattr("vla_agents.demo.train", stopped)
    with pytest.raises(KeyboardInterrupt):
        demo(DemoConfig(out=tmp_path / "demo", demonstrations=4, steps=3, episodes=1))
    assert (tmp_path / "demo" / "train" / "last").exists() and not (
        tmp_path / "demo" / "figures.json"
    ).exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_learns_and_listens(tmp_path: Path) -> None:
    """With a seed that no figure in the documents comes from. The bars leave room for chance at 100 episodes."""
    threads = torch.get_num_threads()
    try:
        figures = demo(
            DemoConfig(out=tmp_path / "demo", seed=11, episodes=100, threads=2)
        )  # alone on the machine
    finally:
        torch.set_num_threads(threads)
    assert figures["expert"] >= 0.99
    assert figures["untrained"] <= 0.10
    assert figures["success"] >= 0.93
    assert figures["language_followed"] >= 0.90
