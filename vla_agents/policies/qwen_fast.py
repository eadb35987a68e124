"""Qwen-FAST: a Qwen-VL that says its actions, chunk by chunk, as words of the FAST tokenizer.

Pertsch et al. 2025, "FAST: Efficient Action Tokenization for Vision-Language-Action Models". There is no action head: the
vocabulary of the VLM gets the words `<robot_action_0>` .. `<robot_action_V-1>`, and a chunk is the assistant's answer.

    training  actions (B, H, D), normalised -> FAST -> n tokens a row -> prompt + answer -> Qwen-VL -> logits
              cross-entropy of the answer, mean over its tokens
    acting    images, instruction -> prompt -> Qwen-VL, KV cache -> greedy tokens -> FAST -> (B, H, D) -> un-normalised

Time: row h of a chunk is the action h control steps ahead, h = 0 .. H-1. The answer that is learnt: the action tokens and
what the chat template puts after them with the next generation prompt, `<|im_end|>\\n<|im_start|>assistant\\n` (as StarVLA
counts it). Steps past the end of an episode are told as the last action before it, held.

Acting, only action tokens are scored. With `decoding="valid"` further only those that can still make a chunk of H * D
coefficients (`ChunkGrammar`), so every answer is a chunk and ends with its last coefficient. With `"free"` the model ends
by itself, and `TokenDecodeError` says so where its words are no chunk; nothing is ever replaced by zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vla_agents.embodiment import Embodiment
from vla_agents.errors import ActionError, ConfigError
from vla_agents.normalize import Normalizer
from vla_agents.policies.backbone import WORDS, Backbone
from vla_agents.policies.fast_grammar import ChunkGrammar, ChunkState
from vla_agents.policies.fast_tokenizer import FastTokenizer
from vla_agents.policies.number_words import NumberWords
from vla_agents.policies.policy import Batch, Policy
from vla_agents.policies.policy_config import PolicyConfig

ACTION_WORD = "<robot_action_{}>"
STATE_WORD = "<robot_state_{}>"
STATE_BINS = 256


@dataclass(frozen=True)
class QwenFASTConfig(PolicyConfig):
    """What makes a Qwen-FAST besides embodiment and statistics."""

    fast: str = ""
    """FAST tokenizer: a folder or hub id (physical-intelligence/fast); empty: fitted on the training data."""
    fast_scale: float = 10
    """Fitting: larger keeps more detail of the actions and takes more tokens."""
    fast_vocab: int = 1024
    """Fitting: number of tokens."""
    decoding: Literal["valid", "free"] = "valid"
    """Acting: only tokens that can still make a chunk, or any action token until the model ends."""
    state: Literal["words", "text", "none"] = "none"
    """The proprioceptive state in the prompt, in 256 bins over [-1, 1] of its normalised values: a word of its own for each
    bin; in digits; or not at all."""
    begin: str = ""
    """Text between the prompt and the action words. The tiny VLM points at what is named where it is asked by a query
    token: there its answers begin best with that one."""
    end: bool = True
    """Whether the end of the answer is learnt. `decoding="valid"` does not need it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoding == "free" and not self.end:
            raise ConfigError(
                "decoding='free' waits for an end that end=False does not teach",
                "use decoding='valid', or end=True",
            )


