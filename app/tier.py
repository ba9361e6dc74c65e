"""Tier: what a run does with the remote: asks it before it compiles, and puts there what it has made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import dependencies, lookup
from .context import Context
from .keys import Key
from .lookup import Found, NotFound
from .store import Store

if TYPE_CHECKING:
    from .store.remote import Remote


class Tier:
    """The remote of one run; where there is none, nothing is found and nothing is put.

    Raises:
        ConfigError: see `Remote`.
    """

    def __init__(self, context: Context, store: Store) -> None:
        cache = context.settings.cache
        self._context, self._store = context, store
        self._remote: Remote | None = None
        if cache.remote and cache.dir is not None and not store.readonly:
            from .store.remote import Remote

            writable = cache.remote_mode == "read-write"
            self._remote = Remote(
                cache.remote,
                writable=writable,
                trust=store.trust,
                timeout_s=cache.remote_timeout_s,
                warn=context.warn,
            )

    def find(self, request: Key, named: dict[str, Path]) -> Found | None:
        """Bring here what answers a request."""
        if self._remote is None:
            return None
        with self._context.phases("remote"):
            entries = self._remote.entries(request.digest)
            found = lookup.among(entries, named, lambda entry: self._bring(request, entry, named))
        return found if isinstance(found, Found) else None

    def fetch_object(self, digest: str) -> None:
        """Bring an object here, if it isn't and the remote has it."""
        if self._remote is not None and not self._remote.dead:
            with self._context.phases("remote"):
                self._remote.fetch(self._store, "objects", digest)

    @contextmanager
    def claim(self, request: Key) -> Iterator[bool]:
        """Hold a request against other machines that fill the remote; gives whether one of them had it first."""
        if self._remote is None or not self._remote.writable or self._remote.dead:
            yield False
            return
        phases, patience_s = self._context.phases, self._context.settings.cache.lock_timeout_s
        with ExitStack() as stack:
            with phases("remote"):
                waiting = partial(phases.switch, "wait", about="wait: another machine compiles the same")
                waited = stack.enter_context(self._remote.claim(request.digest, patience_s, waiting))
            yield waited

    def put(self, request: Key, entry: dict[str, Any]) -> None:
        """Put what was made here into a remote that takes it, the entry last."""
        if self._remote is not None and self._remote.writable and not self._remote.dead:
            with self._context.phases("upload"):
                if all(self._remote.put(self._store, kind, digest) for kind, digest in lookup.objects_of(entry)):
                    entry = {**entry, "dependencies": dependencies.portable(entry["dependencies"])}
                    self._remote.put_entry(request.digest, entry)

    def _bring(self, request: Key, entry: dict[str, Any], named: dict[str, Path]) -> Found | NotFound:
        assert self._remote is not None
        for kind, digest in lookup.objects_of(entry):
            if not self._remote.fetch(self._store, kind, digest):
                return NotFound([f"the remote has no {kind}/{digest[:12]}"])
        found = lookup.open_objects(self._store, entry["object"], entry["weights"], "remote-hit")
        if isinstance(found, Found):
            entry |= {"dependencies": dependencies.retaken(dependencies.portable(entry["dependencies"]), named)}
            lookup.remember(self._store, request, entry, self._context.settings.model.name)
        return found
