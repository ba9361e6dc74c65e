"""Replays under CUDA graphs' rules, as `simulator.py` keeps them: each hazard has a test that its safeguard passes."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from app.errors import CaptureError, ConfigError, InputError
from app.runtime.graphs import CudaGraphOptimizer
from tests.runtime.graphed import Model
from tests.runtime.simulator import Simulator

WIDTH = 8
SIZES = (1, 2, 4, 8)
FIRST_BYTES = 8 * WIDTH * 4  # of one tensor at the largest size


def inputs(size):
    return [torch.ones(size, WIDTH), torch.ones(size, 1, dtype=torch.bool)]


def draw(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, WIDTH, generator=generator), torch.rand(size, 1, generator=generator) > 0.5]


@pytest.fixture(scope="module", autouse=True)
def one_core():
    """Threads of torch's own for such small tensors do nothing but wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model():
    return Model(WIDTH)


@pytest.fixture
def simulator():
    return Simulator()


@pytest.fixture
def captured(model, simulator):
    """An optimizer of the model, captured at all sizes; options as the optimizer takes them."""

    def make(sizes=SIZES, run=None, **options):
        options = {"addresses": model.addresses, "names": ["x", "mask"], **options}
        optimizer = CudaGraphOptimizer(run or model.run, simulator, **options)
        optimizer.capture(sizes, inputs)
        return optimizer

    return make


@pytest.fixture
def refused(simulator):
    """Capture what can't be captured, and give the optimizer and the error."""

    def make(run, sizes=SIZES, given=inputs, **options):
        optimizer = CudaGraphOptimizer(run, simulator, names=["x", "mask"], **options)
        with pytest.raises(CaptureError) as caught:
            optimizer.capture(sizes, given)
        return optimizer, str(caught.value)

    return make


def same(ours, eager):
    assert len(ours) == len(eager)
    for left, right in zip(ours, eager, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def in_threads(*functions):
    """Run each in a thread of its own, all started together; raise what one raises."""
    barrier = threading.Barrier(len(functions))

    def body(function):
        barrier.wait(10)
        function()

    with ThreadPoolExecutor(len(functions)) as pool:
        for future in [pool.submit(body, function) for function in functions]:
            future.result(30)


# What a replay gives


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SIZES), st.integers(0, 99)), min_size=1, max_size=8))
def test_any_order_of_replays_equals_eager_and_stays_equal(calls):
    model = Model(WIDTH)
    optimizer = CudaGraphOptimizer(model.run, Simulator(), addresses=model.addresses)
    optimizer.capture(SIZES, inputs)
    ours = [optimizer.replay(size, draw(size, seed)) for size, seed in calls]
    for (size, seed), outputs in zip(calls, ours, strict=True):
        same(outputs, model.expected(draw(size, seed)))
    assert sum(optimizer.stats()["replayed"].values()) == len(calls)


def test_each_replay_reads_its_own_inputs(captured, model):
    optimizer = captured()
    for seed in range(3):
        same(optimizer.replay(4, draw(4, seed)), model.expected(draw(4, seed)))


def test_no_python_of_the_model_runs_again(captured, model):
    calls = []

    def run(tensors):
        calls.append(len(tensors[0]))
        return model.run(tensors)

    optimizer = captured(run=run)
    del calls[:]
    optimizer.replay(4, draw(4))
    assert calls == []


def test_outputs_of_a_clone_survive_the_next_replay_of_any_size(captured, model):
    optimizer = captured()
    first = optimizer.replay(8, draw(8, 1))
    optimizer.replay(8, draw(8, 2))
    optimizer.replay(1, draw(1, 3))
    same(first, model.expected(draw(8, 1)))


def test_cloned_outputs_share_no_memory_with_one_another_or_the_next_call(captured):
    optimizer = captured()
    outputs = optimizer.replay(4, draw(4)) + optimizer.replay(4, draw(4))
    assert len({tensor.untyped_storage().data_ptr() for tensor in outputs}) == len(outputs)


def test_view_is_the_graphs_own_memory_and_the_next_replay_overwrites_it(captured, model):
    optimizer = captured(outputs="view")
    first = optimizer.replay(4, draw(4, 1))
    same(first, model.expected(draw(4, 1)))
    second = optimizer.replay(4, draw(4, 2))
    assert [a.data_ptr() for a in first] == [b.data_ptr() for b in second]
    same(first, model.expected(draw(4, 2)))
    assert not any(tensor.requires_grad for tensor in first)


