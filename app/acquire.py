"""Acquire: a request -> an artifact that is verified for this run, found in the store or compiled into it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import background, capturing, dependencies, failures, lookup, names
from .beyond import Beyond, Comparison
from .config import OPENVINO, Settings
from .context import COMPILE_LOG, Context
from .errors import (
    AppError,
    CompileError,
    EagerAskedError,
    ExportError,
    MissError,
    StoreError,
    TrapError,
    VerifyError,
)
from .fallback import COMPILED, JIT, jit_stages, step_to_jit
from .keys import Key, request_key
from .lookup import Found, NotFound
from .monitor import performance_monitor
from .record import CacheInfo, KeyInfo, Memory, Outcome, now
from .store import Hit, LockTimeout, Store
from .tier import Tier
from .verdict import Case, Extent, refusal, summarise

if TYPE_CHECKING:
    from .compiler import Compiled
    from .runtime.jit import JitModel
    from .runtime.model import CompiledModel

logger = logging.getLogger(__name__)


@contextmanager
def opened(context: Context) -> Iterator[Store]:
    """The configured store, or with `cache=off` one that lasts as long as the run.

    Raises:
        StoreError: it can't be written, and `cache.readonly` doesn't say so.
    """
    cache = context.settings.cache
    if cache.dir is not None:
        with lookup.open_store(cache, Path(cache.dir).expanduser(), readonly=cache.readonly) as store:
            yield store
        return
    with tempfile.TemporaryDirectory(prefix="app-") as folder, Store(Path(folder) / "store") as store:
        yield store


def acquire(context: Context, store: Store) -> Found:
    """Find the artifact, or do what `cache.on_miss` says; then see that it is verified for this run.

    Raises:
        AppError: of the stage that failed.
    """
    record, phases, tier = context.record, context.phases, Tier(context, store)
    with phases("key"):
        request = _request(context)
        named = dependencies.named_files(context.settings)
    record.key = KeyInfo(request.digest, None, dict(request.factors))
    with phases("lookup"):
        found = _entry(context, store, request, named)
    reasons = found.reasons if isinstance(found, NotFound) and context.settings.cache.dir else []
    if isinstance(found, NotFound):
        record.cache = CacheInfo("miss" if context.settings.cache.dir else "off", reasons)
        logger.info("miss: %s", "; ".join(reasons))
        elsewhere = tier.find(request, named) if context.uncertain is None else None
        if elsewhere is None:
            _raise_again(context, store, request, named)
        found = elsewhere or _on_miss(context, store, tier, request, named, why="; ".join(reasons))
    manifest = found.artifact.manifest
    outcome: Outcome = found.outcome if context.settings.cache.dir else "off"
    record.cache = CacheInfo(outcome, reasons, manifest.provenance["seconds"] if "hit" in outcome else None)
    record.key = replace(record.key, object=manifest.digest)
    record.artifact_dir = str(found.artifact.path)
    record.memory = Memory(artifact_bytes=found.size_bytes)
    if manifest.holds_pickles:  # made because something failed, which is so for every run that it answers
        reason = manifest.content["reason"]
        context.step(step_to_jit(reason["stage"], reason["message"], context.settings.fallback))
    found = _verified(context, store, found)
    if not store.readonly:
        store.used("objects", manifest.digest)
        if found.weights is not None:
            store.used("weights", found.weights.digest)
        lookup.count(store, found.outcome, reasons, record.cache.seconds_saved or 0.0)
        if context.settings.cache.alias is not None:
            names.save(store, context.settings.cache.alias, context.settings)
    return found


def _raise_again(context: Context, store: Store, request: Key, named: dict[str, Path]) -> None:
    """Raise what this request is known to fail by, so that it isn't paid for again."""
    known = failures.find(store, request, context.settings, named) if context.uncertain is None else None
    if known is None:
        return
    error, why = known
    if _may_torch_compile(context, store, error):
        return
    assert context.record.cache is not None
    context.record.cache = replace(context.record.cache, miss_reasons=[why])
    logger.info("miss: %s", why)
    if context.settings.cache.on_miss in ("fail", "eager"):
        decline(context, store, why)
    raise error


