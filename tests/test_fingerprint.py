"""A live module's fingerprint: another module never has it, the same one always does, and doubt is said."""

from __future__ import annotations

import abc
import copy
import dataclasses
import enum
import functools
import inspect
import json
import math
import operator
import pickle
import subprocess
import sys
import types
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F  # noqa: N812 - as everybody writes it
from torch.utils._python_dispatch import TorchDispatchMode

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
        "    def __init__(self):\n        super().__init__(); self.l = nn.Linear(3, 3); self.s = {'b': 2, 'a': 3}; self.d = {'x': 1}\n"
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


def test_a_live_attribute_is_doubt_even_where_nothing_seems_to_read_it():
    other = net()
    other.logger = object()
    with pytest.raises(UncertainError, match=r"Net\.logger is a live object"):
        fingerprint(other)


class Base(nn.Module):
    def forward(self, x):
        return x.relu() + len((1, 2))


class Derived(Base):
    def forward(self, x):
        return super().forward(x) * getattr(self, "factor", 2.0)


def test_super_and_getattr_are_no_reason_for_doubt():
    assert fingerprint(Derived().eval()) == fingerprint(Derived().eval())


def test_exporting_and_pickling_a_module_change_nothing():
    model = net()
    model.pair = (1, 2)
    before = fingerprint(model)
    torch.export.export(model, (torch.randn(2, 8),), strict=False)
    assert fingerprint(model) == before
    assert fingerprint(copy.deepcopy(model)) == fingerprint(pickle.loads(pickle.dumps(model))) == before  # noqa: S301


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


# Pairs that compute different things


def named(name, **held):
    """A module class of this name: two of one name are two classes."""
    return type(nn.Module)(name, (nn.Module,), {"__module__": __name__, **held})


def scaled(factor, decorate=lambda f: f):
    """A module whose forward multiplies, by code that is the same text but for the factor."""
    space = {"nn": nn, "decorate": decorate, "__name__": __name__}
    exec(  # noqa: S102 - two classes that differ in one constant
        "class Net(nn.Module):\n    @decorate\n    def forward(self, x):\n        return x * " + str(factor), space
    )
    sys.modules[__name__].__dict__["Net_"] = space["Net"]
    return space["Net"]()


def tree(flat):
    class Parts(nn.Module):
        def forward(self, x):
            for part in self.children():
                x = part(x + 1)
            return x * 2

    if flat:
        return nn.Sequential(OrderedDict(a=Parts(), b=Parts()))
    outer = Parts()
    outer.b = Parts()
    return nn.Sequential(OrderedDict(a=outer))


def order(first):
    one, two = (named("Act", forward=lambda self, x: x + 1), named("Act", forward=lambda self, x: x + 2))
    return nn.Sequential(one(), two(), (one if first else two)())


def subclass_of(base, *args, **kwargs):
    return type(base)("Mine", (base,), {"__module__": __name__})(*args, **kwargs)


def reads(expression, **attributes):
    """A module whose forward evaluates an expression over itself."""
    space = {"nn": nn, "torch": torch, "g": getattr, "operator": operator, "__name__": __name__}
    exec(f"class Net(nn.Module):\n    def forward(self, x):\n        return x * ({expression})", space)  # noqa: S102
    model = space["Net"]()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def with_function_attribute(scale):
    def helper(x):
        return x * helper.scale

    helper.scale = scale
    model = named("Net", forward=lambda self, x: self.helper(x))()
    model.helper = helper
    return model


def uses(expression, text):
    """A module whose forward evaluates an expression over what a text defines."""
    space = {"nn": nn, "torch": torch, "__name__": __name__}
    exec(f"{text}\nclass Net(nn.Module):\n    def forward(self, x):\n        return x * ({expression})", space)  # noqa: S102
    return space["Net"]()


def making(factor):
    text = f"class Base(nn.Module):\n    def __init__(self):\n        super().__init__(); self.k = {factor}"
    model = uses("type(self)().k", text + "\nclass Part(Base):\n    pass")
    model.__class__.__bases__ = (model.forward.__globals__["Part"],)
    model.k = 0
    return model


