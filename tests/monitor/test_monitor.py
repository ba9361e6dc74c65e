"""The monitor: counts are exact whatever runs at the same time, times are of what was asked, and its cost is bounded."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import json
import logging
import math
import os
import signal
import sys
import threading
import tracemalloc
import warnings
from contextlib import closing, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import FallbackConfig
from app.monitor import (
    MOST_NAMES,
    OTHERS,
    SimplePerformanceMonitor,
    monitor_compilation,
    monitor_evaluation,
    monitor_inference,
    performance_monitor,
)
from app.monitor.overhead import RATES, Costs, Policy, measured_costs
from app.runtime.ladder import Ladder

FREE = Costs(0.0, 0.0)  # every call is timed, however short


class Clock:
    """Stands still until it is told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def monitor(clock):
    return SimplePerformanceMonitor(clock=clock, costs=FREE)


@pytest.fixture
def shared():
    """The program's own instance, as a fresh process has it."""
    performance_monitor.reset_metrics()
    yield performance_monitor
    performance_monitor.enable()
    performance_monitor.reset_metrics()


@pytest.fixture
def restless():
    """Threads take turns a hundred times as often as usual; not under a tracer, which Python 3.11 can't install so."""
    before = sys.getswitchinterval()
    if sys.gettrace() is None:
        sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(num, work):
    threads = [threading.Thread(target=work) for _ in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# Metrics


def test_metrics_are_of_all_calls_in_seconds(monitor, clock):
    step = monitor.monitor("step")(clock.pass_)
    for seconds in (1.0, 2.0, 6.0, 1.0):
        step(seconds)
    found = monitor.get_metrics("step")
    assert {name: found[name] for name in ("call_count", "total_time", "avg_time", "min_time", "max_time")} == {
        "call_count": 4,
        "total_time": 10.0,
        "avg_time": 2.5,
        "min_time": 1.0,
        "max_time": 6.0,
    }
    assert (found["recent_avg"], found["calls_per_second"]) == (2.5, 0.4)
    assert (found["sampled_one_in"], found["stopped"], found["timed_count"]) == (1, False, 4)
    assert found["p50"] == pytest.approx(1.0, rel=0.01)
    assert found["p90"] == found["p99"] == pytest.approx(6.0, rel=0.01)


def test_recent_average_forgets_and_the_others_do_not(monitor):
    record = monitor.operation("step").record
    for seconds in (1000.0, *[1.0] * 300):
        record(seconds)
    assert monitor.get_metrics("step")["recent_avg"] == 1.0
    assert monitor.get_metrics("step")["max_time"] == 1000.0


def test_a_name_without_calls_has_no_metrics(monitor):
    monitor.monitor("decorated")(len)
    assert monitor.get_metrics("unknown") == monitor.get_metrics("decorated") == monitor.get_metrics() == {}
    assert monitor.get_summary()["total_operations"] == 0


def test_all_metrics_come_by_name(monitor, clock):
    for name in ("a", "b"):
        with monitor.time_operation(name):
            clock.pass_(1.0)
    assert monitor.get_metrics() == {name: monitor.get_metrics(name) for name in ("a", "b")}


def test_the_summary_names_what_took_longest(monitor):
    for name, seconds in (("short", 1.0), ("long", 5.0), ("short", 1.0)):
        monitor.operation(name).record(seconds)
    summary = monitor.get_summary()
    assert (summary["total_operations"], summary["total_calls"], summary["total_time"]) == (2, 3, 7.0)
    assert [each["name"] for each in summary["top_operations"]] == ["long", "short"]
    assert summary["top_operations"][0] == {"name": "long", "total_time": 5.0, "call_count": 1, "avg_time": 5.0}
    assert (summary["enabled"], summary["sampled"], summary["stopped"]) == (True, {}, [])


def test_reset_forgets_one_operation_or_all_and_counting_goes_on(monitor):
    step, other = monitor.monitor("step")(len), monitor.monitor("other")(len)
    step("a"), other("a")
    monitor.reset_metrics("step")
    assert (monitor.get_metrics("step"), monitor.get_metrics("other")["call_count"]) == ({}, 1)
    monitor.reset_metrics()
    monitor.reset_metrics("unknown")
    step("a")
    assert {name: each["call_count"] for name, each in monitor.get_metrics().items()} == {"step": 1}


def test_a_call_that_is_under_way_at_a_reset_is_not_counted(monitor):
    with monitor.time_operation("step"):
        monitor.reset_metrics()
    assert monitor.get_metrics("step") == {}


def test_disabled_it_counts_nothing_and_forgets_nothing(monitor):
    step = monitor.monitor("step")(len)
    step("a")
    monitor.disable()
    assert step("ab") == 2
    with monitor.time_operation("new"):
        pass
    monitor.operation("new").record(1.0)
    assert (monitor.get_metrics("step")["call_count"], monitor.get_metrics("new"), monitor.enabled) == (1, {}, False)
    monitor.enable()
    step("a")
    assert (monitor.get_metrics("step")["call_count"], monitor.get_summary()["enabled"]) == (2, True)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, 5, 1e-300])
