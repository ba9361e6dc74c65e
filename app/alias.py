"""Aliases: a name for a request and its resolved settings, so that a service has nothing to compose."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from . import acquire, lookup
from .config import CacheConfig, Settings, user_cache_dir
from .context import Context
from .errors import ConfigError, StoreError
from .progress import Phases
from .record import Record
from .store import Store
from .store.trust import pack, unpack

if TYPE_CHECKING:
    from .runtime.model import CompiledModel


def save(store: Store, name: str, settings: Settings) -> None:
    """Let `name` stand for these settings; a run does it where `cache.alias` is given."""
    model = settings.model
    anywhere = replace(
        model,
        program=model.program and _absolute(model.program),
        checkpoint=model.checkpoint and _absolute(model.checkpoint),
        depends_on=[_absolute(path) for path in model.depends_on],
    )
    content = {"type": "alias", "name": name, "settings": {**asdict(replace(settings, model=anywhere)), "cache": {}}}
    store.write_document("aliases", name, pack(content, store.trust))


def _absolute(path: str) -> str:
    """As seen from the directory of the run that names it: a service runs elsewhere."""
    return str(Path(path).expanduser().absolute())


def read(store: Store, name: str, cache: CacheConfig) -> Settings:
    """The settings that `name` stands for, with this cache.

    Raises:
        ConfigError: there is no such alias, or nobody who is trusted vouches for it.
    """
    known = store.documents("aliases")
    if name not in known:
        raise ConfigError(f"no alias {name!r} in {store.root}; there are: {', '.join(sorted(known)) or 'none'}")
    try:
        content = unpack(known[name], store.trust)
        is_it = (content["type"], content["name"]) == ("alias", name)
        settings = Settings.from_json({**content["settings"], "cache": asdict(cache)})
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"the alias {name!r} in {store.root} can't be used: {error}") from error
    if not is_it:
        raise ConfigError(f"the alias {name!r} in {store.root} is another document")
    return settings


def load(name: str, cache: CacheConfig | None = None) -> CompiledModel:
    """The compiled model that an alias names, ready to be called; nothing is composed and nothing compiled.

    Args:
        name: What a run was given as `cache.alias`.
        cache: Where to look and whom to trust; the user's own cache unless given. Nothing of it comes from the alias.

    Raises:
        ConfigError: there is no such alias.
        MissError: the artifact isn't there, or something that it was made from has changed; the message says what.
        LoadError: it doesn't load in this process.
    """
    cache = replace(cache or CacheConfig(dir=user_cache_dir()), on_miss="fail", alias=None)
    if cache.dir is None:
        raise StoreError("cache.dir is null: there is no cache to load from")
    with lookup.open_store(cache, Path(cache.dir).expanduser(), readonly=cache.readonly) as store:
        settings = read(store, name, cache)
        context = Context(settings, Path(), Record(status="ok", task="load"), Phases(Console(quiet=True)))
        return acquire.load(context, acquire.acquire(context, store))
