"""The zoo: awkward modules as data, each with the rung that it must end on.

A rung is the highest one that is right: `compiled` where torch can export it, `jit` where only torch.compile can run
it, `eager` where compiled code would answer something else than the module, now or at the next call.
"""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it


@dataclass(frozen=True)
class Animal:
    """A module, how it is called, and where it must end.

    Attributes:
        kind: What makes it awkward; no two are of one kind.
        make: The module's class or factory, by which a run names it.
        rung: Where it must end.
        inputs: The config's `model.inputs`.
        often: Whether every run of the tests visits it.
    """

    kind: str
    make: Callable[[], nn.Module]
    rung: str
    inputs: str = "{name: x, shape: [batch, 8]}"
    often: bool = False

    @property
    def args(self) -> list[str]:
        """The command line that names it."""
        return ["model=custom", f"model.target=animals:{self.make.__name__}", f"model.inputs=[{self.inputs}]"]


# Control flow


class GraphBreak(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        hidden = self.first(x).relu()
        torch._dynamo.graph_break()
        return self.second(hidden) if hidden.sum() > 0 else hidden - 1


class DataLoop(nn.Module):
    def forward(self, x):
        while x.abs().max() > 0.25:
            x = x.sin() * 0.5
        return x + 1


class ItemSlice(nn.Module):
    def forward(self, x, n):
        return x[:, : n.max().item()].cos() * 2


class ShapeBranch(nn.Module):
    def forward(self, x):
        return x.sin() * 2 if x.shape[0] > 2 else x.cos() + 1


class Cond(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x.sin() + 1, lambda x: x.cos() - 1, (x,))


class Opaque(nn.Module):
    @torch.compiler.disable
    def forward(self, x):
        return x * 2 if x.sum() > 0 else -x


class GradMode(nn.Module):
    def forward(self, x):
        return x.sin() * 2 if torch.is_grad_enabled() else x.cos()


class Numpy(nn.Module):
    def forward(self, x):
        return torch.from_numpy(np.tanh(x.numpy()) * 2) + x


# Inputs and outputs


class NamedInputs(nn.Module):
    def forward(self, **named):
        return named["left"] @ named["right"].T


class InnerDict(nn.Module):
    def forward(self, x, mask):
        return self.inner({"x": x, "more": {"mask": mask}})

    def inner(self, given):
        return given["x"].masked_fill(given["more"]["mask"], -1.0)


class Tuples(nn.Module):
    def forward(self, x):
        return (x + 1, (x.argmax(-1), None, 7), [x.sum(), {"name": "zoo"}])


Pair = namedtuple("Pair", ["first", "second"])


class NamedTuple(nn.Module):
    def forward(self, x):
        return Pair(x * 2, Pair(x.mean(-1), 3.5))


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor


class DataclassOutput(nn.Module):
    def forward(self, x):
        return Answer(x.softmax(-1), x.tanh())


class InputViews(nn.Module):
    def forward(self, x):
        return x, x[:, 1:], x.T, x.view(-1, 2), x.unsqueeze(0).expand(3, -1, -1)


class SameTwice(nn.Module):
    def forward(self, x):
        y = x.relu()
        return y, y, y[:, :4]


class DataShape(nn.Module):
    def forward(self, x):
        return x[x > 0] * 2, torch.nonzero(x > 0.5)


class Unique(nn.Module):
    def forward(self, ids):
        values, counts = torch.unique(ids, return_counts=True)
        return values, counts * 2


class ZeroDim(nn.Module):
    def forward(self, x, scale):
        return x * scale, scale + 1, x.sum()


class OnlyZeroDim(nn.Module):
    def forward(self, scale):
        return scale.exp() + 1


class ZeroWidth(nn.Module):
    def forward(self, x, nothing):
        return torch.cat([x, nothing], -1) + nothing.sum(), nothing * 2


# State


class CallCounter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return x * self.calls


class LastSeen(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(8))

    def forward(self, x):
        before = self.last
        self.last = x.mean(0).detach()
        return x + before


class Scratch(nn.Module):
    """A buffer written and read in one call: its output forgets it, and its state doesn't."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scratch", torch.zeros(8))

    def forward(self, x):
        self.scratch.copy_(x.sum(0))
        return x + self.scratch


class PythonCounter(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class AppendedList(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(float(len(self.seen)))
        return x + sum(self.seen)


class TrainedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def train(self, mode=True):
        return super().train(True)

    def forward(self, x):
        return self.norm(torch.cat([x, x + 1]))


class LazyCache(nn.Module):
    """A table made by the first call, as rotary embeddings do."""

    def __init__(self):
        super().__init__()
        self.table = None

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(8.0).cos()
        return x * self.table


class ChangesInput(nn.Module):
    def forward(self, x):
        return x.add_(1) * 2


class InPlaceViews(nn.Module):
    def forward(self, x):
        y = x.clone()
        y[:, 0] = 0
        y.view(-1)[::2].mul_(2)
        y.T[1:3].add_(x.T[2:4])
        return y


# Randomness


class TrainedDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class SlightNoise(nn.Module):
    """Too small to see beside its output, and nevertheless the only thing in one of them."""

    def forward(self, x):
        return x + 10 + torch.rand_like(x) * 1e-4


class RandomIntegers(nn.Module):
    def forward(self, x):
        return x.argmax(-1) + torch.randint(0, 1000, (x.shape[0],))


# Numbers


class Complex(nn.Module):
    def forward(self, x):
        spectrum = torch.fft.rfft(x)
        return spectrum.conj() * torch.complex(torch.tensor(0.0), torch.tensor(2.0)), torch.view_as_real(spectrum)


class Integers(nn.Module):
    def forward(self, small, wide):
        return small * 3, wide // 3, wide % 5, (wide << 2) ^ wide, wide.float() / 7, small + wide


class Halves(nn.Module):
    def forward(self, x):
        return x * 1.5, x.float().exp(), x > 0


class Doubles(nn.Module):
    def forward(self, x):
        return x.sin() + 1e-12, x.sum(-1)


class InnerAutocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.layer(x)


class Infinities(nn.Module):
    def forward(self, x):
        return x.log(), x / 0, x.masked_fill(x > 0, -torch.inf).softmax(-1)


# Modules and operators


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


def hooked():
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    module.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    module[0].register_forward_hook(lambda module, args, output: output + args[0])
    module.register_forward_hook(lambda module, args, output: {"out": output - 1})
    return module


def parametrised():
    norms = nn.utils.parametrizations
    return nn.Sequential(norms.spectral_norm(nn.Linear(8, 8)), norms.weight_norm(nn.Linear(8, 8)))


def channels_last():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).to(memory_format=torch.channels_last)


@torch.library.custom_op("zoo::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.numpy() * 2)


@doubled.register_fake
def _(x):
    return torch.empty_like(x)


class CustomOperator(nn.Module):
    def forward(self, x):
        return doubled(x.sin()) + 1


@torch.library.custom_op("zoo::unshaped", mutates_args=())
def unshaped(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


class UnshapedOperator(nn.Module):
    def forward(self, x):
        return unshaped(x.sin() * 2).cos() + 1


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


class AutogradFunction(nn.Module):
    def forward(self, x):
        return Doubled.apply(x) + 1


class InnerModes(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            y = x.sin()
        with torch.inference_mode():
            return y * 2


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(8, 4, batch_first=True)

    def forward(self, x):
        return self.cell(x)


class Vmapped(nn.Module):
    def forward(self, x):
        return torch.func.vmap(lambda row: row.outer(row).sum(0))(x)


class Sparse(nn.Module):
    def forward(self, x):
        return torch.sparse.mm(x.relu().to_sparse(), torch.ones(8, 2)) + 1


class AcrossRows(nn.Module):
    def forward(self, x):
        return (x - x.mean(0)) / (1 + x.var(0, unbiased=False))


class Plain(nn.Module):
    """Nothing is awkward here but the calls."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.layer(x).relu() + x.mean((2, 3), keepdim=True).sum()


PAIR = "{name: left, shape: [batch, 8], keyword: true}, {name: right, shape: [4, 8], keyword: true}"
MASKED = "{name: x, shape: [batch, 8]}, {name: mask, shape: [batch, 8], dtype: bool}"
SCALED = "{name: x, shape: [batch, 8]}, {name: scale, shape: []}"
COUNTED = "{name: x, shape: [batch, 8]}, {name: n, shape: [batch], dtype: int64, low: 1, high: 8}"
IDS = "{name: ids, shape: [batch, 4], dtype: int64, low: 0, high: 16}"
INTEGERS = (
    "{name: small, shape: [batch, 4], dtype: int8, low: -128, high: 128},"
    "{name: wide, shape: [batch, 4], dtype: int64, low: -1000, high: 1000}"
)
ANIMALS = [
    Animal("graph break and a branch on data", GraphBreak, "jit", often=True),
    Animal("loop on data", DataLoop, "jit"),
    Animal("slice by a value", ItemSlice, "jit", COUNTED),
    Animal("branch on the batch size", ShapeBranch, "jit"),
    Animal("torch.cond", Cond, "compiled"),
    Animal("nothing to compile", Opaque, "eager"),
    Animal("branch on the grad mode", GradMode, "eager"),
    Animal("numpy", Numpy, "jit"),
    # torch.export (2.13) contradicts itself on how the dynamic dimensions of **inputs are to be named
    Animal("dict of inputs", NamedInputs, "jit", PAIR),
    Animal("nested dict within", InnerDict, "compiled", MASKED),
    Animal("nested tuple output", Tuples, "compiled"),
    Animal("named tuple output", NamedTuple, "compiled"),
    Animal("output of a class of its own", DataclassOutput, "eager"),
    Animal("views of inputs as outputs", InputViews, "compiled", often=True),
    Animal("one output twice", SameTwice, "compiled"),
    Animal("shapes that depend on data", DataShape, "compiled"),
    Animal("unique", Unique, "compiled", IDS),
    Animal("zero-dim input beside a batch", ZeroDim, "compiled", SCALED),
    Animal("zero-dim input alone", OnlyZeroDim, "compiled", "{name: scale, shape: []}"),
    Animal("input without elements", ZeroWidth, "compiled", "{name: x, shape: [batch, 8]}, {name: nothing, shape: [batch, 0]}"),
    Animal("buffer that counts calls", CallCounter, "eager", often=True),
    Animal("buffer replaced by each call", LastSeen, "eager"),
    Animal("in-place buffer", Scratch, "eager"),
    Animal("attribute that counts calls", PythonCounter, "eager"),
    Animal("list that grows with each call", AppendedList, "eager"),
    Animal("batch norm in train mode", TrainedNorm, "eager"),
    Animal("cache made by the first call", LazyCache, "compiled"),
    Animal("input changed in place", ChangesInput, "eager"),
    Animal("in-place changes through views", InPlaceViews, "compiled"),
    Animal("dropout in train mode", TrainedDropout, "eager", often=True),
    Animal("random noise", Noise, "eager"),
    Animal("slight random noise", SlightNoise, "eager"),
    Animal("random integers", RandomIntegers, "eager"),
    Animal("complex numbers", Complex, "compiled"),
    Animal("integers", Integers, "compiled", INTEGERS),
    Animal("half precision", Halves, "compiled", "{name: x, shape: [batch, 8], dtype: float16}"),
    Animal("double precision", Doubles, "compiled", "{name: x, shape: [batch, 8], dtype: float64}"),
    Animal("autocast within", InnerAutocast, "compiled"),
    Animal("infinities and NaN", Infinities, "compiled"),
    Animal("tied weights", Tied, "compiled", IDS),
    Animal("hooks", hooked, "compiled"),
    Animal("parametrised weights", parametrised, "compiled"),
    Animal("channels-last weights", channels_last, "compiled", "{name: x, shape: [batch, 3, 6, 6]}"),
    Animal("custom operator", CustomOperator, "compiled"),
    Animal("custom operator without a fake kernel", UnshapedOperator, "eager"),
    Animal("autograd function", AutogradFunction, "compiled"),
    Animal("no_grad and inference_mode within", InnerModes, "compiled"),
    Animal("recurrent", Recurrent, "compiled", "{name: x, shape: [batch, 5, 8]}"),
    Animal("vmap", Vmapped, "compiled"),
    Animal("sparse within", Sparse, "jit"),
    Animal("rows that depend on each other", AcrossRows, "compiled"),
]  # fmt: skip


IMAGES = "{name: x, shape: [batch, 3, 6, 6]}"


@dataclass(frozen=True)
class Call:
    """An awkward call of the plain module.

    Attributes:
        kind: What makes it awkward.
        rung: Which must answer it.
        change: Ordinary images -> the awkward ones.
        mode: The context of the call.
    """

    kind: str
    rung: str
    change: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.clone
    mode: Callable[[], AbstractContextManager] = nullcontext


class Labelled(torch.Tensor):
    """A tensor of a class of its own."""


def in_inference_mode(x):
    with torch.inference_mode():
        return x.clone()


def offset(x):
    """As far from any alignment as a float can be."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


CALLS = [
    Call("ordinary", "compiled"),
    Call("input that requires grad", "eager", lambda x: x.clone().requires_grad_()),
    Call("input that requires grad, under no_grad", "compiled", lambda x: x.clone().requires_grad_(), torch.no_grad),
    Call("under inference mode", "compiled", mode=torch.inference_mode),
    Call("input made in inference mode", "compiled", in_inference_mode),
    Call("parameter", "compiled", lambda x: nn.Parameter(x.clone(), requires_grad=False)),
    Call("class of tensors", "eager", lambda x: x.clone().as_subclass(Labelled)),
    Call("transposed input", "compiled", lambda x: x.clone().transpose(2, 3)),
    Call("every second row", "compiled", lambda x: torch.cat([x, x])[::2]),
    Call("one row repeated", "compiled", lambda x: x[:1].expand(4, -1, -1, -1)),
    Call("negative view", "compiled", lambda x: torch.complex(x, x).conj().imag),
    Call("channels-last input", "compiled", lambda x: x.clone(memory_format=torch.channels_last)),
    Call("unaligned input", "compiled", offset),
    Call("autocast", "eager", mode=lambda: torch.autocast("cpu", torch.bfloat16)),
    Call("empty batch", "eager", lambda x: x[:0]),
    Call("batch larger than was compiled", "eager", lambda x: x[:1].repeat(1025, 1, 1, 1)),
]


def plain(value):
    """An answer without classes that nothing compares by value."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
