"""What grows with a fleet: jobs named, watched and summed up, a lock handed on, what a shared store is asked.

python benchmarks/fleet.py [--quick] [--jobs N,N] [--write]

named      the configs of a sweep's jobs composed, which Hydra does before the first one is launched
watched    one look at the records and heartbeats of all jobs, each of which has shown life since the last
idle       the same where none has
summed up  all records read, and summary.json, .csv, .md and .html written
handed on  processes that wait for one lock of the store, from its first holder's end until the last has had it
looked up  an entry found in a store of so many (as benchmarks/store.py does)
remote     requests and bytes, by what they are for: an artifact asked for in vain, claimed, put there, and fetched

The jobs are simulated: one real record, of a job that this program runs, written as often as there are jobs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

from fsspec.implementations.memory import MemoryFileSystem
from hydra import compose, initialize_config_dir
from store import fill as fill_store
from store import look, pick

from app import environment as machine
from app import jobs
from app.compose import register
from app.composed import conf_dir
from app.config import SweepConfig
from app.fleet import Fleet
from app.report import summary
from app.store import Store, Trust
from app.store.locks import hold_for_work
from app.store.remote import Remote

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- by benchmarks/fleet.py -->", "<!-- end -->"
ARTIFACT_BYTES = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 jobs and 4 processes instead of 10,000 and 32")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")
    parser.add_argument("--jobs", help="numbers of jobs, whatever --quick says")
    arguments = parser.parse_args()
    counts = [int(word) for word in (arguments.jobs or ("100" if arguments.quick else "100,1000,10000")).split(",")]
    waiting = (2, 4) if arguments.quick else (8, 32)
    seconds: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        place = Path(folder)
        record = run_one_job(place / "real")
        seconds["named"] = {min(counts): name(min(counts))}
        for count in counts:
            sweep = fill(place / str(count), record, count)
            for what, value in look_at(sweep, count).items():
                seconds.setdefault(what, {})[count] = value
        sizes = {count: (place / str(count) / "summary.html").stat().st_size for count in counts}
        seconds["handed on"] = {count: hand_on(place / f"lock-{count}", count) for count in waiting}
        lookups = {count: look_up(place / f"store-{count}", count) for count in counts}
        traffic = ask_remote(place)
    report(seconds, sizes, lookups, traffic, write=arguments.write)


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


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


def look_up(root: Path, count: int) -> float:
    requests = fill_store(root, count)
    with Store(root) as store:
        return statistics.median(look(store, request) for request in pick(requests, 100))


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


def report(
    seconds: dict[str, dict[int, float]],
    sizes: dict[int, int],
    lookups: dict[int, float],
    traffic: dict[str, dict[str, int]],
    *,
    write: bool,
) -> None:
    """Print the tables, as they stand in docs/scaling.md, and keep the figures."""
    facts = machine.describe("cpu")
    load = ", ".join(f"{value:.0f}" for value in os.getloadavg())
    lines = [f"{facts['cpu']}, {facts['cores']} cores (load {load}), Python {facts['python']}:", ""]
    lines += ["| | of | seconds | ms each |", "|---|--:|--:|--:|"]
    for what, values in seconds.items():
        lines += [f"| {what} | {of:,} | {value:.2f} | {1e3 * value / of:.2f} |" for of, value in values.items()]
    pages = ", ".join(f"{size / 1e6:.2f} MB for {of:,} jobs" for of, size in sizes.items())
    found = ", ".join(f"{1e3 * value:.1f} ms among {of:,}" for of, value in lookups.items())
    lines += [
        "",
        f"`summary.html`: {pages}. A direct hit is found in {found} (medians).",
        "",
        "| remote | requests | bytes |",
        "|---|--:|--:|",
    ]
    lines += [f"| {what} | {asked['requests']} | {asked['bytes']:,} |" for what, asked in traffic.items()]
    table = "\n".join(lines)
    print(table)
    if write:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")
    now = datetime.now(UTC)
    kept = ROOT / "outputs" / "benchmarks" / f"fleet-{now:%Y%m%dT%H%M%SZ}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "created_at": now.isoformat(),
        **facts,
        "seconds": seconds,
        "html_bytes": sizes,
        "lookups": lookups,
        "remote": traffic,
    }
    kept.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nfigures: {kept.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
