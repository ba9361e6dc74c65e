"""What a call does beside answering: named where compiled code would leave it out, and nothing said where it does nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app import side_effects


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls, self.seen, self.kept = nn.Linear(3, 3), 0, [], None
        self.notes = {"last": None}
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.act(x)
        return self.layer(x)

    def act(self, x):
        pass


def acting(act):
    return type("Acting", (Base,), {"act": act})().eval()


def lazily(self, x):
    if self.kept is None:
        self.kept = torch.arange(3)


EFFECTS = {
    "attribute calls": lambda self, x: setattr(self, "calls", self.calls + 1),
    "attribute kept": lambda self, x: setattr(self, "kept", x.detach() * 2),
    "attribute seen": lambda self, x: self.seen.append(1),
    "attribute notes": lambda self, x: self.notes.update(last=float(x.sum())),
    "buffer count": lambda self, x: self.count.add_(1),
}


def effect_of(module):
    def call():
        module(torch.randn(2, 3))

    with torch.no_grad():
        call()  # what is made once is there now
        return side_effects.of_calls(module, [call, call])


@pytest.mark.parametrize("name", EFFECTS)
def test_a_change_of_the_module_is_named(name):
    assert effect_of(acting(EFFECTS[name])) == f"a call changes the module's {name}"


def test_a_weight_that_is_written_is_named():
    def grows(self, x):
        self.layer.bias.add_(1)

    assert effect_of(acting(grows)) == "a call changes the module's parameter layer.bias"


@pytest.mark.parametrize("act", [Base.act, lazily])
def test_what_does_nothing_or_keeps_something_once_has_no_effect(act):
    assert effect_of(acting(act)) is None


def test_a_hook_that_gives_nothing_is_named_and_one_that_gives_an_output_is_part_of_the_program():
    found = []

    def collect(module, args, output):
        found.append(output)

    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval()
    handle = module[1].register_forward_hook(lambda module, args, output: output * 2)
    assert effect_of(module) is None
    handle.remove()
    module[1].register_forward_hook(collect)
    hooks = dict(module[1]._forward_hooks)
    said = effect_of(module)
    assert "collect of 1 returns nothing" in said
    assert dict(module[1]._forward_hooks) == hooks


@pytest.mark.filterwarnings("ignore")
def test_torchs_own_hooks_are_known():
    module = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3))).eval()
    assert effect_of(module) is None
