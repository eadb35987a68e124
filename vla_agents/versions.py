"""Which versions of which packages made a result, stored with every recording and report; and which ones are asked for."""

from __future__ import annotations

import platform
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from vla_agents.errors import UnknownNameError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGES = ("vla-agents", "numpy", "gymnasium", "mujoco", "torch", "transformers")


def package_versions() -> dict[str, str]:
    """Name -> version of Python and the packages that decide results; missing ones are left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def checkout() -> Path | None:
    """The source tree this package is imported from; None where it is installed without one."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "vla_agents").is_dir() else None


def extras() -> dict[str, list[str]]:
    """What each extra of ours asks for, as written: `{"": the base's, "libero": [...], ...}`.

    A source tree is asked before the metadata of the installation, which may be older.
    """
    root = checkout()
    if root is not None:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return {"": project["dependencies"], **project["optional-dependencies"]}
    lines = [line.replace("'", '"') for line in metadata.requires("vla-agents") or []]
    names = metadata.metadata("vla-agents").get_all("Provides-Extra") or []
    found = {name: [line for line in lines if f'extra == "{name}"' in line] for name in names}
    return {"": [line for line in lines if "extra ==" not in line], **found}


@dataclass(frozen=True)
class Package:
    """A package that is asked for.

    Args:
        requirement: As written, without its marker: `"mujoco==3.3.0"`.
        name: Its name.
        version: What is installed; "" where it is not.
        fits: Whether that is what is asked for.
    """

    requirement: str
    name: str
    version: str
    fits: bool


def packages(extra: str = "") -> list[Package]:
    """What an extra of ours (or "", the base) asks for on this machine, and what is installed.

    Raises:
        UnknownNameError: No such extra.
    """
    from packaging.requirements import Requirement

    listing = extras()
    if extra not in listing:
        raise UnknownNameError("extra", extra, [name for name in listing if name])
    wanted = map(Requirement, listing[extra])
    return [_look(one) for one in wanted if one.marker is None or one.marker.evaluate({"extra": extra})]


def dependencies(name: str) -> list[Package]:
    """What an installed package asks for, extras left out."""
    from packaging.requirements import Requirement

    wanted = map(Requirement, metadata.requires(name) or [])
    return [_look(one) for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def _look(wanted: Requirement) -> Package:
    text = f"{wanted.name}{wanted.specifier}"
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Package(text, wanted.name, "", False)
    return Package(text, wanted.name, version, wanted.specifier.contains(version, prereleases=True))
