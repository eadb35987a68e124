"""What neither a fixture's files nor its user say, found by trying: the first reading that gives StarVLA's numbers.

Loading a checkpoint asks for these things (`options.py`). A fixture holds StarVLA's answers, so that here they can be
found out; `vla-agents check-starvla` prints each of them. Where no reading fits, the nearest one is reported on.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_agents.errors import ConfigError, VlaAgentsError
from vla_agents.policies.policy import Batch
from vla_agents.policies.starvla.options import StarVLAOptions, pi_semantics
from vla_agents.policies.starvla.run import StarVLARun

Size = tuple[int, int] | None
"""(width, height) to which pictures are brought by Pillow; None: as they are."""
_FAST_FILES = ("tokenizer.json", "processor_config.json")


@dataclass(frozen=True)
class Question:
    """Something the files leave open.

    Args:
        option: The field of `StarVLAOptions`.
        answers: The likeliest first.
        says: What an answer means, in words.
    """

    option: str
    answers: Sequence[Any]
    says: Callable[[Any], str]

    def line(self, answer: Any, note: str) -> str:
        """What is printed about it."""
        return f"{self.says(answer)} ({note}--{self.option.replace('_', '-')})"


def questions(
    run: StarVLARun, framework: str, given: StarVLAOptions, *, qwen3: bool, near: Sequence[Path]
) -> list[Question]:
    """What is open.

    Args:
        run: The run.
        framework: Our name of it.
        given: What the user said.
        qwen3: Whether the VLM is a Qwen3-VL.
        near: Folders in and around which a FAST tokenizer may lie.
    """
    found = []
    if given.final_norm is None and framework != "qwen_fast":
        found.append(Question("final_norm", (False, True) if qwen3 else (True,), _norm_in_words))
    if given.pi_semantics is None and framework == "qwen_pi":
        known = pi_semantics(run)
        semantics = (known,) if known else ("interleaved", "cross_only")
        found.append(Question("pi_semantics", semantics, lambda answer: f"PI semantics {answer}"))
    if given.fast_tokenizer is None and framework == "qwen_fast":
        tokenizers = find_fast(near)
        found.append(Question("fast_tokenizer", tokenizers, lambda answer: f"FAST tokenizer {answer}"))
    return found


def _norm_in_words(after: bool) -> str:
    """As transformers 4.57 has it for Qwen3-VL: before."""
    return f"the last layer is read {'after' if after else 'before'} the final norm"


def settle(
    asked: Sequence[Question],
    given: StarVLAOptions,
    load: Callable[[StarVLAOptions], Any],
    misfit: Callable[[Any], float],
    bound: float,
) -> tuple[StarVLAOptions, Any, list[str]]:
    """The first combination of answers whose policy is within the bound; the nearest where none is.

    Args:
        asked: The open questions.
        given: What is known.
        load: Options -> policy.
        misfit: Policy -> how far its numbers are from StarVLA's.
        bound: What fits.

    Returns:
        The options, the policy, and a line for each question.
    """
    trials: list[tuple[float, StarVLAOptions, Any, tuple[Any, ...]]] = []
    refusal: VlaAgentsError | None = None
    combinations = list(product(*(question.answers for question in asked)))
    for answers in combinations:
        values = dict(zip((question.option for question in asked), answers, strict=True))
        options = dataclasses.replace(given, **values)
        try:
            policy = load(options)
            error = misfit(policy) if len(combinations) > 1 else 0.0
        except VlaAgentsError as problem:
            refusal = refusal or problem
            continue
        trials.append((error, options, policy, answers))
        if error <= bound:
            break
    if not trials:
        assert refusal is not None
        raise refusal
    _, options, policy, answers = min(trials, key=lambda trial: trial[0])  # of equal ones the first
    missed = f"found by trying, {_choices(asked, trials[0][3])} missed by {trials[0][0]:.2g}; "
    notes = [
        missed if answer != question.answers[0] else ""
        for question, answer in zip(asked, answers, strict=True)
    ]
    lines = [
        question.line(answer, note) for question, answer, note in zip(asked, answers, notes, strict=True)
    ]
    return options, policy, lines


def _choices(asked: Sequence[Question], answers: Sequence[Any]) -> str:
    """The answers that were more than one's only choice, by name."""
    several = [
        f"{question.option}={answer}"
        for question, answer in zip(asked, answers, strict=True)
        if len(question.answers) > 1
    ]
    return ", ".join(several)


def find_fast(near: Sequence[Path]) -> list[str]:
    """Folders with a FAST tokenizer in or beside some folders, the nearest first."""
    found: dict[str, None] = {}
    for folder in near:
        readable = folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)
        inside = sorted(path for path in folder.iterdir() if path.is_dir()) if readable else []
        for path in (folder, *inside):
            if "fast" in path.name.lower() and all((path / name).is_file() for name in _FAST_FILES):
                found.setdefault(str(path.resolve()))
    if not found:
        raise ConfigError(
            f"no folder of a FAST tokenizer (named ...fast..., with {' and '.join(_FAST_FILES)}) near {near[0]}",
            "give --fast-tokenizer FOLDER",
        )
    return list(found)


# ---- pictures -------------------------------------------------------------------------------------------------
def acting_sizes(run: StarVLARun, framework: str) -> list[Size]:
    """To what StarVLA's `predict_action` may have brought the pictures, the likeliest first.

    The code of 2026 reads `obs_image_size`, that of 2025 `image_size`; without it they are left alone, as they always are
    by Qwen-FAST.
    """
    if framework == "qwen_fast":
        return [None]
    new, old = (run.picture_size(name) for name in ("obs_image_size", "image_size"))
    return [new] if new else [old, None] if old else [None]


def training_sizes(run: StarVLARun, acting: Size, framework: str) -> list[Size]:
    """The same for the training step, which resizes nothing itself: its data loader does."""
    named = [run.picture_size(name) for name in ("obs_image_size", "image_size")]
    usual = [acting, *(size for size in named if size), (224, 224), None]
    return [None] if framework == "qwen_fast" else list(dict.fromkeys(usual))


def fit_cameras(policy: Any, batch: Batch) -> None:
    """Let a policy take pictures of the sizes that a batch has."""
    cameras = tuple(
        dataclasses.replace(camera, height=view.shape[1], width=view.shape[2])
        for camera, view in ((c, batch.images[c.name]) for c in policy.embodiment.cameras)
    )
    policy.embodiment = dataclasses.replace(policy.embodiment, cameras=cameras)


def same_pixels(policy: Any, batch: Batch, wanted: np.ndarray | None, grids: np.ndarray | None) -> bool:
    """Whether a policy sees in one sample's pictures what StarVLA saw; true where it kept nothing of it."""
    views = [policy.backbone.patches(batch.images[name]) for name in policy.embodiment.camera_names]
    if wanted is not None:
        own = torch.cat([pixels for pixels, _ in views]).numpy()
        return own.shape == wanted.shape and bool(np.allclose(own, wanted, atol=1e-3))
    return grids is None or [grid for _, grid in views] == [tuple(row) for row in grids.tolist()]


def distance(wanted: np.ndarray, own: Tensor) -> float:
    """Largest difference; infinite where shapes differ."""
    found = own.detach().double().numpy()
    return float(np.abs(wanted - found).max()) if wanted.shape == found.shape else np.inf
