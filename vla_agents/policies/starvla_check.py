"""Does our code compute what StarVLA computed? A folder of StarVLA's inputs and outputs, row by row.

    FIXTURE/run/          config.yaml, dataset_statistics.json, checkpoints/...
    FIXTURE/inputs/       ex0.json {"lang": ..., "views": n}, ex0_view0.png, ..., ex0_action.npy (normalised), ex0_state.npy
    FIXTURE/outputs.npz   single.* (ex0), batch.* and train.* (all): input_ids, pixel_values, last_hidden, noise, loss, ...
    FIXTURE/meta.json     gradient norms, FAST tokens

Everything runs in float32 on the CPU, with the noise and the times that StarVLA drew. What the files do not say is taken as
StarVLA (pinned transformers, state of 2026) has it, and printed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tyro.conf import Positional

from vla_agents.errors import CheckpointError
from vla_agents.policies.policy import Batch, Policy
from vla_agents.policies.qwen_decoder import PromptInputs, run_decoder
from vla_agents.policies.starvla import load_starvla
from vla_agents.policies.starvla_fixture import find_fast, find_inputs, read_batch
from vla_agents.policies.starvla_options import StarVLAOptions, is_qwen3
from vla_agents.policies.starvla_run import StarVLARun, read_run, read_weights, require_framework
from vla_agents.policies.starvla_table import Row, near, print_rows, same
from vla_agents.policies.starvla_units import action_normalizer, known_family
from vla_agents.policies.starvla_weights import our_name

ACTIONS, HIDDEN, LOSS, GRADIENTS = 1e-4, 1e-4, 1e-4, 1e-3


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
    """Qwen3-VL: whether the head saw the last layer after the final norm; by default false, as with transformers 4.57."""
    pi_semantics: Literal["interleaved", "cross_only"] | None = None
    """Qwen-PI; by default what StarVLA of 2026 does with run/config.yaml."""
    fast_tokenizer: str | None = None
    """Qwen-FAST: folder of the FAST tokenizer; by default a folder `fast_tokenizer` beside the frameworks' folders."""


