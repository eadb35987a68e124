"""DDP, FSDP2, ZeRO-2 and ZeRO-3 in two processes on one CPU (gloo): the step of one process, exact resume, checkpoints that
know nothing of engines; and refusals where another engine would have been put in place silently."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import BASE, losses
from test_train_exact import cloning
from tiny import random_batch
from tiny_all import framework

from vla_agents.errors import ConfigError, MissingDependencyError, TrainingError
from vla_agents.policies.checkpoint import load_policy
from vla_agents.train.engines import launch
from vla_agents.train.engines.fsdp import units
from vla_agents.train.engines.zero import _import, _refuse
from vla_agents.train.trainer import Trainer

# `./run test` puts it into a folder of its own.
DEEPSPEED = Path(os.environ.get("VLA_AGENTS_DEEPSPEED", "nowhere"))
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None or (DEEPSPEED / "deepspeed").is_dir()
ZERO = ["zero2", "zero3"]
ENGINES = ["ddp", "fsdp2", *(ZERO if HAS_DEEPSPEED else ())]


def need(engine: str) -> None:
    if engine not in ENGINES:
        pytest.skip("deepspeed is not installed: pip install 'vla-agents[deepspeed]'")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One launch for all engines: most of the time goes into imports."""
    out, here = tmp_path_factory.mktemp("engines"), Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(here / "engines_run.py"), str(out), ",".join(ENGINES)],
        env=os.environ
        | environment
        | {"PYTHONPATH": os.pathsep.join(map(str, (here, here.parent, DEEPSPEED)))},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with as many micro-batches."""
    out = tmp_path_factory.mktemp("alone")
    optimizer = replace(BASE.optimizer, kind="adamw", lr_of={"head": 5e-4})
    config = replace(
        BASE, out=str(out), optimizer=optimizer, steps=4, accumulation=4, validate_every=4, save_every=0
    )
    Trainer(framework("qwen_oft"), cloning(4), config).fit()
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", *ZERO])
def test_two_processes_take_the_step_of_one_and_resume_to_the_bit(
    engine: str, runs: Path, alone: Path
) -> None:
    need(engine)
    first, second = (json.loads((runs / engine / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second == first | {"world": 2, "kind": engine, "step": 4}
    assert first["metrics"]["success"] == 4
    assert losses(runs / engine / "whole") == pytest.approx(losses(alone), rel=2e-4)

    same_to_the_bit(runs / engine / "whole", runs / engine / "broken")
    consolidated(runs / engine / "whole" / "last", "qwen_oft")


def same_to_the_bit(whole: Path, broken: Path) -> None:
    """Weights, optimiser state and losses of an unbroken run and of a stopped and resumed one."""
    for file in ("model.safetensors", "training/state-00001.safetensors"):
        ours, theirs = load_file(whole / "last" / file), load_file(broken / "last" / file)
        assert sorted(ours) == sorted(theirs) and len(ours) > 10
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), file
    assert losses(whole) == losses(broken)


def consolidated(checkpoint: Path, policy: str) -> None:
    """Whole tensors in float32, which load without the engine and were trained."""
    weights = load_file(checkpoint / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    batch = random_batch(2)
    chunk = load_policy(checkpoint, device="cpu").predict_action(batch)
    assert torch.isfinite(chunk).all()
    assert not torch.equal(chunk, framework(policy).predict_action(batch))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("engine", "policy"),
    [
        ("fsdp2", "qwen_oft"),
        ("fsdp2", "qwen_pi"),
        *((kind, "qwen_gr00t") for kind in ("fsdp2", *ZERO)),
    ],
)
def test_half_precision_is_the_same_to_what_it_can_tell_whatever_the_engine(
    engine: str, policy: str, runs: Path
) -> None:
    need(engine)
    ddp, other = (losses(runs / kind / f"half_{policy}") for kind in ("ddp", engine))
    assert len(ddp) == 3 and other == pytest.approx(ddp, rel=0.03)
    consolidated(runs / engine / f"half_{policy}" / "last", policy)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", *ZERO])
def test_a_flow_policy_in_half_precision_resumes_to_the_bit(engine: str, runs: Path) -> None:
    need(engine)
    same_to_the_bit(runs / engine / "half_qwen_gr00t", runs / engine / "half_broken")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_one_process_goes_on_with_what_an_engine_left(
    engine: str, runs: Path, tmp_path: Path, alone: Path
) -> None:
    need(engine)
    optimizer = replace(BASE.optimizer, kind="adamw", lr_of={"head": 5e-4})
    found = []
    for source in (runs / engine / "whole", alone):
        out = tmp_path / source.name
        out.symlink_to(source)
        config = replace(
            BASE, out=str(out), optimizer=optimizer, accumulation=4, resume=True, steps=6, save_every=0
        )
        config = replace(config, ema=0.0 if engine == "zero3" or source is alone else 0.9)
        Trainer(framework("qwen_oft"), cloning(4), config).fit()
        found.append(losses(out))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


# ---- refusals ---------------------------------------------------------------------------------------------
def refused(monkeypatch: pytest.MonkeyPatch, match: str, engine: str = "auto", **environment: str) -> None:
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(TrainingError, match=match):
            launch.engine_kind(replace(BASE, engine=engine))  # type: ignore[arg-type]


def test_what_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for engine in ("ddp", "fsdp2", "zero2", "zero3"):
        refused(monkeypatch, "for several processes, and this is one", engine)
    refused(monkeypatch, "fsdp2 is for several processes", ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    refused(monkeypatch, "FSDP version 1", ACCELERATE_USE_FSDP="true", FSDP_VERSION="1")
    refused(monkeypatch, "ZeRO stage 1", ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="1")
    refused(
        monkeypatch,
        "asks for zero3",
        "fsdp2",
        ACCELERATE_USE_DEEPSPEED="true",
        ACCELERATE_DEEPSPEED_ZERO_STAGE="3",
    )
    monkeypatch.setattr(launch, "_processes_of_launcher", lambda: 2)
    refused(monkeypatch, "asked for 2 processes and started one")


def test_a_launcher_that_starts_one_process_of_two_is_found_out(tmp_path: Path) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one, without a word."""
    script = tmp_path / "script.py"
    script.write_text(
        "from vla_agents.train.engines import launch\n"
        "from vla_agents.train.config import RunConfig\n"
        "launch.engine_kind(RunConfig())\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.accelerate_cli",
            "launch",
            "--cpu",
            "--num_processes",
            "2",
            script,
        ],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode != 0 and "asked for 2 processes and started one" in done.stderr, done.stderr[
        -2000:
    ]


def test_zero_without_deepspeed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MissingDependencyError, match=r"vla-agents\[deepspeed\]"):
        _import(torch.device("cpu"))


def test_what_an_engine_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot run muon"):
        _refuse(BASE, "zero2")
    with pytest.raises(ConfigError, match="no average"):
        _refuse(replace(BASE, ema=0.9, optimizer=replace(BASE.optimizer, kind="adamw")), "zero3")
    policy = framework("qwen_oft")
    next(policy.head.parameters()).data = next(policy.head.parameters()).data.bfloat16()
    with pytest.raises(TrainingError, match="weights in float32"):
        launch._refuse_mixed_weights(policy, "fsdp2")
    assert len(units(framework("qwen_gr00t"))) == 2  # the layers of the language model
