"""Benchmark: the served model against eager, at every batch size, interleaved."""

from __future__ import annotations

import math
import resource
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from .capturing import rung_of
from .config import BATCH, SERVING
from .context import Context
from .fallback import EAGER
from .files import write_text
from .measure.clock import clock_for
from .measure.samples import Samples, measure, save_samples
from .measure.statistics import Latency, speedup, stability_warnings, summarise
from .monitor import performance_monitor
from .record import Memory, PlanInfo
from .report.plot import line_plot

if TYPE_CHECKING:
    from .runtime.ladder import Ladder
    from .runtime.model import CompiledModel

Model = Callable[..., Any]

# How many times its prediction a call may take, or the prediction a call.
FAR = 3.0
# Most batch sizes that a sweep over them times.
MOST_SIZES = 64


def runners(context: Context, ladder: Ladder, model: Model | None) -> dict[str, Model]:
    """What is measured, by the name in the record: eager, what serves, and eager in its precision.

    With CUDA graphs the same artifact without them is measured too.
    """
    found: dict[str, Model] = {EAGER: context.workload.module}
    rungs = context.rungs(model)
    if rungs:
        found |= {**dict(rungs[1:]), rungs[0][0]: ladder}
    if context.settings.precision.name != "fp32":
        found[f"{EAGER}_{context.settings.precision.name}"] = context.same_precision
    # all are timed by the monitor, so that each pays for it alike; the ladder does so by itself
    return {
        name: call if call is ladder else performance_monitor.monitor(f"inference/{name}")(call)
        for name, call in found.items()
    }


def benchmark(context: Context, compiled: Model | None) -> Ladder:
    """Measure every runner at every batch size, and fill the record's figures; returns what served."""
    import torch

    settings, workload = context.settings, context.workload
    sizes = settings.graphs.batch_sizes
    if not workload.batched:
        context.warn("the inputs have no dimension named batch: measured as they are, as batch 1")
        sizes = [1]
    ladder = context.on_ladder(compiled)
    models = runners(context, ladder, compiled)
    args, kwargs = workload.call(sizes[0])
    with torch.inference_mode():
        with context.phases("first_call"):
            ladder(*args, **kwargs)
        samples: dict[str, Samples] = {}
        about = f"{', '.join(models)} at batch {', '.join(map(str, sizes))}"
        seconds = len(sizes) * settings.measure.budget_s
        with context.phases("measure", about=f"measure {about}: about {seconds:.0f} s", still=True):
            for size in sizes:
                for name, taken in _measure_batch(context, models, size).items():
                    samples[f"{name}/{size}"] = taken
                save_samples(context.folder / "samples.npz", samples)
        rungs = {
            str(size): rung_of(compiled, ladder.serve(*workload.call(size))[0], size, workload.sizes(size))
            for size in sizes
        }
    stats = ladder.stats()
    # what was timed by the name of a rung that is no longer tried is the work of those beneath it
    told = {name: taken for name, taken in samples.items() if name.partition("/")[0] not in stats["open"]}
    fill(context, told, sizes)
    context.record.rung, context.record.rungs, context.record.monitor = ladder.best[0], rungs, stats
    return ladder


def _measure_batch(context: Context, models: dict[str, Model], size: int) -> dict[str, Samples]:
    args, kwargs = context.workload.call(size)
    calls = {name: (lambda model=model: model(*args, **kwargs)) for name, model in models.items()}
    return measure(calls, clock_for(context.device), **asdict(context.settings.measure))


def fill(context: Context, samples: dict[str, Samples], sizes: list[int]) -> None:
    """Put latencies, speed-ups, throughput, memory and doubts into the record."""
    record, precision = context.record, context.settings.precision.name
    latency: dict[str, dict[str, Latency]] = {}
    for key, taken in samples.items():
        name, _, size = key.partition("/")
        latency.setdefault(name, {})[size] = summarise(taken)
        record.warnings += stability_warnings(f"{name}, batch {size}", taken)
    record.latency_ms = latency
    compiled = next((rung for rung in SERVING if rung in latency), None)
    runner = compiled or (EAGER if precision == "fp32" else f"{EAGER}_{precision}")
    record.throughput_per_s = {str(size): 1000.0 * size / latency[runner][str(size)].p50 for size in sizes}
    ratios = {
        size: speedup(samples[f"{EAGER}/{size}"], samples[f"{compiled}/{size}"]) if compiled else None
        for size in sizes
    }
    record.speedup = {str(size): found.ratio if found else None for size, found in ratios.items()}
    record.speedup_interval = {
        str(size): [found.low, found.high] if found else None for size, found in ratios.items()
    }
    if compiled and precision != "fp32":
        own = latency[f"{EAGER}_{precision}"]
        record.speedup_same_precision = {
            str(size): own[str(size)].p50 / latency[compiled][str(size)].p50 for size in sizes
        }


