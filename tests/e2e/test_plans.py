"""Batch plans in a run: every size is planned, timed and plotted; plans are kept; no plan changes an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.runtime.plans import Latencies

SIZES = "graphs.batch_sizes=[1,4,16]"

CENTRED = """
from torch import nn

class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)
"""


def test_every_size_up_to_twice_the_largest_is_planned_timed_and_plotted_and_the_plan_is_kept(run_app, hit_args):
    first = run_app([*hit_args("linear"), SIZES])
    assert first.code == 0, first.stderr
    plans = first.record["plans"]
    assert list(plans) == [str(size) for size in range(1, 33)]
    assert all(plan["p50_ms"] > 0 and plan["predicted_ms"] > 0 for plan in plans.values())
    assert first.record["phases_s"]["plan"] > 0
    assert Path(first.record["run_dir"], "batches.svg").read_text().startswith("<svg")
    seen = first.record["monitor"]["batch_sizes"]
    assert set(seen) == {"1", "4", "16"}, "what timed the plan is watched, and no traffic"
    assert {"inference/plan", "inference/verify"} <= set(first.record["monitor"]["operations"]["metrics"])
    again = run_app([*hit_args("linear"), SIZES])
    assert "plan" not in again.record["phases_s"]
    steps = {size: plan["steps"] for size, plan in plans.items()}
    assert {size: plan["steps"] for size, plan in again.record["plans"].items()} == steps
    assert run_app([*hit_args("linear"), SIZES, "graphs.plan=measure"]).record["phases_s"]["plan"] > 0
    off = run_app([*hit_args("linear"), SIZES, "graphs.plan=off"])
    assert (off.record["plans"], off.record["unsplittable"]) == (None, None)


@pytest.mark.parametrize("name", [pytest.param("linear", marks=pytest.mark.smoke), "transformer"])
@pytest.mark.parametrize(
    "latencies",
    [Latencies({4: 1.0, 8: 1.1}, {}), Latencies({1: 1.0, 4: 1.2}, {}), Latencies({}, {2: 1.0, 4: 9.0})],
    ids=["padded", "split", "split and dynamic"],
)
def test_padded_and_split_calls_answer_as_eager_does(loaded, acquire_here, hit_args, assert_same, name, latencies):
    job = acquire_here(hit_args(name))
    job.model.use({(): latencies})
    for size in range(1, 12):
        args, kwargs = job.context.workload.call(size, seed=size)
        with torch.inference_mode():
            assert_same(job.model(*args, **kwargs), job.eager(*args, **kwargs))


def test_a_model_whose_rows_depend_on_each_other_runs_as_it_is_and_says_why(run_app, module_file, fresh_store):
    module_file("centred", CENTRED)
    inputs = "model.inputs=[{name: x, shape: [batch, 4]}]"
    args = ["model=custom", "model.target=centred:Centred", inputs, f"cache.dir={fresh_store}"]
    run = run_app(args, env=module_file.env)
    assert run.code == 0, run.stderr
    assert run.record["unsplittable"] == "a row's output depends on the other rows' values"
    assert (run.record["rung"], run.record["plans"]) == ("compiled", None)
