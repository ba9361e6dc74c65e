"""The jit rung: what does not export is compiled by torch.compile, once, and served warm from the store ever after."""

from __future__ import annotations

import os
import shutil
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

NO_COMPILER = {"CXX": "/nonexistent"}
MODELS = """
    import torch
    from torch import nn

    class Branching(nn.Module):
        # A branch on data, a graph break, and an output that is no tensor.
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x, *, scale):
            hidden = self.first(x).relu() * scale
            hidden = self.second(hidden) if hidden.sum() > -1.0 else hidden - 1
            torch._dynamo.graph_break()
            return {"out": hidden.softmax(-1), "name": "branching"}

    @torch.compiler.disable
    def flipped(x):
        return x if x.sum() > 0 else -x

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return x.relu() * 2 if x.sum() > 0 else x

    class Opaque(nn.Module):
        def forward(self, x):
            return flipped(x)

    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, x):
            return self.table(x.long())

    class Positions(Casting):
        def forward(self, x):
            return x + self.table(torch.arange(x.shape[1])).sum(-1)
"""
INPUTS = (
    "model.inputs=[{name: x, shape: [batch, 8]}, {name: scale, shape: [batch, 1], keyword: true, low: 1, high: 2}]"
)
BRANCHING = ("model=custom", "model.target=jitmodels:Branching", INPUTS)
COUNTING = ("model=custom", "model.target=jitmodels:Counting", "model.inputs=[{name: x, shape: [batch, 8]}]")
OPAQUE = ("model=custom", "model.target=jitmodels:Opaque", "model.inputs=[{name: x, shape: [batch, 8]}]")
# The command, and then what torch's caches answered.
COUNTED = """
import sys
from app.cli import main
try:
    main()
finally:
    from torch._dynamo.utils import counters
    print("found", counters["inductor"]["fxgraph_cache_hit"], "compiled", counters["inductor"]["fxgraph_cache_miss"])
"""


class First(NamedTuple):
    """The first run of the branching model: how it was started, and what came of it."""

    args: list[str]
    env: dict[str, str]
    store: Path
    run: object


