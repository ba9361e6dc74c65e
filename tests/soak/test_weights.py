"""Weights beside the artifact: shared, exchangeable without a compiler, and verified each time."""

from __future__ import annotations

import pytest
import torch

NO_COMPILER = {"CXX": "/nonexistent"}


@pytest.mark.smoke
def test_external_weights_are_an_object_of_their_own_and_found_again(compiled, run_app, hit_args):
    record = compiled("external").record
    assert (record["cache"]["outcome"], record["rung"], record["weights"]) == ("miss", "compiled", "external")
    again = run_app(hit_args("external"), env=NO_COMPILER).record
    assert (again["cache"]["outcome"], again["rung"]) == ("direct-hit", "compiled")
    assert again["key"]["object"] == record["key"]["object"]


def test_other_weights_of_the_same_architecture_are_served_without_a_compiler(
    run_app, acquire_here, compiled, hit_args, copied_store, num_objects, assert_same
):
    compiled("external")
    store = copied_store("external")
    args = [*hit_args("external"), f"cache.dir={store}", "model.seed=1"]
    record = run_app(args, env=NO_COMPILER).record
    assert (record["cache"]["outcome"], record["rung"]) == ("graph-hit", "compiled")
    assert record["verify"]["passed"]
    assert {(case["batch"], case["seed"]) for case in record["verify"]["cases"]} >= {(1, 0), (5, 1), (8, 0)}
    assert (num_objects(store), num_objects(store, "weights")) == (1, 2)
    job, first = acquire_here(args), acquire_here(hit_args("external"))
    assert job.found.outcome == "direct-hit"
    assert job.found.artifact.digest == first.found.artifact.digest
    (value,), _ = job.context.workload.call(3)
    with torch.inference_mode():
        assert_same(job.model(value), job.eager(value))
        assert not torch.allclose(job.model(value), first.model(value), atol=1e-3)


def test_equal_weights_from_another_source_share_the_weights_object(
    run_app, loaded, copied_store, hit_args, num_objects, tmp_path
):
    from safetensors.torch import save_file

    path = tmp_path / "seed0.safetensors"
    save_file({name: value.contiguous() for name, value in loaded("transformer").eager.state_dict().items()}, path)
    store = copied_store("external")
    args = [*hit_args("external"), f"cache.dir={store}", "model.seed=5", f"model.checkpoint={path}"]
    record = run_app(args, env=NO_COMPILER).record
    assert (record["cache"]["outcome"], record["rung"]) == ("graph-hit", "compiled")
    assert (num_objects(store), num_objects(store, "weights")) == (1, 1)


def test_frozen_weights_of_another_seed_are_a_miss_that_names_the_seed(run_app, fresh_store):
    args = ["model=linear", "mode=default", f"cache.dir={fresh_store}"]
    assert run_app([*args, "task=compile"]).code == 0
    run = run_app([*args, "model.seed=1", "cache.on_miss=fail"])
    assert run.code == 9
    assert any("model.seed 0 -> 1" in reason for reason in run.record["cache"]["miss_reasons"])
    assert "model.seed 0 -> 1" in run.stderr
