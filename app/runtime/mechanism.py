"""GraphMechanism: what a device offers for graphs, and how it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

# What CUDA and torch say of work that no capture can hold.
_SYNC_MARKS = ("stream is capturing", "during capture", "graph capture", "data-dependent", "data dependent")


class Graph(Protocol):
    """One captured graph."""

    def replay(self) -> None:
        """Launch it on the current stream."""

    def reset(self) -> None:
        """Let go of it, and of its share of the pool."""


class GraphMechanism(Protocol):
    """What a device offers for graphs; `cuda.py` has CUDA's."""

    @property
    def device(self) -> torch.device:
        """Where every tensor must be, with its index."""

    def warm_up(self, run: Callable[[], object], times: int) -> None:
        """Run on a side stream: libraries are loaded and tuned before a capture, not inside of it."""

    def new_pool(self) -> Any:
        """A pool for the memory of graphs; it lives only as long as one graph uses it."""

    def release_pool(self, pool: Any) -> None:
        """Give a pool's memory back; all of its graphs are reset before."""

    def capture(self, run: Callable[[], list[Tensor]], pool: Any) -> tuple[Graph, list[Tensor]]:
        """Capture one run; the outputs' memory is the pool's, and is filled by each replay."""

    def ordered(self) -> AbstractContextManager[None]:
        """Work in it starts, on the device, after all work of the block before, whatever stream that was on."""

    def allocated_bytes(self) -> int:
        """Device memory that this process holds."""

    def synchronize(self) -> None:
        """Wait for everything on the device."""


def reason_of(errors: Sequence[Exception]) -> str:
    """Why a capture failed: `out-of-memory`, `sync`, or `capture` for all else.

    Args:
        errors: What was raised, first one first: what ends a broken capture says nothing of the cause.
    """
    if isinstance(errors[0], torch.OutOfMemoryError):
        return "out-of-memory"
    waits = any(mark in str(error).lower() for error in errors for mark in _SYNC_MARKS)
    return "sync" if waits else "capture"
