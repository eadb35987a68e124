"""`vla-agents envs install` of what no package index has: a git repository at its commit, or a clone that is there."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from vla_agents.envs.isolated import environments
from vla_agents.errors import ConfigError, SimulatorError


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> environments.Recipe:
    """A recipe of one package in a git repository of two commits; the first is wanted."""
    folder = tmp_path / "repository"
    (folder / "small_simulator").mkdir(parents=True)

    def git(*arguments: str) -> str:
        named = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", "-C", str(folder), *named, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "--quiet")
    commits = []
    for number in (1, 2):
        (folder / "small_simulator" / "__init__.py").write_text(f"NUMBER = {number}\n")
        git("add", ".")
        git("commit", "--quiet", "-m", "x")
        commits.append(git("rev-parse", "HEAD"))
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    recipe = environments.Recipe("small", "small_simulator", "a small one", (f"file://{folder}", commits[0]))
    monkeypatch.setitem(environments.RECIPES, "small", recipe)
    monkeypatch.setattr(environments, "_LOCKS", tmp_path)
    (tmp_path / "small.txt").write_text("# nothing\n")
    monkeypatch.setenv("VLA_AGENTS_ENVS", str(tmp_path / "envs"))
    return recipe


def installed_number() -> str:
    python = environments.python_of("small")
    code = "import small_simulator; print(small_simulator.NUMBER, small_simulator.__path__[0])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_simulator_is_fetched_at_its_commit(
    repository: environments.Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, said = environments._run, []

    def quick(command: list[str], tell: Any, *remedy: str) -> None:
        """Without pip, which has nothing to install here, and without the packages that `vla_agents` needs."""
        if "pip" not in command and not command[-1].startswith("import"):
            run([*command, *(["--without-pip"] if "venv" in command else [])], tell, *remedy)

    monkeypatch.setattr(environments, "_run", quick)
    environments.install("small", said.append)
    assert environments.status("small") == "ready" and any(repository.source[1][:7] in line for line in said)
    assert installed_number().startswith("1 ")
    monkeypatch.setitem(
        environments.RECIPES,
        "small",
        environments.Recipe("small", "small_simulator", "", (repository.source[0], "0" * 40)),
    )
    assert environments.status("small") == "outdated"
    with pytest.raises(SimulatorError, match=r"git(.|\n)*--source"):
        environments.install("small", said.append)
    environments.install("small", said.append, source=str(tmp_path / "repository"))
    assert installed_number().startswith("2 ") and "not at 0000000" in said[-2]


def test_a_source_that_is_none(repository: environments.Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no package small_simulator(.|\n)*file://"):
        environments.install("small", print, source=str(tmp_path))
    with pytest.raises(ConfigError, match="packages alone"):
        environments.install("robosuite", print, source=str(tmp_path))
