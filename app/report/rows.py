"""Rows: what directories of records hold, one row for each job, old schema versions included."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, TypeVar

from .. import structured
from ..config import SERVING
from ..measure.samples import Samples, load_samples
from ..measure.statistics import Latency
from ..record import EvaluationInfo, Memory, Record, RunError

T = TypeVar("T")

EAGER = "eager"
MAKING = ("worker", "export", "compile", "publish", "plan")  # phases that a direct hit is spared
SHORTEST_MS = 1e-6  # less than the clock tells is no gain
SAME = (  # fields of a record that a row has as they are
    *(
        "status",
        "task",
        "model",
        "mode",
        "precision",
        "weights",
        "device",
        "rung",
        "phases_s",
        "memory",
        "environment",
    ),
    *("overrides", "command", "created_at", "warnings"),
)
NAMED = ("model", "mode", "precision", "weights", "device", "task")  # overrides that have a field of their own
STEERING = (
    "hydra",
    "cache",
    "sweep",
    "output",
    "debug",
    "measure",
    "tracker",
)  # those that change no figure's meaning


@dataclass(frozen=True)
class Timing:
    """One batch size of a run: what served it, beside eager in fp32, which was measured in turn with it.

    `interval` is 95 % of the speed-up's; `break_even_calls` is how many calls win back what making the artifact took.
    """

    runner: str
    rung: str
    latency_ms: Latency
    eager_ms: Latency | None
    speedup: float | None
    interval: list[float] | None
    throughput_per_s: float | None
    break_even_calls: int | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One job; `label` is its configuration, told apart by what varies among the rows beside it.

    `machine` is an index into the machines of the summary; `make_s` what making the artifact took, now or, at a hit,
    when it was made; `start_s` all phases up to the first output. `rel_l2` is the worst case's, null where it passed
    no verification or isn't finite.
    """

    job: str
    folder: str
    status: Literal["ok", "failed", "running", "lost", "unreadable"]
    error: RunError | None = None
    overrides: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    created_at: str | None = None
    task: str | None = None
    model: str | None = None
    label: str = ""
    mode: str | None = None
    precision: str | None = None
    weights: str | None = None
    device: str | None = None
    machine: int | None = None
    rung: str | None = None
    fallbacks: list[str] = field(default_factory=list)
    cache: str | None = None
    seconds_saved: float | None = None
    verified: bool | None = None
    rel_l2: float | None = None
    evaluation: EvaluationInfo | None = None
    phases_s: dict[str, float] = field(default_factory=dict)
    make_s: float | None = None
    start_s: float | None = None
    memory: Memory | None = None
    batches: dict[str, Timing] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    environment: dict[str, Any] | None = None

    @property
    def is_trusted(self) -> bool:
        """Whether its figures may win: it passed verification, or it is the reference itself."""
        return self.status == "ok" and (
            self.verified is True or (self.verified is None and self.rung == EAGER and self.precision == "fp32")
        )

    def samples(self, runner: str, batch: str) -> Samples | None:
        """The raw times, where they lie beside the record and can be read."""
        try:
            found = load_samples(Path(self.folder) / "samples.npz").get(f"{runner}/{batch}")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # absent, cut short, or no npz at all
            return None
        return found if found is not None and found.values_s.size else None


@dataclass(frozen=True)
class Job:
    """A job that a sweep set out to run."""

    num: int
    folder: str
    overrides: list[str]


@dataclass(frozen=True)
class Sweep:
    """What `sweep.json` says of a sweep."""

    schema: int
    command: list[str]
    directory: str
    created_at: str
    status: Literal["running", "interrupted", "complete"]
    jobs: list[Job]
    ended_at: str | None = None


