"""The order: settings -> key -> artifact -> loaded model -> samples -> record. Each step is one call down."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import environment
from .acquire import acquire, demand, load, opened
from .benchmark import benchmark, measure_memory
from .context import Context
from .dependencies import named_files
from .errors import AppError, LoadError
from .fallback import COMPILED, EAGER, step_down
from .lookup import Found
from .store import Store

if TYPE_CHECKING:
    from .runtime.model import CompiledModel

logger = logging.getLogger(__name__)


def run(context: Context) -> None:
    """Compile or find the artifact; for a benchmark load it, compare it once more, and measure it against eager.

    Raises:
        AppError: a stage failed, and the fallback policy raises, or there is nothing to fall back to.
    """
    context.record.environment = environment.describe(context.device)
    named_files(context.settings)  # a file that isn't there is a mistake in the config, whatever is done with it
    say_limits(context)
    compiled = None
    if context.settings.mode.engine == EAGER:
        context.record.rung = EAGER
    else:
        with falling_back(context), opened(context) as store:
            compiled = obtain(context, store)
            context.record.rung = COMPILED
    if context.settings.task.name == "benchmark":
        benchmark(context, compiled)
    measure_memory(context)


def obtain(context: Context, store: Store) -> CompiledModel | None:
    """The artifact, found or compiled; for a benchmark loaded and compared.

    Another process may remove an artifact between finding and loading it: then it was a miss after all, once.
    """
    for is_last in (False, True):
        found = acquire(context, store)
        if context.settings.task.name != "benchmark":
            return None
        try:
            return ready(context, store, found)
        except LoadError:
            if is_last or found.artifact.path.exists():
                raise
            context.warn(f"the artifact {found.artifact.digest[:12]} vanished before it was loaded: looking again")
    return None


def ready(context: Context, store: Store, found: Found) -> CompiledModel:
    """Load the artifact, and compare one fresh output with eager before it serves.

    Raises:
        LoadError: it doesn't load in this process.
        VerifyError: the output is wrong; the artifact is quarantined.
    """
    model = load(context, found)
    judge = context.judge
    with context.phases("verify"):
        batch = min(
            context.settings.graphs.batch_sizes,
            key=lambda size: abs(size - context.workload.sizes().get("batch", 1)),
        )
        fresh = judge.case(model, batch, max(context.settings.verify.seeds) + 1)
    demand(context, store, found, [fresh])
    return model


@contextmanager
def falling_back(context: Context) -> Iterator[None]:
    """Turn a failure into a step down to eager, as the policy says: one warning line and one entry in the record."""
    try:
        yield
    except AppError as error:
        step = step_down(error, context.settings.fallback)
        logger.warning("fallback %s -> %s at %s: %s", step.from_, step.to, step.stage, step.reason)
        context.record.fallbacks.append(step)
        context.record.rung = EAGER


def say_limits(context: Context) -> None:
    """Say what the mode asks for that this device, or this version, doesn't do."""
    mode = context.settings.mode
    if not mode.wants_graphs:
        return
    if context.device == "cpu":
        context.warn(f"mode={mode.name} asks for CUDA graphs, which need a GPU: on the CPU it compiles without them")
    else:
        context.warn(f"mode={mode.name} asks for CUDA graphs, which this version doesn't capture yet")
