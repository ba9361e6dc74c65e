"""Key: named factors, their canonical JSON, its SHA-256 digest, and what differs between two of them.

Two levels, after ccache's direct and preprocessed modes: the *request* is all that is known before anything is
built (config, toolchain, hardware); the *object* is the exported program with what lowers it to machine code.
Neither imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .config import AUTO, OPENVINO, Settings
from .environment import installed, python_version, target, toolchain
from .errors import ConfigError

# Raise it when the same factors come to mean other code: a change of what compiler/ does, say.
KEY_SCHEMA = 6


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII.

    Raises:
        TypeError: a value has no canonical form. Under-hashing is worse than an error.
        ValueError: a number is NaN or infinite.
    """
    _check(value, "key")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _check(value: Any, path: str) -> None:
    if value is None or type(value) in (bool, int, str):
        return
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}, which has no canonical form")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if type(name) is not str:
                raise TypeError(f"{path} has the key {name!r} of type {type(name).__name__}; keys must be str")
            _check(item, f"{path}.{name}")
    else:
        raise TypeError(f"{path} is a {type(value).__name__}, which has no canonical form")


def digest(value: Any) -> str:
    """The SHA-256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True)
class Key:
    """Named factors of one level; equal factors give equal digests in every process."""

    factors: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """64 hex digits."""
        return digest(self.factors)

    def diff(self, other: Mapping[str, Any]) -> list[str]:
        """What changed from `other` to this, a short line a factor: `toolchain.torch 2.12.0 -> 2.13.0`."""
        old, new = _texts(other), _texts(self.factors)
        names = sorted(old.keys() | new.keys())
        return [
            f"{name} {_short(old.get(name))} -> {_short(new.get(name))}"
            for name in names
            if old.get(name) != new.get(name)
        ]


def _texts(factors: Mapping[str, Any]) -> dict[str, str]:
    """Each leaf as the JSON that is hashed: Python takes 1, 1.0 and True for equal, and the digest doesn't."""
    return {name: json.dumps(value, sort_keys=True) for name, value in _leaves(factors)}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}" if path else name)
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def _short(text: str | None) -> str:
    if text is None:
        return "nothing"
    shown = str(json.loads(text)) if text.startswith('"') else text
    if len(shown) == 64 and set(shown) <= set("0123456789abcdef"):
        return shown[:8]
    return shown if len(shown) <= 60 else shown[:40] + "…" + hashlib.sha256(shown.encode()).hexdigest()[:8]


def request_key(settings: Settings, device: str) -> Key:
    """The key of what was asked for, known before anything is built.

    Args:
        settings: The run's settings.
        device: The resolved device, `cpu` or `cuda:N`; its kind is a factor, its index is not.

    Raises:
        ConfigError: a value of the config has no canonical form.
    """
    names = {"mode": settings.mode.name, "precision": settings.precision.name, "weights": settings.weights.placement}
    for group, name in names.items():
        if name == AUTO:
            raise ConfigError(f"{group}=auto is resolved by task=benchmark, compile and evaluate: name one here")
    config = settings.factors()
    config["model"]["environment"] = {name: os.environ.get(name) for name in settings.model.environment}
    factors = {
        "schema": KEY_SCHEMA,
        **config,
        "device": device.partition(":")[0],
        "toolchain": {**toolchain(), "python": python_version()},
        "target": target(device, settings.target),
    }
    if settings.mode.engine == OPENVINO:  # no factor of what others compile, which outlives an update of it
        factors["toolchain"][OPENVINO] = installed(OPENVINO)
    try:
        canonical(factors)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the config can't be part of a key: {error}") from error
    return Key(factors)


def object_key(request: Key, *, graph: Mapping[str, Any], weights: Mapping[str, Any]) -> Key:
    """The key of the machine code: the exported program with what lowers it.

    Args:
        request: The request that led here.
        graph: The program's canonical text, its signature and its inputs' metadata.
        weights: Their content's digest where they are baked in, otherwise only their metadata.
    """
    shared = {name: request.factors[name] for name in ("schema", "device", "target", "numerics", "weights")}
    factors = {
        **shared,
        "inductor": request.factors["mode"]["inductor"],
        # the graph says all that Python and NumPy had a part in
        "toolchain": {k: v for k, v in request.factors["toolchain"].items() if k not in {"python", "numpy"}},
        "graph": graph,
        "weights": {**request.factors["weights"], **weights},
    }
    engine = request.factors["mode"]["engine"]
    if engine == OPENVINO:  # which is told the arithmetic beside the graph
        factors |= {"engine": engine, "precision": request.factors["precision"]["name"]}
    return Key(factors)
