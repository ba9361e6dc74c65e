"""Runs that capture graphs: a real artifact, with a simulator of CUDA's rules where the GPU would be."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch

from app import capturing, errors, pipeline
from app.acquire import acquire, load, opened
from app.errors import InputError
from app.runtime import aoti
from app.runtime.aoti import AotiRunner
from tests.runtime.simulator import Simulator

ASKED = ("graphs.enabled=true", "graphs.batch_sizes=[1,4]")


@pytest.fixture
def simulator(monkeypatch):
    """The device's graphs; a loaded library is one operation to it."""
    simulator = Simulator()

    class Opaque(AotiRunner):
        def __call__(self, tensors):
            return simulator.artifact(super().__call__)(tensors)

    monkeypatch.setattr(aoti, "AotiRunner", Opaque)
    monkeypatch.setattr(capturing, "mechanism_for", lambda _: simulator)
    return simulator


@pytest.fixture
def ran(context_of, hit_args):
    """Run in this process, and give the record."""

    def run(*args, variant="linear"):
        context = context_of([*hit_args(variant), *ASKED, *args])
        pipeline.run(context)
        context.record.phases_s = context.phases.seconds
        return context.record

    return run


@pytest.mark.parametrize("variant", ["linear", "transformer", "external"])
def test_a_run_captures_compares_plans_and_measures_with_and_without_graphs(simulator, ran, variant):
    # without plans every captured size is replayed, also where the simulator is slower than the artifact
    record = ran("graphs.plan=off", variant=variant)
    assert (record.cache.outcome, record.rung, record.fallbacks) == ("direct-hit", "cudagraph", [])
    assert record.rungs == {"1": "cudagraph", "4": "cudagraph"}
    assert set(record.latency_ms) == {"eager", "compiled", "cudagraph"}
    assert record.phases_s["capture"] > 0
    graphs = record.monitor["graphs"]
    assert (graphs["captured"], graphs["failures"], graphs["skipped"]) == (["1", "4"], {}, {})
    assert set(record.monitor["calls"]) == {"cudagraph"}
    assert {(case.batch, case.passed) for case in record.verify.cases} >= {(1, True), (4, True)}
    assert [event for event in simulator.events if event[0] == "capture"] == [("capture", 0, 4), ("capture", 0, 1)]


def test_latencies_with_graphs_are_kept_apart_from_those_without(simulator, ran):
    first = ran("graphs.batch_sizes=[1,6]")
    assert first.phases_s["plan"] > 0
    assert set(first.plans) == {str(size) for size in range(1, 13)}
    assert "plan" not in ran("graphs.batch_sizes=[1,6]").phases_s
    assert "plan" in ran("graphs.batch_sizes=[1,6]", "graphs.enabled=auto").phases_s


@pytest.mark.smoke
def test_graphs_that_answer_wrongly_never_serve(simulator, ran, monkeypatch):
    replay = Simulator.capture

    def wrong(self, run, pool):
        graph, outputs = replay(self, run, pool)
        graph.operations.clear()
        return graph, outputs

    monkeypatch.setattr(Simulator, "capture", wrong)
    record = ran()
    (step,) = record.fallbacks
    assert (step.from_, step.to, step.stage) == ("cudagraph", "compiled", "verify")
    assert (record.rung, record.rungs["4"]) == ("compiled", "compiled")
    assert "replayed CUDA graphs are wrong" in step.reason
    with pytest.raises(errors.VerifyError, match="replayed CUDA graphs are wrong"):
        ran("fallback=strict")


def test_sizes_that_do_not_fit_are_left_out_and_said(simulator, ran):
    record = ran("graphs.max_graphs=1", "graphs.plan=off")
    assert record.rungs["4"] == "cudagraph"
    assert record.monitor["graphs"]["captured"] == ["4"]
    assert any("no CUDA graph of batch 1: shed: max_graphs=1" in warning for warning in record.warnings)
    small = ran("graphs.memory_limit=1 B")
    assert (small.fallbacks[0].stage, small.rung) == ("capture", "compiled")


def test_where_there_is_no_gpu_asking_for_graphs_is_a_step_down_that_strict_refuses(ran):
    record = ran()
    (step,) = record.fallbacks
    assert (step.from_, step.to, step.stage) == ("cudagraph", "compiled", "capture")
    assert (record.rung, set(record.latency_ms)) == ("compiled", {"eager", "compiled"})
    assert "needs a CUDA device" in step.reason
    with pytest.raises(errors.CaptureError, match="needs a CUDA device"):
        ran("fallback=strict")


def test_a_call_whose_replay_fails_is_answered_without_graphs_and_counted(
    simulator, context_of, hit_args, assert_same
):
    context = context_of([*hit_args("linear"), *ASKED])
    with serving(context) as served:
        args, kwargs = context.workload.call(4)
        expected = context.workload.module(*args, **kwargs)
        simulator.pools[-1].ended = True
        for _ in range(4):
            assert_same(served(*args, **kwargs), expected)
    stats = served.stats()
    assert (stats["calls"], stats["open"]) == ({"compiled": 4}, ["cudagraph"])
    assert stats["graphs"]["failures"] == {"replay": 3}


def test_external_weights_are_exchanged_on_every_rung_and_frozen_ones_are_refused(context_of, hit_args, assert_same):
    context = context_of(hit_args("external"))
    with serving(context) as served:
        args, kwargs = context.workload.call(3)
        module = copy.deepcopy(context.workload.module)
        with torch.no_grad():
            for value in module.parameters():
                value.mul_(1.5)
        state, expected = module.state_dict(), module(*args, **kwargs)
        with pytest.raises(InputError, match="doesn't fit the model: extra"):
            served.load_state_dict({**state, "extra": torch.ones(1)})
        assert_same(served(*args, **kwargs), context.workload.module(*args, **kwargs))
        served.load_state_dict(state)
        assert_same(served(*args, **kwargs), expected)
        assert_same(context.workload.module(*args, **kwargs), expected)
        assert served.stats()["calls"] == {"compiled": 2}
    with (
        serving(context_of(hit_args("linear"))) as frozen,
        pytest.raises(InputError, match="baked into the artifact"),
    ):
        frozen.load_state_dict({})


@contextmanager
def serving(context):
    """The ladder of a captured model."""
    with opened(context) as store:
        model = load(context, acquire(context, store))
        capturing.capture(context, model)
        yield context.on_ladder(model)
