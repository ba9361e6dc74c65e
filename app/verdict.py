"""Verdict: the figures of a verification, and what tolerances make of them. Pure, and without torch.

The bar is that of torchdynamo#826: compiled code may round differently, but must be no further from float64 than a
small multiple of eager's own distance. A stated floor per precision keeps the bar above rounding noise. Figures are
kept apart from tolerances, so that a stored artifact can be judged anew without being run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from .config import BATCH

RANDOM = "random"  # the kind of a draw with nothing special about its values
Ranges = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Draw:
    """Inputs to compare on; equal ones are drawn for equal fields, in every process.

    Attributes:
        sizes: Of every named dimension.
        seed: Of the generator.
        kind: `random`, or what is special about the values: see workloads/kinds.py.
    """

    sizes: Mapping[str, int]
    seed: int = 0
    kind: str = RANDOM

    @property
    def key(self) -> tuple[Any, ...]:
        """By which draws are equal."""
        return tuple(sorted(self.sizes.items())), self.seed, self.kind

    def __str__(self) -> str:
        """Like `batch 4, seq 16, seed 1`."""
        parts = [f"{dim} {size}" for dim, size in self.sizes.items()] or ["batch 1"]
        return ", ".join([*parts, f"seed {self.seed}" if self.kind == RANDOM else self.kind])


@dataclass(frozen=True)
class VerifyCase:
    """One input's distance from the reference.

    `rel_l2` and `max_abs` are null where the output isn't finite; `eager_rel_l2` is null where eager is the
    reference. `passed` is false at a size that isn't served, too: it is what `narrowed` tells of.
    """

    batch: int
    seed: int
    rel_l2: float | None
    eager_rel_l2: float | None
    limit: float
    max_abs: float | None
    passed: bool
    sizes: dict[str, int] = field(default_factory=dict)
    kind: str = RANDOM


@dataclass(frozen=True)
class VerifyInfo:
    """The verdict, and the bar: `multiple` times eager's own error, and never less than `floor`.

    Attributes:
        passed: Whether the artifact serves.
        reference: What it was compared with.
        cases: Every comparison.
        multiple: Of eager's own error.
        floor: The least limit.
        served: Smallest and largest size of each named dimension that was compared and right.
        narrowed: Why an end of such a range is another than the one that was asked for.
        dropped: Draws that say nothing, and why: the module itself refuses them, say.
    """

    passed: bool
    reference: Literal["float64", "original", "eager"]
    cases: list[VerifyCase]
    multiple: float
    floor: float
    served: dict[str, list[int]] = field(default_factory=dict)
    narrowed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """One draw of inputs: how far compiled and eager are from the reference.

    Attributes:
        draw: The inputs.
        reference: `float64`; where the module can't run in that, `original`, the module before it was cast to a lower
            precision, or `eager` where it wasn't.
        rel_l2: Relative L2 distance of the compiled output from the reference; the worst leaf's.
        eager_rel_l2: The same of eager in the artifact's precision.
        max_abs: Largest absolute distance of the compiled output from the reference.
        problem: What no tolerance excuses: another structure, shape or dtype, NaN or Inf in other places, other
            integers.
        dropped: Why nothing can be compared: what the module itself raises on these inputs.
    """

    draw: Draw
    reference: str
    rel_l2: float
    eager_rel_l2: float
    max_abs: float
    problem: str | None = None
    dropped: str | None = None

    def limit(self, multiple: float, floor: float) -> float:
        """The largest accepted `rel_l2`."""
        return max(floor, multiple * self.eager_rel_l2)

    def refusal(self, multiple: float, floor: float) -> str | None:
        """Why the case fails under these tolerances, or None; a dropped one of random values fails too."""
        limit = self.limit(multiple, floor)
        if self.dropped is not None:
            return f"{self.draw}: {self.dropped}" if self.draw.kind == RANDOM else None
        if self.problem is not None:
            return f"{self.draw}: {self.problem}"
        if not self.rel_l2 <= limit:
            return (
                f"{self.draw}: relative L2 error {self.rel_l2:.2e} against {self.reference}, allowed {limit:.2e} "
                f"(eager's own is {self.eager_rel_l2:.2e})"
            )
        return None

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest, where JSON has no infinity."""
        return {name: None if value == math.inf else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read it back."""
        figures = {name: math.inf if data[name] is None else data[name] for name in ("rel_l2", "max_abs")}
        return cls(**{**data, **figures, "draw": Draw(**data["draw"])})


@dataclass(frozen=True)
class Extent:
    """The sizes that an artifact may serve, as its cases and a run's tolerances have it.

    Attributes:
        compared: Smallest and largest size of each dimension that was compared and right.
        possible: The same of sizes at which nothing was found to be wrong; what lies outside of `compared` in it
            was never compared.
        narrowed: Why an end is another than that of the range that was compiled.
        refusal: Why it may serve nothing at all.
    """

    compared: Ranges
    possible: Ranges
    narrowed: list[str] = field(default_factory=list)
    refusal: str | None = None


def extent(cases: Sequence[Case], dims: Ranges, example: Mapping[str, int], multiple: float, floor: float) -> Extent:
    """Judge cases: one that fails away from the example's sizes narrows the range, any other refuses the artifact.

    Args:
        cases: Every comparison.
        dims: The ranges that were compiled.
        example: The size that each dimension was traced with.
        multiple: Of eager's own error.
        floor: The least limit.
    """
    possible, narrowed = dict(dims), list[str]()
    failing = [(case.draw, why) for case in cases if (why := case.refusal(multiple, floor)) is not None]
    # that of one dimension says which is to blame; what fails with others too is often excluded by then
    for draw, why in sorted(failing, key=lambda each: len(_apart(each[0], example))):
        apart = _apart(draw, example)
        if not apart or draw.kind != RANDOM:
            return Extent(possible, possible, narrowed, why)
        if not within(draw.sizes, possible):
            continue
        dim, (low, high) = apart[0], possible[apart[0]]
        size = draw.sizes[dim]
        possible[dim] = (size + 1, high) if size < example[dim] else (low, size - 1)
        narrowed.append(why)
    right = [case.draw.sizes for case in cases if case.dropped is None and within(case.draw.sizes, possible)]
    if not right:
        why = failing[0][1] if failing else "nothing was compared"
        return Extent(possible, possible, narrowed, why)
    compared = {
        dim: (min(sizes.get(dim, low) for sizes in right), max(sizes.get(dim, high) for sizes in right))
        for dim, (low, high) in possible.items()
    }
    said = [_words(dim, possible[dim], dims[dim]) for dim in dims if possible[dim] != dims[dim]]
    return Extent(compared, possible, [f"{' and '.join(said)}: {'; '.join(narrowed)}"] if said else [])


def _apart(draw: Draw, example: Mapping[str, int]) -> list[str]:
    """Dimensions in which a draw isn't the example's; the batch last."""
    found = [dim for dim, size in draw.sizes.items() if size != example.get(dim, size)]
    return sorted(found, key=lambda dim: dim == BATCH)


def within(sizes: Mapping[str, int], ranges: Ranges) -> bool:
    """Whether every size lies in its dimension's range."""
    return all(ranges[dim][0] <= size <= ranges[dim][1] for dim, size in sizes.items() if dim in ranges)


def _words(dim: str, served: tuple[int, int], asked: tuple[int, int]) -> str:
    return f"{dim} is served from {served[0]} to {served[1]} instead of {asked[0]} to {asked[1]}"


def refusal(cases: Iterable[Case], multiple: float, floor: float) -> str | None:
    """Why the first failing case fails, or None."""
    return next((why for case in cases if (why := case.refusal(multiple, floor)) is not None), None)


def summarise(cases: Sequence[Case], multiple: float, floor: float, found: Extent | None = None) -> VerifyInfo:
    """The figures as the record holds them; what isn't finite is null. Without an extent every case must pass."""
    judged = [case for case in cases if case.dropped is None]
    return VerifyInfo(
        passed=(refusal(cases, multiple, floor) if found is None else found.refusal) is None,
        reference=_weakest(case.reference for case in judged),
        cases=[
            VerifyCase(
                batch=case.draw.sizes.get(BATCH, 1),
                seed=case.draw.seed,
                rel_l2=_finite(case.rel_l2),
                eager_rel_l2=None if case.reference == "eager" else _finite(case.eager_rel_l2),
                limit=case.limit(multiple, floor),
                max_abs=_finite(case.max_abs),
                passed=case.refusal(multiple, floor) is None,
                sizes=dict(case.draw.sizes),
                kind=case.draw.kind,
            )
            for case in sorted(judged, key=lambda case: (case.draw.kind != RANDOM, case.draw.key))
        ],
        multiple=multiple,
        floor=floor,
        served={dim: list(both) for dim, both in found.compared.items()} if found is not None else {},
        narrowed=found.narrowed if found is not None else [],
        dropped=[f"{case.draw}: {case.dropped}" for case in cases if case.dropped is not None],
    )


def _weakest(references: Iterable[str]) -> Literal["float64", "original", "eager"]:
    found = set(references)
    return "float64" if found == {"float64"} else "eager" if "eager" in found or not found else "original"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def plan(batch_sizes: Sequence[int], seeds: Sequence[int], dims: Ranges, example: Mapping[str, int]) -> list[Draw]:
    """What must have been compared before a run is served: the smallest batch, the largest asked for, an odd one.

    Args:
        batch_sizes: The sizes that will be served.
        seeds: One draw for each.
        dims: Smallest and largest size of each named dimension.
        example: The size of each that other dimensions than the batch are compared at.
    """
    sizes: set[int | None] = {None}
    if BATCH in dims:
        low, high = dims[BATCH]
        largest = min(max(batch_sizes), high)
        sizes = {low, largest, min(max(odd(largest), low), high)}
    others = {dim: example[dim] for dim in dims}
    return [
        Draw(others | ({BATCH: size} if size is not None else {}), seed)
        for size in sorted(sizes, key=lambda size: size or 0)
        for seed in seeds
    ]


def odd(size: int) -> int:
    """An odd size between one and this; three for a small one."""
    return size // 2 | 1 if size >= 6 else 3