def of_module(factor):
    module = types.ModuleType("constants")
    module.K = factor
    model = uses("constants.K", "")
    model.forward.__globals__["constants"] = module
    return model


def counting(shared):
    """A module of two functions that share a variable, or have one each that looks the same."""
    text = "def make():\n    n = 0\n    def count():\n        nonlocal n\n        n += 1\n    def counted():\n        return n"
    text += f"\n    return count, counted\ncount, counted = make()\nif not {shared}:\n    counted = make()[1]"
    return uses("(count(), counted())[1]", text)


def repr_of(text):
    model = uses("len(str(self.c))", "import dataclasses\n@dataclasses.dataclass\nclass C:\n    k: int = 1")
    model.c = model.forward.__globals__["C"]()
    wrapper = type(model.c).__repr__
    cells = dict(zip(wrapper.__code__.co_freevars, wrapper.__closure__, strict=True))
    space = {}
    exec(f"def __repr__(self): return {text!r}", space)  # noqa: S102
    cells["user_function"].cell_contents = space["__repr__"]
    return model


class Level(enum.Enum):
    ONE = 1


class Alike:
    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return "alike"


def with_enum(factor):
    kind = enum.Enum("Kind", {"ONE": 1, "TWO": factor})
    model = named("Net", forward=lambda self, x: x * type(self.kind)["TWO"].value)()
    model.kind = kind.ONE
    return model


def with_tensor_attribute(scale):
    model = nn.Linear(2, 2)
    torch.manual_seed(0)
    model.weight = nn.Parameter(torch.zeros(2, 2))
    model.weight.scale = scale
    return model


def with_meta(scale):
    meta = type("Meta", (type,), {"scale": scale})
    return meta("Net", (nn.Module,), {"__module__": __name__, "forward": lambda self, x: x * type(self).scale})()


def with_mixin(scale):
    mixin = abc.ABCMeta("Mix", (), {"scale": scale})
    return type("Net", (mixin, nn.Module), {"__module__": __name__, "forward": lambda self, x: x * self.scale})()


