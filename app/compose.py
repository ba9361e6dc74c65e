"""Compose: Hydra's config -> Settings. All of the program's use of Hydra's and OmegaConf's schemas is here."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from .config import DimConfig, InputConfig, Settings, user_cache_dir
from .errors import ConfigError


def _schema() -> DictConfig:
    """The schema as OmegaConf wants it: frozen dataclasses compose only with the read-only flag cleared."""
    schema: DictConfig = OmegaConf.structured(Settings)
    _writable(schema)
    free_groups = (
        *(schema.model.kwargs, schema.model.dims, schema.mode.inductor, schema.graphs.buckets),
        *(schema.data.kwargs, schema.data.inputs),
    )
    for free in free_groups:
        OmegaConf.set_struct(free, False)  # their keys are the user's, who need not write `+`
    return schema


def _writable(node: Any) -> None:
    OmegaConf.set_readonly(node, None)
    for name in range(len(node)) if isinstance(node, ListConfig) else node:
        child = node._get_node(name)  # noqa: SLF001 - the public accessors resolve and lose the node
        if OmegaConf.is_config(child):
            _writable(child)


def register() -> None:
    """Put the schema where conf/config.yaml finds it, as `settings`."""
    resolvers: dict[str, Callable[..., str]] = {
        "cache_dir": user_cache_dir,
        "package_file": _package_file,
        "unique": _unique,
        "fields": lambda: "\n".join(_describe(Settings)),
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(f"app.{name}", resolver, replace=True, use_cache=name == "unique")
    ConfigStore.instance().store(name=_STORED, node=_schema())


_LOCK = threading.Lock()
_STORED = "settings.yaml"


def compose(overrides: Sequence[str], folders: Sequence[Path]) -> Settings:
    """The settings that a command line of these overrides would come to, from anywhere.

    It may run within somebody else's Hydra program: what Hydra and its ConfigStore hold globally is put back.

    Args:
        overrides: As on the command line.
        folders: The program's own config folder, and further ones to search.

    Raises:
        ConfigError: they don't compose.
    """
    first, *others = (str(folder) for folder in folders)
    search = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in others)}]"] if others else []
    with _LOCK:
        theirs, repo = GlobalHydra.instance().hydra, ConfigStore.instance().repo
        settings = repo.get(_STORED)  # others may have something of that name
        GlobalHydra.instance().clear()
        try:
            register()
            with hydra.initialize_config_dir(first, version_base="1.3", job_name="app"):
                return typed(hydra.compose("config", overrides=[*search, *overrides]))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain_composition(error)) from error
        finally:
            GlobalHydra.instance().hydra = theirs
            repo.pop(_STORED, None)
            if settings is not None:
                repo[_STORED] = settings


def _package_file(package: str, relative: str) -> str:
    """A file inside an installed package, which isn't imported; `.` is this package."""
    if package == ".":
        return str(Path(__file__).parent / relative)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package {package} is not installed (pip install 'aot-app[minilm]')")
    return str(Path(spec.submodule_search_locations[0]) / relative)


def _describe(schema: Any, prefix: str = "") -> Iterator[str]:
    """A help line for each field of the schema."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hint):
            yield from _describe(hint, f"{name}.")
            continue
        yield f"  {name}: {field.metadata['help']}"
        for element, place in ((InputConfig, "[]."), (DimConfig, ".NAME.")):
            if element in get_args(hint):
                yield from _describe(element, f"{name}{place}")


def _unique() -> str:
    """So that no two runs share a directory, not even two of the same second."""
    return secrets.token_hex(3)


def typed(config: DictConfig | Mapping[str, Any]) -> Settings:
    """Turn a composed config into Settings.

    Raises:
        ConfigError: a value is of the wrong type, out of range, or not one of the choices.
    """
    try:
        # as plain values: Hydra's `+key=...` opens the composed config, and the schema must still say no
        plain = (
            OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            if isinstance(config, DictConfig)
            else dict(config)
        )
        merged = OmegaConf.merge(_schema(), plain)
        _writable(merged)
        settings = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    assert isinstance(settings, Settings)
    return settings


def explain(error: BaseException) -> str:
    """What a config error says to a user: its first line, where it is, and what would be valid."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    key = getattr(error, "full_key", None)
    text = first if not key or str(key) in first else f"{key}: {first}"
    owner = getattr(error, "object_type", None)
    if isinstance(error, ConfigKeyError | AttributeError) and dataclasses.is_dataclass(owner):
        text += f" (valid: {', '.join(field.name for field in dataclasses.fields(owner))})"
    return text


def explain_composition(error: BaseException) -> str:
    """Hydra's words and, from what caused them, the place and the valid choices."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OmegaConfBaseException):
            return explain(cause)  # the outermost: under a debugger it has causes of its own, without their place
        cause = cause.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = itertools.takewhile(
        lambda line: not line.startswith(("Config search path", "See https", "Set the env")), lines
    )
    return " ".join(told)
