"""Where the time of an act goes, stage by stage, ours beside the plain way, and why they differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from inference_reference import Reference, plain_head
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vla_agents.policies.policy import Batch
from vla_agents.policies.qwen_decoder import run_decoder
from vla_agents.policies.qwen_vision import grid_constants, see

Measure = Callable[[dict[str, Callable[[], Any]]], dict[str, float]]
"""Functions by name -> median seconds of each, taken in turns."""


@torch.no_grad()
def explain(
    name: str, reference: Reference, obs: dict[str, Any], noise: Tensor, measure: Measure, console: Console
) -> None:
    """Print the stages of one framework."""
    policy = reference.policy
    stages = _Stages(policy, reference, obs, noise)
    spent = {stage: 1000 * seconds for stage, seconds in measure(stages.works()).items()}
    table = Table(title=f"{name}: where the time goes, ms")
    for column in ("stage", "plain", "ours", "why"):
        table.add_column(column, justify="left" if column in ("stage", "why") else "right")
    for row in stages.rows(spent):
        table.add_row(*row)
    console.print(table)


class _Stages:
    """The stages of an act as functions; what one needs of an earlier one is there."""

    def __init__(self, policy: Any, reference: Reference, obs: dict[str, Any], noise: Tensor) -> None:
        self.policy, self.reference, self.obs, self.noise = policy, reference, obs, noise
        self.backbone, self.model = policy.backbone, policy.backbone.vlm.model
        self.batch = Batch.from_observations([obs], policy.embodiment).to(policy.device)
        self.theirs = reference.preprocess(obs)
        self.own = self._inputs()
        self.depth = self.backbone.num_layers
        self.flow = hasattr(policy, "layers")
        self.deepest = max(policy.layers) if self.flow else self.depth

    def _inputs(self) -> Any:
        views = self.policy.views(self.batch)
        if hasattr(self.policy, "prompts"):
            cut = self.policy.config.action_token if hasattr(self.policy, "queries") else ""
            return self.backbone.inputs(views, self.policy.prompts(self.batch), cut_after=cut)
        return self.backbone.inputs(views, [self.policy.config.told(self.obs["instruction"])])

    def works(self) -> dict[str, Callable[[], Any]]:
        """All that is measured."""
        own, model, backbone = self.own, self.model, self.backbone
        constants = [grid_constants(model.visual, grid) for grid in own.grids]
        hidden = run_decoder(model, own, [self.depth], final_norm=True)[0]
        full = torch.zeros(1, self.theirs["input_ids"].shape[1], hidden.shape[-1]).to(hidden)
        works: dict[str, Callable[[], Any]] = {
            "plain pixels": lambda: self.reference.preprocess(self.obs),
            "own pixels": self._inputs,
            "plain vision": lambda: self.reference.see(self.theirs),
            "own vision": lambda: see(model.visual, own.pixels, own.grids, constants),
            "plain all": lambda: self.reference.read(self.theirs),
            "own all": lambda: run_decoder(model, own, [self.deepest], final_norm=True),
            "logits": lambda: backbone.vlm.lm_head(full),
        }
        return works | (self._flow_works() if self.flow else self._other_works())

    def _flow_works(self) -> dict[str, Callable[[], Any]]:
        policy, head = self.policy, self.policy.head
        contexts, mask = policy.encode(self.batch)
        conditioning = head.step_conditioning(policy.schedule, policy.config.steps)
        state = policy.head_state(self.batch)
        return {
            "plain head": lambda: plain_head(head, self.noise, state, contexts, policy.config.steps),
            "own head": lambda: head.sample(self.noise, conditioning, contexts, mask, state),
            "keys and values": lambda: head.project(contexts, mask),
            "time": lambda: head.condition(
                policy.schedule.step_buckets(policy.config.steps).to(self.noise.device)
            ),
        }

    def _other_works(self) -> dict[str, Callable[[], Any]]:
        policy = self.policy
        if not hasattr(policy, "head"):
            return {
                "plain head": lambda: self.reference.speak(self.theirs),
                "own head": lambda: policy.generate(self.batch),
            }
        states = torch.zeros(1, policy.horizon, self.backbone.hidden_size).to(self.noise)
        return {"plain head": lambda: policy.head(states), "own head": lambda: policy.head(states)}

    def rows(self, ms: dict[str, float]) -> list[tuple[str, str, str, str]]:
        """The table."""
        tokens = self.theirs["input_ids"].shape[1], self.own["input_ids"].shape[1]
        why = [f"logits of all positions {ms['logits']:.0f} ms"]
        if tokens[1] < tokens[0]:
            why.append(f"{tokens[1]} instead of {tokens[0]} tokens: cut after the last query")
        if self.deepest < self.depth:
            why.append(f"{self.deepest} of {self.depth} layers are read")
        patches = "one batch of views, patch embedding as a matrix product, grid constants kept"
        rows = [
            ("pixels, tokens", ms["plain pixels"], ms["own pixels"], "no PIL round trip, prompt kept"),
            ("vision tower", ms["plain vision"], ms["own vision"], patches),
        ]
        if hasattr(self.policy, "head"):
            plain, own = (ms[f"{way} all"] - ms[f"{way} vision"] for way in ("plain", "own"))
            rows.append(("language model", plain, own, "; ".join(why)))
            rows.append(("head", ms["plain head"], ms["own head"], self._why_head(ms)))
        else:
            said = len(self.policy.generate(self.batch)[0])
            reason = f"{said} words, of {len(self.policy.fast)} instead of the whole vocabulary; without generate()"
            plain, own = (
                ms["plain head"] - ms["plain vision"],
                ms["own head"] - ms["own pixels"] - ms["own vision"],
            )
            rows.append(("prompt and words", plain, own, reason))
        return [(stage, f"{plain:.1f}", f"{own:.1f}", reason) for stage, plain, own, reason in rows]

    def _why_head(self, ms: dict[str, float]) -> str:
        if not self.flow:
            return "the same"
        steps = self.policy.config.steps
        saved = (steps - 1) * ms["keys and values"], ms["time"]
        idle = (
            "" if self.policy.head.mixes else "; only the action tokens are computed, no other is looked at"
        )
        return (
            f"keys and values once instead of {steps} times: {saved[0]:.0f} ms; all that depends on the time kept: "
            f"{saved[1]:.0f} ms; last block on the action tokens alone{idle}"
        )
