"""What the store costs: lookups among many entries, large objects read and published, the index made again.

python benchmarks/store.py [--quick] [--objects N] [--megabytes N]

lookup     a request's entry found, its dependencies compared (those of a real model: what torch and this program
import), its object checked by remembered digests; another request each time
unchanged  a large object whose digest is remembered
hashed     the same read byte by byte, beside sha256 alone over the same bytes
published  the same hashed, written to the disk and put in place, beside a plain copy with fsync
rebuilt    the index of all objects made from their manifests
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

from app import environment as machine
from app import lookup
from app.keys import Key
from app.store import Hit, Store

ROOT = Path(__file__).resolve().parent.parent
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


def main() -> None:
    arguments = parse()
    objects = arguments.objects or (300 if arguments.quick else 10_000)
    megabytes = arguments.megabytes or (20 if arguments.quick else 350)
    repeats = 3 if arguments.quick else 7
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="store-") as folder:
        root = Path(folder) / "many"
        requests = fill(root, objects)
        with Store(root) as store:
            samples["lookup"] = [look(store, request) for request in pick(requests, 50 * repeats)]
            samples["rebuilt"] = [timed(store.rebuild_index)]
        samples |= large(Path(folder), megabytes, repeats)
    report(samples, objects, megabytes)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 objects and 20 MB instead of 10,000 and 350 MB")
    parser.add_argument("--objects", type=int, help="objects in the store, whatever --quick says")
    parser.add_argument("--megabytes", type=int, help="size of the large object, whatever --quick says")
    return parser.parse_args()


def timed(action: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - began


def fill(root: Path, count: int) -> list[Key]:
    """A store of small objects, one request each, with a real model's list of dependencies."""
    command = [sys.executable, "-c", RECORD, json.dumps(sys.path)]
    recorded = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    requests = [Key({"request": number, "schema": 1}) for number in range(count)]
    # the disk is not waited for, and neither is the index: both are measured apart
    with mock.patch("os.fsync"), Store(root) as store:
        for number, request in enumerate(requests):
            if sys.stderr.isatty():
                print(f"\rfilling: {number} of {count}", end="", file=sys.stderr, flush=True)
            digest = hashlib.sha256(str(number).encode()).hexdigest()
            publish(store, "objects", digest, b"code" * 250, [(request, recorded)])
    if sys.stderr.isatty():
        print(file=sys.stderr)
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
    data, samples = os.urandom(megabytes * 10**6), {}
    names = ("unchanged", "hashed", "sha256 alone", "published", "copied with fsync")
    samples = {name: [] for name in names}
    plain = folder / "plain"
    for turn in range(repeats):
        root, digest = folder / f"large-{turn}", hashlib.sha256(str(turn).encode()).hexdigest()
        with Store(root) as store:
            samples["copied with fsync"].append(timed(copy, data, plain))
            samples["published"].append(timed(publish, store, "weights", digest, data))
            time.sleep(2.1)
            assert isinstance(store.read("weights", digest), Hit)
            samples["unchanged"].append(timed(store.read, "weights", digest))
            samples["hashed"].append(timed(store.examine, "weights", digest))
            samples["sha256 alone"].append(timed(digest_of, plain))
        shutil.rmtree(root)
    return samples


def copy(data: bytes, path: Path) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def report(samples: dict[str, list[float]], objects: int, megabytes: int) -> None:
    """Print the table, and keep every sample."""
    facts = machine.describe("cpu")
    print(f"store of {objects:,} objects; a large object of {megabytes} MB; milliseconds")
    print(f"{facts['cpu']}, {facts['cores']} cores, Python {facts['python']}\n")
    print(f"{'':<18} {'count':>6} {'median':>9} {'min':>9} {'max':>9}")
    for name, values in samples.items():
        low, middle, high = (1e3 * value for value in (min(values), statistics.median(values), max(values)))
        print(f"{name:<18} {len(values):>6} {middle:9.2f} {low:9.2f} {high:9.2f}")
    now = datetime.now(UTC)
    kept = ROOT / "outputs" / "benchmarks" / f"store-{now:%Y%m%dT%H%M%SZ}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    content = {"objects": objects, "megabytes": megabytes, "created_at": now.isoformat(), **facts, "seconds": samples}
    kept.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nsamples: {kept.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
