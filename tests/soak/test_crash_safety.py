"""SIGKILL at any moment leaves a store that the next run uses without complaint."""

from __future__ import annotations

import random
import selectors
import signal
import time

import pytest

from app.store import Store

TEXT = """
    from torch import nn

    def build():
        return nn.Linear(6, 3)
"""
ARGS = ("model=custom", "model.target=crashing:build", "model.inputs=[{name: x, shape: [batch, 6]}]")
PHASES = ("worker", "build", "export", "compile", "verify", "publish", "load", "measure")


def kill_after(process, seconds):
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def kill_at_phase(process, phase, timeout_s=120):
    """Kill the run as soon as it says that a phase begins; whether it came so far."""
    seen = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        deadline = time.monotonic() + timeout_s
        while selector.select(max(0.0, deadline - time.monotonic())):
            chunk = process.stderr.buffer.read1(4096)
            seen += chunk
            if not chunk or f"] {phase}".encode() in seen:
                break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return f"] {phase}".encode() in seen


def assert_usable(root):
    deadline = time.monotonic() + 15
    while True:  # a worker lives some milliseconds longer than its parent, and may still be writing
        with Store(root) as store:
            for kind in ("objects", "weights"):
                for manifest in store.manifests(kind):
                    assert type(store.read(kind, manifest.digest)).__name__ == "Hit"
        left = list((root / "tmp").iterdir())
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert left == []
    assert list((root / "quarantine").iterdir()) == []


@pytest.mark.slow
def test_killed_runs_leave_a_store_that_the_next_run_uses_without_complaint(
    start_app, run_app, module_file, fresh_store, tmp_path, num_objects
):
    module_file("crashing", TEXT)
    slow = tmp_path / "slow-c++"
    slow.write_text('#!/bin/sh\nsleep 2\nexec g++ "$@"\n')
    slow.chmod(0o755)
    args = [*ARGS, f"cache.dir={fresh_store}"]
    dice = random.Random(2)
    for moment in range(8):  # spread over a run that compiles forever
        kill_after(
            start_app(args, env={**module_file.env, "CXX": str(slow)}), 0.2 + moment * 0.7 + dice.uniform(0, 0.5)
        )
        assert_usable(fresh_store)
    reached = []
    for phase in PHASES:
        if kill_at_phase(start_app(args, env=module_file.env), phase):
            reached.append(phase)
        assert_usable(fresh_store)
    assert {"worker", "build", "export", "compile", "publish", "load", "measure"} - set(reached) <= {"load"}

    run = run_app(args, env=module_file.env)
    assert run.code == 0
    assert (run.record["rung"], run.record["fallbacks"]) == ("compiled", [])
    assert "WARNING: cache" not in run.stderr
    assert num_objects(fresh_store) == 1
    assert_usable(fresh_store)
    again = run_app(args, env={**module_file.env, "CXX": "/nonexistent"}).record
    assert (again["cache"]["outcome"], again["rung"]) == ("direct-hit", "compiled")
