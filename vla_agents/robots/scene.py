"""What lies around a robot: a simulator puts it in order by itself, for a real arm a person does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Scene(Protocol):
    """Puts the objects in order between episodes, and may judge what became of them."""

    def reset(self, seed: int | None, options: dict[str, Any]) -> dict[str, Any]:
        """Called at every reset when the arm is at home. Returns `info`; `"instruction"` in it is the task."""

    def judge(self) -> dict[str, Any]:
        """Called after every step. `"success"` and `"wrong"` end the episode; all of it goes to `info`."""


class Operator:
    """A person who puts the objects back, and presses Enter; the arm holds meanwhile.

    Args:
        instructions: The tasks in turn, one per episode; none leaves them to the env.
        prompt: What is asked; `{instruction}` is replaced.
        ask: Shows a prompt and waits; a typed line becomes the instruction.
    """

    def __init__(
        self,
        instructions: Sequence[str] = (),
        prompt: str = "Next: {instruction}. Put the objects in place, then press Enter (or type another task): ",
        ask: Callable[[str], str] = input,
    ) -> None:
        self._instructions, self._prompt, self._ask = tuple(instructions), prompt, ask
        self._episode = 0

    def reset(self, seed: int | None, options: dict[str, Any]) -> dict[str, Any]:
        """Ask, and wait for the answer."""
        planned = self._instructions[self._episode % len(self._instructions)] if self._instructions else ""
        planned = str(options.get("instruction") or planned)
        self._episode += 1
        typed = self._ask(self._prompt.replace("{instruction}", planned or "an episode")).strip()
        instruction = typed or planned
        return {"instruction": instruction} if instruction else {}

    def judge(self) -> dict[str, Any]:
        """Nobody looks at single steps."""
        return {}
