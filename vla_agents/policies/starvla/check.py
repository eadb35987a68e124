"""Does our code compute what StarVLA computed? A folder of StarVLA's inputs and outputs, row by row.

    FIXTURE/run/          config.yaml, dataset_statistics.json, checkpoints/...
    FIXTURE/inputs/       ex0.json {"lang": ..., "views": n}, ex0_view0.png, ..., ex0_action.npy (normalised), ex0_state.npy
    FIXTURE/outputs.npz   single.* (ex0), batch.* and train.* (all): input_ids, pixel_values, last_hidden, noise, loss, ...
    FIXTURE/meta.json     gradient norms, FAST tokens

Everything runs in float32 on the CPU, with the noise and the times that StarVLA drew. What the files do not say is found by
trying (`trial.py`) and printed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tyro.conf import Positional

from vla_agents.policies.policy import Batch, Policy
from vla_agents.policies.qwen_decoder import PromptInputs, run_decoder
from vla_agents.policies.starvla.case import ACTIONS, Case
from vla_agents.policies.starvla.table import Row, near, print_rows, same
from vla_agents.policies.starvla.trial import Size, distance, training_sizes
from vla_agents.policies.starvla.units import action_normalizer
from vla_agents.policies.starvla.weights import our_name

HIDDEN, LOSS, GRADIENTS = 1e-4, 1e-4, 1e-3


@dataclass(frozen=True)
class CheckConfig:
    """Compare our numbers with StarVLA's on a folder of its inputs and outputs; exit status 1 where a bound is exceeded."""

    fixture: Positional[str]
    """Folder with run/, inputs/, outputs.npz and meta.json."""
    vlm: str
    """Folder or hub id with the VLM's config, tokenizer and preprocessor_config.json; its weights are not read."""
    framework: str | None = None
    """qwen_fast, qwen_oft, qwen_pi or qwen_gr00t; by default what run/config.yaml says."""
    final_norm: bool | None = None
    """Qwen3-VL: whether the head saw the last layer after the final norm; by default what fits, false (transformers 4.57)
    before true (from 5.0 on)."""
    pi_semantics: Literal["interleaved", "cross_only"] | None = None
    """Qwen-PI; by default as run/config.yaml says, and where it does not, what fits."""
    fast_tokenizer: str | None = None
    """Qwen-FAST: folder of the FAST tokenizer; by default one named ...fast... near the fixture or the VLM."""


