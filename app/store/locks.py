"""Locks between processes, freed by the kernel the moment their holder dies, whatever it dies of."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ..errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class LockTimeout(StoreError):  # noqa: N818
    """Another process, or another thread of this one, held a lock for longer than the caller would wait."""


@contextmanager
def hold(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock file `path`; raises `LockTimeout` after `timeout_s`.

    A thread that holds it may take it again: filelock's singletons count per path and thread, while two
    threads exclude each other as two processes do. The file is never deleted: whoever waits on a deleted one
    and whoever creates its successor would both believe that they hold it.
    """
    lock = FileLock(path, is_singleton=True)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise LockTimeout(
            f"cache: {path} was held elsewhere for {timeout_s:g} s; see cache.lock_timeout_s"
        ) from error
    except OSError as error:
        raise StoreError(f"cache: can't lock {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()
