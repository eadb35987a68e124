"""Which versions of which packages made a result; stored with every recording and report."""

from __future__ import annotations

import platform
from importlib import metadata

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
