"""Archives: objects with their manifests and signatures, and signed documents, in one uncompressed tar.

    <kind>/<digest>/manifest.json     first of an object's members
    <kind>/<digest>/signatures.json   where there are any
    <kind>/<digest>/<file>            the rest, as the manifest names them
    documents/<n>.json                by trust.pack

A bundle is one of many objects; the remote tier keeps one of one object each. What is read may come from anybody:
every member is a plain header and its bytes, none of tar's extensions is understood, nothing is written before a
trusted key has vouched for the manifest that names it, and an object is in the store whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, BinaryIO

from ..errors import StoreError
from .objects import KINDS, MANIFEST, SIGNATURES, Hit, Manifest, is_digest, write_once
from .trust import unpack

if TYPE_CHECKING:
    from . import Store

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 20
MANIFEST_LIMIT = 16 << 20
SIGNATURES_LIMIT = 64 << 10
DOCUMENT_LIMIT = 1 << 20
DOCUMENTS = "documents"


@dataclass
class Imported:
    """What an archive held.

    Attributes:
        objects: Kind and digest of everything that is in the store now.
        documents: Signed documents, as they were packed, that a trusted key vouches for.
        refused: What was skipped, with the reason.
        damaged: Whether the archive or an object in it was broken, and not merely by somebody who isn't trusted.
    """

    objects: list[tuple[str, str]] = field(default_factory=list)
    documents: list[bytes] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    damaged: bool = False


class NotAnArchiveError(StoreError):
    """It doesn't even begin like one."""


class _NotOursError(ValueError):
    """It is whole, for all we know, but by nobody who is trusted, or not what was asked for."""


class _BrokenError(Exception):
    """The archive can't be read any further."""


@dataclass
class _Member:
    """A header, and the bytes that follow it."""

    info: tarfile.TarInfo
    stream: BinaryIO
    left: int

    @property
    def parts(self) -> list[str]:
        """Kind, digest and file, which may lie in a folder; whatever the name is, the first two say whose it is."""
        return self.info.name.split("/", 2)

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, once; raises `ValueError` if it is a link, a device or anything else but a plain file."""
        if self.info.type != tarfile.REGTYPE:
            raise ValueError(f"{self.info.name!r} is no plain file")
        yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        """What has not been read yet."""
        while self.left:
            data = self.stream.read(min(self.left, CHUNK))
            if not data:
                raise _BrokenError(f"it ends within {self.info.name!r}")
            self.left -= len(data)
            yield data

    def read(self, limit: int) -> bytes:
        """All of its bytes, if they are at most `limit`."""
        if self.info.size > limit:
            raise ValueError(f"{self.info.name!r} has {self.info.size} bytes; at most {limit} are read")
        return b"".join(self.chunks())


def write(stream: BinaryIO, store: Store, items: Iterable[tuple[str, str]], documents: Iterable[bytes] = ()) -> None:
    """Write objects, checked as every reader checks them, and documents.

    Raises:
        StoreError: an object isn't there, isn't trusted, is damaged, or has a file of 8 GiB or more.
    """
    try:
        for kind, digest in items:
            found = store.read(kind, digest)
            if not isinstance(found, Hit):
                raise StoreError(f"cache: {kind}/{digest[:12]} can't be written into an archive: {found.reason}")
            if found.artifact.manifest.holds_pickles:
                raise StoreError(f"cache: {kind}/{digest[:12]} holds pickles, which never leave this store")
            place = found.artifact.path
            own = [name for name in (MANIFEST, SIGNATURES) if (place / name).exists()]
            for name in (*own, *sorted(found.artifact.manifest.files)):
                with (place / name).open("rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    stream.write(_header(f"{kind}/{digest}/{name}", size))
                    shutil.copyfileobj(file, stream, CHUNK)
                    stream.write(bytes(-size % BLOCK))
        for number, document in enumerate(documents):
            stream.write(_header(f"{DOCUMENTS}/{number}.json", len(document)) + document)
            stream.write(bytes(-len(document) % BLOCK))
        stream.write(bytes(2 * BLOCK))
    except (OSError, ValueError) as error:
        raise StoreError(f"cache: an archive can't be written: {error}") from error


def read(stream: BinaryIO, store: Store, only: tuple[str, str] | None = None) -> Imported:
    """Put the objects of an archive into the store, those that are trusted and whole.

    Args:
        stream: The archive; it is read once, from front to end.
        store: Where the objects go, and whose trust decides.
        only: Kind and digest of the one object that may be in it.

    Raises:
        ConfigError: the store trusts only what its user made.
        NotAnArchiveError: it is none.
        StoreError: it can't be read, or the store can't be written.
    """
    store.trust.check_imports()
    imported = Imported()
    try:
        for owner, members in groupby(_members(stream), key=lambda member: member.parts[:2]):
            with _refusing(imported, owner):
                _take(store, owner, members, imported, only)
    except _BrokenError as error:
        imported.refused.append(f"the archive is damaged: {error}")
        imported.damaged = True
    except OSError as error:
        raise StoreError(f"cache: an archive can't be read: {error}") from error
    return imported


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o400
    return info.tobuf(tarfile.USTAR_FORMAT)


def _members(stream: BinaryIO) -> Iterator[_Member]:
    """Every header with what follows it; tar's extensions are members like others, of names that nobody expects."""
    first = True
    while (block := stream.read(BLOCK)) != bytes(BLOCK):
        try:
            info = tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
        except tarfile.HeaderError as error:
            if first:
                raise NotAnArchiveError(f"cache: it is no archive of this program's: {error}") from error
            raise _BrokenError(str(error) if block else "it is cut short") from error
        if info.size < 0:
            raise _BrokenError(f"{info.name!r} has less than no bytes")
        first = False
        member = _Member(info, stream, info.size)
        yield member
        for _ in member.rest():
            pass
        if len(stream.read(-info.size % BLOCK)) != -info.size % BLOCK:
            raise _BrokenError(f"it ends after {info.name!r}")


