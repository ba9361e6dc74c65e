"""Names: what an alias stands for, kept in the store beside its objects."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from .config import CacheConfig, Settings, is_name
from .errors import ConfigError
from .store import Store
from .store.trust import pack, unpack


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


def adopt(store: Store, document: bytes) -> str:
    """Keep an alias that came with a bundle, as it was signed; returns its name.

    Raises:
        ValueError: it is no alias, or nobody who is trusted vouches for it.
    """
    content = unpack(document, store.trust)
    if not isinstance(content, dict) or content.get("type") != "alias" or not is_name(content.get("name")):
        raise ValueError("a document is no alias")
    name: str = content["name"]
    store.write_document("aliases", name, document)
    return name


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