class Check(Case):
    """A fixture's quantities, compared row by row."""

    def rows(self) -> Iterator[Row]:
        """All quantities that the fixture holds, one after the other."""
        for how in ("single", "batch"):
            if f"{how}.normalized_actions" in self.outputs:
                yield from self._acting(how, self.batch(self.count_of(how)))
        if "train.loss" in self.outputs:
            yield from self._training()

    def _misfit(self, policy: Any) -> float:
        """The largest error of actions and hidden states. (The actions of an interleaved Qwen-PI do not tell whether the
        final norm was there: nothing reads the last layer.)"""
        self.policy = policy
        for how in ("single", "batch"):
            if f"{how}.normalized_actions" in self.outputs:
                rows = self._acting(how, self.batch(self.count_of(how)))
                return max(row.error for row in rows if row.name.endswith(("_actions", "_hidden")))
        return 0.0

    def _acting(self, how: str, batch: Batch) -> Iterator[Row]:
        with torch.no_grad(), _whole_prompt(self.policy), _recorded(self.policy) as seen:
            actions = self.policy.predict_action(batch, **self.noise(how))
        yield from self._input_rows(how, seen[0])
        yield from self._hidden_rows(how, seen[0])
        if self.framework == "qwen_fast":
            yield from self._token_rows(how, batch)
        wanted = self.outputs[f"{how}.normalized_actions"]
        yield near(f"{how}.normalized_actions", wanted, actions, ACTIONS)
        if self.framework == "qwen_oft":
            with torch.no_grad():
                cut = self.policy.predict_action(batch)
            yield near(f"{how}.normalized_actions (cut)", wanted, cut, ACTIONS)
        yield from self._unnormalized_rows(how, actions)

    def _input_rows(self, how: str, inputs: PromptInputs) -> Iterator[Row]:
        own = {"input_ids": inputs["input_ids"], "attention_mask": inputs.mask.long()}
        own |= {name: inputs[name] for name in ("image_grid_thw", "pixel_values")}
        for name, value in own.items():
            if f"{how}.{name}" in self.outputs:
                yield same(f"{how}.{name}", self.outputs[f"{how}.{name}"], value)

    def _hidden_rows(self, how: str, inputs: PromptInputs) -> Iterator[Row]:
        """Where nothing is padded; StarVLA's `hidden_states` are embedding and layers, the last one normed or not."""
        model, depth = self.policy.backbone.vlm.model, self.policy.backbone.num_layers
        norm, mask = getattr(self.policy.config, "final_norm", True), inputs.mask.numpy()
        for name, layers in (("last_hidden", [depth]), ("hidden_states", list(range(depth + 1)))):
            wanted = self.outputs.get(f"{how}.{name}")
            if wanted is None:
                continue
            if wanted.shape[-3:-1] != mask.shape:
                yield Row(
                    f"{how}.{name}", np.inf, HIDDEN, f"shape {wanted.shape}, expected {mask.shape} tokens"
                )
                continue
            with torch.no_grad():
                kept = run_decoder(model, inputs, layers, final_norm=norm)
            own = kept[0] if name == "last_hidden" else torch.stack(kept)
            yield near(f"{how}.{name}", wanted[..., mask, :], own[..., inputs.mask, :], HIDDEN)

    def _token_rows(self, how: str, batch: Batch) -> Iterator[Row]:
        wanted = self.meta.get(f"{how}.fast_tokens")
        if wanted is not None:
            said = self.policy.generate(batch)
            wrong = sum(a != b for a, b in zip(said, wanted, strict=True))
            yield Row(f"{how}.fast_tokens", wrong, 0, "answers differ")

    def _unnormalized_rows(self, how: str, actions: Tensor) -> Iterator[Row]:
        key = self.meta.get("unnorm_key") or next(iter(self.run.statistics), "")
        entry = self.run.statistics.get(key, {}).get("action", {})
        for convention in ("head", "dec2025"):
            wanted = self.outputs.get(f"{how}.unnorm_{convention}")
            if wanted is None:
                continue
            found = {}
            for ranges in ("min_max", "q01_q99"):  # which of them a fixture was made with, nobody says
                parts: Any = (self.policy.embodiment.action, entry, convention, ranges)
                found[ranges] = distance(wanted, action_normalizer(*parts).unnormalize(actions))
            best = min(found, key=lambda ranges: found[ranges])
            yield Row(f"{how}.unnorm_{convention}", found[best], ACTIONS, f"max |Δ|, {best}")

    def _training(self) -> Iterator[Row]:
        wanted = float(self.outputs["train.loss"])
        sizes = training_sizes(self.run, self.acting_size, self.framework)
        errors: dict[Size, float] = {}
        for (
            size
        ) in sizes:  # a model hardly looks at some pictures: what is nearly right may still be the wrong size
            batch, inputs, loss = self._loss(size)
            errors[size] = abs(float(loss.detach()) - wanted) / max(abs(wanted), 1e-12)
            if errors[size] <= LOSS / 100:
                break
        best = min(errors, key=lambda tried: errors[tried])
        if best != size:
            batch, inputs, loss = self._loss(best)
        loss.backward()
        pictures = "" if best == sizes[0] else f", pictures {_in_words(best)}"
        yield from self._input_rows("train", inputs)
        if "train.labels" in self.outputs:
            yield same("train.labels", self.outputs["train.labels"], self.policy.answered(batch)[1])
        yield Row("train.loss", errors[best], LOSS, f"relative{pictures}")
        yield from self._gradient_rows()

    def _loss(self, size: Size) -> tuple[Batch, PromptInputs, Tensor]:
        """Of the training step with StarVLA's noise and times, from pictures of some size."""
        kwargs = self.noise("train", "time")
        batch = self.batch(self.count_of("train"), size)
        self.policy.zero_grad(set_to_none=True)
        with _whole_prompt(self.policy), _recorded(self.policy) as seen:
            (loss,) = self.policy(batch, **kwargs).values()
        return batch, seen[0], loss

    def _gradient_rows(self) -> Iterator[Row]:
        norms = {our_name(k, self.framework): v for k, v in self.meta.get("train.grad_norms", {}).items()}
        if not norms:
            return
        own = {
            name: 0.0 if p.grad is None else float(p.grad.norm())
            for name, p in self.policy.named_parameters()
        }
        floor = 1e-6 * max(norms.values())
        errors = {
            name: abs(own.get(name, 0.0) - value) / max(_scale(name, norms), floor)
            for name, value in norms.items()
        }
        worst = max(errors, key=lambda name: errors[name])
        yield Row("train.grad_norms", errors[worst], GRADIENTS, "relative", worst)
        without = {our_name(k, self.framework) for k in self.meta.get("train.params_without_grad", [])}
        extra = [name for name, value in own.items() if name in without and value > 0]
        yield Row("train.params_without_grad", len(extra), 0, "have one here")


def _scale(name: str, norms: Mapping[str, float]) -> float:
    """What a gradient's error is measured against: itself; for a key's bias, which softmax cannot see, its weight's."""
    return norms.get(
        name.removesuffix("bias") + "weight" if name.endswith("to_k.bias") else name, norms[name]
    )


def check_starvla(config: CheckConfig) -> bool:
    """Print the table; returns whether every quantity is within its bound."""
    check = Check(config)
    return print_rows(f"{check.framework}, {check.run.weights.name}", check.rows(), check.assumed)


# ---- making the policy tell ----------------------------------------------------------------------------------
def _in_words(size: Size) -> str:
    return "as they are" if size is None else "{} x {}".format(*size)


@contextmanager
def _recorded(policy: Policy) -> Iterator[list[PromptInputs]]:
    """What `backbone.inputs` returned, call by call, with pixels as the model reads them."""
    backbone: Any = policy.backbone
    original: Callable[..., PromptInputs] = backbone.inputs
    calls: list[PromptInputs] = []

    def inputs(*args: Any, **kwargs: Any) -> PromptInputs:
        made = original(*args, **kwargs)
        calls.append(made.read_by(backbone.image_settings.normalized, backbone.vlm.dtype))
        return made

    backbone.inputs = inputs
    try:
        yield calls
    finally:
        del backbone.inputs


@contextmanager
def _whole_prompt(policy: Any) -> Iterator[None]:
    """Qwen-OFT without its cut, so that the token ids can be compared."""
    config = policy.config
    if hasattr(config, "cut"):
        policy.config = dataclasses.replace(config, cut=False)
    try:
        yield
    finally:
        policy.config = config
