"""Files: written whole; their digests, and the stat tuples that say when a digest taken before still holds."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import OutputError

# A file younger than this may change again without its time stamps moving (git calls such an index entry racy).
SETTLED_NS = 2_000_000_000

Stat = list[int]


def stat_of(path: Path) -> Stat:
    """Device, inode, size, and mtime and ctime in ns: some of it moves whenever a settled file's content does.

    Symbolic links are not followed.
    """
    return stat_tuple(path.lstat())


def stat_tuple(found: os.stat_result) -> Stat:
    """What `stat_of` makes of a system call's answer."""
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def settled(stat: Stat) -> bool:
    """Whether a digest taken now may be remembered under this tuple."""
    return time.time_ns() - max(stat[3:]) > SETTLED_NS


def sha256_of(path: Path) -> str:
    """The digest of a file, or of a folder: its files' relative paths and digests."""
    if path.is_dir():
        files = sorted(item for item in path.rglob("*") if item.is_file() and "__pycache__" not in item.parts)
        lines = (f"{item.relative_to(path).as_posix()} {sha256_of(item)}\n" for item in files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def replaced(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Write what takes the place of a file, so that a reader finds all of the old or of the new, even after a crash.

    Without `durable` it is the process that may crash, not the machine.

    Raises:
        OutputError: it can't be written.
    """
    if not path.name or "\0" in str(path):
        raise OutputError(f"can't write {str(path)!r}: that names no file")
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}")
    try:
        try:
            with beside.open("wb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            beside.replace(path)
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file by a text, as `replaced` does; what has no UTF-8 is escaped."""
    with replaced(path, durable=durable) as file:
        file.write(text.encode(errors="backslashreplace"))
