"""Aliases: a model loaded by its name, so that a service has nothing to compose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import acquire, lookup, names, serving
from .config import CacheConfig, user_cache_dir
from .context import Context
from .errors import EagerAskedError, StoreError

if TYPE_CHECKING:
    from .runtime.ladder import Ladder


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
    return serve(name, cache)[1]


def serve(name: str, cache: CacheConfig | None = None) -> tuple[Context, Ladder]:
    """The same with the run that it took; raises as `load` does."""
    cache = replace(cache or CacheConfig(dir=user_cache_dir()), alias=None)
    if cache.on_miss == "compile":
        cache = replace(cache, on_miss="fail")
    if cache.dir is None:
        raise StoreError("cache.dir is null: there is no cache to load from")
    with lookup.open_store(cache, Path(cache.dir).expanduser(), readonly=cache.readonly) as store:
        context = serving.context_for(names.read(store, name, cache))
        context.record.device = context.device
        try:
            found = acquire.acquire(context, store)
        except EagerAskedError as error:
            return context, serving.by_eager(context, error, context.settings)
        return context, serving.from_store(context, store, found)
