"""Configurations are frozen dataclasses: their field docstrings are the `--help`, their YAML records a run.

The loader is strict. A key that no field has, a value of the wrong type: each is a `ConfigError` that names
the key and, where one comes near, the field that was meant.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from vla_agents.errors import ConfigError, suggest

T = TypeVar("T")


def to_dict(config: Any) -> Any:
    """Nested dataclasses -> plain data for YAML and JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def from_dict(cls: type[T], data: Any, *, where: str = "config") -> T:
    """Plain data -> a dataclass, strictly.

    A class some of whose fields have a type that depends on another field says which in a class method
    `field_types(data) -> {field: type}`.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping of {cls.__name__}'s fields, got {data!r}")
    hints = typing.get_type_hints(cls)
    depending = getattr(cls, "field_types", None)
    if depending is not None:
        hints |= depending(data)
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in names:
            raise ConfigError(
                f"{where}: unknown key {key!r}{suggest(str(key), names)}", f"known: {sorted(names)}"
            )
    values = {key: _convert(hints[key], value, _at(where, key)) for key, value in data.items()}
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in data and _is_required(f)]  # type: ignore[arg-type]
    if missing:
        raise ConfigError(
            f"{where}: missing {', '.join(map(repr, missing))}", f"{cls.__name__} has no default for it"
        )
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def _at(where: str, key: str) -> str:
    """Where a field stands: `run.yaml: optimizer`, and within that `run.yaml: optimizer.lr`."""
    return f"{where}: {key}" if where.endswith((".yaml", ".yml", ".json")) else f"{where}.{key}"


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def save_yaml(config: Any, path: str | Path) -> None:
    """Write a config (or plain data) as YAML."""
    Path(path).write_text(
        yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def load_yaml(path: str | Path) -> Any:
    """Read YAML; a missing or malformed file, or a key that comes twice, is a `ConfigError`."""
    try:
        with Path(path).open(encoding="utf-8") as file:  # a file, not its text: errors then have its name
            return yaml.load(file, _StrictLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({error})") from error


def load_config(cls: type[T], path: str | Path) -> T:
    """A dataclass from a YAML file."""
    return from_dict(cls, load_yaml(path), where=str(path))


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping without repeated keys."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} comes twice", key.start_mark
                )
            seen.add(key.value if isinstance(key.value, str) else repr(key.value))
        return super().construct_mapping(node, deep)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(
                f"{where}: {value!r} is not one of {list(args)}{suggest(str(value), map(str, args))}"
            )
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where=where)  # type: ignore[arg-type]
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        if origin is tuple and args and args[-1] is not Ellipsis:
            if len(args) != len(value):
                raise ConfigError(f"{where}: expected {len(args)} values, got {len(value)}")
            return tuple(
                _convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True))
            )
        inner = args[0] if args else Any
        return origin(_convert(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        return {_convert(args[0], k, where): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    return _convert_plain(hint, value, where)


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is not type(None):
            try:
                return _convert(option, value, where)
            except ConfigError as error:
                errors.append(error)
    raise errors[0] if errors else ConfigError(f"{where}: {value!r} does not fit")


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(
            f"{where}: expected {getattr(hint, '__name__', hint)}, got {type(value).__name__} {value!r}"
        )
    return value
