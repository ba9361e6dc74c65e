"""mode=auto, precision=auto, weights=auto: the fastest candidate that passes, resolved before the key is made.

What earlier runs measured decides. Where that isn't enough the candidates are tried, and what comes of it is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import acquire, capturing, evaluate, trial
from .config import AUTO, BATCH, FLOORS, PLACEMENTS, SERVING, Settings
from .context import Context
from .errors import StoreError
from .evidence import EAGER, Candidate, Evidence, Profile, Question, Run, best, candidates
from .record import (
    ModeCandidate,
    ModeChoice,
    PrecisionCandidate,
    PrecisionChoice,
    Traits,
    WeightsCandidate,
    WeightsChoice,
    now,
)
from .store import Store

Rows = list[dict[str, Any]]


def job_of(context: Context) -> evaluate.Job | None:
    """The data that are evaluated, or that judge precisions; read before anything is compiled.

    Raises:
        ConfigError, DataError: they can't be.
    """
    settings = context.settings
    judges = settings.precision.name == AUTO and settings.data.given
    return evaluate.prepare(context) if settings.task.name == "evaluate" or judges else None


def resolve(context: Context, job: evaluate.Job | None) -> None:
    """Put what is kept into the run's settings, and the choice into its record; does nothing where nothing is `auto`.

    Where a judge refuses all precisions it is the first; what is wrong with it the run itself finds.

    Raises:
        AppError: nothing is known, and nothing may be tried (`cache.on_miss`), or nothing compiles; the settings are
            eager's then.
    """
    given, kept = context.settings, EAGER
    if not given.has_auto:
        return
    try:
        with acquire.opened(context) as store:
            kept = _choose(context, store, job)
        context.record.mode = kept.mode.name
    finally:
        context.settings, context.record.precision = kept.of(given), kept.precision
        context.record.weights = context.settings.weights.placement


def explain(context: Context, store: Store) -> Rows:
    """What `auto` comes to by what is known, and what would answer that request.

    Raises:
        AppError: the model doesn't build or export.
    """
    given, rows = context.settings, []
    if given.has_auto:
        options, question = candidates(given, context.device), _question(given, job_of(context))
        known = _profile(context, store).known(options, question)
        kept = best(known, question) if len(known) == len(options) else None
        if kept is None:
            return [{"level": AUTO, "answer": "miss", "object": None, "why": _lacking(options, known, question)}]
        why = f"{known[kept].speedup(question.batch):.3g}x eager at batch {question.batch}"
        rows = [{"level": AUTO, "answer": kept, "object": None, "why": why}]
        if options[kept].mode == EAGER.mode:
            return rows
        context.settings = options[kept].of(given)
    return [*rows, *acquire.explain(context, store)]


def remember(context: Context) -> None:
    """Keep what a benchmark measured of its artifact, and of eager beside it, for later choices.

    Not where these were chosen: what is measured more often than the others would sway the next choice.
    """
    record, settings, latency = context.record, context.settings, context.record.latency_ms or {}
    rung = next((rung for rung in SERVING if rung in latency), None)
    chosen = record.mode_choice or record.precision_choice or record.weights_choice
    if rung is None or record.key is None or record.key.object is None or settings.cache.dir is None or chosen:
        return
    p50 = {name: {size: found.p50 for size, found in sizes.items()} for name, sizes in latency.items()}
    precision = settings.precision.name
    modes = {rung: settings.mode, "eager" if precision == "fp32" else f"eager_{precision}": EAGER.mode}
    try:
        with acquire.opened(context) as store:
            profile = _profile(context, store)
            for name, mode in modes.items():
                run = Run(record.created_at or now(), p50[name], p50["eager"])
                profile.add(Candidate(mode, precision), Evidence([record.key.request, record.key.object], [run]))
    except StoreError as error:
        context.warn(f"{error.message}: auto will not know of this run")


def _choose(context: Context, store: Store, job: evaluate.Job | None) -> Candidate:
    given, traits, measured = context.settings, None, False
    options, question = candidates(given, context.device), _question(given, job)
    if len(options) == 1:
        return next(iter(options.values()))
    profile = _profile(context, store)
    again = given.auto.evidence == "measure"
    known = {} if again else profile.known(options, question)
    if len(known) < len(options):
        acquire.decline(context, store, _lacking(options, known, question))
        if given.cache.dir is None:
            context.warn("auto with cache=off: what is kept is compiled twice")
        tried, traits, measured = *trial.run(context, store, options, question, job), True
        known = {
            name: profile.add(options[name], each.evidence, alone=again) if each.lasts else each.evidence
            for name, each in tried.items()
        }
    name = best(known, question) or next(iter(known))
    if measured:
        context.record.cache = tried[name].cache  # what the run found before it had compiled it
    kept, record = options[name], context.record
    if given.mode.name == AUTO:
        record.mode_choice = _mode_choice(options, kept, known, question, traits, measured=measured)
    if kept.placement is not None:
        record.weights_choice = _weights_choice(kept, known, question)
    if given.precision.name == AUTO:
        record.precision_choice = _precision_choice(kept, known, question, "evaluation" if job else "float64")
    return kept


def _question(given: Settings, job: evaluate.Job | None) -> Question:
    is_batched = given.model.program is not None or BATCH in given.model.ranges
    batch = given.evaluate.batch_size if job is not None else max(given.graphs.batch_sizes) if is_batched else 1
    judge = trial.judged_by(given, job) if given.precision.name == AUTO else None
    return Question(given.auto.batch or batch, judge, given.auto.budget_s)


def _profile(context: Context, store: Store) -> Profile:
    return Profile(store, context.settings, context.device, graphs=capturing.wanted(context))


def _lacking(options: Mapping[str, Candidate], known: Mapping[str, Evidence], question: Question) -> str:
    names = ", ".join(name for name in options if name not in known)
    return (
        f"nothing is known of {names} at batch {question.batch}, as the model and this machine are now; "
        "a run with cache.on_miss=compile tries them"
    )


def _mode_choice(
    options: Mapping[str, Candidate],
    kept: Candidate,
    known: Mapping[str, Evidence],
    question: Question,
    traits: Traits | None,
    *,
    measured: bool,
) -> ModeChoice:
    runs = {run.at for each in known.values() for run in each.runs if str(question.batch) in run.p50_ms}
    places = {None, kept.placement or PLACEMENTS[0]}
    return ModeChoice(
        kept=kept.mode.name,
        precision=kept.precision,
        batch=question.batch,
        evidence="measured" if measured else "known",
        num_runs=len(runs),
        last_run=max(runs, default=None),
        traits=traits,
        candidates=[
            ModeCandidate(
                options[name].mode.name, options[name].precision, each.speedup(question.batch), each.refusal(question)
            )
            for name, each in known.items()
            if options[name].placement in places
        ],
    )


def _precision_choice(
    kept: Candidate, known: Mapping[str, Evidence], question: Question, judge: Any
) -> PrecisionChoice:
    found = []
    for precision in FLOORS:
        evidence = known[replace(kept, precision=precision).name]
        failed = PrecisionCandidate(precision, passed=False, reason=evidence.reason)
        verdict = evidence.judged.get(question.judge or "", failed)
        found.append(replace(verdict, p50_ms=evidence.p50_ms(question.batch)))
    return PrecisionChoice(kept.precision, judge, question.batch, found)


def _weights_choice(kept: Candidate, known: Mapping[str, Evidence], question: Question) -> WeightsChoice:
    assert kept.placement is not None
    places = {place: known.get(replace(kept, placement=place).name) for place in PLACEMENTS}
    found = [
        WeightsCandidate(place, each.p50_ms(question.batch), each.refusal(question))
        for place, each in places.items()
        if each is not None
    ]
    return WeightsChoice(kept.placement, question.batch, found)
