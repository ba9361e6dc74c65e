"""Saved programs: what torch.export.save wrote loads, and nothing that a stranger planted in the archive runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import warnings
import zipfile

import pytest
import torch
from torch import nn
from torch.export import Dim

from app.config import DimConfig, InputConfig, ModelConfig, Settings
from app.errors import BuildError, ConfigError
from app.workloads import build
from app.workloads.exported import load_program

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")


class Small(nn.Module):
    """Two inputs, one by keyword, a weight and a constant."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.offset = torch.ones(2)

    def forward(self, x, *, tokens):
        return self.linear(x) + self.offset + tokens.sum(1, keepdim=True)


def saved(path, module, args, kwargs=None, **options):
    program = torch.export.export(module.eval(), args, kwargs, **options)
    torch.export.save(program, path, extra_files={"note.txt": "not JSON"})
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    batch = Dim("batch", min=1, max=64)
    return saved(
        tmp_path_factory.mktemp("program") / "small.pt2",
        Small(),
        (torch.randn(3, 4),),
        {"tokens": torch.ones(3, 5, dtype=torch.int64)},
        dynamic_shapes={"x": {0: batch}, "tokens": {0: batch}},
    )


@pytest.fixture(scope="module")
def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def outputs(program):
    with torch.inference_mode():
        return program.module(check_guards=False)(torch.ones(2, 4), tokens=torch.ones(2, 5, dtype=torch.int64))


@pytest.mark.parametrize("trusted", [False, True])
def test_a_saved_program_loads_and_computes_the_same(path, trusted):
    assert torch.equal(outputs(load_program(path, trusted=trusted)), outputs(torch.export.load(path)))


def test_sizes_that_are_expressions_load_too(tmp_path):
    class Halves(nn.Module):
        def forward(self, x):
            return torch.cat([x, x[1:]])[:, ::2], x.flatten()

    dims = {"x": {0: Dim("batch", min=4, max=64), 1: Dim("side", min=3, max=9)}}
    path = saved(tmp_path / "halves.pt2", Halves(), (torch.randn(6, 4),), dynamic_shapes=dims)
    module = load_program(path, trusted=False).module(check_guards=False)
    assert [tuple(out.shape) for out in module(torch.randn(9, 3))] == [(17, 2), (27,)]


# Workloads


def settings_for(path, inputs=(), **model):
    return Settings(model=ModelConfig(program=str(path), inputs=list(inputs), **model))


TOKENS = InputConfig(name="tokens", low=0, high=9)


def test_inputs_come_from_the_program_with_the_ranges_that_the_config_adds(path):
    workload = build(settings_for(path, [TOKENS]), "cpu")
    assert [(spec.name, spec.shape, spec.dtype, spec.keyword) for spec in workload.inputs] == [
        ("x", ("batch", 4), "float32", False),
        ("tokens", ("batch", 5), "int64", True),
    ]
    assert workload.dims == {"batch": DimConfig(1, 64, 4)}
    args, kwargs = workload.call(7)
    assert (tuple(args[0].shape), tuple(kwargs["tokens"].shape)) == ((7, 4), (7, 5))
    assert int(kwargs["tokens"].max()) < 9
    assert workload.program is not None
    assert tuple(workload.module(*args, **kwargs).shape) == (7, 2)


def test_integer_inputs_without_a_range_are_refused_by_name(path):
    with pytest.raises(ConfigError, match=r"model\.inputs\[tokens\] holds integers"):
        build(settings_for(path), "cpu")


def test_an_input_that_the_program_lacks_is_refused_with_those_it_has(path):
    with pytest.raises(ConfigError, match="'mask' is not one of: x, tokens"):
        build(settings_for(path, [InputConfig(name="mask")]), "cpu")


# Damage


def packed(path, items):
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names
        for name, data in items:
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x80\x02.", b"PK\x05\x06" + b"\0" * 18, b"\x7fELF" + b"\0" * 99])
def test_a_file_of_something_else_is_refused_with_its_path(tmp_path, data):
    path = tmp_path / "model.pt2"
    path.write_bytes(data)
    with pytest.raises(BuildError) as caught:
        load_program(path, trusted=False)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    for trusted in (False, True):
        with pytest.raises(BuildError, match=r"none\.pt2"):
            load_program(tmp_path / "none.pt2", trusted=trusted)


