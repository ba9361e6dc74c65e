"""What the monitor costs a call, from one thread and from eight.

Nanoseconds that a way adds to calling a function that does nothing, folding included, which one call in 256 does;
the difference is taken in each round. Of eight threads the wall time of all is divided by all calls: the GIL lets
one run at a time. Whether every call was counted is checked in each round.

decorator      the function decorated
with           the call inside of `with time_operation(name)`
record         the call, and `operation.record(seconds)` after it
sampled        the decorated function while one call in 769 is timed
disabled       the decorated function while the monitor is off
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from common import FailedError, Section, about, in_turns, main, spread

from app.monitor import SimplePerformanceMonitor
from app.monitor.overhead import RATES, Costs, measured_costs

EMPTY = "empty call"
Loop = Callable[[int], None]


def ways() -> dict[str, tuple[Loop, Callable[[], int]]]:
    """A loop of so many calls each, and how many the monitor has counted."""

    def empty() -> None:
        pass

    # costs of zero: every call is timed, however little it does
    timing, off = (SimplePerformanceMonitor(costs=Costs(0.0, 0.0)) for _ in range(2))
    off.disable()
    sampling = sampled()
    block, record = timing.time_operation, timing.operation("record").record

    def with_block(times: int) -> None:
        for _ in range(times):
            with block("with"):
                empty()

    def recording(times: int) -> None:
        for _ in range(times):
            empty()
            record(1e-6)

    def calling(function: Callable[[], None]) -> Loop:
        def loop(times: int) -> None:
            for _ in range(times):
                function()

        return loop

    def counted(monitor: SimplePerformanceMonitor, name: str) -> Callable[[], int]:
        return lambda: int(monitor.get_metrics(name).get("call_count", 0))

    return {
        EMPTY: (calling(empty), lambda: 0),
        "decorator": (calling(timing.monitor("decorator")(empty)), counted(timing, "decorator")),
        "with": (with_block, counted(timing, "with")),
        "record": (recording, counted(timing, "record")),
        "sampled": (calling(sampling.monitor("sampled")(empty)), counted(sampling, "sampled")),
        "disabled": (calling(off.monitor("disabled")(empty)), lambda: 0),
    }


def sampled() -> SimplePerformanceMonitor:
    """One whose operation `sampled` is timed as rarely as any."""
    monitor = SimplePerformanceMonitor(costs=Costs(1.0, 0.0))
    operation = monitor.operation("sampled")
    while monitor.get_metrics("sampled").get("sampled_one_in") != RATES[-1]:
        for _ in range(256):
            operation.record(0.1)
    return monitor


def per_call_ns(name: str, num_calls: int, num_threads: int) -> float:
    """Of a new monitor, until all threads have made their calls."""
    loop, count = ways()[name]
    loop(1000)  # the interpreter specialises a loop while it first runs
    before, each, start = count(), num_calls // num_threads, threading.Barrier(num_threads + 1)

    def work() -> None:
        start.wait()
        loop(each)

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds, calls = time.perf_counter() - began, each * num_threads
    if count() - before not in (calls, 0):
        raise FailedError(f"{name}: {count() - before} of {calls} calls were counted")
    return seconds / calls * 1e9


def measure(quick: bool) -> Section:
    section = Section("Monitor", about(__doc__))
    num_calls, rounds = (20_000, 3) if quick else (200_000, 21)
    rows = [("ns", "threads", "a call", "min", "max", "the monitor", "min", "max")]
    for num_threads in (1, 8):
        each = {name: lambda n=name, t=num_threads: per_call_ns(n, num_calls, t) for name in ways()}
        samples = in_turns(each, rounds, f"monitor, {num_threads} threads")
        section.samples[f"{num_threads} threads"] = samples
        for name, values in samples.items():
            own = spread(np.subtract(values, samples[EMPTY])) if name != EMPTY else ("", "", "")
            rows.append((name, f"{num_threads}", *spread(values), *own))
    costs = measured_costs()
    rows.append(("as it measures itself", "1", "", "", "", f"{costs.timed_s * 1e9:.0f}", "", ""))
    section.tables.append(rows)
    return section


if __name__ == "__main__":
    main(__doc__, measure)
