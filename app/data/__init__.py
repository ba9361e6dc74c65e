"""Data: rows of the model's inputs, and their labels, from a file, a data set or a callable; checked before they run.

What the config names and isn't there is a ConfigError; what is there and can't be the model's input a DataError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ..config import BATCH, DataConfig, DimConfig
from ..errors import ConfigError, DataError
from . import sources
from .columns import Array, Columns, numbers


class Input(Protocol):
    """One of the model's inputs, as the config or a saved program declares it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> Sequence[Any] | None: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def low(self) -> float | None: ...  # noqa: D102
    @property
    def high(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True)
class Dataset:
    """Rows in memory.

    Attributes:
        name: The source, and its file where it has one.
        inputs: By the name of the model's input, rows first.
        labels: One a row, or None.
    """

    name: str
    inputs: Mapping[str, Array]
    labels: Array | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every value, dtype and shape."""
        sha256 = hashlib.sha256()
        named = {**self.inputs, **({} if self.labels is None else {"": self.labels})}
        for name, values in sorted(named.items()):
            sha256.update(f"{name}\0{values.dtype}\0{values.shape}\0".encode())
            sha256.update(np.ascontiguousarray(values).data)
        return sha256.hexdigest()


def read(config: DataConfig, inputs: Sequence[Input], dims: Mapping[str, DimConfig]) -> Dataset:
    """The rows that the config names, as what the model takes.

    Raises:
        ConfigError: there is no such file, column, callable or library.
        DataError: a value can't be read, or can't be what the model takes; the message says where it stands.
    """
    columns = sources.read(config, [spec.name for spec in inputs])
    labels = None if config.label is None else _labels(columns, config.label)[: config.limit]
    found: dict[str, Array] = {}
    sizes: dict[str, tuple[int, str]] = {}
    for name in config.inputs:
        if name not in (known := [spec.name for spec in inputs]):
            raise ConfigError(f"data.inputs.{name} is no input of the model: it takes {', '.join(known)}")
    for spec in inputs:
        if not spec.shape or spec.shape[0] != BATCH:
            raise ConfigError(f"an evaluation needs inputs of shape [batch, ...]: {spec.name} is {spec.shape}")
        chosen = _chosen(config, columns, spec.name, alone=len(inputs) == 1)
        found[spec.name] = _fitted(columns, chosen, spec, dims, sizes)[: config.limit]
    rows = {name: len(values) for name, values in {**found, **({} if labels is None else {"label": labels})}.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name} has {count}" for name, count in rows.items())
        raise DataError(f"{columns.source}: not all have as many rows: {counts}")
    if not min(rows.values()):
        raise DataError(f"{columns.source} holds no rows: there is nothing to evaluate")
    return Dataset(columns.source, found, labels)


def _chosen(config: DataConfig, columns: Columns, name: str, *, alone: bool) -> list[str]:
    """The columns that one of the model's inputs is made of."""
    given = config.inputs.get(name)
    if given is not None:
        chosen = [str(each) for each in given] if isinstance(given, list) else [str(given)]
    elif name in columns.values:
        chosen = [name]
    elif alone and columns.tabular:
        chosen = [each for each in columns.values if each != config.label]
    else:
        chosen = [name]
    for each in chosen:
        columns.require(each, f"the model's input {name!r}", f"data.inputs.{name}")
    return chosen


def _labels(columns: Columns, name: str) -> Array:
    columns.require(name, "the labels", "data.label")
    values = numbers(columns, name, ": a label is one, such as the class's place among the model's scores, 0, 1, ..")
    if np.isnan(values).any():
        raise DataError(f"{columns.at(int(np.argwhere(np.isnan(values))[0][0]), name)} is not a number")
    # a table has no types: whole numbers are classes there
    whole = columns.tabular and bool((values == np.round(values)).all())
    return values.astype(np.int64) if whole or values.dtype.kind in "iub" else values


def _fitted(
    columns: Columns,
    chosen: Sequence[str],
    spec: Input,
    dims: Mapping[str, DimConfig],
    sizes: dict[str, tuple[int, str]],
) -> Array:
    """The columns as the input's shape and dtype; `sizes` collects what the named dimensions come to."""
    hint = f" (data.inputs={{{spec.name}: [COLUMN, ..]}} chooses columns, data.label=COLUMN is none of them)"
    hint = hint if columns.tabular else ""
    parts = [numbers(columns, name, hint) for name in chosen]
    values = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
    wanted = list(spec.shape or ())[1:]
    fixed = all(isinstance(size, int) for size in wanted)
    if fixed and values[:1].size == np.prod(wanted, dtype=int) and values.ndim <= 2:
        values = values.reshape(len(values), *wanted)  # a table's columns, laid out as the model wants them
    what = f"{columns.source}: input {spec.name!r}"
    given = f"{what} has rows of shape {list(values.shape[1:])}, the model takes {wanted}"
    if values.ndim != len(wanted) + 1:
        raise DataError(f"{given}{hint}")
    for size, dim in zip(values.shape[1:], wanted, strict=True):
        if isinstance(dim, int):
            if size != dim:
                raise DataError(f"{given}{hint}")
            continue
        limits = dims[dim]
        if not limits.min <= size <= limits.max:
            raise DataError(f"{given}, with {dim} from {limits.min} to {limits.max}")
        first = sizes.setdefault(dim, (size, spec.name))
        if first[0] != size:
            raise DataError(f"{given}: {dim} is {size} here, and {first[0]} in {first[1]!r}")
    return _cast(columns, chosen, spec, values)


def _cast(columns: Columns, chosen: Sequence[str], spec: Input, values: Array) -> Array:
    """The values in the input's dtype, none of them changed by it but for rounding."""

    def refuse(wrong: Array, rule: str) -> None:
        if wrong.any():
            row = int(np.argwhere(wrong)[0][0])
            raise DataError(
                f"{columns.at(row, *chosen)}: input {spec.name!r} {rule} (such values: {int(wrong.sum())})"
            )

    refuse(np.isnan(values), "holds what is not a number (NaN)")
    if spec.dtype in {"float32", "float64", "float16", "bfloat16"}:
        return values.astype("float32" if spec.dtype == "bfloat16" else spec.dtype)  # NumPy has no bfloat16
    if spec.dtype == "bool":
        refuse((values != 0) & (values != 1), "must hold 0 and 1, or false and true")
    else:
        refuse(values != np.round(values), f"must hold whole numbers ({spec.dtype})")
        low, high = spec.low, spec.high
        if low is not None and high is not None:
            refuse((values < low) | (values >= high), f"must lie within {low:g} <= value < {high:g}")
    return values.astype(spec.dtype)
