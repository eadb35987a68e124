"""Pictures and questions in the QwenVL conversation format: `{"image": path, "conversations": [{"from":
"human", ...}, ...]}`.

`<image>` in a human turn says where the picture stands. In memory a conversation holds the pixels; on disk a
folder holds `conversations.json` and `images/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_agents.errors import DatasetError, DatasetExistsError, DatasetNotFoundError

_PLACE = re.compile(r"<image>\n?")


@dataclass(frozen=True)
class Conversation:
    """Pictures, and turns about them.

    Args:
        images: uint8 (H, W, 3) each.
        turns: (question, answer) pairs.
    """

    images: tuple[np.ndarray, ...]
    turns: tuple[tuple[str, str], ...]


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
        turns = []
        for number, (question, answer) in enumerate(conversation.turns):
            places = "<image>\n" * len(paths) if number == 0 else ""
            turns += [{"from": "human", "value": places + question}, {"from": "gpt", "value": answer}]
        entries.append({"image": paths[0] if len(paths) == 1 else paths, "conversations": turns})
    temporary = folder / ".conversations.json.tmp"
    temporary.write_text(json.dumps(entries, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(folder / "conversations.json")
    return folder


def load_conversations(path: str | Path) -> list[Conversation]:
    """Read a QwenVL JSON file (or a folder with `conversations.json`); picture paths are relative to the
    file.

    Raises:
        DatasetNotFoundError: No such file.
        DatasetError: Naming the entry that is malformed, or whose picture is missing or outside the folder.
    """
    path = Path(path)
    file = path / "conversations.json" if path.is_dir() else path
    if not file.is_file():
        raise DatasetNotFoundError(
            file, "no such file", "give a QwenVL conversations JSON or a folder that holds one"
        )
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(file, f"not JSON ({error})") from error
    return [_parse(file, number, entry) for number, entry in enumerate(entries)]


def _parse(file: Path, number: int, entry: dict) -> Conversation:
    try:
        named = entry.get("image", [])
        paths = [named] if isinstance(named, str) else list(named)
        speakers = [turn["from"] for turn in entry["conversations"]]
        values = [_PLACE.sub("", turn["value"]) for turn in entry["conversations"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(file, f"entry {number} is malformed ({error!r})") from error
    if not values or speakers != ["human", "gpt"] * (len(values) // 2):
        raise DatasetError(
            file, f"entry {number}: turns must go human, gpt, human, gpt, ...; found {speakers}"
        )
    turns = tuple(zip(values[::2], values[1::2], strict=True))
    return Conversation(tuple(_picture(file, number, name) for name in paths), turns)


def _picture(file: Path, number: int, name: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    place = (file.parent / name).resolve()
    if not place.is_relative_to(file.parent.resolve()):
        raise DatasetError(file, f"entry {number}: the picture {name!r} lies outside the dataset folder")
    try:
        with Image.open(place) as picture:
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        raise DatasetError(file, f"entry {number}: the picture {name!r} is missing") from None
    except (UnidentifiedImageError, OSError) as error:
        raise DatasetError(place, f"not a readable picture ({error})") from error
