"""What a policy needs of a vision-language model, and nothing more: behind this interface another VLM is one file.

    images, texts -> encode -> hidden states (B, L, C) of the layers that are read, their padding mask,
                               and the states at H action queries

A subclass writes `build`, `hidden_size`, `num_layers`, `encode`, `freeze_unused` and `save_assets`, and says by
`abilities` what it can:

    queries   its states can be read at action queries that see pictures and text         Qwen-OFT
    layers    `encode(layers=...)` gives the outputs of chosen layers                     Qwen-GR00T, Qwen-PI
    words     it predicts the next token: `answered`, `speak`, `add_tokens`               Qwen-FAST, language training

`BACKBONES` names the classes by the `model_type` in a model's config.json. Guide and example: docs/backbones.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vla_agents.errors import ConfigError
from vla_agents.policies.attention import check_place, choose_attention, set_attention
from vla_agents.policies.backbones import BACKBONES
from vla_agents.policies.chat import Chat, ChatBatch, ChatEncoder
from vla_agents.policies.encoding import Encoding, Queries, Speech

__all__ = ["LAYERS", "QUERIES", "WORDS", "Backbone", "Encoding", "Queries", "Speech"]

QUERIES, LAYERS, WORDS = "queries", "layers", "words"
_MEANING = {
    QUERIES: "states at action queries",
    LAYERS: "states of chosen layers",
    WORDS: "a prediction of the next word",
}


class Backbone(nn.Module):
    """A vision-language model as policies see it.

    Args:
        vlm: The model itself; where it is one of `transformers`, its attention kernels are chosen here.
        tokenizer: Its tokenizer, where it has one.
        attention: `auto`, or the attention kernels by name.
    """

    abilities: ClassVar[frozenset[str]] = frozenset({QUERIES, LAYERS})

    def __init__(self, vlm: nn.Module, tokenizer: Any, attention: str = "auto") -> None:
        super().__init__()
        self.vlm: Any = vlm
        self.tokenizer = tokenizer
        self.attention_asked = attention
        self.added_words = False
        self._follow_the_weights()

    # ---- made from a folder -------------------------------------------------------------------------------
    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """From a model folder or a hub id, with weights; options: see `build`."""
        return cls.build(source, weights=True, **options)

    @classmethod
    def from_config(cls, source: str | Path, **options: Any) -> Self:
        """The same architecture with random weights (for a checkpoint that brings its own)."""
        return cls.build(source, weights=False, **options)

    @classmethod
    def build(
        cls,
        source: str | Path,
        *,
        weights: bool,
        dtype: str = "float32",
        attention: str = "auto",
        image_size: int = 0,
    ) -> Self:
        """A backbone from what `save_assets` or the hub wrote.

        Args:
            source: Folder or hub id.
            weights: Whether to read the weights; else they are random.
            dtype: Of the weights, `float32` or `bfloat16`.
            attention: See `vla_agents.policies.attention`.
            image_size: Side at which pictures are seen; 0: as the files say.

        Raises:
            CheckpointError: The files cannot be read.
        """
        raise NotImplementedError

    def save_assets(self, folder: str | Path) -> None:
        """All that `from_config` reads: config, tokenizer, pixel settings; no weights."""
        raise NotImplementedError

    # ---- what it is ---------------------------------------------------------------------------------------
    @property
    def kind(self) -> str:
        """The `model_type` of its config."""
        return str(self.vlm.config.model_type)

    @property
    def hidden_size(self) -> int:
        """Width of its states."""
        raise NotImplementedError

    @property
    def num_layers(self) -> int:
        """Number of layers whose outputs can be read, 1 .. N."""
        raise NotImplementedError

    def require(self, ability: str) -> None:
        """`ConfigError` naming the policies that this backbone can serve, unless it has an ability."""
        if ability in self.abilities:
            return
        from vla_agents.policies.checkpoint import POLICIES

        serves = [name for name in POLICIES if POLICIES.get(name).needs <= self.abilities]
        able = [name for name in BACKBONES if ability in BACKBONES.get(name).abilities]
        raise ConfigError(
            f"this policy needs {_MEANING.get(ability, ability)}, which {self.kind!r} does not give",
            f"{self.kind!r} serves {', '.join(serves) or 'none'}; a VLM for this policy: {', '.join(able)}",
        )

    # ---- encoding -----------------------------------------------------------------------------------------
    def encode(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        *,
        queries: Queries | None = None,
        layers: Sequence[int] | None = None,
        final_norm: bool = True,
    ) -> Encoding:
        """Hidden states of B prompts.

        Args:
            images: One uint8 (B, H, W, 3) tensor per view (sizes may differ between views).
            texts: B user texts.
            queries: The action queries to read, if any.
            layers: Ascending numbers of the layers whose outputs are wanted, 1 .. `num_layers`; layers beyond the last of
                them are not run. By default the last one.
            final_norm: Whether the last layer's output goes through the model's final norm.
        """
        raise NotImplementedError

    def prepare_queries(self, queries: Queries) -> None:
        """Called once before such queries are encoded. A query token that is several tokens is made one; not where the
        texts hold it, as in StarVLA's checkpoints."""
        self.require(QUERIES)
        ids = self.tokenizer(queries.token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 and not queries.in_text and queries.token.split() == [queries.token]:
            self.add_tokens([queries.token])
        self.token_id(queries.token)

    def freeze_unused(self, layers: Sequence[int], *, final_norm: bool = True, queries: bool = False) -> None:
        """Take the gradient from all parameters that `encode` with these arguments does not use."""
        raise NotImplementedError

    def set_gradient_checkpointing(self, on: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        from torch.utils.checkpoint import checkpoint
        from transformers.modeling_layers import GradientCheckpointingLayer

        again: Any = partial(checkpoint, use_reentrant=False)
        for layer in self.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.gradient_checkpointing = on
                layer._gradient_checkpointing_func = again

    def compile_acting(self, *, graphs: bool = True) -> None:
        """Run `encode` as a compiled graph where no gradient is wanted; see `vla_agents.policies.compiling`.

        Args:
            graphs: GPU: record CUDA graphs as well.

        Raises:
            ConfigError: Not for this VLM, or there is no compiler.
        """
        raise ConfigError(f"compile=True is not for {self.kind!r}", "leave it out")

    def prepare_inputs(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        suffix: str = "",
        answers: Sequence[str] = (),
        *,
        queries: Queries | None = None,
        device: torch.device | None = None,
    ) -> Any:
        """What of `encode` and `answered` does not touch the weights: tokens, positions, pixels; their `inputs=`.

        None where a backbone cannot do it beforehand (then `encode` has no such argument either).
        """
        return None

    # ---- words --------------------------------------------------------------------------------------------
    def token_id(self, token: str) -> int:
        """The id of a text that must be a single token."""
        ids = self.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ConfigError(
                f"{token!r} is {len(ids)} tokens for this tokenizer, it must be one",
                "choose another action_token, or add it to the tokenizer and resize the embeddings",
            )
        return int(ids[0])

    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Make texts single tokens, those that are not yet; the embeddings grow by random rows where needed.

        Returns:
            Their ids.
        """
        vocabulary = self.tokenizer.get_vocab()
        missing = [token for token in tokens if token not in vocabulary]
        if missing:
            from transformers import AddedToken

            self.added_words = True
            self.tokenizer.add_tokens([AddedToken(token, normalized=False) for token in missing])
            if len(self.tokenizer) > self.vlm.get_input_embeddings().num_embeddings:
                self.vlm.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        return [int(number) for number in self.tokenizer.convert_tokens_to_ids(list(tokens))]

    @property
    def after_answer(self) -> str:
        """What follows an answer in the text it is learnt from; begins with the end token."""
        return str(self.tokenizer.eos_token)

    def answered(
        self, images: Sequence[Tensor], texts: Sequence[str], answers: Sequence[str], begin: str = ""
    ) -> Encoding:
        """States of B prompts with answers, where the state at t predicts token t + 1, and where the answers are.

        Args:
            images: One uint8 (B, H, W, 3) tensor per view.
            texts: B user texts.
            answers: B answers, to which nothing is added.
            begin: What stands before every answer and is given, not learnt.
        """
        self.require(WORDS)
        raise NotImplementedError

    def speak(self, images: Sequence[Tensor], texts: Sequence[str], begin: str = "") -> Speech:
        """Begin B answers, after the words `begin`."""
        self.require(WORDS)
        raise NotImplementedError

    def word_rows(self, ids: Tensor | None = None) -> Tensor:
        """Rows (A, hidden) of the language head: a state times a row is the score (logit) of that token."""
        rows: Tensor = self.vlm.get_output_embeddings().weight
        return rows if ids is None else rows[ids]

    def language_loss(
        self, images: Sequence[Tensor], questions: Sequence[str], answers: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Next-token cross-entropy on the answers (and the end-of-turn token), nothing else.

        Args:
            images: One uint8 (B, H, W, 3) tensor per view.
            questions: B user texts.
            answers: B answers.

        Returns:
            The mean loss per answer token, and the number of answer tokens that were predicted right.
        """
        end = str(self.tokenizer.eos_token)
        encoding = self.answered(images, questions, [answer + end for answer in answers])
        assert encoding.input_ids is not None and encoding.answers is not None
        where = encoding.answers[:, 1:]  # the state at t predicts token t + 1
        logits = (encoding.hidden[:, :-1][where] @ self.word_rows().T).float()
        targets = encoding.input_ids[:, 1:][where]
        return nn.functional.cross_entropy(logits, targets), (logits.argmax(-1) == targets).sum()

    def chat_encoder(self, max_tokens: int = 4096) -> ChatEncoder:
        """Makes batches of whole conversations, with several turns and any pictures, for `chat_loss`."""
        raise ConfigError(f"{self.kind!r} cannot learn from conversations", "use a Qwen-VL")

    def chat_loss(self, batch: ChatBatch) -> Tensor:
        """Mean next-token cross-entropy over `batch.labels`."""
        raise ConfigError(f"{self.kind!r} cannot learn from conversations", "use a Qwen-VL")

    def chat_answers(self, chats: Sequence[Chat], max_tokens: int = 32) -> list[str]:
        """Greedy answers to the last question of each conversation."""
        raise ConfigError(f"{self.kind!r} cannot take part in conversations", "use a Qwen-VL")

    @torch.no_grad()
    def answer(self, images: Sequence[Tensor], questions: Sequence[str], max_tokens: int = 16) -> list[str]:
        """Greedy answers to B questions."""
        speech, rows = self.speak(images, questions), self.word_rows()
        end = int(self.tokenizer.eos_token_id)
        said: list[list[int]] = [[] for _ in questions]
        ended = torch.zeros(len(questions), dtype=torch.bool, device=rows.device)
        for number in range(1, max_tokens + 1):
            choice = (speech.hidden @ rows.T).argmax(-1)
            ended = ended | (choice == end)
            for answer, token, over in zip(said, choice.tolist(), ended.tolist(), strict=True):
                if not over:
                    answer.append(token)
            if number == max_tokens or bool(ended.all()):
                break
            speech.say(choice)
        return list(self.tokenizer.batch_decode(said, skip_special_tokens=True))

    # ---- attention ----------------------------------------------------------------------------------------
    @property
    def attention(self) -> str:
        """The attention kernels at work."""
        return str(self.vlm.config._attn_implementation) if self._chooses else "its own"

    @property
    def _chooses(self) -> bool:
        return hasattr(self.vlm, "set_attn_implementation")

    def set_attention(self, attention: str) -> None:
        """Put all its parts onto these kernels."""
        set_attention(self.vlm, attention)

    def check_attention(self) -> None:
        """`ConfigError` where the kernels cannot run on the weights as they are; called in `encode`."""
        weight = next(self.vlm.parameters())
        check_place(self.attention, weight.device, weight.dtype)

    def _follow_the_weights(self) -> None:
        if not self._chooses:
            return
        weight = next(self.vlm.parameters())
        self.set_attention(choose_attention(self.attention_asked, self.vlm, weight.device, weight.dtype))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._follow_the_weights()
        return self
