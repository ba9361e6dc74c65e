"""Composed: the settings that overrides come to; kept, so that a service composes nothing twice."""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import __version__
from .config import Settings, user_cache_dir
from .errors import ConfigError, StoreError
from .keys import digest
from .store.trust import check_place

logger = logging.getLogger(__name__)

# What conf/ reads of the environment; a test compares.
ENVIRONMENT = ("APP_CACHE_REMOTE", "HOME", "MLFLOW_TRACKING_URI", "XDG_CACHE_HOME")


def conf_dir() -> Path:
    """Where conf/ is: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    return next(path for path in (package / "conf", package.parent / "conf") if (path / "config.yaml").is_file())


def settings_of(overrides: Sequence[str], config_dir: str | Path | None = None) -> Settings:
    """What `python -m app OVERRIDES` is told.

    Args:
        overrides: As on the command line; no sweep.
        config_dir: A folder of config groups of one's own, as `--config-dir`.

    Raises:
        ConfigError: they don't compose; the message says what would be valid.
    """
    folders = [conf_dir(), *([Path(config_dir).absolute()] if config_dir is not None else [])]
    # an interpolation of the caller's may read anything
    kept = None if any("${" in text for text in overrides) else _place(overrides, folders)
    if kept is not None and (known := _read(kept)) is not None:
        return known
    from .compose import compose

    settings = compose(overrides, folders)
    if kept is not None:
        _write(kept, settings)
    return settings


def _place(overrides: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """The file that holds what these overrides came to, by all that they were composed from."""
    files = [[str(path), *_stat(path)] for folder in folders for path in sorted(folder.rglob("*.yaml"))]
    environment = {name: os.environ.get(name) for name in ENVIRONMENT}
    name = digest([__version__, list(overrides), files, environment, sys.prefix])
    return Path(user_cache_dir()).with_name("composed") / f"{name}.json"


def _stat(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read(path: Path) -> Settings | None:
    """What is kept there; nobody else may have been able to write it, for it names code to run."""
    try:
        text = path.read_text(encoding="utf-8")
        check_place(path)
        return Settings.from_json(json.loads(text))
    except (OSError, ValueError, StoreError, ConfigError) as error:
        if not isinstance(error, FileNotFoundError):
            logger.info("composed again: %s", error)
        return None


def _write(path: Path, settings: Settings) -> None:
    content: dict[str, Any] = asdict(settings)
    with suppress(OSError, TypeError, ValueError):  # it only saves time
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = path.with_name(f".{secrets.token_hex(8)}")
        beside.write_text(json.dumps(content), encoding="utf-8")
        beside.replace(path)
