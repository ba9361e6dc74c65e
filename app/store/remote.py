"""The remote tier: a store that others fill too, over anything that fsspec reaches, or a plain folder.

    objects/ab/<digest>.tar                   an archive of one object
    weights/ab/<digest>.tar
    requests/ab/<request>/<sha256>.json       a signed entry, as the index holds it
    claims/ab/<request>                       somebody makes what answers it, and touches this meanwhile

Whoever can write there is trusted with nothing: what comes from it is checked as what any archive holds is. Nothing
but a claim is overwritten. It may be slow, broken or gone: that costs a line and the time-outs, never the run.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError, StoreError
from . import archive
from .objects import KINDS, Hit, is_digest
from .trust import Trust, pack, unpack

if TYPE_CHECKING:
    from . import Store

logger = logging.getLogger(__name__)

ATTEMPTS = 2
CLAIM_BEAT_S = 5.0
MAX_ENTRIES = 16  # of a request, the newest: whoever can write there may have put any number
_CHANGED = ("LastModified", "mtime", "last_modified", "updated", "created")  # as file systems call it

T = TypeVar("T")


class Remote:
    """Artifacts that others can fetch, at `url`.

    No method raises for what the remote does. After two failures in a row it is dead for the rest of the run, and
    every method answers at once that there is nothing.

    Args:
        url: A folder, or an fsspec URL.
        writable: Whether what is made here is put there.
        trust: Whose entries count, and who signs the ones made here.
        timeout_s: How long one operation may take.
        warn: Is given each line that the user should read.

    Raises:
        ConfigError: nothing from elsewhere is trusted, or it is writable and there is no key to sign with; from any
            method where the file system isn't installed.
    """

    def __init__(
        self,
        url: str,
        *,
        writable: bool,
        trust: Trust,
        timeout_s: float,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        trust.check_imports()
        if writable and trust.policy == "signed" and trust.signing_key is None:
            raise ConfigError("cache.remote_mode=read-write needs cache.signing_key; task=cache.keygen makes one")
        self.writable, self.dead = writable, False
        self._url, self._trust, self._timeout_s, self._warn = url, trust, timeout_s, warn
        self._opened: tuple[Any, str] | None = None

    def entries(self, request: str) -> list[dict[str, Any]]:
        """The entries of a request that somebody who is trusted vouches for, newest first."""
        folder = f"requests/{request[:2]}/{request}"

        def collect(files: Any, root: str) -> list[bytes]:
            try:
                listed = files.ls(f"{root}/{folder}", detail=True)
            except FileNotFoundError:
                return []
            newest = sorted(filter(_is_document, listed), key=_changed, reverse=True)[:MAX_ENTRIES]
            return [files.cat_file(info["name"]) for info in newest]

        nothing: list[bytes] = []
        entries, refused = [], []
        for document in self._attempt(collect, nothing):
            try:
                entries.append(_entry(unpack(document, self._trust), request))
            except ValueError as error:
                refused.append(str(error))
        if refused:
            self._warn(f"cache: {len(refused)} entries of the remote are refused: {refused[0]}")
        return entries

    def fetch(self, store: Store, kind: str, digest: str) -> bool:
        """Bring an object into the store, unless it is there; whether it is there now.

        Raises:
            StoreError: the store can't be written.
            ValueError: the kind or the digest is malformed.
        """
        path = _path(kind, digest)
        if isinstance(store.read(kind, digest), Hit):
            return True
        with store.staging() as folder:

            def copy(files: Any, root: str) -> Path | None:
                try:
                    info = files.info(f"{root}/{path}")
                except FileNotFoundError:
                    return None
                size = info["size"]
                if info["type"] != "file" or (store.size_limit is not None and size > store.size_limit):
                    self._warn(f"cache: {path} of the remote is refused: it is no file within cache.size_limit")
                    return None
                target = folder / secrets.token_hex(8)  # an attempt that was given up may still be writing to its own
                files.get_file(f"{root}/{path}", str(target))
                if target.stat().st_size != size:
                    raise OSError(f"{path} came with {target.stat().st_size} of its {size} bytes")
                return target

            copied = self._attempt(copy, None)
            return copied is not None and self._import(store, kind, digest, copied)

    def put(self, store: Store, kind: str, digest: str) -> bool:
        """Put an object there, unless there is one; whether there is one now."""
        path = _path(kind, digest)
        if not self.writable:
            return False
        if (there := self._attempt(lambda files, root: bool(files.exists(f"{root}/{path}")), False)) or self.dead:
            return there
        try:
            with store.staging() as folder:
                with (folder / "archive").open("wb") as stream:
                    archive.write(stream, store, [(kind, digest)])
                return self._create(folder / "archive", path)
        except StoreError as error:
            self._warn(f"{error.message}; it is not put into the remote")
            return False

    def put_entry(self, request: str, entry: dict[str, Any]) -> None:
        """Put a signed entry of a request there."""
        if self.writable and not self.dead:
            document = pack({"type": "entry", "request": request, "entry": entry}, self._trust)
            with tempfile.TemporaryDirectory(prefix="app-") as folder:
                file = Path(folder, "entry")
                file.write_bytes(document)
                self._create(file, f"requests/{request[:2]}/{request}/{hashlib.sha256(document).hexdigest()}.json")

    @contextmanager
    def claim(self, request: str, still_s: float, on_wait: Callable[[], None]) -> Iterator[bool]:
        """Keep the other machines that fill this remote from making the same; gives whether one of them had it first.

        A claim that nobody has touched for `still_s` is taken over. Two may do so in the same moment: what they make
        is made twice then, which costs time only.

        Args:
            request: The request's digest.
            still_s: How long whoever holds it may show no sign of life.
            on_wait: Called once, where somebody is waited for.
        """
        path, waited = f"claims/{request[:2]}/{request}", False
        seen, since = "", time.monotonic()
        while not (self._create_claim(path) or self.dead):
            if not waited:
                on_wait()
            waited = True
            found = self._attempt(lambda files, root: _last_change(files, f"{root}/{path}"), "")
            if found != seen:  # by the clock of whoever writes it
                seen, since = found, time.monotonic()
            elif time.monotonic() - since > still_s:
                self._attempt(lambda files, root: _remove(files, f"{root}/{path}"), None)
                continue
            time.sleep(CLAIM_BEAT_S)
        done = threading.Event()

        def beat() -> None:
            while not (self.dead or done.wait(CLAIM_BEAT_S)):
                self._attempt(lambda files, root: files.touch(f"{root}/{path}", truncate=not _is_local(files)), None)

        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield waited
        finally:
            done.set()
            heart.join()
            self._attempt(lambda files, root: _remove(files, f"{root}/{path}"), None)

    def _create_claim(self, path: str) -> bool:
        with tempfile.NamedTemporaryFile(prefix="app-") as empty:
            return self._attempt(lambda files, root: _create(files, root, Path(empty.name), path), False)

    def _import(self, store: Store, kind: str, digest: str, file: Path) -> bool:
        try:
            with file.open("rb") as stream:
                imported = archive.read(stream, store, only=(kind, digest))
        except archive.NotAnArchiveError as error:
            imported = archive.Imported(refused=[error.message], damaged=True)
        if (kind, digest) in imported.objects:
            return True
        why = imported.refused[0] if imported.refused else "it is empty"
        heal = self.writable and (imported.damaged or not imported.refused)
        self._warn(f"cache: {kind}/{digest[:12]} of the remote is refused{' and removed' * heal}: {why}")
        if heal:  # so that a good one can take its place
            self._attempt(lambda files, root: _remove(files, f"{root}/{_path(kind, digest)}"), None)
        return False

    def _create(self, file: Path, path: str) -> bool:
        """Put a file there, unless there is one; whether there is one now."""
        return self._attempt(lambda files, root: _create(files, root, file, path) or True, False)

    def _attempt(self, work: Callable[[Any, str], T], otherwise: T) -> T:
        """What work on the file system and its root gives, or where the remote is dead, `otherwise`."""
        trouble: Exception | None = None
        for _ in range(0 if self.dead else ATTEMPTS):
            try:
                return _within(self._timeout_s, lambda: work(*self._open()))
            except ConfigError:
                raise
            except Exception as error:  # noqa: BLE001 - of whatever kind the file system's library raises
                trouble = error
        if trouble is not None:
            self.dead = True
            why = (str(trouble).strip() or type(trouble).__name__).splitlines()[0][:200]
            self._warn(f"cache: the remote {_shown(self._url)} can't be reached ({why}): going on without it")
        return otherwise

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            self._opened = _file_system(self._url)
        return self._opened


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path that the URL names in it."""
    try:
        from fsspec.core import url_to_fs

        files, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        extra = "s3" if url.startswith(("s3:", "s3a:")) else "remote"
        raise ConfigError(f"cache.remote={_shown(url)!r}: {error} (pip install 'aot-app[{extra}]')") from error
    except ValueError as error:
        raise ConfigError(f"cache.remote={_shown(url)!r}: {error}") from error
    if _is_local(files) and not Path(root).is_dir():
        raise FileNotFoundError("there is no such folder")  # and none is made: it may be a disk that isn't mounted
    return files, root.rstrip("/")


