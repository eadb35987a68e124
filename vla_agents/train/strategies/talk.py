"""Conversations for training: from names in a configuration to batches, and how many questions are answered right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_agents.data import Draws, Loader
from vla_agents.data.conversations import ConversationSet
from vla_agents.data.loading.orders import row_weights
from vla_agents.errors import ConfigError, DatasetError, UnknownNameError
from vla_agents.policies.backbone import Backbone
from vla_agents.policies.chat import Chat, ChatBatch, ChatEncoder
from vla_agents.train.strategy_config import ConversationSource, LanguageConfig

_PART = re.compile(r"^(?P<name>.+?)(%(?P<percent>[0-9.]+))?$")


class Conversations:
    """Some entries of some files, counted through; `get_batch(rows)` makes tensors of them.

    Args:
        parts: Files, and which of their entries.
        encoder: Makes the tensors.

    Attributes:
        sizes: Entries of each file.
    """

    def __init__(self, parts: Sequence[tuple[ConversationSet, np.ndarray]], encoder: ChatEncoder) -> None:
        self._parts, self._encoder = list(parts), encoder
        self.sizes = [len(rows) for _, rows in parts]
        self._starts = np.cumsum([0, *self.sizes])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def chat(self, number: int) -> Chat:
        """One of them, with its pictures."""
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        file, rows = self._parts[which]
        row = int(rows[number - self._starts[which]])
        found = file[row]
        return Chat(found.images, found.turns, found.system, f"entry {row} of {file.file}")

    def get_batch(self, indices: Sequence[int] | np.ndarray) -> Any:
        """A `ChatBatch`."""
        return self._encoder.batch([self.chat(int(number)) for number in indices])

    def split(self, share: float, seed: int) -> tuple[Conversations, Conversations]:
        """Training and validation; entries that show the same pictures stay together."""
        kept, held = [], []
        for file, rows in self._parts:
            out = _held_out([file.entries[row].pictures or (row,) for row in rows], share, seed)
            kept.append((file, rows[~out]))
            held.append((file, rows[out]))
        return Conversations(kept, self._encoder), Conversations(held, self._encoder)


def _held_out(pictures: Sequence[tuple[Any, ...]], share: float, seed: int) -> np.ndarray:
    """bool (N,): which entries are held out."""
    groups = sorted({str(key[0]) for key in pictures})
    count = max(1, round(len(groups) * share)) if share else 0
    if count >= len(groups):
        raise ConfigError(
            f"cannot hold {count} of {len(groups)} pictures with their conversations out, and have some left to learn from",
            "give more pictures, or language.validation_share 0",
        )
    chosen = np.random.default_rng([seed, 0x7A1]).permutation(len(groups))[:count]
    names = {groups[number] for number in chosen}
    return np.array([str(key[0]) in names for key in pictures], bool)


def open_conversations(settings: LanguageConfig, encoder: ChatEncoder, seed: int = 0) -> Conversations:
    """What `settings.use` names.

    Raises:
        ConfigError: Nothing is named, twice the same, a percentage that is none, or weights that do not fit.
        DatasetError: Naming the file and entry that is malformed.
    """
    if not settings.use:
        raise ConfigError(
            "no conversations were given",
            "e.g. --language.use data/questions; `vla-agents questions` makes some",
        )
    if settings.weights and len(settings.weights) != len(settings.use):
        raise ConfigError(
            f"{len(settings.weights)} language.weights for {len(settings.use)} datasets",
            "one for each, or none",
        )
    parts, seen = [], set()
    for text in settings.use:
        name, share = parse_use(text)
        if name in seen:
            raise ConfigError(f"language.use names {name!r} twice", "its weight says how often it comes")
        seen.add(name)
        source = _source(name, settings.datasets)
        file = ConversationSet(source.annotations, source.images or None)
        rows = subsample(len(file), share, seed)
        if not len(rows):
            raise DatasetError(file.file, f"{text!r} leaves none of {len(file)} conversations", "take more")
        parts.append((file, rows))
    return Conversations(parts, encoder)


def parse_use(text: str) -> tuple[str, float]:
    """`"coco%50"` -> `("coco", 0.5)`; without a percentage all of it."""
    found = _PART.match(text)
    try:
        percent = float(found["percent"] or 100) if found else 0.0
    except ValueError:
        percent = 0.0
    if not found or not 0 < percent <= 100:
        raise ConfigError(f"language.use: {text!r}", "NAME, or NAME%P with 0 < P <= 100")
    return found["name"], percent / 100


def subsample(count: int, share: float, seed: int) -> np.ndarray:
    """Numbers, in order, of a share of `count` entries; a smaller share is part of a larger one."""
    order = np.random.default_rng([seed, 0x5B5]).permutation(count)
    return np.sort(order[: round(count * share)])


def _source(name: str, datasets: Mapping[str, ConversationSource]) -> ConversationSource:
    from pathlib import Path

    if name in datasets:
        return datasets[name]
    if Path(name).exists():
        return ConversationSource(name)
    raise UnknownNameError("dataset of conversations (and no such path)", name, datasets)


class TalkLoader:
    """Batches of conversations for every optimiser step, a function of the step alone.

    Args:
        conversations: To draw from.
        weights: Share of each file; empty: as large as they are.
        batch_size: Conversations per micro-batch.
        seed: Decides the draws.
        workers: Processes that make the tensors ahead.
    """

    def __init__(
        self, conversations: Conversations, weights: Sequence[float], batch_size: int, seed: int, workers: int
    ) -> None:
        rows = row_weights(conversations.sizes, weights or conversations.sizes)
        self._source, self._order = conversations, Draws(rows, batch_size, seed + 0x7A1)
        self._workers = workers
        self._loader: Loader[ChatBatch] | None = None
        self._cut = (0, 0, 0)

    def step(self, step: int, count: int, rank: int, world: int) -> list[ChatBatch]:
        """`count` micro-batches."""
        if self._loader is None or self._cut != (count, rank, world):
            self.close()
            self._cut = (count, rank, world)
            self._loader = Loader(
                self._source, self._order, rank=rank, world=world, count=count, workers=self._workers
            )
        return self._loader.step(step)

    def close(self) -> None:
        """End the processes that load."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None