@pytest.fixture(scope="module")
def first(run_app, tmp_path_factory):
    place = tmp_path_factory.mktemp("jit")
    (place / "jitmodels.py").write_text(textwrap.dedent(MODELS))
    args = [*BRANCHING, f"cache.dir={place / 'store'}"]
    env = {"PYTHONPATH": os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH", "")]))}
    return First(args, env, place / "store", run_app(args, env=env))


def steps(run):
    return [(step["from"], step["to"], step["stage"]) for step in run.record["fallbacks"]]


@pytest.mark.smoke
def test_what_does_not_export_is_verified_and_served_on_jit(first, num_objects):
    run = first.run
    assert run.code == 0, run.stderr
    assert (run.record["rung"], set(run.record["rungs"].values())) == ("jit", {"jit"})
    assert steps(run) == [("compiled", "jit", "export")]
    assert run.stderr.count("fallback compiled -> jit at export") == 1
    assert (run.record["cache"]["outcome"], run.record["verify"]["passed"]) == ("miss", True)
    assert set(run.record["latency_ms"]) == {"eager", "jit"}
    assert all(run.record["speedup"].values())
    assert num_objects(first.store) == 1


@pytest.mark.smoke
def test_next_process_is_warm_without_export_or_compiler(first, run_app):
    run = run_app(first.args, env={**first.env, **NO_COMPILER}, program=("-c", COUNTED))
    assert run.code == 0, run.stderr
    assert (run.record["rung"], run.record["cache"]["outcome"]) == ("jit", "direct-hit")
    assert run.record["fallbacks"] == first.run.record["fallbacks"]
    assert not {"worker", "export", "compile"} & set(run.record["phases_s"])
    assert run.record["verify"]["passed"]
    assert "served by eager" not in run.stderr
    found, compiled = (int(word) for word in run.stdout.split("found ")[1].split(" compiled "))
    assert found > 0
    assert compiled == 0


def test_jit_model_answers_as_eager_does_and_checks_its_calls(first, acquire_here, assert_same, monkeypatch):
    import torch

    from app.errors import InputError

    monkeypatch.syspath_prepend(first.store.parent)
    job = acquire_here(first.args)
    assert job.found.outcome == "direct-hit"
    for batch in (1, 3, 8):
        args, kwargs = job.context.workload.call(batch, seed=5)
        assert_same(job.model(*args, **kwargs), job.eager(*args, **kwargs))
    with pytest.raises(InputError, match="x"):
        job.model(torch.ones(2, 8, dtype=torch.float64), scale=torch.ones(2, 1))


def test_strict_raises_the_failure_that_jit_would_serve_on_a_hit_too(first, run_app, tmp_path):
    for store, outcome in ((first.store, "direct-hit"), (tmp_path / "empty", "miss")):
        run = run_app([*first.args, "fallback=strict", f"cache.dir={store}"], env=first.env)
        assert (run.code, run.record["cache"]["outcome"]) == (1, outcome)
        assert (run.record["error"]["type"], run.record["error"]["stage"]) == ("ExportError", "export")


def test_eager_serves_where_jit_is_not_among_the_rungs(first, run_app, tmp_path, num_objects):
    for store in (first.store, tmp_path / "empty"):
        run = run_app([*first.args, "fallback.rungs=[compiled,eager]", f"cache.dir={store}"], env=first.env)
        assert (run.code, run.record["rung"], steps(run)) == (0, "eager", [("compiled", "eager", "export")])
    assert num_objects(tmp_path / "empty") == 0


def test_pickles_are_loaded_and_made_where_trust_is_own_only(first, run_app, num_objects):
    run = run_app([*first.args, "cache.trust=none"], env=first.env)
    assert (run.code, run.record["rung"], steps(run)) == (0, "eager", [("compiled", "eager", "export")])
    assert any("pickles" in reason for reason in run.record["cache"]["miss_reasons"])
    assert any("cache.trust=own" in warning for warning in run.record["warnings"])
    assert num_objects(first.store) == 1


def test_bundle_leaves_out_what_holds_pickles(first, run_app, tmp_path):
    run = run_app(
        ["task=cache.export", "model=linear", f"cache.file={tmp_path / 'b.tar'}", f"cache.dir={first.store}"]
    )
    assert run.code == 0, run.stderr
    assert run.record["result"] == []
    assert "holds pickles" in run.stderr


def test_damaged_artifact_is_made_again(first, run_app, tmp_path):
    store = tmp_path / "copied"
    shutil.copytree(first.store, store)
    (path,) = store.glob("objects/??/*/artifacts.bin")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    run = run_app([*first.args, f"cache.dir={store}"], env=first.env)
    assert (run.code, run.record["rung"], run.record["cache"]["outcome"]) == (0, "jit", "miss")
    assert len(list(store.glob("quarantine/*/reason.txt"))) == 1


def test_what_jit_can_not_compile_either_is_served_by_eager_with_both_reasons(run_app, module_file, tmp_path):
    module_file("jitmodels", MODELS)
    run = run_app([*OPAQUE, f"cache.dir={tmp_path / 'store'}"], env=module_file.env)
    assert (run.code, run.record["rung"]) == (0, "eager")
    assert steps(run) == [("compiled", "jit", "export"), ("jit", "eager", "compile")]
    assert "nothing to compile" in run.record["fallbacks"][1]["reason"]
    assert not list((tmp_path / "store").glob("objects/??/*"))


def test_model_that_changes_its_state_stays_with_eager(run_app, module_file, fresh_store, num_objects):
    module_file("jitmodels", MODELS)
    run = run_app([*COUNTING, f"cache.dir={fresh_store}"], env=module_file.env)
    assert (run.code, run.record["rung"]) == (0, "eager")
    assert steps(run) == [("compiled", "jit", "export"), ("jit", "eager", "verify")]
    assert "its own state" in run.record["fallbacks"][1]["reason"]
    assert num_objects(fresh_store) == 0


@pytest.mark.parametrize(
    ("model", "args", "said"),
    [
        ("Casting", ["model.inputs=[{name: x, shape: [batch, 8], low: 0, high: 9}]"], "used as an index (embedding)"),
        (
            "Positions",
            ["model.inputs=[{name: x, shape: [batch, seq]}]", "model.dims={batch: {}, seq: {max: 10, example: 4}}"],
            "fails at seq=10, which its range allows: index out of range",
        ),
    ],
)
def test_what_compiled_code_would_die_of_is_left_to_eager(run_app, module_file, fresh_store, model, args, said):
    module_file("jitmodels", MODELS)
    command = ["model=custom", f"model.target=jitmodels:{model}", *args, f"cache.dir={fresh_store}"]
    run = run_app(command, env=module_file.env)
    assert (run.code, run.record["rung"], steps(run)) == (0, "eager", [("compiled", "eager", "export")])
    assert said in run.record["fallbacks"][0]["reason"]