def test_an_output_that_is_an_input_is_the_callers_too(captured):
    optimizer = captured(run=lambda tensors: [tensors[0], tensors[0][:, :2]])
    first = optimizer.replay(4, draw(4, 1))
    optimizer.replay(4, draw(4, 2))
    same(first, [draw(4, 1)[0], draw(4, 1)[0][:, :2]])


def test_a_compiled_librarys_call_is_captured_as_one_operation(captured, simulator, model):
    optimizer = captured(run=simulator.artifact(model.run))
    assert len(optimizer._graphs[8].graph.operations) == 1
    first, second = optimizer.replay(8, draw(8, 1)), optimizer.replay(8, draw(8, 2))
    same(first, model.expected(draw(8, 1)))
    same(second, model.expected(draw(8, 2)))


def test_inputs_given_for_capture_and_for_replay_are_never_written(captured, model, simulator):
    given = {size: inputs(size) for size in SIZES}

    def writes(tensors):
        return [tensors[0].mul_(2.0)]

    optimizer = CudaGraphOptimizer(writes, simulator)
    optimizer.capture(SIZES, given.__getitem__)
    mine = draw(4)
    same(optimizer.replay(4, mine), [draw(4)[0] * 2.0])
    same(mine, draw(4))
    for size, tensors in given.items():
        same(tensors, inputs(size))


@pytest.mark.parametrize("capture_in", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("replay_in", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_graphs_captured_under_one_grad_mode_serve_under_any(captured, model, capture_in, replay_in):
    with capture_in():
        optimizer = captured()
    with replay_in():
        ours = optimizer.replay(4, draw(4))
    same(ours, model.expected(draw(4)))
    assert not any(tensor.requires_grad for tensor in ours)


# Padding


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 8), st.floats(allow_nan=True, allow_infinity=True, width=32))
def test_padding_is_the_callers_and_the_rows_before_it_are_right(rows, garbage):
    model = Model(WIDTH)
    optimizer = CudaGraphOptimizer(model.run, Simulator())
    optimizer.capture([8], inputs)
    optimizer.replay(8, draw(8, 9))  # what a call before leaves behind
    x, mask = draw(rows)
    padded = [
        torch.cat([x, torch.full((8 - rows, WIDTH), garbage)]),
        torch.cat([mask, torch.zeros(8 - rows, 1, dtype=torch.bool)]),
    ]
    whole = optimizer.replay(8, padded)
    same([output[:rows] for output in whole], model.expected([x, mask]))
    for ours, eager in zip(whole, model.expected(padded), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, mask: [x[:3], mask], r"input 'x' is float32 \[3, 8\] on cpu, .* captured with float32 \[4, 8\]"),
        (lambda x, mask: [x[:1], mask], r"input 'x' is float32 \[1, 8\]"),  # copy_ would broadcast it
        (lambda x, mask: [x, mask.float()], r"input 'mask' is float32 .* captured with bool"),
        (lambda x, mask: [x.to("meta"), mask], "input 'x' is .* on meta"),
        (lambda x, mask: [x], "1 inputs, but .* captured with 2"),
    ],
)
def test_an_input_that_is_not_as_captured_is_refused_by_name(captured, change, message):
    optimizer = captured()
    with pytest.raises(InputError, match=message):
        optimizer.replay(4, change(*draw(4)))
    assert optimizer.stats()["replayed"] == {}
    optimizer.replay(4, draw(4))


# How sizes are captured


def test_largest_size_comes_first_and_all_share_one_pool(captured, simulator):
    optimizer = captured(sizes=(2, 8, 1, 4, 8))
    assert [event for event in simulator.events if event[0] == "capture"] == [("capture", 0, n) for n in (8, 4, 2, 1)]
    assert simulator.events.count(("new_pool",)) == 1
    assert optimizer.sizes == (1, 2, 4, 8)
    assert optimizer.stats()["captured"] == [1, 2, 4, 8]


def test_smaller_sizes_reuse_the_memory_of_the_largest(captured):
    apart = sum(captured(sizes=[size]).stats()["bytes"] for size in SIZES)
    assert captured().stats()["bytes"] < 0.7 * apart


def test_each_size_is_warmed_up_before_its_capture(captured, simulator):
    captured(warmup=2)
    kinds = [event[0] for event in simulator.events if event[0] in {"warm_up", "capture"}]
    assert kinds == ["warm_up", "capture"] * len(SIZES)
    assert ("warm_up", 2) in simulator.events


