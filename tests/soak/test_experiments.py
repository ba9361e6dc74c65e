"""The worked examples in conf/experiment/ compose, and bf16 runs."""

from __future__ import annotations

from importlib import metadata

import pytest

from app.composed import conf_dir
from app.findings import EXTRAS

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_into_settings(compose_settings, experiment):
    if (plugin := EXTRAS.get(experiment)) is not None and not any(metadata.distributions(name=plugin)):
        pytest.skip(f"{plugin} is not installed: pip install 'aot-app[{experiment}]'")
    settings = compose_settings([f"experiment={experiment}"])
    assert settings != compose_settings([])


def test_bf16_is_compared_with_fp32_and_with_eager_in_its_own_precision(compiled, run_app, hit_args):
    record = compiled("bf16").record
    assert (record["precision"], record["rung"], record["fallbacks"]) == ("bf16", "compiled", [])
    assert set(record["latency_ms"]) == {"eager", "compiled", "eager_bf16"}
    for size, ratio in record["speedup_same_precision"].items():
        own, ours = (record["latency_ms"][name][size]["p50"] for name in ("eager_bf16", "compiled"))
        assert ratio == pytest.approx(own / ours)
    assert record["verify"]["passed"]
    assert all(case["rel_l2"] > 1e-5 for case in record["verify"]["cases"])  # it is bf16 indeed
    again = run_app(hit_args("bf16"), env={"CXX": "/nonexistent"}).record
    assert (again["cache"]["outcome"], again["rung"]) == ("direct-hit", "compiled")


def test_bf16_output_has_the_dtype_and_nearly_the_values_of_eager(acquire_here, hit_args, assert_same):
    import torch

    job = acquire_here(hit_args("bf16"))
    (value,), _ = job.context.workload.call(3)
    with torch.inference_mode():
        ours = job.model(value)
        assert ours.dtype == torch.float32
        assert_same(ours, job.context.same_precision(value), rtol=2e-2, atol=2e-2)


def test_external_weights_experiment_runs_and_serves_another_seed_without_a_compiler(run_app, fresh_store):
    # the C++ GEMM template would pack the weights while compiling: then no other checkpoint could be given
    job = ["experiment=external-weights", "fallback=strict", f"cache.dir={fresh_store}"]
    run = run_app(job)
    assert (run.code, run.record["rung"]) == (0, "compiled"), run.stderr
    again = run_app([*job, "model.seed=1"], env={"CXX": "/nonexistent"})
    assert (again.code, again.record["cache"]["outcome"]) == (0, "graph-hit"), again.stderr
    assert again.record["verify"]["passed"]


def test_a_dimension_of_ones_own_is_declared_on_the_command_line(compose_settings):
    settings = compose_settings(
        [
            "model=custom",
            "model.target=m:f",
            "model.inputs=[{name: x, shape: [batch, seq]}]",
            "model.dims={seq: {max: 128}}",
        ]
    )
    assert settings.model.ranges["seq"].max == 128
    assert settings.model.ranges["batch"].max == 1024
