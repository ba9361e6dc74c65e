from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.measure.samples import Samples
from app.measure.statistics import speedup, stability_warnings, summarise

times_s = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60)


def samples(values, *, min_samples=0) -> Samples:
    return Samples(np.array([1e6]), np.array(values, dtype=float), min_samples=min_samples)


def test_latency_is_in_milliseconds_and_leaves_warmups_out() -> None:
    latency = summarise(samples([0.001, 0.002, 0.003]))
    assert (latency.p50, latency.mean, latency.min, latency.count) == pytest.approx((2, 2, 1, 3))
    assert latency.stdev == pytest.approx(1.0)


def test_one_sample_has_no_spread() -> None:
    assert summarise(samples([0.5])).stdev == 0


def test_no_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarise(samples([]))


@given(times_s)
def test_percentiles_are_ordered_and_within_the_values(values) -> None:
    latency = summarise(samples(values))
    largest = max(values) * 1e3
    assert latency.min <= latency.p50 <= latency.p90 <= latency.p99 <= largest
    assert latency.min <= latency.mean * (1 + 1e-12)
    assert latency.mean <= largest * (1 + 1e-12)
    assert latency.count == len(values)
    assert math.isfinite(latency.stdev)


@given(times_s, times_s)
def test_interval_lies_within_what_the_samples_allow(eager, compiled) -> None:
    found = speedup(samples(eager), samples(compiled))
    slack = 1 + 1e-9
    assert found.ratio == pytest.approx(np.median(eager) / np.median(compiled))
    assert min(eager) / max(compiled) <= found.low * slack
    assert found.low <= found.high <= max(eager) / min(compiled) * slack


@given(times_s, times_s)
def test_same_samples_give_the_same_interval(eager, compiled) -> None:
    assert speedup(samples(eager), samples(compiled)) == speedup(samples(eager), samples(compiled))


def test_interval_holds_the_ratio_and_narrows_with_more_samples() -> None:
    rng = np.random.default_rng(1)
    intervals = []
    for count in (20, 200, 5000):  # the last one is more than is resampled
        found = speedup(samples(rng.normal(2, 0.1, count)), samples(rng.normal(1, 0.1, count)))
        assert found.low <= found.ratio <= found.high
        intervals.append(found.high - found.low)
    assert intervals == sorted(intervals, reverse=True)


def test_steady_samples_raise_no_doubt() -> None:
    assert stability_warnings("eager, batch 4", samples([1.0, 1.01, 0.99, 1.0] * 10, min_samples=20)) == []


def test_spread_is_reported_against_the_median() -> None:
    (warning,) = stability_warnings("eager, batch 4", samples([1.0, 1.0, 1.0, 1.5] * 10))
    assert warning == "eager, batch 4: one call in ten took 50 % longer than the median"


def test_one_interrupted_call_of_many_raises_no_doubt() -> None:
    assert stability_warnings("eager, batch 4", samples([1.0] * 500 + [1000.0] + [1.0] * 500)) == []


def test_long_tail_is_reported() -> None:
    warnings = stability_warnings("compiled, batch 1", samples([1.0] * 48 + [15.0, 15.0]))
    assert "compiled, batch 1: p99 is 15 x p50; something else may be using the machine" in warnings


def test_budget_that_ended_too_early_is_reported() -> None:
    (warning,) = stability_warnings("eager, batch 64", samples([1.0] * 3, min_samples=20))
    assert warning == "eager, batch 64: only 3 of 20 samples within the budget"


@pytest.mark.parametrize(("last", "said"), [(1.15, "15 % slower"), (0.85, "15 % faster")])
def test_drift_is_reported_with_its_direction(last, said) -> None:
    (warning,) = stability_warnings("eager, batch 4", samples([1.0] * 10 + [last] * 10))
    assert warning == f"eager, batch 4: the second half's median is {said} than the first half's"


def test_few_samples_are_no_drift() -> None:
    assert not any("half" in each for each in stability_warnings("a", samples([1, 1, 2, 2])))