def test_beyond_max_graphs_the_smallest_sizes_are_shed_and_it_says_so(captured):
    optimizer = captured(max_graphs=2)
    assert optimizer.sizes == (4, 8)
    assert optimizer.stats()["skipped"] == dict.fromkeys((2, 1), "shed: max_graphs=2 larger sizes come first")
    with pytest.raises(CaptureError, match="size 2 was not captured: shed: max_graphs=2"):
        optimizer.replay(2, draw(2))


def test_beyond_max_bytes_the_smallest_sizes_are_shed_and_it_says_so(captured, simulator, model):
    taken = captured(sizes=(8, 4)).stats()["bytes"]
    optimizer = captured(max_bytes=taken)
    assert optimizer.sizes == (4, 8)
    skipped = optimizer.stats()["skipped"]
    assert set(skipped) == {2, 1}
    assert all(why.startswith("shed: size 2 takes the graphs to ") for why in skipped.values())
    assert all(why.endswith(f" bytes, max_bytes={taken}") for why in skipped.values())
    assert simulator.pools[-1].num_graphs == 2
    held = simulator.allocated_bytes() - taken  # the pool keeps what crossed the limit, and the figure says so
    assert optimizer.stats()["bytes"] == held > taken
    same(optimizer.replay(8, draw(8)), model.expected(draw(8)))


def test_a_largest_size_beyond_max_bytes_leaves_nothing_and_gives_all_back(refused, simulator, model):
    optimizer, message = refused(model.run, max_bytes=FIRST_BYTES)
    assert "size 8: shed: size 8 takes the graphs to" in message
    assert set(optimizer.stats()["skipped"]) == set(SIZES)
    assert (optimizer.sizes, optimizer.stats()["bytes"], simulator.allocated_bytes()) == ((), 0, 0)


def test_memory_that_a_failed_size_leaves_in_the_pool_sheds_the_next_one(captured, simulator, model):
    limit = captured(sizes=[8]).stats()["bytes"]

    def run(tensors):
        if len(tensors[0]) == 4 and simulator._recorder:
            tensors[0].repeat(1000, 1)
            raise ValueError("no kernel for 4")
        return model.run(tensors)

    optimizer = captured(run=run, max_bytes=limit)
    assert optimizer.sizes == (8,)
    skipped = optimizer.stats()["skipped"]
    assert [skipped[size].split(":")[0] for size in (4, 2, 1)] == ["failed (capture)", "shed", "shed"]


def test_capturing_again_replaces_the_graphs(captured, simulator, model):
    optimizer = captured()
    optimizer.capture([2, 3], inputs)
    assert optimizer.sizes == (2, 3)
    assert [pool.ended for pool in simulator.pools] == [True, False]
    same(optimizer.replay(3, draw(3)), model.expected(draw(3)))


# What can't be captured


@pytest.mark.parametrize("failing", [8, 4, 1])
def test_a_size_that_fails_is_recorded_and_the_others_serve(captured, model, failing):
    def run(tensors):
        if len(tensors[0]) == failing:
            raise ValueError(f"no kernel for {failing}\nand a long story")
        return model.run(tensors)

    optimizer = captured(run=run)
    stats = optimizer.stats()
    assert stats["skipped"] == {failing: f"failed (capture): no kernel for {failing}"}
    assert stats["failures"] == {"capture": 1}
    for size in set(SIZES) - {failing}:
        same(optimizer.replay(size, draw(size)), model.expected(draw(size)))
    with pytest.raises(CaptureError, match=f"size {failing} was not captured: failed"):
        optimizer.replay(failing, draw(failing))


def test_a_capture_that_breaks_halfway_leaves_a_usable_pool(captured, simulator, model):
    def run(tensors):
        outputs = model.run(tensors)
        if len(tensors[0]) == 8 and simulator._recorder:
            raise RuntimeError("out of registers")
        return outputs

    optimizer = captured(run=run)
    assert (optimizer.sizes, list(optimizer.stats()["skipped"])) == ((1, 2, 4), [8])
    assert simulator.pools[0].ended
    same(optimizer.replay(4, draw(4)), model.expected(draw(4)))


def test_a_size_that_fails_holds_no_memory(captured, model):
    seen = []

    def run(tensors):
        if len(tensors[0]) == 4:
            seen.append(weakref.ref(tensors[0]))
            raise ValueError("no kernel for 4")
        return model.run(tensors)

    gc.disable()
    try:
        captured(run=run)
        assert [reference() for reference in seen] == [None]
    finally:
        gc.enable()


