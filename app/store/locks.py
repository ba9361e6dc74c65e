"""Locks between processes, freed by the kernel the moment their holder dies, whatever it dies of."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ..errors import StoreError

BEAT_S = 1.0


class LockTimeout(StoreError):  # noqa: N818
    """Another process, or another thread of this one, held a lock for longer than the caller would wait."""


@contextmanager
def hold(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock file `path`; raises `LockTimeout` after `timeout_s`.

    A thread that holds it may take it again: filelock's singletons count per path and thread, while two
    threads exclude each other as two processes do. The file is never deleted: whoever waits on a deleted one
    and whoever creates its successor would both believe that they hold it.
    """
    lock = _acquire(path, timeout_s)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def hold_for_work(path: Path, timeout_s: float, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock for as long as work takes, with a heartbeat that those who wait for it see.

    Args:
        path: The lock file; the modification time of the `.beat` file beside it is the heartbeat.
        timeout_s: How long the holder's heartbeat may stand still; while it beats, the holder is waited for.
        on_wait: Called once, where there is somebody to wait for.

    Raises:
        LockTimeout: the holder shows no heartbeat: it is stopped or stuck.
    """
    beat, done = path.with_suffix(".beat"), threading.Event()
    try:
        lock = _acquire(path, 0)
    except LockTimeout:
        on_wait()
        lock = _outlast(path, beat, timeout_s)
    heart = threading.Thread(target=_beat, args=(beat, done), daemon=True)
    try:
        heart.start()
        yield
    finally:
        done.set()
        heart.join()
        lock.release()


def _acquire(path: Path, timeout_s: float) -> BaseFileLock:
    lock = FileLock(path, is_singleton=True)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise LockTimeout(f"cache: {path} was held elsewhere for {timeout_s:g} s") from error
    except OSError as error:
        raise StoreError(f"cache: can't lock {path}: {error.strerror or error}") from error
    return lock


def _outlast(path: Path, beat: Path, timeout_s: float) -> BaseFileLock:
    """Wait by this process's own clock for a change of the heartbeat: nobody's idea of the time of day matters."""
    seen, since = None, time.monotonic()
    while True:
        with suppress(LockTimeout):
            return _acquire(path, min(BEAT_S, timeout_s))
        found = beat.stat().st_mtime_ns if beat.exists() else 0
        if found != seen:
            seen, since = found, time.monotonic()
        elif time.monotonic() - since >= timeout_s:
            raise LockTimeout(f"cache: the holder of {path} has shown no heartbeat for {timeout_s:g} s")


def _beat(path: Path, done: threading.Event) -> None:
    while True:
        with suppress(OSError):  # a full disk, say: then those who wait work for themselves
            path.touch()
        if done.wait(BEAT_S):
            return
