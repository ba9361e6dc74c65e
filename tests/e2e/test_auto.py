"""mode=auto: measured once, known ever after, until something of it changes; each run a process of its own."""

from __future__ import annotations

import json

import pytest

from app.config import FLOORS

pytestmark = pytest.mark.timeout(900)

TINY = """
    from torch import nn, compiler
    def build():
        return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
"""
PICKY = """
    import torch
    class Picky(torch.nn.Linear):
        def forward(self, x):
            if x.dtype == torch.bfloat16 and torch.compiler.is_compiling():
                raise RuntimeError("no such luck")
            return super().forward(x)
    def build():
        return Picky(16, 4)
"""
INPUTS = "model.inputs=[{name: x, shape: [batch, 16]}]"
OURS = "fallback.rungs=[compiled,jit,eager]"  # whatever else is installed here
LOAD = """
import json, sys
import app, app.choose as choose
before, found = choose._choose, []
def watched(*args):
    kept = before(*args)
    found.append("torch" in sys.modules)
    return kept
choose._choose = watched
model = app.load(*json.loads(sys.argv[1]))
print(json.dumps([found, model.info["mode"]]))
"""


@pytest.fixture
def run(run_app, module_file, fresh_store):
    """Run a model of one of these modules in a store of its own."""

    def started(name, *args):
        target = ["model=custom", f"model.target={name}:build", INPUTS, OURS, "graphs.batch_sizes=[4]"]
        return run_app([*target, f"cache.dir={fresh_store}", *args], env=module_file.env)

    return started


def tried(run):
    return [line.rpartition("try ")[2] for line in run.stderr.splitlines() if "auto: try" in line]


def test_measured_once_and_known_in_every_later_process(
    run, module_file, fresh_store, num_objects, finish_app, start_app
):
    path = module_file("tiny", TINY)
    assert run("tiny", "mode=auto", "cache.on_miss=fail").code == 9

    first = run("tiny", "mode=auto", "auto.budget_s=0")
    choice = first.record["mode_choice"]
    assert (choice["evidence"], choice["batch"], choice["num_runs"]) == ("measured", 4, 1)
    assert choice["traits"]["kind"] == "dense"
    by_mode = {each["mode"]: each for each in choice["candidates"]}
    assert "auto.budget_s=0 was over" in by_mode["default"]["reason"]  # one is compiled whatever the budget
    assert by_mode["max-autotune"]["speedup"] > 0
    assert num_objects(fresh_store) == 1
    again = run("tiny", "mode=auto", "auto.budget_s=0", "task=compile")
    assert (tried(again), again.record["mode_choice"]["evidence"]) == ([], "known")

    larger = run("tiny", "mode=auto")
    assert sorted(tried(larger)) == ["default/fp32", "eager/fp32", "max-autotune/fp32"]
    assert num_objects(fresh_store) == 2
    later = run("tiny", "mode=auto", "fallback=strict")
    assert (tried(later), later.record["mode"]) == ([], later.record["mode_choice"]["kept"])
    assert later.record["mode"] == larger.record["mode"]
    assert not {"choose", "worker", "compile"} & later.record["phases_s"].keys()
    assert later.record["cache"] is None or later.record["cache"]["outcome"] == "direct-hit"
    assert "auto: " in later.stdout

    asked = [
        "model=custom",
        "model.target=tiny:build",
        INPUTS,
        OURS,
        "graphs.batch_sizes=[4]",
        "mode=auto",
        "device=cpu",
    ]
    program = ("-c", LOAD, json.dumps([*asked, f"cache.dir={fresh_store}"]))
    loaded = finish_app(start_app([], env=module_file.env, program=program))
    assert loaded.code == 0, loaded.stderr
    assert json.loads(loaded.stdout) == [[False], larger.record["mode"]]

    path.write_text(path.read_text().replace("64)", "32)").replace("(64", "(32"))
    explained = run("tiny", "mode=auto", "task=explain").record["result"]
    assert [(row["level"], row["answer"]) for row in explained] == [("auto", "miss")]
    assert run("tiny", "mode=auto", "cache.on_miss=fail").code == 9


def test_ordinary_runs_are_evidence(run, module_file, num_objects, fresh_store):
    module_file("tiny", TINY)
    for mode in ("default", "max-autotune"):
        assert run("tiny", f"mode={mode}").code == 0
    chosen = run("tiny", "mode=auto")
    choice = chosen.record["mode_choice"]
    assert (tried(chosen), choice["evidence"], choice["num_runs"]) == ([], "known", 2)
    speeds = {each["mode"]: each["speedup"] for each in choice["candidates"]}
    assert choice["kept"] == max(speeds, key=speeds.get)
    assert speeds["eager"] == 1.0
    assert num_objects(fresh_store) == 2
    measured = run("tiny", "mode=auto", "auto.evidence=measure", "task=compile")
    assert len(tried(measured)) == 3
    assert measured.record["mode_choice"]["num_runs"] == 1
    assert num_objects(fresh_store) == 2


def test_weights_are_frozen_or_external_by_what_was_measured(run, module_file, num_objects, fresh_store):
    module_file("tiny", TINY)
    first = run("tiny", "weights=auto", "task=compile")
    choice = first.record["weights_choice"]
    assert sorted(tried(first)) == ["default/fp32/external", "default/fp32/frozen"]
    p50_ms = {each["weights"]: each["p50_ms"] for each in choice["candidates"]}
    assert choice["kept"] == ("external" if p50_ms["external"] * 0.97 <= p50_ms["frozen"] else "frozen")
    assert choice["kept"] == first.record["weights"]
    assert num_objects(fresh_store) == 2
    assert f"auto: {choice['kept']} kept" in first.stdout
    explained = run("tiny", "weights=auto", "task=explain").record["result"]
    assert explained[0]["answer"] == f"default/fp32/{choice['kept']}"
    later = run("tiny", "weights=auto", "fallback=strict", "cache.on_miss=fail")
    assert (tried(later), later.record["weights"]) == ([], choice["kept"])
    assert later.record["cache"]["outcome"] == "direct-hit"


def test_both_may_be_auto_and_what_does_not_compile_is_named(run, module_file):
    module_file("picky", PICKY)
    args = ["mode=auto", "precision=auto", "precision.floor=0.1", "fallback.rungs=[compiled,eager]", "task=compile"]
    for evidence in ("measured", "known"):
        record = run("picky", *args).record
        choice, precision = record["mode_choice"], record["precision_choice"]
        assert (choice["evidence"], precision["kept"], precision["judge"]) == (
            evidence,
            choice["precision"],
            "float64",
        )
        failed = {(each["mode"], each["precision"]) for each in choice["candidates"] if each["reason"]}
        assert failed == {("max-autotune", "bf16"), ("default", "bf16")}
        assert all("no such luck" in each["reason"] for each in choice["candidates"] if each["reason"])
        assert {each["precision"] for each in precision["candidates"]} == set(FLOORS)


def test_where_nothing_compiles_the_policy_says_what_becomes_of_it(run, module_file):
    module_file("picky", PICKY.replace("x.dtype == torch.bfloat16 and ", ""))
    args = ["mode=auto", "task=compile", "fallback.rungs=[compiled,eager]"]
    served = run("picky", *args)
    assert (served.code, served.record["rung"], served.record["fallbacks"][0]["stage"]) == (0, "eager", "export")
    refused = run("picky", *args, "fallback=strict", "fallback.rungs=[compiled,eager]")
    assert (refused.code, refused.record["error"]["stage"]) == (1, "export")
