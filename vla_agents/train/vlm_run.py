"""A VLM trained on conversations alone: `vla-agents train --strategy vlm --model.vlm VLM --language.use data/questions`.

The same Trainer, run folder, resume and options as for policies; `--model.vlm`, `.freeze`, `.lora`, `.dtype`, `.attention`
and `.gradient_checkpointing` say what learns and how, and `--batch-size` is in conversations. At the end the best
checkpoint becomes `model/` in the run folder: a VLM as any other, for `--model.vlm`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_agents.config import save_yaml
from vla_agents.errors import ConfigError
from vla_agents.policies.backbone import Backbone
from vla_agents.policies.backbones import load_backbone
from vla_agents.policies.chat import ChatBatch
from vla_agents.policies.checkpoint import write_checkpoint
from vla_agents.policies.learning import freeze
from vla_agents.policies.lora import add_lora, merge_lora
from vla_agents.policies.pretrained import resolve_vlm
from vla_agents.train.config import TrainConfig
from vla_agents.train.strategies.talk import (
    Conversations,
    TalkLoader,
    answers_right,
    open_conversations,
    validation_batches,
)
from vla_agents.train.trainer import Trainer, TrainResult


class Talker(nn.Module):
    """A backbone whose `forward` is the loss of its answers."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.config: Any = None

    def forward(self, batch: ChatBatch) -> dict[str, Tensor]:
        """`{"language": cross-entropy per token}`."""
        return {"language": self.backbone.chat_loss(batch)}


class TalkOnly:
    """The strategy: conversations drawn at random."""

    def __init__(self, loader: TalkLoader, held_out: Conversations, batch_size: int) -> None:
        self._loader, self._held_out, self._size = loader, held_out, batch_size

    def batches(self, step: int, count: int, rank: int = 0, world: int = 1) -> list[ChatBatch]:
        """`count` micro-batches."""
        return self._loader.step(step, count, rank, world)

    def validation(self) -> list[ChatBatch]:
        """Of the conversations held out."""
        return validation_batches(self._held_out, self._size)

    def observe(self, step: int, metrics: dict[str, float]) -> None:
        """Does not react."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the draw is a function of the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def train_vlm(config: TrainConfig) -> TrainResult:
    """Train as a config says; see the module docstring."""
    if config.dataset or config.init_from:
        raise ConfigError(
            "--strategy vlm learns from conversations alone, starting from a VLM",
            "leave out dataset and init_from; --strategy cotrain takes episodes too",
        )
    settings, out = config.language, Path(config.out)
    module = _module(config)
    encoder = module.backbone.chat_encoder(settings.max_tokens)
    every = open_conversations(settings, encoder, config.seed)
    train, held_out = every.split(settings.validation_share, config.seed)

    def ask(model: Talker, step: int) -> dict[str, float]:
        right = answers_right(model.backbone, held_out, settings.questions, settings.tolerance)
        return {"answers_right": right, "success": right}

    asks = settings.questions and len(held_out)
    loader = TalkLoader(train, settings.weights, config.batch_size, config.seed, config.workers)
    strategy = TalkOnly(loader, held_out, config.batch_size)
    trainer = Trainer(module, strategy, config, ask if asks else None, title="training a VLM", save=_save)
    out.mkdir(parents=True, exist_ok=True)
    save_yaml(config, out / "run.yaml")
    try:
        result = trainer.fit()
    finally:
        loader.close()
    if trainer.engine.is_main and not result.interrupted:
        export(module, result.best, out / "model")
    return result


def _module(config: TrainConfig) -> Talker:
    """The VLM, with what learns as the model's options say."""
    model = config.model
    torch.manual_seed(config.seed)
    backbone = load_backbone(
        resolve_vlm(model.vlm), weights=True, dtype=model.dtype, attention=model.attention, image_size=0
    )
    module = Talker(backbone)
    freeze(module, model.freeze)
    if model.lora.rank:
        add_lora(backbone.vlm, model.lora)
    backbone.set_gradient_checkpointing(model.gradient_checkpointing)
    module.config = model  # for `merge_lora`
    return module.train()


def export(module: Talker, checkpoint: Path, folder: Path) -> None:
    """Write the VLM of a checkpoint as a model folder."""
    from safetensors.torch import load_model
    from transformers.utils.logging import disable_progress_bar

    load_model(module, str(checkpoint / "model.safetensors"))
    if module.config.lora.rank:
        merge_lora(module)  # type: ignore[type-var]
    shutil.rmtree(folder, ignore_errors=True)
    module.backbone.save_assets(folder)
    disable_progress_bar()  # of the files being written, within the log
    module.backbone.vlm.save_pretrained(folder)


def _save(module: Talker, folder: Path, *, extra: dict[str, Any], attach: dict[str, Path]) -> Path:
    def write(temporary: Path) -> None:
        save_yaml({"format": 1, "policy": "vlm", "config": {}, "extra": extra}, temporary / "policy.yaml")

    return write_checkpoint(module, folder, write, attach)
