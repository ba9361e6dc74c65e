"""The index: small JSON rows in SQLite, through diskcache; damage may cost them all, and poisons nothing."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_RAW, UNKNOWN

logger = logging.getLogger(__name__)

INDEX_SCHEMA = 1

SETTINGS = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "size_limit": 2**62,
    "statistics": 0,
    "tag_index": 0,
    # A mapped database that somebody truncates ends this process with SIGBUS; a read one raises.
    "sqlite_mmap_size": 0,
}

# The machine's trouble, not the file's: throwing the index away would not help.
TRANSIENT = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
}


# Rows in one transaction: each costs a sync of the disk, and keeps every other process from opening the index.
REFILL_ROWS = 200


class IndexDamagedError(ValueError):
    """A row, or the whole database, is not what this program writes."""


class JSONDisk(diskcache.Disk):  # type: ignore[misc]
    """Rows are a string key and inline JSON text.

    diskcache's own `Disk` unpickles any row that says it is a pickle (CVE-2025-69872), so that whoever can
    plant one runs code here. None of its conversions is left in use.
    """

    def put(self, key: object) -> tuple[str, bool]:
        """The database's form of a key."""
        if not isinstance(key, str):
            raise TypeError(f"an index key is a string, not {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: object) -> str:
        """The key of a row."""
        if not raw or not isinstance(key, str):
            raise IndexDamagedError("a key is not a plain string: pickles are refused")
        return key

    def store(self, value: object, read: object, key: object = UNKNOWN) -> tuple[int, int, None, str]:  # noqa: ARG002
        """The database's form of a value, which is JSON or a `TypeError`."""
        if read:
            raise TypeError("the index takes values, not files")
        return 0, MODE_RAW, None, json.dumps(value, allow_nan=False)

    def fetch(self, mode: int, filename: str | None, value: object, read: object) -> object:
        """The value of a row."""
        if read or mode != MODE_RAW or filename is not None or not isinstance(value, str):
            raise IndexDamagedError(f"a row of mode {mode} is not inline JSON: pickles and files are refused")
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise IndexDamagedError(f"a row is not JSON: {error}") from error


class MemoryRows(dict[str, Any]):
    """The part of `diskcache.Cache` used here, for a place that can't be written."""

    def set(self, key: str, value: object) -> None:
        """Add or replace a row."""
        self[key] = value

    def transact(self) -> AbstractContextManager[None]:
        """Nothing to lock: the rows are this process's own."""
        return nullcontext()

    def close(self) -> None:
        """Nothing to close."""


class Index:
    """Rows by key, opened at first use; anything broken is thrown away and made again by `refill`.

    `directory` must be on a local disk, for NFS corrupts SQLite. With None the rows live in memory, as they
    do when the disk is full or the database stays busy: the index may slow a run down, never fail it.
    """

    def __init__(self, directory: Path | None, trash: Path, refill: Callable[[], dict[str, Any]]) -> None:
        self._directory, self._trash, self._refill = directory, trash, refill
        self._rows: Any = None

    def get(self, key: str) -> Any:
        """The row's value, or None."""
        return self._attempt(lambda rows: rows.get(key))

    def update(self, key: str, change: Callable[[Any], Any]) -> None:
        """Replace a row's value (None where there was none) by `change` of it, atomically.

        Every other opener of the index waits for `change`, so it must be quick.
        """

        def apply(rows: Any) -> None:
            with rows.transact():
                rows.set(key, change(rows.get(key)))

        self._attempt(apply)

    def rebuild(self) -> int:
        """Throw the rows away and make them again; returns how many there are."""
        self._discard()
        found: int = self._attempt(len)
        return found - (self._directory is not None)  # the schema's own row

    def close(self) -> None:
        """Close this thread's connection; the next use opens another."""
        if self._rows is not None:
            with suppress(sqlite3.Error):
                self._rows.close()
            self._rows = None

    def _attempt(self, operation: Callable[[Any], Any]) -> Any:
        for _ in range(2):
            try:
                return operation(self._open())
            except (sqlite3.Error, diskcache.Timeout, IndexDamagedError, OSError) as error:
                trouble = error
            if not _is_damage(trouble):
                break
            logger.warning("cache: the index is damaged (%s): rebuilding it from the manifests", trouble)
            self._discard()
        logger.warning("cache: the index can't be used (%s): this process keeps one in memory", trouble)
        self.close()
        self._directory = None
        return operation(self._open())

    def _open(self) -> Any:
        if self._rows is None:
            self._rows = MemoryRows(self._refill()) if self._directory is None else self._open_disk(self._directory)
        return self._rows

    def _open_disk(self, directory: Path) -> diskcache.Cache:
        directory.mkdir(mode=0o700, exist_ok=True)
        rows = diskcache.Cache.__new__(diskcache.Cache)  # apart, so that a failed __init__ can be closed too
        try:
            rows.__init__(str(directory), timeout=10, disk=JSONDisk, **SETTINGS)
            self._check_schema(rows)
        except BaseException as error:
            rows.close()
            if isinstance(error, (TypeError, AttributeError, KeyError)):  # what foreign settings lead to
                raise IndexDamagedError(f"its settings can't be read: {error}") from error
            raise
        return rows

    def _check_schema(self, rows: diskcache.Cache) -> None:
        found = rows.get("schema")
        if found is None:  # new, emptied, or its filling was cut short: the mark is set last
            for some in _chunks(self._refill()):
                with rows.transact():
                    for key, value in some:
                        rows.add(key, value)  # and not set: another process may have filled it and gone on
            rows.set("schema", INDEX_SCHEMA)
        elif found != INDEX_SCHEMA:
            raise IndexDamagedError(f"its schema is {found!r}, not {INDEX_SCHEMA}")

    def _discard(self) -> None:
        """Move it away in one step, so that another process finds it whole or not at all, then delete it."""
        self.close()
        if self._directory is not None:
            aside = self._trash / f"index-{secrets.token_hex(8)}"
            with suppress(OSError):
                self._directory.rename(aside)
                shutil.rmtree(aside) if aside.is_dir() else aside.unlink()


def _chunks(rows: dict[str, Any]) -> Iterator[list[tuple[str, Any]]]:
    items = list(rows.items())
    for start in range(0, len(items), REFILL_ROWS):
        yield items[start : start + REFILL_ROWS]


def _is_damage(error: BaseException) -> bool:
    """Whether a new database would mend it; the first cause decides, which a failed rollback hides."""
    codes = set()
    cause: BaseException | None = error
    while cause is not None:
        codes.add(getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF)
        cause = cause.__context__
    return isinstance(error, (sqlite3.Error, IndexDamagedError, FileExistsError)) and not codes & TRANSIENT