def test_a_run_may_empty_the_list_that_it_is_given(captured, model):
    def boxed(tensors):
        taken = list(tensors)
        tensors.clear()
        return model.run(taken)

    same(captured(run=boxed).replay(4, draw(4)), model.expected(draw(4)))


def test_out_of_memory_is_counted_apart(captured, simulator, model):
    def run(tensors):
        if len(tensors[0]) == 8 and simulator._recorder:
            raise torch.OutOfMemoryError("CUDA out of memory during capture")
        return model.run(tensors)

    stats = captured(run=run).stats()
    assert (stats["captured"], stats["failures"]) == ([1, 2, 4], {"out-of-memory": 1})


def test_a_model_that_fails_at_every_size_is_an_error_with_each_reason(refused):
    def run(tensors):
        raise ValueError(f"no kernel for {len(tensors[0])}")

    optimizer, message = refused(run)
    assert "size 8: failed (capture): no kernel for 8; size 4: " in message
    assert optimizer.stats()["failures"] == {"capture": 4}


def branches_on_values(tensors):
    return [tensors[0] + 1 if tensors[0].sum() > 0 else tensors[0]]


def reads_a_value(tensors):
    return [tensors[0] * tensors[0].max().item()]


def selects_by_mask(tensors):
    return [tensors[0][tensors[1][:, 0]]]


def counts_nonzero(tensors):
    return [tensors[0].nonzero()]


def catches_the_error(tensors):
    try:
        return reads_a_value(tensors)
    except RuntimeError:
        return [tensors[0]]


@pytest.mark.parametrize(
    "run", [branches_on_values, reads_a_value, selects_by_mask, counts_nonzero, catches_the_error]
)
def test_a_model_that_waits_for_the_device_is_refused_once_for_all_sizes(refused, run):
    optimizer, message = refused(run)
    assert "can't wait for the device, or branch on values: CUDA error: operation" in message
    assert optimizer.stats()["failures"] == {"sync": 1}
    assert dict.fromkeys(SIZES, message) == optimizer.stats()["skipped"]
    with pytest.raises(CaptureError, match="can't wait for the device"):
        optimizer.replay(8, draw(8))


def test_the_cause_is_named_and_not_what_ending_the_capture_says_after_it(refused):
    assert "operation not permitted when stream is capturing" in refused(reads_a_value)[1]


def test_a_compiled_library_that_waits_is_refused(refused, simulator):
    optimizer, _ = refused(simulator.artifact(lambda tensors: [tensors[0]], syncs=True))
    assert optimizer.stats()["failures"] == {"sync": 1}


def test_an_input_on_another_device_is_refused_by_name(model):
    optimizer = CudaGraphOptimizer(model.run, Simulator("meta"), names=["x", "mask"])
    with pytest.raises(CaptureError, match="input 'mask' is on cpu: CUDA graphs read meta only"):
        optimizer.capture(SIZES, lambda size: [torch.ones(size, WIDTH, device="meta"), inputs(size)[1]])
    assert optimizer.stats()["failures"] == {"input-device": 1}
    assert optimizer.sizes == ()


def test_an_interrupted_capture_leaves_no_graphs(model, simulator):
    def run(tensors):
        if len(tensors[0]) == 2:
            raise KeyboardInterrupt
        return model.run(tensors)

    optimizer = CudaGraphOptimizer(run, simulator)
    with pytest.raises(KeyboardInterrupt):
        optimizer.capture(SIZES, inputs)
    assert (optimizer.sizes, simulator.allocated_bytes()) == ((), 0)


def test_an_unknown_kind_of_outputs_is_refused(model, simulator):
    with pytest.raises(ConfigError, match="outputs='copy' is not one of: clone, view"):
        CudaGraphOptimizer(model.run, simulator, outputs="copy")


# Weights


def test_weights_written_in_place_serve_the_new_values(captured, model):
    optimizer = captured()
    before = optimizer.replay(4, draw(4))[0]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5)
    after = optimizer.replay(4, draw(4))
    same(after, model.expected(draw(4)))
    assert not torch.equal(before, after[0])


def test_weights_that_moved_end_the_graphs_and_a_new_capture_serves(captured, model, simulator):
    optimizer = captured()
    model.first.weight.data = model.first.weight.data.clone()
    with pytest.raises(CaptureError, match="weights' addresses changed since capture"):
        optimizer.replay(4, draw(4))
    assert (optimizer.sizes, optimizer.stats()["failures"]) == ((), {"addresses": 1})
    assert simulator.allocated_bytes() == 0
    with pytest.raises(CaptureError, match="there are no CUDA graphs: the weights' addresses changed"):
        optimizer.replay(4, draw(4))
    optimizer.capture(SIZES, inputs)
    same(optimizer.replay(4, draw(4)), model.expected(draw(4)))