def validation_batches(conversations: Conversations, size: int, most: int = 512) -> list[ChatBatch]:
    """At most `most` of them, evenly spread."""
    if not len(conversations):
        return []
    rows = np.arange(0, len(conversations), max(1, len(conversations) // most))
    return [conversations.get_batch(part) for part in np.split(rows, range(size, len(rows), size))]


def answers_right(
    backbone: Backbone, conversations: Conversations, most: int, tolerance: float = 0.0
) -> float:
    """Share of questions whose greedy answer is the given one, word for word (spaces and case aside).

    Of each conversation one turn is asked, in turn, with what was said before it.

    Args:
        backbone: Answers.
        conversations: Questions and answers.
        most: How many to ask at most.
        tolerance: Numbers may be off by so much.
    """
    rows = np.arange(0, len(conversations), max(1, len(conversations) // most))[:most]
    asked = []
    for number in map(int, rows):
        chat = conversations.chat(number)
        asked.append(Chat(chat.images, chat.turns[: 1 + number % len(chat.turns)], chat.system, chat.name))
    asked = [_with_its_pictures(chat) for chat in asked]
    longest = max(len(backbone.tokenizer(chat.turns[-1][1])["input_ids"]) for chat in asked) + 2
    said = backbone.chat_answers(asked, longest)
    return float(
        np.mean([same_answer(a, c.turns[-1][1], tolerance) for a, c in zip(said, asked, strict=True)])
    )


def _with_its_pictures(chat: Chat) -> Chat:
    """Without the pictures that only later turns name."""
    places = sum(question.count("<image>") for question, _ in chat.turns)
    return Chat(chat.images[:places] if places else chat.images, chat.turns, chat.system, chat.name)


def same_answer(said: str, true: str, tolerance: float = 0.0) -> bool:
    """Whether two answers are the same words, and numbers no further apart than `tolerance`."""
    ours, theirs = said.lower().split(), true.lower().split()
    if len(ours) != len(theirs):
        return False
    return all(a == b or _near(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))


def _near(a: str, b: str, tolerance: float) -> bool:
    try:
        return abs(float(a) - float(b)) <= tolerance
    except ValueError:
        return False
