"""The benchmarks of acting: the one for a GPU says so where there is none, and runs; what it calls a floor is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "inference_gpu.py"), *words],
        env=env,
        text=True,
        capture_output=True,
    )


def test_without_a_gpu_it_says_so_and_stops() -> None:
    done = run()
    assert done.returncode == 2
    assert "no GPU here" in done.stderr and "Nothing was run" in done.stderr
    assert "--device cpu --size tiny" in done.stderr and not done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_script_itself_runs(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = (
        "--device cpu --size tiny2.5 --ways eager --rounds 2 --framework gr00t fast --train gr00t --batch 2"
    )
    done = run(*words.split(), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "only the script is tried" in done.stdout and "samples/s" in done.stdout
    found = json.loads(out.read_text())
    assert [row["framework"] for row in found["acting"]] == ["gr00t", "fast"]
    for row in found["acting"]:
        assert row["floor_ms"] > 0 and 0 < row["ways"]["eager"]["p50_ms"] <= row["ways"]["eager"]["p99_ms"]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import inference_floor
    import inference_models

    return inference_models, inference_floor


def test_the_floor_counts_what_an_act_reads(models: Any) -> None:
    made, floor = models
    backbone = made.make_backbone(made.SIZES["tiny"], dtype=torch.float32, device="meta")
    count = {name: weight.numel() for name, weight in backbone.vlm.model.named_parameters()}
    vlm = 4 * sum(n for name, n in count.items() if ".layers." in name or name.startswith("visual."))
    oft = made.make_policy("oft", backbone)
    assert floor.weights_read(oft) == vlm + 4 * sum(weight.numel() for weight in oft.head.parameters())
    gr00t = made.make_policy("gr00t", backbone)
    head, steps = gr00t.head, gr00t.config.steps
    every_step = [head.action_encoder, head.action_decoder, head.model.proj_out_2]
    every_step += [block.ff for block in head.model.transformer_blocks]
    every_step += [
        layer for block in head.model.transformer_blocks for layer in (block.attn1.to_q, block.attn1.to_out)
    ]
    once = [head.state_encoder]
    for block, cross in zip(head.model.transformer_blocks, head.crosses, strict=True):
        (once if cross else every_step).extend([block.attn1.to_k, block.attn1.to_v])

    def size(modules: list[Any]) -> int:
        return 4 * sum(weight.numel() for module in modules for weight in module.parameters())

    assert floor.weights_read(gr00t) == vlm + size(once) + steps * size(every_step)
    parts = floor.parameters_by_part(gr00t)
    assert sum(parts.values()) == sum(weight.numel() for weight in gr00t.parameters())
