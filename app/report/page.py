"""The summary as one page: a file of its own that loads nothing, not even from beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import jinja2

from . import plot, rows, summary
from .console import figure
from .rows import EAGER, SERVING, Row, Timing

if TYPE_CHECKING:
    from .summary import Summary

MAX_SERIES = len(plot.COLOURS)  # more in one plot can't be told apart
MAX_LINES = 1500  # of the table: a page stays under 1 MB, and the CSV file has the rest
MAX_MODELS = 12  # with plots
MAX_PHASES = 7
MIB = 2**20

Found = tuple[Row, str, Timing]
Cell = str | tuple[float | None, str]  # a number with how it is shown


@dataclass(frozen=True)
class Figure:
    """A picture; `legend` names its series in order, `folded` hides it until it is asked for."""

    title: str
    note: str
    svg: str
    legend: Sequence[str] = ()
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A model on a machine: its answers and its pictures."""

    title: str
    answers: list[str]
    figures: list[Figure]


@dataclass(frozen=True)
class Line:
    """A line of the table: one batch size of a run."""

    row: Row
    batch: str
    cells: dict[str, Cell]


def html(found: Summary) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    script = environment.get_template("page.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    lines = [
        Line(row, batch, _cells(row, batch, row.batches.get(batch)))
        for row in found.rows
        for batch in row.batches or [""]
    ]
    return environment.get_template("page.html.j2").render(
        found=found,
        sections=list(_sections(found)),
        lines=lines[:MAX_LINES],
        num_lines=len(lines),
        script=script,
        digest=digest,  # the page's policy runs this script and no other, whatever a record holds
        choices=_choices(lines),
        counted=summary.counted(found),
        machine_name=summary.machine_name,
        reason=summary.reason,
        colours=plot.COLOURS,
    )


def _cells(row: Row, batch: str, timing: Timing | None) -> dict[str, Cell]:
    """The table's columns and what this line has in them; a number is sorted by its value."""
    latency, interval = (timing.latency_ms, timing.interval or [None, None]) if timing else (None, [None, None])
    calls, seen = timing.break_even_calls if timing else None, row.evaluation
    distance = None if row.rel_l2 is None else f"{row.rel_l2:.1e}"
    return {
        "Job": row.job,
        "Model": row.model or "",
        "Configuration": row.label,
        "Status": row.status,
        "Machine": "" if row.machine is None else str(row.machine + 1),
        "Cache": row.cache or "",
        "Rung": (timing.rung if timing else row.rung) or "",
        "Verified": {True: "yes", False: "no", None: ""}[row.verified],
        "Batch": (int(batch) if batch.isdecimal() else None, batch),
        "p50 ms": _number(latency.p50 if latency else None),
        "p99 ms": _number(latency.p99 if latency else None),
        "Speed-up": _number(timing.speedup if timing else None),
        "Low": _number(interval[0]),
        "High": _number(interval[1]),
        "Rows a second": _number(timing.throughput_per_s if timing else None),
        "Break-even calls": (calls, "" if calls is None else f"{calls:,}"),
        "Make, s": _number(row.make_s),
        "Start, s": _number(row.start_s),
        "Rel. L2": (row.rel_l2, distance or ""),
        "Metric drop": _number(seen.metric_drop if seen else None),
        "Disagree": _number(seen.disagreement if seen else None),
        "Peak, MiB": _number((row.memory.rss_peak_bytes or 0) / MIB or None if row.memory else None),
        "Artifact, MiB": _number((row.memory.artifact_bytes or 0) / MIB or None if row.memory else None),
        "Notes": summary.reason(row) if row.status != "ok" else "; ".join(row.fallbacks),
        "Overrides": " ".join(row.overrides),
    }


def _number(value: float | None) -> Cell:
    return value, "" if value is None else figure(value)


def _choices(lines: Sequence[Line]) -> dict[str, list[str]]:
    """What the table can be narrowed to."""
    values = {
        "model": {line.row.model or "" for line in lines},
        "batch": {line.batch for line in lines},
        "status": {line.row.status for line in lines},
    }
    return {name: sorted(filter(None, found), key=rows.by_size) for name, found in values.items()}


def _sections(found: Summary) -> Iterator[Section]:
    def key(row: Row) -> tuple[int, str]:
        return -1 if row.machine is None else row.machine, row.model or ""

    shown = sorted((row for row in found.rows if row.status == "ok" and row.model), key=key)
    for number, ((machine, model), group) in enumerate(groupby(shown, key)):
        where = f", machine {machine + 1}" if len(found.machines) > 1 else ""
        answers = [answer.sentence for answer in found.answers if (answer.machine, answer.model) == (machine, model)]
        figures = list(_figures(list(group))) if number < MAX_MODELS else []
        yield Section(f"{model}{where}", answers, figures)


