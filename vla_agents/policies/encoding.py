"""What goes into a backbone beside pictures and texts, and what comes out; see `vla_agents.policies.backbone`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Queries:
    """The action queries of a prompt.

    Args:
        count: H.
        token: Text of the query token, where the backbone has tokens for them.
        in_text: Whether the texts hold them already (StarVLA's Qwen-OFT), so that they are only to be found.
        cut: With `in_text`, leave out of the forward pass what follows the last of them (causal models).
    """

    count: int
    token: str = "🔍"
    in_text: bool = False
    cut: bool = True


@dataclass
class Encoding:
    """What a backbone gives back.

    Args:
        hidden: (B, L, hidden) states of the deepest layer that was asked for.
        mask: bool (B, L), False on padding.
        input_ids: int64 (B, L), where the states belong to tokens.
        layers: The outputs (B, L, hidden) of the layers that were asked for.
        queries: (B, H, hidden) states at the queries, where there were any.
        answers: bool (B, L), True on the tokens of the answers, where there were any.
        padded: Whether there can be padding.
    """

    hidden: Tensor
    mask: Tensor
    input_ids: Tensor | None = None
    layers: tuple[Tensor, ...] = ()
    queries: Tensor | None = None
    answers: Tensor | None = None
    padded: bool = True


class Speech(Protocol):
    """B answers in the making, token by token."""

    hidden: Tensor
    """(B, hidden): the states from which the next tokens are predicted."""

    def say(self, ids: Tensor) -> None:
        """Go on with these tokens, int64 (B,)."""