def test_weights_that_move_while_sizes_are_captured_are_noticed(captured, model):
    def run(tensors):
        if len(tensors[0]) == 1:
            model.first.weight.data = model.first.weight.data.clone()
        return model.run(tensors)

    with pytest.raises(CaptureError, match="weights' addresses changed"):
        captured(run=run).replay(8, draw(8))


# Release


def test_graphs_end_before_their_pool_and_nothing_is_held(captured, simulator):
    optimizer = captured()
    optimizer.release()
    assert simulator.events[-2:] == [("synchronize",), ("release_pool", 0)]
    assert (optimizer.sizes, optimizer.stats()["bytes"], simulator.allocated_bytes()) == ((), 0, 0)


def test_a_replay_after_release_is_refused_and_a_second_release_is_nothing(captured):
    optimizer = captured()
    optimizer.release()
    optimizer.release()
    with pytest.raises(CaptureError, match="there are no CUDA graphs: they were released"):
        optimizer.replay(4, draw(4))


def test_a_replay_that_fails_is_counted_and_named(captured, simulator):
    optimizer = captured()
    simulator.pools[0].ended = True
    with pytest.raises(CaptureError, match="size 4 can't be replayed: CUDA error: an illegal memory access"):
        optimizer.replay(4, draw(4))
    assert optimizer.stats()["failures"] == {"replay": 1}
    assert optimizer.stats()["replayed"] == {}


def test_an_unknown_size_and_an_optimizer_that_captured_nothing_are_refused(captured, model, simulator):
    with pytest.raises(CaptureError, match="size 3 was not captured: it was not asked for"):
        captured().replay(3, draw(3))
    with pytest.raises(CaptureError, match="nothing was captured"):
        CudaGraphOptimizer(model.run, simulator).replay(8, draw(8))
    with pytest.raises(CaptureError, match="no sizes were given"):
        captured(sizes=[])


# Many threads


class Slow(TorchFunctionMode):
    """Every copy and clone in a thread takes a while, so that what other threads do meanwhile shows."""

    def __init__(self, seen=None):
        super().__init__()
        self.seen = seen if seen is not None else (lambda name: None)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in {torch.Tensor.copy_, torch.Tensor.clone}:
            self.seen(func.__name__)
            time.sleep(0.002)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sizes", [(4, 4, 4), (8, 4, 1)])
def test_threads_at_once_each_get_their_own_answer(captured, simulator, model, sizes):
    optimizer = captured()
    simulator.delay_s = 0.002

    def caller(size, seed):
        def call():
            for repeat in range(4):
                tensors = draw(size, 10 * seed + repeat)
                with Slow():
                    ours = optimizer.replay(size, tensors)
                same(ours, model.expected(tensors))

        return call

    in_threads(*(caller(size, seed) for seed, size in enumerate(sizes)))
    assert sum(optimizer.stats()["replayed"].values()) == 4 * len(sizes)


def test_copies_in_and_out_are_ordered_between_streams_as_the_replay_is(captured, simulator):
    optimizer = captured()
    seen = []
    with Slow(lambda name: seen.append((name, simulator.ordering == threading.get_ident()))):
        optimizer.replay(4, draw(4))
    assert {name for name, _ in seen} == {"copy_", "clone"}  # the simulator's own copies are among them
    assert all(ordered for _, ordered in seen)


def test_release_waits_for_a_replay_in_another_thread(captured, simulator, model):
    optimizer = captured()
    simulator.delay_s = 0.1
    results = []

    def release_meanwhile():
        while simulator.ordering is None and not results:
            time.sleep(0.001)
        optimizer.release()

    in_threads(lambda: results.append(optimizer.replay(4, draw(4))), release_meanwhile)
    same(results[0], model.expected(draw(4)))


def test_a_replay_waits_for_a_capture_in_another_thread_and_sizes_does_not(model, simulator):
    started, seen = threading.Event(), []

    def run(tensors):
        started.set()
        time.sleep(0.02)
        return model.run(tensors)

    optimizer = CudaGraphOptimizer(run, simulator, warmup=1)

    def call_meanwhile():
        started.wait(10)
        seen.append(optimizer.sizes)
        same(optimizer.replay(1, draw(1)), model.expected(draw(1)))

    in_threads(lambda: optimizer.capture(SIZES, inputs), call_meanwhile)
    assert seen == [()]
