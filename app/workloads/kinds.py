"""Kinds of values that callers send and no random draw has: padding masks, sorted integers, zeros, NaN in a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from ..config import BATCH
from ..runtime.spec import InputSpec

# What stands for "no value here": a mask may mean either by true, so both ends and both extremes are tried.
_MASKS: Mapping[str, Callable[[torch.Tensor, int | None], None]] = {
    "masks with padding at the end": lambda value, axis: _pad(value, axis, end=True),
    "masks with padding at the start": lambda value, axis: _pad(value, axis, end=False),
    "masks all true": lambda value, _: _fill(value, 1),
    "masks all false": lambda value, _: _fill(value, 0),
    "masks true but for a row": lambda value, axis: _but_for_a_row(value, axis, 1),
    "masks false but for a row": lambda value, axis: _but_for_a_row(value, axis, 0),
}
_INTEGERS: Mapping[str, Callable[[torch.Tensor, int | None], None]] = {
    "integers sorted": lambda value, _: _set(value, value.sort(dim=-1).values) if value.ndim else None,
    "integers all alike": lambda value, _: _fill(value, value.reshape(-1)[0]) if value.numel() else None,
}
_FLOATS: Mapping[str, Callable[[torch.Tensor, int | None], None]] = {
    "zeros": lambda value, _: _fill(value, 0.0),
    "negative zeros": lambda value, _: _fill(value, -0.0),
    "large values": lambda value, _: _set(value, value * 1e3),
    "tiny values": lambda value, _: _set(value, value * 1e-30),
    "NaN in a row": lambda value, axis: _spoil(value, axis, math.nan),
    "infinity in a row": lambda value, axis: _spoil(value, axis, math.inf),
}
# Of these OpenVINO is known to answer otherwise: docs/adr/0015-openvino.md.
NOT_FINITE = ("NaN in a row", "infinity in a row")
_BY_INPUT = (("mask", _MASKS), ("integer", _INTEGERS), ("float", _FLOATS))


def kinds_of(inputs: Sequence[InputSpec], values: Mapping[str, torch.Tensor]) -> list[str]:
    """The kinds that some input can have; `values` are a draw of the inputs, by name."""
    found = {_input_kind(spec, values[spec.name]) for spec in inputs}
    return [name for kind, changes in _BY_INPUT if kind in found for name in changes]


def changed(kind: str, inputs: Sequence[InputSpec], values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same draw with values of a kind, in every input that can have it."""
    found = dict(values)
    for spec in inputs:
        changes = dict(_BY_INPUT).get(_input_kind(spec, values[spec.name]), {})
        if kind in changes:
            found[spec.name] = values[spec.name].clone()
            changes[kind](found[spec.name], spec.shape.index(BATCH) if BATCH in spec.shape else None)
    return found


def is_mask(spec: InputSpec, value: torch.Tensor) -> bool:
    """Whether an input says of each place that it counts or doesn't: booleans, or integers that are 0 and 1."""
    if value.dtype == torch.bool:
        return True
    if value.is_floating_point() or value.is_complex():
        return False
    if spec.low is not None and spec.high is not None:
        return (spec.low, spec.high) == (0, 2)
    return value.numel() > 0 and bool(((value == 0) | (value == 1)).all())


def _input_kind(spec: InputSpec, value: torch.Tensor) -> str:
    if is_mask(spec, value):
        return "mask"
    return "float" if value.is_floating_point() or value.is_complex() else "integer"


def _pad(value: torch.Tensor, axis: int | None, *, end: bool) -> None:
    """True, and false beyond a length that is another in each row."""
    value.fill_(1)
    if not value.ndim or (value.ndim == 1 and axis == 0):
        return
    rows = value.movedim(axis, 0) if axis is not None else value.unsqueeze(0)
    for number, row in enumerate(rows):
        length = row.shape[-1]
        kept = max(1, length - (number * max(1, length // 3)) % length - 1) if length else 0
        row.narrow(-1, kept if end else 0, length - kept).fill_(0)


def _but_for_a_row(value: torch.Tensor, axis: int | None, by: int) -> None:
    value.fill_(by)
    _first(value, axis).fill_(1 - by)


def _first(value: torch.Tensor, axis: int | None) -> torch.Tensor:
    return value if axis is None or not value.numel() else value.narrow(axis, 0, 1)


def _spoil(value: torch.Tensor, axis: int | None, by: float) -> None:
    """One value, in the batch's first row."""
    row = _first(value, axis)
    if row.numel():
        row[(0,) * row.ndim] = by


def _fill(value: torch.Tensor, by: float | torch.Tensor) -> None:
    value.fill_(by)


def _set(value: torch.Tensor, by: torch.Tensor) -> None:
    value.copy_(by)