def _entry(context: Context, store: Store, request: Key, named: dict[str, Path]) -> Found | NotFound:
    """What the request's own entry leads to; one that doesn't name the model for certain has none."""
    if context.uncertain is not None:
        return NotFound([context.uncertain])
    return lookup.find(store, request, named)


def explain(context: Context, store: Store) -> list[dict[str, Any]]:
    """What would answer this request, one row for each level that must be asked; exports where it must.

    Raises:
        AppError: the model doesn't build or export.
    """
    request = _request(context)
    named = dependencies.named_files(context.settings)
    with context.phases("lookup"):
        found, failed = lookup.find(store, request, named), failures.find(store, request, context.settings, named)
    if isinstance(found, Found):
        return [{"level": "direct", "answer": "hit", "object": found.artifact.digest, "why": "nothing has changed"}]
    if failed is not None:
        why = f"{failed[1]}: {failed[0].message}"
        return [{"level": "direct", "answer": "failed", "object": None, "why": why}]
    rows = [{"level": "direct", "answer": "miss", "object": None, "why": "; ".join(found.reasons)}]
    with tempfile.TemporaryDirectory(prefix="app-") as folder, context.phases("worker"):
        made = _worker(context, store, request, Path(folder), only_export=True)
    if made.outcome == "graph-hit":
        why = "the program is the same, whatever else has changed"
        return [*rows, {"level": "graph", "answer": "hit", "object": made.object, "why": why}]
    known = ((each.provenance["model"], each.factors, None) for each in store.manifests())
    why = "; ".join(lookup.nearest(Key(made.factors), known))
    return [*rows, {"level": "graph", "answer": "miss", "object": made.object, "why": why}]


def _request(context: Context) -> Key:
    if context.settings.mode.engine == OPENVINO:
        from .compiler import unable

        if (why := unable(context.settings, context.device)) is not None:
            raise CompileError(why)
    return request_key(context.settings, context.device)


def load(context: Context, found: Found, *, comparing: bool | None = None) -> CompiledModel | JitModel:
    """Load an artifact into this process.

    Args:
        context: The run.
        found: The artifact.
        comparing: Whether calls of sizes that nobody has compared may be compared with eager here; None where the
            module is this process's own.

    Raises:
        LoadError: it doesn't load here.
    """
    context.import_torch()
    model = _load_jit(context, found) if found.artifact.manifest.holds_pickles else _load_compiled(context, found)
    if found.extent is not None:
        comparing = context.has_module if comparing is None else comparing
        compare = Comparison(context, found, model) if comparing else None
        model.boundary.beyond = Beyond(context.settings.verify.beyond, context.warn, compare)
    return model


def _load_compiled(context: Context, found: Found) -> CompiledModel:
    content = found.artifact.manifest.content
    from .runtime.aoti import OPERATORS
    from .runtime.model import LIBRARY
    from .runtime.model import load as load_model
    from .runtime.spec import CallSpec
    from .runtime.tensors import load_treespec

    with context.phases("import"):
        load_treespec(CallSpec.from_json(content["spec"]))  # what defines the output's classes may be large
    if (found.artifact.path / LIBRARY).with_suffix(OPERATORS).exists():
        _ = context.workload  # building the model is what registers operators of its own
    with context.phases("load"):
        return load_model(
            found.artifact.path,
            content,
            context.device,
            weights=found.weights.path if found.weights else None,
            num_runners=context.settings.runtime.num_runners,
            single_threaded=capturing.wanted(context),
            buckets=context.settings.graphs.buckets,
            extent=found.extent,
        )


def _load_jit(context: Context, found: Found) -> JitModel:
    from .runtime import jit

    settings, workload, module = context.settings, context.workload, context.same_precision
    with context.phases("load"):
        return jit.load(
            found.artifact.path,
            found.artifact.manifest.content,
            module,
            context.device,
            inductor=settings.inductor_options,
            call=workload.call_of,
            extent=found.extent,
        )


