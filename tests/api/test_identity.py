"""A live module's digest: equal for equal modules everywhere, another after a change; or the reason why there is none."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import subprocess
import sys
import textwrap
import threading
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from app.identity import UncertainError, digest_of


@dataclasses.dataclass
class Config:
    width: int
    names: list[str]


class Net(nn.Module):
    """A module with what people have in theirs."""

    def __init__(self):
        super().__init__()
        self.config = Config(4, ["a"])
        self.options = {"scale": 1.5, "labels": ("x", "y"), "kinds": {"b", "a"}, "dtype": torch.float32}
        self.table, self.ids = np.arange(3.0), torch.arange(3)
        self.act, self.norm = functools.partial(torch.nn.functional.gelu, approximate="tanh"), math_sqrt
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.register_buffer("offset", torch.ones(4))

    def forward(self, x):
        return self.act(self.layers[1](self.layers[0](x))) * self.options["scale"] + self.offset


def math_sqrt(x):
    return x**0.5


def net():
    torch.manual_seed(0)
    return Net().eval()


def test_torch_compile_elsewhere_in_the_process_changes_nothing():
    module = nn.Sequential(nn.Linear(4, 4)).eval()
    before = digest_of(module)
    torch.compile(nn.Linear(4, 4), backend="eager")(torch.ones(1, 4))
    assert digest_of(module) == before


def test_equal_modules_have_equal_digests_and_a_call_changes_nothing():
    module = net()
    before = digest_of(module)
    module(torch.ones(2, 4))
    assert digest_of(module) == before == digest_of(net()) == digest_of(copy.deepcopy(module))


@pytest.mark.slow
def test_the_digest_is_the_same_in_another_process_and_under_another_hash_seed(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            import torch
            from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel
            from app.identity import digest_of

            class Mine(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.kinds, self.layer = {"b", "a", "c"}, torch.nn.Linear(3, 3)
                def forward(self, x):
                    return self.layer(x)

            small = {"vocab_size": 100, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 8}
            torch.manual_seed(0)
            bert, gpt2 = BertModel(BertConfig(**small)), GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=100))
            print([digest_of(module.eval()) for module in (Mine(), bert, gpt2)])
            """
        )
    )
    said = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", tmp_path / "mine.py"],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        said.add(done.stdout)
    assert len(said) == 1


def tie(module):
    module.layers[1].weight = module.layers[0].weight
    return module


def untie(module):
    module.layers[1].weight = nn.Parameter(module.layers[0].weight.detach().clone())
    return module


CHANGES = {
    "a bit of a weight": lambda m: m.layers[0].weight.data.view(torch.int32)[0, 0].add_(1),
    "a buffer": lambda m: m.offset.add_(1),
    "a plain tensor": lambda m: m.ids.add_(1),
    "an array": lambda m: m.table.__setitem__(0, 7.0),
    "a field of a config": lambda m: setattr(m.config, "width", 5),
    "an item deep in a list": lambda m: m.config.names.append("b"),
    "a number in a dict": lambda m: m.options.update(scale=2.0),
    "an int that is a float": lambda m: setattr(m.config, "width", 4.0),
    "what is in a set": lambda m: m.options["kinds"].add("c"),
    "an argument of a partial": lambda m: setattr(
        m, "act", functools.partial(nn.functional.gelu, approximate="none")
    ),
    "a function": lambda m: setattr(m, "norm", abs),
    "a new attribute": lambda m: setattr(m, "extra", 1),
    "one more layer": lambda m: m.layers.append(nn.Linear(4, 4)),
    "another kind of layer": lambda m: m.layers.__setitem__(0, nn.LeakyReLU()),
    "train mode of one layer": lambda m: m.layers[0].train(),
    "another dtype": lambda m: m.double(),
    "strides": lambda m: setattr(m.layers[0].weight, "data", m.layers[0].weight.data.t().contiguous().t()),
    "requires grad": lambda m: m.layers[0].requires_grad_(False),
    "a forward of its own": lambda m: setattr(m, "forward", types.MethodType(lambda self, x: x, m)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_gives_another_digest(change):
    module = net()
    before = digest_of(module)
    CHANGES[change](module)
    assert digest_of(module) != before


def test_tied_weights_are_not_equal_weights():
    assert digest_of(tie(net())) != digest_of(untie(net()))


MODEL = """
    from torch import nn
    from parts import factor
    class Model(nn.Module):
        def forward(self, x):
            return x * factor()
"""


@pytest.mark.parametrize("name", ["live_model", "parts"])
def test_an_edit_of_a_source_or_of_what_it_imports_gives_another_digest(module_file, name):
    import importlib

    texts = {"live_model": MODEL, "parts": "    def factor():\n        return 2.0\n"}
    files = {each: module_file(each, text) for each, text in texts.items()}
    module = importlib.import_module("live_model").Model().eval()
    before = digest_of(module)
    assert digest_of(module) == before
    files[name].write_text(files[name].read_text() + "\n# a comment\n")
    assert digest_of(module) != before


def notebook(text):
    """A class as a notebook defines it: it stands in no file."""
    space = types.ModuleType("cell")
    space.__dict__["nn"] = nn
    sys.modules["cell"] = space
    exec(compile(textwrap.dedent(text), "<cell>", "exec"), space.__dict__)  # noqa: S102
    return space.Model().eval()


CELL = """
    SCALE = 2.0
    def helper(x):
        return x + 1
    class Model(nn.Module):
        def forward(self, x):
            return helper(x) * SCALE
"""


@pytest.mark.parametrize("edit", [("* SCALE", "- SCALE"), ("SCALE = 2.0", "SCALE = 3.0"), ("x + 1", "x + 2")])
def test_what_a_notebook_defines_counts_by_its_code_and_what_that_names(monkeypatch, edit):
    monkeypatch.setitem(sys.modules, "cell", None)
    assert digest_of(notebook(CELL)) == digest_of(notebook(CELL))
    assert digest_of(notebook(CELL)) != digest_of(notebook(CELL.replace(*edit)))


def test_a_patch_of_a_class_of_torchs_is_seen(monkeypatch):
    module = nn.Sequential(nn.ReLU()).eval()
    before = digest_of(module)
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x * 2)
    assert digest_of(module) != before


class Doubles(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_what_may_change_every_call_is_uncertain():
    for surroundings in (Doubles(), torch.device("meta"), torch.autocast("cpu")):
        with surroundings, pytest.raises(UncertainError, match="active"):
            digest_of(nn.ReLU())
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(UncertainError, match="hooks on all modules"):
            digest_of(nn.ReLU())
    finally:
        handle.remove()


def hooked():
    module = nn.Sequential(nn.ReLU())
    module[0].register_forward_hook(lambda *_: None)
    return module


def holding(value):
    module = nn.ReLU()
    module.held = value
    return module


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (hooked, r"Sequential\.0 has hooks"),
        (lambda: holding(threading.Lock()), r"ReLU\.held is a lock"),
        (lambda: holding({"deep": [object()]}), "is a object, which is no plain data"),
        (lambda: holding(torch.Generator()), "Generator"),
        (lambda: holding(np.array([object()])), "array of objects"),
        (lambda: holding(torch.ones(2).to_sparse()), "sparse"),
        (lambda: torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())), "code is data"),
        (lambda: nn.utils.weight_norm(nn.Linear(2, 2)), "has hooks"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_data_is_uncertain_and_named(build, why):
    with pytest.raises(UncertainError, match=why):
        digest_of(build().eval())