@contextmanager
def _refusing(imported: Imported, owner: list[str]) -> Iterator[None]:
    """What can't be imported is listed, and the next one is tried."""
    try:
        yield
    except OSError as error:
        imported.refused.append(f"{_shown(owner)}: {error.strerror or error}")
    except ValueError as error:
        imported.refused.append(f"{_shown(owner)}: {error}")
        imported.damaged = imported.damaged or not isinstance(error, _NotOursError)


def _take(
    store: Store, owner: list[str], members: Iterator[_Member], imported: Imported, only: tuple[str, str] | None
) -> None:
    """Import what belongs together: an object, or a document."""
    match owner:
        case [kind, str(digest)] if kind in KINDS and is_digest(digest):
            if only not in {None, (kind, digest)}:
                raise _NotOursError("it is not what was asked for")
            _take_object(store, kind, digest, members)
            imported.objects.append((kind, digest))
        case [name, str(leaf)] if name == DOCUMENTS and leaf.endswith(".json") and only is None:
            imported.documents += [_document(member.read(DOCUMENT_LIMIT), store) for member in members]
        case _:
            raise ValueError("nothing of that name is expected")


def _take_object(store: Store, kind: str, digest: str, members: Iterator[_Member]) -> None:
    first = next(members)
    if first.parts[2:] != [MANIFEST]:
        raise ValueError("it does not begin with its manifest")
    payload, signatures = first.read(MANIFEST_LIMIT), None
    member = next(members, None)
    if member is not None and member.parts[2:] == [SIGNATURES]:
        signatures = member.read(SIGNATURES_LIMIT)
        member = next(members, None)
    manifest = _vouched(payload, signatures, store)
    if (manifest.kind, manifest.digest) != (kind, digest):
        raise ValueError(f"its manifest is that of {manifest.kind}/{manifest.digest[:12]}")
    missing = dict(manifest.files)
    with store.staging() as folder:
        while member is not None:
            name = "/".join(member.parts[2:])
            info = missing.pop(name, None)
            if info is None:
                raise ValueError(f"{name!r} is not in its manifest, or is there twice")
            if member.info.size != info.size_bytes:
                raise ValueError(f"{name!r} has {member.info.size} bytes; its manifest says {info.size_bytes}")
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.writelines(member.chunks())
            member = next(members, None)
        if missing:
            raise ValueError(f"{min(missing)!r} is missing")
        if signatures is not None:
            write_once(folder / SIGNATURES, signatures)
        write_once(folder / MANIFEST, payload)
        store.adopt(kind, digest, folder)


def _vouched(payload: bytes, signed: bytes | None, store: Store) -> Manifest:
    """The manifest, once somebody who is trusted vouches for it."""
    try:
        signatures = json.loads(signed or b"null")
    except (ValueError, RecursionError):
        signatures = None
    if (why := store.trust.refuses(payload, signatures)) is not None:
        if isinstance(signatures, dict) and store.trust.trusted & signatures.keys():
            raise ValueError(why)  # by a key that we know: these are not the bytes that it signed
        raise _NotOursError(why)
    manifest = Manifest.from_json(payload)
    if manifest.holds_pickles:
        raise _NotOursError("it holds pickles, which are taken from nobody")
    return manifest


def _document(data: bytes, store: Store) -> bytes:
    try:
        unpack(data, store.trust)
    except ValueError as error:
        raise _NotOursError(error) from error
    return data


def _shown(owner: list[str]) -> str:
    return "/".join([owner[0], *(part[:12] for part in owner[1:])]).encode("unicode_escape").decode()