def test_a_duration_that_can_not_be_is_counted_and_breaks_nothing(monitor, seconds):
    for each in (seconds, 1.0, seconds):
        monitor.operation("step").record(each)
    found = monitor.get_metrics("step")
    assert found["call_count"] == 3
    assert all(0 <= found[name] < math.inf for name in found)
    json.loads(monitor.to_json())


durations = st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=400)


@settings(max_examples=200)
@given(durations)
def test_percentiles_are_within_one_percent(values):
    monitor = SimplePerformanceMonitor(costs=FREE)
    for seconds in values:
        monitor.operation("step").record(seconds)
    found = monitor.get_metrics("step")
    for percent in (50, 90, 99):
        exact = sorted(values)[math.ceil(percent * len(values) / 100) - 1]
        assert found[f"p{percent}"] == pytest.approx(exact, rel=0.01)
    assert found["total_time"] == pytest.approx(sum(values))
    assert (found["min_time"], found["max_time"], found["call_count"]) == (min(values), max(values), len(values))


# What can be timed


def test_exceptions_pass_through_and_count(monitor, clock):
    @monitor.monitor("step")
    def fail():
        clock.pass_(2.0)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    with pytest.raises(KeyError), monitor.time_operation("step"):
        raise KeyError
    found = monitor.get_metrics("step")
    assert (found["call_count"], found["error_count"], found["total_time"]) == (2, 2, 2.0)


def test_a_decorated_function_is_still_itself(monitor):
    def plain(a: int, *, b: int = 2) -> int:
        """Adds."""
        return a + b

    timed = monitor.monitor("step")(plain)
    assert (timed.__name__, timed.__doc__, timed.__wrapped__) == ("plain", "Adds.", plain)
    assert inspect.signature(timed) == inspect.signature(plain)
    assert timed(1, b=4) == 5


def test_methods_objects_and_classes_are_timed(monitor):
    class Model:
        weights = "large"

        def __init__(self):
            self.state = "its own"

        @monitor.monitor("method")
        def forward(self, x):
            return x + 1

        @classmethod
        @monitor.monitor("method")
        def make(cls):
            return cls()

        def __call__(self, x):
            return x + 2

    model = Model.make()
    served = monitor.monitor("object")(model)
    assert (model.forward(1), served(1)) == (2, 3)
    assert not hasattr(served, "state")  # else the wrapper would have a copy of all that the model holds
    assert isinstance(monitor.monitor("class")(Model)(), Model)
    assert {name: each["call_count"] for name, each in monitor.get_metrics().items()} == {
        "method": 2,
        "object": 1,
        "class": 1,
    }


def test_what_can_not_be_called_is_refused_with_the_reason(monitor):
    with pytest.raises(TypeError, match="beneath @classmethod"):
        monitor.monitor("step")(classmethod(len))


def test_a_coroutine_takes_what_it_awaits(monitor, clock):
    @monitor.monitor("step")
    async def answer(x):
        clock.pass_(1.0)
        await asyncio.sleep(0)
        clock.pass_(2.0)
        if x < 0:
            raise ValueError(x)
        return x

    assert inspect.iscoroutinefunction(answer)
    assert asyncio.run(answer(3)) == 3
    with pytest.raises(ValueError, match="-1"):
        asyncio.run(answer(-1))
    found = monitor.get_metrics("step")
    assert (found["call_count"], found["error_count"], found["total_time"]) == (2, 1, 6.0)


def test_an_object_whose_call_is_a_coroutine_is_timed_to_its_end(monitor, clock):
    class Client:
        async def __call__(self):
            await asyncio.sleep(0)
            clock.pass_(3.0)

    asyncio.run(monitor.monitor("step")(Client())())
    assert monitor.get_metrics("step")["total_time"] == 3.0


