"""Aliases: a model loaded by its name, so that a service has nothing to compose."""

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

from rich.console import Console

from . import acquire, background, capturing, lookup, names, pipeline, planning
from .config import CacheConfig, Settings, user_cache_dir
from .context import Context, rungs_of
from .errors import AppError, EagerAskedError, StoreError
from .fallback import step_down
from .progress import Phases
from .record import Record

if TYPE_CHECKING:
    from .runtime.ladder import Ladder

logger = logging.getLogger(__name__)

POLL_S = 0.2


def swap_in(settings: Settings, folder: Path, ladder: Ladder) -> None:
    """Wait, in a thread, for the process that was started with `folder`, and put what it compiled on top of a ladder.

    What fails on the way is said once in the log, and the ladder serves on as it is.
    """
    threading.Thread(target=_swap_in, args=(settings, folder, ladder), daemon=True).start()


def _swap_in(settings: Settings, folder: Path, ladder: Ladder) -> None:
    deadline = time.monotonic() + settings.compile.timeout_s + settings.cache.lock_timeout_s
    while not (folder / background.RECORD).exists():
        if time.monotonic() > deadline:
            logger.warning("background: nothing was compiled in time; see %s", folder)
            return
        time.sleep(POLL_S)
    settings = replace(settings, cache=replace(settings.cache, on_miss="fail"))
    context = Context(settings, folder, Record(status="ok", task="load"), Phases(Console(quiet=True)))
    try:
        with acquire.opened(context) as store:
            model = pipeline.ready(context, store, acquire.acquire(context, store), measuring=False)
    except AppError as error:
        logger.warning("background: eager goes on serving: %s (see %s)", error.message, folder)
        return
    rungs = rungs_of(model, context.record.fallbacks)
    ladder.put_on_top(rungs)
    logger.info("background: %s serves from now on", rungs[0][0])
    shutil.rmtree(folder, ignore_errors=True)


def _by_eager(context: Context, error: EagerAskedError) -> Ladder:
    """Eager, and the artifact in its place once another process has made it."""
    context.step(step_down(error, context.settings.fallback))
    ladder = context.on_ladder(None)
    if (context.folder / background.FOLDER).is_dir():
        swap_in(context.settings, context.folder / background.FOLDER, ladder)
    return ladder


def load(name: str, cache: CacheConfig | None = None) -> Ladder:
    """The compiled model that an alias names, ready to be called; nothing is composed, and nothing compiled here.

    Args:
        name: What a run was given as `cache.alias`.
        cache: Where to look and whom to trust; the user's own cache unless given. Nothing of it comes from the alias.
            With `on_miss="background"` a miss is served by eager while another process compiles, and by the artifact
            once it is there and verified; with `eager` by eager alone.

    Raises:
        ConfigError: there is no such alias.
        MissError: the artifact isn't there, or something that it was made from has changed; the message says what.
            Only with `on_miss="fail"`, the default here.
        LoadError: it doesn't load in this process.
    """
    cache = replace(cache or CacheConfig(dir=user_cache_dir()), alias=None)
    if cache.on_miss == "compile":
        cache = replace(cache, on_miss="fail")
    if cache.dir is None:
        raise StoreError("cache.dir is null: there is no cache to load from")
    with lookup.open_store(cache, Path(cache.dir).expanduser(), readonly=cache.readonly) as store:
        settings = names.read(store, name, cache)
        folder = Path(tempfile.gettempdir(), f"app-{secrets.token_hex(8)}")
        context = Context(settings, folder, Record(status="ok", task="load"), Phases(Console(quiet=True)))
        try:
            found = acquire.acquire(context, store)
        except EagerAskedError as error:
            return _by_eager(context, error)
        model = acquire.load(context, found)
        capturing.capture(context, model, comparing=False)
        planning.settle(context, store, found, model, measuring=False)
        return context.on_ladder(model)
