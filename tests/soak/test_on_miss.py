"""Misses whose runs are too long for every day: in the background, kept nowhere, and found too late."""

from __future__ import annotations

import json
import time
from pathlib import Path


def test_background_serves_eager_now_and_the_next_run_hits(run_app, fresh_store):
    args = ["model=linear", f"cache.dir={fresh_store}", "cache.on_miss=background"]
    run = run_app(args)
    assert (run.code, run.record["rung"]) == (0, "eager")
    assert "compiles it meanwhile" in run.record["fallbacks"][0]["reason"]
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


def test_cache_off_compiles_serves_and_keeps_nothing(run_app, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    run = run_app(["model=linear", "cache=off"], env={"TMPDIR": str(temporary)})
    assert run.code == 0, run.stderr
    assert (run.record["cache"]["outcome"], run.record["rung"]) == ("off", "compiled")
    assert run.record["verify"]["passed"]
    assert list(temporary.iterdir()) == []


def test_an_artifact_that_vanishes_before_it_is_loaded_was_a_miss(context_of, hit_args, copied_store, monkeypatch):
    from app import pipeline
    from app.store import Store

    store = copied_store("linear")
    context = context_of([*hit_args("linear"), f"cache.dir={store}"])
    original, removed = pipeline.load, []

    def load(context, found, **options):
        if not removed:
            removed.append(found.artifact.digest)
            with Store(store) as other:
                other.remove("objects", found.artifact.digest)
        return original(context, found, **options)

    monkeypatch.setattr(pipeline, "load", load)
    pipeline.run(context)
    assert (context.record.rung, context.record.fallbacks, context.record.cache.outcome) == ("compiled", [], "miss")
    assert any("vanished before it was loaded" in warning for warning in context.record.warnings)
