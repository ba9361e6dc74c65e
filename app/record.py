"""Record: one run as versioned JSON. Users and scripts rely on its field names: extend, don't rename."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from . import __version__, structured
from .fallback import Fallback
from .files import write_text
from .measure.statistics import Latency
from .verdict import VerifyInfo

SCHEMA = 1

Kind = Literal["convolutional", "attention", "dense", "elementwise"]
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
class PlanInfo:
    """How calls of one batch size run, like `16 + 3->4`, what that should take, and what it took (median).

    `padding` counts the rows that are computed and thrown away.
    """

    steps: str
    padding: int
    predicted_ms: float | None
    p50_ms: float | None


@dataclass(frozen=True)
class Disagreement:
    """A row that what served and eager disagree in, with the first values of both outputs; null is not finite."""

    row: int
    label: Any
    eager_class: int | None
    compiled_class: int | None
    relative: float | None
    eager: list[float | None]
    compiled: list[float | None]


@dataclass(frozen=True)
class EvaluationInfo:
    """What running the model over data came to, eager in fp32 beside what served.

    `judge` says when a row disagrees: `argmax` (another class) or `deviation` (a relative L2 distance beyond
    `tolerance`). `max_*` and `min_cosine` are the worst row's; they are null where an output isn't finite.
    `refusal` is the limit that was passed. Of `num_disagreements` rows `disagreements` lists the first.
    """

    data: str
    data_sha256: str
    rows: int
    resumed_rows: int
    batch_size: int
    judge: Literal["argmax", "deviation"]
    tolerance: float | None
    metric: str | None
    metric_values: dict[str, float] | None
    metric_drop: float | None
    num_disagreements: int
    disagreement: float
    max_abs: float | None
    max_relative: float | None
    min_cosine: float | None
    rows_per_s: dict[str, float | None]
    max_metric_drop: float | None
    max_disagreement: float | None
    refusal: str | None
    disagreements: list[Disagreement]


@dataclass(frozen=True)
class PrecisionCandidate:
    """One precision under `precision=auto`; what wasn't asked or measured of it is null."""

    precision: str
    passed: bool
    reason: str | None
    p50_ms: float | None = None
    rel_l2: float | None = None
    metric_drop: float | None = None
    disagreement: float | None = None


@dataclass(frozen=True)
class PrecisionChoice:
    """What `precision=auto` kept: the fastest at `batch` of those that passed."""

    kept: str
    judge: Literal["evaluation", "float64"]
    batch: int
    candidates: list[PrecisionCandidate]


@dataclass(frozen=True)
class Traits:
    """What a model's arithmetic is like at a batch size, by the operators that one call runs.

    `kind` is that of the operators that most FLOPs go to; `bound` says what sets the pace, by FLOPs a byte of weights
    and activations.
    """

    kind: Kind
    bound: Literal["compute", "memory"]
    flops: int
    bytes: int


@dataclass(frozen=True)
class ModeCandidate:
    """One mode in one precision: how many times faster than fp32 eager, or why it can't be kept."""

    mode: str
    precision: str
    speedup: float | None
    reason: str | None


@dataclass(frozen=True)
class ModeChoice:
    """What `mode=auto` kept: the fastest at `batch` of those that passed.

    It was `measured` in this run, or is `known` from `num_runs` runs, the last of them at `last_run`. `traits` set
    the order of trying; null where nothing was tried.
    """

    kept: str
    precision: str
    batch: int
    evidence: Literal["known", "measured"]
    num_runs: int
    last_run: str | None
    traits: Traits | None
    candidates: list[ModeCandidate]


@dataclass(frozen=True)
class WeightsCandidate:
    """One place for the weights, with the mode and precision that were kept."""

    weights: str
    p50_ms: float | None
    reason: str | None


@dataclass(frozen=True)
class WeightsChoice:
    """What `weights=auto` kept: external weights unless frozen ones were clearly faster at `batch`."""

    kept: str
    batch: int
    candidates: list[WeightsCandidate]


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
    status: Literal["ok", "failed", "running"]
    stage: str | None = None  # of a run that is under way, or that died before it could say so
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
    plans: dict[str, PlanInfo] | None = None
    tuned: dict[str, Any] | None = None
    unsplittable: str | None = None
    evaluation: EvaluationInfo | None = None
    precision_choice: PrecisionChoice | None = None
    mode_choice: ModeChoice | None = None
    weights_choice: WeightsChoice | None = None
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
        return json.dumps(structured.encode(self), indent=2, allow_nan=False) + "\n"

    def save(self, path: Path, *, durable: bool = True) -> None:
        """Write the record so that a reader finds all of it or nothing, even after a crash of the machine.

        Without `durable` it outlives a crash of the process only.
        """
        write_text(path, self.to_json(), durable=durable)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record of this schema or an older one.

        Raises ValueError, naming file and field, where it isn't one. Fields that this version doesn't know
        are left out: a later one may have added them.
        """
        try:
            content = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
            _check_schema(content)
            record: Self = structured.decode(cls, content)
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
