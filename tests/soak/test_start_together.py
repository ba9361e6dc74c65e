"""Programs that start together on an empty store compile once."""

from __future__ import annotations

import signal
import time

import pytest


@pytest.fixture
def wait_for():
    """Wait until something is true, for at most half a minute."""

    def wait(condition):
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait


@pytest.mark.timeout(900)
def test_programs_that_start_together_compile_once_and_all_load(
    start_app, finish_app, tiny, tmp_path, num_objects, count, full
):
    num_programs = 16 if full else 8
    args = [*tiny.args, f"cache.dir={tmp_path}/store"]
    processes = [start_app(args, env=tiny.env) for _ in range(num_programs)]
    runs = [finish_app(process, timeout_s=600) for process in processes]
    assert [run.code for run in runs] == [0] * num_programs, [run.stderr for run in runs]
    assert sorted(run.record["cache"]["outcome"] for run in runs) == ["direct-hit"] * (num_programs - 1) + ["miss"]
    assert sum("compile" in run.record["phases_s"] for run in runs) == 1
    others = [run for run in runs if run.record["cache"]["outcome"] != "miss"]
    assert any("] wait: another process compiles the same" in run.stderr for run in others)
    assert all("load" in run.record["phases_s"] and run.record["verify"]["passed"] for run in runs)
    assert {(run.record["rung"], len(run.record["fallbacks"])) for run in runs} == {("compiled", 0)}
    assert num_objects(tmp_path / "store") == 1
    assert not list((tmp_path / "store" / "tmp").iterdir())
    assert not list((tmp_path / "store" / "quarantine").iterdir())
    count("programs that started together", num_programs)
    count("compiles of them")


@pytest.mark.timeout(900)
def test_a_holder_that_hangs_costs_the_others_one_private_compile(
    start_app, finish_app, tiny, tmp_path, num_objects, wait_for
):
    args = [*tiny.args, f"cache.dir={tmp_path}/store", "cache.lock_timeout_s=3"]
    holder = start_app(args, env=tiny.env)
    beats = tmp_path / "store" / "locks" / "requests"
    wait_for(lambda: list(beats.glob("*.beat")))
    holder.send_signal(signal.SIGSTOP)  # no heartbeat any more, and the lock is still held
    runs = [finish_app(process, timeout_s=600) for process in [start_app(args, env=tiny.env) for _ in range(3)]]
    holder.kill()
    holder.communicate()
    assert [run.code for run in runs] == [0] * 3, [run.stderr for run in runs]
    assert all("no heartbeat for 3 s; compiling privately" in run.stderr for run in runs)
    outcomes = sorted(run.record["cache"]["outcome"] for run in runs)
    assert outcomes == ["direct-hit", "direct-hit", "miss"], [run.stderr for run in runs]
    assert {(run.record["rung"], len(run.record["fallbacks"])) for run in runs} == {("compiled", 0)}
    assert num_objects(tmp_path / "store") == 1
