"""What made a run, beside `run.yaml`: command, code, packages, machine. Written to `environment.yaml`."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vla_agents.config import save_yaml

_PACKAGES = (
    "vla-agents", "torch", "transformers", "tokenizers", "accelerate", "deepspeed", "peft", "safetensors", "numpy",
    "scipy", "gymnasium", "mujoco", "av", "pyarrow", "h5py", "optuna",
)  # fmt: skip
_MOST_DIFF = 200_000  # characters


def write_record(out: Path, *, resumed: bool = False) -> Path:
    """Add this start of the run to `environment.yaml` (a resumed run has several); uncommitted changes go beside it."""
    file = out / "environment.yaml"
    started = _record()
    starts: list[Any] = []
    if resumed and file.is_file():
        from vla_agents.config import load_yaml

        starts = list(load_yaml(file)["starts"])
    diff = _git("diff", "HEAD")
    if diff:
        (out / "uncommitted.diff").write_text(diff[:_MOST_DIFF], encoding="utf-8")
    save_yaml({"starts": [*starts, started]}, file)
    return file


def _record() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "git": {
            "commit": _git("rev-parse", "HEAD") or "not a git checkout",
            "branch": _git("rev-parse", "--abbrev-ref", "HEAD"),
            "changed_files": [line[3:] for line in status.splitlines()],
        },
        "packages": _versions(),
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "host": platform.node(),
            "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
            "cuda": torch.version.cuda or "",
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
        },
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(*words: str) -> str:
    """What git says of the checkout this library is in; empty where it is none, or git is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).resolve().parents[2]), *words],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.rstrip() if done.returncode == 0 else ""
