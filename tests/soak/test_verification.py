"""Verification: what is wrong is never published, and what became wrong is not served."""

from __future__ import annotations

import json
import shutil

import pytest

from app.store import Hit, Store

NO_COMPILER = {"CXX": "/nonexistent"}
# Another program when traced than when run: a wrong kernel, as the verifier sees it.
LIAR = """
    import torch
    from torch import nn

    class Liar(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            wrong = 1.001 if torch.compiler.is_exporting() else 1.0
            return self.layer(x) * wrong
"""
ARGS = ("model=custom", "model.target=liar:Liar", "model.inputs=[{name: x, shape: [batch, 4]}]")


@pytest.mark.smoke
def test_wrong_kernel_is_refused_and_never_published(run_app, module_file, fresh_store, num_objects):
    module_file("liar", LIAR)
    run = run_app([*ARGS, "fallback=strict", f"cache.dir={fresh_store}"], env=module_file.env)
    assert run.code == 3, run.stderr
    assert num_objects(fresh_store) == 0
    assert list((fresh_store / "tmp").iterdir()) == []
    assert (run.record["status"], run.record["error"]["stage"]) == ("failed", "verify")
    assert "relative L2 error" in run.stderr


def swap_weights(root):
    """Exchange two weights of one shape, with a manifest that vouches for it: only a comparison with eager can tell."""
    from safetensors.torch import load_file, save_file

    with Store(root) as store:
        (manifest,) = store.manifests("weights")
        found = store.read("weights", manifest.digest)
        assert isinstance(found, Hit)
        with store.staging() as staging:
            for name in manifest.files:
                shutil.copyfile(found.artifact.file(name), staging / name)
                weights = load_file(staging / name)
                first, second = (
                    f"encoder.layers.0.{which}" for which in ("linear2.bias", "norm2.weight")
                )  # 256 each
                weights[first], weights[second] = weights[second], weights[first]
                save_file(weights, staging / name)
            store.quarantine("weights", manifest.digest, "to be replaced")
            store.publish(
                "weights", manifest.digest, staging, factors=manifest.factors, content=manifest.content,
                verified=manifest.verified, provenance=manifest.provenance, requests=manifest.requests,
            )  # fmt: skip


def test_swapped_weights_are_noticed_quarantined_and_rebuilt(run_app, hit_args, copied_store, num_objects):
    args = [*hit_args("external"), f"cache.dir={(store := copied_store('external'))}"]
    assert run_app(args, env=NO_COMPILER).record["cache"]["outcome"] == "direct-hit"
    swap_weights(store)

    run = run_app(args, env=NO_COMPILER)
    assert run.code == 0, run.stderr
    assert [(step["to"], step["stage"]) for step in run.record["fallbacks"]] == [("eager", "verify")]
    assert (run.record["rung"], run.record["verify"]["passed"]) == ("eager", False)
    assert num_objects(store) == 0
    assert "verification" in "".join(path.read_text() for path in store.glob("quarantine/*/reason.txt"))

    rebuilt = run_app(args).record
    assert (rebuilt["cache"]["outcome"], rebuilt["rung"], rebuilt["fallbacks"]) == ("miss", "compiled", [])
    assert rebuilt["verify"]["passed"]
    assert run_app(args, env=NO_COMPILER).record["cache"]["outcome"] == "direct-hit"


def test_hit_for_larger_batches_verifies_the_difference_before_it_serves(run_app, hit_args, copied_store):
    args = [*hit_args("linear"), f"cache.dir={(store := copied_store('linear'))}", "graphs.batch_sizes=[1,32]"]
    record = run_app(args, env=NO_COMPILER).record
    assert (record["cache"]["outcome"], record["rung"]) == ("direct-hit", "compiled")
    cases = {(case["batch"], case["seed"]) for case in record["verify"]["cases"]}
    assert cases >= {(batch, seed) for batch in (1, 17, 32) for seed in (0, 1)}
    with Store(store) as opened:  # what was verified is remembered
        noted = opened.noted(f"verified/{record['key']['object']}/frozen")
    assert {(case["draw"]["sizes"]["batch"], case["draw"]["seed"]) for case in noted} >= {(32, 0), (32, 1)}
    again = run_app(args, env=NO_COMPILER).record
    assert {(case["batch"], case["seed"]) for case in again["verify"]["cases"]} >= cases


def test_stricter_tolerances_refuse_a_hit_without_compiling_or_harming_it(run_app, hit_args):
    strict = [*hit_args("transformer"), "verify.multiple=1", "precision.floor=1e-12", "fallback=strict"]
    run = run_app(strict, env=NO_COMPILER)
    cases = run.record["verify"]["cases"]
    assert any(case["rel_l2"] > case["limit"] for case in cases), json.dumps(cases)
    assert run.code == 3
    assert run.record["error"]["stage"] == "verify"
    assert run.record["cache"]["outcome"] == "direct-hit"
    assert run_app(hit_args("transformer"), env=NO_COMPILER).record["rung"] == "compiled"
