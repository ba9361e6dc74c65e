"""Collection: what leaves when the store is larger than it may be. The policy is pure; the store acts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """Something in the store that takes room.

    Attributes:
        kind: `objects`, `weights`, or `quarantine`.
        digest: Its name.
        size_bytes: Of all its files.
        last_used: Unix time.
        pinned: Whether it never leaves.
    """

    kind: str
    digest: str
    size_bytes: int
    last_used: float
    pinned: bool = False


def leaving(items: Iterable[Item], limit_bytes: int) -> list[Item]:
    """What must leave to come below the limit: what is quarantined first, then what was used longest ago."""
    listed = list(items)
    excess = sum(item.size_bytes for item in listed) - limit_bytes
    chosen = []
    for item in sorted(listed, key=lambda item: (item.kind != "quarantine", item.last_used, item.digest)):
        if excess <= 0:
            break
        if not item.pinned:
            chosen.append(item)
            excess -= item.size_bytes
    return chosen
