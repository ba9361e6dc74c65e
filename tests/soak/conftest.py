"""What the soak suites share: their size, the counts that they print at the end, and a tiny model in a store."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from .probes import Probes

COUNTS: dict[str, int | str] = {}
# How much the suites try: `nox` asks for `smoke`, one of each kind; `nox -s full` for `reduced`, `nox -s soak` for `full`.
SIZE = os.environ.get("APP_SOAK", "reduced")
FULL = SIZE == "full"


@pytest.fixture(scope="session")
def counts():
    """What the suites counted, by the words that are printed with it at the end."""
    return COUNTS


@pytest.fixture(scope="session")
def probes(tmp_path_factory):
    """The suite's projects and seeded store."""
    made = Probes(tmp_path_factory.mktemp("mutations"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def count():
    """Add to a count that is printed at the end of the session."""

    def add(name: str, n: int = 1) -> None:
        COUNTS[name] = COUNTS.get(name, 0) + n

    return add


@pytest.fixture(scope="session")
def full():
    """Whether the suites run in full; otherwise each takes a sample."""
    return FULL


@pytest.fixture(scope="session")
def few():
    """Whether one of each kind is enough."""
    return SIZE == "smoke"


def pytest_sessionfinish(session):
    """Hand the counts of one of several workers to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counts"] = COUNTS


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Add up what a worker counted; one that crashed has handed on nothing, and its tests have failed."""
    for name, n in getattr(node, "workeroutput", {}).get("counts", {}).items():
        COUNTS[name] = COUNTS.get(name, 0) + n if isinstance(n, int) else n


def pytest_terminal_summary(terminalreporter):
    """Print the counts even where all tests pass."""
    for name, n in COUNTS.items():
        terminalreporter.write_line(f"{name}: {n}")


MODEL = """from torch import nn

def build():
    return nn.Linear(6, 3)
"""


@dataclass(frozen=True)
class Tiny:
    """A model that compiles in seconds, and a store that holds it: with its weights in it, and without.

    Attributes:
        args: What a run of it is asked for, but for the store.
        env: What such a run needs in its environment.
        place: Where the model's module lies.
        store: The store; tests take copies.
        records: The runs that filled it, `frozen` and `external`.
    """

    args: tuple[str, ...]
    env: dict[str, str]
    place: Path
    store: Path
    records: dict[str, dict]


@pytest.fixture(scope="session")
def tiny(first_runs, run_app):
    """The tiny model, made by whichever worker or session asked first, and kept."""
    place, said = first_runs / "tiny", first_runs / "tiny.json"
    path = os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH", "")]))
    args = ("model=custom", "model.target=tiny_linear:build", "model.inputs=[{name: x, shape: [batch, 6]}]")
    env, records = {"PYTHONPATH": path}, {}
    with FileLock(first_runs / "tiny.lock"):
        if not said.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            (place / "tiny_linear.py").write_text(MODEL)
            for weights in ("frozen", "external"):
                run = run_app([*args, f"weights={weights}", f"cache.dir={place}/store"], env=env)
                assert (run.code, run.record["rung"]) == (0, "compiled"), run.stderr
                records[weights] = run.record
            said.write_text(json.dumps(records))
    records = json.loads(said.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)  # the index's entries name the model's module, and tests look them up
        yield Tiny(args, env, place, place / "store", records)
