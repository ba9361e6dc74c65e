"""Objects on disk: a directory of files and the manifest that says what each must be."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from io import BufferedReader
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import StoreError
from ..files import Stat, settled, stat_tuple
from .trust import Trust

MANIFEST = "manifest.json"
SIGNATURES = "signatures.json"  # of the manifest's bytes, by public key
MANIFEST_SCHEMA = 1
_HEAD, _NECK = '{"checksum":"', '",'  # around the checksum; the rest of the text follows
KINDS = ("objects", "weights")
OWN_FILES = frozenset((MANIFEST, SIGNATURES))

# What a damaged tree or disk answers; the rest (permission, too many open files) is the reader's own trouble.
DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EIO, errno.EUCLEAN)


def is_digest(value: object) -> bool:
    """Whether it is a SHA-256 in lower-case hex, and so safe as a file name."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_safe_name(name: str) -> bool:
    """Whether a file of this name lies within its object, and is none of the object's own."""
    path = PurePosixPath(name)
    plain = str(path) == name and "\0" not in name
    return plain and not path.is_absolute() and ".." not in path.parts and name not in {".", *OWN_FILES}


@dataclass(frozen=True)
class FileInfo:
    """What a file must be."""

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        if not is_digest(self.sha256):
            raise ValueError(f"not a sha256: {self.sha256!r}")
        if type(self.size_bytes) is not int or self.size_bytes < 0:
            raise ValueError(f"not a size in bytes: {self.size_bytes!r}")


