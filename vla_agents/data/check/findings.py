"""What a check found, and how it is to be mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth a look.

    Args:
        check: Which check, e.g. `"state_jump"`.
        severity: `"error"`: training on it is wrong or impossible; `"warning"`: likely a defect; `"note"`: to be known.
        message: What, in a sentence.
        episode: Which episode; None where it is the dataset's.
        step: The first step it shows at.
        value: The number that stood out.
        count: How many steps show it.
        remedy: How to mend it, in a sentence.
        leave_out: Whether a copy without this episode is a way to mend it.
        command: The command that does it; filled in by `check_dataset`.
    """

    check: str
    severity: Severity
    message: str
    episode: int | None = None
    step: int | None = None
    value: float | None = None
    count: int = 1
    remedy: str = ""
    leave_out: bool = False
    command: str = ""


@dataclass
class Report:
    """What all checks found.

    Args:
        path: The dataset.
        format: Of its files.
        episodes: How many there are.
        steps: In all of them.
        images: How much of the pictures was looked at: `"off"`, `"sample"` or `"all"`.
        pictures: How many pictures were decoded.
        findings: The worst first, then by episode.
    """

    path: Path
    format: str
    episodes: int
    steps: int
    images: str
    pictures: int = 0
    findings: list[Finding] = field(default_factory=list)

    def count(self, severity: Severity) -> int:
        """How many findings are of one severity."""
        return sum(f.severity == severity for f in self.findings)

    @property
    def bad_episodes(self) -> list[int]:
        """Episodes with an error or a warning that leaving them out would mend."""
        return sorted(
            {
                f.episode
                for f in self.findings
                if f.episode is not None and f.leave_out and f.severity != "note"
            }
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-able; numbers as they are."""
        counts = Counter(f.severity for f in self.findings)
        return {
            "format": "vla_agents_check",
            "path": str(self.path),
            "dataset": self.format,
            "episodes": self.episodes,
            "steps": self.steps,
            "images": self.images,
            "pictures": self.pictures,
            "counts": {severity: counts.get(severity, 0) for severity in SEVERITIES},
            "findings": [asdict(f) for f in self.findings],
        }


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, then by episode; those of the whole dataset before those of an episode."""
    return sorted(
        findings,
        key=lambda f: (
            SEVERITIES.index(f.severity),
            -1 if f.episode is None else f.episode,
            f.check,
            f.step or 0,
        ),
    )


def numbers_without(bad: Sequence[int], count: int) -> str:
    """All episodes but some, as `data convert --episodes` wants them: `"0:4,5,7:10"` (ends excluded)."""
    pieces: list[list[int]] = []
    for k in sorted(set(range(count)) - set(bad)):
        if pieces and pieces[-1][1] == k:
            pieces[-1][1] = k + 1
        else:
            pieces.append([k, k + 1])
    return ",".join(f"{a}:{b}" if b - a > 1 else str(a) for a, b in pieces)
