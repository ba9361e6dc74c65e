"""One timed operation: counts that are exact without a lock, durations as a histogram, and what timing may cost.

The hot path is two reads of the clock and one `list.append`, which CPython makes atomic: any thread may append, only
who holds the lock takes away. Every `BATCH` durations whoever finds the list full folds it into the histogram, so
that memory doesn't grow with calls, and there is nothing that a thread could leave behind when it ends.
"""

from __future__ import annotations

import itertools
import logging
import threading
from threading import get_native_id
from typing import Any

from .histogram import Batch, Durations
from .overhead import RATES, Policy

logger = logging.getLogger(__name__)

# Durations that a list holds before it is folded: folding them takes some 40 us, which one call pays.
BATCH = 256
# The same where one call in k is timed: fewer, or a decision would wait for hundreds of thousands of calls.
SAMPLED_BATCH = 32
# How many times over its batch a list may grow while another thread folds, before a call waits for that thread.
MOST_BATCHES = 64
# Windows in a row that must cost too much before fewer calls are timed: one slow or quick spell decides nothing.
PATIENCE = 3
# An operation is given up for only when counting it has cost this much.
STOP_AFTER_S = 0.2


class Tally:
    """A count that threads add to without a lock: a C iterator hands out each number once."""

    __slots__ = ("_count", "add")

    def __init__(self) -> None:
        self._count = itertools.count()
        self.add = self._count.__next__

    def read(self) -> int:
        """How many numbers were taken; only its repr tells without taking one: `count(7)`."""
        return int(repr(self._count)[len("count(") : -1])


class Regime:
    """A time during which one call in `every` is timed; 0 is none. A call belongs to the one that it began in."""

    __slots__ = ("_errors", "_tally", "_tracing", "buffer", "every", "fail", "limit", "tick", "timed", "timed_s")

    def __init__(self, every: int, *, tracing: bool = False) -> None:
        self.every, self.buffer = every, list[float]()
        self._tally, self._errors = Tally(), Tally()
        self.tick, self.fail = self._tally.add, self._errors.add
        self.timed, self.timed_s = 0, 0.0
        self._tracing, self.limit = tracing, 0
        self.trace(tracing)

    @property
    def batch(self) -> int:
        """Durations that are folded together."""
        return BATCH if self.every == 1 else SAMPLED_BATCH

    def trace(self, tracing: bool) -> None:
        """While tracing, every timed call is looked at: a limit of 0 costs nothing while not."""
        self._tracing = tracing
        self.limit = 0 if tracing else self.batch

    def put_off(self) -> None:
        """Another thread folds: look again a batch later. A race with its end costs no more than that."""
        if not self._tracing:
            self.limit = len(self.buffer) + self.batch

    def take(self) -> Batch | None:
        """The durations so far, each handed out once; the lock is held."""
        values = self.buffer[:]
        del self.buffer[: len(values)]  # others append behind these meanwhile
        self.trace(self._tracing)
        if not values:
            return None
        batch = Batch.of(values)
        self.timed += len(values)
        self.timed_s += batch.total
        return batch

    def calls(self) -> int:
        """All calls, timed or not; the lock is held and the buffer taken."""
        return self.timed if self.every == 1 else self._tally.read()

    def errors(self) -> int:
        """Calls that raised."""
        return self._errors.read()


OFF = Regime(0)