def test_a_cancelled_coroutine_counts_as_an_error(monitor):
    @monitor.monitor("step")
    async def forever():
        await asyncio.Event().wait()

    async def main():
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert monitor.get_metrics("step")["error_count"] == 1


def test_a_generator_takes_its_own_time_and_not_its_consumers(monitor, clock):
    @monitor.monitor("step")
    def produce(num):
        for number in range(num):
            clock.pass_(1.0)
            yield number
        clock.pass_(0.5)
        return "done"

    def consume():
        return (yield from produce(3))

    assert inspect.isgeneratorfunction(produce)
    consumer, seen = consume(), []
    with pytest.raises(StopIteration) as stop:
        while True:
            seen.append(next(consumer))
            clock.pass_(100.0)
    assert (seen, stop.value.value) == ([0, 1, 2], "done")
    assert (monitor.get_metrics("step")["total_time"], monitor.get_metrics("step")["call_count"]) == (3.5, 1)


def test_a_generator_takes_what_is_sent_thrown_and_closed(monitor, clock):
    closed = []

    @monitor.monitor("step")
    def echo():
        got = None
        try:
            while True:
                try:
                    got = yield got
                    clock.pass_(1.0)
                except KeyError:
                    got = "caught"
        finally:
            clock.pass_(0.25)
            closed.append(True)

    generator = echo()
    assert (next(generator), generator.send(5), generator.throw(KeyError)) == (None, 5, "caught")
    generator.close()
    found = monitor.get_metrics("step")
    assert (closed, found["total_time"], found["error_count"], found["call_count"]) == ([True], 1.25, 0, 1)
    generator = echo()
    next(generator)
    with pytest.raises(ValueError, match="unknown"):
        generator.throw(ValueError("unknown"))
    assert monitor.get_metrics("step")["error_count"] == 1


def test_a_generator_that_never_starts_is_no_call(monitor):
    @monitor.monitor("step")
    def produce():
        yield 1

    produce().close()
    produce()
    assert monitor.get_metrics("step") == {}


def test_an_async_generator_takes_its_own_time_and_not_its_consumers(monitor, clock):
    @monitor.monitor("step")
    async def produce():
        got = None
        try:
            for number in itertools.count():
                clock.pass_(1.0)
                await asyncio.sleep(0)
                try:
                    got = yield (number, got)
                except KeyError:
                    got = "caught"
        finally:
            clock.pass_(0.5)

    async def main():
        generator = produce()
        seen = [await anext(generator)]
        clock.pass_(100.0)
        seen += [await generator.asend("sent"), await generator.athrow(KeyError)]
        await generator.aclose()
        return seen

    assert inspect.isasyncgenfunction(produce)
    assert asyncio.run(main()) == [(0, None), (1, "sent"), (2, "caught")]
    found = monitor.get_metrics("step")
    assert (found["total_time"], found["call_count"], found["error_count"]) == (3.5, 1, 0)


def test_an_exhausted_async_generator_counts_once(monitor):
    @monitor.monitor("step")
    async def produce(num):
        for number in range(num):
            yield number
        if num > 2:
            raise ValueError("too many")

    async def main(num):
        return [number async for number in produce(num)]

    assert asyncio.run(main(2)) == [0, 1]
    with pytest.raises(ValueError, match="too many"):
        asyncio.run(main(3))
    found = monitor.get_metrics("step")
    assert (found["call_count"], found["error_count"]) == (2, 1)


@pytest.mark.parametrize(
    ("decorator", "name"),
    [(monitor_inference, "inference"), (monitor_compilation, "compilation"), (monitor_evaluation, "evaluation")],
)
def test_module_level_decorators_stand_bare_or_with_a_name(shared, decorator, name):
    @decorator
    def bare(x):
        return x

    @decorator()
    def called(x):
        return x

    @decorator("of its own")
    def named(x):
        return x

    @decorator(name="of its own")
    def keyword(x):
        return x

    assert [each(1) for each in (bare, called, named, keyword)] == [1, 1, 1, 1]
    assert bare.__name__ == "bare"
    counts = {each: found["call_count"] for each, found in shared.get_metrics().items()}
    assert counts == {name: 2, "of its own": 2}


# Exactness


