"""`fallback=strict` ends the run where a stage fails, with that stage and its code; `graceful` serves it all the same."""

from __future__ import annotations

import pytest

# The command, with a library that fails from its n-th call on; 0 fails to load.
BROKEN = """
from app.errors import LoadError
from app.runtime import aoti

class Broken(aoti.AotiRunner):
    def __init__(self, *args, **kwargs):
        if not {first}:
            raise LoadError("planted")
        super().__init__(*args, **kwargs)
        self.calls = 0

    def __call__(self, tensors):
        self.calls += 1
        if self.calls >= {first}:
            raise RuntimeError("planted")
        return super().__call__(tensors)

aoti.AotiRunner = Broken
from app.cli import main
main()
"""
BRANCHES = """
from torch import nn

class Branches(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x
"""


@pytest.fixture
def planted(run_app, hit_args, fresh_store, module_file, tmp_path):
    """Run with a failure planted at a stage."""
    module_file("branches", BRANCHES)
    (tmp_path / "file").write_text("")
    hit, fresh = hit_args("linear"), ["model=linear", f"cache.dir={fresh_store}"]
    custom = ["model=custom", "model.target=branches:Branches", "model.inputs=[{name: x, shape: [batch, 4]}]"]

    def run(stage, *args):
        arguments, env, program = {
            "store": (["model=linear", f"cache.dir={tmp_path}/file/store"], {}, None),
            "export": ([*custom, f"cache.dir={fresh_store}"], module_file.env, None),
            "compile": (fresh, {"CXX": "/nonexistent"}, None),
            "verify": ([*hit_args("external"), "verify.multiple=1", "precision.floor=1e-12"], {}, None),
            "load": (hit, {}, BROKEN.format(first=0)),
            "capture": ([*hit, "graphs.enabled=true"], {}, None),
            "run": ([*hit, "graphs.plan=off"], {}, BROKEN.format(first=2)),
        }[stage]
        return run_app([*arguments, *args], env=env, program=("-c", program) if program else ("-m", "app"))

    return run


SERVED = {"export": "jit", "capture": "compiled"}


SMOKE = {"verify", "load", "run"}


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, marks=pytest.mark.smoke if stage in SMOKE else ())
        for stage in ("store", "export", "compile", "verify", "load", "capture", "run")
    ],
)
def test_a_planted_failure_ends_a_strict_run_by_its_stage_and_is_one_step_of_a_graceful_one(planted, stage):
    strict = planted(stage, "fallback=strict")
    assert strict.code == (3 if stage == "verify" else 1), strict.stderr
    assert (strict.record["status"], strict.record["error"]["stage"]) == ("failed", stage)
    assert f"error at {stage}" in strict.stderr
    graceful = planted(stage)
    assert graceful.code == 0, graceful.stderr
    assert [step["stage"] for step in graceful.record["fallbacks"]] == [stage]
    assert graceful.record["rung"] == SERVED.get(stage, "eager")
    assert graceful.stderr.count("fallback ") == 1
    if stage == "run":
        assert set(graceful.record["rungs"].values()) == {"eager"}
        assert graceful.record["monitor"]["failures"] == {"compiled": 3}
        assert set(graceful.record["latency_ms"]) == {"eager"}
        assert set(graceful.record["speedup"].values()) == {None}