def test_a_zip_of_something_else_is_refused(tmp_path):
    with pytest.raises(BuildError, match="not an archive of a recent torch"):
        load_program(packed(tmp_path / "model.pt2", [("a/b.txt", b"text")]), trusted=False)


def test_flipped_bytes_are_loaded_or_refused_and_never_anything_else(tmp_path, path, members, caplog):
    damaged, dice, refused = tmp_path / "model.pt2", random.Random(0), 0
    names = sorted(members)
    for _ in range(60):
        name = dice.choice(names)
        data = bytearray(members[name])
        for _ in range(3):
            data[dice.randrange(len(data))] = dice.randrange(256)
        packed(damaged, [(n, bytes(data) if n == name else d) for n, d in members.items()])
        try:
            load_program(damaged, trusted=False)
        except BuildError:
            refused += 1
    assert refused > 10


# Planted code


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "ran"


class Bomb:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def torch_bomb(trace):
    buffer = io.BytesIO()
    torch.save({"x": Bomb(trace)}, buffer)
    return buffer.getvalue()


def refused(tmp_path, trace, items):
    """That loading is refused, and that nothing ran."""
    path = packed(tmp_path / "evil.pt2", items)
    with pytest.raises(BuildError) as caught:
        load_program(path, trusted=False)
    assert not trace.exists()
    assert str(path) in caught.value.message
    return caught.value.message


MEMBERS = [
    "data/weights/weight_0",
    "data/weights/weight_1",
    "data/weights/model_weights_config.json",
    "data/constants/tensor_0",
    "data/constants/model_constants_config.json",
    "models/model.json",
    "data/sample_inputs/model.pt",
    "archive_format",
    "archive_version",
    "byteorder",
    ".data/version",
    ".data/serialization_id",
    "extra/note.txt",
]


def test_the_list_of_members_is_whole(members):
    assert sorted(members) == sorted(f"small/{name}" for name in MEMBERS)


@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("name", MEMBERS)
def test_a_pickle_in_the_place_of_any_member_does_not_run(tmp_path, trace, members, name, how):
    bomb = torch_bomb(trace) if how == "torch" else pickle.dumps(Bomb(trace), protocol=2)
    items = [(n, bomb if n == f"small/{name}" else data) for n, data in members.items()]
    path = packed(tmp_path / "evil.pt2", items)
    try:
        load_program(path, trusted=False)
    except BuildError as error:
        assert str(path) in error.message
    else:
        # texts, and bytes that torch takes for a tensor's whatever they are, where there are enough of them
        texts = {"byteorder", ".data/version", ".data/serialization_id", "archive_version", "extra/note.txt"}
        assert name in texts | {"data/weights/weight_0", "data/weights/weight_1", "data/constants/tensor_0"}
    assert not trace.exists()


@pytest.mark.parametrize(
    "folder", ["", "data/", "data/weights/", "data/constants/", "data/sample_inputs/", "models/"]
)
@pytest.mark.parametrize("name", ["evil", "evil.pt", "evil.json", "opaque_obj_0", "custom_obj_0", "Evil.JSON"])
def test_a_pickle_planted_beside_the_others_is_refused(tmp_path, trace, members, folder, name):
    message = refused(tmp_path, trace, [*members.items(), (f"small/{folder}{name}", torch_bomb(trace))])
    assert f"small/{folder}{name}" in message
    assert "model.trusted=true" in message


def test_the_bomb_goes_off_where_the_file_is_trusted(tmp_path, trace, members):
    items = [(n, torch_bomb(trace) if n.endswith("model.pt") else data) for n, data in members.items()]
    refused(tmp_path, trace, items)
    with pytest.raises(BuildError):  # what the pickle leaves is no program's input
        load_program(tmp_path / "evil.pt2", trusted=True)
    assert trace.exists()


def rewritten(members, kind, bomb_name, bomb, **entry):
    """The members with one tensor's entry changed, its bytes gone, and the bomb where the entry says."""
    config = f"small/data/{kind}/model_{kind}_config.json"
    content = json.loads(members[config])
    (name, known), *_ = content["config"].items()
    old = f"small/data/{kind}/{known['path_name']}"
    content["config"][name] = {**known, **entry}
    changed = {**members, config: json.dumps(content).encode()}
    del changed[old]
    return [*changed.items(), (bomb_name, bomb)]