@pytest.mark.parametrize("costs", [FREE, Costs(1.0, 0.0)], ids=["timed", "sampled"])
@pytest.mark.usefixtures("restless")
def test_counts_are_exact_from_32_threads_while_another_reads(costs):
    monitor = SimplePerformanceMonitor(costs=costs)
    num_calls, counts, is_done = 3000, [], threading.Event()

    @monitor.monitor("step")
    def step(x):
        if x % 10 == 0:
            raise ValueError
        return x

    def work():
        record = monitor.operation("record").record
        for number in range(num_calls):
            with suppress(ValueError):
                step(number)
            with monitor.time_operation("block"):
                pass
            record(1e-3)

    def read():
        while not is_done.is_set():
            counts.append(monitor.get_metrics("record").get("call_count", 0))

    reader = threading.Thread(target=read)
    reader.start()
    in_threads(32, work)
    is_done.set()
    reader.join()
    found = monitor.get_metrics()
    assert {name: each["call_count"] for name, each in found.items()} == dict.fromkeys(
        ("step", "block", "record"), 32 * num_calls
    )
    assert found["step"]["error_count"] == 32 * num_calls // 10
    assert found["record"]["total_time"] == pytest.approx(32 * num_calls * 1e-3)
    assert counts == sorted(counts)
    assert (found["record"]["timed_count"] == 32 * num_calls) is (found["record"]["sampled_one_in"] == 1)
    assert (found["record"]["sampled_one_in"] == 1) is (costs is FREE)


@pytest.mark.usefixtures("restless")
def test_counts_are_exact_while_it_is_reset_and_switched(monitor):
    step, is_done = monitor.monitor("step")(len), threading.Event()

    def disturb():
        while not is_done.is_set():
            monitor.trace(True)
            monitor.get_summary()
            monitor.reset_metrics("other")
            monitor.trace(False)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    in_threads(8, lambda: [step("a") for _ in range(3000)])
    is_done.set()
    disturber.join()
    assert monitor.get_metrics("step")["call_count"] == 24_000


def test_calls_of_threads_that_have_ended_are_counted(monitor):
    step = monitor.monitor("step")(len)
    for _ in range(50):
        in_threads(2, lambda: step("a"))
    assert monitor.get_metrics("step")["call_count"] == 100


