"""Tuning: the buckets that suit the sizes really seen, by an artifact's measured latencies, beside today's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import acquire, capturing, planning
from .config import BATCH, DimConfig, GraphsConfig, Settings
from .context import Context
from .errors import ConfigError
from .planning import Timed
from .runtime.buckets import Choice, choose, judge
from .runtime.plans import Latencies
from .store import Store


def tune_buckets(context: Context, store: Store) -> list[dict[str, Any]]:
    """One row: the chosen buckets and today's, what each is expected to take, and the histogram.

    The artifact is acquired and timed where that was not done before.

    Raises:
        AppError: there is no histogram, or no artifact.
    """
    histogram = read_histogram(context.settings)
    known = _timed(context, store, histogram)
    if known is None:
        raise ConfigError(_why_not(context))
    if not known.captured and context.settings.task.name != "profile":
        context.warn("buckets pay where CUDA graphs are captured for them: without, any size may run as it is")
    return [_judged(context.settings.graphs, histogram, known)]


def _judged(graphs: GraphsConfig, histogram: Mapping[int, int], known: Timed) -> dict[str, Any]:
    cost_ms = _cost_of(known)
    chosen = _choose(graphs, histogram, known)
    then, now = (judge(histogram, buckets, cost_ms) for buckets in (chosen.buckets, graphs.batch_sizes))
    return {
        "set": f"graphs.batch_sizes=[{','.join(map(str, chosen.buckets))}]",
        "chosen": {"buckets": list(chosen.buckets), **asdict(then), "graph_bytes": chosen.size_bytes},
        "today": {"buckets": sorted(graphs.batch_sizes), **asdict(now)},
        # what the calls take without any buckets, and padded to the largest of them
        "as_it_is": asdict(judge(histogram, [*histogram], cost_ms)),
        "static": asdict(judge(histogram, [max(histogram)], cost_ms)),
        "captured": bool(known.captured),
        "saving_percent": 100 * (1 - then.expected_ms / now.expected_ms),
        "num_calls": sum(histogram.values()),
        "histogram": {str(size): calls for size, calls in sorted(histogram.items())},
    }


def tune(context: Context, store: Store) -> None:
    """Put the batch sizes that suit the histogram into the run's settings, and the record: `graphs=auto`.

    Raises:
        AppError: there is no histogram, or no artifact.
    """
    graphs, histogram = context.settings.graphs, read_histogram(context.settings)
    known = _timed(context, store, histogram)
    if known is None:
        context.warn(f"graphs=auto: {_why_not(context)}; the batch sizes stay {graphs.batch_sizes}")
        return
    tuned = context.record.tuned = _judged(graphs, histogram, known)
    context.settings = _with(context.settings, tuned["chosen"]["buckets"])


def _with(settings: Settings, sizes: list[int]) -> Settings:
    return replace(settings, graphs=replace(settings.graphs, batch_sizes=sizes))


def _timed(context: Context, store: Store, histogram: Mapping[int, int]) -> Timed | None:
    """The latencies of powers of two up to the largest size seen, and of that; kept ones where there are."""
    largest, before = max(histogram), context.settings
    grid = sorted({largest, min(histogram), *(2**power for power in range(largest.bit_length()))} - {0})
    low = before.model.dims.get(BATCH, DimConfig()).min
    # what a service loads by name are the settings that were asked for, not these
    unnamed = replace(before, cache=replace(before.cache, alias=None))
    context.settings = _with(unnamed, [size for size in grid if low <= size <= largest])
    try:
        found = acquire.acquire(context, store)
        known = planning.kept_for(context, store, found) if before.graphs.plan == "kept" else None
        if known is None or bool(known.captured) != capturing.wanted(context):
            from .runtime.model import CompiledModel

            model = acquire.load(context, found)
            try:
                capturing.capture(context, model)
                known = planning.settle(context, store, found, model)
            finally:
                if isinstance(model, CompiledModel):
                    model.release()  # the graphs that will serve are others
    finally:
        context.settings = before
    return known


def _why_not(context: Context) -> str:
    why = context.record.unsplittable or "graphs.plan=off, or it is served by torch.compile"
    return f"this model has no batch plans to choose buckets for: {why}"


def _cost_of(known: Timed) -> Callable[[int], float]:
    """What was measured of buckets, and between them what it comes to; of other dimensions the largest sizes."""
    latencies = known.latencies[max(known.latencies, key=math.prod)]
    return Latencies({}, latencies.buckets).run_dynamic


def _choose(graphs: GraphsConfig, histogram: Mapping[int, int], known: Timed) -> Choice:
    taken = sorted(known.size_bytes.items())

    def bytes_of(size: int) -> int:
        """What the next captured size took; beyond the largest in proportion."""
        beyond = taken[-1][1] * size // taken[-1][0] if taken else 0
        return next((used for captured, used in taken if captured >= size), beyond)

    limit = graphs.memory_limit_bytes if taken else None
    try:
        return choose(histogram, _cost_of(known), most=graphs.max_buckets, bytes_of=bytes_of, memory=limit)
    except ValueError as error:
        raise ConfigError(f"graphs.memory_limit={graphs.memory_limit!r}: {error}") from error


def read_histogram(settings: Settings) -> dict[int, int]:
    """Calls by batch size, from `graphs.histogram`: {size: calls}, or a record whose monitor has that.

    Raises:
        ConfigError: it isn't given, or isn't that.
    """
    given = settings.graphs.histogram
    if given is None:
        raise ConfigError(
            "graphs.histogram is not given: name a JSON file like {'3': 120, '8': 40}, the stats() of a model, or a "
            "record.json"
        )
    name = f"graphs.histogram={given!r}"
    try:
        found = json.loads(Path(given).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{name} is not JSON: {error}") from error
    if isinstance(found, dict) and "schema" in found:  # a record: its monitor is what a model's stats() were
        found = found.get("monitor")
        if not isinstance(found, dict) or "batch_sizes" not in found:
            raise ConfigError(f"{name} is a record without monitor.batch_sizes: its run served no calls")
    if isinstance(found, dict) and "batch_sizes" in found:
        found = found["batch_sizes"]
    return _checked(name, found, settings.model.dims.get(BATCH, DimConfig()))


def _checked(name: str, found: Any, batch: DimConfig) -> dict[int, int]:
    if not isinstance(found, Mapping) or not all(map(_is_count, found, found.values())):
        raise ConfigError(f"{name} must hold calls by batch size, like {{'3': 120, '8': 40}}")
    sizes = {int(size): calls for size, calls in found.items() if calls}
    if not sizes:
        raise ConfigError(f"{name} holds no calls")
    for size in sizes:
        if not batch.min <= size <= batch.max:
            raise ConfigError(f"{name}: size {size} is not within model.dims.batch, {batch.min} to {batch.max}")
    return sizes


def _is_count(size: str, calls: Any) -> bool:
    return size.isascii() and size.isdigit() and isinstance(calls, int) and not isinstance(calls, bool) and calls >= 0
