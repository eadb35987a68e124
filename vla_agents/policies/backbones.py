"""Which class reads which model, by the `model_type` in its config.json."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_agents.errors import CheckpointError, ConfigError
from vla_agents.registry import Registry

if TYPE_CHECKING:
    from vla_agents.policies.backbone import Backbone

BACKBONES = Registry(
    "VLM backbone",
    {
        "qwen2_5_vl": "vla_agents.policies.qwen_vl:QwenVLBackbone",
        "qwen3_vl": "vla_agents.policies.qwen_vl:QwenVLBackbone",
        "qwen3_5": "vla_agents.policies.qwen_vl:QwenVLBackbone",
        "florence2": "vla_agents.policies.florence2:Florence2Backbone",
        "clip": "vla_agents.policies.clip:CLIPBackbone",
    },
)
"""`model_type` of config.json -> class. One line adds one: `BACKBONES.register("my_vlm", "my_package.my_file:MyVLM")`."""


def load_backbone(source: str | Path, *, weights: bool, **options: Any) -> Backbone:
    """The backbone of a model folder or hub id, by the `model_type` in its config.json.

    Args:
        source: Folder or hub id.
        weights: Whether to read the weights; else they are random.
        options: See `Backbone.build`.

    Raises:
        CheckpointError: No model there, or of a type that nobody registered.
    """
    from transformers import PreTrainedConfig

    with reading(source):
        config, _ = PreTrainedConfig.get_config_dict(str(source))
    kind = str(config.get("model_type", ""))
    if kind not in BACKBONES:
        raise CheckpointError(
            source,
            f"a model of type {kind!r}, which no backbone reads",
            f"known: {', '.join(BACKBONES)}; another is one file: docs/backbones.md",
        )
    backbone: Backbone = BACKBONES.get(kind).build(source, weights=weights, **options)
    return backbone


@contextmanager
def uninitialized() -> Iterator[None]:
    """Models that are made within get no initial weights: for a checkpoint that brings all of them.

    Drawing them takes a CPU some 10 s and more per billion parameters. Weights that are tied have to be tied afterwards.
    """
    from transformers.initialization import no_init_weights

    with no_init_weights():
        yield


@contextmanager
def reading(source: str | Path) -> Iterator[None]:
    """Errors of `transformers` as a `CheckpointError`; no progress bars of weights on the terminal."""
    from transformers.utils import logging as transformers_logging

    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise CheckpointError(
            source,
            f"no model could be read here ({error})",
            "give a folder with config.json, tokenizer.json, preprocessor_config.json and weights, "
            "or a hub id that this machine can reach; `vla-agents pretrain-tiny` makes a tiny one",
        ) from error
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()
