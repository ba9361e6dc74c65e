"""SIGKILL at any moment costs nothing that was acknowledged, and the next run works without complaint."""

from __future__ import annotations

import itertools
import os
import random
import secrets
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from app.keys import Key
from app.lookup import Found, find
from app.store import KINDS, Hit, Store

DYING = Path(__file__).with_name("dying.py")
# What a run is asked for, and about how long it takes; SEED is a number never used before.
WORK = {
    "compile": (("task=compile", "model.seed=SEED"), 6.0),
    "publish": (("task=compile", "model.seed=SEED", "weights=external"), 3.5),
    "load": ((), 2.5),
    "hit": (("task=compile",), 0.8),
    "index": (("task=compile",), 0.8),
    "collect": (("task=cache.prune", "cache.size_limit=0"), 0.6),
}
# The functions at which a run dies, by the work that comes there; `dying.py` knows how to read them. A full session
# dies at the beginning and the end of each, a reduced one at either by turns, and at half of those of slow work.
POINTS = {
    "compile": [
        "app.compiler:compile_in_worker",
        "app.compiler.export:export",
        "app.compiler.lower:check_compiler",
        "app.compiler.lower:lower",
        "app.compiler.worker:prepare",
        "app.runtime.aoti:AotiRunner.__init__",
        "app.compiler:_keep_probes",
        "worker:app.compiler.lower:lower",
    ],
    "publish": [
        "app.acquire:_publish",
        "app.store.staging:stage",
        "app.store.objects:seal",
        "app.store.objects:place",
        "app.store.objects:sync",
        "app.compiler.lower:save_weights",
        "app.store:Store._commit_object",
        "app.lookup:remember",
        "app.store.index:Index.update",
        "app.record:Record.save",
        "worker:app.compiler.export:export",
    ],
    "load": [
        "app.acquire:load",
        "app.runtime.aoti:AotiRunner.__init__",
        "app.benchmark:benchmark",
        "app.measure.samples:save_samples",
    ],
    "hit": [
        "app.store:Store._prepare",
        "app.store.staging:sweep",
        "app.store.index:Index._open_disk",
        "app.store.objects:look",
        "app.lookup:find",
        "app.record:Record.save",
    ],
    "index": [
        "app.store.index:Index._discard",
        "app.store:Store._rows",
        "app.store.index:Index._check_schema",
    ],
    "collect": [
        "app.store:Store.collect",
        "app.store:Store.items",
        "app.store.collect:leaving",
        "app.store:Store.remove",
    ],
}
# Where a run dies that finds a damaged artifact, and makes it again.
HEALING = ["app.store.objects:move_away", "app.store:Store._commit_object"]
NUM_KILLS = 200
NUM_RANDOM_REDUCED = 2
AT_RANDOM = ("compile", "publish", "load", "hit")


def points_of(functions, full):
    ends = ("", "/return")
    if full:
        return [function + end for function in functions for end in ends]
    return [function + end for function, end in zip(functions, itertools.cycle(ends), strict=False)]


def random_moments(dice):
    """Kinds of work, each with the seconds after which it is killed."""
    for kind in itertools.cycle(AT_RANDOM):
        yield kind, dice.uniform(0.05, WORK[kind][1])


