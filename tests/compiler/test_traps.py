"""Integer division by what may be zero is never compiled: eager raises there, and compiled code ends the process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.compiler.traps import refuse_division
from app.errors import TrapError


class Module(nn.Module):
    """A module of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("steps", torch.tensor([2, 3]))

    def forward(self, x, n):
        return self.function(self, x, n)


def program(function, dtype=torch.int64):
    x, n = torch.arange(2, 6).to(dtype).view(2, 2), torch.full((2, 2), 3, dtype=dtype)
    return torch.export.export(Module(function).eval(), (x, n), strict=False)


REFUSED = {
    "//": lambda _, x, n: x // n,
    "%": lambda _, x, n: x % n,
    "trunc": lambda _, x, n: torch.div(x, n, rounding_mode="trunc"),
    "floor_divide": lambda _, x, n: torch.floor_divide(x, n),
    "fmod": lambda _, x, n: torch.fmod(x, n),
    "remainder": lambda _, x, n: torch.remainder(x, n),
    "number by tensor": lambda _, x, n: 7 % n + x,
    "by zero": lambda _, x, n: x // 0 + n,
    "least by -1": lambda _, x, n: x // -1 + n,
    "in place": lambda _, x, n: x.clone().floor_divide_(n),
    "a buffer": lambda self, x, n: x // self.steps + n,
    "clamped from below by zero": lambda _, x, n: x // n.clamp(min=0),
    "clamped from above": lambda _, x, n: x // n.clamp(max=5),
    "what is clamped, less one": lambda _, x, n: x // (n.clamp(min=1) - 1),
}
COMPILED = {
    "by a number": lambda _, x, n: x // 2 + n % 16,
    "by a size": lambda _, x, n: x // x.shape[0] + n,
    "clamped": lambda _, x, n: x // n.clamp(min=1),
    "clamped and reshaped": lambda _, x, n: x // n.clamp_min(2).reshape(-1).view(2, 2),
    "true division": lambda _, x, n: x / n,
    "times": lambda _, x, n: x * n,
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("name", [name for name in REFUSED if name != "least by -1"])
def test_what_may_divide_by_zero_is_refused_with_a_remedy(name, dtype):
    with pytest.raises(TrapError, match=r"which may be zero or -1.*clamp\(min=1\)"):
        refuse_division(program(REFUSED[name], dtype))


def test_the_least_integer_has_no_opposite():
    with pytest.raises(TrapError):
        refuse_division(program(REFUSED["least by -1"]))


@pytest.mark.parametrize("name", COMPILED)
def test_what_cannot_is_compiled(name):
    refuse_division(program(COMPILED[name]))


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in ("by zero", "a buffer")])
def test_floating_point_numbers_do_not_trap(name):
    refuse_division(program(REFUSED[name], torch.float32))