class Operation:
    """The calls of one name.

    Attributes:
        regime: What a call that begins now is told; read once a call, without a lock.
    """

    def __init__(self, name: str, policy: Policy, *, enabled: bool = True) -> None:
        self.name, self.policy = name, policy
        self._enabled, self._folding = enabled, False
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Begin anew. A call that is under way ends in the regime that it began in, which nobody reads any more."""
        with self._lock:
            self._durations = Durations()
            self._window, self._window_s, self._over = 0, 0.0, 0
            self._stopped = False
            self.steps = 1.0  # of a generator, on average: each is timed by itself
            self._live = Regime(1, tracing=self.policy.events is not None)
            self._regimes = [self._live]
            self.switch(self._enabled)

    def after_fork(self) -> None:
        """Begin anew in the child, whatever another thread of the parent was doing with the lock."""
        self._lock, self._folding = threading.RLock(), False
        self.reset()

    def switch(self, enabled: bool) -> None:
        """Count calls that begin from now on, or don't."""
        with self._lock:
            self._enabled = enabled
            self.regime = self._live if enabled and not self._stopped else OFF

    def trace(self, tracing: bool) -> None:
        """Put calls into the policy's events too, or don't."""
        with self._lock:
            for regime in self._regimes:
                regime.trace(tracing)

    def record(self, seconds: float) -> None:
        """Count one call that took so long."""
        regime = self.regime
        every = regime.every
        if every != 1 and (every == 0 or regime.tick() % every):
            return
        buffer = regime.buffer
        buffer.append(seconds)
        if len(buffer) >= regime.limit:
            self.attend(regime, self.policy.clock() - seconds, seconds)

    def attend(self, regime: Regime, began: float, seconds: float, kind: str = "plain") -> None:
        """What few calls need: an event for the trace, and to fold a full buffer unless another thread does."""
        events, size = self.policy.events, len(regime.buffer)
        if events is not None:
            events.append((self.name, kind, began, seconds, get_native_id()))
        if size < regime.batch:
            return
        # a bound on memory, even where the thread that folds is not given the processor for long
        if not self._lock.acquire(timeout=0.0 if size < MOST_BATCHES * regime.batch else 1.0):
            regime.put_off()
            return
        try:
            said = self._fold()
        finally:
            self._lock.release()
        if said:
            logger.warning(said)  # not under the lock: a handler may be timed itself

    def metrics(self) -> dict[str, Any]:
        """Seconds and counts, as SimplePerformanceMonitor.get_metrics describes them; empty before the first call."""
        with self._lock:
            said = self._fold()
            regimes = [(regime.every, regime.calls(), regime.timed, regime.timed_s) for regime in self._regimes]
            errors = sum(regime.errors() for regime in self._regimes)
            found, every, stopped, steps = self._durations.summary(), self._live.every, self._stopped, self.steps
        if said:
            logger.warning(said)
        calls, timed = sum(each[1] for each in regimes), sum(each[2] for each in regimes)
        if not calls:
            return {}
        average = sum(each[3] for each in regimes) / max(timed, 1)
        total = sum(
            timed_s if rate == 1 else count * (timed_s / num if num else average)
            for rate, count, num, timed_s in regimes
        )
        cost = self.policy.cost()
        return {
            "call_count": calls,
            "error_count": errors,
            "total_time": total,
            "avg_time": total / calls,
            **found,
            "calls_per_second": calls / total if total else 0.0,
            "timed_count": timed,
            "sampled_one_in": every,
            "stopped": stopped,
            "overhead_time": timed * cost.timed_s * steps + (calls - timed) * cost.counted_s,
        }

    def _fold(self) -> str | None:
        """Put every buffer into the figures; the lock is held. Returns what is to be said about it."""
        if self._folding:  # a signal's handler, in the thread that folds: it reads what there was before
            return None
        self._folding, said, durations = True, None, self._durations
        try:
            for regime in tuple(self._regimes):
                if batch := regime.take():
                    durations.add(batch, regime.every)
                    if regime is self._live and not self._stopped:
                        said = self._judge(batch) or said
        finally:
            self._folding = False
        return said

    def _judge(self, batch: Batch) -> str | None:
        """Time fewer calls where it costs too much; never more again before a reset, so that nothing flaps."""
        self._window += len(batch.values)
        self._window_s += batch.total
        if self._window < self._live.batch:
            return None
        call_s, self._window, self._window_s = self._window_s / self._window, 0, 0.0
        every, wanted = self._live.every, self.policy.wanted(call_s, self.steps)
        self._over = self._over + 1 if wanted == 0 or wanted > every else 0
        if self._over < PATIENCE:
            return None
        if wanted == 0 and every == RATES[-1]:
            return self._stop(call_s)
        self._over = 0
        self._live = Regime(wanted or RATES[-1], tracing=self.policy.events is not None)
        self._regimes.append(self._live)
        self.regime = self._live if self._enabled else OFF
        return None

    def _stop(self, call_s: float) -> str | None:
        cost = self.policy.cost().counted_s
        if self._live.calls() * cost < STOP_AFTER_S:
            return None
        self._stopped, self.regime = True, OFF
        return (
            f"monitor: {self.name} is no longer counted: a call takes {call_s * 1e6:.2g} us, and to count it "
            f"{cost * 1e6:.2g} us, more than monitor.max_overhead={self.policy.max_overhead} allows"
        )