def decline(context: Context, store: Store, why: str) -> None:
    """Raise where `cache.on_miss` lets nothing be compiled here and now.

    Raises:
        MissError: it says `fail`.
        EagerAskedError: it says `eager`, or `background`, and another process has been started.
        ExportError: that process can't be given the module that is in this one.
    """
    cache = context.settings.cache
    if cache.on_miss == "fail":
        raise MissError(f"cache.on_miss=fail, and it is a miss: {why}")
    if cache.on_miss == "background" and not store.readonly and cache.dir is not None:
        folder = context.folder / background.FOLDER
        folder.mkdir(mode=0o700, parents=True)
        pid = background.start(context.settings, context.for_worker(folder).model, folder)
        raise EagerAskedError(f"cache.on_miss=background: process {pid} compiles it meanwhile; it is a miss: {why}")
    if cache.on_miss == "eager":
        raise EagerAskedError(f"cache.on_miss=eager, and it is a miss: {why}")


def _on_miss(context: Context, store: Store, tier: Tier, request: Key, named: dict[str, Path], *, why: str) -> Found:
    decline(context, store, why)
    if store.readonly:
        raise StoreError(f"the cache is read-only, and it is a miss: {why}")
    with ExitStack() as locks:
        with context.phases("lookup"):
            # whoever finds the first lock's holder stuck works privately: one after the other, on the second lock
            if not _lock(context, store, locks, "requests", request.digest):
                _lock(context, store, locks, "private", request.digest)
            # another process may have compiled it while this one waited
            again = _entry(context, store, request, named)
        if isinstance(again, Found):
            return again
        if context.uncertain is None and locks.enter_context(tier.claim(request)):
            elsewhere = tier.find(request, named)
            if elsewhere is not None:
                return elsewhere
        try:
            found, entry = _compile(context, store, tier, request, locks)
        except AppError as error:
            if context.is_live and error.dependencies:  # its digest stands for all that it was made from
                error.dependencies = []
            if context.uncertain is None:
                failures.keep(store, request, context.settings, error)
            raise
        if context.uncertain is None:
            tier.put(request, entry)
    return found


def _lock(context: Context, store: Store, locks: ExitStack, level: str, digest: str) -> bool:
    """Take a lock of the store until `locks` closes; False where its holder is stuck."""
    phases, outer = context.phases, context.phases.current or "lookup"

    def waiting() -> None:
        phases.switch("wait", about="wait: another process compiles the same")

    try:
        locks.enter_context(store.lock(level, digest, context.settings.cache.lock_timeout_s, waiting))
    except LockTimeout as error:
        context.warn(f"{error.message}; compiling privately")
        return False
    finally:
        if phases.current == "wait":
            phases.switch(outer, quiet=True)
    return True


def _compile(
    context: Context, store: Store, tier: Tier, request: Key, locks: ExitStack
) -> tuple[Found, dict[str, Any]]:
    """Compile and publish; returns what can be opened now, and the entry that names it."""
    phases, cache = context.phases, context.settings.cache
    if cache.trust == "signed" and cache.signing_key is None:
        context.warn(
            "cache.trust=signed without cache.signing_key: what is compiled now serves this run only; "
            "task=cache.keygen makes a key"
        )
    before = sum(phases.seconds.values())

    def on_object(digest: str) -> None:
        _lock(context, store, locks, "objects", digest)
        tier.fetch_object(digest)

    with store.staging() as staging, phases("worker"):
        try:
            made = _worker(context, store, request, staging, on_object)
        except (ExportError, CompileError) as error:
            made = _by_torch_compile(context, store, request, staging, error)
        if made.unrecorded is not None and not context.settings.model.depends_on:
            context.uncertain = made.unrecorded
            context.warn(
                f"{made.unrecorded}, which can't be recorded, so each process exports it to find it again; "
                "name the files that decide the answer: model.depends_on=[...]"
            )
        if context.has_module and made.content.get("engine") != JIT:
            phases.switch("verify")
            made = _judged_by_module(context, store, made)
        phases.switch("publish")
        entry = _publish(context, store, request, made, sum(phases.seconds.values()) - before)
        found = lookup.open_objects(store, made.object, made.weights, made.outcome, just_made=True)
    if isinstance(found, NotFound):
        raise StoreError(f"what was just published can't be read: {found.reasons[0]}")
    return found, entry


