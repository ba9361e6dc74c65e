"""OpenVINO's blobs: the module's own results in every dtype, copies that last, many threads, and errors that say why."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from app.compiler import openvino as compiler
from app.compiler.export import export
from app.config import DimConfig
from app.errors import CompileError, InputError, LoadError
from app.runtime.model import load
from app.runtime.openvino import BLOB, OpenVinoRunner
from app.workloads import Workload, at_precision
from app.workloads.inputs import TensorInput

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed: pip install 'aot-app[openvino]'"
)
ROW = TensorInput("x", ("batch", 6), "float32")


class Dtypes(nn.Module):
    """Everything that NumPy calls otherwise, or OpenVINO computes otherwise."""

    def forward(self, half, count, x, unused):
        return half * 2, count * 3 - 1, x > 0, x.sum(), x.double() * 2, half, {"as it is": x}


DTYPES = (
    TensorInput("half", ("batch", 3), "bfloat16"),
    TensorInput("count", ("batch", 2), "int64", low=-1000, high=1000),
    ROW,
    TensorInput("unused", (2,), "float32"),
)


@pytest.fixture
def compiled(tmp_path):
    """A module compiled and loaded: the model, and the workload that it answers for."""

    def made(module, inputs=(ROW,), precision="fp32", **loading):
        workload = Workload(module.eval().requires_grad_(False), inputs, {"batch": DimConfig(max=64)}, "cpu")
        exported = export(workload, at_precision(workload.module, precision))
        content = {"spec": exported.spec.to_json(), "constants": None}
        content |= compiler.lower(exported, precision, tmp_path)
        return load(tmp_path, json.loads(json.dumps(content)), "cpu", **loading), workload

    return made


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 512), nn.ReLU(), nn.Linear(512, 3))


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_every_dtype_comes_back_as_the_module_gives_it(compiled, batch):
    model, workload = compiled(Dtypes(), DTYPES)
    args, kwargs = workload.call(batch)
    torch.testing.assert_close(model(*args, **kwargs), workload.module(*args, **kwargs), rtol=0, atol=1e-5)


def test_an_answer_outlives_the_next_call_and_the_inputs(compiled):
    model, _ = compiled(nn.Identity())
    x = torch.randn(4, 6)
    first, expected = model(x), x.clone()
    x.zero_()
    model(torch.ones(4, 6))
    assert torch.equal(first, expected)


@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0.0, 1e-5), ("bf16", 1e-4, 2e-2)])
def test_it_computes_in_the_precision_that_was_asked_for(compiled, precision, least, most):
    model, workload = compiled(linear(), precision=precision)
    x = torch.randn(8, 6)
    exact = workload.module.double()(x.double())
    found = model(x)
    assert found.dtype is torch.float32
    assert least <= float((found - exact).norm() / exact.norm()) <= most


@pytest.mark.parametrize("num_runners", [1, 3])
def test_threads_get_the_answers_to_their_own_calls(compiled, num_runners):
    model, workload = compiled(linear(), num_runners=num_runners)
    wrong = []

    def call(seed):
        for batch in range(1, 40):
            x = torch.randn(batch, 6, generator=torch.Generator().manual_seed(100 * seed + batch))
            if not torch.allclose(model(x), workload.module(x), atol=1e-5):
                wrong.append((seed, batch))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_call_has_the_threads_that_torch_has_where_it_is_loaded(compiled, tmp_path):
    model, _ = compiled(linear())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        request = OpenVinoRunner(tmp_path / BLOB, "fp32")._free.get()
    finally:
        torch.set_num_threads(before)
    assert request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1
    assert model._runner._free.get().get_compiled_model().get_property("INFERENCE_NUM_THREADS") == before


def test_integers_beyond_32_bits_are_refused_because_it_would_wrap_them(compiled):
    model, _ = compiled(
        Dtypes(), (DTYPES[0], TensorInput("count", ("batch", 2), "int64", low=-5, high=1 << 40), *DTYPES[2:])
    )
    rest = torch.randn(1, 6), torch.ones(2)
    half = torch.ones(1, 3, dtype=torch.bfloat16)
    assert model(half, torch.tensor([[-5, 7]]), *rest)[1].tolist() == [[-16, 20]]
    with pytest.raises(InputError, match="input 'count' holds 2147483648, outside of -5 to 2147483647"):
        model(half, torch.tensor([[0, 1 << 31]]), *rest)


class Singular(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x.unsqueeze(1))


class Named(nn.Module):
    def forward(self, x):
        return x * 2, "name"


@pytest.mark.parametrize(("module", "said"), [(Singular(), "aten._linalg_svd"), (Named(), "tensors only")])
def test_what_it_cannot_convert_is_named(compiled, module, said):
    with pytest.raises(CompileError, match=said):
        compiled(module)


def test_a_blob_that_cannot_be_read_is_an_error_that_names_it(compiled, tmp_path, monkeypatch):
    compiled(linear())
    for content in (b"", b"nonsense" * 100, (tmp_path / BLOB).read_bytes()[:1000]):
        (tmp_path / "bad.blob").write_bytes(content)
        with pytest.raises(LoadError, match=r"can't load bad\.blob: ."):
            OpenVinoRunner(tmp_path / "bad.blob", "fp32")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(LoadError, match="openvino"):
        OpenVinoRunner(tmp_path / BLOB, "fp32")


def test_nothing_is_told_to_its_makers():
    program = """
import sys, threading
from app.runtime.openvino import without_telemetry
without_telemetry().Core()
print([name for name in sys.modules if name.startswith("openvino_telemetry.")], threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "1"]
