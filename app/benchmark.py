"""Benchmark: the served model against eager, at every batch size, interleaved."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .context import Context
from .fallback import COMPILED, EAGER
from .measure.clock import clock_for
from .measure.samples import Samples, measure, save_samples
from .measure.statistics import Latency, speedup, stability_warnings, summarise
from .record import Memory

Model = Callable[..., Any]


def runners(context: Context, compiled: Model | None) -> dict[str, Model]:
    """What is measured, by the name in the record: eager, the compiled model, and eager in its precision."""
    found: dict[str, Model] = {EAGER: context.workload.module}
    if compiled is not None:
        found[COMPILED] = compiled
    if context.settings.precision.name != "fp32":
        found[f"{EAGER}_{context.settings.precision.name}"] = context.same_precision
    return found


def benchmark(context: Context, compiled: Model | None) -> None:
    """Measure every runner at every batch size, and fill the record's figures."""
    import torch

    settings, workload = context.settings, context.workload
    sizes = settings.graphs.batch_sizes
    if not workload.batched:
        context.warn("the inputs have no dimension named batch: measured as they are, as batch 1")
        sizes = [1]
    models = runners(context, compiled)
    served = compiled or context.same_precision
    args, kwargs = workload.call(sizes[0])
    with torch.inference_mode():
        with context.phases("first_call"):
            served(*args, **kwargs)
        samples: dict[str, Samples] = {}
        about = f"{', '.join(models)} at batch {', '.join(map(str, sizes))}"
        seconds = len(sizes) * settings.measure.budget_s
        with context.phases("measure", about=f"measure {about}: about {seconds:.0f} s", still=True):
            for size in sizes:
                for name, taken in _measure_batch(context, models, size).items():
                    samples[f"{name}/{size}"] = taken
                save_samples(context.folder / "samples.npz", samples)
    fill(context, samples, sizes)


def _measure_batch(context: Context, models: dict[str, Model], size: int) -> dict[str, Samples]:
    args, kwargs = context.workload.call(size)
    calls = {name: (lambda model=model: model(*args, **kwargs)) for name, model in models.items()}
    settings = context.settings.measure
    return measure(
        calls,
        clock_for(context.device),
        warmup=settings.warmup,
        min_samples=settings.min_samples,
        max_samples=settings.max_samples,
        budget_s=settings.budget_s,
    )


def fill(context: Context, samples: dict[str, Samples], sizes: list[int]) -> None:
    """Put latencies, speed-ups, throughput, memory and doubts into the record."""
    record, precision = context.record, context.settings.precision.name
    latency: dict[str, dict[str, Latency]] = {}
    for key, taken in samples.items():
        name, _, size = key.partition("/")
        latency.setdefault(name, {})[size] = summarise(taken)
        record.warnings += stability_warnings(f"{name}, batch {size}", taken)
    record.latency_ms = latency
    compiled = COMPILED in latency
    served = COMPILED if compiled else EAGER if precision == "fp32" else f"{EAGER}_{precision}"
    record.throughput_per_s = {str(size): 1000.0 * size / latency[served][str(size)].p50 for size in sizes}
    record.rungs = {str(size): COMPILED if compiled else EAGER for size in sizes}
    ratios = {
        size: speedup(samples[f"{EAGER}/{size}"], samples[f"{COMPILED}/{size}"]) if compiled else None
        for size in sizes
    }
    record.speedup = {str(size): found.ratio if found else None for size, found in ratios.items()}
    record.speedup_interval = {
        str(size): [found.low, found.high] if found else None for size, found in ratios.items()
    }
    if compiled and precision != "fp32":
        own = latency[f"{EAGER}_{precision}"]
        record.speedup_same_precision = {
            str(size): own[str(size)].p50 / latency[COMPILED][str(size)].p50 for size in sizes
        }


def measure_memory(context: Context) -> None:
    """Peak memory of this process, and of the device."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    device_peak = None
    if context.device != "cpu" and (torch := sys.modules.get("torch")) is not None:
        device_peak = torch.cuda.max_memory_allocated(context.device)
    memory = context.record.memory or Memory()
    context.record.memory = replace(memory, rss_peak_bytes=peak, device_peak_bytes=device_peak)
