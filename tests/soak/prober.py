"""A fork server: each probe asks the real lookup in a process of its own, which has imported torch and no model.

One JSON line in, one JSON line out. What a probe does is what `acquire` and the compile worker do, with the same
functions; only nothing is compiled: a seeded object holds a few bytes in a library's place.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import signal
import sys
import tempfile
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.export
from hydra import compose, initialize_config_dir

from app import dependencies, environment, keys, lookup
from app.compiler import ALLOWED_ENVIRONMENT, worker
from app.compose import register, typed
from app.composed import conf_dir
from app.store import Hit, Store

PROBE_TIMEOUT_S = 120


def main() -> None:
    """Answer until standard input ends."""
    torch.set_num_threads(1)  # a pool of threads doesn't survive a fork
    register()
    # what the first export loads would otherwise be loaded by every child again
    torch.export.export(torch.nn.Linear(2, 2), (torch.ones(3, 2),), strict=False)
    gc.disable()
    gc.freeze()  # a collection in a child would copy every page that it shares
    for line in sys.stdin:
        print(json.dumps(in_child(json.loads(line))), flush=True)


def in_child(request: dict[str, Any]) -> dict[str, Any]:
    """The answer of a forked process, which alone sees the request's environment, folder and facts."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        signal.alarm(PROBE_TIMEOUT_S)
        try:
            answer = answer_to(request)
        except BaseException:  # noqa: BLE001 - whatever it is, the test shows it
            answer = {"error": traceback.format_exc()}
        with os.fdopen(writing, "w") as out:
            json.dump(answer, out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        text = answers.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(text) if text else {"error": f"the probe ended with status {status}"}


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    """Seed the store with what a request leads to, or say what the lookup makes of it."""
    enter(request)
    pretend(request["facts"])
    lose(request["lacks"])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        settings = typed(compose("config", request["overrides"]))
    device = environment.resolve_device(settings.device)
    with Store(Path(request["store"]), readonly=request["readonly"]) as store:
        key = keys.request_key(settings, device)
        found = lookup.find(store, key, dependencies.named_files(settings))
        if isinstance(found, lookup.Found) and not request["seed"]:
            weights = found.weights.digest if found.weights else None
            return {"outcome": found.outcome, "object": found.artifact.manifest.digest, "weights": weights}
        if request["known"]:
            return publish_known(store, key, request["known"], paths_of(request["lacks"], "object"))
        as_the_worker(settings.model.environment)
        made = worker.prepare(settings, key.factors, "cpu")  # a GPU that is only pretended can build nothing
        weights = None if settings.inductor_options["freezing"] else made.weights
        if request["seed"]:
            publish(store, key, made.object, weights, made.dependencies)
            return {"outcome": "seeded", "object": made.object.digest, "weights": weights, "factors": key.factors,
                    "object_factors": made.object.factors, "dependencies": made.dependencies}  # fmt: skip
        hit = isinstance(store.read("objects", made.object.digest), Hit)
        return {
            "outcome": "graph-hit" if hit else "miss",
            "object": made.object.digest,
            "weights": weights,
            "reasons": found.reasons,
        }


def enter(request: dict[str, Any]) -> None:
    """Be a process that was started there, with that environment, path and umask."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    sys.path[:0] = request["path"]
    sys.dont_write_bytecode = True
    tempfile.tempdir = None


def as_the_worker(listed: list[str]) -> None:
    """Forget the variables that the compile worker isn't given."""
    for name in os.environ.keys() - {*ALLOWED_ENVIRONMENT, *listed}:
        del os.environ[name]


def publish_known(store: Store, key: keys.Key, known: dict[str, Any], lacks: list[str]) -> dict[str, Any]:
    """Seed a store with what was prepared before, under digests that lack a factor."""
    made = lacking(known["object_factors"], lacks)
    publish(store, key, made, known["weights"], known["dependencies"])
    return {**known, "object": made.digest}


def publish(store: Store, key: keys.Key, made: keys.Key, weights: str | None, read: list[Any]) -> None:
    """What `acquire` writes after a compile."""
    about: dict[str, Any] = {"content": {}, "verified": {}, "provenance": {}}
    entry = {"object": made.digest, "weights": weights, "dependencies": read}
    if weights is not None:
        with store.staging() as folder:
            (folder / "weights.safetensors").write_bytes(b"weights")
            store.publish("weights", weights, folder, factors={}, requests=[], **about)
    with store.staging() as folder:
        (folder / "model.so").write_bytes(b"machine code")
        requests = [{"request": key.digest, "entry": entry}]
        store.publish("objects", made.digest, folder, factors=dict(made.factors), requests=requests, **about)
    lookup.remember(store, key, entry, "soak")


def pretend(facts: dict[str, Any]) -> None:
    """Another machine or toolchain, from the text that its facts are read from onwards."""
    version, installed = environment.torch_version, environment.installed
    environment.torch_version = lambda: {**version(), **facts.get("torch", {})}
    environment.installed = lambda name: facts[name] if name in facts else installed(name)
    if "flags" in facts:
        environment.cpu_flags = lambda: facts["flags"]
    if "gpus" in facts:
        environment.gpus = lambda: facts["gpus"]
    named = {name: facts.get(name, getattr(platform, name)()) for name in ("machine", "system", "python_version")}
    environment.platform = types.SimpleNamespace(**{name: (lambda v=value: v) for name, value in named.items()})
    keys.KEY_SCHEMA = facts.get("schema", keys.KEY_SCHEMA)


def lose(lacks: list[str]) -> None:
    """Take factors out of keys (`request:mode.inductor`), or kinds out of what is compared (`dependency:file`)."""
    kinds = paths_of(lacks, "dependency")
    changed, request_key, object_key = dependencies.changed, keys.request_key, keys.object_key
    dependencies.changed = lambda recorded, named: changed([item for item in recorded if item[0] not in kinds], named)
    keys.request_key = lambda *args: lacking(request_key(*args).factors, paths_of(lacks, "request"))
    keys.object_key = lambda *args, **kwargs: lacking(object_key(*args, **kwargs).factors, paths_of(lacks, "object"))


def paths_of(lacks: list[str], level: str) -> list[str]:
    """The names of one level."""
    return [name.partition(":")[2] for name in lacks if name.startswith(f"{level}:")]


def lacking(factors: Mapping[str, Any], paths: list[str]) -> keys.Key:
    """A key with all factors, whose digest ignores some."""

    class Lacking(keys.Key):
        @property
        def digest(self) -> str:
            left: Any = self.factors
            for path in paths:
                left = without(left, path.split("."))
            return keys.digest(left)

    return Lacking(factors)


def without(value: Any, path: list[str]) -> Any:
    """A copy that lacks one leaf, where there is one."""
    first, *rest = path
    if first not in value:
        return value
    copy = {name: item for name, item in value.items() if name != first}
    return {**copy, first: without(value[first], rest)} if rest else copy
