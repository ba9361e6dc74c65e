"""Batch plans: for each batch size the cheapest way to run it, from measured latencies. Pure.

A call of *n* rows runs as it is through the dynamic artifact, is padded up to a bucket, or is split into several of
either. Padding twice in one plan never pays (rows could move from one step to fill the other), and neither do two
dynamic steps between measured sizes (the cost is linear there): so a plan is whole steps of known cost and one
remainder, and dynamic programming over *n* is exact.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

# Plans of more rows are put together of smaller ones: dynamic programming keeps a plan for each size below.
MOST_ROWS = 2048


@dataclass(frozen=True)
class Step:
    """Rows that run together: padded to a bucket, or as they are where that is None."""

    rows: int
    bucket: int | None = None

    def __str__(self) -> str:
        """Like `3`, or `3->4`; in both the rows come first."""
        if self.bucket is None:
            return f"{self.rows} dynamic"
        return f"{self.rows}" if self.rows == self.bucket else f"{self.rows}->{self.bucket}"


@dataclass(frozen=True)
class Plan:
    """The steps of one batch size, in the order of its rows, and what they should cost together."""

    steps: tuple[Step, ...]
    cost_ms: float

    @property
    def padding(self) -> int:
        """Rows that are computed and thrown away."""
        return sum(step.bucket - step.rows for step in self.steps if step.bucket is not None)

    def __str__(self) -> str:
        """Like `16 + 3->4`."""
        return " + ".join(map(str, self.steps))


@dataclass(frozen=True)
class Latencies:
    """What was measured: all that plans are made of, and so all that is kept of them.

    Attributes:
        buckets: Milliseconds of each bucket.
        dynamic: Milliseconds of the dynamic artifact at some sizes; between two of them the cost is taken to be
            linear, beyond the largest proportional to the size.
        pad_ms: What padding a step costs besides.
        split_ms: What each further step costs besides.
    """

    buckets: Mapping[int, float]
    dynamic: Mapping[int, float]
    pad_ms: float = 0.0
    split_ms: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As it is kept; JSON has no integer keys."""
        text = {name: {str(size): ms for size, ms in getattr(self, name).items()} for name in ("buckets", "dynamic")}
        return {**asdict(self), **text}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read it back; raises `KeyError`, `TypeError`, `ValueError` or `AttributeError` on anything else."""
        numbers = {name: {int(size): float(ms) for size, ms in data[name].items()} for name in ("buckets", "dynamic")}
        return cls(**numbers, pad_ms=float(data["pad_ms"]), split_ms=float(data["split_ms"]))

    def run_dynamic(self, rows: int) -> float:
        """Milliseconds of the dynamic artifact; infinite where nothing was measured."""
        sizes = sorted(self.dynamic)
        if not sizes:
            return float("inf")
        if rows >= sizes[-1]:
            return self.dynamic[sizes[-1]] * rows / sizes[-1]
        above = bisect_left(sizes, rows)
        if above == 0 or sizes[above] == rows:
            return self.dynamic[sizes[above]]
        low, high = sizes[above - 1], sizes[above]
        share = (rows - low) / (high - low)
        return self.dynamic[low] * (1 - share) + self.dynamic[high] * share


@dataclass
class Planner:
    """The cheapest plan of every batch size, each made once.

    Attributes:
        latencies: What they are made of.
        largest: The most rows that the dynamic artifact takes.
        smallest: The fewest.
    """

    latencies: Latencies
    largest: int
    smallest: int = 1
    _plans: list[Plan] = field(default_factory=lambda: [Plan((), 0.0)])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, rows: int) -> Plan:
        """The cheapest plan; of two that cost the same, the one with fewer steps."""
        if rows > MOST_ROWS:
            return self._far(rows)
        if len(self._plans) <= rows:
            with self._lock:
                while len(self._plans) <= rows:
                    self._plans.append(self._best(len(self._plans)))
        if not (found := self._plans[rows]).steps:
            raise ValueError(f"no bucket and no dynamic artifact for {rows} rows")
        return found

    def _far(self, rows: int) -> Plan:
        """As it is, or in parts of the most rows that are planned one by one."""
        parts = [self.plan(size) for size in (*[MOST_ROWS] * (rows // MOST_ROWS), rows % MOST_ROWS) if size]
        cost = sum(part.cost_ms for part in parts) + self.latencies.split_ms * (len(parts) - 1)
        split = Plan(tuple(step for part in parts for step in part.steps), cost)
        return min((*self._single(rows), split), key=_order)

    def _best(self, rows: int) -> Plan:
        candidates = [*self._single(rows)]
        for first in self._whole:
            if first.steps[0].rows < rows and (rest := self._plans[rows - first.steps[0].rows]).steps:
                cost = first.cost_ms + rest.cost_ms + self.latencies.split_ms
                candidates.append(Plan((*first.steps, *rest.steps), cost))
        return min(candidates, key=_order, default=Plan((), float("inf")))

    def _single(self, rows: int) -> Iterable[Plan]:
        known = self.latencies
        if self.smallest <= rows <= self.largest and known.dynamic:
            yield Plan((Step(rows),), known.run_dynamic(rows))
        for bucket, cost in known.buckets.items():
            if bucket >= rows:
                yield Plan((Step(rows, bucket),), cost + (known.pad_ms if bucket > rows else 0.0))

    @property
    def _whole(self) -> list[Plan]:
        """Steps of a known cost that waste nothing, largest first."""
        known = self.latencies
        found = [Plan((Step(size, size),), cost) for size, cost in known.buckets.items()]
        if known.dynamic:
            sizes = {size for size in (*known.dynamic, self.largest) if self.smallest <= size <= self.largest}
            found += [Plan((Step(size),), known.run_dynamic(size)) for size in sizes]
        return sorted(found, key=lambda plan: -plan.steps[0].rows)


def _order(plan: Plan) -> tuple[float, int]:
    """The cheapest first; of two that cost the same, the one with fewer steps."""
    return plan.cost_ms, len(plan.steps)
