"""One episode as a folder that any browser opens without a server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from vla_agents.data.bars import bar
from vla_agents.data.view.content import Content
from vla_agents.data.view.server import FILES, HERE
from vla_agents.errors import ConfigError


def export(content: Content, episode: int, folder: Path, *, progress: bool = False) -> Path:
    """Write page, numbers and all pictures of one episode.

    Args:
        content: The dataset.
        episode: Which.
        folder: Must not exist, or be empty.
        progress: Show a progress bar.

    Returns:
        The file to open.
    """
    if not 0 <= episode < len(content.lengths):
        raise ConfigError(f"no episode {episode}, there are {len(content.lengths)}", "count from 0")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already", "give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES.values():
        shutil.copyfile(HERE / name, folder / ("index.html" if name == "page.html" else name))
    summary, length = content.summary(), int(content.lengths[episode])
    data = {"dataset": summary, "episode": content.episode(episode)}
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    (folder / "exported.js").write_text(f"window.EXPORTED = {text};\n", encoding="utf-8")
    page = (folder / "index.html").read_text(encoding="utf-8")
    script = '<script src="curves.js"></script>'
    (folder / "index.html").write_text(
        page.replace(script, f'<script src="exported.js"></script>\n{script}'), encoding="utf-8"
    )
    with bar("writing pictures", length * len(summary["cameras"]), shown=progress) as advance:
        for camera in range(len(summary["cameras"])):
            at = folder / "picture" / str(episode) / str(camera)
            at.mkdir(parents=True)
            for step in range(length):
                (at / f"{step}.jpg").write_bytes(content.picture(episode, camera, step))
                advance()
    return folder / "index.html"
