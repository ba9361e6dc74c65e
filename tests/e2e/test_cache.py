"""Where artifacts live: nowhere, where nothing may be written, and where many write at once."""

from __future__ import annotations

NO_COMPILER = {"CXX": "/nonexistent"}


def picture(root):
    return {str(path): path.lstat().st_mtime_ns for path in root.rglob("*")}


def test_read_only_cache_serves_a_hit_and_is_not_touched(run_app, hit_args, copied_store):
    store = copied_store("linear")
    before = picture(store)
    args = [*hit_args("linear"), "cache=readonly", f"cache.dir={store}"]
    record = run_app(args, env=NO_COMPILER).record
    assert (record["cache"]["outcome"], record["rung"]) == ("direct-hit", "compiled")
    assert picture(store) == before


def test_read_only_cache_serves_a_miss_by_eager_or_fails_when_strict(run_app, hit_args, copied_store):
    store = copied_store("linear")
    before = picture(store)
    args = [*hit_args("linear"), "model.seed=9", "cache=readonly", f"cache.dir={store}"]
    graceful, strict = run_app(args), run_app([*args, "fallback=strict"])
    assert (graceful.code, graceful.record["rung"]) == (0, "eager")
    (step,) = graceful.record["fallbacks"]
    assert (step["stage"], "read-only" in step["reason"]) == ("store", True)
    assert (strict.code, strict.record["error"]["stage"]) == (1, "store")
    assert picture(store) == before


def test_processes_that_start_together_compile_once(start_app, finish_app, fresh_store, num_objects):
    args = ["model=linear", f"cache.dir={fresh_store}"]
    runs = [finish_app(process) for process in [start_app(args) for _ in range(4)]]
    assert [run.code for run in runs] == [0] * 4, [run.stderr for run in runs]
    assert sorted(run.record["cache"]["outcome"] for run in runs) == ["direct-hit"] * 3 + ["miss"]
    assert {run.record["rung"] for run in runs} == {"compiled"}
    assert num_objects(fresh_store) == 1
    assert list((fresh_store / "tmp").iterdir()) == []
