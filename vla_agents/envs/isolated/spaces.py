"""Gymnasium spaces as plain values, the same from whatever version of Gymnasium they come."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces

from vla_agents.errors import ConfigError


def to_plain(space: Any) -> dict[str, Any]:
    """A space of dicts, boxes, numbers and texts."""
    if isinstance(space, spaces.Dict):
        return {"kind": "dict", "spaces": {key: to_plain(item) for key, item in space.spaces.items()}}
    if isinstance(space, spaces.Box):
        return {"kind": "box", "low": space.low, "high": space.high, "dtype": space.dtype.str}  # type: ignore[union-attr]
    if isinstance(space, spaces.Discrete):
        return {"kind": "discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.Text):
        return {
            "kind": "text",
            "max_length": space.max_length,
            "min_length": space.min_length,
            "charset": "".join(sorted(space.character_set)),
        }
    raise ConfigError(
        f"a space of kind {type(space).__name__} cannot be isolated", "wrap the env so that it has others"
    )


def from_plain(plain: dict[str, Any]) -> Any:
    """The inverse of `to_plain`."""
    kind = plain["kind"]
    if kind == "dict":
        return spaces.Dict({key: from_plain(item) for key, item in plain["spaces"].items()})
    if kind == "box":
        low, high = plain["low"], plain["high"]
        return spaces.Box(low, high, low.shape, low.dtype.type)
    if kind == "discrete":
        return spaces.Discrete(plain["n"], start=plain["start"])
    return spaces.Text(plain["max_length"], min_length=plain["min_length"], charset=plain["charset"])