def descendants(pid):
    """The process and all that it started, and they in turn."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    return found


class Field:
    """One store on which programs die, and what must be left of it."""

    def __init__(self, root, tiny, start_app, finish_app) -> None:
        self.root, self._tiny, self._start_app, self._finish_app = root, tiny, start_app, finish_app
        self._seeds = itertools.count(1)
        self.published: set[tuple[str, str]] = set()
        self.acknowledged = {record["key"]["request"]: record for record in tiny.records.values()}
        self.unwanted: set[tuple[str, str]] = set()

    def start(self, kind, point=None):
        words = [word.replace("SEED", str(next(self._seeds))) for word in WORK[kind][0]]
        program = ("-m", "app") if point is None else (str(DYING), point)
        args = [*self._tiny.args, f"cache.dir={self.root}", *words]
        return self._start_app(args, env=self._tiny.env, program=program)

    def finish(self, process):
        run = self._finish_app(process)
        if run.record and run.record["status"] == "ok" and run.record["rung"] == "compiled":
            self.acknowledged[run.record["key"]["request"]] = run.record
        assert run.record or "rung " not in run.stdout
        return run

    def run(self, kind):
        """One run that nobody kills finds nothing to complain about."""
        run = self.finish(self.start(kind))
        assert run.code == 0, run.stderr
        if kind == "collect":
            assert not any((self.root / one / name[:2] / name).exists() for one, name in self.unwanted)
        else:
            assert (run.record["rung"], run.record["fallbacks"]) == ("compiled", [])
            assert run.record["verify"]["passed"]
        assert "WARNING: cache" not in run.stderr

    def check(self):
        """All that was ever published is there and whole, acknowledged requests are answered, and nothing is left over."""
        self.sweep()
        with Store(self.root) as store, Store(self.root, readonly=True) as stranger:  # who remembers no digests
            for kind in KINDS:
                places = list((self.root / kind).glob("??/*"))
                assert {path.name for path in places} == {manifest.digest for manifest in store.manifests(kind)}
                assert all(isinstance(stranger.read(kind, path.name), Hit) for path in places)
                now = {(kind, path.name) for path in places}
                assert {one for one in self.published if one[0] == kind} <= now
                self.published |= now - self.unwanted
            for record in self.acknowledged.values():
                answer = find(store, Key(record["key"]["factors"]), {})
                assert isinstance(answer, Found), answer.reasons
                assert answer.artifact.digest == record["key"]["object"]
        assert not list((self.root / "quarantine").iterdir())

    def sweep(self, timeout_s=15):
        """Opening a store sweeps it; but a worker lives some milliseconds longer than its parent, and may write."""
        deadline = time.monotonic() + timeout_s
        while True:
            Store(self.root).close()
            left = list((self.root / "tmp").iterdir())
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        assert left == []

    def add_unwanted(self):
        """Pin all that is there, and publish what a collection may remove."""
        with Store(self.root) as store:
            for kind, name in self.published:
                store.pin(kind, name)
            for _ in range(2):
                name = secrets.token_hex(32)
                self.unwanted.add(("weights", name))
                with store.staging() as folder:
                    (folder / "weights.safetensors").write_bytes(b"unwanted" * 1000)
                    nothing = {key: {} for key in ("factors", "content", "verified", "provenance")}
                    store.publish("weights", name, folder, **nothing, requests=[])

    def lose_index(self):
        """Break the index; from now on only what has a manifest of its own is answered."""
        (self.root / "index" / "cache.db").write_bytes(b"no database" * 1000)
        with Store(self.root, readonly=True) as store:
            listed = {item["request"] for manifest in store.manifests() for item in manifest.requests}
        self.acknowledged = {name: record for name, record in self.acknowledged.items() if name in listed}


@pytest.fixture(scope="module")
def field(tmp_path_factory, tiny, start_app, finish_app):
    root = tmp_path_factory.mktemp("field") / "store"
    shutil.copytree(tiny.store, root)
    return Field(root, tiny, start_app, finish_app)


def die_at(field, kind, points):
    """Programs side by side, each of which dies at its point; then the check."""
    if any("_keep_probes" in point for point in points):
        shutil.rmtree(field.root / "scratch")
    if kind == "index":
        field.lose_index()
    if kind == "collect":
        field.add_unwanted()
    for point, process in [(point, field.start(kind, point)) for point in points]:
        run = field.finish(process)
        if point.startswith("worker:"):
            assert (run.code, run.record["rung"]) == (0, "eager"), run.stderr
            assert "killed by SIGKILL" in run.record["fallbacks"][0]["reason"]
        else:
            assert run.code == -signal.SIGKILL, f"never came to {point}: {run.stderr}"
    field.check()


def die_after(field, kind, seconds, dice):
    """Kill a program, or it and all that it started, after a while; whether it was still alive."""
    process = field.start(kind)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    for pid in descendants(process.pid) if dice.random() < 0.5 else [process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run = field.finish(process)
    field.check()
    return run.code == -signal.SIGKILL


@pytest.mark.smoke
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", POINTS)
def test_killed_at_each_named_point_the_program_keeps_what_it_acknowledged(field, count, full, few, kind):
    is_slow = WORK[kind][1] > 3
    points = points_of(POINTS[kind] if full or not is_slow else POINTS[kind][::2], full)[: 1 if few else None]
    together = 1 if kind in {"index", "collect"} else 2
    for some in (points[at : at + together] for at in range(0, len(points), together)):
        die_at(field, kind, some)
        count("kills survived", len(some))
    field.run(kind)
    field.check()


@pytest.mark.timeout(3600)
def test_killed_while_it_replaces_a_damaged_artifact_the_next_run_does_it(field, tiny, count, full):
    kept = tiny.records["frozen"]["key"]["object"]
    path = field.root / "objects" / kept[:2] / kept / "model.so"
    for point in points_of(HEALING if full else HEALING[:1], full):
        path.chmod(0o600)
        path.write_bytes(b"damaged")
        run = field.finish(field.start("hit", point))
        assert run.code == -signal.SIGKILL, f"never came to {point}: {run.stderr}"
        count("kills survived")
        run = field.finish(field.start("hit"))
        assert (run.code, run.record["rung"], run.record["fallbacks"]) == (0, "compiled", []), run.stderr
        cells = list((field.root / "quarantine").iterdir())
        assert all("its manifest says" in (cell / "reason.txt").read_text() for cell in cells)
        (moved,) = (cell / "object" / "model.so" for cell in cells if (cell / "object").exists())
        assert moved.read_bytes() == b"damaged"
        for cell in cells:
            shutil.rmtree(cell)
        field.check()


@pytest.mark.timeout(3600)
def test_killed_at_random_moments_the_program_keeps_what_it_acknowledged(field, count, full):
    dice = random.Random(2)
    named = [*itertools.chain.from_iterable(POINTS.values()), *HEALING]
    wanted = NUM_KILLS - len(points_of(named, full)) if full else NUM_RANDOM_REDUCED
    killed = 0
    for kind, seconds in itertools.islice(random_moments(dice), 10 * wanted):
        if killed == wanted:
            break
        if die_after(field, kind, seconds, dice):
            killed += 1
            count("kills survived")
    assert killed == wanted
    for kind in AT_RANDOM:
        field.run(kind)
    field.check()
