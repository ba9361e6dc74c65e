"""Serving: a request -> a model that answers calls, on whatever rung it can; nothing is measured."""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import acquire, background, capturing, planning
from .config import Settings
from .context import Context
from .errors import AppError, EagerAskedError, ExportError
from .fallback import EAGER, step_down
from .lookup import Found
from .progress import Phases
from .record import Record
from .store import Store

if TYPE_CHECKING:
    from .runtime.ladder import Ladder

logger = logging.getLogger(__name__)

POLL_S = 0.2


def new_folder() -> Path:
    """Where a run that isn't the command's may write; it is made when something is."""
    return Path(tempfile.gettempdir(), f"app-{secrets.token_hex(8)}")


def context_for(settings: Settings, folder: Path | None = None) -> Context:
    """A run of a library call: its record is the answer to what happened, and nothing is shown."""
    return Context(settings, folder or new_folder(), new_record(settings), Phases(None))


def new_record(settings: Settings) -> Record:
    """The record of a library call."""
    return Record(
        status="ok",
        task="load",
        model=settings.model.name,
        mode=settings.mode.name,
        precision=settings.precision.name,
        weights=settings.weights.placement,
    )


def serve(context: Context, *, exporting: bool = False) -> Ladder:
    """The model with its rungs; a stage that fails costs a step down, as the policy says.

    Args:
        context: The run.
        exporting: What doesn't export is an error, whatever the policy says: the caller has another way.

    Raises:
        AppError: the policy says `raise`, or there is nothing to fall back to.
    """
    record, settings = context.record, context.settings
    record.device, record.rung, context.only_exported = context.device, EAGER, exporting
    try:
        _choose(context)
        if context.settings.mode.rung == EAGER or context.settings.mode.rung not in settings.fallback.rungs:
            return context.on_ladder(None)
        with acquire.opened(context) as store:
            return from_store(context, store, acquire.acquire(context, store))
    except EagerAskedError as error:
        return by_eager(context, error, settings)
    except AppError as error:
        if exporting and isinstance(error, ExportError):
            raise
        context.step(step_down(error, settings.fallback, context.served()))
        record.rung = EAGER
        return context.on_ladder(None)
    finally:
        if settings.cache.dir is not None or record.rung == EAGER:
            _tidy(context)


def _choose(context: Context) -> None:
    if context.settings.has_auto:  # what chooses can do more than a load needs to wait for
        from . import choose

        choose.resolve(context, choose.job_of(context))


def from_store(context: Context, store: Store, found: Found) -> Ladder:
    """Load what was found, with the graphs and plans that it has."""
    model = acquire.load(context, found)
    if found.outcome == "direct-hit" and (why := context.changed(model)) is not None:
        context.uncertain = why
        context.warn(f"{why}; it is exported anew")
        model = acquire.load(context, found := acquire.acquire(context, store))
    capturing.capture(context, model, comparing=False)
    planning.settle(context, store, found, model, measuring=False)
    context.record.rung = context.served(model)
    return context.on_ladder(model)


def _tidy(context: Context) -> None:
    """What a worker logged is of use only where it failed, or goes on."""
    if not context.record.fallbacks:
        shutil.rmtree(context.folder, ignore_errors=True)


def by_eager(context: Context, error: EagerAskedError, asked: Settings) -> Ladder:
    """Eager, and the artifact that was asked for in its place once another process has made it."""
    context.step(step_down(error, context.settings.fallback))
    ladder = context.on_ladder(None)
    if (context.folder / background.FOLDER).is_dir():
        swap_in(context, asked, ladder)
    return ladder


def swap_in(context: Context, asked: Settings, ladder: Ladder) -> None:
    """Wait, in a thread, for the process that a run has started, and put what it compiled on top of a ladder.

    What fails on the way is said once in the log, and the ladder serves on as it is.
    """
    ladder.pending = threading.Thread(target=_swap_in, args=(context, asked, ladder), daemon=True)
    ladder.pending.start()


def _swap_in(before: Context, settings: Settings, ladder: Ladder) -> None:
    folder = before.folder / background.FOLDER
    deadline = time.monotonic() + settings.compile.timeout_s + settings.cache.lock_timeout_s
    while not (folder / background.RECORD).exists():
        if time.monotonic() > deadline:
            logger.warning("background: nothing was compiled in time; see %s", folder)
            return
        time.sleep(POLL_S)
    settings = replace(settings, cache=replace(settings.cache, on_miss="fail"))
    context = context_for(settings, folder)
    if (workload := before.__dict__.get("workload")) is not None:  # built already, or live
        context.__dict__["workload"] = workload
    try:
        _choose(context)
        if context.settings.mode.engine == EAGER:
            logger.info("background: eager serves, which is the fastest")
            return
        with acquire.opened(context) as store:
            from . import pipeline

            model = pipeline.ready(context, store, acquire.acquire(context, store), measuring=False)
    except AppError as error:
        logger.warning("background: eager goes on serving: %s (see %s)", error.message, folder)
        return
    if (why := before.changed(model)) is not None:
        logger.warning("background: eager goes on serving: %s", why)
        return
    rungs = context.rungs(model)
    ladder.put_on_top(rungs)
    logger.info("background: %s serves from now on", rungs[0][0])
    shutil.rmtree(folder, ignore_errors=True)
