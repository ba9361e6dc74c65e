"""SimplePerformanceMonitor: how often and how long named operations run, for less than a microsecond a call.

    from app.monitor import monitor_inference, performance_monitor

    @monitor_inference
    def predict(x): ...

    with performance_monitor.time_operation("tokenise"):
        ...
    performance_monitor.get_metrics("inference")["p99"]

Any number of threads may record at the same time. In the child of a fork all counts begin at zero, and a call that
was under way counts in the parent only: summed over the processes, every call counts once.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, Protocol, TypeVar, overload

from .operation import Operation
from .overhead import Costs, Event, Policy
from .wrapping import Block, wrap

F = TypeVar("F", bound=Callable[..., Any])

# A name made of a request's id would grow without end: beyond this many, all go into one operation.
MOST_NAMES = 500
OTHERS = "other operations"
MOST_EVENTS = 50_000
NUM_TOP = 10


class SimplePerformanceMonitor:
    """Times named operations. The program's own instance is `performance_monitor`.

    Args:
        max_overhead: Where timing adds more than this share to an operation's own time, one call in k is timed;
            where even counting does, the operation is given up, with one line in the log.
        clock: Seconds, monotonic; a test passes its own.
        costs: What timing costs; measured on this machine when it is first needed unless given.
    """

    def __init__(
        self,
        *,
        enabled: bool = True,
        max_overhead: float = 0.02,
        clock: Callable[[], float] = perf_counter,
        costs: Costs | None = None,
    ) -> None:
        self._policy = Policy(max_overhead, clock, costs)
        self._enabled = enabled
        self._operations: dict[str, Operation] = {}
        self._lock = threading.RLock()
        _monitors.add(self)

    @property
    def enabled(self) -> bool:
        """Whether calls are counted."""
        return self._enabled

    @property
    def max_overhead(self) -> float:
        """The share of an operation's time that the monitor may add."""
        return self._policy.max_overhead

    @property
    def events(self) -> list[Event]:
        """The last calls that were timed while a trace was kept."""
        return list(self._policy.events or ())

    def operation(self, name: str) -> Operation:
        """The operation of this name: its `record(seconds)` is the cheapest way to count what is timed elsewhere."""
        found = self._operations.get(name)
        if found is None:
            with self._lock:
                if len(self._operations) >= MOST_NAMES and name not in self._operations:
                    name = OTHERS
                if name not in self._operations:
                    self._operations[name] = Operation(name, self._policy, enabled=self._enabled)
                found = self._operations[name]
        return found

    def monitor(self, name: str) -> Callable[[F], F]:
        """Decorate what is to be timed: a function, an async one, a generator of either kind, or an object.

        Of a coroutine all time from its first step to its end counts, what it awaits included. Of a generator, from
        the first `next` on, only the time inside of it does, not its consumer's. On a GPU a call may return before
        its kernels have run. What raises counts as a call and as an error.
        """
        return partial(wrap, self.operation(name))

    def time_operation(self, name: str) -> Block:
        """Time a `with` block."""
        block = Block()
        try:
            block.operation = self._operations[name]
        except KeyError:
            block.operation = self.operation(name)
        return block

    def get_metrics(self, name: str | None = None) -> dict[str, Any]:
        """What is known of one operation; of all, by name, where none is given.

        Times are in seconds: `total_time`, `avg_time`, `min_time`, `max_time`, `recent_avg` (the last 100 timed),
        `p50`, `p90`, `p99` (within 1 %). `calls_per_second` is calls by the operation's own time. `call_count` and
        `error_count` are exact. Where `sampled_one_in` is k > 1, times are those of one call in k, and `total_time`
        is estimated from them; where `stopped`, calls are no longer counted. `overhead_time` is what the monitor
        itself took, estimated. A name without calls gives an empty dict.
        """
        if name is not None:
            found = self._operations.get(name)
            return found.metrics() if found else {}
        every = ((each, operation.metrics()) for each, operation in tuple(self._operations.items()))
        return {each: metrics for each, metrics in every if metrics}

    def get_summary(self) -> dict[str, Any]:
        """Totals over all operations, those that took longest, and which of them are sampled or given up.

        `overhead` is the monitor's own share of the time of the operations, estimated. An operation inside of
        another counts in both.
        """
        return self.report(details=False)

    def report(self, *, details: bool = True) -> dict[str, Any]:
        """The summary, and the metrics it was made from as `metrics`."""
        metrics = self.get_metrics()
        total = sum(each["total_time"] for each in metrics.values())
        top = sorted(metrics, key=lambda name: -metrics[name]["total_time"])[:NUM_TOP]
        shown = ("total_time", "call_count", "avg_time")
        return {
            "enabled": self._enabled,
            "total_operations": len(metrics),
            "total_calls": sum(each["call_count"] for each in metrics.values()),
            "total_time": total,
            "top_operations": [{"name": name, **{field: metrics[name][field] for field in shown}} for name in top],
            "overhead": sum(each["overhead_time"] for each in metrics.values()) / total if total else 0.0,
            "sampled": {name: each["sampled_one_in"] for name, each in metrics.items() if each["sampled_one_in"] > 1},
            "stopped": [name for name, each in metrics.items() if each["stopped"]],
            **({"metrics": metrics} if details else {}),
        }

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.report(), indent=2, allow_nan=False) + "\n"

    def reset_metrics(self, name: str | None = None) -> None:
        """Forget one operation's calls, or all; what was sampled or given up is timed at every call again."""
        with self._lock:
            wanted = [name] if name is not None else list(self._operations)
            for each in wanted:
                if each in self._operations:
                    self._operations[each].reset()
            if name is None and self._policy.events is not None:
                self._policy.events.clear()

    def enable(self) -> None:
        """Count calls that begin from now on."""
        self.switch(True)

    def disable(self) -> None:
        """Count no calls that begin from now on; what was counted stays."""
        self.switch(False)

    def set_max_overhead(self, share: float) -> None:
        """Allow another share, for operations not yet sampled; `reset_metrics` has all of them judged anew."""
        self._policy.max_overhead = share

    def trace(self, on: bool) -> None:
        """Keep the last calls one by one, or don't and forget them: each costs a further half microsecond."""
        with self._lock:
            self._policy.events = deque(maxlen=MOST_EVENTS) if on else None
            for operation in self._operations.values():
                operation.trace(on)

    def switch(self, enabled: bool) -> None:
        """Enable or disable it."""
        with self._lock:
            self._enabled = enabled
            for operation in self._operations.values():
                operation.switch(enabled)

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        if self._policy.events is not None:
            self._policy.events.clear()
        for operation in self._operations.values():
            operation.after_fork()


_monitors: weakref.WeakSet[SimplePerformanceMonitor] = weakref.WeakSet()


def _after_fork() -> None:
    for monitor in list(_monitors):
        monitor._after_fork()  # noqa: SLF001 - no user's business


os.register_at_fork(after_in_child=_after_fork)

performance_monitor = SimplePerformanceMonitor()


class Decorator(Protocol):
    """Stands bare, `@monitor_inference`, or with a name of one's own, `@monitor_inference("rank")`."""

    @overload
    def __call__(self, name: F) -> F: ...
    @overload
    def __call__(self, name: str | None = None) -> Callable[[F], F]: ...


def _decorator(default: str) -> Decorator:
    def decorate(name: Any = None) -> Any:
        if name is None or isinstance(name, str):
            return performance_monitor.monitor(name or default)
        return performance_monitor.monitor(default)(name)

    decorate.__doc__ = f"Time what is decorated as `{default}`, or under the name that is given."
    return decorate


monitor_inference, monitor_compilation, monitor_evaluation = map(
    _decorator, ("inference", "compilation", "evaluation")
)
