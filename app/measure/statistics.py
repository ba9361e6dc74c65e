"""What the samples say, and how far to believe it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .samples import Samples

NUM_RESAMPLES = 1000
# More values narrow the interval no further than a machine's drift widens it.
MAX_RESAMPLED_VALUES = 2000

# Beyond these a figure is printed with a warning. Percentiles, where pyperf takes the standard deviation: a single
# interrupted call of some thousand would make that larger than the mean.
MAX_P90_OF_P50 = 1.25
MAX_P99_OF_P50 = 10.0
MAX_DRIFT = 0.10
# Halves of fewer values than this differ by chance alone.
FEWEST_FOR_DRIFT = 10


@dataclass(frozen=True)
class Latency:
    """One call's latency in milliseconds, over `count` values."""

    p50: float
    p90: float
    p99: float
    mean: float
    stdev: float
    min: float
    count: int


@dataclass(frozen=True)
class Speedup:
    """Eager's median over the compiled median, with its 95 % interval."""

    ratio: float
    low: float
    high: float


def summarise(samples: Samples) -> Latency:
    """The values' percentiles, mean and sample standard deviation; warm-ups don't count."""
    values_ms = _values(samples) * 1e3
    p50, p90, p99 = (float(p) for p in np.percentile(values_ms, (50, 90, 99)))
    return Latency(
        p50=p50,
        p90=p90,
        p99=p99,
        mean=float(values_ms.mean()),
        stdev=float(values_ms.std(ddof=1)) if values_ms.size > 1 else 0.0,
        min=float(values_ms.min()),
        count=values_ms.size,
    )


def speedup(eager: Samples, compiled: Samples) -> Speedup:
    """How many times faster `compiled` is; the seed is fixed, so that a report can be made again."""
    rng = np.random.default_rng(0)
    ratios = _resampled_medians(_values(eager), rng) / _resampled_medians(_values(compiled), rng)
    low, high = (float(bound) for bound in np.percentile(ratios, (2.5, 97.5)))
    return Speedup(float(np.median(eager.values_s) / np.median(compiled.values_s)), low, high)


def quotient(first: Speedup, second: Speedup) -> Speedup:
    """How many times as fast the first is as the second; both are over one baseline, measured in turn with it."""
    ratio = first.ratio / second.ratio
    down = math.hypot(math.log(first.low / first.ratio), math.log(second.high / second.ratio))
    up = math.hypot(math.log(first.high / first.ratio), math.log(second.low / second.ratio))
    return Speedup(ratio, ratio / math.exp(down), ratio * math.exp(up))


def scatter(groups: Iterable[Sequence[float]]) -> float:
    """The relative standard deviation of ratios about their group's mean, pooled; 0 where no group has two."""
    logs = [np.log(ratios) for ratios in groups if len(ratios) > 1]
    freedom = sum(each.size - 1 for each in logs)
    return math.sqrt(sum(float(((each - each.mean()) ** 2).sum()) for each in logs) / freedom) if freedom else 0.0


def widened(found: Speedup, relative: float) -> Speedup:
    """A speed-up with a standard deviation more in its interval: what the samples of one process know nothing of."""
    return quotient(found, Speedup(1.0, math.exp(-1.96 * relative), math.exp(1.96 * relative)))


def stability_warnings(name: str, samples: Samples) -> list[str]:
    """Why the figures of `name` ("eager, batch 4") may not hold the next time, in pyperf's manner."""
    latency = summarise(samples)
    warnings = []
    if latency.count < samples.min_samples:
        warnings.append(f"only {latency.count} of {samples.min_samples} samples within the budget")
    if latency.p90 > MAX_P90_OF_P50 * latency.p50:
        warnings.append(f"one call in ten took {latency.p90 / latency.p50 - 1:.0%} longer than the median")
    if latency.p99 > MAX_P99_OF_P50 * latency.p50:
        warnings.append(f"p99 is {latency.p99 / latency.p50:.0f} x p50; something else may be using the machine")
    drift = _drift(_values(samples))
    if abs(drift) > MAX_DRIFT:
        slower = "slower" if drift > 0 else "faster"
        warnings.append(f"the second half's median is {abs(drift):.0%} {slower} than the first half's")
    return [f"{name}: {warning}".replace("%", " %") for warning in warnings]


def _values(samples: Samples) -> NDArray[np.float64]:
    if samples.values_s.size == 0:
        raise ValueError("there are no samples")
    return samples.values_s


def _resampled_medians(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    if values.size > MAX_RESAMPLED_VALUES:
        # At random, since every n-th value could always be the one that came first in its round.
        values = rng.choice(values, MAX_RESAMPLED_VALUES, replace=False)
    resamples = rng.choice(values, (NUM_RESAMPLES, values.size))
    return np.asarray(np.median(resamples, axis=1, overwrite_input=True))


def _drift(values: NDArray[np.float64]) -> float:
    if values.size < FEWEST_FOR_DRIFT:
        return 0.0
    first, second = np.array_split(values, 2)
    return float(np.median(second) / np.median(first) - 1)