PAIRS = {
    "decorated by no_grad": (lambda: scaled(2, torch.no_grad()), lambda: scaled(3, torch.no_grad())),
    "decorated by inference_mode": (
        lambda: scaled(2, torch.inference_mode()),
        lambda: scaled(3, torch.inference_mode()),
    ),
    "decorated by compiler.disable": (
        lambda: scaled(2, torch.compiler.disable),
        lambda: scaled(3, torch.compiler.disable),
    ),
    "a subclass of a layer": (
        lambda: subclass_of(nn.LeakyReLU, 0.1),
        lambda: subclass_of(nn.LeakyReLU, 0.2),
    ),
    "a subclass of an attention": (
        lambda: subclass_of(nn.Softmax, dim=0),
        lambda: subclass_of(nn.Softmax, dim=1),
    ),
    "which of two classes of one name": (lambda: order(True), lambda: order(False)),
    "the shape of the tree": (lambda: tree(True), lambda: tree(False)),
    "getattr by another name": (lambda: reads("g(self, 'k')", k=2), lambda: reads("g(self, 'k')", k=3)),
    "attrgetter": (
        lambda: reads("operator.attrgetter('k')(self)", k=2),
        lambda: reads("operator.attrgetter('k')(self)", k=3),
    ),
    "__getattribute__": (
        lambda: reads("self.__getattribute__('k')", k=2),
        lambda: reads("self.__getattribute__('k')", k=3),
    ),
    "a format": (
        lambda: reads("float('{0.k}'.format(self))", k=2),
        lambda: reads("float('{0.k}'.format(self))", k=3),
    ),
    "a function's attribute": (lambda: with_function_attribute(2), lambda: with_function_attribute(3)),
    "another member of an enum": (lambda: with_enum(2), lambda: with_enum(3)),
    "a tensor's attribute": (lambda: with_tensor_attribute(2), lambda: with_tensor_attribute(3)),
    "a metaclass": (lambda: with_meta(2), lambda: with_meta(3)),
    "a mixin made by ABCMeta": (lambda: with_mixin(2), lambda: with_mixin(3)),
    "minus zero": (lambda: reads("self.k", k=0.0), lambda: reads("self.k", k=-0.0)),
    "true and one": (lambda: reads("self.k", k=1), lambda: reads("self.k", k=True)),
    "an order in a dict": (
        lambda: reads("list(self.k)[0]", k={1: 0, 2: 0}),
        lambda: reads("list(self.k)[0]", k={2: 0, 1: 0}),
    ),
    "bytes beyond a view": (
        lambda: reads("self.w.detach().resize_(3)[2]", w=torch.tensor([1.0, 2.0, 3.0])[:2]),
        lambda: reads("self.w.detach().resize_(3)[2]", w=torch.tensor([1.0, 2.0, 4.0])[:2]),
    ),
    "a slice of what looks alike": (
        lambda: reads("self.k.start.value", k=slice(Alike(2))),
        lambda: reads("self.k.start.value", k=slice(Alike(3))),
    ),
    "bookkeeping that is read": (
        lambda: reads("self._backward_hooks", _backward_hooks=2),
        lambda: reads("self._backward_hooks", _backward_hooks=3),
    ),
    "globals by a string": (
        lambda: reads("getattr(self.forward, '__globals__')['K']", k=1),
        lambda: reads("getattr(self.forward, '__globals__')['K']", k=1),
    ),
    "whether weights are frozen, where code asks": (
        lambda: reads("self.w.requires_grad", w=nn.Parameter(torch.ones(1))),
        lambda: reads("self.w.requires_grad", w=nn.Parameter(torch.ones(1), requires_grad=False)),
    ),
    "a nan that is another": (
        lambda: reads("self.k in self.l", k=math.nan, l=[math.nan]),
        lambda: reads("self.k in self.l", k=math.nan, l=[float("nan")]),
    ),
    "what making another would do": (lambda: making(2), lambda: making(3)),
    "what a class of the user's is made with": (
        lambda: uses("Other().k", "class Other:\n    def __init__(self):\n        self.k = 2"),
        lambda: uses("Other().k", "class Other:\n    def __init__(self):\n        self.k = 3"),
    ),
    "what isinstance is told": (
        lambda: uses("isinstance(x, Other)", "class Other:\n    pass"),
        lambda: uses(
            "isinstance(x, Other)", "import abc\nclass Other(abc.ABC):\n    pass\nOther.register(torch.Tensor)"
        ),
    ),
    "a config object": (lambda: reads("self.c.k", c=Alike(2)), lambda: reads("self.c.k", c=Alike(3))),
    "a constant of another Python module": (lambda: of_module(2), lambda: of_module(3)),
    "a variable that two functions share": (lambda: counting(True), lambda: counting(False)),
    "a repr that was swapped": (lambda: repr_of("2"), lambda: repr_of("33")),
    "an order in a set": (lambda: reads("list(self.k)[0]", k={0, 8}), lambda: reads("list(self.k)[0]", k={8, 0})),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_modules_that_compute_different_things_never_share_a_digest(pair):
    found = []
    for make in PAIRS[pair]:
        try:
            found.append(fingerprint(make().eval()))
        except UncertainError as error:
            found.append(error)
    assert isinstance(found[0], UncertainError) or found[0] != found[1]


@pytest.mark.parametrize(
    "expression",
    [
        "len({n for n in self.names})",
        "len({*self.names})",
        "len(self.table.keys() & self.table.keys())",
        "'a'.__hash__()",
        "torch.get_float32_matmul_precision()",
        "torch.are_deterministic_algorithms_enabled()",
        "torch.is_grad_enabled()",
        "torch.load('x')",
        "operator.attrgetter('w.requires_grad')(self)",
        "g(self.w, 'grad')",
        "self.w.is_leaf",
        "self.w.is_shared()",
        "self.w._version",
        "getattr(self.w, self.names[0] + '_grad')",
        "getattr(self.w, f'requires{self.names[0]}')",
        "float('{0.__globals__[K]}'.format(self.forward))",
        "self.names[0] is self.names[1]",
        "operator.is_(self, self)",
        "__import__('os').getpid()",
        "type(self)()._later",
        "self.w.numpy().base",
    ],
)
def test_code_that_asks_the_process_is_doubt(expression):
    model = reads(expression, names=["a", "b"], table={"a": 1}, w=torch.ones(2))
    with pytest.raises(UncertainError):
        fingerprint(model.eval())


def test_tensors_that_overlap_are_doubt():
    import numpy as np

    held = np.arange(3, dtype=np.float32)
    model = reads("self.a.sum()", a=torch.from_numpy(held[:2]), b=torch.from_numpy(held[1:]))
    with pytest.raises(UncertainError, match="share memory"):
        fingerprint(model.eval())


def test_plain_models_are_certain():
    class Block(nn.Module):
        """A block as people write them."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.config = {"width": width, "names": ["a", "b"]}
            self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
            self.norm = nn.LayerNorm(width)
            self.apply(self._init_weights)

        def _init_weights(self, module):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

        @property
        def width(self) -> int:
            return self.config["width"]

        def forward(self, x: torch.Tensor, mask=None) -> torch.Tensor:
            if x.shape[-1] != self.width:  # no assert, which pytest rewrites
                raise ValueError(f"{x.shape} of {self.__class__.__name__}")
            positions = torch.arange(x.shape[1], device=x.device)
            for layer in self.layers:
                x = x + F.gelu(layer(self.norm(x))) / math.sqrt(self.width)
            if isinstance(mask, torch.Tensor) and x.ndim in (2, 3):
                x = x.masked_fill(mask, 0.0)
            y = F.scaled_dot_product_attention(x, x, x)
            return torch.einsum("bsd,bsd->bs", x, y) + positions

    assert len(fingerprint(Block(8).eval())) == 64


@dataclasses.dataclass
class Head:
    width: int
    names: list[str]


@dataclasses.dataclass
class Config:
    head: Head
    depth: int = 2


@dataclasses.dataclass
class Output:
    y: torch.Tensor
    z: torch.Tensor | None = None


class Configured(nn.Module):
    """A module with what people have in theirs."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        for number in range(config.depth):
            setattr(self, f"layer{number}", nn.Linear(config.head.width, config.head.width))

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> Output:
        import math as own_math

        from torch.nn.functional import gelu

        for number in range(self.config.depth):
            layer = getattr(self, f"layer{number}")
            x = gelu(layer(x)) if isinstance(layer, (nn.Linear, Configured)) else x
        if torch.jit.is_scripting() or not hasattr(self, "scale"):
            return Output(x * own_math.sqrt(2.0))
        return Output(x, x * getattr(self, "scale", 1.0))

    def freeze(self) -> int:
        for weight in self.parameters():
            weight.requires_grad = False
        return sum(weight.numel() for weight in self.parameters() if weight.requires_grad)


def test_config_objects_decorators_local_imports_and_users_classes_are_certain():
    def build():
        torch.manual_seed(0)
        return Configured(Config(Head(4, ["a"]))).eval()

    assert fingerprint(build()) == fingerprint(build())
    other = build()
    other.config.head.names.append("b")
    assert fingerprint(other) != fingerprint(build())


def test_switches_that_results_depend_on_are_seen(restored):
    before = fingerprint(net())
    restored.setattr(torch._tensor_str.PRINT_OPTS, "precision", 2)
    assert fingerprint(net()) != before


def fn(*args, **kwargs):
    return args[0]


def twice(function):
    return torch.no_grad()(torch.no_grad()(functools.wraps(function)(lambda *args, **kwargs: args[0] * 5)))


def executed(function, factor):
    space = {"F": F}
    exec(f"def patch(self, x): return x * {factor}", space)  # noqa: S102
    return functools.wraps(function)(space["patch"])


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (F, "torch", types.ModuleType("torch")),
        (F, "relu", twice(F.relu)),
        (F, "relu", nn.LeakyReLU(0.1)),
        (F, "relu", Alike),
        (F, "relu", types.MethodType(fn, 2)),
        (nn.ReLU, "forward", executed(nn.ReLU.forward, 2)),
        (nn.LeakyReLU, "negative_slope", property(lambda self: 0.9)),
        (F.leaky_relu, "__defaults__", (0.9, False)),
        (F.silu, "__code__", F.mish.__code__),
        (nn._reduction, "get_enum", fn),
        (torch.no_grad, "__enter__", fn),
        (nn.ReLU, "scale", torch.ones(1)),
        (nn.ReLU, "scale", [0] * 60),
        (nn.LeakyReLU, "__init__", fn),
        (F.relu, "scale", torch.ones(1)),
        (F, "math", types.ModuleType("math")),
        (nn.Module, "__init__", functools.wraps(nn.Module.__init__)(lambda self: None)),
        (torch.overrides, "has_torch_function", lambda args: True),
        (torch.backends.mha, "_is_fastpath_enabled", False),
        (math, "sqrt", math.sin),
        (math, "sqrt", lambda x: 7),
        (abc.ABC, "k", 3),
    ],
)
def test_whatever_is_changed_inside_of_torch_is_seen(restored, owner, name, value):
    model = Calls().eval()
    before = fingerprint(model)
    restored.setattr(owner, name, value, raising=False)
    try:
        assert fingerprint(model) != before
    except UncertainError as error:
        assert str(error)


