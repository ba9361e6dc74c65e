"""Running a batch plan: rows are cut out, padded, run, cut back and put together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .plans import Plan, Step

Axes = Sequence[int | None]
Run = Callable[[list[torch.Tensor], int | None], list[torch.Tensor]]


def run_plan(plan: Plan, tensors: list[torch.Tensor], ins: Axes, outs: Axes, run: Run) -> list[torch.Tensor]:
    """The outputs of a call, as if it had run whole.

    Args:
        plan: Its steps cover the rows of `tensors`.
        tensors: The inputs.
        ins: The axis of the rows in each input, None where it has none.
        outs: The same of the outputs.
        run: Runs inputs at a bucket; None is the dynamic artifact.
    """
    if len(plan.steps) == 1 and plan.steps[0].bucket in (None, plan.steps[0].rows):
        return run(tensors, plan.steps[0].bucket)
    parts, start = [], 0
    for step in plan.steps:
        outputs = run(
            [_rows(value, axis, start, step) for value, axis in zip(tensors, ins, strict=True)], step.bucket
        )
        parts.append([cut(value, axis, step.rows) for value, axis in zip(outputs, outs, strict=True)])
        start += step.rows
    if len(parts) == 1:
        return parts[0]
    return [
        values[0] if axis is None else torch.cat(values, axis)
        for axis, values in zip(outs, map(list, zip(*parts, strict=True)), strict=True)
    ]


def _rows(value: torch.Tensor, axis: int | None, start: int, step: Step) -> torch.Tensor:
    """A step's rows, padded by its last one: a valid input whatever the model asks of its values."""
    if axis is None:
        return value
    rows = value.narrow(axis, start, step.rows)
    if step.bucket is not None and step.bucket > step.rows:
        last = value.narrow(axis, start + step.rows - 1, 1)
        sizes = [step.bucket - step.rows if number == axis else -1 for number in range(value.dim())]
        return torch.cat([rows, last.expand(sizes)], axis)
    return rows.contiguous()  # compiled code reads the strides that it was compiled for


def widen(tensors: Sequence[torch.Tensor], axes: Axes, size: int, fills: Sequence[int]) -> list[torch.Tensor]:
    """The inputs with a dimension filled up to `size`; rows are padded with rows, all else with `fills`."""
    widened = []
    for value, axis, fill in zip(tensors, axes, fills, strict=True):
        if axis is not None and value.shape[axis] < size:
            shape = [size if number == axis else length for number, length in enumerate(value.shape)]
            wider = torch.full(shape, fill, dtype=value.dtype, device=value.device)
            wider.narrow(axis, 0, value.shape[axis]).copy_(value)
            value = wider  # noqa: PLW2901
        widened.append(value)
    return widened


def cut(value: torch.Tensor, axis: int | None, rows: int) -> torch.Tensor:
    """The first part of an output, without its padding."""
    if axis is None or value.shape[axis] == rows:
        return value
    return value.narrow(axis, 0, rows).contiguous()
