"""Traffic: the calls that a service sees, their sizes and when they come; read and counted, without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .config import BATCH, DataConfig, DimConfig
from .data import Dataset
from .data.columns import Array, Columns, numbers
from .data.sources import rows_of_json
from .errors import ConfigError, DataError

TIME = "t"


@dataclass(frozen=True)
class Traffic:
    """Calls in the order in which they came.

    Attributes:
        source: The file or data set.
        sizes: By dimension, one size a call; `batch` is always there.
        times: Seconds at which they came, or None.
    """

    source: str
    sizes: Mapping[str, Array]
    times: Array | None = None

    def __len__(self) -> int:
        return len(self.sizes[BATCH])

    def histogram(self, dim: str = BATCH) -> dict[int, int]:
        """Calls by size, smallest first."""
        return dict(sorted(Counter(int(size) for size in self.sizes[dim]).items()))

    def typical(self, dim: str = BATCH) -> int:
        """The median size."""
        return int(np.percentile(self.sizes[dim], 50, method="lower"))

    @property
    def rate_per_s(self) -> float | None:
        """Calls a second; None where nobody knows when they came, or all came at once."""
        if self.times is None or len(self) < 2 or self.times[-1] <= self.times[0]:
            return None
        return float((len(self) - 1) / (self.times[-1] - self.times[0]))

    def waiting(self, call_s: float) -> float | None:
        """The share of calls that come while one before is still running, if one runs at a time for `call_s`."""
        if self.times is None or len(self) < 2:
            return None
        free_at, waited = -np.inf, 0
        for time in self.times:
            waited += bool(time < free_at)
            free_at = max(float(time), free_at) + call_s
        return waited / len(self)


def read(config: DataConfig, dims: Mapping[str, DimConfig]) -> Traffic:
    """Calls from a JSONL file, `{"t": seconds, "batch": rows, "seq": tokens}` each; only the batch must be there.

    Raises:
        ConfigError: there is no such file.
        DataError: a call has a size that no call may have.
    """
    assert config.path is not None
    columns = rows_of_json(Path(config.path).expanduser())
    columns.require(BATCH, "the rows of a call", "the key")
    sizes = {name: _sizes(columns, name, dims[name])[: config.limit] for name in dims if name in columns.values}
    if TIME not in columns.values:
        return Traffic(columns.source, sizes)
    times = numbers(columns, TIME)[: config.limit].astype(np.float64)
    if not np.isfinite(times).all():
        raise DataError(f"{columns.at(int(np.argmin(np.isfinite(times))), TIME)} is no time in seconds")
    order = np.argsort(times, kind="stable")
    return Traffic(columns.source, {name: values[order] for name, values in sizes.items()}, times[order])


def of_dataset(dataset: Dataset, shapes: Mapping[str, Sequence[int | str]], batch_size: int) -> Traffic:
    """The calls that an evaluation makes of a data set; `shapes` are those of the model's inputs."""
    full, rest = divmod(len(dataset), batch_size)
    batch = np.array([batch_size] * full + ([rest] if rest else []))
    sizes = {BATCH: batch}
    for name, shape in shapes.items():
        for axis, dim in enumerate(shape):
            if isinstance(dim, str) and dim != BATCH:
                sizes[dim] = np.full(len(batch), dataset.inputs[name].shape[axis])
    return Traffic(dataset.name, sizes)


def _sizes(columns: Columns, name: str, limits: DimConfig) -> Array:
    values = numbers(columns, name)
    if values.ndim != 1:
        raise ConfigError(f"{columns.source}: {name!r} must be one size a call")
    wrong = ~((values == np.round(values)) & (values >= limits.min) & (values <= limits.max))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        rule = f"model.dims.{name} is {limits.min} to {limits.max}"
        raise DataError(f"{columns.at(row, name)} is {values[row]:g}, which no call may have: {rule}")
    return values.astype(np.int64)
