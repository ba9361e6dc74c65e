"""Which integers a program's inputs may hold, as far as the program tells."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.compiler.export import export
from app.compiler.indices import ranges, try_largest
from app.config import DimConfig
from app.errors import ExportError, TrapError
from app.workloads import Workload
from app.workloads.inputs import TensorInput


class Looked(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.small, self.large = nn.Embedding(7, 2), nn.Embedding(9, 2)
        self.table, self._forward = nn.Parameter(torch.zeros(5, 2)), forward

    def forward(self, x):
        return self._forward(self, x)


def under_no_grad(model, x):
    with torch.no_grad():
        return model.large(x) * 2


def under_autocast(model, x):
    with torch.autocast("cpu", enabled=False):
        return model.large(x)


def branching(model, x):
    return torch.cond(x.sum() > 0, model.large, lambda i: model.large(i) * 2, (x,))


def exported(forward, value=None):
    value = torch.zeros(2, 3, dtype=torch.int64) if value is None else value
    return torch.export.export(Looked(forward).eval(), (value,), strict=False)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: m.large(x), (0, 9)),
        (lambda m, x: m.large(x) + m.small(x), (0, 7)),
        (lambda m, x: m.large(x.reshape(-1)[1:].unsqueeze(0)), (0, 9)),
        (lambda m, x: m.large(x.int()), (0, 9)),
        (lambda m, x: m.large(torch.cat([x, x])) + 1.0, (0, 9)),
        (lambda m, x: m.large(torch.where(x > 3, x, 0)), (0, 9)),
    ],
)
def test_the_table_that_an_input_indexes_is_its_range(forward, expected):
    assert ranges(exported(forward)) == {"x": expected}


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x * 2.0 + 1,
        lambda m, x: torch.where(x > 0, 1.0, 2.0),
        lambda m, x: m.table.sum() * (x == 3),
        lambda m, x: m.small((x > 3).long()),
        lambda m, x: m.large(torch.arange(x.shape[1])) + x[..., None],
        lambda m, x: m.large(x.argmax(-1)),
        lambda m, x: m.table[x.float().topk(2, -1).indices],
        lambda m, x: x.float().gather(1, x.sort(-1)[1]),
    ],
)
def test_sizes_places_and_comparisons_put_no_limit_on_values(forward):
    assert ranges(exported(forward)) == {}
    assert ranges(exported(forward, torch.ones(2, 3))) == {}


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.large(x + 1),
        lambda m, x: m.large(x.cumsum(-1)),
        lambda m, x: m.large((x * 1.0).long()),
        lambda m, x: m.table[x],
        lambda m, x: m.table.index_select(0, x[0]),
        lambda m, x: m.table.gather(0, x[:, :2]),
        lambda m, x: m.large(x.to(torch.int8).long()),
        lambda m, x: m.table.put(x, torch.ones_like(x).float()),
        lambda m, x: m.large(x.topk(2, -1).values),
        lambda m, x: nn.functional.one_hot(x, 9),
        lambda m, x: nn.functional.max_unpool1d(m.table.T[None, :, :3], x[:, None].expand(2, 2, 3)[:1], 2),
        under_no_grad,
        under_autocast,
        branching,
    ],
)
def test_an_index_whose_range_can_not_be_seen_asks_for_it(forward):
    with pytest.raises(ExportError, match=r"'x' is used as an index.*give ranges="):
        ranges(exported(forward))


def test_a_mask_is_no_index():
    program = exported(lambda m, x: x.float().masked_fill(x > 0, 0.0), torch.ones(2, 3, dtype=torch.int64))
    assert ranges(program) == {}


def test_what_becomes_an_index_only_after_a_cast_can_not_be_checked():
    with pytest.raises(ExportError, match=r"'x' is used as an index.*or pass it as integers"):
        ranges(exported(lambda m, x: m.large(x.long()), torch.ones(2, 3)))


def test_a_bool_is_none_or_one_whatever_it_is():
    assert ranges(exported(lambda m, x: m.large(x.long()), torch.ones(2, 3, dtype=torch.bool))) == {}


def test_a_number_that_is_taken_out_of_a_tensor_can_not_be_checked():
    class Takes(nn.Module):
        def forward(self, table, x):
            return table[x[0, 0].item()]

    program = torch.export.export(Takes(), (torch.zeros(5, 2), torch.zeros(2, 3, dtype=torch.int64)), strict=False)
    with pytest.raises(ExportError, match="'x' is used as an index"):
        ranges(program)


def test_a_declared_input_is_not_looked_at():
    assert ranges(exported(lambda m, x: m.large(x + 1)), frozenset(["x"])) == {}


@pytest.mark.parametrize(("largest", "forward"), [(9, "position"), (10, "position"), (10, "none"), (10, "gate")])
def test_a_table_that_ends_before_a_dimension_does_is_found(largest, forward):
    asked = []

    def position(model, x):
        asked.append(x.shape[1])
        return x[..., None] + model.large(torch.arange(x.shape[1]))

    def gate(model, x):
        with torch.no_grad():
            return position(model, x)

    model = Looked({"position": position, "gate": gate, "none": lambda m, x: x * 2}[forward]).eval()
    dims = {"batch": DimConfig(max=9), "seq": DimConfig(max=largest, example=4)}
    workload = Workload(model, (TensorInput("x", ("batch", "seq"), "float32"),), dims, "cpu")
    program = export(workload, model).program
    del asked[:]
    if largest == 10 and forward != "none":
        with pytest.raises(TrapError, match=r"fails at seq=10, .*index out of range.*lower model\.dims\.seq\.max"):
            try_largest(program, workload)
    else:
        try_largest(program, workload)
    assert asked == ([largest] if forward != "none" else [])


@pytest.mark.parametrize(("largest", "rows"), [(4, 2), (5, 2), (9, 0)])
def test_a_table_that_ends_before_the_batch_does_is_found(largest, rows):
    asked = []

    def forward(model, x):
        asked.append(x.shape[0])
        places = torch.arange(x.shape[0] * rows) if rows else torch.arange(x.shape[1])
        return x.sum() + model.large(places).sum() + x.view(x.shape[0] * 4)

    model = Looked(forward).eval()
    dims = {"batch": DimConfig(max=largest, example=2)}
    workload = Workload(model, (TensorInput("x", ("batch", 4), "float32"),), dims, "cpu")
    program = export(workload, model).program
    del asked[:]
    if largest == 5:
        with pytest.raises(TrapError, match=r"fails at batch=5, .*lower model\.dims\.batch\.max"):
            try_largest(program, workload)
    else:
        try_largest(program, workload)
    assert asked == ([largest] if rows else [])
