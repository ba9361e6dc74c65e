"""The summary as one page: a file of its own that loads nothing, not even from beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from . import plot, rows, summary
from .console import figure
from .rows import Row, Timing

if TYPE_CHECKING:
    from .summary import Answer, Summary

MAX_SERIES = len(plot.COLOURS)  # more in one plot can't be told apart
MAX_BYTES = 1_000_000  # the CSV file has the rest
MAX_LINES = 2000  # of the table
LONGEST = 300  # a compiler's message may be of pages; the CSV file and the record have all
MAX_MODELS = 12  # with plots
MAX_PHASES = 7
MIB = 2**20

Found = tuple[Row, str, Timing]
Points = list[tuple[float, float]]
Cell = str | tuple[float | None, str]  # a number with how it is shown


@dataclass(frozen=True)
class Figure:
    """A picture; `legend` names its series by number."""

    title: str
    note: str
    svg: str
    legend: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A model on a machine: its answers and its pictures."""

    title: str
    answers: list[Answer]
    figures: list[Figure]


@dataclass(frozen=True)
class Line:
    """A line of the table: one batch size of a run."""

    row: Row
    batch: str
    cells: dict[str, Cell]


def html(found: Summary) -> str:
    """The page; of what would make it larger than `MAX_BYTES` the first part."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["short"] = lambda text: text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
    script = environment.get_template("page.js").render()
    template = environment.get_template("page.html.j2")
    lines = [
        Line(row, batch, _cells(row, batch, row.batches.get(batch)))
        for row in found.rows
        for batch in row.batches or [""]
    ]
    sections = list(_sections(found))
    shown = {
        "found": found,
        "num_lines": len(lines),
        "script": script,
        # the page's policy runs this script and no other, whatever a record holds
        "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "choices": _choices(lines),
        "counted": summary.counted(found),
        "machine_name": summary.machine_name,
        "colours": plot.COLOURS,
    }
    text, share = "", 1
    while not text or (len(text.encode(errors="replace")) > MAX_BYTES and share < MAX_LINES):
        text = template.render(
            **shown,
            lines=lines[: MAX_LINES // share],
            failed=found.failed[: MAX_LINES // share],
            sections=sections[: MAX_LINES // share],
            num_drawn=MAX_MODELS // share,
        )
        share *= 2
    return text


def _cells(row: Row, batch: str, timing: Timing | None) -> dict[str, Cell]:
    """The table's columns and what this line has in them; a number is sorted by its value."""
    latency = timing.latency_ms if timing else None
    low, high = timing.interval if timing and timing.interval else (None, None)
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
        "Low": _number(low),
        "High": _number(high),
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
    values: dict[str, set[str]] = {
        "model": {line.row.model or "" for line in lines},
        "batch": {line.batch for line in lines},
        "status": {line.row.status for line in lines},
    }
    return {name: sorted((value for value in found if value), key=rows.by_size) for name, found in values.items()}


def _sections(found: Summary) -> Iterator[Section]:
    def key(row: Row) -> tuple[int, str]:
        return -1 if row.machine is None else row.machine, row.model or ""

    shown = sorted((row for row in found.rows if row.status == "ok" and row.model), key=key)
    for number, ((machine, model), group) in enumerate(groupby(shown, key)):
        where = f", machine {machine + 1}" if len(found.machines) > 1 else ""
        answers = [answer for answer in found.answers if (answer.machine, answer.model) == (machine, model)]
        figures = list(_figures(list(group))) if number < MAX_MODELS else []  # drawing is what takes time
        yield Section(f"{model}{where}", answers, figures)


