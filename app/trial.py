"""Trial: candidates compiled or found, judged, and timed in turns, within `auto.budget_s`.

A compiled model is verified as ever. Precisions have one bar for all: with data the evaluation judges, by
`evaluate.max_*` (no row may disagree where neither is given); without, the float64 reference does, at the tolerance
of fp32: no precision is forgiven its own rounding.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import capturing, evaluate
from .acquire import acquire, load
from .config import EvaluateConfig, Settings
from .context import Context
from .errors import AppError, StoreError
from .evidence import EAGER, Candidate, Evidence, Question, Run
from .fallback import EAGER as EAGER_RUNG
from .keys import digest
from .measure.clock import clock_for
from .measure.samples import measure
from .measure.statistics import speedup, summarise
from .record import CacheInfo, PrecisionCandidate, Record, Traits, now
from .store import Store
from .verdict import plan
from .verdict import summarise as summarise_cases

logger = logging.getLogger(__name__)

Model = Callable[..., Any]

# A candidate that takes so many times as long as the fastest, by the lower end of the interval, is timed no further.
CLEARLY_SLOWER = 1.25
TUNABLE = {"convolutional", "attention", "dense"}


@dataclass(frozen=True)
class Tried:
    """A candidate that was compiled and judged.

    Attributes:
        model: What serves it.
        evidence: What is to be kept of it.
        cache: How the store answered.
        error: Why it doesn't compile or load.
        lasts: Whether the evidence is of use to later runs.
    """

    model: Model
    evidence: Evidence
    cache: CacheInfo | None = None
    error: AppError | None = None
    lasts: bool = True


def run(
    context: Context, store: Store, options: Mapping[str, Candidate], question: Question, job: evaluate.Job | None
) -> tuple[dict[str, Tried], Traits | None]:
    """Try the candidates, the most promising first; and by what traits of the model that was.

    The first is compiled whatever the budget; what is in the store already costs next to nothing.

    Raises:
        AppError: the model doesn't build, or none compiles; then it is the first one's failure.
    """
    began, traits = time.monotonic(), None
    if len({each.mode.name for each in options.values()}) > 1:
        from . import traits as counted

        with context.phases("choose"):
            traits = counted.count(context.workload, question.batch)
    deadline, tried = math.inf, {}
    for name in ordered(options, traits, context.device):
        with context.phases("choose", about=f"auto: try {name}"):
            tried[name] = _try(context, store, options[name], question=question, job=job, deadline=deadline)
        if options[name].mode.engine != EAGER.mode.engine:
            deadline = began + question.budget_s
    errors = [each.error for each in tried.values() if each.error is not None]
    if errors and not any(each.evidence.witness for each in tried.values()):
        raise errors[0]
    return _timed(context, tried, question), traits


def ordered(options: Mapping[str, Candidate], traits: Traits | None, device: str) -> list[str]:
    """Names of the candidates, the most promising first: the budget may not reach the others.

    Autotuning has most to gain on a CPU where weights that are read once a call set the pace (its kernels pack them),
    on a GPU where arithmetic does; of convolutions there is nothing to tune on a CPU.
    """
    kinds, bound = ({"dense", "attention"}, "memory") if device == "cpu" else (TUNABLE, "compute")
    pays = traits is not None and traits.kind in kinds and traits.bound == bound
    return sorted(options, key=lambda name: bool(options[name].mode.inductor.get("max_autotune")) != pays)


def judged_by(given: Settings, job: evaluate.Job | None) -> str:
    """A digest of what precisions are judged by."""
    if job is not None:
        return digest(["evaluation", job.dataset.digest, asdict(replace(_limits(given.evaluate, job), listed=0))])
    return digest(["float64", given.precision.floor, asdict(given.verify), given.graphs.batch_sizes])


def _limits(config: EvaluateConfig, job: evaluate.Job | None) -> EvaluateConfig:
    if job is None or (config.max_metric_drop, config.max_disagreement) != (None, None):
        return replace(config, resume=None)
    return replace(config, resume=None, max_disagreement=0.0)


def _try(
    context: Context,
    store: Store,
    candidate: Candidate,
    *,
    question: Question,
    job: evaluate.Job | None,
    deadline: float,
) -> Tried:
    """Compile or find one candidate, in a folder of its own, and judge it."""
    left = deadline - time.monotonic()
    settings = candidate.of(context.settings)
    settings = replace(
        settings,
        # an alias stands for what is kept
        cache=replace(settings.cache, alias=None, on_miss="compile" if left > 0 else "fail"),
        compile=replace(settings.compile, timeout_s=max(0.001, min(settings.compile.timeout_s, left))),
        evaluate=_limits(settings.evaluate, job),
    )
    folder = context.folder / "auto" / candidate.name
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(status="failed", task=settings.task.name, precision=candidate.precision)
    inner = context.beside(settings, folder, record)
    evidence, model = Evidence([]), None
    try:
        if settings.mode.rung != EAGER_RUNG and settings.mode.rung in settings.fallback.rungs:
            model = load(inner, acquire(inner, store))
            capturing.capture(inner, model, comparing=False)
            assert record.key is not None
            evidence = Evidence([record.key.request, str(record.key.object)])
        record.rung = inner.served() if model is not None else EAGER_RUNG
        ladder = inner.on_ladder(model)
        if question.judge is not None:
            verdict = _judged(context, inner, job, ladder, candidate.precision)
            evidence = replace(evidence, judged={question.judge: verdict})
        return Tried(ladder, evidence, record.cache)
    except AppError as error:
        late = time.monotonic() >= deadline
        why = f"auto.budget_s={question.budget_s:g} was over before it was compiled" if late else error.message
        logger.info("auto: %s can't be kept: %s", candidate.name, why)
        failed = Evidence([], reason=why, budget_s=question.budget_s if late else None)
        return Tried(inner.on_ladder(None), failed, record.cache, error, lasts=not isinstance(error, StoreError))


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
    dims = {name: (dim.min, dim.max) for name, dim in workload.dims.items()}
    wanted = plan(settings.graphs.batch_sizes, settings.verify.seeds, dims, workload.sizes())
    with context.phases("verify", about=f"verify {name} at the tolerance of fp32"):
        cases = [judge.case(model, draw) for draw in wanted]
    multiple, floor = settings.verify.multiple, settings.precision.floor
    refusals = [why for case in cases if (why := case.refusal(multiple, floor)) is not None]
    verdict = summarise_cases(cases, multiple, floor)
    worst = [case.rel_l2 for case in verdict.cases if case.rel_l2 is not None]
    return PrecisionCandidate(name, verdict.passed, next(iter(refusals), None), rel_l2=max(worst, default=None))


def _timed(context: Context, tried: Mapping[str, Tried], question: Question) -> dict[str, Tried]:
    """The same with what was measured of those that passed, and a witness for what has none of its own."""
    passing = {name: each.model for name, each in tried.items() if each.evidence.refusal(question) is None}
    p50_ms = _race(context, passing, question.batch) if passing else {}
    witness: list[str] = next((each.evidence.witness for each in tried.values() if each.evidence.witness), [])
    at, size, found = context.record.created_at or now(), str(question.batch), {}
    for name, each in tried.items():
        runs = [Run(at, {size: p50_ms[name]}, {size: p50_ms[EAGER.name]})] if name in passing else []
        evidence = replace(each.evidence, runs=runs, witness=each.evidence.witness or witness)
        found[name] = replace(each, evidence=evidence, lasts=each.lasts and bool(evidence.witness))
    return found


def _race(context: Context, models: Mapping[str, Model], batch: int) -> dict[str, float]:
    """Median milliseconds of each and of fp32 eager, called in turns; after a heat without those clearly slower."""
    import torch

    args, kwargs = context.workload.call(batch)
    calls = {
        name: (lambda model=model: model(*args, **kwargs))
        for name, model in {EAGER.name: context.workload.module, **models}.items()
    }
    clock, rounds = clock_for(context.device), asdict(context.settings.measure)
    heat = rounds | {"max_samples": rounds["min_samples"]}
    about = f"measure {', '.join(calls)} at batch {batch}"
    with torch.inference_mode(), context.phases("measure", about=about, still=True):
        taken = measure(calls, clock, **heat)
        first = min(taken, key=lambda name: summarise(taken[name]).p50)
        slower = {name for name in calls if speedup(taken[name], taken[first]).low > CLEARLY_SLOWER}
        calls = {name: call for name, call in calls.items() if name == EAGER.name or name not in slower}
        taken |= measure(calls, clock, **rounds)
    return {name: summarise(samples).p50 for name, samples in taken.items()}
