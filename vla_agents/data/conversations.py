"""Pictures and questions in the QwenVL conversation format: `{"image": path, "conversations": [{"from":
"human", "value": "<image>\\nwhat is this?"}, {"from": "gpt", "value": "A red block"}, ...]}`, as JSON or JSON lines.

`image` may be a list, or be missing (text alone); a first turn may be from "system". `<image>` in a human turn says where
the picture stands; where no turn has one, the pictures come first. On disk a folder holds `conversations.json` and
`images/`. Everything is checked when a file is opened, pictures are read when a conversation is asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.errors import DatasetError, DatasetExistsError, DatasetNotFoundError

IMAGE = "<image>"
_LEADING = re.compile(r"^(<image>\n?)+")
_SHOWN = 5  # findings in an error
_REWRITE = "correct it there or write the file again; a file with one object per line is called .jsonl"


@dataclass(frozen=True)
class Conversation:
    """Pictures, and turns about them.

    Args:
        images: uint8 (H, W, 3) each.
        turns: (question, answer) pairs; `<image>` says where a picture stands, without any they come first.
        system: What the system says before.
    """

    images: tuple[np.ndarray, ...]
    turns: tuple[tuple[str, str], ...]
    system: str = ""


@dataclass(frozen=True)
class Entry:
    """A conversation whose pictures are still on the disk."""

    pictures: tuple[Path, ...]
    turns: tuple[tuple[str, str], ...]
    system: str = ""


class ConversationSet:
    """The conversations of one file; `set[i]` reads the pictures of one.

    Args:
        path: A QwenVL JSON or JSONL file, or a folder with `conversations.json`.
        images: Folder that picture paths are relative to; by default that of the file.

    Raises:
        DatasetNotFoundError: No such file.
        DatasetError: Naming the entries that are malformed, have no answer, or whose picture is missing or outside the
            folder.
    """

    def __init__(self, path: str | Path, images: str | Path | None = None) -> None:
        path = Path(path)
        self.file = path / "conversations.json" if path.is_dir() else path
        self._root = (Path(images) if images else self.file.parent).resolve()
        if not self._root.is_dir():
            raise DatasetNotFoundError(self._root, "no such folder of pictures", "correct `images`")
        self.entries: list[Entry] = []
        findings = []
        for number, entry in enumerate(_read(self.file)):
            try:
                self.entries.append(self._parse(entry))
            except _Malformed as found:
                findings.append(f"entry {number}: {found}")
        if findings:
            more = f" (and {len(findings) - _SHOWN} more)" if len(findings) > _SHOWN else ""
            raise DatasetError(
                self.file, "; ".join(findings[:_SHOWN]) + more, "mend these entries or take them out"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> Conversation:
        entry = self.entries[number]
        return Conversation(tuple(_picture(place) for place in entry.pictures), entry.turns, entry.system)

    def _parse(self, entry: Any) -> Entry:
        try:
            named = entry.get("image") or []
            names = [named] if isinstance(named, str) else [str(name) for name in named]
            speakers = [str(turn["from"]) for turn in entry["conversations"]]
            values = [str(turn["value"]) for turn in entry["conversations"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise _Malformed(f"malformed ({error!r})") from error
        if "video" in entry:
            raise _Malformed("has a video, which is not supported")
        system = values.pop(0) if speakers[:1] == ["system"] else ""
        turns = _turns(speakers[1:] if system else speakers, values)
        places = sum(question.count(IMAGE) for question, _ in turns)
        if places not in (0, len(names)):
            raise _Malformed(f"{len(names)} pictures, and {places} times {IMAGE}")
        leading = _LEADING.match(turns[0][0])
        if leading and leading[0].count(IMAGE) == places:  # where they stand anyway
            turns[0] = turns[0][0][leading.end() :], turns[0][1]
        return Entry(tuple(self._place(name) for name in names), tuple(turns), system)

    def _place(self, name: str) -> Path:
        place = (self._root / name).resolve()
        if not place.is_relative_to(self._root):
            raise _Malformed(f"the picture {name!r} lies outside the dataset folder")
        if not place.is_file():
            raise _Malformed(f"the picture {name!r} is missing")
        return place


class _Malformed(Exception):
    """What is wrong with one entry."""


def _turns(speakers: list[str], values: list[str]) -> list[tuple[str, str]]:
    if speakers and speakers == ["human", "gpt"] * (len(speakers) // 2) + ["human"]:
        raise _Malformed("the last question is without an answer")
    if not values or speakers != ["human", "gpt"] * (len(speakers) // 2):
        raise _Malformed(f"turns must go human, gpt, human, gpt, ...; found {speakers}")
    turns = list(zip(values[::2], values[1::2], strict=True))
    if any(not answer.strip() for _, answer in turns):
        raise _Malformed("a question is without an answer (its gpt turn is empty)")
    if any(IMAGE in answer for _, answer in turns):
        raise _Malformed(f"{IMAGE} in an answer")
    return turns


def _read(file: Path) -> list[Any]:
    if not file.is_file():
        raise DatasetNotFoundError(
            file, "no such file", "give a QwenVL conversations JSON or a folder that holds one"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(file, f"not UTF-8 ({error})", _REWRITE) from error
    if file.suffix == ".jsonl":
        numbered = enumerate(text.splitlines(), start=1)
        return [_json(line, file, f"line {number}: ") for number, line in numbered if line.strip()]
    found = _json(text, file)
    if not isinstance(found, list):
        raise DatasetError(
            file,
            f"expected a list of conversations, found a {type(found).__name__}",
            'write [{"image": ..., "conversations": [...]}, ...]',
        )
    return found


def _json(text: str, file: Path, where: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(file, f"{where}not JSON ({error})", _REWRITE) from error


def _picture(place: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(place) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise DatasetError(
            place, f"not a readable picture ({error})", "replace it or take its entries out"
        ) from error


def load_conversations(path: str | Path) -> list[Conversation]:
    """All conversations of a file or folder, pictures included (see `ConversationSet`)."""
    found = ConversationSet(path)
    return [found[number] for number in range(len(found))]


def save_conversations(folder: str | Path, conversations: Sequence[Conversation]) -> Path:
    """Write `conversations.json` and PNG pictures; a picture shared by several conversations is written once."""
    from PIL import Image

    folder = Path(folder)
    if (folder / "conversations.json").exists():
        raise DatasetExistsError(
            folder, "conversations are here already", "choose another folder or remove this one"
        )
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names: dict[int, str] = {}
    entries = []
    for conversation in conversations:
        paths = []
        for image in conversation.images:
            if id(image) not in names:
                names[id(image)] = f"images/{len(names):06d}.png"
                Image.fromarray(image).save(folder / names[id(image)])
            paths.append(names[id(image)])
        placed = any(IMAGE in question for question, _ in conversation.turns)
        turns = [{"from": "system", "value": conversation.system}] if conversation.system else []
        for number, (question, answer) in enumerate(conversation.turns):
            places = f"{IMAGE}\n" * len(paths) if number == 0 and not placed else ""
            turns += [{"from": "human", "value": places + question}, {"from": "gpt", "value": answer}]
        pictures = {"image": paths[0] if len(paths) == 1 else paths} if paths else {}
        entries.append({**pictures, "conversations": turns})
    temporary = folder / ".conversations.json.tmp"
    temporary.write_text(json.dumps(entries, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(folder / "conversations.json")
    return folder