def forged(file):
    """A function that has torch's globals, and says that it is of torch's file, but isn't in it."""
    space = {}
    exec(compile("def silu(input, inplace=False): return input * torch.overrides.K", file, "exec"), space)  # noqa: S102
    return types.FunctionType(space["silu"].__code__, vars(F), "silu", (False,))


@pytest.mark.parametrize("file", [__file__, F.__file__])
@pytest.mark.parametrize(("owner", "name"), [(F, "silu"), (nn.ReLU, "forward"), (nn.Module, "__init__")])
def test_a_function_that_is_not_in_torchs_source_is_uncertain(restored, owner, name, file):
    model = nn.ReLU().eval()
    restored.setattr(owner, name, forged(file))
    with pytest.raises(UncertainError, match=f"{name} is a function that isn't torch's"):
        fingerprint(model)


@pytest.mark.parametrize(("owner", "name"), [("builtins", "max"), ("math", "sqrt"), ("operator", "mul")])
def test_pythons_own_functions_are_told_from_what_stands_in_their_place(restored, owner, name):
    model = reads(
        "max(1, 2)" if owner == "builtins" else f"operator.{name}(1, 2)" if owner == "operator" else "m.sqrt(2)"
    )
    type(model).forward.__globals__["m"] = math
    before = fingerprint(model.eval())
    home = sys.modules[owner]
    restored.setattr(home, name, functools.wraps(getattr(home, name))(lambda *args: 7))
    try:
        assert fingerprint(model) != before
    except UncertainError as error:
        assert str(error)