def _within(timeout_s: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises; a thread that takes longer is left to itself."""
    answers: SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = SimpleQueue()

    def run() -> None:
        try:
            answers.put((work(), None))
        except BaseException as error:  # noqa: BLE001 - raised again by the one who waits
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = answers.get(timeout=timeout_s)
    except Empty:
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _create(files: Any, root: str, file: Path, path: str) -> bool:
    """Put a file there; whether there was none."""
    try:
        if _is_local(files):
            _link(file, Path(root), path)
        else:
            files.put_file(str(file), f"{root}/{path}", mode="create")
    except FileExistsError:
        return False
    return True


def _last_change(files: Any, path: str) -> str:
    with suppress(FileNotFoundError):
        return _changed(files.info(path))
    return ""


def _link(source: Path, root: Path, path: str) -> None:
    """A file that appears whole or not at all, and never over another; raises `FileExistsError`."""
    folder = root
    for part in Path(path).parent.parts:
        folder /= part
        with suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(root.stat().st_mode & 0o7777)  # it is for those whom the root is for, whatever the umask
    aside = folder / f".{secrets.token_hex(8)}"
    try:
        with source.open("rb") as reading, aside.open("xb") as writing:
            shutil.copyfileobj(reading, writing)
            writing.flush()
            os.fchmod(writing.fileno(), root.stat().st_mode & 0o444)
            os.fsync(writing.fileno())
        os.link(aside, root / path)
    finally:
        aside.unlink(missing_ok=True)


def _remove(files: Any, path: str) -> None:
    with suppress(FileNotFoundError):
        files.rm_file(path)


def _is_local(files: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(files, LocalFileSystem)


def _path(kind: str, digest: str) -> str:
    if kind not in KINDS or not is_digest(digest):
        raise ValueError(f"{kind}/{digest} names no object")
    return f"{kind}/{digest[:2]}/{digest}.tar"


def _is_document(info: dict[str, Any]) -> bool:
    name = re.fullmatch(r"(?:.*/)?[0-9a-f]{64}\.json", info["name"])
    plain = info["type"] == "file" and not info.get("islink")
    return name is not None and plain and (info["size"] or 0) <= archive.DOCUMENT_LIMIT


def _changed(info: dict[str, Any]) -> str:
    return str(next((info[name] for name in _CHANGED if name in info), ""))


def _entry(content: Any, request: str) -> dict[str, Any]:
    if not isinstance(content, dict) or (content.get("type"), content.get("request")) != ("entry", request):
        raise ValueError("it is no entry of this request")
    entry = content.get("entry")
    if not isinstance(entry, dict):
        raise ValueError("it has no entry")  # noqa: TRY004 - malformed text, not a caller's type
    return entry


def _shown(url: str) -> str:
    """Without a password, if there is one in it."""
    return re.sub(r"//[^/@]*@", "//", url)
