"""Which integers a program's inputs may hold, as far as the program tells."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.compiler.indices import ranges
from app.errors import ExportError


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
        (lambda m, x: x * 2.0 + 1, None),
        (lambda m, x: torch.where(x > 0, 1.0, 2.0), None),
        (lambda m, x: m.table.sum() * (x == 3), None),
        (lambda m, x: m.large(torch.cat([x, x])) + 1.0, (0, 9)),
        (lambda m, x: m.large(torch.where(x > 3, x, 0)), (0, 9)),
    ],
)
def test_the_table_that_an_input_indexes_is_its_range(forward, expected):
    assert ranges(exported(forward)) == {"x": expected}


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
    assert ranges(program) == {"x": None}


def test_floating_point_inputs_need_no_range():
    assert ranges(exported(lambda m, x: x * 2, torch.ones(2, 3))) == {}


@pytest.mark.parametrize("value", [torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)])
def test_what_becomes_an_index_only_after_a_cast_can_not_be_checked(value):
    with pytest.raises(ExportError, match="'x' is used as an index"):
        ranges(exported(lambda m, x: m.large(x.long()), value))


def test_a_number_that_is_taken_out_of_a_tensor_can_not_be_checked():
    class Takes(nn.Module):
        def forward(self, table, x):
            return table[x[0, 0].item()]

    program = torch.export.export(Takes(), (torch.zeros(5, 2), torch.zeros(2, 3, dtype=torch.int64)), strict=False)
    with pytest.raises(ExportError, match="'x' is used as an index"):
        ranges(program)


def test_a_declared_input_is_not_looked_at():
    assert ranges(exported(lambda m, x: m.large(x + 1)), frozenset(["x"])) == {}


def batched(forward):
    example = torch.zeros(3, 4, dtype=torch.int64)
    dims = ({0: torch.export.Dim("batch", min=1, max=64)},)
    return torch.export.export(Looked(forward).eval(), (example,), dynamic_shapes=dims, strict=False)


def test_arithmetic_of_sizes_is_no_index_and_positions_beyond_a_table_are():
    assert ranges(batched(lambda m, x: m.large(x).view(x.shape[0] * 4, 2))) == {"x": (0, 9)}
    with pytest.raises(ExportError, match="is used as an index"):
        ranges(batched(lambda m, x: m.small(torch.arange(x.shape[0] * 2)).sum() + m.large(x)))
