"""Dataclasses as JSON and back, by their type hints. Errors name the field."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def encode(value: Any, where: str = "") -> Any:
    """Dataclasses, mappings and sequences as what `json` writes.

    Raises:
        TypeError: something JSON can't hold; `where`, its field, is named.
        ValueError: NaN or infinity.
    """
    if dataclasses.is_dataclass(value):
        value = {_json_name(item): getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item, _join(where, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which JSON has no number for")
    if not isinstance(value, str | int | float | NoneType):
        raise TypeError(f"{where} is of type {type(value).__name__}, which JSON can't hold")
    return value


def decode(hint: Any, value: Any, where: str = "") -> Any:
    """`value` as the type `hint`: a dataclass of this package, or what its fields are.

    Fields that this version doesn't know are left out: a later one may have added them.

    Raises:
        ValueError: it isn't of that type; `where`, its field, is named.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:  # always `... | None` here
        return None if value is None else decode(arguments[0], value, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _decode_fields(hint, value, where)
    if origin is list and isinstance(value, list):
        return [decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: decode(arguments[1], item, _join(where, key)) for key, item in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if hint is Any or hint is type(value) or (origin is Literal and value in arguments):
        return value
    expected = " or ".join(arguments) if origin is Literal else hint.__name__
    raise ValueError(f"{where} is {json.dumps(value)[:60]}, not {expected}")


def _decode_fields(cls: Any, content: dict[str, Any], where: str) -> Any:
    hints, values = get_type_hints(cls), {}
    for item in dataclasses.fields(cls):
        name = _json_name(item)
        if name not in content:
            if item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING:
                continue  # an earlier version didn't have it
            raise ValueError(f"{_join(where, name)} is missing")
        values[item.name] = decode(hints[item.name], content[name], _join(where, name))
    return cls(**values)


def _json_name(item: dataclasses.Field[Any]) -> str:
    return item.name.rstrip("_")  # `from` is a keyword


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
