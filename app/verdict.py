"""Verdict: the figures of a verification, and what tolerances make of them. Pure, and without torch.

The bar is that of torchdynamo#826: compiled code may round differently, but must be no further from float64 than a
small multiple of eager's own distance. A stated floor per precision keeps the bar above rounding noise. Figures are
kept apart from tolerances, so that a stored artifact can be judged anew without being run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self


@dataclass(frozen=True)
class VerifyCase:
    """One input's distance from the reference.

    `rel_l2` and `max_abs` are null where the output isn't finite; `eager_rel_l2` is null where eager is the
    reference.
    """

    batch: int
    seed: int
    rel_l2: float | None
    eager_rel_l2: float | None
    limit: float
    max_abs: float | None
    passed: bool


@dataclass(frozen=True)
class VerifyInfo:
    """The verdict, and the bar: `multiple` times eager's own error, and never less than `floor`."""

    passed: bool
    reference: Literal["float64", "original", "eager"]
    cases: list[VerifyCase]
    multiple: float
    floor: float


@dataclass(frozen=True)
class Case:
    """One draw of inputs: how far compiled and eager are from the reference.

    Attributes:
        batch: The batch size.
        seed: The seed of the inputs.
        reference: `float64`; where the module can't run in that, `original`, the module before it was cast to a lower
            precision, or `eager` where it wasn't.
        rel_l2: Relative L2 distance of the compiled output from the reference; the worst leaf's.
        eager_rel_l2: The same of eager in the artifact's precision.
        max_abs: Largest absolute distance of the compiled output from the reference.
        problem: What no tolerance excuses: another structure, shape or dtype, NaN or Inf in other places, other
            integers.
    """

    batch: int
    seed: int
    reference: str
    rel_l2: float
    eager_rel_l2: float
    max_abs: float
    problem: str | None = None

    def limit(self, multiple: float, floor: float) -> float:
        """The largest accepted `rel_l2`."""
        return max(floor, multiple * self.eager_rel_l2)

    def refusal(self, multiple: float, floor: float) -> str | None:
        """Why the case fails under these tolerances, or None."""
        limit = self.limit(multiple, floor)
        where = f"batch {self.batch}, seed {self.seed}"
        if self.problem is not None:
            return f"{where}: {self.problem}"
        if not self.rel_l2 <= limit:
            return (
                f"{where}: relative L2 error {self.rel_l2:.2e} against {self.reference}, allowed {limit:.2e} "
                f"(eager's own is {self.eager_rel_l2:.2e})"
            )
        return None

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read it back."""
        return cls(**data)


def refusal(cases: Iterable[Case], multiple: float, floor: float) -> str | None:
    """Why the first failing case fails, or None."""
    return next((why for case in cases if (why := case.refusal(multiple, floor)) is not None), None)


def summarise(cases: Sequence[Case], multiple: float, floor: float) -> VerifyInfo:
    """The figures as the record holds them; what isn't finite is null."""
    return VerifyInfo(
        passed=refusal(cases, multiple, floor) is None,
        reference=_weakest(case.reference for case in cases),
        cases=[
            VerifyCase(
                batch=case.batch,
                seed=case.seed,
                rel_l2=_finite(case.rel_l2),
                eager_rel_l2=None if case.reference == "eager" else _finite(case.eager_rel_l2),
                limit=case.limit(multiple, floor),
                max_abs=_finite(case.max_abs),
                passed=case.refusal(multiple, floor) is None,
            )
            for case in sorted(cases, key=lambda case: (case.batch, case.seed))
        ],
        multiple=multiple,
        floor=floor,
    )


def _weakest(references: Iterable[str]) -> Literal["float64", "original", "eager"]:
    found = set(references)
    return "float64" if found == {"float64"} else "eager" if "eager" in found or not found else "original"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def plan(batch_sizes: Sequence[int], seeds: Sequence[int], batch: tuple[int, int] | None) -> list[tuple[int, int]]:
    """The (batch, seed) pairs to verify: the smallest size, the largest asked for, and an odd one between.

    Args:
        batch_sizes: The sizes that will be served.
        seeds: One draw for each.
        batch: Smallest and largest size of the batch dimension; None where the inputs have none.
    """
    if batch is None:
        sizes = {1}
    else:
        low, high = batch
        largest = max(batch_sizes)
        odd = largest // 2 | 1 if largest >= 6 else 3
        sizes = {low, largest, min(max(odd, low), high)}
    return [(size, seed) for size in sorted(sizes) for seed in seeds]
