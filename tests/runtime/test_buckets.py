"""Bucket choice: no other choice takes less, and what it is said to take and to waste is so."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.runtime.buckets import choose, judge

SIZES = st.integers(1, 40)
HISTOGRAMS = st.dictionaries(SIZES, st.integers(1, 50), min_size=1, max_size=7)
COSTS = st.lists(st.floats(0.01, 100), min_size=40, max_size=40)  # not even monotone: latencies are measured
BYTES = st.lists(st.integers(0, 20), min_size=40, max_size=40)


def expected(histogram, buckets, cost_ms):
    """Milliseconds of a call that is padded to the next bucket."""
    total = sum(calls * cost_ms(min(b for b in buckets if b >= size)) for size, calls in histogram.items())
    return total / sum(histogram.values())


def all_choices(histogram, most):
    largest = max(histogram)
    others = [size for size in histogram if size != largest]
    for number in range(min(most, len(histogram))):
        for some in itertools.combinations(others, number):
            yield (*sorted(some), largest)


@given(HISTOGRAMS, COSTS, st.integers(1, 8))
def test_no_other_choice_takes_less(histogram, costs, most):
    cost_ms = lambda size: costs[size - 1]  # noqa: E731
    found = choose(histogram, cost_ms, most=most)
    best = min(expected(histogram, buckets, cost_ms) for buckets in all_choices(histogram, most))
    assert found.expected_ms == pytest.approx(best)
    assert found.expected_ms == pytest.approx(expected(histogram, found.buckets, cost_ms))
    assert found.buckets in set(all_choices(histogram, most))
    assert judge(histogram, found.buckets, cost_ms).expected_ms == pytest.approx(best)


@given(HISTOGRAMS, COSTS, BYTES, st.integers(1, 8), st.integers(0, 60))
def test_no_other_choice_within_the_memory_takes_less(histogram, costs, sizes, most, memory):
    cost_ms, bytes_of = (lambda size: costs[size - 1]), (lambda size: sizes[size - 1])
    allowed = [b for b in all_choices(histogram, most) if sum(map(bytes_of, b)) <= memory]
    if not allowed:
        with pytest.raises(ValueError, match=f"size {max(histogram)} must be a bucket"):
            choose(histogram, cost_ms, most=most, bytes_of=bytes_of, memory=memory)
        return
    found = choose(histogram, cost_ms, most=most, bytes_of=bytes_of, memory=memory)
    assert found.expected_ms == pytest.approx(min(expected(histogram, b, cost_ms) for b in allowed))
    assert found.size_bytes == sum(map(bytes_of, found.buckets)) <= memory
    assert len(found.buckets) <= most


@given(HISTOGRAMS, st.integers(7, 20))
def test_with_a_bucket_for_every_size_nothing_is_padded_where_larger_is_dearer(histogram, most):
    found = choose(histogram, float, most=most)
    use = judge(histogram, found.buckets, float)
    assert found.buckets == tuple(sorted(histogram))
    assert (use.hit_rate, use.padding_waste) == (1, 0)


@given(HISTOGRAMS, COSTS, st.integers(1, 7))
def test_more_buckets_or_more_memory_never_take_longer(histogram, costs, most):
    cost_ms = lambda size: costs[size - 1]  # noqa: E731
    fewer, more = (choose(histogram, cost_ms, most=number).expected_ms for number in (most, most + 1))
    assert more <= fewer + 1e-9
    little, plenty = (
        choose(histogram, cost_ms, most=most, bytes_of=int, memory=memory).expected_ms for memory in (40, 400)
    )
    assert plenty <= little + 1e-9


def test_of_choices_that_take_the_same_the_one_with_fewer_buckets_is_taken():
    assert choose({1: 5, 2: 5, 3: 5}, lambda _: 1.0, most=3).buckets == (3,)


def test_sizes_without_calls_get_no_bucket_and_need_not_be_covered():
    assert choose({1: 5, 9: 0}, float, most=3).buckets == (1,)


def test_what_is_wasted_and_hit_is_counted_by_hand():
    use = judge({1: 6, 3: 3, 9: 1}, [4, 1], float)
    assert use.hit_rate == 0.6
    assert use.padding_waste == 3 / (6 + 12 + 9)  # 9 is beyond the largest, and runs as it is
    assert use.expected_ms == (6 * 1 + 3 * 4 + 9) / 10


@pytest.mark.parametrize(("histogram", "most"), [({}, 3), ({4: 0}, 3), ({4: 1}, 0)])
def test_no_calls_or_no_buckets_is_refused(histogram, most):
    with pytest.raises(ValueError, match="at least one"):
        choose(histogram, float, most=most)


def test_many_sizes_and_buckets_are_chosen_in_seconds():
    histogram = {size: 1 + size * 7919 % 101 for size in range(1, 301)}
    found = choose(histogram, float, most=16, bytes_of=int, memory=None)
    assert len(found.buckets) == 16
    assert found.buckets[-1] == 300
