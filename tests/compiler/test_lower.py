"""Lower: what is made of a program before Inductor has it, and that Inductor does what the options say."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

from app.compiler import lower
from app.compiler.export import export
from app.config import DimConfig
from app.environment import compiler
from app.errors import CompileError
from app.runtime.aoti import AotiRunner, constant_names
from app.workloads import Workload
from app.workloads.inputs import TensorInput

aten = torch.ops.aten


class Products(nn.Module):
    """Products of a batch with a matrix, one after the other, of rows that don't lie in order."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 5, bias=False)
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        turned = self.second(self.first(x.transpose(0, 1)))
        return torch.relu(turned @ self.weight) @ turned.mT[..., :4, :]


@pytest.mark.parametrize("dynamic", [{}, {0: Dim("batch", max=64)}, {0: Dim("batch", max=64), 1: Dim("seq", max=64)}])
def test_products_of_a_batch_with_one_matrix_are_of_two_matrices(dynamic):
    torch.manual_seed(0)
    module = Products().eval()
    graph = torch.export.export(module, (torch.randn(5, 5, 8),), dynamic_shapes=(dynamic,)).module(check_guards=False)
    lower._flatten_products(graph)
    ranks = {
        node.target: [len(graph_shape(argument)) for argument in node.args[:2]]
        for node in graph.graph.nodes
        if node.target is aten.linear.default
    }
    assert ranks == {aten.linear.default: [2, 2]}
    value = torch.randn(7 if dynamic else 5, 5, 8)
    torch.testing.assert_close(graph(value), module(value))


def graph_shape(node):
    """What a reshape asks for, or what the exporter noted."""
    return node.args[1] if node.target is aten.reshape.default else node.meta["val"].shape


class Signals(nn.Module):
    """Convolutions of signals that lie along the width, and along the height; then of a point, and of what is wider."""

    def __init__(self):
        super().__init__()
        self.along = nn.Conv1d(1, 8, 9, stride=4, padding=2)
        self.grouped = nn.Conv1d(8, 8, 3, dilation=2, groups=4, bias=False)
        self.same = nn.Conv1d(8, 8, 5, padding="same", dilation=2)
        self.high = nn.Conv2d(8, 8, (3, 1), stride=(2, 1), padding=(1, 0), groups=2)
        self.high_same = nn.Conv2d(8, 8, (5, 1), padding="same")
        self.wider, self.point = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        signal = self.same(self.grouped(self.along(x).relu()))
        high = self.high_same(self.high(signal.unsqueeze(-1)).relu())
        return signal, high, self.wider(high), self.point(high.mean(2, keepdim=True)), self.along(x[0])