def sweep(context: Context, model: Model | None, ladder: Ladder) -> None:
    """Time every batch size up to twice the largest bucket, each by its plan, and plot them: no size is a cliff."""
    import torch

    from .runtime.model import CompiledModel

    if not isinstance(model, CompiledModel) or BATCH in model.unpaddable or context.settings.graphs.plan == "off":
        return
    others = model.others_of(context.workload.sizes())
    sizes = _swept(context, model, others)
    calls = {}
    for size in sizes:
        args, kwargs = context.workload.call(size)
        calls[str(size)] = lambda args=args, kwargs=kwargs: ladder(*args, **kwargs)
    about = f"sweep: time batch {sizes[0]} to {sizes[-1]}"
    with torch.inference_mode(), context.phases("sweep", about=about, still=True):
        rounds = {
            **asdict(context.settings.measure),
            "warmup": 1,
            "min_samples": min(5, context.settings.measure.max_samples),
        }
        taken = measure(calls, clock_for(context.device), **rounds)
    plans = {size: model.plan(size, others) for size in sizes}
    context.record.plans = {
        str(size): PlanInfo(
            steps=str(plan),
            padding=plan.padding,
            predicted_ms=plan.cost_ms if math.isfinite(plan.cost_ms) else None,
            p50_ms=summarise(taken[str(size)]).p50,
        )
        for size, plan in plans.items()
    }
    _doubt(context, context.record.plans)
    lines = {"measured, median": [(size, summarise(taken[str(size)]).p50) for size in sizes]}
    predicted = [(size, plan.cost_ms) for size, plan in plans.items() if math.isfinite(plan.cost_ms)]
    if predicted:
        lines["predicted by the plan"] = predicted
    title = f"{context.settings.model.name}: latency by batch size, {context.device}"
    write_text(context.folder / "batches.svg", line_plot(title, "batch size", "ms", lines))


def _doubt(context: Context, plans: dict[str, PlanInfo]) -> None:
    """Warn of kept latencies that this run's are far from: a machine that was disturbed, or is now."""
    ratios = [plan.p50_ms / plan.predicted_ms for plan in plans.values() if plan.predicted_ms and plan.p50_ms]
    typical = statistics.median(ratios) if ratios else 1.0
    if not 1 / FAR <= typical <= FAR:
        context.warn(
            f"batch plans: calls take {typical:.2g} times what the kept latencies say; "
            "graphs.plan=measure times them again"
        )


def _swept(context: Context, model: CompiledModel, others: tuple[int, ...] | None) -> list[int]:
    """1 to twice the largest bucket, within the batch's range; fewer where that would outlast the budget."""
    low, high = model.batch_range
    sizes = list(range(low, min(2 * max(context.settings.graphs.batch_sizes), high) + 1))
    limit_ms = 1e4 * max(1.0, context.settings.measure.budget_s)
    while len(sizes) > MOST_SIZES or (
        len(sizes) > 4 and sum(model.plan(size, others).cost_ms for size in sizes) > limit_ms
    ):
        sizes = [*sizes[:-1:2], sizes[-1]]
    return sizes


def measure_memory(context: Context) -> None:
    """Peak memory of this process, and of the device."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    device_peak = None
    if context.device != "cpu" and (torch := sys.modules.get("torch")) is not None:
        device_peak = torch.cuda.max_memory_allocated(context.device)
    memory = context.record.memory or Memory()
    context.record.memory = replace(memory, rss_peak_bytes=peak, device_peak_bytes=device_peak)
