"""What the monitor found, for other programs: JSON, a Prometheus text file, a trace; and what a run writes of it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError
from ..files import write_text
from . import SimplePerformanceMonitor, performance_monitor
from .histogram import PERCENTILES

if TYPE_CHECKING:
    from ..context import Context

PREFIX = "app_operation"


def to_prometheus(monitor: SimplePerformanceMonitor) -> str:
    """The text exposition format, version 0.0.4: seconds by operation as a summary, errors, and what is sampled."""
    metrics = {_label(name): each for name, each in sorted(monitor.get_metrics().items())}
    lines = [f"# HELP {PREFIX}_seconds Time of calls.", f"# TYPE {PREFIX}_seconds summary"]
    for label, each in metrics.items():
        lines += [
            f'{PREFIX}_seconds{{operation="{label}",quantile="{percent / 100}"}} {each[f"p{percent}"]!r}'
            for percent in PERCENTILES
        ]
        lines += [
            f'{PREFIX}_seconds_sum{{operation="{label}"}} {each["total_time"]!r}',
            f'{PREFIX}_seconds_count{{operation="{label}"}} {each["call_count"]}',
        ]
    for name, kind, text, value in (
        ("errors_total", "counter", "Calls that raised.", "error_count"),
        ("sampled_one_in", "gauge", "One call in how many is timed.", "sampled_one_in"),
        ("stopped", "gauge", "1 where calls are no longer counted.", "stopped"),
    ):
        lines += [f"# HELP {PREFIX}_{name} {text}", f"# TYPE {PREFIX}_{name} {kind}"]
        lines += [f'{PREFIX}_{name}{{operation="{label}"}} {int(each[value])}' for label, each in metrics.items()]
    return "\n".join(lines) + "\n"


def _label(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def to_trace(monitor: SimplePerformanceMonitor) -> str:
    """Chrome's Trace Event format, which Perfetto and chrome://tracing open: the last calls that were timed.

    Coroutines and generators overlap within a thread, so they have tracks of their own; a generator's event begins
    at its first step, and is as long as all its steps.
    """
    pid = os.getpid()
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    events: list[dict[str, Any]] = [_meta("process_name", pid, 0, "app")]
    tids: set[int] = set()
    for number, (name, kind, began, seconds, tid) in enumerate(monitor.events):
        tids.add(tid)
        place = {"name": name, "cat": "operation", "pid": pid, "tid": tid, "ts": began * 1e6}
        if kind == "plain":
            events.append({**place, "ph": "X", "dur": seconds * 1e6})
        else:
            place["id"] = number
            events += [{**place, "ph": "b"}, {**place, "ph": "e", "ts": (began + seconds) * 1e6}]
    events += [_meta("thread_name", pid, tid, names[tid]) for tid in sorted(tids & names.keys())]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, allow_nan=False) + "\n"


def _meta(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def write(path: Path | str, text: str) -> None:
    """Replace a file so that whoever scrapes it finds the old text or the new one.

    Raises:
        OutputError: it can't be written.
    """
    write_text(Path(path).expanduser(), text)


@contextmanager
def monitored(context: Context) -> Iterator[None]:
    """Count a run from zero, as its config says; in the end put the figures into its record and into their files.

    A file that can't be written is a warning: the run has done what it was for.
    """
    config, monitor = context.settings.monitor, performance_monitor
    was = (monitor.enabled, monitor.max_overhead)
    monitor.set_max_overhead(config.max_overhead)
    monitor.switch(config.enabled)
    monitor.trace(config.trace is not None)
    monitor.reset_metrics()
    try:
        yield
    finally:
        if (report := monitor.report())["total_calls"]:
            context.record.monitor = {**(context.record.monitor or {}), "operations": report}
        exports: dict[str, tuple[str | None, Callable[[SimplePerformanceMonitor], str]]] = {
            "json": (config.json, SimplePerformanceMonitor.to_json),
            "prometheus": (config.prometheus, to_prometheus),
            "trace": (config.trace, to_trace),
        }
        for name, (path, make) in exports.items():
            if path is not None:
                try:
                    write(path, make(monitor))
                except OutputError as error:
                    context.warn(f"monitor.{name}: {error.message}")
        monitor.trace(False)
        monitor.set_max_overhead(was[1])
        monitor.switch(was[0])
