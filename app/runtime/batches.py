"""Running a batch plan: rows are cut out, padded, run, cut back and put together again. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .plans import Plan, Step

Axes = Sequence[int | None]
Run = Callable[[list[Any], int | None], list[Any]]


@dataclass(frozen=True)
class Arrays:
    """What torch and numpy call differently: all else that rows need are an array's `shape` and its slices."""

    concatenate: Callable[[Any, int], Any]
    broadcast_to: Callable[[Any, Any], Any]
    contiguous: Callable[[Any], Any]

    def run(self, plan: Plan, values: list[Any], ins: Axes, outs: Axes, run: Run) -> list[Any]:
        """The outputs of a call, as if it had run whole.

        Args:
            plan: Its steps cover the rows of `values`.
            values: The inputs.
            ins: The axis of the rows in each input, None where it has none.
            outs: The same of the outputs.
            run: Runs inputs at a bucket; None is the dynamic artifact.
        """
        if len(plan.steps) == 1 and plan.steps[0].bucket in (None, plan.steps[0].rows):
            return run(values, plan.steps[0].bucket)
        parts, start = [], 0
        for step in plan.steps:
            outputs = run(
                [self._rows(value, axis, start, step) for value, axis in zip(values, ins, strict=True)], step.bucket
            )
            parts.append([self.cut(value, axis, step.rows) for value, axis in zip(outputs, outs, strict=True)])
            start += step.rows
        if len(parts) == 1:
            return parts[0]
        return [
            each[0] if axis is None else self.concatenate(each, axis)
            for axis, each in zip(outs, map(list, zip(*parts, strict=True)), strict=True)
        ]

    def _rows(self, value: Any, axis: int | None, start: int, step: Step) -> Any:
        """A step's rows, padded by its last one: a valid input whatever the model asks of its values."""
        if axis is None:
            return value
        rows = _part(value, axis, start, start + step.rows)
        if step.bucket is not None and step.bucket > step.rows:
            shape = list(value.shape)
            shape[axis] = step.bucket - step.rows
            last = _part(value, axis, start + step.rows - 1, start + step.rows)
            return self.concatenate([rows, self.broadcast_to(last, shape)], axis)
        return self.contiguous(rows)  # compiled code reads the strides that it was compiled for

    def cut(self, value: Any, axis: int | None, rows: int) -> Any:
        """The first part of an output, without its padding."""
        if axis is None or value.shape[axis] == rows:
            return value
        return self.contiguous(_part(value, axis, 0, rows))


def _part(value: Any, axis: int, start: int, stop: int) -> Any:
    return value[(slice(None),) * axis + (slice(start, stop),)]