def read(directories: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """The rows of all records in and below the directories, and what of their sweeps could not be read.

    A job that a sweep lists and that left no record is a row too.

    Raises:
        ValueError: a directory isn't there, or holds no record.
    """
    rows: dict[Path, Row] = {}
    doubts = []
    for directory in directories:
        if not directory.is_dir():
            raise ValueError(f"{directory} is no directory")
        found: dict[Path, Row] = {}
        for path in sorted(directory.rglob("sweep.json"), key=_natural):
            try:
                sweep: Sweep = structured.decode(Sweep, json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                doubts.append(f"{path}: {error}; only the jobs that left a record are shown")
                continue
            found |= {(path.parent / job.folder).resolve(): _job(path.parent, job, sweep) for job in sweep.jobs}
        written = sorted(directory.rglob("record.json"), key=_natural)
        runs = {*found, *(path.parent.resolve() for path in written)}
        for path in written:
            folder = path.parent.resolve()
            if folder not in found and runs.isdisjoint(folder.parents):  # what a run started is no run of its own
                found[folder] = _row(path, str(path.parent.relative_to(directory)))
        if not found:
            raise ValueError(f"{directory} holds no record.json, here or below")
        several = f"{directory.name}/" if len(directories) > 1 else ""
        rows |= {folder: replace(row, job=f"{several}{row.job}") for folder, row in found.items()}
    return list(rows.values()), doubts


def labelled(rows: Sequence[Row], names: Collection[str]) -> list[Row]:
    """The rows, each with its configuration as a label: mode, precision, and what has these names."""

    def label(row: Row) -> str:
        parts = [row.mode, row.precision, row.weights if row.weights != "frozen" else None]
        parts += [f"{name}={value}" for name, value in sorted(_values(row).items()) if name in names]
        return " · ".join(part for part in parts if part) or " ".join(row.overrides) or row.job

    return [replace(row, label=label(row)) for row in rows]


def varied(rows: Sequence[Row]) -> set[str]:
    """Names of what tells a model's rows apart: its device, and overrides that have no field of their own."""
    groups: dict[tuple[str | None, str | None], list[dict[str, str]]] = {}
    for row in rows:
        if row.environment is not None:  # a job that died early knows less of itself, but is no other configuration
            groups.setdefault((row.task, row.model), []).append(_values(row))
    return {
        name
        for values in groups.values()
        for name in set().union(*values)
        if len({own.get(name) for own in values}) > 1
    }


def located(rows: Sequence[Row], identity: Callable[[dict[str, Any]], T]) -> tuple[list[Row], list[T]]:
    """The rows, each with the index of its machine, and the machines, told apart by what `identity` makes of them."""
    machines: list[T] = []
    found = []
    for row in rows:
        if row.environment is not None:
            if (machine := identity(row.environment)) not in machines:
                machines.append(machine)
            row = replace(row, machine=machines.index(machine))  # noqa: PLW2901 - the same row, located
        found.append(row)
    return found, machines


def constant(rows: Sequence[Row]) -> dict[str, str]:
    """The device and the overrides that all rows share."""
    first, *others = [_values(row) for row in rows if row.environment is not None] or [{}]
    return {name: value for name, value in first.items() if all(own.get(name) == value for own in others)}


def newest(rows: Sequence[Row]) -> Iterator[tuple[Row, str, Timing]]:
    """The timings that count: of each configuration on each machine the last run's, batch by batch."""
    kept = {}
    for row in sorted(rows, key=lambda row: row.created_at or ""):
        for batch, timing in row.batches.items():
            kept[row.machine, row.model, row.label, batch] = row, batch, timing
    order = {row.folder: number for number, row in enumerate(rows)}
    yield from sorted(kept.values(), key=lambda item: (order[item[0].folder], by_size(item[1])))


def by_size(batch: str) -> tuple[int, str]:
    """A key that puts batch sizes, which are strings, in order."""
    return len(batch), batch


def _job(root: Path, job: Job, sweep: Sweep) -> Row:
    path = root / job.folder / "record.json"
    if path.exists():
        row = _row(path, job.folder)
        row = replace(row, overrides=row.overrides or job.overrides)
    elif sweep.status == "running":
        row = Row(job=job.folder, folder=str(path.parent), status="running", overrides=job.overrides)
    else:
        reason = (
            "it left no record" if sweep.status == "complete" else f"the sweep was {sweep.status} before its turn"
        )
        error = RunError("Lost", "start", reason)
        row = Row(job=job.folder, folder=str(path.parent), status="lost", error=error, overrides=job.overrides)
    if row.status == "running" and sweep.status != "running":
        stage = row.error.stage if row.error else "an unknown stage"
        row = replace(row, status="lost", error=RunError("Lost", stage, "it died before it could say why"))
    return _with_words(replace(row, command=sweep.command))


def _with_words(row: Row) -> Row:
    """The row with what its overrides say of it, where its record says nothing."""
    said = _words(row)
    return replace(
        row,
        model=row.model or said.get("model"),
        mode=row.mode or said.get("mode"),
        precision=row.precision or said.get("precision"),
    )


def _row(path: Path, job: str) -> Row:
    folder = str(path.parent)
    try:
        record = Record.load(path)
    except (OSError, ValueError) as error:
        return Row(job=job, folder=folder, status="unreadable", error=RunError("ValueError", "record", str(error)))
    cache, verify = record.cache, record.verify
    spent, saved = record.phases_s, cache.seconds_saved if cache else None
    # build and verify belong in part to the run itself, so a miss's figure errs on the low side
    make_s = sum(spent.get(name, 0.0) for name in MAKING) if "compile" in spent else saved
    before = [*takewhile(lambda name: name != "first_call", spent), "first_call"]
    distances = [case.rel_l2 for case in verify.cases] if verify else []
    finite = [distance for distance in distances if distance is not None]
    same: dict[str, Any] = {name: getattr(record, name) for name in SAME}
    why = record.error
    if record.status == "running":
        why = RunError("Running", record.stage or "an unknown stage", "still running")
    return _with_words(
        Row(
            **same,
            job=job,
            folder=folder,
            error=why,
            fallbacks=[f"{step.from_} -> {step.to} at {step.stage}: {step.reason}" for step in record.fallbacks],
            cache=cache.outcome if cache else None,
            seconds_saved=saved,
            verified=verify.passed if verify else None,
            rel_l2=max(finite) if distances and len(finite) == len(distances) else None,
            evaluation=replace(record.evaluation, disagreements=[]) if record.evaluation else None,
            make_s=make_s,
            start_s=sum(spent[name] for name in before) if "first_call" in spent else None,
            batches=dict(_timings(record, make_s)),
        )
    )


def _timings(record: Record, make_s: float | None) -> Iterator[tuple[str, Timing]]:
    latency = record.latency_ms or {}
    own = f"{EAGER}_{record.precision}"
    runner = next((name for name in (*SERVING, own, EAGER) if name in latency), None)
    if runner is None:
        return
    for batch in sorted(latency[runner], key=by_size):
        eager, served = latency.get(EAGER, {}).get(batch), latency[runner][batch]
        gained_ms = eager.p50 - served.p50 if eager else 0.0
        ratio, ends = (record.speedup or {}).get(batch), (record.speedup_interval or {}).get(batch)
        ratio = ratio if ratio and ratio > 0 else None
        pays = gained_ms > SHORTEST_MS and runner in SERVING
        yield (
            batch,
            Timing(
                runner=runner,
                rung=(record.rungs or {}).get(batch, record.rung or runner),
                latency_ms=served,
                eager_ms=eager,
                speedup=ratio,
                interval=ends if ratio and ends and len(ends) == 2 and 0 < ends[0] <= ends[1] else None,
                throughput_per_s=(record.throughput_per_s or {}).get(batch),
                break_even_calls=math.ceil(1e3 * make_s / gained_ms) if pays and make_s is not None else None,
            ),
        )


def _values(row: Row) -> dict[str, str]:
    """A row's device, and its overrides by name without those that have a field and those that only steer the run."""
    device = {"device": row.device} if row.device else {}
    return device | {
        name: value
        for name, value in _words(row).items()
        if name not in NAMED and name.partition(".")[0] not in STEERING
    }


def _words(row: Row) -> dict[str, str]:
    return {name: value for name, _, value in (word.lstrip("+~").partition("=") for word in row.overrides)}


def _natural(path: Path) -> list[tuple[int, str]]:
    """Job 10 comes after job 9."""
    return [by_size(part) if part.isdigit() else (99, part) for part in path.parts]