def _worker(
    context: Context,
    store: Store,
    request: Key,
    staging: Path,
    on_object: Callable[[str], None] = lambda _: None,
    *,
    only_export: bool = False,
) -> Compiled:
    from .compiler import compile_in_worker

    policy = context.settings.fallback
    of_torch = context.settings.mode.rung == COMPILED  # what asks for another engine doesn't ask for torch.compile
    stages = (
        jit_stages(policy) if of_torch and not (only_export or context.is_live) else []
    )  # torch.compile's caches are of the program's own module
    own = store.trust.policy == "own"
    context.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return performance_monitor.monitor("compilation")(compile_in_worker)(
            _for_worker(context, staging),
            request,
            context.device,
            staging=staging,
            store=store.root,
            scratch=store.scratch,
            log=context.folder / COMPILE_LOG,
            on_phase=context.phases.switch,
            on_object=on_object,
            on_step=lambda stage, message: context.step(step_to_jit(stage, message, policy)),
            jit=stages if own else [],
            only_export=only_export,
        )
    except AppError as error:
        if error.stage in stages and not own:
            context.warn("the jit rung keeps pickles, so it needs cache.trust=own: it is not tried")
        raise


def _may_torch_compile(context: Context, store: Store, error: AppError) -> bool:
    """Whether torch.compile may answer a failure in this process, whose module no other has.

    Not the machine's own failure, nor where the store doesn't trust pickles, nor integers without a range, which
    could end the process.
    """
    settings = context.settings
    asked = context.has_module and not context.only_exported and context.uncertain is None
    if not asked or error.dependencies is None or isinstance(error, TrapError) or store.trust.policy != "own":
        return False
    allowed = settings.mode.rung == COMPILED and error.stage in jit_stages(settings.fallback)
    return allowed and all(item.low is not None for item in context.workload.inputs if item.holds_integers)


def _by_torch_compile(context: Context, store: Store, request: Key, staging: Path, error: AppError) -> Compiled:
    """Answer a failure by torch.compile in this process.

    Raises:
        AppError: the failure itself, where it may not be answered so; or that of torch.compile.
    """
    if not _may_torch_compile(context, store, error):
        raise error
    settings = context.settings
    from .compiler.here import compile_here

    try:
        context.refuse_side_effects()
        made = compile_here(
            settings,
            request.factors,
            context.workload,
            staging=staging,
            on_phase=context.phases.switch,
            reason={"stage": error.stage, "message": error.message},
        )
    except (CompileError, VerifyError) as found:
        found.dependencies = []
        raise
    context.step(step_to_jit(error.stage, error.message, settings.fallback))
    return made


def _for_worker(context: Context, staging: Path) -> Settings:
    try:
        return context.for_worker(staging)
    except (ExportError, VerifyError) as error:  # the module is named by a digest, and would do so again
        error.dependencies = []
        raise


def _judged_by_module(context: Context, store: Store, made: Compiled) -> Compiled:
    """Compare what the worker made with the module itself: the worker had an exported program to compare it with.

    Raises:
        VerifyError: they differ.
    """
    from . import verdict
    from .runtime.model import load as load_model

    folder, compared, settings = made.artifact, made.cases, context.settings
    if folder is None:
        hit = store.read("objects", made.object)
        if not isinstance(hit, Hit):
            raise StoreError(f"the artifact of this program is gone: {made.object[:12]}")
        folder, compared = hit.artifact.path, compared or hit.artifact.manifest.verified["cases"]
    model = load_model(folder, made.content, context.device, weights=made.weights_folder)
    cases = [context.judge.case(model, Case.from_json(each).draw) for each in compared]
    bar = settings.verify.multiple, settings.precision.floor
    found = verdict.extent(cases, made.content["spec"]["dims"], made.content["example"], *bar)
    if found.refusal is not None:
        error = VerifyError(found.refusal)
        error.dependencies = []
        raise error
    return replace(made, cases=[case.to_json() for case in cases])


