"""A live module's fingerprint: another module never has it, the same one always does, and doubt is said."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody writes it

from app.fingerprint import UncertainError, fingerprint

SCALE = 2.0
TABLE = {"a": 1.0}
LIVE = object()


def doubled(x):
    return x * 2


class Net(nn.Module):
    exponent = 2

    def __init__(self, width=8):
        super().__init__()
        self.first, self.second = nn.Linear(8, width), nn.Linear(width, 4)
        self.slope, self.activation, self.sizes = 0.1, F.relu, [1, 2]
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        return self.helper(self.second(self.activation(self.first(x - self.mean)))) * SCALE + TABLE["a"]

    def helper(self, x):
        return doubled(x) ** self.exponent + self.slope + self.scaled + sum(self.sizes)

    @property
    def scaled(self):
        return 3.0


def net(**kwargs):
    torch.manual_seed(0)
    return Net(**kwargs).eval()


@pytest.fixture
def restored(monkeypatch):
    return monkeypatch


# The same module has the same digest


def test_equal_modules_have_equal_digests():
    assert fingerprint(net()) == fingerprint(net())


def test_the_digest_is_the_same_in_another_process_and_under_another_hash_seed(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class M(nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.l = nn.Linear(3, 3); self.s = {'b', 'a'}; self.d = {'x': 1}\n"
        "    def forward(self, x):\n        return self.l(x).relu() + len(self.s) + self.d['x']\n"
        "def build():\n    torch.manual_seed(0)\n    return M().eval()\n"
    )
    program = "import sys, net; from app.fingerprint import fingerprint; print(fingerprint(net.build()))"
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            cwd=tmp_path,
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(found) == 1


def test_what_forward_does_not_reach_does_not_matter():
    other = net()
    other.logger, other.notes = object(), {"never": "read"}
    assert fingerprint(other) == fingerprint(net())


def test_the_reference_models_and_torchs_own_modules_are_certain():
    from app.workloads import reference

    for build in (reference.cnn, reference.linear, reference.Transformer):
        assert len(fingerprint(build().eval())) == 64
    for module in (nn.LSTM(4, 4), nn.MultiheadAttention(4, 2), nn.BatchNorm2d(3), nn.Embedding(5, 4), nn.GELU()):
        assert len(fingerprint(module.eval())) == 64


# Another module has another digest, or none


def another_forward(self, x):
    return self.second(self.first(x)) * 7


def set_attribute(name, value):
    return lambda model, _: setattr(model, name, value)


def patch_class(name, value):
    return lambda _, monkeypatch: monkeypatch.setattr(Net, name, value)


def patch_global(name, value):
    return lambda _, monkeypatch: monkeypatch.setattr(sys.modules[__name__], name, value)


def times(factor):
    return lambda x: x * factor


def one_bit(model, _):
    with torch.no_grad():
        model.first.weight.view(torch.int32)[0, 0] ^= 1


def tie(model, _):
    model.second = nn.Linear(8, 8)
    model.third = model.second


def untie(model, _):
    model.second = nn.Linear(8, 8)
    model.third = nn.Linear(8, 8)
    model.third.load_state_dict(model.second.state_dict())


def transpose(model, _):
    model.first.weight = nn.Parameter(model.first.weight.t().contiguous().t())


def wrap(model, _):
    inner = model.helper
    model.helper = lambda x: inner(x) + 1


def patch_instance(model, _):
    model.forward = types.MethodType(another_forward, model)


def hook(model, _):
    model.first.register_forward_hook(lambda *_: None)


def pre_hook(model, _):
    model.register_forward_pre_hook(lambda *_: None)


def parametrize(model, _):
    class Twice(nn.Module):
        def forward(self, weight):
            return weight * 2

    nn.utils.parametrize.register_parametrization(model.first, "weight", Twice())


def subclass(model, _):
    class Sub(Net):
        def helper(self, x):
            return super().helper(x) + 1

    model.__class__ = Sub


def patch_tensor(_, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "relu", lambda self: self)
    monkeypatch.setattr(Net, "helper", lambda self, x: x.relu())


CHANGES = {
    "a weight's bit": one_bit,
    "a buffer": lambda model, _: model.mean.add_(1),
    "a tied part": tie,
    "an untied part of equal weights": untie,
    "a weight's strides": transpose,
    "a dtype": lambda model, _: model.double(),
    "an attribute": set_attribute("slope", 0.2),
    "an attribute's type": set_attribute("slope", 1),
    "a list": lambda model, _: model.sizes.append(3),
    "a function in an attribute": set_attribute("activation", F.gelu),
    "a function of the user's in an attribute": set_attribute("activation", doubled),
    "a lambda": set_attribute("activation", lambda x: x + 1),
    "a partial": set_attribute("activation", functools.partial(F.leaky_relu, negative_slope=0.5)),
    "another partial": set_attribute("activation", functools.partial(F.leaky_relu, negative_slope=0.25)),
    "a closure": set_attribute("activation", times(3)),
    "another closure": set_attribute("activation", times(4)),
    "a part of another class": set_attribute("first", nn.Sequential(nn.Linear(8, 8))),
    "a part replaced": set_attribute("activation", nn.ReLU()),
    "a part with another option": set_attribute("activation", nn.LeakyReLU(0.3)),
    "a part in a plain list": set_attribute("sizes", [nn.ReLU()]),
    "train mode of a part": lambda model, _: model.first.train(),
    "a patched method of the class": patch_class("helper", lambda self, x: x),
    "a patched forward of the class": patch_class("forward", another_forward),
    "a class constant": patch_class("exponent", 3),
    "a patched property": patch_class("scaled", property(lambda self: 4.0)),
    "a __getattr__": patch_class("__getattr__", lambda self, name: nn.Module.__getattr__(self, name) * 1),
    "a patched forward of the instance": patch_instance,
    "a global constant": patch_global("SCALE", 3.0),
    "a global table": patch_global("TABLE", {"a": 2.0}),
    "a global function": patch_global("doubled", lambda x: x * 3),
    "a subclass": subclass,
    "a wrapped method": wrap,
    "a hook": hook,
    "a pre-hook": pre_hook,
    "a parametrization": parametrize,
    "a live global": patch_global("SCALE", LIVE),
    "a live attribute": set_attribute("slope", LIVE),
    "a method of torch's module patched": lambda _, m: m.setattr(nn.Linear, "forward", lambda self, x: x),
    "a method of torch's module replaced by another's": lambda _, m: m.setattr(
        nn.Linear, "forward", nn.Identity.forward
    ),
    "a function that torch's module calls patched": lambda _, m: m.setattr(F, "linear", lambda *a: a[0]),
    "a tensor's method patched": patch_tensor,
    "a decorator": patch_class("helper", torch.no_grad()(lambda self, x: x)),
    "code that looks names up": patch_class("helper", lambda self, x: getattr(self, "sl" + "ope") * x),
    "code that imports": patch_class("helper", lambda self, x: __import__("math").pi * x),
}
DIGESTS: dict[str, str] = {}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_gives_another_digest_or_is_uncertain(change, restored):
    before, model = fingerprint(net()), net()
    CHANGES[change](model, restored)
    try:
        found = fingerprint(model)
    except UncertainError as error:
        assert str(error)
        return
    assert found != before
    assert DIGESTS.setdefault(found, change) == change, "two changes have the same digest"


def test_a_global_hook_is_uncertain():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(UncertainError, match="hooks on all modules"):
            fingerprint(net())
    finally:
        handle.remove()


def test_a_dispatch_mode_is_uncertain():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        pass

    model = net()
    with Mode(), pytest.raises(UncertainError, match="mode"):
        fingerprint(model)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: torch.jit.script(nn.ReLU()), "script|made while"),
        (lambda: torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())), "made while|live|patched"),
        (lambda: nn.utils.weight_norm(nn.Linear(2, 2)), "hooks"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_modules_whose_code_is_data_are_uncertain(build, why):
    with pytest.raises(UncertainError, match=why):
        fingerprint(build())


def test_what_depends_on_the_world_is_uncertain():
    import os

    class Reads(nn.Module):
        def forward(self, x):
            return x * float(os.environ.get("FACTOR", "1"))

    with pytest.raises(UncertainError, match="os"):
        fingerprint(Reads())


def test_a_function_of_the_standard_library_that_always_answers_alike_is_certain():
    class Root(nn.Module):
        def forward(self, x):
            return x * math.sqrt(2.0)

    assert fingerprint(Root())
    assert json.dumps(fingerprint(Root()))
