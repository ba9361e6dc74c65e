"""The order: settings -> key -> artifact -> loaded model -> samples -> record. Each step is one call down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import capturing, choose, environment, evaluate, planning, tuning
from .acquire import acquire, demand, load, opened
from .benchmark import benchmark, measure_memory, sweep
from .config import BATCH
from .context import Context
from .dependencies import named_files
from .errors import AppError, CaptureError, LoadError
from .fallback import EAGER, step_down
from .lookup import Found
from .store import Store
from .verdict import Draw

if TYPE_CHECKING:
    from .runtime.jit import JitModel
    from .runtime.model import CompiledModel

# The tasks that run the model; an evaluation uses the batch plans that a service finds, and times none.
RUNNING = ("benchmark", "evaluate")


def run(context: Context) -> None:
    """Compile or find the artifact; for a benchmark load it, compare it once more, and measure it against eager.

    An evaluation runs it over data instead, which is read before anything is compiled for it.

    Raises:
        AppError: a stage failed, and the fallback policy raises, or there is nothing to fall back to.
    """
    context.record.environment = environment.describe(context.device)
    named_files(context.settings)  # a file that isn't there is a mistake in the config, whatever is done with it
    task, job = context.settings.task.name, choose.job_of(context)
    capturing.say_limits(context)
    with falling_back(context):
        choose.resolve(context, job)
    compiled = None
    if context.settings.mode.rung == EAGER or context.settings.mode.rung not in context.settings.fallback.rungs:
        context.record.rung = EAGER
    else:
        with falling_back(context), opened(context) as store:
            compiled = obtain(context, store)
            context.record.rung = context.served(compiled)
    if task == "benchmark":
        ladder = benchmark(context, compiled)
        choose.remember(context)
        sweep(context, compiled, ladder)
    if task == "evaluate" and job is not None:
        evaluate.evaluate(context, job, compiled)
    measure_memory(context)


def obtain(context: Context, store: Store) -> CompiledModel | JitModel | None:
    """The artifact, found or compiled; for a task that runs it loaded and compared.

    Another process may remove an artifact between finding and loading it: then it was a miss after all, once.
    """
    task = context.settings.task.name
    if context.settings.graphs.auto and task in RUNNING:
        tuning.tune(context, store)
    tuned = context.record.cache  # what the run found before it was tuned
    for is_last in (False, True):
        found = acquire(context, store)
        context.record.cache = tuned or context.record.cache
        if task not in RUNNING:
            return None
        try:
            return ready(context, store, found, measuring=task == "benchmark")
        except LoadError:
            if is_last or found.artifact.path.exists():
                raise
            context.warn(f"the artifact {found.artifact.digest[:12]} vanished before it was loaded: looking again")
    return None


def ready(context: Context, store: Store, found: Found, *, measuring: bool = True) -> CompiledModel | JitModel:
    """Load the artifact, and compare one fresh output with eager before it serves.

    Batch plans are those that are kept, or new ones where `measuring` is allowed.

    Raises:
        LoadError: it doesn't load in this process.
        VerifyError: the output is wrong; the artifact is quarantined.
    """
    model = load(context, found, comparing=True)  # eager is here anyway
    judge = context.judge
    with context.phases("verify"):
        sizes = context.workload.sizes()
        if (batch := sizes.get(BATCH)) is not None and found.extent is not None:
            low, high = found.extent.compared[BATCH]
            asked = [size for size in context.settings.graphs.batch_sizes if low <= size <= high]
            sizes[BATCH] = min(asked or [batch], key=lambda size: abs(size - batch))
        fresh = judge.case(model, Draw(sizes, max(context.settings.verify.seeds) + 1))
    demand(context, store, found, [fresh])
    capturing.capture(context, model)
    try:
        planning.settle(context, store, found, model, measuring=measuring)
    except CaptureError as error:
        capturing.give_up(context, model, error)
        planning.settle(context, store, found, model, measuring=measuring)
    getattr(model, "sizes_seen", {}).clear()  # nobody asked for what compared and timed it
    return model


@contextmanager
def falling_back(context: Context) -> Iterator[None]:
    """Turn a failure into a step down to eager, as the policy says: one warning line and one entry in the record."""
    try:
        yield
    except AppError as error:
        context.step(step_down(error, context.settings.fallback, context.served()))
        context.record.rung = EAGER