def _publish(context: Context, store: Store, request: Key, made: Compiled, seconds: float) -> dict[str, Any]:
    source = {"model": context.settings.model.name, "created_at": now()}
    # a fingerprint stands for all that the module was made from
    read = [] if context.is_live else made.dependencies
    entry = {"object": made.object, "weights": made.weights, "dependencies": read}
    named = context.uncertain is None
    if made.weights_folder is not None:
        assert made.weights is not None
        nothing: dict[str, Any] = {"factors": {}, "content": {}, "verified": {}, "requests": []}
        store.publish("weights", made.weights, made.weights_folder, **nothing, provenance=source)
    if made.artifact is not None:
        store.publish(
            "objects",
            made.object,
            made.artifact,
            factors=dict(made.factors),
            content=dict(made.content),
            verified=_to_keep(context, made),
            provenance={**made.provenance, **source, "seconds": seconds},
            requests=[{"request": request.digest, "entry": entry}] if named else [],
        )
    elif made.cases:
        store.note(lookup.verified_note(made.object, made.weights), made.cases)
    if named:
        lookup.remember(store, request, entry, context.settings.model.name)
    return entry


def _to_keep(context: Context, made: Compiled) -> dict[str, Any]:
    """The manifest's word on what was verified: figures, the bar, and for its readers the sizes that are served."""
    from . import verdict

    bar = {"multiple": context.settings.verify.multiple, "floor": context.settings.precision.floor}
    cases = [Case.from_json(each) for each in made.cases]
    found = verdict.extent(cases, made.content["spec"]["dims"], made.content["example"], **bar)
    return {
        "weights": made.weights,
        "cases": made.cases,
        **bar,
        "served": found.compared,
        "narrowed": found.narrowed,
    }


def _verified(context: Context, store: Store, found: Found) -> Found:
    """Judge the recorded figures by this run's tolerances, and compare what they lack; finds the sizes it serves."""
    cases, missing = lookup.verified(store, found, context.settings)
    if missing:
        context.narrow(found.artifact.manifest.content["spec"])
        model = load(context, found)
        judge = context.judge
        with context.phases("verify"):
            new = [judge.case(model, draw) for draw in missing]
        cases += new
        if not store.readonly:
            lookup.note_verified(store, found, [case.to_json() for case in new])
    multiple, floor = context.settings.verify.multiple, context.settings.precision.floor
    found = replace(found, extent=lookup.extent_of(found, cases, multiple, floor))
    demand(context, store, found, cases, found.extent)
    return found


def demand(context: Context, store: Store, found: Found, cases: Sequence[Case], extent: Extent | None = None) -> None:
    """Put the figures into the record, and refuse the artifact where one fails outside of what an extent leaves out.

    An artifact that fails even the tolerances it was published under is quarantined.

    Raises:
        VerifyError: a case fails.
    """
    multiple, floor = context.settings.verify.multiple, context.settings.precision.floor
    context.cases += cases
    context.record.verify = summarise(context.cases, multiple, floor, found.extent)
    why = extent.refusal if extent is not None else refusal(cases, multiple, floor)
    if why is None:
        for text in extent.narrowed if extent is not None else []:
            context.warn(text)
        return
    context.record.verify = replace(context.record.verify, passed=False)
    manifest = found.artifact.manifest
    was = manifest.verified["multiple"], manifest.verified["floor"]
    still = lookup.extent_of(found, cases, *was).refusal if extent is not None else refusal(cases, *was)
    if still and not store.readonly:
        store.quarantine("objects", manifest.digest, f"verification: {why}")
        if found.weights is not None:  # either may be the wrong one, and both are made again
            store.quarantine("weights", found.weights.digest, f"verification: {why}")
    raise VerifyError(why)
