"""The compile worker: its time limit, its crashes, its death with its parent. Whatever it does costs no run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from app.compiler.worker import _is_the_machines
from app.errors import CompileError

TINY = """
    import os, signal, sys
    import torch
    from torch import nn

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x)

    class Branching(Tiny):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Segfaulting(Tiny):
        def forward(self, x):
            if torch.compiler.is_exporting():
                print("these were its last words", flush=True)
                os.kill(os.getpid(), signal.SIGSEGV)
            return self.layer(x)

    def dies_while_building():
        if sys.argv == ["-c"]:  # the worker
            os.kill(os.getpid(), signal.SIGKILL)
        return Tiny()
"""


def tiny(target="Tiny"):
    return ["model=custom", f"model.target=tinymodels:{target}", "model.inputs=[{name: x, shape: [batch, 4]}]"]


@pytest.fixture
def fake_compiler(tmp_path):
    """A C++ compiler that runs a line of shell; `pids` lists itself and who called it."""

    def compiler(line: str) -> Path:
        path = tmp_path / "fake-c++"
        path.write_text(f'#!/bin/sh\necho $$ $PPID >> "{tmp_path}/pids"\n{line}\n')
        path.chmod(0o755)
        return path

    return compiler


def pids_in(path: Path) -> list[int]:
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def assert_served_by_eager(run, stage, *words):
    assert run.code == 0, run.stderr
    assert (run.record["status"], run.record["rung"]) == ("ok", "eager")
    (step,) = run.record["fallbacks"]
    assert (step["from"], step["to"], step["stage"]) == ("compiled", "eager", stage)
    for word in words:
        assert word in step["reason"]
        assert word in run.stderr
    assert run.record["latency_ms"]["eager"]["8"]["count"] >= 3


def assert_store_is_clean(store: Path) -> None:
    assert not list(store.glob("objects/??/*"))
    assert not list(store.glob("tmp/*"))


def test_time_limit_kills_the_worker_and_the_compiler_it_started(run_app, module_file, fake_compiler, tmp_path):
    module_file("tinymodels", TINY)
    env = {**module_file.env, "CXX": str(fake_compiler("sleep 600"))}
    store = tmp_path / "store"
    began = time.monotonic()
    run = run_app([*tiny(), "compile.timeout_s=12", f"cache.dir={store}"], env=env)
    assert_served_by_eager(run, "compile", "compile.timeout_s=12", "compile phase")
    assert time.monotonic() - began < 60
    pids = pids_in(tmp_path / "pids")
    assert len(pids) >= 2
    assert not any(map(is_running, pids))
    assert_store_is_clean(store)


def test_worker_that_segfaults_costs_a_fallback_with_its_last_lines(run_app, module_file, tmp_path):
    module_file("tinymodels", TINY)
    store = tmp_path / "store"
    run = run_app([*tiny("Segfaulting"), f"cache.dir={store}"], env=module_file.env)
    assert_served_by_eager(run, "export", "SIGSEGV", "these were its last words")
    assert_store_is_clean(store)


def test_worker_that_is_killed_while_compiling_costs_a_fallback(run_app, module_file, fake_compiler, tmp_path):
    module_file("tinymodels", TINY)
    env = {**module_file.env, "CXX": str(fake_compiler("kill -9 $PPID"))}
    store = tmp_path / "store"
    run = run_app([*tiny(), f"cache.dir={store}"], env=env)
    assert_served_by_eager(run, "compile", "SIGKILL", "out of memory?")
    assert_store_is_clean(store)


def test_worker_that_is_killed_while_building_costs_a_fallback(run_app, module_file, tmp_path):
    module_file("tinymodels", TINY)
    store = tmp_path / "store"
    run = run_app([*tiny("dies_while_building"), f"cache.dir={store}"], env=module_file.env)
    assert_served_by_eager(run, "compile", "was killed by SIGKILL", "build phase")
    assert_store_is_clean(store)


def test_killed_run_takes_worker_and_compiler_with_it(start_app, module_file, fake_compiler, tmp_path):
    module_file("tinymodels", TINY)
    env = {**module_file.env, "CXX": str(fake_compiler("sleep 600"))}
    process = start_app([*tiny(), f"cache.dir={tmp_path / 'store'}"], env=env)
    assert wait_until(lambda: len(pids_in(tmp_path / "pids")) >= 2, 60)
    pids = pids_in(tmp_path / "pids")
    assert all(map(is_running, pids))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert wait_until(lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_run_says_so_and_leaves_no_process(
    start_app, finish_app, module_file, fake_compiler, tmp_path, signum, code
):
    module_file("tinymodels", TINY)
    env = {**module_file.env, "CXX": str(fake_compiler("sleep 600"))}
    process = start_app([*tiny(), f"cache.dir={tmp_path / 'store'}"], env=env)
    assert wait_until(lambda: len(pids_in(tmp_path / "pids")) >= 2, 60)
    os.kill(process.pid, signum)
    run = finish_app(process)
    assert run.code == code, run.stderr
    assert (run.record["status"], run.record["error"]["stage"]) == ("failed", "compile")
    assert wait_until(lambda: not any(map(is_running, pids_in(tmp_path / "pids"))))
    assert_store_is_clean(tmp_path / "store")


@pytest.mark.parametrize("policy", ["strict", "graceful"])
def test_missing_compiler_is_named(run_app, tmp_path, policy):
    store = tmp_path / "store"
    run = run_app(["model=linear", f"fallback={policy}", f"cache.dir={store}"], env={"CXX": "/nonexistent"})
    if policy == "graceful":
        assert_served_by_eager(run, "compile", "CXX=/nonexistent")
    else:
        assert run.code == 1
        assert (run.record["status"], run.record["error"]["stage"]) == ("failed", "compile")
        assert "CXX=/nonexistent" in run.record["error"]["message"]
        assert "CXX=/nonexistent" in run.stderr
        assert "Traceback" not in run.stderr
    assert_store_is_clean(store)


def test_an_empty_name_of_the_compiler_is_none(run_app, fresh_store):
    run = run_app(["task=compile", "model=linear", f"cache.dir={fresh_store}"], env={"CXX": ""})
    assert (run.code, run.record["rung"], run.record["fallbacks"]) == (0, "compiled", [])


@pytest.mark.parametrize("policy", ["strict", "graceful"])
def test_model_that_does_not_export_is_named(run_app, module_file, tmp_path, policy):
    module_file("tinymodels", TINY)
    store = tmp_path / "store"
    args = [*tiny("Branching"), f"fallback={policy}", "fallback.rungs=[compiled,eager]", f"cache.dir={store}"]
    run = run_app(args, env=module_file.env)
    if policy == "graceful":
        assert_served_by_eager(run, "export")
    else:
        assert run.code == 1
        assert run.record["error"]["stage"] == "export"
        assert "Traceback" not in run.stderr
    assert_store_is_clean(store)


@pytest.mark.parametrize(
    ("said", "is_the_machines"),
    [
        ("a.wrapper.cpp:897:38: error: 'None' was not declared in this scope", False),
        ("a.cpp:1:10: fatal error: omp.h: No such file or directory", True),
        ("g++: fatal error: Killed signal terminated program cc1plus", True),
    ],
)
def test_a_compiler_that_finds_a_mistake_in_the_code_is_not_the_machine(said, is_the_machines):
    error = CompileError(f"CppCompileError: {said}")
    error.__cause__ = subprocess.CalledProcessError(1, "g++")
    assert _is_the_machines(error) is is_the_machines