def held_by_the_monitor():
    """Bytes that its own code holds; a tracer of coverage holds more with every thread."""
    gc.collect()
    own = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/app/monitor/*")])
    return sum(trace.size for trace in own.traces)


def test_memory_does_not_grow_with_calls_or_threads(monitor):
    record = monitor.operation("step").record

    def work():
        for number in range(1, 1001):
            record(number * 1e-6)

    in_threads(4, work)
    tracemalloc.start()
    try:
        in_threads(1, work)
        before = held_by_the_monitor()
        for _ in range(25):
            in_threads(4, work)
        assert held_by_the_monitor() - before < 30_000
    finally:
        tracemalloc.stop()
    assert monitor.get_metrics("step")["call_count"] == 105_000


def test_names_are_bounded_and_no_call_is_lost(monitor):
    for number in range(MOST_NAMES + 50):
        with monitor.time_operation(f"request {number}"):
            pass
    found = monitor.get_metrics()
    assert len(found) == MOST_NAMES + 1
    assert found[OTHERS]["call_count"] == 50


def in_child(work):
    """What `work` returns in the child of a fork, by JSON."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: this process has threads
        pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # a child that hangs is a failure, not a wait
        try:
            os.write(write, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with closing(open(read, "rb")) as pipe:  # noqa: PTH123 - a descriptor
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def test_a_forked_child_counts_from_zero_and_the_parent_goes_on(monitor):
    step = monitor.monitor("step")(len)
    monitor.trace(True)
    for _ in range(300):
        step("a")

    def child():
        before = monitor.get_metrics("step")
        for _ in range(70):
            step("a")
        return before, monitor.get_metrics("step")["call_count"], len(monitor.events)

    assert in_child(child) == [{}, 70, 70]
    step("a")
    assert monitor.get_metrics("step")["call_count"] == 301


def test_a_call_under_way_at_a_fork_counts_in_the_parent_only(monitor):
    with monitor.time_operation("step") as block:

        def child():
            block.__exit__(None, None, None)
            return monitor.get_metrics("step")

        assert in_child(child) == {}
    assert monitor.get_metrics("step")["call_count"] == 1


def test_a_fork_while_other_threads_record_leaves_a_child_that_works(monitor):
    step, is_done = monitor.monitor("step")(len), threading.Event()

    def work():
        while not is_done.is_set():
            step("a")
            monitor.get_metrics()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()

    def child():
        for _ in range(1000):
            step("a")
        return monitor.get_metrics("step")["call_count"]

    try:
        assert [in_child(child) for _ in range(10)] == [1000] * 10
    finally:
        is_done.set()
        for thread in threads:
            thread.join()


def test_a_signals_handler_may_read_while_its_thread_folds(monitor, monkeypatch):
    operation, seen = monitor.operation("step"), []
    add = operation._durations.add

    def interrupted(*arguments):
        seen.append(monitor.get_metrics("step")["call_count"])
        add(*arguments)

    monkeypatch.setattr(operation._durations, "add", interrupted)
    for _ in range(1000):
        operation.record(1.0)
    monkeypatch.undo()
    assert len(seen) == 3
    assert monitor.get_metrics("step")["call_count"] == 1000


def test_calls_go_on_and_none_is_lost_while_another_thread_folds(monitor):
    operation, holds, lets_go = monitor.operation("step"), threading.Event(), threading.Event()

    def hold():
        with operation._lock:
            holds.set()
            lets_go.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    holds.wait(60)
    for _ in range(5000):
        operation.record(1.0)
    lets_go.set()
    holder.join()
    assert monitor.get_metrics("step")["call_count"] == 5000
    in_threads(1, lambda: [operation.record(1.0) for _ in range(1000)])
    assert len(operation.regime.buffer) < 256


# What it may cost


def windows(monitor, num, seconds, name="step", rate=1):
    """Calls that fill so many windows of a decision, where one call in `rate` is timed."""
    record = monitor.operation(name).record
    size = 256 if rate == 1 else 32 * rate
    for _ in range(num * size):
        record(seconds)
    return num * size


def test_slow_calls_are_all_timed():
    monitor = SimplePerformanceMonitor(costs=Costs(1e-6, 1e-7))
    made = windows(monitor, 20, 51e-6)
    found = monitor.get_metrics("step")
    assert (found["sampled_one_in"], found["timed_count"]) == (1, made)
    assert monitor.get_summary()["overhead"] == pytest.approx(1 / 51, rel=0.01)


def test_quick_calls_are_sampled_and_still_counted_exactly():
    monitor = SimplePerformanceMonitor(costs=Costs(1e-6, 1e-7))
    made = windows(monitor, 40, 20e-6)
    found = monitor.get_metrics("step")
    assert (found["call_count"], found["stopped"]) == (made, False)
    assert found["sampled_one_in"] > 1
    assert found["timed_count"] < made
    assert found["total_time"] == pytest.approx(made * 20e-6)
    assert found["p50"] == pytest.approx(20e-6, rel=0.01)
    assert monitor.get_summary()["sampled"] == {"step": found["sampled_one_in"]}


def test_where_even_counting_is_too_much_it_stops_and_says_so_once(caplog):
    monitor = SimplePerformanceMonitor(costs=Costs(1e-6, 1e-5))
    with caplog.at_level(logging.WARNING):
        made = windows(monitor, 3, 1e-6) + windows(monitor, 3, 1e-6, rate=RATES[-1])
        windows(monitor, 2, 1e-6, rate=RATES[-1])
    found = monitor.get_metrics("step")
    assert found["stopped"] is True
    assert 3 * 256 < found["call_count"] <= made
    assert monitor.get_summary()["stopped"] == ["step"]
    (said,) = (record.message for record in caplog.records)
    assert said == (
        "monitor: step is no longer counted: a call takes 1 us, and to count it 10 us, more than "
        "monitor.max_overhead=0.02 allows"
    )
    monitor.disable()
    monitor.enable()
    windows(monitor, 1, 1e-6)
    assert monitor.get_metrics("step")["call_count"] == found["call_count"]
    monitor.reset_metrics("step")
    windows(monitor, 1, 1e-6)
    assert monitor.get_metrics("step")["call_count"] == 256


def test_it_does_not_stop_before_counting_has_cost_anything():
    monitor = SimplePerformanceMonitor(costs=Costs(1e-7, 1e-8))
    made = windows(monitor, 3, 1e-9) + windows(monitor, 10, 1e-9, rate=RATES[-1])  # 2.5 ms of counting
    found = monitor.get_metrics("step")
    assert (found["call_count"], found["stopped"]) == (made, False)


def test_another_operation_is_judged_by_itself():
    monitor = SimplePerformanceMonitor(costs=Costs(1e-6, 1e-7))
    windows(monitor, 4, 20e-6, "quick")
    windows(monitor, 4, 1.0, "slow")
    sampled = {name: each["sampled_one_in"] for name, each in monitor.get_metrics().items()}
    assert sampled["quick"] > sampled["slow"] == 1


def test_sampled_functions_blocks_and_generators_are_counted_with_their_errors(clock):
    monitor = SimplePerformanceMonitor(clock=clock, costs=Costs(1.0, 0.0))

    @monitor.monitor("step")
    def plain(x):
        return 1 // x

    @monitor.monitor("step")
    def generator(x):
        yield 1 // x

    @monitor.monitor("step")
    async def coroutine(x):
        return 1 // x

    @monitor.monitor("step")
    async def async_generator(x):
        yield 1 // x

    def block(x):
        with monitor.time_operation("step"):
            return 1 // x

    async def each(x):
        return [item async for item in async_generator(x)]

    made = windows(monitor, 4, 0.5)
    assert monitor.get_metrics("step")["sampled_one_in"] > 1
    for call in (
        plain,
        block,
        lambda x: list(generator(x)),
        lambda x: asyncio.run(coroutine(x)),
        lambda x: asyncio.run(each(x)),
    ):
        for x in (1, 0) * 20:
            with suppress(ZeroDivisionError):
                call(x)
            made += 1
    found = monitor.get_metrics("step")
    assert (found["call_count"], found["error_count"]) == (made, 100)


def test_each_step_of_a_generator_costs():
    clock = Clock()
    monitor = SimplePerformanceMonitor(clock=clock, costs=Costs(1e-6, 1e-9))

    @monitor.monitor("step")
    def produce():
        for _ in range(100):
            clock.pass_(10e-6)
            yield

    for _ in range(256 * 4):
        for _ in produce():
            pass
    found = monitor.get_metrics("step")
    assert found["sampled_one_in"] > 1  # as one call of 1 ms it would not be
    assert found["call_count"] == 1024


@given(st.floats(1e-9, 1.0), st.floats(1e-9, 1e-5), st.floats(0, 1), st.floats(1e-4, 0.5))
def test_what_is_wanted_keeps_to_the_limit(call_s, timed_s, share, limit):
    cost = Costs(timed_s, timed_s * share)
    rate = Policy(limit, costs=cost).wanted(call_s)
    spent = {0: 0.0, 1: timed_s}.get(rate, cost.counted_s + timed_s / max(rate, 1))
    assert spent <= limit * call_s * 1.000001
    if rate == 0:
        assert cost.counted_s + timed_s / RATES[-1] > limit * call_s * 0.999999


def test_its_cost_is_measured_once_and_only_where_it_is_in_doubt(monkeypatch):
    measured = []
    monkeypatch.setattr("app.monitor.overhead.measured_costs", lambda: measured.append(1) or Costs(1e-6, 1e-7))
    policy = Policy()
    assert (policy.wanted(1.0), measured) == (1, [])
    assert policy.wanted(20e-6) > 1
    assert measured


def test_what_is_measured_is_a_cost_and_leaves_no_operation(shared):
    found = measured_costs()
    assert 0 < found.counted_s < 1
    assert 0 < found.timed_s < 1
    assert measured_costs() is found
    assert shared.get_metrics() == {}


# The program's own calls


def test_every_rung_of_a_serving_model_is_an_operation(shared):
    def compiled(x):
        if x < 0:
            raise RuntimeError("not for these")
        return x

    ladder = Ladder([("compiled", compiled), ("eager", abs)], FallbackConfig(), lambda _: None)
    assert [ladder(x) for x in (1, 2, -3)] == [1, 2, 3]
    ladder.put_on_top([("cudagraph", abs)])
    assert ladder(5) == 5
    found = shared.get_metrics()
    assert {name: (each["call_count"], each["error_count"]) for name, each in found.items()} == {
        "inference/compiled": (3, 1),
        "inference/eager": (1, 0),
        "inference/cudagraph": (1, 0),
    }
    assert ladder.stats()["calls"] == {"compiled": 2, "eager": 1, "cudagraph": 1}
