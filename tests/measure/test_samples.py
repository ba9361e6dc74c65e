from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import OutputError
from app.measure.clock import CpuClock, clock_for
from app.measure.samples import Samples, load_samples, measure, save_samples

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeClock:
    """Each call takes as long as its own return value says."""

    def time(self, call: Callable[[], object]) -> float:
        return float(str(call()))


def seconds(each: float) -> Callable[[], float]:
    return lambda: each


def take(calls, *, warmup=2, min_samples=5, max_samples=50, budget_s=1.0):
    limits = {"warmup": warmup, "min_samples": min_samples, "max_samples": max_samples, "budget_s": budget_s}
    return measure(calls, FakeClock(), **limits)


def test_every_round_has_every_call_and_another_first() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) or 0.001 for name in "ABC"}
    take(calls, warmup=0, min_samples=6, max_samples=6)
    rounds = ["".join(order[start : start + 3]) for start in range(0, len(order), 3)]
    assert rounds == ["ABC", "BCA", "CAB", "ABC", "BCA", "CAB"]


def test_two_calls_alternate_which_comes_first() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) or 0.001 for name in "AB"}
    take(calls, warmup=0, min_samples=4, max_samples=4)
    assert "".join(order) == "ABBAABBA"


def test_warmups_are_kept_apart_and_come_first() -> None:
    times = iter([9.0, 8.0, 0.1, 0.2, 0.3])
    samples = take({"eager": lambda: next(times)}, min_samples=3, max_samples=3, budget_s=20)["eager"]
    assert samples.warmup_s.tolist() == [9.0, 8.0]
    assert samples.values_s.tolist() == [0.1, 0.2, 0.3]


def test_ends_with_the_budget_once_there_are_enough_samples() -> None:
    samples = take({"a": seconds(0.05), "b": seconds(0.05)})  # ten rounds use the second up
    assert {name: one.values_s.size for name, one in samples.items()} == {"a": 10, "b": 10}


def test_min_samples_come_before_the_budget() -> None:
    assert take({"a": seconds(1.0)}, min_samples=8)["a"].values_s.size == 8


def test_ten_times_the_budget_is_the_end_whatever_is_missing() -> None:
    samples = take({"a": seconds(2.5)}, min_samples=8)["a"]
    assert (samples.values_s.size, samples.min_samples) == (4, 8)


def test_the_slowest_call_is_still_measured_three_times() -> None:
    samples = take({"a": seconds(3600)}, warmup=5)["a"]
    assert (samples.warmup_s.size, samples.values_s.size) == (1, 3)


def test_ends_at_max_samples_with_budget_left() -> None:
    assert take({"a": seconds(1e-6)})["a"].values_s.size == 50


@given(
    each=st.floats(1e-6, 1e3),
    limits=st.tuples(st.integers(1, 40), st.integers(1, 40)).map(sorted),
    budget_s=st.floats(0, 10),
    warmup=st.integers(0, 10),
)
@settings(max_examples=25)  # each is hundreds of calls
def test_limits_hold_for_any_call(each, limits, budget_s, warmup) -> None:
    low, high = limits
    one = take({"a": seconds(each)}, warmup=warmup, min_samples=low, max_samples=high, budget_s=budget_s)["a"]
    assert min(3, low) <= one.values_s.size <= high
    assert one.warmup_s.size <= warmup
    slack = 1 + 1e-9  # numpy adds in another order
    if one.values_s.size > 3:
        assert one.values_s[:-1].sum() <= 10 * budget_s * slack
    if one.values_s.size < low:
        assert one.values_s.sum() * slack >= 10 * budget_s


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="min_samples <= max_samples, got 9 and 5"):
        take({"a": seconds(1)}, min_samples=9, max_samples=5)


def test_garbage_is_not_collected_while_measuring() -> None:
    seen = []
    take({"a": lambda: seen.append(gc.isenabled()) or 0.1})
    assert not any(seen)
    assert gc.isenabled()


def test_garbage_collection_is_back_after_a_call_raised() -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        take({"a": fail})
    assert gc.isenabled()


def test_garbage_collection_stays_off_where_it_was_off() -> None:
    gc.disable()
    try:
        take({"a": seconds(1)})
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_saved_samples_come_back_under_their_names(tmp_path) -> None:
    path = tmp_path / "samples.npz"
    saved = {
        "compiled/4": Samples(np.array([1.0]), np.array([0.5, 0.25]), min_samples=7),
        "eager_bf16/16": Samples(np.array([]), np.array([3.0])),
    }
    save_samples(path, saved)
    loaded = load_samples(path)
    assert list(loaded) == list(saved)
    for name, one in saved.items():
        np.testing.assert_array_equal(loaded[name].warmup_s, one.warmup_s)
        np.testing.assert_array_equal(loaded[name].values_s, one.values_s)
        assert loaded[name].min_samples == one.min_samples
    with np.load(path) as arrays:
        assert {"compiled/4/values_s", "compiled/4/warmup_s"} <= set(arrays.files)


def test_samples_that_cannot_be_written_name_the_file(tmp_path) -> None:
    with pytest.raises(OutputError, match=r"missing/samples\.npz: No such file"):
        save_samples(tmp_path / "missing" / "samples.npz", {})


def test_cpu_clock_calls_once_and_is_monotonic() -> None:
    calls: list[int] = []
    times = [CpuClock().time(lambda: calls.append(1)) for _ in range(3)]
    assert len(calls) == 3
    assert all(each >= 0 for each in times)


def test_clock_is_chosen_by_device_and_an_unknown_one_is_refused() -> None:
    assert isinstance(clock_for("cpu"), CpuClock)
    with pytest.raises(ValueError, match="no clock for device 'mps'; there is one for cpu and cuda"):
        clock_for("mps")


@pytest.mark.gpu
def test_cuda_clock_waits_for_the_kernels() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: this machine has none")
    small, large = (torch.ones(side, side, device="cuda") for side in (512, 8192))
    clock = clock_for("cuda:0")
    # Both take the same time to launch; only a clock that waits sees the large one's 4000 times the work.
    small_s, large_s = (min(clock.time(lambda m=m: m @ m) for _ in range(5)) for m in (small, large))
    assert small_s < large_s