def _figures(runs: list[Row]) -> Iterator[Figure]:
    """Everything about one model on one machine; a configuration has the same colour in all plots of lines."""
    timings = list(rows.newest(runs))
    best = dict.fromkeys((row.label for row in runs), 0.0)
    for row, _, timing in timings:
        best[row.label] = max(best[row.label], timing.speedup or 1.0)
    order = sorted(best, key=best.__getitem__, reverse=True)
    medians, speedups = _by_batch(timings)
    yield from _lines(
        "Latency by batch size",
        "Medians; both axes are logarithmic. A call takes longer beside others than alone, so compare speed-ups.",
        ("batch size", "median, ms"),
        order,
        medians,
        log=True,
    )
    yield from _lines(
        "Speed-up by batch size",
        "Over eager in fp32, measured in turn with it.",
        ("batch size", "speed-up over eager fp32"),
        order,
        speedups,
        log=(True, False),
    )
    yield from _distributions(timings, order)
    # at the batch size that most runs measured, and of those the largest
    batches = [batch for _, batch, _ in timings]
    batch = max(batches, key=lambda each: (batches.count(each), rows.by_size(each)), default="")
    served = [(row, each.speedup) for row, size, each in timings if size == batch and each.speedup]
    yield from _lines(
        f"Compile time against speed-up, batch {batch}",
        "Right and low is good: much gained for little compiling. Break-even calls are in the table.",
        ("speed-up over eager fp32", "making the artifact, s"),
        order,
        {row.label: [(ratio, row.make_s)] for row, ratio in served if row.make_s},
        log=(False, True),
        dots=True,
    )
    yield from _lines(
        f"Accuracy against speed, batch {batch}",
        "Right and low is good. The distance is the worst case's relative L2 from the verification's reference.",
        ("speed-up over eager fp32", "relative L2"),
        order,
        {row.label: [(ratio, row.rel_l2)] for row, ratio in served if row.rel_l2},
        log=(False, True),
        dots=True,
    )
    yield from _lines(
        "Metric against speed, over the evaluation's rows",
        "Right and low is good: rows a second over eager's, and how far the metric drops.",
        ("rows a second over eager fp32", "metric drop"),
        order,
        dict(_evaluated(runs)),
        dots=True,
    )
    yield from _starts([row for row in runs if row.start_s is not None])
    yield from _bars(
        "Peak memory of the process",
        "The artifact's size is in the table.",
        {
            row.label: {"resident": row.memory.rss_peak_bytes / MIB}
            for row in runs
            if row.memory and row.memory.rss_peak_bytes
        },
        "MiB",
    )


def _by_batch(timings: Sequence[Found]) -> tuple[dict[str, Points], dict[str, Points]]:
    """Medians and speed-ups of each configuration, as points over the batch size."""
    medians: dict[str, Points] = {}
    speedups: dict[str, Points] = {}
    for row, batch, timing in timings:
        if batch.isdecimal():
            medians.setdefault(row.label, []).append((int(batch), timing.latency_ms.p50))
            if timing.speedup:
                speedups.setdefault(row.label, []).append((int(batch), timing.speedup))
    return medians, speedups


def _distributions(timings: Sequence[Found], order: Sequence[str]) -> Iterator[Figure]:
    for size in sorted({batch for _, batch, _ in timings}, key=rows.by_size):
        found = {row.label: (row, timing) for row, batch, timing in timings if batch == size}
        taken = {label: found[label][0].samples(found[label][1].runner, size) for label in order if label in found}
        values = {
            label: samples.values_s * 1e3 if (samples := taken.get(label)) else np.empty(0)
            for label in order[:MAX_SERIES]
        }
        if any(each.size for each in values.values()):
            title = f"Distribution of latencies, batch {size}"
            note = f"Every measured call, up to the slowest p99; the line is the median.{_left_out(order)}"
            yield Figure(title, note, plot.distributions(title, values, "ms"))


def _starts(runs: list[Row]) -> Iterator[Figure]:
    """Cold against warm, and the phases of every run."""
    made = [row for row in runs if row.make_s is not None]
    cold_and_warm = {}
    for row in made:
        rest_s = (row.start_s or 0.0) - (row.make_s or 0.0 if "compile" in row.phases_s else 0.0)
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
            served, eager = (row.evaluation.rows_per_s.get(name) for name in ("compiled", "eager"))
            if served and eager:
                yield row.label, [(served / eager, row.evaluation.metric_drop)]


def _lines(
    title: str,
    note: str,
    axes: tuple[str, str],
    order: Sequence[str],
    lines: Mapping[str, Points],
    *,
    log: bool | tuple[bool, bool] = False,
    dots: bool = False,
) -> Iterator[Figure]:
    """A plot of what there is, if there is anything."""
    shown = {name: sorted(lines.get(name, [])) for name in order[:MAX_SERIES]}
    if any(shown.values()):
        svg = plot.line_plot(title, *axes, shown, log=log, dots=dots, bare=True)
        legend = {number: name for number, name in enumerate(shown) if shown[name]}
        yield Figure(title, note + _left_out(order), svg, legend)


def _bars(title: str, note: str, bars: dict[str, dict[str, float]], unit: str) -> Iterator[Figure]:
    if bars:
        shown = dict(list(bars.items())[: 2 * MAX_SERIES])
        names = dict.fromkeys(name for parts in shown.values() for name in parts)
        legend = dict(enumerate(names)) if len(names) > 1 else {}
        yield Figure(title, note + _left_out(bars, 2 * MAX_SERIES), plot.bars(title, shown, unit), legend)


def _left_out(items: Collection[Any], most: int = MAX_SERIES) -> str:
    return f" The first {most} of {len(items)}; the rest are in the table." if len(items) > most else ""
