"""The main job, for every shipped model: compiled and verified once, then found by every later process."""

from __future__ import annotations

import pytest

MODELS = [pytest.param("cnn", marks=pytest.mark.smoke), "linear", "transformer", "minilm"]
SIZES = {"1", "2", "4", "8"}

# Fields of the record that stay null, each for its reason; all the others are filled.
NULL_ALWAYS = {
    "error": "nothing failed",
    "stage": "of a run that is under way",
    "tuned": "of graphs=auto",
    "unsplittable": "rows are independent",
    "result": "what other tasks find",
    "evaluation": "of task=evaluate",
    "precision_choice": "of precision=auto",
    "mode_choice": "of mode=auto",
    "weights_choice": "of weights=auto",
    "speedup_same_precision": "fp32 is eager's own precision",
    "memory.device_peak_bytes": "a CPU has no memory of its own",
}
NULL_AT_A_MISS = NULL_ALWAYS | {"cache.seconds_saved": "a miss saves nothing"}
# What the config says nothing about is null in its copy too.
NOT_LOOKED_INTO = ("resolved_config", "key.factors", "environment")


def nulls(value, where=""):
    if value is None:
        return {where}
    if where in NOT_LOOKED_INTO:
        return set()
    if isinstance(value, dict):
        return set().union(*(nulls(item, f"{where}.{name}".lstrip(".")) for name, item in value.items()))
    if isinstance(value, list):
        return set().union(*(nulls(item, where) for item in value))
    return set()


@pytest.mark.parametrize("model", MODELS)
def test_first_run_compiles_and_fills_every_field_of_the_record(compiled, model):
    run = compiled(model)
    record = run.record
    assert (record["status"], record["cache"]["outcome"], record["rung"]) == ("ok", "miss", "compiled")
    assert record["cache"]["miss_reasons"]
    assert record["rungs"] == dict.fromkeys(SIZES, "compiled")
    assert record["fallbacks"] == []
    assert nulls(record) == set(NULL_AT_A_MISS)
    assert {"worker", "build", "export", "compile", "verify", "publish", "load", "measure"} <= set(record["phases_s"])
    assert "miss" in run.stdout


@pytest.mark.parametrize("model", MODELS)
def test_second_run_in_a_new_process_is_a_direct_hit(run_app, hit_args, compiled, model):
    record = run_app(hit_args(model)).record
    assert (record["status"], record["cache"]["outcome"], record["rung"]) == ("ok", "direct-hit", "compiled")
    assert record["key"] == compiled(model).record["key"]
    assert record["cache"]["seconds_saved"] > 1
    assert nulls(record) == set(NULL_ALWAYS)
    assert not {"worker", "export", "compile", "publish"} & set(record["phases_s"])


@pytest.mark.parametrize("model", MODELS)
def test_verification_covers_smallest_largest_and_an_odd_size_with_two_seeds(compiled, model):
    verify = compiled(model).record["verify"]
    assert verify["passed"]
    assert verify["reference"] == "float64"
    assert {(case["batch"], case["seed"]) for case in verify["cases"]} >= {
        (batch, seed) for batch in (1, 5, 8) for seed in (0, 1)
    }
    for case in verify["cases"]:
        assert case["rel_l2"] <= case["limit"] == max(verify["floor"], verify["multiple"] * case["eager_rel_l2"])


@pytest.mark.parametrize("model", MODELS)
def test_figures_stand_for_every_batch_size_and_agree_with_each_other(compiled, model):
    record = compiled(model).record
    assert set(record["latency_ms"]) == {"eager", "compiled"}
    for figures in record["latency_ms"].values():
        assert set(figures) == SIZES
        for latency in figures.values():
            assert latency["count"] >= 3
            assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"]
    for size in SIZES:
        low, high = record["speedup_interval"][size]
        assert low <= record["speedup"][size] <= high
        per_second = 1000 * int(size) / record["latency_ms"]["compiled"][size]["p50"]
        assert record["throughput_per_s"][size] == pytest.approx(per_second)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", [1, 3, 8, 16])
def test_compiled_outputs_equal_eager_at_measured_and_at_other_sizes(loaded, assert_same, model, batch):
    import torch

    job = loaded(model)
    args, kwargs = job.context.workload.call(batch, seed=7)
    with torch.inference_mode():
        assert_same(job.model(*args, **kwargs), job.eager(*args, **kwargs))
    assert job.found.outcome == "direct-hit", job.context.record.cache.miss_reasons


def test_task_compile_fills_the_cache_and_measures_nothing(run_app, hit_args):
    record = run_app([*hit_args("linear"), "task=compile"]).record
    assert (record["status"], record["cache"]["outcome"], record["rung"]) == ("ok", "direct-hit", "compiled")
    assert record["latency_ms"] is None
    assert "measure" not in record["phases_s"]