class QwenFAST(Policy):
    """See the module docstring.

    Args:
        config: Its shape.
        backbone: The VLM; words it lacks are added to it.
        embodiment: What observations and actions mean.
        normalizers: Of `"state"` and `"action"`.
        fast_tokenizer: The tokenizer or its folder, instead of what `config.fast` names.
    """

    config_class = QwenFASTConfig
    needs = frozenset({WORDS})

    def __init__(
        self,
        config: QwenFASTConfig,
        backbone: Backbone,
        embodiment: Embodiment,
        normalizers: Mapping[str, Normalizer],
        fast_tokenizer: FastTokenizer | str | Path | None = None,
    ) -> None:
        super().__init__(embodiment, normalizers, config.horizon, config.execute)
        self.config = config
        self.backbone = backbone
        backbone.require(WORDS)
        source = fast_tokenizer or config.fast or None
        tokenizer = FastTokenizer.load(source) if isinstance(source, str | Path) else source
        count = len(tokenizer) if tokenizer else config.fast_vocab
        self._words = NumberWords(backbone)
        self.action_ids = self._words.add(ACTION_WORD, count)
        if config.state == "words":
            ids = self._words.add(STATE_WORD, STATE_BINS)
            self._words.begin_as(ids, [(index / (STATE_BINS - 1),) for index in range(STATE_BINS)])
        self._after_answer = backbone.after_answer if config.end else ""
        self._fast: FastTokenizer | None = None
        self._grammar: ChunkGrammar | None = None
        if tokenizer:
            self.fast = tokenizer
            self._begin_as_numbers()

    # ---- the action tokenizer -----------------------------------------------------------------------------
    @property
    def fast(self) -> FastTokenizer:
        """The action tokenizer."""
        if self._fast is None:
            raise ConfigError(
                "this Qwen-FAST has no action tokenizer yet",
                "call prepare(chunks) with training data, or name a FAST tokenizer with `fast`",
            )
        return self._fast

    @fast.setter
    def fast(self, tokenizer: FastTokenizer) -> None:
        if len(tokenizer) > len(self.action_ids):
            raise ConfigError(
                f"the FAST tokenizer has {len(tokenizer)} tokens, the VLM words for {len(self.action_ids)}"
            )
        self._fast, self._grammar = tokenizer, ChunkGrammar(tokenizer)

    def prepare(self, chunks: np.ndarray, *, again: bool = False) -> None:
        """Fit the action tokenizer, where there is none yet or `again`, on (N, H, D) chunks in the embodiment's units."""
        if self._fast is None or again:
            normalized = self.normalizers["action"].normalize(np.asarray(chunks, np.float32))
            fitted = FastTokenizer.fit(normalized, self.config.fast_scale, self.config.fast_vocab)
            if len(fitted) > len(self.action_ids):  # a checkpoint has words for its own tokenizer only
                self.action_ids = self._words.add(ACTION_WORD, len(fitted))
            self.fast = fitted
            self._begin_as_numbers()

    def _begin_as_numbers(self) -> None:
        """Embeddings of action words that the VLM did not have."""
        numbers = self.fast.token_numbers()
        self._words.begin_as(self.action_ids[: len(numbers)], numbers, seed=1)

    def save_parts(self, folder: Path) -> None:
        """The VLM's files and the action tokenizer (`fast/`)."""
        super().save_parts(folder)
        if self._fast is not None:
            self._fast.save(folder / "fast")

    @classmethod
    def load_parts(cls, folder: Path) -> dict[str, Any]:
        """The action tokenizer of a checkpoint."""
        return {"fast_tokenizer": folder / "fast"} if (folder / "fast").is_dir() else {}

    # ---- training -----------------------------------------------------------------------------------------
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`{"action_ce": ...}`, the mean over the tokens of the answers."""
        hidden, labels = self.answered(batch)
        where = labels[:, 1:] >= 0  # the state at t predicts token t + 1
        logits = (hidden[:, :-1][where] @ self.backbone.word_rows().T).float()
        return {"action_ce": nn.functional.cross_entropy(logits, labels[:, 1:][where])}

    def loss_weight(self, batch: Batch) -> int:
        """Tokens of the answers: what the loss is a mean over."""
        if batch.inputs is not None:
            return sum(batch.inputs.answers)
        if batch.answers is not None:
            counts = self.backbone.tokenizer(batch.answers, add_special_tokens=False)["input_ids"]
            return sum(map(len, counts))
        ids = self.backbone.tokenizer(self._after_answer, add_special_tokens=False)["input_ids"]
        after = len(ids) if self._after_answer else 0
        return sum(len(tokens) + after for tokens in self.tokenize(batch))

    def answered(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states (B, L, hidden) of prompts with answers; labels (B, L): tokens of the answer, or -100."""
        known: dict[str, Any] = {} if batch.inputs is None else {"inputs": batch.inputs}
        texts, answers = ((), ()) if known else (self.prompts(batch), self._answers(batch))
        encoding = self.backbone.answered(self.views(batch), texts, answers, begin=self.config.begin, **known)
        assert encoding.input_ids is not None and encoding.answers is not None
        return encoding.hidden, encoding.input_ids.masked_fill(~encoding.answers, -100)

    def _answers(self, batch: Batch) -> list[str]:
        """The B answers to learn."""
        if batch.answers is not None:
            return batch.answers
        words = ("".join(ACTION_WORD.format(token) for token in row) for row in self.tokenize(batch))
        return [text + self._after_answer for text in words]

    def preprocess(self, batch: Batch) -> Batch:
        """See `Policy.preprocess`."""
        answers, cpu = self._answers(batch), torch.device("cpu")
        arguments = self.views(batch), self.prompts(batch)
        made = self.backbone.prepare_inputs(*arguments, self.config.begin, answers=answers, device=cpu)
        return replace(batch, inputs=made, answers=answers)

    def tokenize(self, batch: Batch) -> list[list[int]]:
        """FAST tokens of the batch's actions, one list per sample."""
        if batch.action is None:
            raise ActionError("a training batch needs actions, this one has none")
        self._check_vectors(batch)
        actions = batch.action
        if batch.mask is not None:  # the last action inside the episode is held
            steps = torch.arange(actions.shape[1], device=actions.device)
            held = torch.where(batch.mask, steps, 0).cummax(1).values  # (B, H)
            actions = actions.take_along_dim(held[..., None], dim=1)
        return self.fast.encode(self.normalizers["action"].normalize(actions).float().cpu().numpy())

    def prompts(self, batch: Batch) -> list[str]:
        """The B user texts."""
        texts = batch.instructions
        how = self.config.state
        if how != "none" and self.embodiment.state_dim:
            state = self.normalized_state(batch)
            if state is None:
                raise ConfigError(f"the batch has no state, and this policy was made with state={how!r}")
            bins = np.digitize(state.float().cpu().numpy(), np.linspace(-1, 1, STATE_BINS + 1)[:-1]) - 1
            if how == "words":
                told = ["".join(STATE_WORD.format(max(0, number)) for number in row) for row in bins]
            else:
                told = [" ".join(str(number) for number in row) for row in bins]
            texts = [f"{text} [STATE] {state}" for text, state in zip(texts, told, strict=True)]
        return [self.config.told(text) for text in texts]

    # ---- acting -------------------------------------------------------------------------------------------
    def predict_action(self, batch: Batch, prefix: Tensor | None = None) -> Tensor:
        """(B, H, D) in the embodiment's units.

        Raises:
            TokenDecodeError: With `decoding="free"`, where an answer is no chunk.
        """
        if prefix is not None:
            raise ConfigError("Qwen-FAST cannot continue a prefix of actions", "use a flow policy")
        return self.normalizers["action"].unnormalize(self.normalized_actions(batch))

    def normalized_actions(self, batch: Batch) -> Tensor:
        """Predicted chunks in normalised units, float32 (B, H, D)."""
        chunks = self.fast.decode(self.generate(batch), self.horizon, self.embodiment.action_dim)
        return torch.from_numpy(chunks).to(self.device, torch.float32)

    @torch.no_grad()
    def generate(self, batch: Batch) -> list[list[int]]:
        """The greedy answers as FAST tokens (without the end), one list per sample."""
        answers = _Answers(self, len(batch))
        speech = self.backbone.speak(self.views(batch), self.prompts(batch), begin=self.config.begin)
        said = torch.tensor(answers.ids, device=speech.hidden.device)
        words = self.backbone.word_rows(said)  # (A, hidden): no other word is scored
        while True:
            choice = answers.choose((speech.hidden @ words.T).float())
            if answers.complete:
                return answers.tokens
            speech.say(said[choice])


