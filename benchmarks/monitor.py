"""What the monitor costs a call: decorated, in a `with` block, and as `record`, from one thread and from eight.

    python benchmarks/monitor.py [--quick] [--calls N] [--repeats N]

    empty call     calling a function that does nothing, in a loop; the other ways call it too
    decorator      the same function decorated: the difference is what the monitor costs
    with           the call inside of `with time_operation(name)`
    record         the call, and `operation.record(seconds)` after it
    sampled        the decorated function while one call in 769 is timed
    disabled       the decorated function while the monitor is off

Nanoseconds a call, folding included, which one call in 256 does. The ways take turns, so that a machine that drifts
hits them all. Of eight threads the wall time of all is divided by all calls: the GIL lets one run at a time. Whether
every call was counted is checked in each round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from app import environment as machine  # noqa: E402 - from this checkout, installed or not
from app.monitor import SimplePerformanceMonitor  # noqa: E402
from app.monitor.overhead import RATES, Costs, measured_costs  # noqa: E402

THREADS = (1, 8)
EMPTY = "empty call"
Loop = Callable[[int], None]


def main() -> None:
    arguments = parse()
    repeats = arguments.repeats or (3 if arguments.quick else 21)
    num_calls = arguments.calls or (20_000 if arguments.quick else 200_000)
    load = os.getloadavg()
    samples: dict[str, list[float]] = {}
    for turn in range(repeats):
        print(f"round {turn + 1} of {repeats}", file=sys.stderr, flush=True)
        for num_threads in THREADS:
            for name, (loop, count) in ways().items():
                loop(1000)  # the interpreter specialises a loop while it first runs
                before = count()
                seconds = run(loop, num_calls // num_threads, num_threads)
                calls = num_calls // num_threads * num_threads
                if count() - before not in (calls, 0):
                    sys.exit(f"{name}: {count() - before} of {calls} calls were counted")
                samples.setdefault(f"{name}/{num_threads}", []).append(seconds / calls * 1e9)
    report(samples, num_calls, load)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 short rounds instead of 21")
    parser.add_argument("--calls", type=int, help="calls of a round")
    parser.add_argument("--repeats", type=int, help="rounds, whatever --quick says")
    return parser.parse_args()


def ways() -> dict[str, tuple[Loop, Callable[[], int]]]:
    """A loop of so many calls each, and how many the monitor has counted."""

    def empty() -> None:
        pass

    # costs of zero: every call is timed, however little it does
    timing, off = (SimplePerformanceMonitor(costs=Costs(0.0, 0.0)) for _ in range(2))
    off.disable()
    sampling = sampled()
    decorated, disabled = timing.monitor("decorator")(empty), off.monitor("disabled")(empty)
    sometimes = sampling.monitor("sampled")(empty)
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
        "decorator": (calling(decorated), counted(timing, "decorator")),
        "with": (with_block, counted(timing, "with")),
        "record": (recording, counted(timing, "record")),
        "sampled": (calling(sometimes), counted(sampling, "sampled")),
        "disabled": (calling(disabled), lambda: 0),
    }


def sampled() -> SimplePerformanceMonitor:
    """One whose operation `sampled` is timed as rarely as any."""
    monitor = SimplePerformanceMonitor(costs=Costs(1.0, 0.0))
    operation = monitor.operation("sampled")
    while monitor.get_metrics("sampled").get("sampled_one_in") != RATES[-1]:
        for _ in range(256):
            operation.record(0.1)
    return monitor


def run(loop: Loop, times: int, num_threads: int) -> float:
    """Seconds until all threads have made their calls."""
    if num_threads == 1:
        began = time.perf_counter()
        loop(times)
        return time.perf_counter() - began
    start = threading.Barrier(num_threads + 1)

    def work() -> None:
        start.wait()
        loop(times)

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def report(samples: dict[str, list[float]], num_calls: int, load: tuple[float, float, float]) -> None:
    """Print the table, and keep every sample."""
    facts = machine.describe("cpu")
    rounds = len(next(iter(samples.values())))
    print(f"one monitored call, ns, {rounds} rounds of {num_calls:,} calls")
    print(f"{facts['cpu']}, {facts['cores']} cores, load {load[0]:.1f}, Python {facts['python']}\n")
    print(f"{'':<12} {'threads':>7} {'median':>7} {'min':>7} {'max':>7} {'the monitor':>12} {'min':>7} {'max':>7}")
    for key, values in samples.items():
        name, _, threads = key.partition("/")
        print(
            f"{name:<12} {threads:>7} {statistics.median(values):7.0f} {min(values):7.0f} {max(values):7.0f}", end=""
        )
        if name != EMPTY:
            own = [a - b for a, b in zip(values, samples[f"{EMPTY}/{threads}"], strict=True)]
            print(f" {statistics.median(own):12.0f} {min(own):7.0f} {max(own):7.0f}", end="")
        print()
    costs = measured_costs()
    print(
        f"\nas the monitor itself measures it: timed {costs.timed_s * 1e9:.0f}, counted {costs.counted_s * 1e9:.0f}"
    )
    now = datetime.now(UTC)
    kept = ROOT / "outputs" / "benchmarks" / f"monitor-{now:%Y%m%dT%H%M%SZ}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    content = {"calls": num_calls, "created_at": now.isoformat(), "load": load, **facts, "ns": samples}
    kept.write_text(json.dumps(content, indent=1) + "\n")
    print(f"samples: {kept.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