class Calls(nn.Module, abc.ABC):
    """Uses torch in the ways that the patches below change."""

    def __init__(self):
        super().__init__()
        self.act, self.attention = nn.ReLU(), nn.MultiheadAttention(4, 2)

    def forward(self, x):
        y = self.act(x) * 2 + torch.tanh(x) + F.silu(x) + x.T + x.norm() + nn.ReLU()(x)
        return self.attention(y, y, y)[0]


def wrapped(function):
    return functools.wraps(function)(lambda *args, **kwargs: function(*args, **kwargs) * 2)


class Callable:
    def __call__(self, *args, **kwargs):
        return args[0]


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (nn.ReLU, "forward", wrapped(nn.ReLU.forward)),
        (nn.ReLU, "forward", staticmethod(lambda x: x)),
        (nn.ReLU, "forward", functools.partial(F.relu)),
        (nn.ReLU, "forward", functools.lru_cache(lambda self, x: x)),
        (nn.Module, "__call__", wrapped(nn.Module.__call__)),
        (nn.Module, "_compiled_call_impl", staticmethod(lambda x: x)),
        (torch.Tensor, "norm", wrapped(torch.Tensor.norm)),
        (torch.Tensor, "__mul__", lambda self, other: self),
        (torch.Tensor, "T", property(lambda self: self)),
        (torch.Tensor, "relu", torch.Tensor.sigmoid),
        (F, "silu", F.mish),
        (F, "relu", functools.partial(F.relu)),
        (F, "relu", F.gelu),
        (F, "scaled_dot_product_attention", Callable()),
        (F, "linear", lambda *args: args[0]),
        (torch, "tanh", torch.sigmoid),
        (torch, "norm", wrapped(torch.norm)),
        (torch._C._nn, "silu", torch.sigmoid),
    ],
)
def test_whatever_is_patched_in_torch_is_seen(restored, owner, name, value):
    torch.manual_seed(0)
    model = Calls().eval()
    before = fingerprint(model)
    restored.setattr(owner, name, value)
    try:
        assert fingerprint(model) != before
    except UncertainError as error:
        assert str(error)


