"""Programs that start together on an empty store compile once."""

from __future__ import annotations

import pytest


@pytest.mark.slow
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
    assert all("load" in run.record["phases_s"] and run.record["verify"]["passed"] for run in runs)
    assert {(run.record["rung"], len(run.record["fallbacks"])) for run in runs} == {("compiled", 0)}
    assert num_objects(tmp_path / "store") == 1
    assert not list((tmp_path / "store" / "tmp").iterdir())
    assert not list((tmp_path / "store" / "quarantine").iterdir())
    count("programs that started together", num_programs)
    count("compiles of them")
