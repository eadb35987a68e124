"""Which checkpoints of a run stay: `best`, `last`, and every so many steps; the links that name them."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from vla_agents.errors import ConfigError


@dataclass(frozen=True)
class Keep:
    """What stays beside what `last` points to, which always does.

    Args:
        best: What `best` points to.
        every: Those whose step is a multiple of this; 0: none.
        all: All of them.
    """

    best: bool = True
    every: int = 0
    all: bool = False

    @classmethod
    def parse(cls, text: str) -> Keep:
        """From `best,last,every=1000` (`last` goes without saying), or `all`."""
        best, every, everything = False, 0, False
        for word in (part.strip() for part in text.split(",")):
            name, _, number = word.partition("=")
            if word == "best":
                best = True
            elif word == "all":
                everything = True
            elif name == "every" and number.isdigit() and int(number) > 0:
                every = int(number)
            elif word != "last":
                raise ConfigError(
                    f"keep is {text!r}, and {word!r} is none of best, last, every=N, all",
                    "e.g. --keep best,last,every=1000",
                )
        return cls(best, every, everything)

    def wants(self, folder: Path) -> bool:
        """Whether a checkpoint stays although no link names it."""
        step = step_of(folder)
        return self.all or (self.every > 0 and step is not None and step % self.every == 0)


def step_of(folder: Path) -> int | None:
    """The step of `step_000500`; None for another name."""
    name, _, number = folder.name.partition("_")
    return int(number) if name == "step" and number.isdigit() else None


def point(link: Path, folder: Path) -> None:
    """Make `link` a relative link to `folder`, at one stroke."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(folder, link.parent))
    os.replace(temporary, link)


def prune(out: Path, keep: Keep) -> None:
    """Remove the checkpoints that need not stay, and left-overs of killed writers."""
    if not keep.best:
        point(out / "best", (out / "last").resolve())
    named = {(out / name).resolve() for name in ("best", "last")}
    for folder in (out / "checkpoints").iterdir():
        if folder.resolve() not in named and not keep.wants(folder):
            shutil.rmtree(folder, ignore_errors=True)
    for left_over in out.glob(".*.link"):
        left_over.unlink(missing_ok=True)
