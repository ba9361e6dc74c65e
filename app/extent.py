"""Extent: compare an artifact with its module over the sizes and kinds of values that it will be called with.

Dynamic shapes go wrong at the ends of a range more than anywhere (pytorch#133653, #198201): a size of one is traced
as no other is. So every named dimension is compared at its smallest sizes, at an odd one and at its example, and
upwards in steps for as long as a budget of time and memory lasts; the border of what is wrong is searched for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .config import BATCH, VerifyConfig
from .environment import free_memory
from .verdict import Case, Draw, Ranges, odd

if TYPE_CHECKING:
    from .verify import Judge

# From one size that is compared to the next larger one.
STEP = 4
# A call's cost grows at most so with a size, attention's for one: the exponent.
GROWTH = 2
# Rows of the draws with special values: the first is spoilt, and others must not be.
ROWS = 3


def compare(
    judge: Judge,
    model: Callable[..., Any],
    wanted: Sequence[Draw],
    *,
    dims: Ranges,
    example: Mapping[str, int],
    kinds: Sequence[str],
    verify: VerifyConfig,
    floor: float,
) -> list[Case]:
    """Compare what is wanted, then each kind of values, then each dimension over its range.

    Args:
        judge: Compares.
        model: The artifact, which takes all sizes of `dims`.
        wanted: What must be compared in any case; where one fails at the example's sizes, nothing else is.
        dims: Smallest and largest size of each named dimension.
        example: The size that each was traced with.
        kinds: The kinds of values that the inputs can have.
        verify: The bar, and the budget.
        floor: The least limit.
    """
    search = _Search(judge, model, verify, floor)
    for draw in wanted:
        if not search.passes(draw) and all(draw.sizes[dim] == example[dim] for dim in dims):
            return search.cases
    rows = {BATCH: min(max(ROWS, dims[BATCH][0]), dims[BATCH][1])} if BATCH in dims else {}
    for kind in kinds:
        search.passes(Draw({**example, **rows}, 0, kind))
    for draw in near(dims, example):
        search.passes(draw)
    for path in _paths(dims, example):
        if len(path.dims) == 1:
            search.climb(path, verify.budget_s / len(dims))
        search.find_borders(path)
    return search.cases


def near(dims: Ranges, example: Mapping[str, int]) -> list[Draw]:
    """Each dimension at its smallest sizes, an odd one and its example, at two batch sizes; then all at once."""
    found = []
    for path in _paths(dims, example):
        for at in path.near:
            found.append(path.draw(at))
            if BATCH in dims and BATCH not in path.dims:
                found.append(Draw({**found[-1].sizes, BATCH: dims[BATCH][0]}))
    return found


@dataclass(frozen=True)
class _Path:
    """A way through the sizes: those of one dimension, or of all at once up to the example's."""

    dims: tuple[str, ...]
    ranges: Ranges
    example: Mapping[str, int]

    @property
    def ends(self) -> tuple[int, int]:
        lows, highs = zip(*(self.ranges[dim] for dim in self.dims), strict=True)
        return min(lows), highs[0] if len(self.dims) == 1 else self.start

    @property
    def start(self) -> int:
        """Where it passes the example."""
        return max(self.example[dim] for dim in self.dims)

    @property
    def near(self) -> list[int]:
        low, high = self.ends
        return sorted({low, min(low + 1, high), min(max(odd(self.start), low), high), self.start})

    def draw(self, at: int) -> Draw:
        single = len(self.dims) == 1
        sizes = {dim: min(max(at, self.ranges[dim][0]), at if single else self.example[dim]) for dim in self.dims}
        return Draw({dim: self.example[dim] for dim in self.ranges} | sizes)


def _paths(dims: Ranges, example: Mapping[str, int]) -> list[_Path]:
    alone = [(dim,) for dim in dims]
    return [_Path(each, dims, example) for each in (*alone, *([tuple(dims)] if len(dims) > 1 else []))]


class _Search:
    def __init__(self, judge: Judge, model: Callable[..., Any], verify: VerifyConfig, floor: float) -> None:
        self.cases: list[Case] = []
        self._judge, self._model = judge, model
        self._bar = verify.multiple, floor
        free = free_memory()
        self._memory = verify.memory_bytes if free is None else min(verify.memory_bytes, free // 4)
        self._done: dict[tuple[Any, ...], tuple[bool, float]] = {}  # whether it passed, and the seconds it took
        self._climbed: dict[tuple[str, ...], list[int]] = {}

    def passes(self, draw: Draw) -> bool:
        """Compare once, and whether it passed."""
        if draw.key not in self._done:
            began = time.monotonic()
            case = self._judge.case(self._model, draw)
            self.cases.append(case)
            self._done[draw.key] = case.refusal(*self._bar) is None, time.monotonic() - began
        return self._done[draw.key][0]

    def climb(self, path: _Path, budget_s: float) -> None:
        """Compare at larger and larger sizes, for as long as the next should fit the budget and the memory."""
        high, spent = path.ends[1], 0.0
        size = max(path.near)
        while size < high and self.passes(path.draw(size)):
            larger = min(high, STEP * size)
            growth = (larger / size) ** GROWTH
            takes_s = self._done[path.draw(size).key][1] * growth
            if spent + takes_s > budget_s or self._judge.bytes(path.draw(size)) * growth > self._memory:
                return
            self.passes(path.draw(larger))
            self._climbed.setdefault(path.dims, []).append(larger)
            size, spent = larger, spent + self._done[path.draw(larger).key][1]

    def find_borders(self, path: _Path) -> None:
        """Between a wrong size and the right one before it, halve the distance until they are neighbours."""
        tried = sorted({*path.near, *self._climbed.get(path.dims, [])})
        at = tried.index(path.start)
        for outwards in (tried[at::-1], tried[at:]):
            wrong = [index for index, size in enumerate(outwards) if not self.passes(path.draw(size))]
            if not wrong or wrong[0] == 0:  # none, or the example itself
                continue
            bad, good = outwards[wrong[0]], outwards[wrong[0] - 1]
            while abs(good - bad) > 1:
                middle = (bad + good) // 2
                bad, good = (bad, middle) if self.passes(path.draw(middle)) else (middle, good)
