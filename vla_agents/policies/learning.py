"""What of a policy learns: freezing by pattern, and a table that says what is left.

Patterns are regular expressions that are looked for in the names of `policy.named_parameters()`:
`backbone.vlm.model.visual.blocks.0.attn.qkv.weight`, `head.fc1.weight`, ... `visual` freezes the eyes, `^backbone` all but
the head, `language_model.layers.([0-9]|1[0-7])\\.` the first 18 layers.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from vla_agents.errors import ConfigError
from vla_agents.policies.backbone import WORDS, Backbone
from vla_agents.policies.weights import module_of

if TYPE_CHECKING:
    from vla_agents.policies.policy import Policy

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearningRow:
    """One module: numbers that learn, of how many."""

    module: str
    learning: int
    total: int


@dataclass(frozen=True)
class LearningTable:
    """What learns, module by module; `str(table)` is the table."""

    rows: tuple[LearningRow, ...]

    @property
    def learning(self) -> int:
        """Numbers that learn."""
        return sum(row.learning for row in self.rows)

    @property
    def total(self) -> int:
        """Numbers altogether."""
        return sum(row.total for row in self.rows)

    def __str__(self) -> str:
        rows = [*self.rows, LearningRow("altogether", self.learning, self.total)]
        width = max(len(row.module) for row in rows)
        lines = [f"{'module':<{width}}  {'learning':>14}  {'of':>14}"]
        return "\n".join(
            lines + [f"{row.module:<{width}}  {row.learning:>14,}  {row.total:>14,}" for row in rows]
        )


def learning_table(model: nn.Module) -> LearningTable:
    """What learns in a model, as it stands."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        row = counts.setdefault(module_of(name), [0, 0])
        row[0] += parameter.numel() * parameter.requires_grad
        row[1] += parameter.numel()
    return LearningTable(
        tuple(LearningRow(name, learning, total) for name, (learning, total) in counts.items())
    )


def freeze(policy: nn.Module, patterns: Iterable[str]) -> LearningTable:
    """Take the gradient from all parameters with a match of a pattern in their name.

    A tied parameter has several names (an embedding that is also the language head); a match in one of them is enough.

    Args:
        policy: A policy, or any module.
        patterns: Regular expressions.

    Returns:
        What is left to learn.

    Raises:
        ConfigError: A pattern matches nothing, or is no regular expression; the nearest names are given.
    """
    named = dict(policy.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        for name in matching(named, pattern, "freeze"):
            named[name].requires_grad_(False)
    return learning_table(policy)


def matching(names: Iterable[str], pattern: str, what: str) -> list[str]:
    """The names with a match.

    Args:
        names: e.g. of parameters.
        pattern: Regular expression.
        what: Which setting the pattern comes from, for the error.

    Raises:
        ConfigError: There is none.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"{what}: {pattern!r} is no regular expression ({error})",
            "a bracket or dot that is meant as such has a backslash before it",
        ) from error
    names = list(names)
    found = [name for name in names if expression.search(name)]
    if not found:
        raise ConfigError(f"{what}: no name has a match of {pattern!r}", _near(names, pattern))
    return found


def _near(names: Sequence[str], pattern: str) -> str:
    """Modules and parts of names that look like a pattern, else the first modules."""
    words = [word for word in re.split(r"[^A-Za-z0-9_]+", pattern) if word]
    parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
    unknown = [word for word in words if word not in parts]
    near = [part for word in unknown for part in difflib.get_close_matches(word, parts, n=3, cutoff=0.5)]
    modules = list(dict.fromkeys(module_of(name) for name in names))
    known = f"modules: {', '.join(modules[:12])}"
    return f"did you mean {', '.join(dict.fromkeys(near))}? {known}" if near else known


def prepare_learning(policy: Policy) -> LearningTable:
    """Freeze, add adapters and switch checkpointing as a policy's configuration says; the table goes to the log.

    Raises:
        ConfigError: A pattern matches nothing, or words that were added for the actions could not learn.
        MissingDependencyError: LoRA without peft.
    """
    config: Any = policy.config
    freeze(policy, config.freeze)
    if config.lora.rank:
        from vla_agents.policies.lora import add_lora

        add_lora(policy.backbone.vlm, config.lora)
    policy.backbone.set_gradient_checkpointing(config.gradient_checkpointing)
    if WORDS in policy.needs and policy.backbone.added_words and not _words_learn(policy.backbone):
        raise ConfigError(
            "the words that were added for the actions could not learn",
            "leave the embeddings out of `freeze`; with LoRA, set lora.learn to 'embed_tokens|shared|lm_head'",
        )
    if config.tasks and not policy.backbone.vlm.get_input_embeddings().weight.requires_grad:
        raise ConfigError(
            "the task embeddings could not learn: the VLM's embeddings are frozen",
            "leave them out of `freeze` (with LoRA, set lora.learn to 'embed_tokens|shared'), or do without `tasks`",
        )
    table = learning_table(policy)
    _log.info("what learns:\n%s", table)
    return table


def _words_learn(backbone: Backbone) -> bool:
    embeddings = backbone.vlm.get_input_embeddings(), backbone.vlm.get_output_embeddings()
    return all(layer.weight.requires_grad for layer in embeddings)
