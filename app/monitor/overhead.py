"""What timing a call costs on this machine, and one call in how many may be timed for that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import perf_counter

# One call in how many: primes, or every second call of a program that alternates would never be seen.
RATES = (2, 5, 11, 23, 47, 97, 193, 389, 769)
# Calls of a round that measures the costs: two batches, so that folding them is in it.
CALLS = 512
# Timing costs less on any machine: what allows as much is not worth 2 ms to measure.
SURELY_S = 5e-6
# What is measured costs at least this, however the rounds came out.
LEAST_S = 1e-9

# Name, `plain` or `async`, when it began and how long it took (seconds), the thread's id.
Event = tuple[str, str, float, float, int]


@dataclass(frozen=True)
class Costs:
    """Seconds that a call costs more when it is timed, and when it is only counted."""

    timed_s: float
    counted_s: float


@cache
def measured_costs() -> Costs:
    """What it costs on this machine: the best of a few rounds around an empty function, about 2 ms in all."""
    from .operation import Operation
    from .wrapping import wrap

    def empty() -> None:
        pass

    timed, counted = (Operation("calibration", Policy(costs=Costs(0.0, 0.0))) for _ in range(2))
    counted.regime.every = 1_000_003
    counted.regime.tick()  # the first is a call whose turn it is
    bare, with_time, with_count = (
        min(_seconds_for(function, CALLS) for _ in range(4)) / CALLS
        for function in (empty, wrap(timed, empty), wrap(counted, empty))
    )
    return Costs(max(with_time - bare, LEAST_S), max(with_count - bare, LEAST_S))


def _seconds_for(function: Callable[[], None], times: int) -> float:
    began = perf_counter()
    for _ in range(times):
        function()
    return perf_counter() - began


@dataclass
class Policy:
    """What all operations of a monitor share.

    Attributes:
        max_overhead: The share of an operation's time that timing it may add.
        clock: Seconds, monotonic.
        costs: What timing costs; null measures it when it is first needed.
        events: Where timed calls go while a trace is kept.
    """

    max_overhead: float = 0.02
    clock: Callable[[], float] = perf_counter
    costs: Costs | None = None
    events: deque[Event] | None = None

    def cost(self) -> Costs:
        """What timing costs."""
        return self.costs or measured_costs()

    def wanted(self, call_s: float, steps: float = 1.0) -> int:
        """One call in how many may be timed, for calls that take `call_s`; 0 where even counting is too much."""
        allowed = self.max_overhead * call_s
        if self.costs is None and allowed > steps * SURELY_S:
            return 1
        cost = self.cost()
        if cost.timed_s * steps <= allowed:
            return 1
        spare = allowed - cost.counted_s
        return next((rate for rate in RATES if cost.timed_s * steps / rate <= spare), 0)