@dataclass(frozen=True)
class Manifest:
    """What an object is, how it came about, and what each of its files must be.

    Attributes:
        kind: `objects` or `weights`.
        digest: The object's name.
        factors: The named factors that the digest was made of.
        files: Every file by its relative POSIX path.
        content: What the runtime needs to use it.
        verified: What was verified before it was published.
        provenance: When, where and by what it was made; no part of the digest.
        requests: The direct entries written with it, `{"request": digest, "entry": {...}}`, from which the
            index can be made again.
        schema: The version of this format.
    """

    kind: str
    digest: str
    factors: dict[str, Any]
    files: dict[str, FileInfo]
    content: dict[str, Any]
    verified: dict[str, Any]
    provenance: dict[str, Any]
    requests: list[dict[str, Any]]
    schema: int = MANIFEST_SCHEMA

    def __post_init__(self) -> None:
        if self.schema != MANIFEST_SCHEMA:
            raise ValueError(f"schema {self.schema!r} is not {MANIFEST_SCHEMA}")
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")
        if not is_digest(self.digest):
            raise ValueError(f"not a digest: {self.digest!r}")
        for name in ("factors", "files", "content", "verified", "provenance"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} is not a mapping")  # noqa: TRY004 - malformed text, not a caller's type
        if unsafe := [name for name in self.files if not is_safe_name(name)]:
            raise ValueError(f"unsafe path: {unsafe[0]!r}")
        if not all(map(_is_request, self.requests)):
            raise ValueError("a request is not {request, entry}")

    @property
    def holds_pickles(self) -> bool:
        """Whether it is what torch.compile left, which unpickles it: only its maker may load it."""
        return self.content.get("engine") == "jit"

    def to_json(self) -> str:
        """Its text, a checksum of all the rest in front: nothing else covers the manifest's own bytes."""
        return _with_checksum(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """The manifest of this text; raises `ValueError` on anything malformed."""
        try:
            raw = text.encode() if isinstance(text, str) else text
            body = json.loads(raw)
            rest = raw[len(_HEAD) + 64 + len(_NECK) :]
            if not raw.startswith(_HEAD.encode()) or body.pop("checksum") != hashlib.sha256(rest).hexdigest():
                raise ValueError("its checksum does not match")
            if set(body) != {field.name for field in fields(cls)}:
                raise ValueError(f"its fields are {', '.join(sorted(body))}")
            return cls(**{**body, "files": {name: FileInfo(**info) for name, info in body["files"].items()}})
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a manifest: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Artifact:
    """An object in its place whose every byte was found right."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """The object's name."""
        return self.manifest.digest

    @property
    def size_bytes(self) -> int:
        """The size of its files, without the manifest."""
        return sum(info.size_bytes for info in self.manifest.files.values())

    def file(self, name: str) -> Path:
        """Where the file `name` lies."""
        if name not in self.manifest.files:
            raise ValueError(f"no file {name!r} in {self.path}; it has {', '.join(self.manifest.files) or 'none'}")
        return self.path / name


@dataclass(frozen=True)
class Hit:
    """The object is there, and right; `stats` are those of its files that are old enough to tell a change by."""

    artifact: Artifact
    stats: Mapping[str, Stat] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Miss:
    """There is no such object."""

    reason: str


class Untrusted(Miss):
    """There is one, and nobody who is trusted vouches for it: as good as none."""


@dataclass(frozen=True)
class Corrupt:
    """The object is there, and wrong; a writable store has moved it to its quarantine."""

    digest: str
    reason: str


def look(
    path: Path, kind: str, digest: str, known: Mapping[str, Stat], trust: Trust, *, seal: bool = False
) -> Hit | Miss | Corrupt:
    """Check the object at `path`; raises `StoreError` if this process may not read it.

    Files whose stat tuple is among the `known`, by name, were hashed before and are not read again. With `seal`
    the files that are right are made read-only and put on the disk.
    """
    try:
        there = dict(_survey(str(path)))
        if (why := _distrust(path, there, trust)) is not None:
            return Untrusted(f"{kind}/{digest[:12]} is not trusted: {why}")
        return _check(path, kind, digest, there, known, seal=seal)
    except (OSError, ValueError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"{error.filename or path}: {error.strerror or error}"
            if error.errno not in DAMAGE:
                raise StoreError(f"cache: can't read {reason}") from error
        if not os.path.lexists(path):  # never was, or another process has just moved it away
            return Miss(f"no {kind}/{digest[:12]}")
        return Corrupt(digest, reason)


def _survey(folder: str, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Everything beneath a folder, by relative POSIX path; no symlink is followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield prefix + entry.name, entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                yield from _survey(entry.path, f"{prefix}{entry.name}/")


def _distrust(path: Path, there: Mapping[str, os.stat_result], trust: Trust) -> str | None:
    """Why the object at `path` isn't trusted: its owner, or its signatures; a symlink is left to `_check`."""
    if trust.policy == "signed" and not path.is_symlink():
        with _open(path / MANIFEST) as file:
            payload = file.read()
        return trust.refuses(payload, read_signatures(path))
    text = str(path)
    places = (text, os.path.dirname(text), os.path.dirname(os.path.dirname(text)))  # noqa: PTH120 - quicker
    above = ((os.path.basename(place), os.lstat(place)) for place in places)  # noqa: PTH119
    reasons = (trust.refuses_owner(name, found) for name, found in (*above, *there.items()))
    return next((why for why in reasons if why is not None), None)


def read_signatures(path: Path) -> Any:
    """What signs the object at `path`: signatures by public key, or None."""
    try:
        with _open(path / SIGNATURES) as file:
            return json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return None


def seal(folder: Path, blank: Manifest, trust: Trust) -> Manifest:
    """Make an object of the files in `folder`: hashed, read-only, on the disk, the manifest last of all.

    The manifest is read back from its text, so that the publisher sees what every later reader will.
    """
    names = sorted(name for name, found in _survey(str(folder)) if not stat.S_ISDIR(found.st_mode))
    files = {name: _fingerprint(folder / name, seal=True) for name in names}
    text = replace(blank, files=files).to_json()
    if signatures := trust.sign(text.encode()):
        write_once(folder / SIGNATURES, json.dumps(signatures).encode())
    write_once(folder / MANIFEST, text.encode())
    _sync_all(folder)
    return Manifest.from_json(text)


def write_once(path: Path, data: bytes) -> None:
    """A new file, read-only and on the disk."""
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o400)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def place(staged: Path, target: Path) -> None:
    """Commit: the one rename before which the object is not there, and after which it is there whole."""
    target.parent.mkdir(mode=0o700, exist_ok=True)
    staged.rename(target)
    sync(target.parent)
    sync(target.parent.parent)


def move_away(path: Path, quarantine: Path, reason: str) -> None:
    """Move whatever is at `path` into a new `quarantine/<digest>-<n>/`, the reason written there first."""
    for number in count():
        cell = quarantine / f"{path.name}-{number}"
        try:
            cell.mkdir(mode=0o700)
            break
        except FileExistsError:
            continue
    (cell / "reason.txt").write_text(f"{path}: {reason}\n", encoding="utf-8", errors="backslashreplace")
    path.rename(cell / "object")


def sync(folder: Path) -> None:
    """Put a directory's entries on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_all(folder: Path) -> None:
    for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync(inner)


def size_of(path: Path) -> int:
    """Bytes of all files beneath a folder; what vanishes meanwhile counts as nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += Path(folder, name).lstat().st_size
    return total


def _check(
    path: Path,
    kind: str,
    digest: str,
    there: Mapping[str, os.stat_result],
    known: Mapping[str, Stat],
    *,
    seal: bool,
) -> Hit:
    if path.is_symlink():
        raise ValueError("a symlink stands in its place")
    stats = {name: stat_tuple(found) for name, found in there.items() if not stat.S_ISDIR(found.st_mode)}
    manifest = read_manifest(path)
    if (manifest.kind, manifest.digest) != (kind, digest):
        raise ValueError(f"its manifest is that of {manifest.kind}/{manifest.digest}")
    if extra := stats.keys() - OWN_FILES - manifest.files.keys():
        raise ValueError(f"{min(extra)!r} is not in its manifest")
    for name, info in manifest.files.items():
        if known.get(name, []) != stats.get(name) and (found := _fingerprint(path / name, seal=seal)) != info:
            raise ValueError(f"{name!r} has {_words(found)}; its manifest says {_words(info)}")
    if seal:
        _sync_all(path)
    return Hit(Artifact(path, manifest), {name: stat for name, stat in stats.items() if settled(stat)})


def read_manifest(path: Path) -> Manifest:
    """The manifest of the object at `path`; raises `ValueError` or `OSError`."""
    with _open(path / MANIFEST) as file:
        try:
            return Manifest.from_json(file.read())
        except ValueError as error:
            raise ValueError(f"{MANIFEST}: {error}") from error


def _fingerprint(path: Path, *, seal: bool = False) -> FileInfo:
    with _open(path) as file, ThreadPoolExecutor(1) as aside:
        if seal:
            os.fchmod(file.fileno(), 0o400)
            synced = aside.submit(os.fsync, file.fileno())  # while it is hashed: disk and processor side by side
        found = FileInfo(hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size)
        if seal:
            synced.result()
        return found


def _open(path: Path) -> BufferedReader:
    """Open a regular file, following no symlink and waiting for no pipe."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path.name!r} is not a regular file")
    return file


def _with_checksum(body: dict[str, Any]) -> str:
    rest = json.dumps(body, allow_nan=False, separators=(",", ":"), sort_keys=True).removeprefix("{")
    return f"{_HEAD}{hashlib.sha256(rest.encode()).hexdigest()}{_NECK}{rest}"


def _is_request(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and set(item) == {"request", "entry"}
        and is_digest(item["request"])
        and isinstance(item["entry"], dict)
    )


def _words(info: FileInfo) -> str:
    return f"{info.size_bytes} bytes of sha256 {info.sha256[:12]}"
