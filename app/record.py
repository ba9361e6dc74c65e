"""Record: one run as versioned JSON. Users and scripts rely on its field names: extend, don't rename."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Self, get_args, get_origin, get_type_hints

from . import __version__
from .errors import OutputError
from .measure.statistics import Latency

SCHEMA = 1

Outcome = Literal["direct-hit", "graph-hit", "remote-hit", "miss", "off"]


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class RunError:
    """Why a run failed."""

    type: str
    stage: str
    message: str


@dataclass(frozen=True)
class KeyInfo:
    """The digests that name the request and the artifact, and what went into them.

    `object` is null where the run ended before the artifact had a name.
    """

    request: str
    object: str | None
    factors: dict[str, Any]


@dataclass(frozen=True)
class CacheInfo:
    """How the store answered; `seconds_saved` is what the artifact once took to build."""

    outcome: Outcome
    miss_reasons: list[str] = field(default_factory=list)
    seconds_saved: float | None = None


@dataclass(frozen=True)
class Fallback:
    """One step down the ladder; in JSON `from_` is `from`."""

    from_: str
    to: str
    stage: str
    reason: str


@dataclass(frozen=True)
class VerifyCase:
    """One input's distance from the reference.

    `rel_l2` and `max_abs` are null where the output isn't finite; `eager_rel_l2` is null where eager is the
    reference.
    """

    batch: int
    seed: int
    rel_l2: float | None
    eager_rel_l2: float | None
    limit: float
    max_abs: float | None
    passed: bool


@dataclass(frozen=True)
class VerifyInfo:
    """The verdict, and the bar: `multiple` times eager's own error, and never less than `floor`."""

    passed: bool
    reference: Literal["float64", "eager"]
    cases: list[VerifyCase]
    multiple: float
    floor: float


@dataclass(frozen=True)
class Memory:
    """Peak memory of the process and the device, and the size of the artifact."""

    rss_peak_bytes: int | None = None
    artifact_bytes: int | None = None
    device_peak_bytes: int | None = None


@dataclass(kw_only=True)
class Record:
    """Everything one run found out; a run fills it as it goes, and what its task doesn't produce stays null.

    Batch sizes are keys, and so are strings: `latency_ms["compiled"]["4"].p50`. Further runners, such as
    `eager_bf16`, stand beside `compiled` and `eager`.
    """

    schema: int = SCHEMA
    status: Literal["ok", "failed"]
    error: RunError | None = None
    model: str | None = None
    mode: str | None = None
    precision: str | None = None
    weights: str | None = None
    device: str | None = None
    task: str
    overrides: list[str] = field(default_factory=list)
    key: KeyInfo | None = None
    cache: CacheInfo | None = None
    rung: str | None = None
    rungs: dict[str, str] | None = None
    fallbacks: list[Fallback] = field(default_factory=list)
    phases_s: dict[str, float] = field(default_factory=dict)
    verify: VerifyInfo | None = None
    latency_ms: dict[str, dict[str, Latency]] | None = None
    speedup: dict[str, float | None] | None = None
    speedup_interval: dict[str, list[float] | None] | None = None
    speedup_same_precision: dict[str, float | None] | None = None
    throughput_per_s: dict[str, float] | None = None
    memory: Memory | None = None
    monitor: dict[str, Any] | None = None
    result: list[dict[str, Any]] | None = None
    environment: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    run_dir: str | None = None
    artifact_dir: str | None = None
    created_at: str | None = None  # ISO 8601, UTC
    app_version: str = __version__
    command: list[str] = field(default_factory=list)
    resolved_config: dict[str, Any] | None = None

    def to_json(self) -> str:
        """The record as JSON, in the fields' order.

        Raises ValueError for NaN and infinity, TypeError for what else JSON can't hold; both name the field.
        The text is ASCII, so that a command-line argument that was no valid UTF-8 can be written too.
        """
        return json.dumps(_encode(self, ""), indent=2, allow_nan=False) + "\n"

    def save(self, path: Path) -> None:
        """Write the record so that a reader finds all of it or nothing, even after a crash."""
        text = self.to_json()
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            try:
                with temporary.open("w", encoding="ascii") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"can't write {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record of this schema or an older one.

        Raises ValueError, naming file and field, where it isn't one. Fields that this version doesn't know
        are left out: a later one may have added them.
        """
        try:
            content = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
            _check_schema(content)
            record: Self = _decode(cls, content, "")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return record


def _check_schema(content: Any) -> None:
    schema = content.get("schema") if isinstance(content, dict) else None
    if type(schema) is not int or schema < 1:
        raise ValueError("no record: it has no schema version")
    if schema > SCHEMA:
        raise ValueError(f"schema {schema} is newer than {SCHEMA}, the newest that app {__version__} reads")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _encode(value: Any, where: str) -> Any:
    """Dataclasses, mappings and sequences as what `json` writes; `where` names the field for the error."""
    if dataclasses.is_dataclass(value):
        value = {_json_name(item): getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _encode(item, _join(where, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which JSON has no number for")
    if not isinstance(value, str | int | float | NoneType):
        raise TypeError(f"{where} is of type {type(value).__name__}, which JSON can't hold")
    return value


def _decode(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, one of those that the dataclasses above use."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:  # always `... | None` here
        return None if value is None else _decode(arguments[0], value, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _decode_fields(hint, value, where)
    if origin is list and isinstance(value, list):
        return [_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _decode(arguments[1], item, _join(where, key)) for key, item in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if hint is Any or hint is type(value) or (origin is Literal and value in arguments):
        return value
    expected = " or ".join(arguments) if origin is Literal else hint.__name__
    raise ValueError(f"{where} is {json.dumps(value)[:60]}, not {expected}")


def _decode_fields(cls: Any, content: dict[str, Any], where: str) -> Any:
    hints, values = get_type_hints(cls), {}
    for item in dataclasses.fields(cls):
        name = _json_name(item)
        if name not in content:
            raise ValueError(f"{_join(where, name)} is missing")
        values[item.name] = _decode(hints[item.name], content[name], _join(where, name))
    return cls(**values)


def _json_name(item: dataclasses.Field[Any]) -> str:
    return item.name.rstrip("_")  # `from` is a keyword


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
