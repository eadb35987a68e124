"""The exact command for what is missing, on this machine: its Python, its package manager, with sudo or without."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from vla_agents.versions import checkout

STATE = ".vla-agents"  # ./run's file in a venv it made


def python() -> str:
    """This Python, as one types it: `python` where that is the one."""
    found = shutil.which("python")
    here = Path(sys.executable)
    if found is not None and Path(found).parent == here.parent:
        return "python"
    return shlex.quote(str(here))


def pip_install(*wanted: str, options: str = "") -> str:
    """Installs packages into this Python's environment."""
    what = " ".join([*options.split(), *map(shlex.quote, wanted)])
    # Asked past `sys.meta_path`: setuptools takes a question for pip as a sign that its own distutils is not wanted, and
    # torch.compile fails later in this process.
    if PathFinder.find_spec("pip") is not None:
        return f"{python()} -m pip install {what}"
    if shutil.which("uv"):
        return f"uv pip install --python {shlex.quote(sys.executable)} {what}"
    return f"{python()} -m ensurepip && {python()} -m pip install {what}"


def install_extra(extra: str) -> str:
    """Installs an extra of ours, the way this installation was made."""
    root = checkout()
    if root is None:
        return pip_install(f"vla-agents[{extra}]" if extra else "vla-agents")
    if _made_by_run(root):
        there = "" if root == Path.cwd() else f"cd {shlex.quote(str(root))} && "
        return f"{there}./run setup {extra}".rstrip()
    return pip_install(f"{root}[{extra}]" if extra else str(root), options="-e")


def _made_by_run(root: Path) -> bool:
    """Whether this environment is the one that the source tree's `./run` installs into."""
    try:
        made_for = (Path(sys.prefix) / STATE).read_text(encoding="utf-8").splitlines()[:1]
    except OSError:
        return False
    return made_for == [str(root)] and (root / "run").is_file()


def apt(*names: str) -> dict[str, str]:
    """`command` (where there is apt) or `advice` that installs packages of Debian and Ubuntu."""
    if shutil.which("apt-get") is None:
        return {"advice": f"install, by your system's own names, what Debian calls {', '.join(names)}"}
    packages = " ".join(names)
    return {"command": f"{sudo()}apt-get update && {sudo()}apt-get install --yes {packages}"}


def sudo() -> str:
    """`"sudo "`, or nothing for root."""
    return "" if not hasattr(os, "geteuid") or os.geteuid() == 0 else "sudo "
