"""Directories in which objects are written: locked while in use, swept when their process has died.

No lock is common to all of them: a process that was stopped while it held one would stop every other.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def stage(tmp: Path) -> tuple[Path, FileLock]:
    """A new `tmp/<random>/` with its held lock; another, where a sweep found one before it was locked."""
    while True:
        home = Path(tempfile.mkdtemp(dir=tmp))
        lock = FileLock(home / "lock", thread_local=False)
        with suppress(Timeout, FileNotFoundError, FileExistsError):  # in the midst of being swept
            lock.acquire(timeout=0)
            (home / "files").mkdir(mode=0o700)
            return home, lock


@contextmanager
def staged(home: Path, lock: FileLock) -> Iterator[Path]:
    """The directory to fill; all that is left of it goes on the way out."""
    try:
        yield home / "files"
    finally:
        shutil.rmtree(home, ignore_errors=True)
        lock.release()


def sweep(tmp: Path) -> None:
    """Remove what died: the kernel has freed its lock."""
    for home in tmp.iterdir():
        lock = FileLock(home / "lock", thread_local=False)
        with suppress(Timeout, OSError):
            if home.is_symlink() or not home.is_dir():  # what once stood in the place of an object, or of the index
                home.unlink()
                continue
            lock.acquire(timeout=0)
            shutil.rmtree(home, ignore_errors=True)
            lock.release()
