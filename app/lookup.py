"""Lookup: a request -> the stored artifact that answers it, or the reasons why none does. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import dependencies
from .config import CacheConfig
from .keys import Key
from .record import Outcome
from .store import Artifact, Corrupt, Hit, Miss, Store, Trust

_RECENT = "recent"


@dataclass(frozen=True)
class Found:
    """An artifact, with the weights it runs on where they are external."""

    outcome: Outcome
    artifact: Artifact
    weights: Artifact | None

    @property
    def size_bytes(self) -> int:
        """Of the artifact and its external weights."""
        return self.artifact.size_bytes + (self.weights.size_bytes if self.weights else 0)


@dataclass(frozen=True)
class NotFound:
    """Why nothing answers the request."""

    reasons: list[str] = field(default_factory=list)


def open_store(cache: CacheConfig, root: Path, *, readonly: bool) -> Store:
    """The store at `root`, with the trust and the limit that the config gives it."""
    key = Path(cache.signing_key).expanduser() if cache.signing_key else None
    trust = Trust(cache.trust, tuple(cache.keys), key)
    return Store(root, readonly=readonly, trust=trust, size_limit=cache.size_limit_bytes)


def find(store: Store, request: Key, named: dict[str, Path]) -> Found | NotFound:
    """The first recorded set of dependencies whose files are all unchanged names the object."""
    found = among(
        store.entries(request.digest),
        named,
        lambda entry: open_objects(store, entry["object"], entry["weights"], "direct-hit"),
    )
    return found if isinstance(found, Found) or found.reasons else NotFound(_explain(store, request))


def among(
    entries: Iterable[dict[str, Any]],
    named: dict[str, Path],
    open_entry: Callable[[dict[str, Any]], Found | NotFound],
) -> Found | NotFound:
    """What the first entry opens whose dependencies are all unchanged, or why none does."""
    reasons = []
    for entry in entries:
        try:
            changed = dependencies.changed(entry["dependencies"], named)
            if changed is None:
                found = open_entry(entry)
                if isinstance(found, Found):
                    return found
                changed = found.reasons[0]
        except (AttributeError, KeyError, TypeError, ValueError):
            changed = "an entry of the index is malformed"
        reasons.append(changed)
    return NotFound(list(dict.fromkeys(reasons)))


def open_objects(
    store: Store, digest: str, weights: str | None, outcome: Outcome, *, just_made: bool = False
) -> Found | NotFound:
    """Read an artifact and its weights, every byte checked."""
    opened: dict[str, Artifact] = {}
    for kind, name in objects_of({"object": digest, "weights": weights}):
        match store.read(kind, name, just_made=just_made):
            case Hit(artifact):
                opened[kind] = artifact
            case Miss(reason):
                return NotFound([f"the artifact is gone: {reason}"])
            case Corrupt(_, reason):
                return NotFound([f"the artifact was damaged and is quarantined: {reason}"])
    return Found(outcome, opened["objects"], opened.get("weights"))


def objects_of(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Kind and digest of all that an entry names, what others need first."""
    weights = [("weights", entry["weights"])] if entry["weights"] is not None else []
    return [*weights, ("objects", entry["object"])]


def remember(store: Store, request: Key, entry: Mapping[str, Any], model: str) -> None:
    """Write a direct entry, and the request among the recent ones, which explain later misses."""
    store.remember(request.digest, dict(entry))
    store.remember(_RECENT, {"model": model, "factors": dict(request.factors)})


def _explain(store: Store, request: Key) -> list[str]:
    """What differs from the nearest recent request."""
    recent = [
        (request.diff(entry["factors"]), entry.get("model"))
        for entry in store.entries(_RECENT)
        if isinstance(entry.get("factors"), dict)
    ]
    if not recent:
        return ["the cache is empty"]
    differences, model = min(recent, key=lambda item: len(item[0]))
    *others, last = differences or ["its entry was dropped"]
    return [*others, f"{last} (nearest: {model})"]
