"""The cases of tests/runtime/test_graphs.py on CUDA itself."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from app.errors import CaptureError, InputError
from app.runtime.cuda import CudaMechanism
from app.runtime.graphs import CudaGraphOptimizer
from tests.runtime.graphed import Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is false"
    ),
]
WIDTH = 1024
SIZES = (1, 2, 4, 8)
MIB = 2**20


@pytest.fixture(params=["cuda:0", "cuda:1"])
def device(request):
    """A device; the second one too, where there is one: torch's default is the first."""
    index = torch.device(request.param).index
    if index >= torch.cuda.device_count():
        pytest.skip(f"needs {index + 1} CUDA devices: there is {torch.cuda.device_count()}")
    return torch.device(request.param)


@pytest.fixture
def model(device):
    return Model(WIDTH, device)


@pytest.fixture
def draw(device):
    def inputs(size, seed=0):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(size, WIDTH, generator=generator)
        return [x.to(device), (torch.rand(size, 1, generator=generator) > 0.5).to(device)]

    return inputs


@pytest.fixture
def captured(device, model, draw):
    made = []

    def make(sizes=SIZES, run=None, **options):
        options = {"addresses": model.addresses, "names": ["x", "mask"], **options}
        optimizer = CudaGraphOptimizer(run or model.run, CudaMechanism(device), **options)
        made.append(optimizer)
        optimizer.capture(sizes, draw)
        return optimizer

    yield make
    for optimizer in made:
        optimizer.release()


def same(ours, eager):
    for left, right in zip(ours, eager, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_every_replay_reads_its_own_inputs_and_its_outputs_stay(captured, model, draw, device):
    optimizer = captured()
    assert optimizer.sizes == SIZES
    calls = [(size, seed) for seed in range(3) for size in (4, 8, 1, 2)]
    ours = [optimizer.replay(size, draw(size, seed)) for size, seed in calls]
    for (size, seed), outputs in zip(calls, ours, strict=True):
        assert outputs[0].device == device
        same(outputs, model.expected(draw(size, seed)))


def test_view_is_overwritten_by_the_next_replay(captured, model, draw):
    optimizer = captured(outputs="view")
    first = optimizer.replay(4, draw(4, 1))
    same(first, model.expected(draw(4, 1)))
    second = optimizer.replay(4, draw(4, 2))
    assert first[0].data_ptr() == second[0].data_ptr()
    same(first, model.expected(draw(4, 2)))


def test_padding_leaves_the_rows_before_it_right(captured, model, draw):
    optimizer = captured()
    x, mask = draw(3)
    padded = [torch.cat([x, x.new_full((1, WIDTH), float("nan"))]), torch.cat([mask, mask[:1]])]
    same([output[:3] for output in optimizer.replay(4, padded)], model.expected([x, mask]))


def test_threads_on_streams_of_their_own_each_get_their_own_answer(captured, model, draw, device):
    optimizer = captured()

    def caller(number):
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            for repeat in range(50):
                size, seed = SIZES[(number + repeat) % len(SIZES)], 100 * number + repeat
                tensors = draw(size, seed)
                same(optimizer.replay(size, tensors), model.expected(tensors))

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(caller, number) for number in range(4)]:
            future.result(120)


def test_capture_succeeds_while_another_thread_allocates(captured, model, draw, device):
    done, held = [], []

    def allocate():
        while not done and len(held) < 128:
            held.append(torch.zeros(8 * MIB, dtype=torch.uint8, device=device))  # new memory each time
            time.sleep(0.002)

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(allocate)
        try:
            optimizer = captured()
        finally:
            done.append(True)
        busy.result(60)
    same(optimizer.replay(4, draw(4)), model.expected(draw(4)))


def test_weights_written_in_place_serve_and_weights_that_moved_do_not(captured, model, draw):
    optimizer = captured()
    with torch.no_grad():
        model.first.weight.mul_(0.5)
    same(optimizer.replay(4, draw(4)), model.expected(draw(4)))
    model.first.weight.data = model.first.weight.data.clone()
    with pytest.raises(CaptureError, match="weights' addresses changed"):
        optimizer.replay(4, draw(4))
    optimizer.capture(SIZES, draw)
    same(optimizer.replay(4, draw(4)), model.expected(draw(4)))


def test_limits_shed_the_smallest_and_say_so(captured):
    assert captured(max_graphs=2).sizes == (4, 8)
    with pytest.raises(CaptureError, match=r"size 8: shed: size 8 takes the graphs to \d+ bytes, max_bytes=1"):
        captured(max_bytes=1)


def test_smaller_sizes_reuse_the_memory_of_the_largest(captured):
    def run(tensors):
        large = tensors[0].repeat(1, 2048)  # 64 MiB at size 8
        return [large.sum(dim=1)]

    largest = captured(sizes=[8], run=run).stats()["bytes"]
    assert largest >= 64 * MIB
    assert captured(run=run).stats()["bytes"] < largest + 32 * MIB


def test_release_gives_the_memory_back(captured, device):
    before = CudaMechanism(device).allocated_bytes()
    optimizer = captured(run=lambda tensors: [tensors[0].repeat(1, 2048)])
    assert optimizer.stats()["bytes"] >= 64 * MIB
    optimizer.release()
    assert CudaMechanism(device).allocated_bytes() <= before + 32 * MIB  # what libraries keep of the warm-up
    with pytest.raises(CaptureError, match="they were released"):
        optimizer.replay(4, [])


def test_a_size_that_fails_in_python_is_skipped_and_the_others_serve(captured, model, draw):
    def run(tensors):
        if len(tensors[0]) == 8 and torch.cuda.is_current_stream_capturing():
            raise ValueError("no kernel for 8")
        return model.run(tensors)

    optimizer = captured(run=run)
    assert optimizer.stats()["skipped"] == {8: "failed (capture): no kernel for 8"}
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    same(optimizer.replay(4, draw(4)), model.expected(draw(4)))


def test_inputs_on_the_cpu_are_refused_by_name(captured, device, model, draw):
    optimizer = CudaGraphOptimizer(model.run, CudaMechanism(device), names=["x", "mask"])
    with pytest.raises(CaptureError, match="input 'mask' is on cpu: CUDA graphs read cuda:"):
        optimizer.capture(SIZES, lambda size: [draw(size)[0], draw(size)[1].cpu()])
    with pytest.raises(InputError, match=r"input 'x' is float32 .* on cpu"):
        captured().replay(4, [draw(4)[0].cpu(), draw(4)[1]])


@pytest.mark.parametrize(
    "expression", ["x * x.max().item()", "x + 1 if x.sum() > 0 else x", "x.nonzero()", "x.cpu()"]
)
def test_a_model_that_waits_for_the_device_is_refused_and_eager_still_serves(expression):
    """In a process of its own: a capture that CUDA breaks may leave its marks on the process."""
    program = f"""
        import torch
        from app.errors import CaptureError
        from app.runtime.cuda import CudaMechanism
        from app.runtime.graphs import CudaGraphOptimizer
from tests.runtime.graphed import Model

        def run(tensors):
            x, = tensors
            return [{expression}]

        optimizer = CudaGraphOptimizer(run, CudaMechanism("cuda:0"))
        try:
            optimizer.capture([1, 8], lambda size: [torch.ones(size, 16, device="cuda:0")])
        except CaptureError as error:
            assert "can't wait for the device" in str(error), error
        else:
            raise SystemExit("it was captured")
        assert optimizer.stats()["failures"] == {{"sync": 1}}, optimizer.stats()
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        assert torch.ones(4, device="cuda:0").sum().item() == 4
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
