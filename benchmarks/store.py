"""What the store costs.

lookup     a request's entry found, its dependencies compared (those of a real model: what torch and this program
           import), its object checked by remembered digests; another request each time
unchanged  a large object whose digest is remembered
hashed     the same read byte by byte, beside sha256 alone over the same bytes
published  the same hashed, written to the disk and put in place, beside a plain copy with fsync
rebuilt    the index of all objects made from their manifests
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from common import Section, about, in_turns, main, say, spread, timed

from app import lookup
from app.keys import Key
from app.store import Hit, Store

# What the compile worker records for the reference model `linear`.
RECORD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])  # as a worker's is its parent's
from app.compiler.worker import prepare
from app.config import InputConfig, ModelConfig, Settings
from app.keys import request_key

inputs = [InputConfig(name="x", shape=["batch", 768])]
settings = Settings(model=ModelConfig(target="app.workloads.reference:linear", inputs=inputs))
print(json.dumps(prepare(settings, request_key(settings, "cpu").factors, "cpu").dependencies))
"""
TARGET = {"target": {"machine": platform.machine(), "flags": []}}


def fill(root: Path, count: int) -> list[Key]:
    """A store of small objects, one request each, with a real model's list of dependencies."""
    command = [sys.executable, "-c", RECORD, json.dumps(sys.path)]
    recorded = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    requests = [Key({"request": number, "schema": 1}) for number in range(count)]
    # the disk is not waited for, and neither is the index: both are measured apart
    with mock.patch("os.fsync"), Store(root) as store:
        for number, request in enumerate(requests):
            if number % 1000 == 999:
                say(f"filling a store: {number + 1} of {count}")
            digest = hashlib.sha256(str(number).encode()).hexdigest()
            publish(store, "objects", digest, b"code" * 250, [(request, recorded)])
    time.sleep(2.1)  # younger files are hashed each time
    with Store(root) as store:
        for request in requests:  # every digest is remembered, as after a first use
            assert isinstance(lookup.find(store, request, {}), lookup.Found)
    return requests


def publish(store: Store, kind: str, digest: str, data: bytes, requests: Sequence[tuple[Key, object]] = ()) -> None:
    entries = [
        {"request": request.digest, "entry": {"object": digest, "weights": None, "dependencies": recorded}}
        for request, recorded in requests
    ]
    with store.staging() as staging:
        (staging / "model.so").write_bytes(data)
        store.publish(
            kind, digest, staging, factors=TARGET, content={}, verified={}, provenance={"model": "m"},
            requests=entries,
        )  # fmt: skip


def pick(requests: list[Key], count: int) -> list[Key]:
    dice = random.Random(0)  # noqa: S311 - any choice will do
    return [Key(dict(dice.choice(requests).factors)) for _ in range(count)]


def look(store: Store, request: Key) -> float:
    began = time.perf_counter()
    found = lookup.find(store, request, {})
    spent = time.perf_counter() - began
    assert isinstance(found, lookup.Found)
    return spent


def large(folder: Path, megabytes: int, repeats: int) -> dict[str, list[float]]:
    """One large object, its steps in turn with the least that they could cost."""
    data, plain, turn = os.urandom(megabytes * 10**6), folder / "plain", iter(range(10**6))

    def publishing() -> float:
        shutil.rmtree(folder / "large", ignore_errors=True)
        digest.append(hashlib.sha256(str(next(turn)).encode()).hexdigest())
        with Store(folder / "large") as store:
            return timed(publish, store, "weights", digest[-1], data)

    def unchanged() -> float:
        with Store(folder / "large") as store:
            time.sleep(2.1)
            assert isinstance(store.read("weights", digest[-1]), Hit)
            return timed(store.read, "weights", digest[-1])

    def hashed() -> float:
        with Store(folder / "large") as store:
            return timed(store.examine, "weights", digest[-1])

    digest: list[str] = []
    publishing()
    copy(data, plain)
    ways = {
        "unchanged": unchanged,
        "hashed": hashed,
        "sha256 alone": lambda: timed(digest_of, plain),
        "published": publishing,
        "copied with fsync": lambda: timed(copy, data, plain),
    }
    return in_turns(ways, repeats, "store")


def copy(data: bytes, path: Path) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(quick: bool) -> Section:
    objects, megabytes, repeats = (300, 20, 3) if quick else (3000, 350, 5)
    section = Section(
        "Store", f"A store of {objects:,} artifacts, and an object of {megabytes} MB.\n\n" + about(__doc__)
    )
    with tempfile.TemporaryDirectory(prefix="store-") as folder:
        root = Path(folder) / "many"
        requests = fill(root, objects)
        with Store(root) as store:
            samples = {"lookup": [look(store, request) for request in pick(requests, 50 * repeats)]}
            samples["rebuilt"] = [timed(store.rebuild_index)]
        samples |= large(Path(folder), megabytes, repeats)
    section.samples = samples
    section.tables = [[("ms", "median", "min", "max"), *((name, *spread(of, 1e3)) for name, of in samples.items())]]
    return section


if __name__ == "__main__":
    main(__doc__, measure)