class Check:
    """A fixture and the policy made from it.

    Args:
        config: See `CheckConfig`.
    """

    def __init__(self, config: CheckConfig) -> None:
        self.folder = Path(config.fixture)
        for name in ("run", "inputs", "outputs.npz", "meta.json"):
            if not (self.folder / name).exists():
                raise CheckpointError(
                    self.folder, f"{name} is missing", "give a folder with the fixtures' layout"
                )
        self.run = read_run(self.folder / "run")
        self.framework = require_framework(config.framework or self.run.framework)
        with np.load(self.folder / "outputs.npz", allow_pickle=False) as file:
            self.outputs = {name: file[name] for name in file.files}
        self.meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
        self.cameras, self.count = find_inputs(self.folder / "inputs")
        self.assumed: list[str] = []
        self.options = self._options(config)
        self.policy: Any = load_starvla(self.folder / "run", self.options, device="cpu")

    def _options(self, config: CheckConfig) -> StarVLAOptions:
        qwen3 = is_qwen3(read_weights(self.run.weights))
        final_norm = not qwen3 if config.final_norm is None else config.final_norm
        if self.framework == "qwen_fast":
            final_norm = True
        semantics, fast = config.pi_semantics, config.fast_tokenizer
        if config.final_norm is None and self.framework != "qwen_fast":
            where = "after" if final_norm else "before"
            self.assumed.append(
                f"the last layer is read {where} the final norm (transformers 4.57; --final-norm)"
            )
        if self.framework == "qwen_pi" and semantics is None:
            semantics = _semantics(self.run)
            self.assumed.append(
                f"PI semantics {semantics} (StarVLA of 2026 with this config; --pi-semantics)"
            )
        if self.framework == "qwen_fast" and fast is None:
            fast = find_fast(self.folder)
            self.assumed.append(f"FAST tokenizer {fast} (--fast-tokenizer)")
        return StarVLAOptions(
            vlm=config.vlm,
            framework=self.framework,
            unnormalization="none",
            final_norm=final_norm,
            pi_semantics=semantics,
            state=(self.folder / "inputs" / "ex0_state.npy").is_file(),
            cameras=self.cameras,
            fast_tokenizer=fast,
        )

    # ---- what is compared ---------------------------------------------------------------------------------
    def rows(self) -> Iterator[Row]:
        """All quantities that the fixture holds, one after the other."""
        for how, count in (("single", 1), ("batch", self.count)):
            if f"{how}.normalized_actions" in self.outputs:
                yield from self._acting(how, self.batch(count))
        if "train.loss" in self.outputs:
            yield from self._training(self.batch(self.count))

    def batch(self, count: int) -> Batch:
        """The first `count` inputs; `action` is normalised already."""
        return read_batch(self.folder / "inputs", self.cameras, count, self._picture_size())

    def _picture_size(self) -> tuple[int, int] | None:
        """(width, height) to which StarVLA brings pictures before its processor; its FAST leaves them."""
        height, width = self.run.image_size
        return None if self.framework == "qwen_fast" else (width, height)

    def _acting(self, how: str, batch: Batch) -> Iterator[Row]:
        kwargs = {}
        if f"{how}.noise" in self.outputs:
            kwargs["noise"] = torch.from_numpy(self.outputs[f"{how}.noise"])
        with torch.no_grad(), _whole_prompt(self.policy), _recorded(self.policy) as seen:
            actions = self.policy.predict_action(batch, **kwargs)
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
        norm = bool(self.options.final_norm)
        for name, layers in (("last_hidden", [depth]), ("hidden_states", list(range(depth + 1)))):
            if f"{how}.{name}" in self.outputs:
                with torch.no_grad():
                    kept = run_decoder(model, inputs, layers, final_norm=norm)
                own = kept[0] if name == "last_hidden" else torch.stack(kept)
                wanted = self.outputs[f"{how}.{name}"][..., inputs.mask.numpy(), :]
                yield near(f"{how}.{name}", wanted, own[..., inputs.mask, :], HIDDEN)

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
            name = f"{how}.unnorm_{convention}"
            if name in self.outputs:
                libero = known_family(self.run.data_mix) != "oxe"
                ranges: Any = "min_max" if libero and convention == "head" else "q01_q99"
                normalizer = action_normalizer(self.policy.embodiment.action, entry, convention, ranges)  # type: ignore[arg-type]
                yield near(name, self.outputs[name], normalizer.unnormalize(actions), ACTIONS)

    def _training(self, batch: Batch) -> Iterator[Row]:
        kwargs = {}
        for name, key in (("noise", "train.noise"), ("time", "train.t")):
            if key in self.outputs:
                kwargs[name] = torch.from_numpy(self.outputs[key])
        self.policy.zero_grad(set_to_none=True)
        with _whole_prompt(self.policy), _recorded(self.policy) as seen:
            (loss,) = self.policy(batch, **kwargs).values()
        loss.backward()
        yield from self._input_rows("train", seen[0])
        if "train.labels" in self.outputs:
            yield same("train.labels", self.outputs["train.labels"], self.policy.answered(batch)[1])
        wanted = float(self.outputs["train.loss"])
        yield Row(
            "train.loss", abs(float(loss.detach()) - wanted) / max(abs(wanted), 1e-12), LOSS, "relative"
        )
        yield from self._gradient_rows()

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
def _semantics(run: StarVLARun) -> Literal["interleaved", "cross_only"]:
    """What StarVLA does since June 2026: as the config says, where `use_canonical_forward` is true by default."""
    cfg = "framework.action_model.diffusion_model_cfg."
    canonical = run.get(cfg + "use_canonical_forward", default=True)
    interleave = run.get(cfg + "interleave_self_attention", default=False)
    return "interleaved" if canonical and interleave else "cross_only"


@contextmanager
def _recorded(policy: Policy) -> Iterator[list[PromptInputs]]:
    """What `backbone.inputs` returned, call by call."""
    backbone: Any = policy.backbone
    original: Callable[..., PromptInputs] = backbone.inputs
    calls: list[PromptInputs] = []

    def inputs(*args: Any, **kwargs: Any) -> PromptInputs:
        calls.append(original(*args, **kwargs))
        return calls[-1]

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
