"""precision=auto: the fastest precision that passes, resolved before the key is made.

With data the evaluation judges, by `evaluate.max_*` (no row may disagree where neither is given). Without, the
float64 reference does, at the tolerance of fp32 for all: no precision is forgiven its own rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import evaluate
from .acquire import acquire, load, opened
from .config import BATCH, FLOORS, EvaluateConfig, PrecisionConfig, Settings
from .context import Context
from .errors import AppError
from .fallback import COMPILED, EAGER, served
from .measure.clock import clock_for
from .measure.samples import measure
from .measure.statistics import summarise
from .record import CacheInfo, PrecisionCandidate, PrecisionChoice, Record
from .verdict import plan
from .verdict import summarise as summarise_cases

Model = Callable[..., Any]


@dataclass(frozen=True)
class _Tried:
    """A precision that was compiled and judged."""

    model: Model
    figures: PrecisionCandidate
    cache: CacheInfo | None = None


def resolve(context: Context, job: evaluate.Job | None) -> None:
    """Put the precision that is kept into the run's settings, and the decision into its record.

    fp32 is kept where nothing else passes; what is wrong with it the run itself finds.
    """
    given = context.settings
    if given.cache.dir is None:
        context.warn("precision=auto with cache=off compiles what is kept twice")
    tried = {}
    for name in FLOORS:
        with context.phases("precision", about=f"precision=auto: try {name}"):
            tried[name] = _try(context, job, name)
    passing = {name: each for name, each in tried.items() if each.figures.passed}
    batch = given.evaluate.batch_size if job else max(given.graphs.batch_sizes)
    latencies = _latencies(context, passing, batch) if len(passing) > 1 else {}
    kept = min(latencies, key=lambda name: latencies[name]) if latencies else next(iter(passing), "fp32")
    context.record.precision = kept
    context.record.cache = tried[kept].cache  # what the run found before it had compiled it
    context.record.precision_choice = PrecisionChoice(
        kept=kept,
        judge="evaluation" if job else "float64",
        batch=batch,
        candidates=[replace(each.figures, p50_ms=latencies.get(name)) for name, each in tried.items()],
    )
    context.settings = _at(given, kept)


def _at(settings: Settings, name: str) -> Settings:
    """The settings with a precision; the floor that was given is fp32's."""
    floor = settings.precision.floor if name == "fp32" else FLOORS[name]
    return replace(settings, precision=PrecisionConfig(name, floor))


def _try(context: Context, job: evaluate.Job | None, name: str) -> _Tried:
    """Compile or find one precision, in a folder of its own, and judge it."""
    settings = _at(context.settings, name)
    unnamed = replace(settings.cache, alias=None)  # an alias stands for what is kept
    settings = replace(settings, cache=unnamed, evaluate=_limits(settings.evaluate, job))
    folder = context.folder / "precision" / name
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(status="failed", task=settings.task.name, precision=name)
    inner = Context(settings, folder, record, context.phases)
    inner.share(context)
    model = None
    try:
        if settings.mode.engine != EAGER and COMPILED in settings.fallback.rungs:
            with opened(inner) as store:
                model = load(inner, acquire(inner, store))
        record.rung = served(record.fallbacks) if model is not None else EAGER
        ladder = inner.on_ladder(model)
        return _Tried(ladder, _judged(context, inner, job, ladder, name), record.cache)
    except AppError as error:
        return _Tried(inner.on_ladder(None), PrecisionCandidate(name, passed=False, reason=error.message))


def _limits(config: EvaluateConfig, job: evaluate.Job | None) -> EvaluateConfig:
    if job is None or (config.max_metric_drop, config.max_disagreement) != (None, None):
        return replace(config, resume=None)
    return replace(config, resume=None, max_disagreement=0.0)


def _judged(
    context: Context, inner: Context, job: evaluate.Job | None, model: Model, name: str
) -> PrecisionCandidate:
    if job is not None:
        info = evaluate.run(inner, job, model)
        figures = {"metric_drop": info.metric_drop, "disagreement": info.disagreement}
        return PrecisionCandidate(name, info.refusal is None, info.refusal, **figures)
    from .verify import Judge

    workload, settings = context.workload, context.settings
    judge = Judge(workload, workload.module)  # whose eager is fp32's: the bar is the same for all
    limits = (workload.dims[BATCH].min, workload.dims[BATCH].max) if workload.batched else None
    with context.phases("verify", about=f"verify {name} at the tolerance of fp32"):
        cases = [
            judge.case(model, *pair) for pair in plan(settings.graphs.batch_sizes, settings.verify.seeds, limits)
        ]
    multiple, floor = settings.verify.multiple, settings.precision.floor
    refusals = [why for case in cases if (why := case.refusal(multiple, floor)) is not None]
    verdict = summarise_cases(cases, multiple, floor)
    worst = [case.rel_l2 for case in verdict.cases if case.rel_l2 is not None]
    return PrecisionCandidate(name, verdict.passed, next(iter(refusals), None), rel_l2=max(worst, default=None))


def _latencies(context: Context, tried: dict[str, _Tried], batch: int) -> dict[str, float]:
    """Median milliseconds of each, called in turns."""
    import torch

    args, kwargs = context.workload.call(batch)
    calls = {name: (lambda model=each.model: model(*args, **kwargs)) for name, each in tried.items()}
    about = f"measure {', '.join(tried)} at batch {batch}"
    with torch.inference_mode(), context.phases("measure", about=about, still=True):
        taken = measure(calls, clock_for(context.device), **asdict(context.settings.measure))
    return {name: summarise(samples).p50 for name, samples in taken.items()}
