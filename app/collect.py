"""Collect: the records of a sweep whose machines share no folder, over any fsspec URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import ConfigError, OutputError

FILES = ("record.json", "samples.npz", "job.log")


def put(folder: Path, url: str, name: str) -> None:
    """Copy what a job found out to `url`/`name`.

    Raises:
        OutputError: it can't be written.
    """
    files, root = _open(url)
    try:
        files.makedirs(f"{root}/{name}", exist_ok=True)
        for path in (folder / name for name in FILES):
            if path.exists():
                files.put_file(str(path), f"{root}/{name}/{path.name}")
    except OSError as error:
        raise OutputError(f"sweep.collect={url!r} can't be written: {error}") from error


def get(url: str, folder: Path) -> None:
    """Copy what all jobs found out into `folder`; what is there already is replaced.

    Raises:
        OutputError: it can't be read.
    """
    files, root = _open(url)
    try:
        for path in files.find(root):
            target = folder / Path(path).relative_to(root)
            if target.name in FILES:
                target.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(path, str(target))
    except OSError as error:
        raise OutputError(f"sweep.collect={url!r} can't be read: {error}") from error


def _open(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise ConfigError("sweep.collect needs fsspec: pip install 'aot-app[remote]'") from error
    try:
        files, root = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"sweep.collect={url!r}: {error}") from error
    return files, root.rstrip("/")
