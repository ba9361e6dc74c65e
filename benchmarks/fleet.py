"""What a fleet costs besides what grows with its jobs (growth.py).

named      the configs of a sweep's jobs composed, which Hydra does before the first one is launched, once to check
           them and once more to launch them
handed on  processes that wait for one lock of the store, from its first holder's end until the last has had it
remote     requests and bytes, by what they are for, counted at the file system, of an artifact of a million bytes: a
           miss asks in vain, a claim begins and ends, a put publishes, a hit fetches
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any
from unittest import mock

from common import ROOT, Section, about, main, say, timed
from fsspec.implementations.memory import MemoryFileSystem
from hydra import compose, initialize_config_dir

from app import jobs
from app.compose import register
from app.composed import conf_dir
from app.config import SweepConfig
from app.fleet import Fleet
from app.report import summary
from app.store import Store, Trust
from app.store.locks import hold_for_work
from app.store.remote import Remote

ARTIFACT_BYTES = 1_000_000


def run_one_job(folder: Path) -> str:
    """The record of a job of a sweep, as text."""
    words = ["model=linear", "mode=eager", "device=cpu", "measure.budget_s=0.1", f"hydra.run.dir={folder}"]
    subprocess.run([sys.executable, "-m", "app", *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return (folder / jobs.RECORD).read_text()


def name(count: int) -> float:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return timed(lambda: [compose("config", [f"measure.max_samples={100 + turn}"]) for turn in range(count)])


def fill(folder: Path, record: str, count: int) -> Path:
    """A sweep of jobs that have all ended, each with the same record but for its name."""
    content = json.loads(record)
    for num in range(count):
        words = [f"graphs.batch_sizes=[{num}]", "model=linear"]
        (folder / str(num)).mkdir(parents=True)
        (folder / str(num) / jobs.RECORD).write_text(json.dumps(content | {"overrides": words}, indent=2))
    return folder


def look_at(folder: Path, count: int) -> dict[str, float]:
    overrides = [[f"graphs.batch_sizes=[{num}]", "model=linear"] for num in range(count)]
    with silenced():
        fleet = Fleet(folder, overrides, SweepConfig(), as_json=False)
        return {
            "watched": timed(fleet.look),
            "idle": timed(fleet.look),
            "summed up": timed(lambda: summary.write(summary.gather([folder]), folder)),
        }


@contextmanager
def silenced() -> Iterator[None]:
    """Nothing of what the sweep would say reaches the terminal."""
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        yield


def wait_for(path: Path, done: Any) -> None:
    with hold_for_work(path, 60, lambda: None):
        done.put(time.monotonic())


def hand_on(folder: Path, count: int) -> float:
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    done = context.SimpleQueue()
    with hold_for_work(folder / "one.lock", 60, lambda: None):
        waiting = [context.Process(target=wait_for, args=(folder / "one.lock", done)) for _ in range(count)]
        for each in waiting:
            each.start()
        time.sleep(2 + 0.5 * count)  # all of them have come to wait
        began = time.monotonic()
    for each in waiting:
        each.join()
    return max(done.get() for _ in waiting) - began


class Counting:
    """An object store in this process's memory that counts what it is asked."""

    def __init__(self) -> None:
        self.requests = self.bytes = 0
        self._files = MemoryFileSystem()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.requests += 1
            found = getattr(self._files, name)(*args, **kwargs)
            here = {"get_file": args[-1], "put_file": args[0]}.get(name)
            self.bytes += Path(here).stat().st_size if here else len(found) if isinstance(found, bytes) else 0
            return found

        return call


def ask_remote(place: Path) -> dict[str, dict[str, int]]:
    """Requests and bytes of each thing that a run asks of the remote, of an artifact of a million bytes."""
    trust, files = Trust("none"), Counting()
    digest, request = (hashlib.sha256(word).hexdigest() for word in (b"object", b"request"))
    entry = {"object": digest, "weights": None, "dependencies": []}
    found: dict[str, dict[str, int]] = {}

    def count(what: str, action: Callable[[], object]) -> None:
        files.requests = files.bytes = 0
        action()
        found[what] = {"requests": files.requests, "bytes": files.bytes}

    def claim() -> None:
        with remote.claim(request, 60, lambda: None):
            pass

    with (
        mock.patch("app.store.remote._file_system", return_value=(files, "/store")),
        Store(place / "ours", trust=trust) as ours,
        Store(place / "theirs", trust=trust) as theirs,
    ):
        remote = Remote("counted", writable=True, trust=trust, timeout_s=60)
        with ours.staging() as staging:
            (staging / "model.so").write_bytes(os.urandom(ARTIFACT_BYTES))
            ours.publish("objects", digest, staging, factors={}, content={}, verified={}, provenance={}, requests=[])
        count("miss", lambda: (remote.entries(request), remote.fetch(ours, "objects", "0" * 64)))
        count("claim", claim)
        count("put", lambda: (remote.put(ours, "objects", digest), remote.put_entry(request, entry)))
        count("hit", lambda: (remote.entries(request), remote.fetch(theirs, "objects", digest)))
    return found


def measure(quick: bool) -> Section:
    section = Section("Fleet", about(__doc__))
    jobs_named, waiting = (20, (2, 4)) if quick else (100, (8, 32))
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        place = Path(folder)
        say("fleet: named")
        seconds = {f"named: {jobs_named} jobs": (jobs_named, name(jobs_named))}
        for count in waiting:
            say(f"fleet: handed on among {count}")
            seconds[f"handed on: {count} processes"] = (count, hand_on(place / f"lock-{count}", count))
        traffic = ask_remote(place)
    section.tables.append([("", "seconds", "ms each")])
    section.tables[0] += [(what, f"{took:.2f}", f"{1e3 * took / of:.1f}") for what, (of, took) in seconds.items()]
    section.tables.append([("remote", "requests", "bytes")])
    section.tables[1] += [(what, f"{asked['requests']}", f"{asked['bytes']:,}") for what, asked in traffic.items()]
    section.samples = {"seconds": seconds, "remote": traffic}
    return section


if __name__ == "__main__":
    main(__doc__, measure)
