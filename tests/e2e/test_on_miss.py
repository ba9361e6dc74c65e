"""cache.on_miss: what a miss does besides compiling."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest


@pytest.mark.slow
def test_background_serves_eager_now_and_the_next_run_hits(run_app, fresh_store):
    args = ["model=linear", f"cache.dir={fresh_store}", "cache.on_miss=background"]
    run = run_app(args)
    assert (run.code, run.record["rung"]) == (0, "eager")
    assert "compiles for the next run" in run.record["fallbacks"][0]["reason"]
    left = json.loads(_wait_for(Path(run.record["run_dir"]) / "background" / "record.json"))
    assert (left["status"], left["cache"]["outcome"]) == ("ok", "miss")
    again = run_app(args, env={"CXX": "/nonexistent"}).record
    assert (again["cache"]["outcome"], again["rung"]) == ("direct-hit", "compiled")


def _wait_for(path, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists():
            return path.read_text()
        time.sleep(0.2)
    raise AssertionError(f"no {path}")
