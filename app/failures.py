"""Failures: what did not export, compile or verify is kept under its key, so that no later process pays again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import dependencies, errors
from .config import Settings
from .environment import compiler
from .errors import AppError
from .keys import Key, digest
from .lookup import ago
from .store import Store

NOTE = "failures"
# The oldest beyond these are forgotten.
MOST = 256


def keep(store: Store, request: Key, settings: Settings, error: AppError) -> None:
    """Keep a failure that would happen again; one that may be the machine's has no dependencies."""
    if error.dependencies is None or store.readonly:
        return
    entry = {
        "type": type(error).__name__,
        "message": error.message,
        "model": settings.model.name,
        "at": time.time(),
        "dependencies": error.dependencies,
        "judged_by": _judged_by(settings),
    }

    def add(known: Any) -> Any:
        others = {name: each for name, each in _entries(known).items() if name != request.digest}
        newest = sorted(others, key=lambda name: others[name]["at"])[-(MOST - 1) :]
        return {**{name: others[name] for name in newest}, request.digest: entry}

    store.change_note(NOTE, add)


def find(store: Store, request: Key, settings: Settings, named: dict[str, Path]) -> tuple[AppError, str] | None:
    """The failure that this request meets again, and since when it is known; None where it may succeed."""
    entry = _entries(store.noted(NOTE)).get(request.digest)
    if settings.cache.retry or entry is None or entry["judged_by"] != _judged_by(settings):
        return None
    try:
        if dependencies.changed(entry["dependencies"], named) is not None:
            return None
        kind = getattr(errors, entry["type"])
    except (AttributeError, TypeError, ValueError):  # a malformed entry says nothing
        return None
    error: AppError = kind(entry["message"])
    error.dependencies = entry["dependencies"]
    since = ago(time.time() - entry["at"])
    return error, f"it failed before, {since}, at {error.stage}; cache.retry=true tries again"


def forget(store: Store, models: Sequence[str]) -> list[dict[str, Any]]:
    """Forget the failures of these models, or all of them where none is named; one row for each."""
    gone = {name: each for name, each in _entries(store.noted(NOTE)).items() if not models or each["model"] in models}
    if gone:
        store.change_note(
            NOTE, lambda known: {name: each for name, each in _entries(known).items() if name not in gone}
        )
    return [{"kind": "failures", "digest": name, "model": each["model"]} for name, each in gone.items()]


def _judged_by(settings: Settings) -> str:
    """A digest of all that a failure depends on and a request's key leaves out."""
    verify = {**asdict(settings.verify), "beyond": None}
    allowed = [settings.fallback.rungs, settings.fallback.on_export, settings.fallback.on_compile]
    return digest(
        [verify, settings.precision.floor, settings.graphs.batch_sizes, allowed, settings.cache.trust, compiler()]
    )


def _entries(known: Any) -> dict[str, Mapping[str, Any]]:
    if not isinstance(known, dict):
        return {}
    wanted = {"type", "message", "model", "at", "dependencies", "judged_by"}
    return {name: each for name, each in known.items() if isinstance(each, dict) and wanted <= each.keys()}
