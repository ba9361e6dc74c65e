"""Columns: what a source gave, by name, and where each value stands; texts become numbers when they are used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Columns:
    """Named values, a row each.

    Attributes:
        source: What a message calls them: the file, or the data set.
        values: By name, rows first.
        lines: The file's line of each row, where it has lines.
        tabular: Whether a column is one number a row, as in a table.
    """

    source: str
    values: Mapping[str, Any]
    lines: Sequence[int] | None = None
    tabular: bool = False

    def require(self, name: str, purpose: str, field: str) -> None:
        """Raise ConfigError unless there is such a column."""
        if name not in self.values:
            names = [str(each) for each in self.values]
            shown = ", ".join(names[:12]) + (f", and {len(names) - 12} more" if len(names) > 12 else "")
            word = "column" if self.tabular else "array"
            known = f"it has {shown or 'none'} (choose by {field}=NAME)"
            raise ConfigError(f"{self.source} has no {word} {name!r} for {purpose}: {known}")

    def at(self, row: int, *names: str) -> str:
        """Where a value stands, as a message says it."""
        place = f"line {self.lines[row]}" if self.lines is not None else f"row {row}"
        column = f", {names[0]!r}" if len(names) == 1 else ""
        return f"{self.source}, {place}{column}"


def numbers(columns: Columns, name: str, hint: str = "") -> Array:
    """A column as an array of numbers, rows first.

    Raises:
        DataError: a cell is no number, which `hint` says what to do about, or the rows differ in shape.
    """
    values: Any = columns.values[name]
    if not isinstance(values, np.ndarray):
        values = _stacked(columns, name, values, hint)
    if values.dtype.kind in "US" and values.ndim == 1:
        try:
            values = values.astype(np.float64)
        except ValueError:
            row = next(row for row, cell in enumerate(values) if not _is_number(cell))
            cell = str(values[row])[:40]
            text = f"is {cell!r}, not a number" if cell.strip() else "is empty"
            raise DataError(f"{columns.at(row, name)} {text}{hint}") from None
    if values.dtype.kind not in "fiub":
        raise DataError(f"{columns.source}: {name!r} holds {values.dtype}, not numbers")
    if values.ndim == 0:
        raise DataError(f"{columns.source}: {name!r} is one value, not one a row")
    found: Array = values
    return found


def _stacked(columns: Columns, name: str, rows: Sequence[Any], hint: str) -> Array:
    found: list[Array] = []
    for index, row in enumerate(rows):
        try:
            found.append(np.asarray(row))
        except (ValueError, TypeError):
            raise DataError(f"{columns.at(index, name)} is ragged: its parts differ in length") from None
        if found[-1].dtype.kind not in "fiub":
            raise DataError(f"{columns.at(index, name)} is {str(row)[:40]!r}, not numbers{hint}")
        if found[-1].shape != found[0].shape:
            raise DataError(
                f"{columns.at(index, name)} has the shape {list(found[-1].shape)}, the first row has "
                f"{list(found[0].shape)}: pad the rows to one shape"
            )
    return np.stack(found) if found else np.empty((0,))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def from_rows(source: str, rows: Iterable[Any], lines: Sequence[int] | None = None) -> Columns:
    """Columns of rows that are mappings, each with the first one's names.

    Raises:
        DataError: a row is no mapping, or has other names.
    """
    values: dict[str, list[Any]] = {}
    for index, row in enumerate(rows):
        where = Columns(source, {}, lines).at(index)
        if not isinstance(row, Mapping):
            raise DataError(f'{where} is no mapping like {{"x": [..], "label": 3}}')
        if index == 0:
            values = {str(name): [] for name in row}
        if missing := values.keys() - row.keys():
            raise DataError(f"{where} has no {', '.join(map(repr, sorted(missing)))}, which the first row has")
        for name, column in values.items():
            column.append(row[name])
    return Columns(source, values, lines)
