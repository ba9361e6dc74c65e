"""The artifact store: objects named by content, and an index of them that can be thrown away.

    objects/ab/<digest>/   artifacts: files and manifest.json, put there by one rename
    weights/ab/<digest>/   weights, shared by the artifacts that use them
    index/                 request digests to objects, use counts, notes; on a local disk (SQLite)
    locks/<level>/ab.lock  never deleted
    pins/<kind>-<digest>   what never leaves
    aliases/<name>.json    settings by name
    plans/<object>-<machine>.json    latencies that batch plans are made of
    evidence/<request>-<machine>.json    what verified runs measured of a request
    quarantine/<digest>-<n>/{object, reason.txt}
    tmp/<random>/{files, lock}   what is being written; one whose lock is free was abandoned, and is swept
    scratch/               for others

A reader trusts only what it has hashed itself; a writer may die at any moment and leaves a store that works.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import platformdirs

from ..environment import NETWORK_FILESYSTEMS, filesystem_of
from ..errors import StoreError
from .collect import Item, leaving
from .index import Index
from .locks import LockTimeout, hold, hold_for_work
from .objects import (
    KINDS,
    MANIFEST,
    MANIFEST_SCHEMA,
    SIGNATURES,
    Artifact,
    Corrupt,
    FileInfo,
    Hit,
    Manifest,
    Miss,
    Untrusted,
    is_digest,
    look,
    move_away,
    place,
    read_manifest,
    read_signatures,
    seal,
    size_of,
    write_once,
)
from .staging import stage, staged, sweep
from .trust import Trust, check_place

__all__ = [
    "KINDS",
    "MANIFEST_SCHEMA",
    "Artifact",
    "Corrupt",
    "FileInfo",
    "Hit",
    "LockTimeout",
    "Manifest",
    "Miss",
    "Store",
    "Trust",
    "Untrusted",
]

logger = logging.getLogger(__name__)

MAX_ENTRIES = 16
# What work is excluded from: tracing a request; doing so privately, because the first lock's holder is stuck;
# compiling an object.
LOCK_LEVELS = ("requests", "private", "objects")
# The store's own locks are held while it hashes one object, so this long means a stuck process or disk.
OWN_LOCK_TIMEOUT_S = 60.0


class Store:
    """The artifacts under `root`.

    With `readonly` nothing on the disk changes: the index is made from the manifests, in memory, and what
    would publish, quarantine or lock raises `StoreError`. So does every method that the disk or its
    permissions keep from its promise; an unknown kind or a malformed digest is a `ValueError`.
    """

    def __init__(
        self, root: Path, *, readonly: bool = False, trust: Trust | None = None, size_limit: int | None = None
    ) -> None:
        self.root = root.absolute()
        self.readonly = readonly
        self.trust = trust or Trust()
        self.size_limit = size_limit
        self._in_use: set[str] = set()
        if self.trust.policy != "none":
            check_place(self.root)
        if not readonly:
            self._prepare()
        elif not self.root.is_dir():
            raise StoreError(f"cache: {self.root} is not a directory; set cache.dir or cache=off")
        directory = None if readonly else _index_place(self.root)
        self._index = Index(directory, self.root / "tmp", self._rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def scratch(self) -> Path:
        """A directory on the same disk for what is neither an object nor on its way to be one."""
        return self.root / "scratch"

    def entries(self, request: str) -> list[dict[str, Any]]:
        """The direct entries of a request, newest first; hints only, for the index may be stale."""
        return _entries(self._index.get(f"request/{request}"))

    def remember(self, request: str, entry: dict[str, Any]) -> None:
        """Put a direct entry first among its request's; the oldest beyond 16 are forgotten."""
        self._index.update(f"request/{request}", lambda known: _newest_first(entry, known))

    def note(self, key: str, value: Any) -> None:
        """Keep a small JSON value, for as long as the index lives."""
        self._index.update(f"note/{key}", lambda _: value)

    def noted(self, key: str) -> Any:
        """What was noted, or None."""
        return self._index.get(f"note/{key}")

    def change_note(self, key: str, change: Callable[[Any], Any]) -> None:
        """Replace a note by `change` of it, None where there was none; other processes wait meanwhile."""
        self._index.update(f"note/{key}", change)

    def used(self, kind: str, digest: str) -> None:
        """Count one use, now; `noted("used/<kind>/<digest>")` has `count` and `last_used` (Unix time)."""

        def count(known: Any) -> dict[str, Any]:
            before = known.get("count", 0) if isinstance(known, dict) else 0
            return {"count": before + 1, "last_used": time.time()}

        self._in_use.add(digest)
        self.change_note(f"used/{kind}/{digest}", count)

    def sign(self, kind: str, digest: str) -> None:
        """Add this store's signature to an object that has none of it, such as one made before there was a key.

        Raises:
            StoreError: it isn't there, isn't sound, or can't be written.
        """
        found = self.read(kind, digest, just_made=True)
        if not isinstance(found, Hit):
            raise StoreError(f"cache: {kind}/{digest[:12]} can't be signed: {found.reason}")
        path = found.artifact.path
        known = read_signatures(path)
        added = self.trust.sign((path / MANIFEST).read_bytes())
        if added and not (isinstance(known, dict) and known.keys() >= added.keys()):
            with self._writing(f"sign {digest[:12]}"), self._commit(digest):
                temporary = self.root / "tmp" / f"signatures-{secrets.token_hex(8)}"
                write_once(temporary, json.dumps((known or {}) | added).encode())
                temporary.replace(path / SIGNATURES)

    def write_document(self, folder: str, name: str, data: bytes) -> None:
        """Keep a small named document, replacing the one of that name in one step."""
        with self._writing(f"write {folder}/{name}"):
            temporary = self.root / folder / f".{name}-{secrets.token_hex(8)}"
            write_once(temporary, data)
            temporary.replace(self.root / folder / f"{name}.json")

    def document(self, folder: str, name: str) -> bytes | None:
        """One of them, or None."""
        path = self.root / folder / f"{name}.json"
        return path.read_bytes() if path.is_file() and not path.is_symlink() else None

    def documents(self, folder: str) -> dict[str, bytes]:
        """All documents by name, unread: who vouches for them is the reader's to check."""
        return {path.stem: path.read_bytes() for path in (self.root / folder).glob("*.json") if not path.is_symlink()}

    def rebuild_index(self) -> int:
        """Make the index again from the manifests; returns the number of requests that they answer."""
        return self._index.rebuild()

    def manifests(self, kind: str = "objects") -> Iterator[Manifest]:
        """Every readable manifest, oldest first; its object's files are not checked."""
        for path in sorted(self._directory(kind).glob("??/*/" + MANIFEST), key=_age):
            with suppress(OSError, ValueError):
                manifest = read_manifest(path.parent)
                if (manifest.kind, manifest.digest) == (kind, path.parent.name):
                    yield manifest

    def digests(self, kind: str) -> list[str]:
        """The names of everything of a kind, sound or not."""
        return sorted(path.name for path in self._directory(kind).glob("??/*") if is_digest(path.name))

    def examine(self, kind: str, digest: str) -> tuple[str, str | None]:
        """`ok`, `untrusted`, `corrupt` or `unreadable`, and why; every byte is read, and nothing is changed."""
        try:
            found = look(self._path(kind, digest), kind, digest, {}, self.trust)
        except StoreError as error:
            return "unreadable", error.message
        match found:
            case Untrusted(reason):
                return "untrusted", reason
            case Corrupt(_, reason) | Miss(reason):
                return "corrupt", reason
            case _:
                return "ok", None

    def read(self, kind: str, digest: str, *, just_made: bool = False) -> Hit | Miss | Corrupt:
        """Compare every file of an object with its manifest; what is wrong is quarantined.

        A file is hashed unless it was before and its stat tuple is the same. A malformed digest is a miss, since
        it comes from the index. What this process has `just_made` needs no signature.
        """
        if not is_digest(digest):
            return Miss(f"{digest!r} is not a digest")
        path = self._path(kind, digest)
        hashed = f"hashed/{kind}/{digest}"
        known = self.noted(hashed)
        known = known if isinstance(known, dict) else {}
        trust = Trust() if just_made else self.trust
        found = look(path, kind, digest, known, trust)
        if isinstance(found, Hit) and not self.readonly and found.stats != known:
            self.note(hashed, dict(found.stats))
        if isinstance(found, Corrupt) and not self.readonly:
            try:
                with self._commit(digest):
                    found = look(path, kind, digest, {}, trust)  # another process may have healed it
                    if isinstance(found, Corrupt):
                        self._move_away(path, found.reason)
            except StoreError as error:
                logger.warning("%s", error)  # a full disk, say: still corrupt, and a publisher will try again
        return found

    def publish(
        self,
        kind: str,
        digest: str,
        staging: Path,
        *,
        factors: dict[str, Any],
        content: dict[str, Any],
        verified: dict[str, Any],
        provenance: dict[str, Any],
        requests: list[dict[str, Any]],
    ) -> Artifact:
        """Make an object of the files in `staging`, and remember `requests`; `staging` is gone afterwards.

        An object of that name which is there already and reads well is kept and returned instead.
        """
        target = self._path(kind, digest)
        try:
            blank = Manifest(kind, digest, factors, {}, content, verified, provenance, requests)
            with self._writing(f"publish {kind}/{digest[:12]}"):
                artifact = self._commit_object(staging, Artifact(target, seal(staging, blank, self.trust)))
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._settle(digest, requests)
        return artifact

    def adopt(self, kind: str, digest: str, staging: Path) -> Artifact:
        """Take in an object that was made elsewhere, its manifest and signatures as they are.

        An object of that name which is there already and reads well is kept and returned instead; `staging` is gone
        afterwards.

        Raises:
            ConfigError: this store trusts only what its user made.
            StoreError: the store can't be written.
            ValueError: it isn't what its manifest says, or nobody who is trusted vouches for it.
        """
        self.trust.check_imports()
        target = self._path(kind, digest)
        try:
            with self._writing(f"adopt {kind}/{digest[:12]}"):
                found = look(staging, kind, digest, {}, self.trust, seal=True)
                if not isinstance(found, Hit):
                    raise ValueError(found.reason)  # noqa: TRY004 - a finding, not a caller's type
                artifact = self._commit_object(staging, Artifact(target, found.artifact.manifest))
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._settle(digest, artifact.manifest.requests)
        return artifact

    def items(self) -> list[Item]:
        """Everything that counts against the size limit."""
        found = []
        for kind in KINDS:
            for path in self._directory(kind).glob("??/*"):
                used = self.noted(f"used/{kind}/{path.name}")
                last = used["last_used"] if isinstance(used, dict) else _age(path)
                found.append(Item(kind, path.name, size_of(path), last, self.pinned(kind, path.name)))
        cells = (self.root / "quarantine").glob("*")
        return found + [Item("quarantine", path.name, size_of(path), _age(path)) for path in cells]

    def collect(self) -> list[Item]:
        """Remove what was used longest ago until the store is within its size limit; returns what left.

        What is pinned stays, and what this process has published or used. Unlinking a library that another
        process has mapped leaves it that process's own (on a local disk).
        """
        limit = self.size_limit
        if limit is None or sum(size_of(self.root / name) for name in (*KINDS, "quarantine")) <= limit:
            return []
        gone = leaving(
            (replace(item, pinned=item.pinned or item.digest in self._in_use) for item in self.items()), limit
        )
        for item in gone:
            self.remove(item.kind, item.digest)
        logger.info("cache: %d removed to stay within %d bytes", len(gone), limit)
        return gone

    def remove(self, kind: str, name: str) -> None:
        """Take something out of every reader's sight in one step, then delete it."""
        path = self.root / "quarantine" / name if kind == "quarantine" else self._path(kind, name)
        with self._writing(f"remove {name[:12]}"), suppress(FileNotFoundError):
            aside = self.root / "tmp" / f"removed-{secrets.token_hex(8)}"
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def pin(self, kind: str, digest: str, pinned: bool = True) -> None:
        """Keep an object for good, or no longer: a file says so, since the index may be lost."""
        with self._writing("pin"):
            path = self._pin(kind, digest)
            path.touch() if pinned else path.unlink(missing_ok=True)

    def pinned(self, kind: str, digest: str) -> bool:
        """Whether an object never leaves."""
        return self._pin(kind, digest).exists()

    def _pin(self, kind: str, digest: str) -> Path:
        return self.root / "pins" / f"{kind}-{digest}"

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty directory to fill and publish, private to this process; it is removed on the way out."""
        with self._writing("stage an object"):
            home, lock = stage(self.root / "tmp")
        with staged(home, lock) as folder:
            yield folder

    @contextmanager
    def lock(
        self, level: str, digest: str, timeout_s: float, on_wait: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Exclude other processes and threads from work on a digest; raises `LockTimeout`.

        A holder is waited for while its heartbeat goes on; one that stands still for `timeout_s` is given up.
        `level` is one of LOCK_LEVELS, and locks are nested in that order, at most one of each: then no two
        processes can wait for each other. A thread may take the lock that it holds again. Digests that share
        their first two hex digits share a file, and merely wait for each other.
        """
        if level not in LOCK_LEVELS or not is_digest(digest):
            raise ValueError(f"can't lock {level}/{digest}: the levels are {', '.join(LOCK_LEVELS)}")
        with self._writing("lock"):
            held = hold_for_work(self.root / "locks" / level / f"{digest[:2]}.lock", timeout_s, on_wait)
        with held:
            yield

    def quarantine(self, kind: str, digest: str, reason: str) -> None:
        """Move an object out of every reader's sight, whatever its checksums say, if it is there."""
        path = self._path(kind, digest)
        with self._commit(digest):
            if os.path.lexists(path):
                self._move_away(path, reason)

    def close(self) -> None:
        """Close the index; the next use opens it again."""
        self._index.close()

    def _prepare(self) -> None:
        locks = (f"locks/{level}" for level in (*LOCK_LEVELS, "commit"))
        try:
            for name in (*KINDS, *locks, "aliases", "plans", "evidence", "pins", "tmp", "quarantine", "scratch"):
                _make_private(self.root / name)
            # Tried, since permission bits don't tell of a read-only mount.
            tempfile.TemporaryFile(dir=self.root / "tmp").close()
        except OSError as error:
            why = f"{error.strerror or error}; set cache.dir or cache=off"
            raise StoreError(f"cache: {self.root} is not writable: {why}") from error
        with suppress(OSError):
            sweep(self.root / "tmp")

    def _settle(self, digest: str, requests: list[dict[str, Any]]) -> None:
        for item in requests:
            self.remember(item["request"], item["entry"])
        self._in_use.add(digest)
        self.collect()

    def _commit_object(self, staging: Path, artifact: Artifact) -> Artifact:
        """Under a lock, so that nobody quarantines by an old reading what somebody has just healed."""
        manifest = artifact.manifest
        with self._commit(manifest.digest):
            match look(artifact.path, manifest.kind, manifest.digest, {}, self.trust):
                case Hit(existing):
                    return existing
                case Corrupt(reason=reason):
                    self._move_away(artifact.path, reason)
                case Untrusted():
                    self.remove(manifest.kind, manifest.digest)
                case Miss():
                    pass
            place(staging, artifact.path)
        return artifact

    def _move_away(self, path: Path, reason: str) -> None:
        with self._writing(f"quarantine {path.name[:12]}"):
            move_away(path, self.root / "quarantine", reason)
        logger.warning("cache: quarantined %s: %s", path.name[:12], reason)

    def _commit(self, digest: str) -> Any:
        with self._writing("commit"):
            return hold(self.root / "locks" / "commit" / f"{digest[:2]}.lock", OWN_LOCK_TIMEOUT_S)

    @contextmanager
    def _writing(self, action: str) -> Iterator[None]:
        if self.readonly:
            raise StoreError(f"cache: can't {action}: {self.root} is opened read-only")
        try:
            yield
        except OSError as error:
            raise StoreError(f"cache: can't {action} in {self.root}: {error.strerror or error}") from error

    def _directory(self, kind: str) -> Path:
        if kind not in KINDS:
            raise ValueError(f"no kind {kind!r}; the kinds are {', '.join(KINDS)}")
        return self.root / kind

    def _path(self, kind: str, digest: str) -> Path:
        if not is_digest(digest):
            raise ValueError(f"{digest!r} is not a digest")
        place = f"{self._directory(kind)}/{digest[:2]}"
        for folder in (place.removesuffix(digest[:2]).rstrip("/"), place):
            if os.path.islink(folder):  # noqa: PTH114 - half the cost of pathlib's, at each lookup
                raise StoreError(f"cache: {folder} is a symbolic link, which could lead anywhere; remove it")
        return Path(place, digest)

    def _rows(self) -> dict[str, Any]:
        rows: dict[str, Any] = {}
        for kind in KINDS:
            for manifest in self.manifests(kind):
                for item in manifest.requests:
                    key = f"request/{item['request']}"
                    rows[key] = _newest_first(item["entry"], rows.get(key))
        return rows


def _index_place(root: Path) -> Path:
    """Beside the objects; not on a network file system, where SQLite loses data without saying so."""
    kind = filesystem_of(root)
    if kind not in NETWORK_FILESYSTEMS:
        return root / "index"
    name = hashlib.sha256(str(root).encode()).hexdigest()[:16]
    place = Path(platformdirs.user_cache_dir("aot-app")) / "indexes" / name
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    logger.info("cache: %s is on %s, which SQLite doesn't survive: its index is kept in %s", root, kind, place)
    return place


def _newest_first(entry: dict[str, Any], known: Any) -> list[dict[str, Any]]:
    return [entry, *(other for other in _entries(known) if other != entry)][:MAX_ENTRIES]


def _entries(row: Any) -> list[dict[str, Any]]:
    return [entry for entry in row if isinstance(entry, dict)] if isinstance(row, list) else []


def _age(path: Path) -> float:
    with suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def _make_private(path: Path) -> None:
    """As `mkdir -p`, but the parents too are for their owner alone."""
    if not path.is_dir():
        if not path.parent.exists():
            _make_private(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
