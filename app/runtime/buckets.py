"""Buckets: the batch sizes that are worth one, from a histogram of the sizes really seen. Pure.

A call is padded to the next bucket above it. So all sizes between one bucket and the next cost what the next costs,
an optimal bucket is always a size that was seen, and dynamic programming over the sorted sizes is exact. What a
choice takes and what it costs can trade against each other: of the ways to cover the first sizes all are kept that no
other beats in both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple


@dataclass(frozen=True)
class Choice:
    """The buckets, smallest first, what a call takes with them on average, and what they take together."""

    buckets: tuple[int, ...]
    expected_ms: float
    size_bytes: int


@dataclass(frozen=True)
class Use:
    """A call's average time, the share of calls whose size is a bucket, and that of padding in all rows computed."""

    expected_ms: float
    hit_rate: float
    padding_waste: float


class _Way(NamedTuple):
    """A way to cover the smallest sizes; its last bucket, and the way that it continues."""

    total_ms: float
    size_bytes: int
    bucket: int
    before: _Way | None

    def buckets(self) -> tuple[int, ...]:
        found, way = [], self
        while way.before is not None:
            found.append(way.bucket)
            way = way.before
        return tuple(reversed(found))


def choose(
    histogram: Mapping[int, int],
    cost_ms: Callable[[int], float],
    *,
    most: int,
    bytes_of: Callable[[int], int] = lambda _: 0,
    memory: int | None = None,
) -> Choice:
    """At most `most` of the sizes seen, the largest among them, so that a call is expected to take the least.

    Args:
        histogram: Calls of each size.
        cost_ms: Milliseconds of a call that fills a bucket of this size.
        most: Most buckets.
        bytes_of: What a bucket of this size takes.
        memory: Most bytes that the buckets may take together; None is no limit.

    Raises:
        ValueError: there are no calls, or not even the largest size alone is allowed.
    """
    sizes = sorted(size for size, calls in histogram.items() if calls > 0)
    if not sizes or most < 1:
        raise ValueError("there must be at least one call, and one bucket")
    limit = memory if memory is not None else float("inf")
    calls = [0, *accumulate(histogram[size] for size in sizes)]
    ways: list[list[_Way]] = [[_Way(0.0, 0, 0, None)], *([] for _ in sizes)]  # by how many sizes they cover
    finished: list[_Way] = []
    for _ in range(min(most, len(sizes))):  # one more bucket
        longer: list[list[_Way]] = [[]]
        for end, size in enumerate(sizes, 1):
            cost, taken = cost_ms(size), bytes_of(size) if memory is not None else 0
            found = [
                (way.total_ms + (calls[end] - calls[start]) * cost, way.size_bytes + taken, size, way)
                for start in range(end)
                for way in ways[start]
                if way.size_bytes + taken <= limit
            ]
            longer.append(_unbeaten(found))
        ways = longer
        finished += ways[-1]
    if not finished:
        raise ValueError(f"size {sizes[-1]} must be a bucket, and takes {bytes_of(sizes[-1])} of {memory} bytes")
    best = min(finished, key=lambda way: (way.total_ms, way.size_bytes))  # of equal ones the first: fewest buckets
    return Choice(best.buckets(), best.total_ms / calls[-1], sum(map(bytes_of, best.buckets())))


def _unbeaten(found: Iterable[tuple[float, int, int, _Way]]) -> list[_Way]:
    """Those that no other beats both in time and in bytes."""
    kept: list[_Way] = []
    for way in sorted(found, key=itemgetter(0, 1)):
        if not kept or way[1] < kept[-1].size_bytes:
            kept.append(_Way(*way))
    return kept


def judge(histogram: Mapping[int, int], buckets: Sequence[int], cost_ms: Callable[[int], float]) -> Use:
    """What the calls of a histogram make of buckets; sizes beyond the largest run as they are."""
    ordered = sorted(buckets)
    runs = [(size, _next(ordered, size), calls) for size, calls in histogram.items()]
    num_calls, computed = sum(histogram.values()), sum(ran * calls for _, ran, calls in runs)
    expected_ms = sum(cost_ms(ran) * calls for _, ran, calls in runs) / num_calls
    hits = sum(calls for size, calls in histogram.items() if size in ordered)
    return Use(expected_ms, hits / num_calls, sum((ran - size) * calls for size, ran, calls in runs) / computed)


def _next(ordered: Sequence[int], size: int) -> int:
    place = bisect_left(ordered, size)
    return ordered[place] if place < len(ordered) else size