def _figures(runs: list[Row]) -> Iterator[Figure]:
    """Everything about one model on one machine."""
    timings = list(rows.newest(runs))
    if timings:
        yield from _latencies(timings)
    # at the batch size that most runs measured, and of those the largest
    batches = [batch for _, batch, _ in timings]
    batch = max(batches, key=lambda each: (batches.count(each), rows.by_size(each)), default="")
    served = [(row, each) for row, size, each in timings if size == batch and each.runner in SERVING and each.speedup]
    yield from _scatter(
        f"Compile time against speed-up, batch {batch}",
        "Right and low is good: much gained for little compiling. Break-even calls are in the table.",
        ("speed-up over eager fp32", "making the artifact, s"),
        {row.label: [(timing.speedup or 0.0, row.make_s)] for row, timing in served if row.make_s},
        log=(False, True),
    )
    yield from _scatter(
        f"Accuracy against speed, batch {batch}",
        "Right and low is good. The distance is the worst case's relative L2 from the verification's reference.",
        ("speed-up over eager fp32", "relative L2"),
        {row.label: [(timing.speedup or 0.0, row.rel_l2)] for row, timing in served if row.rel_l2},
        log=(False, True),
    )
    yield from _scatter(
        "Metric against speed, over the evaluation's rows",
        "Right and low is good: rows a second over eager's, and how far the metric drops.",
        ("rows a second over eager fp32", "metric drop"),
        dict(_evaluated(runs)),
    )
    yield from _starts([row for row in runs if row.start_s is not None])
    yield from _bars(
        "Peak memory of the process",
        "Artifact and device memory are in the CSV file.",
        {
            row.label: {"resident": row.memory.rss_peak_bytes / MIB}
            for row in runs
            if row.memory and row.memory.rss_peak_bytes
        },
        "MiB",
    )


def _latencies(timings: list[Found]) -> Iterator[Figure]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row, batch, timing in sorted(timings, key=lambda item: item[2].latency_ms.p50):
        if batch.isdecimal():
            lines.setdefault(row.label, []).append((int(batch), timing.latency_ms.p50))
    if any(timing.runner in SERVING for _, _, timing in timings) and not any(
        row.mode == EAGER for row, _, _ in timings
    ):
        eager = {batch: timing.eager_ms.p50 for _, batch, timing in timings if timing.eager_ms}
        lines["eager fp32"] = [(int(batch), p50) for batch, p50 in eager.items() if batch.isdecimal()]
    shown = {name: sorted(line) for name, line in list(lines.items())[:MAX_SERIES]}
    if any(shown.values()):
        drawn = plot.line_plot("Latency by batch size", "batch size", "median, ms", shown, log=True, bare=True)
        yield Figure(
            "Latency by batch size", f"Medians; both axes are logarithmic.{_left_out(lines)}", drawn, list(shown)
        )
    for number, batch in enumerate(sorted({batch for _, batch, _ in timings}, key=rows.by_size)):
        fastest = sorted((item for item in timings if item[1] == batch), key=lambda item: item[2].latency_ms.p50)
        taken = {row.label: row.samples(timing.runner, batch) for row, _, timing in fastest[:MAX_SERIES]}
        values = {label: samples.values_s * 1e3 for label, samples in taken.items() if samples is not None}
        if values:
            title = f"Distribution of latencies, batch {batch}"
            note = f"Every measured call, up to the slowest p99; the line is the median.{_left_out(fastest)}"
            yield Figure(title, note, plot.distributions(title, values, "ms"), folded=number > 0)


def _starts(runs: list[Row]) -> Iterator[Figure]:
    """Cold against warm, and the phases of every run."""
    made = [row for row in runs if row.make_s is not None]
    cold_and_warm = {}
    for row in made:
        spared = row.cache is not None and row.cache.endswith("-hit") and "compile" not in row.phases_s
        rest_s = (row.start_s or 0.0) - (0.0 if spared else row.make_s or 0.0)
        cold_and_warm[f"{row.label} ({row.cache}, job {row.job})"] = {
            "every start": max(rest_s, 0.0),
            "making the artifact, cold only": row.make_s or 0.0,
        }
    yield from _bars(
        "Cold start against warm",
        "Up to the first output. A warm start pays the first part; at a hit the second is what making it once took.",
        cold_and_warm,
        "s",
    )
    total: dict[str, float] = {}
    for row in runs:
        for name, seconds in row.phases_s.items():
            total[name] = total.get(name, 0.0) + seconds
    largest = sorted(total, key=total.__getitem__, reverse=True)[:MAX_PHASES]
    phases = {}
    for row in runs:
        parts = {name: row.phases_s.get(name, 0.0) for name in total if name in largest}
        parts["other"] = sum(row.phases_s.values()) - sum(parts.values())
        phases[f"{row.label} ({row.cache or 'no cache'}, job {row.job})"] = parts
    yield from _bars("Phases", "Where each run's time went, measuring included.", phases, "s")


def _evaluated(runs: list[Row]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    for row in runs:
        if row.evaluation and row.evaluation.metric_drop is not None:
            served, eager = row.evaluation.rows_per_s["compiled"], row.evaluation.rows_per_s["eager"]
            if served and eager:
                yield row.label, [(served / eager, row.evaluation.metric_drop)]


def _scatter(
    title: str, note: str, axes: tuple[str, str], points: Any, log: tuple[bool, bool] | bool = False
) -> Iterator[Figure]:
    shown = dict(list(points.items())[:MAX_SERIES])
    if shown:
        svg = plot.line_plot(title, *axes, shown, log=log, dots=True, bare=True)
        yield Figure(title, note + _left_out(points), svg, list(shown))


def _bars(title: str, note: str, bars: dict[str, dict[str, float]], unit: str) -> Iterator[Figure]:
    if bars:
        shown = dict(list(bars.items())[: 2 * MAX_SERIES])
        names = list(dict.fromkeys(name for parts in shown.values() for name in parts))
        note += _left_out(bars, 2 * MAX_SERIES)
        yield Figure(title, note, plot.bars(title, shown, unit), names if len(names) > 1 else ())


def _left_out(items: Sequence[Any] | dict[str, Any], most: int = MAX_SERIES) -> str:
    return f" The first {most} of {len(items)}; the rest are in the table." if len(items) > most else ""