@pytest.mark.parametrize(
    "dynamic", [{}, {0: Dim("batch", max=64)}, {0: Dim("batch", max=64), 2: Dim("length", min=64)}]
)
def test_convolutions_of_signals_are_of_images_one_pixel_high(dynamic):
    torch.manual_seed(0)
    module = Signals().eval()
    graph = torch.export.export(module, (torch.randn(4, 1, 96),), dynamic_shapes=(dynamic,)).module(
        check_guards=False
    )
    lower._turn_convolutions(graph)
    kernels = {
        node.args[1] for node in graph.graph.nodes if node.target in {aten.conv2d.default, aten.conv2d.padding}
    }
    turned = {str(each.args[0]) for each in kernels if each.op == "call_function"}
    assert turned == {"along_weight", "grouped_weight", "same_weight", "high_weight", "high_same_weight"}
    assert {str(each) for each in kernels if each.op == "get_attr"} == {"wider_weight", "point_weight"}
    assert not any(node.target in {aten.conv1d.default, aten.conv1d.padding} for node in graph.graph.nodes)
    value = torch.randn(7 if 0 in dynamic else 4, 1, 120 if 2 in dynamic else 96)
    for ours, eager in zip(graph(value), module(value), strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.slow
def test_convolutions_of_signals_are_packed_for_onednn(tmp_path):
    """Inductor does so of images only."""
    module = nn.Sequential(nn.Conv1d(8, 16, 3, padding=1), nn.ReLU()).eval()
    inputs = (TensorInput("input", ("batch", 8, 40), "float32"),)
    exported = export(Workload(module, inputs, {"batch": DimConfig()}, "cpu"), module)
    lower.lower(exported, {"freezing": True}, tmp_path, tmp_path / "scratch")
    assert "0.weight" not in constant_names(tmp_path / "model.so", "cpu").values(), "what is packed has another name"
    value = torch.randn(5, 8, 40)
    (answer,) = AotiRunner(tmp_path / "model.so", "cpu")([value])
    torch.testing.assert_close(answer, module(value), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_freezing_packs_the_weights(tmp_path):
    """Inductor ignores the option unless gradients are off, and says nothing."""
    module = nn.Linear(64, 32).eval()
    inputs = (TensorInput("input", ("batch", 64), "float32"),)
    exported = export(Workload(module, inputs, {"batch": DimConfig()}, "cpu"), module)
    for freezing in (True, False):
        folder = tmp_path / str(freezing)
        folder.mkdir()
        lower.lower(exported, {"freezing": freezing}, folder, tmp_path / "scratch")
    names = constant_names(tmp_path / "True" / "model.so", "cpu")
    assert "weight" not in names.values(), "what oneDNN packed has another name"
    assert set(constant_names(tmp_path / "False" / "model.so", "cpu").values()) == {"weight", "bias"}
    value = torch.randn(3, 64)
    (answer,) = AotiRunner(tmp_path / "True" / "model.so", "cpu")([value])
    torch.testing.assert_close(answer, module(value), rtol=1e-5, atol=1e-5)


def compiled_by(tmp_path, script):
    """A linear layer's library by a compiler that runs a script of sh's first."""
    cxx = tmp_path / "cxx"
    cxx.write_text(
        f'#!/bin/sh\ncd "{tmp_path}"\ncase "$*" in {script} esac\ncd - > /dev/null\nexec {compiler()} "$@"\n'
    )
    cxx.chmod(0o755)
    module = nn.Linear(8, 4).eval()
    exported = export(Workload(module, (TensorInput("input", (2, 8), "float32"),), {}, "cpu"), module)
    lower.lower(exported, {"freezing": True, "cpp.cxx": (None, str(cxx))}, tmp_path, tmp_path / "scratch")
    value = torch.randn(2, 8)
    torch.testing.assert_close(AotiRunner(tmp_path / "model.so", "cpu")([value])[0], module(value))


@pytest.mark.slow
def test_wrapper_and_kernels_are_compiled_side_by_side(tmp_path):
    waits = "for _ in $(seq 600); do test -e begun && break; sleep 0.1; done; test -e begun || exit 1"
    compiled_by(tmp_path, f"*.wrapper.cpp*) {waits};; *.kernel.cpp*) touch begun;;")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["wrapper", "kernel"])
def test_a_part_that_does_not_compile_is_an_error(tmp_path, part):
    with pytest.raises(CompileError, match=f"error: no {part}"):
        compiled_by(tmp_path, f"*.{part}.cpp*) echo 'error: no {part}' >&2; exit 1;;")


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardswish": nn.Hardswish(),
    "leaky relu": nn.LeakyReLU(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
}


class Clamped(nn.Module):
    """Bounds of a size, and bounds that are the wrong way round."""

    def forward(self, x):
        return x.clamp(0, x.shape[0]), x.clamp_min(3).clamp_max(1), x.clamp(max=2)


@pytest.mark.slow
def test_bounds_may_be_sizes_or_the_wrong_way_round(tmp_path):
    inputs = (TensorInput("x", ("batch", 4), "float32"),)
    exported = export(Workload(Clamped(), inputs, {"batch": DimConfig()}, "cpu"), Clamped())
    lower.lower(exported, {"freezing": True}, tmp_path, tmp_path / "scratch")
    value = torch.tensor([[-1.0, 0.5, 7.0, torch.nan]] * 3)
    for ours, eager in zip(AotiRunner(tmp_path / "model.so", "cpu")([value]), Clamped()(value), strict=True):
        torch.testing.assert_close(ours, eager, rtol=0, atol=0, equal_nan=True)


class Activations(nn.Module):
    """Each after a convolution, after one with something added, and after a linear layer: of its own, to be fused."""

    def __init__(self):
        super().__init__()
        self.activations = nn.ModuleList(ACTIVATIONS.values())
        self.convolutions, self.added, self.linears = (
            nn.ModuleList(kind(*sizes) for _ in ACTIVATIONS)
            for kind, sizes in ((nn.Conv2d, (3, 4, 3)), (nn.Conv2d, (3, 4, 3)), (nn.Linear, (6, 5)))
        )

    def forward(self, x):
        images, rows = [], []
        for index, activation in enumerate(self.activations):
            images.append(activation(self.convolutions[index](x)))
            images.append(activation(self.added[index](x) + x[:, :1, 1:-1, 1:-1]))
            rows.append(activation(self.linears[index](x)))
        return images, rows


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "options"), [(torch.float32, {}), (torch.bfloat16, {"max_autotune": True})])
def test_what_is_not_finite_stays_so(tmp_path, dtype, options):
    """oneDNN's ReLU makes 0 of NaN, and Inductor would fuse it into what is before."""
    torch.manual_seed(0)
    module = Activations().eval().to(dtype)
    inputs = (TensorInput("x", ("batch", 3, 6, 6), str(dtype).removeprefix("torch.")),)
    exported = export(Workload(module, inputs, {"batch": DimConfig()}, "cpu"), module)
    lower.lower(exported, {"freezing": True, **options}, tmp_path, tmp_path / "scratch")
    runner = AotiRunner(tmp_path / "model.so", "cpu")
    for value in (torch.nan, torch.inf, -torch.inf, 2.0):
        x = torch.full((3, 3, 6, 6), value, dtype=dtype)
        x[0, 0, 0] = 0.5
        with torch.no_grad():
            images, rows = module(x)
        for ours, eager in zip(runner([x]), images + rows, strict=True):
            finite = eager.isfinite()
            assert torch.equal(ours.isfinite(), finite)  # GELU of -inf is NaN to eager, and -inf to oneDNN
            torch.testing.assert_close(ours[finite], eager[finite], rtol=1e-2, atol=1e-2)
