"""Names for things that are loaded on demand: policies, strategies, ... One line registers one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from vla_agents.errors import ConfigError, UnknownNameError


class Registry:
    """Name -> object, or name -> `"module:attribute"` that is imported when first asked for.

    Args:
        kind: What the names stand for, e.g. `"policy"`; used in errors.
        entries: The first entries.
    """

    def __init__(self, kind: str, entries: dict[str, Any] | None = None) -> None:
        self.kind = kind
        self._entries: dict[str, Any] = dict(entries or {})

    def register(self, name: str, entry: Any, *, overwrite: bool = False) -> None:
        """Add an entry; a name that is taken is refused unless `overwrite`."""
        if name in self._entries and not overwrite:
            raise ConfigError(
                f"the {self.kind} {name!r} is registered already", "pass overwrite=True to replace it"
            )
        self._entries[name] = entry

    def get(self, name: str) -> Any:
        """The object behind a name; `UnknownNameError` with a suggestion where there is none."""
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        entry = self._entries[name]
        if isinstance(entry, str):
            module, attribute = entry.split(":")
            entry = self._entries[name] = getattr(importlib.import_module(module), attribute)
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: str) -> bool:
        return name in self._entries
