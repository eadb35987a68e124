"""Words that stand for numbers, as a language model may begin with them: near numbers have near embeddings.

The words a VLM lacks begin as random rows, as if 100 and 101 had no more to do with each other than red and block, and the
order of the numbers has to be found out from the data, one word at a time. Here they begin with random Fourier features
(Rahimi, Recht 2007): the product of two rows is about a bell curve of the numbers' difference, half of it narrow and half
wide. Where input and output embeddings are tied, as in small Qwen-VLs, the scores of neighbouring words rise together too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vla_agents.policies.backbone import Backbone

_WIDTHS = (0.06, 0.3)  # of the bell curves, as shares of the numbers' range


class NumberWords:
    """The words of numbers that a policy adds to its VLM; those the VLM knows already are left as they are.

    Args:
        backbone: The VLM.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._new: set[int] = set()  # ids

    def add(self, pattern: str, count: int) -> list[int]:
        """Ids of the words that `pattern` makes of 0 .. count - 1."""
        words = [pattern.format(index) for index in range(count)]
        known = self._backbone.tokenizer.get_vocab()
        ids = self._backbone.add_tokens(words)
        self._new |= {number for number, word in zip(ids, words, strict=True) if word not in known}
        return ids

    @torch.no_grad()
    def begin_as(self, ids: Sequence[int], numbers: Sequence[Sequence[float]], seed: int = 0) -> None:
        """Set the embeddings of those words that are new.

        Args:
            ids: V words.
            numbers: What they stand for; see `number_rows`.
            seed: Words of other numbers should take another one.
        """
        new = torch.tensor([number in self._new for number in ids])
        vlm = self._backbone.vlm
        read, said = vlm.get_input_embeddings().weight, vlm.get_output_embeddings().weight
        for weight in [read] if read is said else [read, said]:
            old = torch.ones(len(weight), dtype=torch.bool)
            old[list(self._new)] = False
            rows = number_rows(numbers, weight.shape[1], spread_of(weight[old]), seed)
            weight[torch.tensor(ids)[new]] = rows[new].to(weight)


def number_rows(numbers: Sequence[Sequence[float]], size: int, spread: float, seed: int = 0) -> Tensor:
    """Embeddings (V, size) of V words.

    Args:
        numbers: What each word stands for: one number within [0, 1], or several, of which the first weigh most; none for
            a word that is only a piece of a number.
        size: Width of the embeddings.
        spread: Root mean square of their entries.
        seed: Of the features.
    """
    generator = torch.Generator().manual_seed(seed)
    longest = max((len(row) for row in numbers), default=0)
    rows = 0.1 * torch.randn(len(numbers), size, generator=generator)  # so that no two words are the same
    widths = torch.tensor(_WIDTHS).repeat_interleave(-(-size // 2))[:size]
    for place in range(longest):
        frequencies = torch.randn(size, generator=generator) / widths
        phases = 2 * torch.pi * torch.rand(size, generator=generator)
        there = torch.tensor([len(row) > place for row in numbers])
        values = torch.tensor([row[place] if len(row) > place else 0.0 for row in numbers])
        features = 2**0.5 * torch.cos(values[:, None] * frequencies + phases)  # (V, size)
        rows += 0.5**place * torch.where(there[:, None], features, 0.0)
    return spread * rows / rows.square().mean(1, keepdim=True).sqrt()


def spread_of(rows: Tensor) -> float:
    """Root mean square of embeddings (V, size) about their mean: the scale for new ones."""
    rows = rows.detach().float()
    return float((rows - rows.mean(0)).square().mean().sqrt())
