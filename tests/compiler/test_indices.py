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