@pytest.mark.filterwarnings("ignore")
def test_the_default_dtype_and_autocast_are_seen():
    before = fingerprint(net())
    model = net()
    torch.set_default_dtype(torch.float64)
    try:
        assert fingerprint(model) != before
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu"), pytest.raises(UncertainError, match="autocast"):
        fingerprint(model)


def test_whatever_can_not_be_looked_at_is_doubt():
    model = net()
    model.deep = functools.reduce(lambda inner, _: [inner], range(5000), [])
    with pytest.raises(UncertainError, match="can't be looked at"):
        fingerprint(model)


def test_a_global_hook_is_uncertain():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(UncertainError, match="hooks on all modules"):
            fingerprint(net())
    finally:
        handle.remove()


class Doubles(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {})) * 2


@pytest.mark.parametrize(
    "mode", [Doubles, FakeTensorMode, enable_python_dispatcher, functools.partial(torch.device, "meta")]
)
def test_a_mode_is_uncertain(mode):
    model = net()
    with mode(), pytest.raises(UncertainError, match="mode"):
        fingerprint(model)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("relu", "CPU"),
        ("linear", "CPU"),
        ("tanh", "Autograd"),
        ("dropout", "CompositeImplicitAutograd"),
        ("add.Tensor", "Meta"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_kernel_that_is_not_torchs_is_uncertain(name, key):
    model, before = net(), fingerprint(net())
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl(name, lambda x, *_: x, key)
        with pytest.raises(UncertainError, match=f"aten::{name} has a kernel"):
            fingerprint(model)
    assert fingerprint(model) == before


@pytest.mark.filterwarnings("ignore")
def test_the_library_that_a_kernel_came_by_does_not_hide_it():
    with torch.library._scoped_library("aten", "FRAGMENT") as library:
        torch.library.register_kernel("aten::tanh", "cpu", lambda x: x, lib=library)
        with pytest.raises(UncertainError, match="aten::tanh has a kernel"):
            fingerprint(net())


def test_operators_of_the_users_own_are_no_reason_for_doubt():
    before = fingerprint(net())
    with torch.library._scoped_library("mine", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        assert fingerprint(net()) == before


def test_what_torch_compile_wraps_around_modules_is_no_reason_for_doubt(restored):
    from torch._dynamo import mutation_guard

    # another test may have had torch.compile wrap it
    original = inspect.getclosurevars(nn.Module.__init__).nonlocals.get("init", nn.Module.__init__)
    restored.setattr(nn.Module, "__init__", original)
    torch.manual_seed(0)
    before = fingerprint(Calls().eval())
    restored.setattr(nn.Module, "___needs_generation_tag_patch", True, raising=False)
    mutation_guard.install_generation_tagging_init()
    assert nn.Module.__init__.__module__ == mutation_guard.__name__
    torch.manual_seed(0)
    assert fingerprint(Calls().eval()) == before


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: torch.jit.script(nn.ReLU()), "script|made while"),
        (lambda: torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())), "."),
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