@pytest.mark.parametrize(
    ("kind", "name", "entry"),
    [
        ("weights", "data/weights/evil.json", {"path_name": "evil.json", "use_pickle": True}),
        ("weights", "/evil", {"path_name": "/evil", "use_pickle": True}),
        ("weights", "data/weights/../evil", {"path_name": "../evil", "use_pickle": True}),
        ("weights", "data/weights/model.pt", {"path_name": "model.pt", "use_pickle": False}),
        ("weights", "data/weights/weight_9", {"path_name": "weight_9", "use_pickle": True}),
        ("weights", "data/weights/weight_9", {"path_name": "WEIGHT_9", "use_pickle": True}),
        ("constants", "data/constants/opaque_obj_0", {"path_name": "opaque_obj_0", "use_pickle": False}),
        ("constants", "data/constants/custom_obj_0", {"path_name": "custom_obj_0", "use_pickle": False}),
        ("constants", "data/constants/tensor_9", {"path_name": "tensor_9", "use_pickle": True}),
    ],
)
def test_an_entry_that_has_torch_unpickle_a_disguised_member_is_refused(tmp_path, trace, members, kind, name, entry):
    for bomb in (torch_bomb(trace), pickle.dumps(Bomb(trace), protocol=2)):
        refused(tmp_path, trace, rewritten(members, kind, f"small/{name}", bomb, **entry))


def test_one_member_that_is_both_raw_and_pickled_is_refused(tmp_path, trace, members):
    config = "small/data/weights/model_weights_config.json"
    content = json.loads(members[config])
    entry = next(iter(content["config"].values()))
    content["config"]["again"] = {**entry, "path_name": entry["path_name"].upper(), "use_pickle": True}
    bomb = torch_bomb(trace)
    changed = {**members, config: json.dumps(content).encode()}
    changed[f"small/data/weights/{entry['path_name']}"] = bomb + b"\0" * (-len(bomb) % 4)
    refused(tmp_path, trace, changed.items())


@pytest.mark.parametrize("name", ["small/data/sample_inputs/model.pt", "small/data/SAMPLE_INPUTS/model.pt"])
@pytest.mark.parametrize("first", [True, False])
def test_two_members_of_one_name_are_refused_because_readers_differ_in_which_they_take(
    tmp_path, trace, members, name, first
):
    bomb = [(name, torch_bomb(trace))]
    refused(tmp_path, trace, [*bomb, *members.items()] if first else [*members.items(), *bomb])


def test_an_archive_of_the_older_format_is_refused_whatever_it_calls_itself(tmp_path, trace, members):
    bomb = torch_bomb(trace)
    items = [
        ("version", b"8.8"),
        ("serialized_exported_program.json", members["small/models/model.json"]),
        *((f"serialized_{name}.pt", bomb) for name in ("state_dict", "constants", "example_inputs")),
    ]
    for decoy in ([], [("x_archive_format", b"pt2")], [("archive_format", b"pt2")], [("x/archive_format", b"pt2")]):
        refused(tmp_path, trace, [*items, *decoy])
        refused(tmp_path, trace, [*decoy, *items])


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('touch {trace}')",
        "Symbol('s0') if __import__('os').system('touch {trace}') else 1",
        "[c for c in [open('{trace}', 'w')]][0]",
        "(lambda: open('{trace}', 'w'))()",
        "Max(1, open('{trace}', 'w'))",
        'sympify(\'__import__("os").system("touch {trace}")\')',
        "Symbol('x').__class__.__init__.__globals__['os'].system('touch {trace}')",
        'eval(\'open("{trace}", "w")\')',
        "not ( python",
    ],
)
def test_a_size_that_is_no_plain_expression_is_refused_and_not_evaluated(tmp_path, trace, members, expression):
    program = json.loads(members["small/models/model.json"])
    planted = 0

    def plant(value):
        nonlocal planted
        if isinstance(value, dict):
            if "expr_str" in value:
                value["expr_str"], planted = expression.format(trace=trace), planted + 1
            value = list(value.values())
        for item in value if isinstance(value, list) else ():
            plant(item)

    plant(program)
    assert planted
    changed = {**members, "small/models/model.json": json.dumps(program).encode()}
    message = refused(tmp_path, trace, changed.items())
    assert "small/models/model.json" in message
