"""Configs, options on the command line, registries, errors."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import tyro

from vla_agents import errors
from vla_agents.arguments import Options, format_options, parse_options
from vla_agents.config import from_dict, load_config, load_yaml, save_yaml, to_dict
from vla_agents.errors import (
    ConfigError,
    EmbodimentMismatchError,
    UnknownNameError,
    VlaAgentsError,
)
from vla_agents.registry import Registry


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    path: Path
    inner: Inner = field(default_factory=Inner)
    steps: int = 10
    mode: Literal["fast", "slow"] = "fast"
    device: str | None = None
    size: tuple[int, int] = (1, 2)
    either: int | str = 3
    flag: bool = False
    options: Options = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


def test_configs_survive_the_disk(tmp_path: Path) -> None:
    config = Outer(
        Path("a b"), Inner(1e-5, ("ü", "b")), 3, "slow", "cpu", (4, 5), "x", True, {"t": ["u", 1]}, {"w": 2.0}
    )
    save_yaml(config, tmp_path / "c.yaml")
    assert load_config(Outer, tmp_path / "c.yaml") == config
    assert from_dict(Outer, to_dict(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path: a\nstesp: 3", r"unknown key 'stesp'. Did you mean 'steps'"),
        ("path: a\ninner: {rat: 3}", r"c\.yaml: inner: unknown key 'rat'. Did you mean 'rate'"),
        ("path: a\nsteps: 3.5", r"steps: expected int, got float 3\.5"),
        ("path: a\nsteps: true", "steps: expected int, got bool"),
        ("path: a\nsteps: '3'", "steps: expected int, got str"),
        ("path: a\nmode: fas", "'fas' is not one of .*Did you mean 'fast'"),
        ("path: a\nsize: [1, 2, 3]", "expected 2 values, got 3"),
        ("path: a\nsize: 3", "expected a list"),
        ("path: a\ninner: 3", "mapping of Inner's fields"),
        ("path: a\ninner: {names: [1]}", r"names\[0\]: expected str"),
        ("path: a\nweights: {x: heavy}", "weights.x: expected float"),
        ("path: a\nflag: 1", "flag: expected bool"),
        ("path: a\nsteps: 1\nsteps: 2", "'steps' comes twice"),
        ("steps: 1", "missing 'path'"),
        ("", "mapping of Outer's fields"),
        ("path: [", "not YAML"),
        (None, "no such file"),
    ],
)
def test_a_config_that_is_wrong_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(Outer, tmp_path / "c.yaml")


def test_numbers_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("path: a\ninner: {rate: 1e-3}\neither: x\ndevice: null")
    config = load_config(Outer, tmp_path / "c.yaml")
    assert (config.inner.rate, config.either, config.device) == (0.001, "x", None)
    (tmp_path / "c.yaml").write_text("path: a\ninner: {rate: 1}")
    assert isinstance(load_config(Outer, tmp_path / "c.yaml").inner.rate, float)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(tmp_path)


def test_options_on_the_command_line() -> None:
    pairs = ["task=lift", "image_size=64", "cameras=[front, wrist]", "paraphrase=true", "split=", "x=a=b"]
    options = parse_options(pairs)
    assert options == {
        "task": "lift", "image_size": 64, "cameras": ["front", "wrist"], "paraphrase": True, "split": None, "x": "a=b",
    }  # fmt: skip
    assert parse_options(format_options(options)) == options
    config = tyro.cli(Outer, args=["--path", "p", "--options", *pairs[:2], "--inner.rate", "2"])
    assert config == Outer(Path("p"), Inner(2.0), options={"task": "lift", "image_size": 64})
    assert tyro.cli(Outer, args=["--path", "p"], default=config) == config
    for bad, message in [
        (["task"], "KEY=VALUE"),
        (["=3"], "KEY=VALUE"),
        (["a=1", "a=2"], "twice"),
        (["a=["], "YAML"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_options(bad)
    with pytest.raises(SystemExit):
        tyro.cli(Outer, args=["--path", "p", "--options", "task"], console_outputs=False)


def test_registry() -> None:
    registry = Registry("policy", {"lazy": "json:loads"})
    registry.register("eager", dict)
    assert registry.get("lazy") is json.loads and registry.get("eager") is dict
    assert list(registry) == ["eager", "lazy"] and "lazy" in registry and "x" not in registry
    with pytest.raises(ConfigError, match="registered already"):
        registry.register("lazy", list)
    registry.register("lazy", list, overwrite=True)
    assert registry.get("lazy") is list
    with pytest.raises(UnknownNameError, match=r"unknown policy 'lazzy'. Did you mean 'lazy'"):
        registry.get("lazzy")


def test_errors_say_what_to_do_and_travel_between_processes(tmp_path: Path) -> None:
    examples: list[VlaAgentsError] = [
        ConfigError("a", "do b"),
        UnknownNameError("task", "lif", ["lift", "push"]),
        EmbodimentMismatchError("x", "y", ["line 1"]),
        errors.DatasetError(tmp_path, "damaged", "copy it"),
        errors.DatasetNotFoundError(tmp_path, "nothing there"),
        errors.CheckpointError(tmp_path, "incomplete"),
        errors.RecordingError("disk full", "free some"),
        errors.MissingDependencyError("libero", "libero", "the env"),
        errors.ConnectionLostError("gone", "start it"),
    ]
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, VlaAgentsError):
            plain = errors._rebuild(kind, ("a",), {"problem": "a", "remedy": "b"})
            examples.append(plain)
    for error in examples:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)
        assert again.remedy == error.remedy and again.problem == error.problem
    assert str(examples[0]) == "a\n  -> do b"
    assert str(examples[1]).startswith("unknown task 'lif'. Did you mean 'lift'?\n  -> known: lift, push")
    assert isinstance(examples[1], KeyError) and isinstance(examples[0], ValueError)
    assert isinstance(examples[4], FileNotFoundError) and isinstance(examples[6], OSError)
    full = errors.RecordingError("disk full")
    full.errno, full.filename = 28, "x"
    assert str(full) == "disk full", "an errno does not hide the message"
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert not isinstance(kind, type) or issubclass(kind, VlaAgentsError)
