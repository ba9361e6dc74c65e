"""Tasks: what `python -m app task=...` does besides benchmark and compile: look after the cache, and explain it.

Each returns rows for a table or for `output=json`, or raises what its exit code stands for.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import choose, doctor, failures, jobs, lookup, names, pipeline, profile
from .acquire import opened
from .context import Context
from .errors import ConfigError, CorruptError, StoreError, SweepError, UnreadableError, UntrustedError
from .files import replaced
from .record import Record
from .store import KINDS, Manifest, Store, archive
from .store.trust import create_key, pack, unpack
from .tuning import tune_buckets

Rows = list[dict[str, Any]]
SHORTEST_PREFIX = 6  # of a digest, that it be no model's name by chance
VERDICTS = {"corrupt": CorruptError, "untrusted": UntrustedError, "unreadable": UnreadableError}  # the worst first


def run(context: Context) -> None:
    """Do what `task.name` says; the rows go into the record.

    Raises:
        AppError: of what failed, with its exit code.
    """
    name = context.settings.task.name
    if name in {*pipeline.RUNNING, "compile"}:
        pipeline.run(context)
    elif name in WITHOUT_STORE:
        context.record.result = WITHOUT_STORE[name](context)
    else:
        with opened(context) if name == "tune-buckets" else _opened(context) as store:
            context.record.result = WITH_STORE[name](context, store)


@contextmanager
def _opened(context: Context) -> Iterator[Store]:
    cache = context.settings.cache
    if cache.dir is None:
        raise ConfigError("cache.dir is null: there is no cache to look after")
    root = Path(cache.dir).expanduser()
    if not root.is_dir():
        raise ConfigError(f"cache.dir={str(root)!r} is not there yet")
    with lookup.open_store(cache, root, readonly=cache.readonly) as store:
        yield store


def _selected(
    context: Context, store: Store, kind: str = "objects", found: frozenset[str] = frozenset()
) -> Iterator[Manifest]:
    """Manifests that `cache.select` names, all where it names none; what was `found` elsewhere need not be here.

    Raises:
        ConfigError: a name selects nothing.
    """
    wanted = context.settings.cache.select
    unused = set(wanted) - found
    for manifest in store.manifests(kind):
        names = [name for name in wanted if _is_called(manifest, name)]
        unused -= set(names)
        if names or not wanted:
            yield manifest
    if unused:
        raise ConfigError(f"cache.select: nothing in the cache is called {', '.join(sorted(unused))}")


def _is_called(manifest: Manifest, name: str) -> bool:
    by_digest = len(name) >= SHORTEST_PREFIX and manifest.digest.startswith(name)
    return by_digest or name == manifest.provenance["model"]


def _row(store: Store, manifest: Manifest) -> dict[str, Any]:
    used = store.noted(f"used/{manifest.kind}/{manifest.digest}") or {}
    return {
        "digest": manifest.digest,
        "model": manifest.provenance["model"],
        "bytes": sum(info.size_bytes for info in manifest.files.values()),
        "created": manifest.provenance.get("created_at"),
        "uses": used.get("count", 0),
        "last_used": used.get("last_used"),
        "pinned": store.pinned(manifest.kind, manifest.digest),
    }


def list_objects(context: Context, store: Store) -> Rows:
    """One row an object: what it is of, its size, age and use."""
    return [_row(store, manifest) for manifest in _selected(context, store)]


def show(context: Context, store: Store) -> Rows:
    """The whole manifest of the selected objects."""
    return [_row(store, manifest) | json.loads(manifest.to_json()) for manifest in _selected(context, store)]


def verify(context: Context, store: Store) -> Rows:
    """Read every byte, and change nothing.

    Raises:
        CorruptError, UntrustedError, UnreadableError: the worst that was found; the rows are in the record.
    """
    rows: Rows = []
    for kind in KINDS:
        for digest in store.digests(kind):
            with context.phases("verify", about=f"verify {kind}/{digest[:12]}"):
                verdict, reason = store.examine(kind, digest)
            rows.append({"kind": kind, "digest": digest, "verdict": verdict, "reason": reason})
    context.record.result = rows
    for verdict, error in VERDICTS.items():
        if found := [row for row in rows if row["verdict"] == verdict]:
            first = found[0]
            raise error(f"{len(found)} of {len(rows)} {verdict}, {first['digest'][:12]}: {first['reason']}")
    return rows


def prune(_: Context, store: Store) -> Rows:
    """Remove what was used longest ago until the store is within `cache.size_limit`."""
    return [{"kind": item.kind, "digest": item.digest, "bytes": item.size_bytes} for item in store.collect()]


def clear(context: Context, store: Store) -> Rows:
    """Remove the selected objects; without a selection everything, weights included. What is pinned stays.

    What failed before is forgotten with them.
    """
    rows = failures.forget(store, context.settings.cache.select)
    found = frozenset(row["model"] for row in rows)
    for kind in KINDS if not context.settings.cache.select else ("objects",):
        for manifest in list(_selected(context, store, kind, found)):
            if not store.pinned(kind, manifest.digest):
                store.remove(kind, manifest.digest)
                rows.append({"kind": kind, "digest": manifest.digest})
    return rows


def pin(context: Context, store: Store, pinned: bool = True) -> Rows:
    """Keep the selected objects, and the weights they were made with, whatever the size limit."""
    rows = []
    for manifest in _selected(context, store):
        weights = manifest.verified.get("weights")
        for kind, digest in [("objects", manifest.digest), *([("weights", weights)] if weights else [])]:
            store.pin(kind, digest, pinned)
            rows.append({"kind": kind, "digest": digest, "pinned": pinned})
    return rows


def unpin(context: Context, store: Store) -> Rows:
    """Let the selected objects leave again."""
    return pin(context, store, pinned=False)


def stats(_: Context, store: Store) -> Rows:
    """What the cache holds, how it has answered, and what it has saved."""
    items = store.items()
    sizes = {kind: [item.size_bytes for item in items if item.kind == kind] for kind in (*KINDS, "quarantine")}
    held = {kind: {"count": len(found), "bytes": sum(found)} for kind, found in sizes.items()}
    return [{**held, "size_limit_bytes": store.size_limit, "answers": store.noted(lookup.ANSWERS) or {}}]


def rebuild_index(_: Context, store: Store) -> Rows:
    """Make the index again from the manifests."""
    return [{"entries": store.rebuild_index()}]


def export(context: Context, store: Store) -> Rows:
    """Write the selected objects, the weights they were made with, and all aliases into `cache.file`."""
    path = _bundle(context)
    rows: Rows = []
    for manifest in _selected(context, store):
        if manifest.holds_pickles:
            context.warn(f"{manifest.digest[:12]} is left out: what the jit rung made holds pickles")
            continue
        weights = {"kind": "weights", "digest": manifest.verified.get("weights")}
        rows += [weights] if weights["digest"] and weights not in rows else []
        rows.append({"kind": "objects", "digest": manifest.digest})
    if store.trust.signing_key is not None:
        for row in rows:
            store.sign(row["kind"], row["digest"])
    elif store.trust.policy != "none":
        context.warn("there is no cache.signing_key: what isn't signed can be read with cache.trust=none only")
    documents = [pack(unpack(data, store.trust), store.trust) for data in store.documents("aliases").values()]
    with context.phases("export"), replaced(path) as stream:
        archive.write(stream, store, [(row["kind"], row["digest"]) for row in rows], documents)
    return rows


def import_(context: Context) -> Rows:
    """Read the objects and aliases of `cache.file`, those that are trusted and whole; the cache may be a new one."""
    path = _bundle(context)
    rows: Rows = []
    try:
        with opened(context) as store, context.phases("import_bundle"), path.open("rb") as stream:
            found = archive.read(stream, store)
            rows += [{"kind": kind, "digest": digest, "refused": None} for kind, digest in found.objects]
            for document in found.documents:
                rows.append({"kind": "alias", "digest": names.adopt(store, document), "refused": None})
    except OSError as error:
        raise ConfigError(f"cache.file={str(path)!r} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError(f"cache.file={str(path)!r}: {error}") from error
    context.record.result = rows + [{"kind": None, "digest": None, "refused": why} for why in found.refused]
    if found.refused:
        raise UntrustedError(f"{len(found.refused)} refused, {len(rows)} taken in: {found.refused[0]}")
    return rows


def _bundle(context: Context) -> Path:
    if context.settings.cache.file is None:
        raise ConfigError("cache.file is not given: name the bundle")
    return Path(context.settings.cache.file).expanduser()


def keygen(context: Context) -> Rows:
    """Make a signing key at `cache.signing_key`."""
    path = context.settings.cache.signing_key
    if path is None:
        raise ConfigError("cache.signing_key is not given: name the file of the new key")
    return [{"signing_key": path, "public_key": create_key(Path(path).expanduser())}]


def keys(context: Context) -> Rows:
    """The public keys that are trusted."""
    cache = context.settings.cache
    trust = lookup.trust_of(cache)
    own = set(trust.trusted) - set(cache.keys)
    return [{"public_key": key, "own": key in own, "trust": cache.trust} for key in sorted(trust.trusted)]


def warm(context: Context) -> Rows:
    """Compile every request of `task.requests`, each in a process of its own.

    Raises:
        SweepError: some failed; the rows are in the record.
    """
    requests = context.settings.task.requests
    rows: Rows = []
    if not requests:
        raise ConfigError("task.requests is empty: list command lines, such as ['model=cnn mode=max-autotune']")
    cache = [text for text in context.record.overrides if text.startswith(("cache=", "cache."))]
    wanted = []
    for number, request in enumerate(requests):
        folder = context.folder / "warm" / str(number)
        words = (*cache, *shlex.split(request), "task=compile", f"hydra.run.dir={folder}")
        wanted.append(jobs.Job(number, folder, (request,), words))

    def say(job: jobs.Job) -> None:
        context.phases.switch("warm", about=f"warm {job.num + 1} of {len(wanted)}: {job.label}")

    with context.phases("warm", about=f"warm {len(wanted)} requests"):
        for job, record in jobs.run(wanted, workers=1, on_start=say):
            rows.append(_warmed(job, record))
            context.record.result = rows
    failed = [row for row in rows if row["status"] != "ok" or row["rung"] == "eager"]
    if failed:
        raise SweepError(f"{len(failed)} of {len(rows)} requests are not in the cache: {failed[0]['request']}")
    return rows


def _warmed(job: jobs.Job, record: Record) -> dict[str, Any]:
    return {
        "request": job.label,
        "status": record.status,
        "outcome": record.cache.outcome if record.cache else None,
        "rung": record.rung,
        "object": record.key.object if record.key else None,
        "seconds": sum(record.phases_s.values()),
        "reason": record.error.message if record.error else None,
    }


WITHOUT_STORE: dict[str, Callable[[Context], Rows]] = {
    "cache.keygen": keygen,
    "cache.keys": keys,
    "cache.import": import_,
    "warm": warm,
    "doctor": doctor.examine,
    "profile": profile.profile,
}
WITH_STORE: dict[str, Callable[[Context, Store], Rows]] = {
    "explain": choose.explain,
    "tune-buckets": tune_buckets,
    "cache.list": list_objects,
    "cache.show": show,
    "cache.verify": verify,
    "cache.prune": prune,
    "cache.clear": clear,
    "cache.pin": pin,
    "cache.unpin": unpin,
    "cache.stats": stats,
    "cache.rebuild-index": rebuild_index,
    "cache.export": export,
}
