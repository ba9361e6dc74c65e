"""Lookup: a request -> the stored artifact that answers it, or the reasons why none does. Imports no torch."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import dependencies, environment
from .config import CacheConfig, Settings
from .keys import Key
from .store import Artifact, Corrupt, Hit, Miss, Store, Trust
from .verdict import Case, Draw, Extent, extent, plan

if TYPE_CHECKING:
    from .record import Outcome

_RECENT = "recent"
ANSWERS = "answers"
MAX_DIFFERENCES = 6


@dataclass(frozen=True)
class Found:
    """An artifact, the weights it runs on where they are external, and the sizes it serves once that was verified."""

    outcome: Outcome
    artifact: Artifact
    weights: Artifact | None
    extent: Extent | None = None

    @property
    def digests(self) -> tuple[str, str | None]:
        """Of the artifact, and of its external weights."""
        return self.artifact.digest, self.weights.digest if self.weights else None

    @property
    def size_bytes(self) -> int:
        """Of the artifact and its external weights."""
        return self.artifact.size_bytes + (self.weights.size_bytes if self.weights else 0)


@dataclass(frozen=True)
class NotFound:
    """Why nothing answers the request."""

    reasons: list[str] = field(default_factory=list)


def trust_of(cache: CacheConfig) -> Trust:
    """Whose artifacts the config trusts."""
    return Trust(cache.trust, tuple(cache.keys), Path(cache.signing_key).expanduser() if cache.signing_key else None)


def open_store(cache: CacheConfig, root: Path, *, readonly: bool) -> Store:
    """The store at `root`, with the trust and the limit that the config gives it."""
    return Store(root, readonly=readonly, trust=trust_of(cache), size_limit=cache.size_limit_bytes)


def find(store: Store, request: Key, named: dict[str, Path]) -> Found | NotFound:
    """The first recorded set of dependencies whose files are all unchanged names the object."""

    def answer(entry: dict[str, Any]) -> Found | NotFound:
        found = open_objects(store, entry["object"], entry["weights"], "direct-hit")
        if isinstance(found, Found) and dependencies.were_young(entry["dependencies"]) and not store.readonly:
            taken = dependencies.retaken(entry["dependencies"], named)
            if taken != entry["dependencies"]:  # a large checkpoint, say, is not read again for the next lookup
                store.remember(request.digest, {**entry, "dependencies": taken})
        return found

    found = among(store.entries(request.digest), named, answer)
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


def object_of(store: Store, request: str, named: dict[str, Path]) -> str | None:
    """The object that a request, by its digest, stands for as its files are now, whether or not it is still there."""
    for entry in store.entries(request):
        with suppress(AttributeError, KeyError, TypeError, ValueError):  # a malformed entry stands for nothing
            if dependencies.changed(entry["dependencies"], named) is None:
                return str(entry["object"])
    return None


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
    if store.trust.policy != "own" and opened["objects"].manifest.holds_pickles:
        return NotFound(["the artifact holds pickles, which are loaded with cache.trust=own only"])
    if (why := environment.lacks(opened["objects"].manifest.factors["target"])) is not None:
        return NotFound([f"the artifact can't run here: {why}"])
    return Found(outcome, opened["objects"], opened.get("weights"))


def verified(store: Store, found: Found, settings: Settings) -> tuple[list[Case], list[Draw]]:
    """The recorded figures of an artifact's verification; and the draws that a run lacks."""
    manifest, (digest, weights) = found.artifact.manifest, found.digests
    recorded = list(store.noted(verified_note(digest, weights)) or [])
    if manifest.verified["weights"] == weights:
        recorded += manifest.verified["cases"]
    cases = {case.draw.key: case for case in map(Case.from_json, recorded)}
    content = manifest.content
    wanted = plan(settings.graphs.batch_sizes, settings.verify.seeds, content["spec"]["dims"], content["example"])
    return list(cases.values()), [draw for draw in wanted if draw.key not in cases]


def extent_of(found: Found, cases: Sequence[Case], multiple: float, floor: float) -> Extent:
    """The sizes that an artifact may serve by its cases and these tolerances."""
    content = found.artifact.manifest.content
    return extent(cases, content["spec"]["dims"], content["example"], multiple, floor)


def note_verified(store: Store, found: Found, cases: Sequence[Mapping[str, Any]]) -> None:
    """Keep the figures of what was compared after an artifact was published, for later processes."""

    def add(known: Any) -> Any:
        return [*(known if isinstance(known, list) else []), *cases]

    store.change_note(verified_note(*found.digests), add)


def verified_note(digest: str, weights: str | None) -> str:
    """The name under which a store notes what was verified of an artifact after it was published."""
    return f"verified/{digest}/{weights or 'frozen'}"


def objects_of(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Kind and digest of all that an entry names, what others need first."""
    weights = [("weights", entry["weights"])] if entry["weights"] is not None else []
    return [*weights, ("objects", entry["object"])]


def remember(store: Store, request: Key, entry: Mapping[str, Any], model: str) -> None:
    """Write a direct entry, and the request among the recent ones, which explain later misses."""
    store.remember(request.digest, dict(entry))
    store.remember(_RECENT, {"model": model, "factors": dict(request.factors), "at": time.time()})


def count(store: Store, outcome: Outcome, reasons: Sequence[str], seconds_saved: float) -> None:
    """Add one answer to the counts that `task=cache.stats` shows."""

    def add(known: Any) -> Any:
        counts: Any = known if isinstance(known, dict) else {"outcomes": {}, "misses": {}, "seconds_saved": 0.0}
        counts["outcomes"][outcome] = counts["outcomes"].get(outcome, 0) + 1
        if outcome == "miss":
            kind = _kind(reasons[0] if reasons else "")
            counts["misses"][kind] = counts["misses"].get(kind, 0) + 1
        counts["seconds_saved"] += seconds_saved
        return counts

    store.change_note(ANSWERS, add)


def _kind(reason: str) -> str:
    """A reason without its values: `mode.inductor.max_autotune`, `model.py changed`."""
    return re.sub(r" .* -> .*| \(nearest: .*", "", reason)[:80]


def nearest(key: Key, known: Iterable[tuple[str, Mapping[str, Any], float | None]]) -> list[str]:
    """What differs from the most similar of the `known`: model, factors, and Unix time."""
    compared = [(key.diff(factors), model, at) for model, factors, at in known]
    if not compared:
        return ["there is nothing to compare with"]
    differences, model, at = min(compared, key=lambda item: len(item[0]))
    target = [text for text in differences if text.startswith("model.target ")]
    shown = target or differences[:MAX_DIFFERENCES] or ["its entry was dropped"]
    if (hidden := len(differences) - len(shown)) > 0:
        shown = [*shown[:-1], f"{shown[-1]}, and {hidden} more"]
    age = f", {ago(time.time() - at)}" if at is not None else ""
    return [*shown[:-1], f"{shown[-1]} (nearest: {model}{age})"]


def ago(seconds: float) -> str:
    """Like `2 h ago`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"


def _explain(store: Store, request: Key) -> list[str]:
    """What differs from the nearest recent request."""
    recent = [
        (str(entry.get("model")), entry["factors"], entry.get("at"))
        for entry in store.entries(_RECENT)
        if isinstance(entry.get("factors"), dict)
    ]
    if not recent:
        return ["no earlier request is known" if any(store.manifests()) else "the cache is empty"]
    return nearest(request, recent)
