"""The one command, as a user types it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import tiny_policy, vlm_folder

import vla_agents
from vla_agents import cli
from vla_agents.collect.collect import CollectConfig
from vla_agents.config import load_config
from vla_agents.demo import DemoConfig
from vla_agents.eval.evaluate import EvalConfig
from vla_agents.policies.checkpoint import save_policy
from vla_agents.train.config import TrainConfig
from vla_agents.train.pretrain_tiny import PretrainConfig

CONFIGS = {
    "demo": DemoConfig,
    "collect": CollectConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
    "pretrain-tiny": PretrainConfig,
    "info": cli.InfoConfig,
}


def test_overview_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name}" in out for name in cli.COMMANDS)
    assert cli.main(["trian"]) == 1
    assert "Did you mean 'train'" in capsys.readouterr().err
    assert cli.main(["--version"]) == 0
    assert vla_agents.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(CONFIGS))
def test_every_flag_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    source = Path(sys.modules[CONFIGS[command].__module__].__file__ or "").read_text()
    for field in fields(CONFIGS[command]):
        flag = field.name.replace("_", "-")
        assert f"--{flag}" in out, field.name
        assert f"    {field.name}:" in source or "RunConfig" in source


@pytest.mark.parametrize("command", sorted(set(CONFIGS) - {"info"}))
def test_unknown_flags_are_refused_with_a_suggestion(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--out", "x", "--sede", "3"])
    assert done.value.code == 2
    assert "--seed" in capsys.readouterr().err


def test_errors_are_a_sentence_and_exit_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--dataset", str(tmp_path / "nothing"), "--out", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert "nothing" in err and "Traceback" not in err
    assert cli.main(["eval", "--agent", str(tmp_path / "nothing"), "--out", str(tmp_path / "eval")]) == 1
    assert "nothing" in capsys.readouterr().err
    assert cli.main(["collect", "--out", str(tmp_path / "d"), "--env", "vla_agents/Tabeltop-v0"]) == 1
    assert "Did you mean 'vla_agents/Tabletop-v0'" in capsys.readouterr().err


def test_config_file_gives_the_defaults_and_a_bad_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"steps": 7, "model": {"horizon": 3, "execute": 1}}))
    config = cli.parse(TrainConfig, ["--config", str(file), "--seed", "5"], "train")
    assert (config.steps, config.model.horizon, config.seed) == (7, 3, 5)
    assert cli.parse(TrainConfig, [f"--config={file}", "--steps", "9"], "train").steps == 9
    file.write_text("stepz: 3")
    with pytest.raises(vla_agents.errors.ConfigError, match=r"stepz.*Did you mean 'steps'"):  # type: ignore[attr-defined]
        cli.parse(TrainConfig, ["--config", str(file)], "train")


def test_from_an_empty_folder_to_an_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """collect, train, eval, info, and the control loop: tiny, but every file is the real one."""
    data, run, report = tmp_path / "data", tmp_path / "run", tmp_path / "eval"
    env = ["task=lift", "image_size=32", "cameras=[front, wrist]"]
    assert (
        cli.main(["collect", "--out", str(data), "--episodes", "6", "--noise", "0.2", "--env-args", *env])
        == 0
    )
    train = ["train", "--dataset", str(data), "--out", str(run), "--model.vlm", str(vlm_folder())]
    short = ["--steps", "4", "--batch-size", "8", "--device", "cpu", "--validation-share", "0.2"]
    closed = ["--env", "vla_agents/Tabletop-v0", "--eval-episodes", "2", "--env-args", *env]
    assert cli.main([*train, *short, *closed]) == 0
    assert load_config(TrainConfig, run / "run.yaml").steps == 4
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "val_loss", "success"} <= set().union(*lines)

    play = [
        "eval",
        "--agent",
        str(run),
        "--episodes",
        "2",
        "--num-envs",
        "2",
        "--videos",
        "1",
        "--out",
        str(report),
    ]
    assert cli.main([*play, "--env-args", *env, "max_steps=5"]) == 0
    assert json.loads((report / "results.json").read_text())["episodes"][0]["steps"] == 5
    assert (report / "report.html").stat().st_size > 10_000 and list((report / "videos").glob("*.mp4"))

    capsys.readouterr()
    for name in (str(data), str(run), "vla_agents/Tabletop-v0", ""):
        assert cli.main(["info", name] if name else ["info"]) == 0
        told = capsys.readouterr().out
        assert told.strip() and ("attention kernels" in told) == (name == str(run))

    again = ["train", "--config", str(run / "run.yaml"), "--out", str(tmp_path / "again")]
    assert cli.main(again) == 0
    first, second = (
        np.fromfile(p / "best" / "model.safetensors", np.uint8) for p in (run, tmp_path / "again")
    )
    np.testing.assert_array_equal(first, second)

    import gymnasium as gym

    world = gym.make("vla_agents/Tabletop-v0", image_size=32)
    with vla_agents.load_agent(run, env=world, device="cpu") as agent:
        obs, _ = world.reset(seed=1)
        for _ in range(3):
            obs, *_ = world.step(agent.act(obs))
    world.close()


def test_an_agent_refuses_another_env(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_policy(tiny_policy(), tmp_path / "checkpoint")
    assert cli.main(["eval", "--agent", str(tmp_path / "checkpoint"), "--out", str(tmp_path / "eval")]) == 1
    err = capsys.readouterr().err
    assert "action" in err and "does not fit" in err


def test_ctrl_c_in_a_command_exits_130(tmp_path: Path) -> None:
    words = ["collect", "--out", str(tmp_path / "d"), "--episodes", "100000", "--env-args", "image_size=32"]
    script = f"import sys; from vla_agents import cli; sys.exit(cli.main({words!r}))"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", script], **pipes)  # type: ignore[call-overload]
    info = tmp_path / "d" / "meta" / "info.json"
    for _ in range(600):  # until it records
        if process.poll() is not None or (
            info.exists() and json.loads(info.read_text())["total_episodes"] > 2
        ):
            break
        time.sleep(0.2)
    while (
        process.poll() is None
    ):  # an interrupt may fall into a callback that cannot raise: a user presses again
        process.send_signal(signal.SIGINT)
        time.sleep(3)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in out + err
    assert "Traceback" not in err