class _Answers:
    """B answers in the making: which words may follow, which were said."""

    def __init__(self, policy: QwenFAST, count: int) -> None:
        size = policy.horizon * policy.embodiment.action_dim
        fast = policy.fast
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self._free = policy.config.decoding == "free"
        self._grammar = policy._grammar
        self._states = [ChunkState(size)] * count
        self._words = len(fast)
        self._most = size * len(chr(len(fast.known_codes) - 1).encode())  # bytes of the longest chunk
        self.ids = policy.action_ids[: self._words]
        if self._free:
            self.ids = [*self.ids, policy.backbone.tokenizer.eos_token_id]
        self._ended = [False] * count

    @property
    def complete(self) -> bool:
        """Whether all have ended."""
        return all(self._ended)

    def choose(self, scores: Tensor) -> Tensor:
        """The best words that may follow: scores (B, A) -> indices (B,), which are noted."""
        if not self._free:
            assert self._grammar is not None
            may = [self._grammar.allowed(state) for state in self._states]
            may = [
                row if row.any() else np.ones_like(row) for row in may
            ]  # complete: what is said is not kept
            scores = scores.masked_fill(~torch.from_numpy(np.stack(may)).to(scores.device), -torch.inf)
        choice = scores.argmax(-1)
        for row, token in enumerate(choice.tolist()):
            if not self._ended[row]:
                self._note(row, token)
        return choice

    def _note(self, row: int, token: int) -> None:
        if self._free:
            if token < self._words:
                self.tokens[row].append(token)
            self._ended[row] = token == self._words or len(self.tokens[row]) >= self._most
            return
        assert self._grammar is not None
        self.tokens[row].append(token)
        self._states[row] = self._grammar.advance(self._states[row], token)
        self._ended[row] = self._states[row].complete
