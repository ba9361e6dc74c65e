"""The main job on a GPU."""

from __future__ import annotations

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is false"
    ),
]


@pytest.fixture(scope="module")
def cuda_args(run_app, store_dir):
    """Arguments of a run on the GPU that was compiled once, with its record."""
    done = {}

    def arguments(model):
        args = [f"model={model}", "mode=max-autotune", "device=cuda", f"cache.dir={store_dir}"]
        if model not in done:
            done[model] = run_app(args)
            assert done[model].code == 0, done[model].stderr
        return args, done[model].record

    return arguments


@pytest.mark.parametrize("model", ["cnn", "linear"])
def test_first_run_compiles_and_second_is_a_direct_hit(cuda_args, run_app, model):
    args, first = cuda_args(model)
    assert (first["cache"]["outcome"], first["rung"], first["device"]) == ("miss", "cudagraph", "cuda:0")
    assert set(first["rungs"].values()) <= {"cudagraph", "compiled"}
    assert first["monitor"]["graphs"]["captured"] == ["1", "2", "4", "8"]
    assert {"eager", "compiled", "cudagraph"} == set(first["latency_ms"])
    assert first["fallbacks"] == []
    assert first["verify"]["passed"]
    assert first["memory"]["device_peak_bytes"] > 0
    second = run_app(args, env={"CXX": "/nonexistent"}).record
    assert (second["cache"]["outcome"], second["rung"]) == ("direct-hit", "cudagraph")
    without = run_app([*args, "graphs.enabled=false"]).record
    assert (without["cache"]["outcome"], without["rung"]) == ("direct-hit", "compiled")


@pytest.mark.parametrize("model", ["cnn", "linear"])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_outputs_equal_eager(cuda_args, acquire_here, assert_same, model, batch):
    args, _ = cuda_args(model)
    job = acquire_here(args)
    call, kwargs = job.context.workload.call(batch, seed=5)
    with torch.inference_mode():
        ours, eager = job.model(*call, **kwargs), job.eager(*call, **kwargs)
    assert ours.device == torch.device("cuda:0")
    assert_same(ours, eager)


def test_input_on_the_cpu_is_refused(cuda_args, acquire_here):
    from app.errors import InputError

    job = acquire_here(cuda_args("linear")[0])
    with pytest.raises(InputError, match="input 'input' is on cpu"):
        job.model(torch.zeros(2, 768))
