"""Samples: every time that was measured, warm-ups apart from values, and the rounds that take them."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from ..files import replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from .clock import Clock

# However slow the calls are, that many rounds are measured: a median of fewer says nothing.
FEWEST_SAMPLES = 3
# `min_samples` may stretch the budget that far and no further: a sweep must end.
BUDGET_STRETCH = 10


@dataclass(frozen=True, eq=False)
class Samples:
    """The times of one call in the order they were taken, in seconds.

    `min_samples` is how many values were asked for; fewer mean that the budget ended the measuring.
    """

    warmup_s: NDArray[np.float64]
    values_s: NDArray[np.float64]
    min_samples: int = field(default=0, kw_only=True)


def measure(
    calls: Mapping[str, Callable[[], object]],
    clock: Clock,
    *,
    warmup: int,
    min_samples: int,
    max_samples: int,
    budget_s: float,
) -> dict[str, Samples]:
    """Time all the calls in turn, round after round, so that a machine that drifts hits them all alike.

    `budget_s` is the measured time of all calls together. It ends the rounds once there are `min_samples`; at
    ten times the budget they end with what there is, which `stability_warnings` then reports. Warm-ups have a
    budget of the same size to themselves.
    """
    if not 0 < min_samples <= max_samples:
        raise ValueError(f"needs 0 < min_samples <= max_samples, got {min_samples} and {max_samples}")

    def is_warm(num_rounds: int, spent_s: float) -> bool:
        return num_rounds >= warmup or (num_rounds > 0 and spent_s >= budget_s)

    def is_enough(num_rounds: int, spent_s: float) -> bool:
        return (
            num_rounds >= max_samples
            or (num_rounds >= min_samples and spent_s >= budget_s)
            or (num_rounds >= FEWEST_SAMPLES and spent_s >= budget_s * BUDGET_STRETCH)
        )

    with _no_garbage_collection():
        warmups = _rounds(calls, clock, is_warm)
        values = _rounds(calls, clock, is_enough)
    return {name: Samples(np.array(warmups[name]), np.array(values[name]), min_samples=min_samples) for name in calls}


def _rounds(
    calls: Mapping[str, Callable[[], object]], clock: Clock, is_done: Callable[[int, float], bool]
) -> dict[str, list[float]]:
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    spent_s = 0.0
    for num_rounds in count():
        if is_done(num_rounds, spent_s):
            break
        for name in names:
            seconds = clock.time(calls[name])
            times[name].append(seconds)
            spent_s += seconds
        names = names[1:] + names[:1]  # nobody always comes first, or always after a long pause
    return times


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def save_samples(path: Path, samples: Mapping[str, Samples]) -> None:
    """Keep the raw values in one `.npz`: `compiled/4/values_s`, `compiled/4/warmup_s`, and so on."""
    arrays = {
        f"{name}/{part}": np.asarray(getattr(one, part))
        for name, one in samples.items()
        for part in ("warmup_s", "values_s", "min_samples")
    }
    with replaced(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_samples(path: Path) -> dict[str, Samples]:
    """What `save_samples` wrote, under the same names."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # numpy leaves a bad one open
        names = dict.fromkeys(key.rpartition("/")[0] for key in arrays.files)
        return {
            name: Samples(
                arrays[f"{name}/warmup_s"],
                arrays[f"{name}/values_s"],
                min_samples=int(arrays[f"{name}/min_samples"]),
            )
            for name in names
        }
