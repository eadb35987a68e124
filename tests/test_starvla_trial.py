"""What neither files nor user say about a StarVLA checkpoint: found by trying, or from the weights and the config."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from starvla_runs import CONFIG, PROMPT, starvla_names, starvla_policy, write_fixture, write_run
from tiny import BODY, random_batch, vlm_folder
from tiny_flow import flow_policy

from vla_agents.cli import main
from vla_agents.errors import CheckpointError, ConfigError
from vla_agents.normalize import Normalizer, VectorStats
from vla_agents.policies.starvla.check import Check, CheckConfig
from vla_agents.policies.starvla.load import load_starvla
from vla_agents.policies.starvla.options import StarVLAOptions
from vla_agents.policies.starvla.trial import Question, settle

NORM = Question("final_norm", (False, True), lambda answer: f"norm {answer}")
PI = Question("pi_semantics", ("interleaved", "cross_only"), lambda answer: f"semantics {answer}")
HEAD: dict[str, Any] = {
    "action_dim": 4, "state_dim": 3, "action_horizon": 4, "num_inference_timesteps": 4, "repeated_diffusion_steps": 8,
    "diffusion_model_cfg": {"attention_head_dim": 12, "num_attention_heads": 2, "dropout": 0.0},
}  # fmt: skip


def settled(errors: dict[tuple[bool, str], float]) -> tuple[StarVLAOptions, list[str]]:
    def load(options: StarVLAOptions) -> tuple[bool, str]:
        assert options.final_norm is not None and options.pi_semantics is not None
        if (key := (options.final_norm, options.pi_semantics)) not in errors:
            raise ConfigError(f"{key} cannot be")
        return key

    options, policy, lines = settle([NORM, PI], StarVLAOptions(), load, lambda key: errors[key], 1e-4)
    assert policy == (options.final_norm, options.pi_semantics)
    return options, lines


def test_the_reading_that_fits_is_taken() -> None:
    errors = {(False, "interleaved"): 0.3, (False, "cross_only"): 0.2, (True, "interleaved"): 1e-6}
    options, lines = settled(errors)
    assert options.final_norm is True and options.pi_semantics == "interleaved"
    missed = "found by trying, final_norm=False, pi_semantics=interleaved missed by 0.3; "
    assert lines == [f"norm True ({missed}--final-norm)", "semantics interleaved (--pi-semantics)"]
    assert settled({(False, "interleaved"): 1e-5, (True, "interleaved"): 0.0})[0].final_norm is False
    assert settled({(False, "interleaved"): 0.3, (True, "cross_only"): 0.1})[0].final_norm is True  # nearest
    assert settled({(True, "cross_only"): 0.1})[0].pi_semantics == "cross_only"  # the others cannot be
    with pytest.raises(ConfigError, match="cannot be"):
        settled({})


def test_a_qwen3_read_after_its_final_norm_is_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a StarVLA over transformers 5 would have trained it; loading asks, a fixture answers."""
    policy = starvla_policy(final_norm=True)
    policy.normalizers["state"] = Normalizer(BODY.state, VectorStats.identity(3), {"*": "none"})
    run = write_run(tmp_path / "run", starvla_names(policy))
    folder = write_fixture(tmp_path / "fixture", run, policy)
    words = ["check-starvla", str(folder), "--vlm", str(vlm_folder())]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "read after the final norm (found by trying, final_norm=False missed by" in said
    said_so = Check(CheckConfig(fixture=str(folder), vlm=str(vlm_folder()), final_norm=False))
    assert not all(row.passed for row in said_so.rows())  # what is said is not tried


def test_the_older_semantics_of_pi_are_found_out(tmp_path: Path) -> None:
    """StarVLA's own numbers of both readings, with the same weights."""
    source = golden.fixture("QwenPI")
    folder = tmp_path / "fixture"
    folder.mkdir()
    for name in ("run", "inputs", "meta.json"):
        (folder / name).symlink_to(source / name)
    with np.load(source / "outputs_legacy_allcross.npz") as file:
        outputs = {name: file[name] for name in file.files if name.startswith("single.")}
    np.savez(folder / "outputs.npz", **outputs, **{"single.noise": golden.outputs("QwenPI")["single.noise"]})
    check = Check(CheckConfig(fixture=str(folder), vlm=str(golden.vlm())))
    assert check.options.pi_semantics == "cross_only" and check.options.final_norm is False
    assert all(row.passed for row in check.rows())


# ---- Qwen-GR00T -------------------------------------------------------------------------------------------------
def gr00t_run(folder: Path, policy: Any, **diffusion: Any) -> Path:
    config = copy.deepcopy(CONFIG)
    head = copy.deepcopy(HEAD)
    head["diffusion_model_cfg"] |= diffusion
    config["framework"] |= {"name": "QwenGR00T", "action_model": head}
    return write_run(folder, starvla_names(policy), config)


def load(run: Path) -> Any:
    given = {"vlm": str(vlm_folder()), "unnormalization": "none", "state": True, "final_norm": True}
    return load_starvla(run, embodiment=BODY, device="cpu", **given)


@pytest.mark.parametrize("width", [24, 32])
@torch.no_grad()
def test_gr00t_whose_blocks_all_read_the_vlm(tmp_path: Path, width: int) -> None:
    """By the width of the keys' inputs where that tells (24 is not the VLM's), else by the config."""
    sizes = {"width": width, "heads": 2, "depth": 4, "prompt": PROMPT}
    made = {name: flow_policy("gr00t", semantics=name, **sizes) for name in ("cross_only", "interleaved")}
    batch, noise = random_batch(2), torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    for name, policy in made.items():
        policy.normalizers["state"] = Normalizer(BODY.state, VectorStats.identity(3), {"*": "none"})
        said = {} if width == 24 else {"use_canonical_forward": name == "interleaved"}
        loaded = load(gr00t_run(tmp_path / name, policy, **said))
        assert loaded.config.semantics == name and loaded.head.crosses == policy.head.crosses
        assert torch.equal(loaded.normalized_actions(batch, noise), policy.normalized_actions(batch, noise))
    silent = load(gr00t_run(tmp_path / "silent", made["cross_only"]))
    assert silent.config.semantics == ("cross_only" if width == 24 else "interleaved")


def test_without_what_was_drawn_nothing_can_be_compared(tmp_path: Path) -> None:
    policy = flow_policy("gr00t", width=24, prompt=PROMPT)
    noise = torch.zeros(1, 4, 4)
    folder = write_fixture(tmp_path / "fixture", gr00t_run(tmp_path / "run", policy), policy, noise)
    with np.load(folder / "outputs.npz") as file:
        actions = file["single.normalized_actions"]
    np.savez(folder / "outputs.npz", **{"single.normalized_actions": actions})
    with pytest.raises(CheckpointError, match=r"single\.noise is missing"):
        list(Check(CheckConfig(fixture=str(folder), vlm=str(vlm_folder()))).rows())
