"""Planning: the latencies that batch plans are made of, measured once for an artifact, kept, and used again.

Another plan can change the last bits of an output, so latencies are measured again only when somebody asks
(`graphs.plan=measure`).
"""

from __future__ import annotations

import logging
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import environment
from .config import BATCH, Settings
from .errors import StoreError
from .keys import digest
from .lookup import Found
from .monitor import performance_monitor
from .store import Store
from .store.trust import pack, unpack

if TYPE_CHECKING:
    from .context import Context
    from .runtime.jit import JitModel
    from .runtime.model import CompiledModel
    from .runtime.plans import Latencies

logger = logging.getLogger(__name__)

FOLDER = "plans"
# Multiples of the largest bucket that are timed too: twice as much need not take twice as long.
BEYOND = (2, 8)
ROUNDS = {"warmup": 3, "min_samples": 5, "max_samples": 200}


@dataclass(frozen=True)
class Timed:
    """What was measured of an artifact.

    Attributes:
        latencies: By the other dimensions' buckets; one entry of nothing where there are none.
        captured: What had a CUDA graph: latencies with other graphs say nothing.
        size_bytes: What the graphs of a batch size added when they were captured, largest first.
    """

    latencies: Mapping[tuple[int, ...], Latencies]
    captured: list[list[int]] = field(default_factory=list)
    size_bytes: Mapping[int, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "latencies": [[list(others), known.to_json()] for others, known in self.latencies.items()],
            "captured": self.captured,
            "size_bytes": {str(size): taken for size, taken in self.size_bytes.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Timed:
        """Read it back; raises `KeyError`, `TypeError`, `ValueError` or `AttributeError` on anything else."""
        from .runtime.plans import Latencies

        latencies = {tuple(map(int, others)): Latencies.from_json(known) for others, known in data["latencies"]}
        if not latencies:
            raise ValueError("it holds no latencies")
        return cls(
            latencies,
            [[int(size) for size in sizes] for sizes in data["captured"]],
            {int(size): int(taken) for size, taken in data["size_bytes"].items()},
        )


def settle(
    context: Context, store: Store, found: Found, model: CompiledModel | JitModel, *, measuring: bool = True
) -> Timed | None:
    """Give a model its batch plans: those that are kept, or, where `measuring` is allowed, new ones."""
    from .runtime.model import CompiledModel

    graphs = context.settings.graphs
    if not isinstance(model, CompiledModel):  # torch.compile's code runs every size as it is
        return None
    for dim in sorted(model.unpaddable.keys() & {BATCH, *graphs.buckets}):
        logger.info("calls run as they are in their %s: %s", dim, model.unpaddable[dim])
    context.record.unsplittable = model.unpaddable.get(BATCH)
    if graphs.plan == "off" or BATCH in model.unpaddable:
        return None
    known = kept(store, _subject(context, found)) if graphs.plan == "kept" or not measuring else None
    captured = [list(size) for size in model.captured]
    if known is None or known.captured != captured or list(known.latencies) != model.others:
        if not measuring:
            logger.info("no latencies are kept for these batch sizes: calls run as they are; a benchmark keeps them")
            return None
        with context.phases("plan", about="plan: time the batch sizes, once for this artifact", still=True):
            latencies = {others: _measure(context, model, others) for others in model.others}
        known = Timed(latencies, captured, _bytes(model))
        _keep(context, store, _subject(context, found), known)
    model.use(known.latencies)
    return known


def kept_for(context: Context, store: Store, found: Found) -> Timed | None:
    """What `kept` finds for a run."""
    return kept(store, _subject(context, found))


def kept(store: Store, subject: dict[str, Any]) -> Timed | None:
    """What an earlier run measured of the artifact, at these batch sizes on such a machine; None where none did."""
    document = store.document(FOLDER, _name(subject))
    if document is None:
        return None
    try:
        content = unpack(document, store.trust)
        return Timed.from_json(content["timed"]) if content["subject"] == subject else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        logger.warning(
            "the kept batch plan of %s can't be used, so it is made again: %s", subject["object"][:12], error
        )
        return None


def _subject(context: Context, found: Found) -> dict[str, Any]:
    context.import_torch()
    import torch

    gpu = torch.cuda.get_device_name(context.device) if context.device != "cpu" else None
    return subject(context.settings, found, context.device, torch.get_num_threads(), gpu)


def subject(settings: Settings, found: Found, device: str, threads: int, gpu: str | None = None) -> dict[str, Any]:
    """What latencies are true of: the artifact, its buckets, and the machine as far as it sets the pace."""
    graphs = settings.graphs
    return {
        "type": "plan",
        "object": found.artifact.digest,
        "buckets": sorted(graphs.batch_sizes),
        "others": {dim: sorted(sizes) for dim, sizes in graphs.buckets.items()},
        "graphs": [graphs.enabled, graphs.outputs, graphs.max_graphs, graphs.memory_limit],
        "device": device,
        "cpu": environment.cpu_name(),
        "threads": threads,
        "gpu": gpu,
        "machine": platform.machine(),
    }


def _name(subject: dict[str, Any]) -> str:
    return f"{subject['object'][:32]}-{digest(subject)[:16]}"


def _keep(context: Context, store: Store, subject: dict[str, Any], known: Timed) -> None:
    if store.readonly:
        return
    try:
        store.write_document(
            FOLDER, _name(subject), pack({"subject": subject, "timed": known.to_json()}, store.trust)
        )
    except StoreError as error:
        context.warn(f"{error.message}: the next run will time the batch sizes again")


def _measure(context: Context, model: CompiledModel, others: tuple[int, ...]) -> Latencies:
    import torch

    from .measure.clock import clock_for
    from .measure.samples import measure
    from .measure.statistics import summarise
    from .runtime.plans import Latencies, Plan, Step

    low, high = model.batch_range
    sizes = sorted({min(max(low, size), high) for size in context.settings.graphs.batch_sizes})
    beyond = {min(factor * sizes[-1], high) for factor in BEYOND} - set(sizes)
    given = {size: context.workload.call(size, others=model.sizes(others)) for size in (*sizes, *sorted(beyond))}
    watched = performance_monitor.monitor("inference/plan")
    calls: dict[str, Any] = {
        str(size): watched(lambda given=call: model.as_it_is(*given[0], **given[1])) for size, call in given.items()
    }
    replayed = [size for size in sizes if (size, *others) in model.captured]
    for size in replayed:
        plan = Plan((Step(size, size),), 0.0)
        calls[f"replayed {size}"] = watched(lambda plan=plan, given=given[size]: model.by(plan, *given))
    with torch.inference_mode():
        two = min(max(sizes[-1], 2), high)
        calls |= model.overheads(*context.workload.call(two, others=model.sizes(others)))
        taken = measure(calls, clock_for(context.device), **ROUNDS, budget_s=context.settings.measure.budget_s)
    # the fastest of each: what disturbs a call only adds to it, and a plan is kept for long
    fastest = {name: summarise(samples).min for name, samples in taken.items()}
    dynamic = {size: fastest[str(size)] for size in given}
    buckets = {size: fastest[f"replayed {size}" if size in replayed else str(size)] for size in sizes}
    return Latencies(buckets, dynamic, pad_ms=fastest.get("pad", 0.0), split_ms=fastest.get("split", 0.0))


def _bytes(model: CompiledModel) -> dict[int, int]:
    """What graphs take, by batch size."""
    found: Counter[int] = Counter()
    for size, taken in model.stats().get("graphs", {}).get("bytes_by_size", {}).items():
        found[int(size.partition("x")[0])] += max(0, taken)
    return dict(found)
