"""Checks of whole episodes: length, instruction, success, doubles, and the lag between action and state."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from vla_agents.data.check.findings import Finding
from vla_agents.data.check.numbers import parts_of
from vla_agents.data.episode import Episode
from vla_agents.embodiment import Embodiment

NEARLY = 0.8  # share of an episode's rows that are another's
_SHIFTS = range(-3, 4)


def short(number: int, length: int) -> list[Finding]:
    """Episodes of fewer than two steps."""
    if length >= 2:
        return []
    return [
        Finding(
            "too_short",
            "error" if length == 0 else "warning",
            f"{length} steps",
            number,
            value=length,
            remedy="the recording was stopped at once: leave it out",
            leave_out=True,
        )
    ]


def instruction(number: int, texts: Sequence[str]) -> list[Finding]:
    """Instructions of which nothing is left without spaces."""
    bad = [k for k, text in enumerate(texts) if not text.strip()]
    if not bad:
        return []
    return [
        Finding(
            "no_instruction",
            "warning",
            "the instruction is empty",
            number,
            bad[0],
            count=len(bad),
            remedy="a policy that is told what to do learns nothing from it: for HDF5 of others give --instruction, else "
            "leave it out",
            leave_out=True,
        )
    ]


def wordings(instructions: Mapping[int, str]) -> list[Finding]:
    """Instructions that differ in capitals, spaces and punctuation only."""
    groups: dict[str, dict[str, int]] = {}
    for number, text in instructions.items():
        groups.setdefault(re.sub(r"\W+", " ", text).strip().lower(), {}).setdefault(text, number)
    return [
        Finding(
            "wording",
            "note",
            f"one instruction is written in {len(group)} ways: "
            + ", ".join(repr(text) for text in list(group)[:4]),
            max(group.values()),
            count=len(group),
            remedy="they count as different tasks: write them in one way",
        )
        for key, group in groups.items()
        if key and len(group) > 1
    ]


def success(successes: Mapping[int, bool | None]) -> list[Finding]:
    """Episodes that nobody judged."""
    missing = [k for k, found in successes.items() if found is None]
    if not missing:
        return []
    which = "no episode says" if len(missing) == len(successes) else f"{len(missing)} episodes do not say"
    return [
        Finding(
            "no_success",
            "note",
            f"{which} whether the task was done",
            None if len(missing) == len(successes) else missing[0],
            count=len(missing),
            remedy="failures cannot be told from demonstrations: look at them, and keep the good ones",
        )
    ]


def repeated(number: int, episode: Episode) -> list[Finding]:
    """Pictures the recorder showed twice because it could not keep up."""
    bad = np.flatnonzero(episode.repeated)
    if not len(bad):
        return []
    share = len(bad) / max(len(episode), 1)
    return [
        Finding(
            "repeated_frame",
            "warning" if share > 0.05 else "note",
            f"{len(bad)} pictures ({share:.1%}) are those of an earlier step: the recorder was late",
            number,
            int(bad[0]),
            share,
            len(bad),
            remedy="record with fewer or smaller cameras, or on a faster machine",
            leave_out=share > 0.05,
        )
    ]


def doubles(episodes: Mapping[int, Episode]) -> list[Finding]:
    """Episodes whose numbers are another's, all of them or nearly."""
    rows = {k: _hashes(e) for k, e in episodes.items()}
    rows = {k: np.unique(found) for k, found in rows.items()}
    rows = {k: found for k, found in rows.items() if len(found) >= 3}
    if len(rows) < 2:
        return []
    owners = np.repeat(list(rows), [len(found) for found in rows.values()])
    hashes = np.concatenate(list(rows.values()))
    by_hash = np.lexsort((owners, hashes))
    hashes, owners = hashes[by_hash], owners[by_hash]
    first = np.r_[True, hashes[1:] != hashes[:-1]]
    original = owners[np.flatnonzero(first)][np.cumsum(first) - 1]  # the first episode that has this row
    copied = original != owners
    found = []
    for number in np.unique(owners[copied]):
        others, counts = np.unique(original[copied & (owners == number)], return_counts=True)
        best = int(others[counts.argmax()])
        share = counts.max() / len(rows[number])
        if share < NEARLY:
            continue
        whole = share == 1 and np.array_equal(_hashes(episodes[number]), _hashes(episodes[best]))
        found.append(
            Finding(
                "duplicate" if whole else "near_duplicate",
                "warning",
                f"all numbers are those of episode {best}"
                if whole
                else f"{share:.0%} of the rows are those of episode {best}",
                int(number),
                None,
                float(share),
                int(counts.max()),
                "it counts twice in training, and may be in both halves of a split: leave it out",
                leave_out=True,
            )
        )
    return found


def _hashes(episode: Episode) -> np.ndarray:
    """uint64 (T,): one number per row of state and action."""
    values = [episode.action] if episode.state is None else [episode.state, episode.action]
    bits = np.ascontiguousarray(np.concatenate(values, axis=1), np.float32).view(np.uint32).astype(np.uint64)
    odd = np.random.default_rng(0).integers(1 << 62, size=bits.shape[1], dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    mixed = bits * odd
    return (mixed ^ (mixed >> np.uint64(29))).sum(axis=1, dtype=np.uint64)


def lag(episodes: Mapping[int, Episode], body: Embodiment) -> list[Finding]:
    """Whether commanded joint positions lead the measured ones, as they must: correlation of their changes at shifts of
    -3 to 3 steps."""
    names = {part.name: at for part, at in parts_of(body, "state") if part.kind == "joint_position"}
    pairs = [
        (at, names[part.name])
        for part, at in parts_of(body, "action")
        if part.kind == "joint_position" and part.name in names
    ]
    if not pairs:
        return []
    best = {shift: _correlation(episodes, pairs, shift) for shift in _SHIFTS}
    shift = max(best, key=lambda s: best[s])
    if not np.isfinite(best[shift]) or best[shift] < 0.5:
        return []
    if shift >= 0:
        return [
            Finding(
                "lag",
                "note",
                f"the state follows the action by {shift} steps (correlation {best[shift]:.2f})",
                value=shift,
                remedy="nothing to mend",
            )
        ]
    if best[shift] - best[0] < 0.05:
        return []
    return [
        Finding(
            "lag",
            "warning",
            f"the action follows the state by {-shift} steps (correlation {best[shift]:.2f} against "
            f"{best[0]:.2f} at the same step): it was recorded late, or rows and actions are shifted",
            value=shift,
            remedy="a command has to stand beside the state it was given in: mend the recorder, or shift the column",
        )
    ]


def _correlation(episodes: Mapping[int, Episode], pairs: list[tuple[slice, slice]], shift: int) -> float:
    """Of the changes of action[t] and state[t + shift], over all episodes and joints."""
    ours, theirs = [], []
    for episode in episodes.values():
        if episode.state is None or len(episode) < 8:
            continue
        steps = np.arange(max(0, -shift), len(episode) - max(0, shift))
        for action, state in pairs:
            ours.append(np.diff(episode.action[steps, action], axis=0).ravel())
            theirs.append(np.diff(episode.state[steps + shift, state], axis=0).ravel())
    if not ours:
        return float("nan")
    a, b = np.concatenate(ours).astype(np.float64), np.concatenate(theirs).astype(np.float64)
    good = np.isfinite(a) & np.isfinite(b)
    if good.sum() < 30 or not a[good].std() or not b[good].std():
        return float("nan")
    return float(np.corrcoef(a[good], b[good])[0, 1])
