"""Loaded libraries over the C interface: the binding's results, errors that are exceptions, and many threads."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import pytest
import torch

from app.errors import LoadError
from app.runtime import aoti, container
from app.runtime.aoti import AotiRunner


@pytest.fixture(scope="session")
def library(compiled):
    return Path(compiled("linear").record["artifact_dir"]) / "model.so"


@pytest.fixture(params=[1, 4], ids=["1 runner", "4 runners"])
def runner(request, library):
    return AotiRunner(library, "cpu", num_runners=request.param)


def rows(count, seed=0):
    return torch.randn(count, 768, generator=torch.Generator().manual_seed(seed))


def resident_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.parametrize("single_threaded", [False, True])
def test_results_are_those_of_torch_s_own_class(library, single_threaded):
    ours = AotiRunner(library, "cpu", single_threaded=single_threaded)
    theirs = AotiRunner(library, "cpu", binding=True)
    for count in (1, 3, 64):
        (left,), (right,) = ours([rows(count)]), theirs([rows(count)])
        assert torch.equal(left, right)
        assert not left.requires_grad


def test_the_cpu_is_called_over_the_c_interface_and_other_threads_run_meanwhile(library):
    runner, value = AotiRunner(library, "cpu"), rows(40_000)
    called, done = threading.Event(), threading.Event()

    def call():
        called.set()
        runner([value])
        done.set()

    thread = threading.Thread(target=call)
    thread.start()
    called.wait()
    ticks = 0
    while not done.wait(0.001):
        ticks += 1
    thread.join()
    assert ticks > 20  # of some hundred; with the GIL held it is at most a few


def test_where_the_interface_lacks_torch_s_own_class_serves(library, monkeypatch):
    monkeypatch.setattr(container, "_FUNCTIONS", {"IsNoFunction": ()})
    (left,) = AotiRunner(library, "cpu")([rows(3)])
    assert torch.equal(left, AotiRunner(library, "cpu", binding=True)([rows(3)])[0])
    single = AotiRunner(library, "cpu", single_threaded=True)
    assert "single-threaded" in single.uncapturable
    assert torch.equal(left, single([rows(3)])[0])


def test_what_is_no_library_is_a_load_error(tmp_path):
    path = tmp_path / "model.so"
    path.write_bytes(b"no library")
    with pytest.raises(LoadError, match=r"model\.so can't be loaded: .*(too short|invalid ELF)"):
        AotiRunner(path, "cpu")
    with pytest.raises(LoadError, match=r"model\.so can't be loaded"):
        aoti.constant_names(path, "cpu")


def test_a_wrong_number_of_tensors_is_refused_before_the_library_ends_the_process(runner):
    with pytest.raises(ValueError, match="2 tensors, expected 1"):
        runner([rows(1), rows(1)])
    with pytest.raises(ValueError, match="0 tensors, expected 1"):
        runner([])


def test_what_is_no_tensor_is_refused_and_the_runner_serves_on(runner):
    for _ in range(9):
        with pytest.raises(TypeError):
            runner(["text"])
    assert runner([rows(2)])[0].shape == (2, 5)


def test_an_error_of_the_library_has_torch_s_words_and_the_runner_serves_on(runner):
    for _ in range(9):
        with pytest.raises(RuntimeError, match=r"could not create a primitive descriptor|standard error"):
            runner([torch.ones(4, 700)])
    assert runner([rows(2)])[0].shape == (2, 5)


def test_without_its_text_an_error_says_where_that_stands():
    torch_2_12 = object()
    assert "standard error" in container._why(torch_2_12)


def test_errors_of_some_threads_leave_the_others_neither_waiting_nor_wrong(runner):
    value = rows(2)
    (expected,) = runner([value])
    failed, wrong = [], []

    def fail():
        for _ in range(100):
            try:
                runner([torch.ones(4, 700)])
            except RuntimeError:
                failed.append(1)

    def serve():
        wrong.extend(1 for _ in range(200) if not torch.equal(runner([value])[0], expected))

    threads = [threading.Thread(target=target, daemon=True) for target in (fail, serve) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert (len(failed), wrong) == (400, [])


def test_many_threads_each_get_their_own_results(runner, hammer):
    calls = hammer(lambda value: runner([value])[0], [rows(1 + n % 7, n) for n in range(32)], seconds=2)
    assert calls > 32


def test_calls_and_errors_keep_no_memory(library, capfd):
    runner, value, wrong = AotiRunner(library, "cpu"), rows(64), torch.ones(64, 700)

    def rounds(count):
        for n in range(count):
            runner([value])
            if n % 20 == 0:
                with pytest.raises(RuntimeError):
                    runner([wrong])

    rounds(200)
    before = resident_mb()
    rounds(2000)  # 375 MB of inputs, 18 MB of those that failed
    assert resident_mb() - before < 10
    assert value._use_count() == wrong._use_count() == 1


def test_outputs_outlive_the_runner_and_the_container_goes_with_it(library):
    runner = AotiRunner(library, "cpu")
    (output,) = runner([rows(3)])
    kept, gone = output.clone(), weakref.ref(runner._run.__self__)
    del runner
    gc.collect()
    assert gone() is None
    assert torch.equal(output, kept)


def test_a_runner_that_is_dropped_during_a_call_goes_after_it(library):
    value, results = rows(20_000), []
    (expected,) = AotiRunner(library, "cpu")([value])
    for _ in range(5):
        thread = threading.Thread(
            target=lambda runner: results.append(runner([value])[0]), args=[AotiRunner(library, "cpu")]
        )
        thread.start()
        gc.collect()
        thread.join()
    assert all(torch.equal(result, expected) for result in results)
    assert len(results) == 5


def test_external_weights_serve_both_ways_and_one_that_lacks_is_a_load_error(compiled, acquire_here, hit_args):
    loaded = acquire_here(hit_args("external"))
    constants = loaded.model._runner.constants
    library = loaded.found.artifact.path / "model.so"
    assert set(aoti.constant_names(library, "cpu")) == set(constants)
    value = torch.arange(64).reshape(2, 32)
    runner = AotiRunner(library, "cpu", num_runners=2, constants=constants)
    gc.collect()
    assert torch.equal(runner([value])[0], AotiRunner(library, "cpu", constants=constants, binding=True)([value])[0])
    name = next(iter(constants))
    with pytest.raises(LoadError, match=r"model\.so can't be loaded"):
        AotiRunner(library, "cpu", constants={key: constants[key] for key in constants if key != name})


def test_runtime_num_runners_sizes_the_pool(hit_args, acquire_here):
    model = acquire_here([*hit_args("linear"), "runtime.num_runners=3"]).model
    assert model._runner._run.__self__._free.qsize() == 3
    (expected,) = [model(rows(2))]
    assert model._runner._run.__self__._free.qsize() == 3
    assert expected.shape == (2, 5)
