"""What the terminal shows at the end of a run: one table, and under it what else a reader must know."""

from __future__ import annotations

import functools
import itertools
import math
import re
import textwrap
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ..lookup import ago

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import Console

    from ..record import CacheInfo, ModeChoice, PrecisionChoice, Record, WeightsChoice
    from ..verdict import VerifyInfo

PERCENTILES = ("p50", "p90", "p99")
# Which percentiles, and whether the speed-up's interval, from rich to poor: the first that fits is shown.
LAYOUTS = ((PERCENTILES, True), (PERCENTILES, False), (("p50", "p99"), False), (("p50",), False))
MAX_WARNINGS = 4  # a noisy machine has one for every figure
SHORTEST_PHASE_S = 1e-3
STYLES = {"failed": "bold red", "fallback": "yellow", "warning": "yellow"}
LABEL_WIDTH = 10
GAP = 2
UNBROKEN = 20  # a cell of a table that is no longer stays on one line
# Paths and digests are for copying: where there is no room for one, the terminal may break it, but no newline.
wrap = functools.partial(textwrap.wrap, break_long_words=False, break_on_hyphens=False)
LONGEST_CELL = 200
NARROWEST = 40
SEPARATOR = " · "
# `textwrap` leaves a number and its unit together with it; it is printed as a plain space.
NBSP = "\N{NO-BREAK SPACE}"


def render(record: Record, console: Console) -> None:
    """Print the run's figures, or, when it failed, only the stage and the reason."""
    if record.result is not None:
        _print_rows(record.result, console)
        return
    if record.status == "failed" and record.evaluation is None:
        error = record.error
        reason = f"at {error.stage}: {error.message}" if error else "for an unknown reason"
        print_note(console, "failed", reason)
        return
    unit = "latency in ms" if record.latency_ms else None
    title = (record.model, record.mode, record.precision, record.device, unit)
    _print_line(console, Text(SEPARATOR.join(part for part in title if part), style="bold"))
    if record.latency_ms:
        console.print()
        console.print(_fitting_table(record, console))
    if record.evaluation:
        from . import evaluation

        console.print()
        console.print(evaluation.table(record.evaluation, record.rung))
    console.print()
    if record.evaluation:
        for label, text in evaluation.notes(record.evaluation):
            print_note(console, label, text)
    for label, text in _notes(record):
        print_note(console, label, text)


def _print_rows(rows: list[dict[str, Any]], console: Console) -> None:
    """What a task found: several rows as a table, one as a list of its fields, none as such."""
    if not rows:
        _print_line(console, Text("nothing"))
    if len(rows) == 1:
        fields = list(_fields(rows[0]))
        width = max(len(label) for label, _ in fields) + GAP
        for label, text in fields:
            print_note(console, label, text, width)
    if len(rows) > 1:
        plain = [name for name in rows[0] if not any(isinstance(row[name], dict | list) for row in rows)]
        columns = [[name.replace("_", " "), *(_cell(name, row[name]) for row in rows)] for name in plain]
        for number, line in enumerate(_lines(columns, console.width)):
            _print_line(console, Text(line, style="" if number else "bold"))


def _fields(value: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    """Label and text of each field; what is nested deeper than once is a heading and lines of its own."""
    for name, item in value.items():
        label = indent + name.replace("_", " ")
        if isinstance(item, dict) and any(isinstance(each, dict) for each in item.values()):
            yield label, ""
            yield from _fields(item, f"{indent}  ")
        elif isinstance(item, dict) and item:
            yield label, _listed([f"{key} {_cell(key, each)}".replace("_", " ") for key, each in item.items()])
        else:
            yield label, _cell(name, item)


def _lines(columns: list[list[str]], width: int) -> Iterator[str]:
    """Rows of a table that breaks between words only; texts that find no room side by side share a column."""
    least = [max(len(part) for cell in column for part in _unbroken(cell)) for column in columns]
    most = [max(map(len, column)) for column in columns]
    spare = width - sum(least) - GAP * (len(columns) - 1)
    texts = [column for column, longest in zip(columns, most, strict=True) if longest > UNBROKEN]
    if spare < 0 and len(texts) > 1:
        shared = ["\n".join(cell for cell in cells if cell != "-") for cells in zip(*texts, strict=True)]
        yield from _lines([*(column for column in columns if column not in texts), shared], width)
        return
    wants = [high - low for low, high in zip(least, most, strict=True)]
    share = min(1.0, max(0, spare) / (sum(wants) or 1))
    widths = [low + int(want * share) for low, want in zip(least, wants, strict=True)]
    if spare < 0:  # a word too long for any line sticks out alone
        widest = widths.index(max(widths))
        widths[widest] = max(UNBROKEN, widths[widest] + spare)
    for cells in zip(*columns, strict=True):
        wrapped = [
            [line for part in cell.split("\n") for line in wrap(part, size)]
            for cell, size in zip(cells, widths, strict=True)
        ]
        for parts in itertools.zip_longest(*wrapped, fillvalue=""):
            yield (" " * GAP).join(part.ljust(size) for part, size in zip(parts, widths, strict=True)).rstrip()


def _unbroken(cell: str) -> list[str]:
    """The parts that stay whole: short lines, and the words of longer ones."""
    return [part for line in cell.split("\n") for part in ([line] if len(line) <= UNBROKEN else line.split())]


def _cell(name: str, value: Any) -> str:
    """A value as a reader wants it; long ones are in the record, and in full with `output=json`."""
    text = str(value)
    if value is None or value == {}:
        text = "-"
    elif name in {"digest", "object", "checksum"}:
        text = text[:12]
    elif name in {"bytes", "size_limit_bytes"}:
        text = f"{value / 1e6:,.1f} MB"
    elif name == "last_used":
        text = ago(time.time() - value)
    elif name == "created":
        text = ago(time.time() - datetime.fromisoformat(value).timestamp())
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, float):
        text = figure(value)
    return text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}… (in full with output=json)"


def figure(value: float | None) -> str:
    """Three significant digits, without an exponent; `-` for a figure that there isn't."""
    if value is None:
        return "-"
    rounded = float(f"{value:.3g}")
    decimals = 2 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded:,.{max(0, decimals)}f}"


def _fitting_table(record: Record, console: Console) -> Table:
    unbounded = console.options.update_width(1000)
    for percentiles, with_interval in LAYOUTS:
        table = _table(_columns(record, percentiles, with_interval))
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
    return table


def _table(columns: list[list[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for header, *_ in columns:
        table.add_column(header, no_wrap=True)
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*row)
    return table


def _columns(record: Record, percentiles: tuple[str, ...], with_interval: bool) -> list[list[str]]:
    """Header and cells of every column; each runner's percentiles share one."""
    latencies = record.latency_ms or {}
    runners = sorted(name for name in latencies if name.startswith("eager"))
    if record.rung != "eager":
        runners += [name for name in latencies if name not in runners]
    batches = sorted({batch for name in runners for batch in latencies[name]}, key=int)

    columns = [_column("", [["batch"], *([batch] for batch in batches)])]
    for name in runners:
        # Eager in another precision stands there to have its median compared; more would crowd the table.
        shown = percentiles[:1] if name.startswith("eager_") else percentiles
        cells = [[figure(getattr(latencies[name].get(batch), each, None)) for each in shown] for batch in batches]
        columns.append(_column(name.replace("_", " "), [list(shown), *cells]))
    if record.speedup and record.rung != "eager":
        speedups = [[_speedup(record, batch, with_interval)] for batch in batches]
        columns.append(_column("", [["speed-up"], *speedups]))
    if record.throughput_per_s:
        rates = [[figure(record.throughput_per_s.get(batch))] for batch in batches]
        columns.append(_column("inferences", [["a second"], *rates]))
    return columns


def _column(title: str, rows: list[list[str]]) -> list[str]:
    """The rows' cells, aligned and joined: several columns under one title, which rich can't say."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    width = max(len(title), len(lines[0]))
    header, *cells = [line.rjust(width) for line in lines]
    return [f"{title.center(width)}\n{header}", *cells]


def _speedup(record: Record, batch: str, with_interval: bool) -> str:
    ratio = (record.speedup or {}).get(batch)
    if ratio is None:
        return "-"
    interval = (record.speedup_interval or {}).get(batch) if with_interval else None
    return f"{figure(ratio)}x" + (f" ({'-'.join(map(figure, interval))})" if interval else "")


def _notes(record: Record) -> Iterator[tuple[str, str]]:
    """Label and text of every line under the table."""
    yield from _serving(record)
    if record.speedup_same_precision:
        same = [f"{figure(ratio)}x (batch {batch})" for batch, ratio in record.speedup_same_precision.items()]
        yield "speed-up", f"against eager in {record.precision}: {_listed(same)}"
    if record.tuned:
        yield "buckets", _tuned(record.tuned)
    if record.monitor and (graphs := record.monitor.get("graphs")):
        yield "graphs", _graphs(graphs)
    if record.verify:
        yield "verify", _verdict(record.verify)
        if record.verify.served:
            sizes = [f"{dim} {low} to {high}" for dim, (low, high) in record.verify.served.items()]
            yield "sizes", f"compared with eager: {_listed(sizes)}"
    if phases := _phases(record.phases_s):
        yield "time", _listed(phases)
    if record.cache:
        yield "cache", _outcome(record.cache)
    more = [f"and {len(record.warnings) - MAX_WARNINGS} more, in the record"]
    for warning in record.warnings[:MAX_WARNINGS] + more * (len(record.warnings) > MAX_WARNINGS):
        yield "warning", warning
    if record.run_dir:
        yield "record", str(Path(record.run_dir) / "record.json")


def _serving(record: Record) -> Iterator[tuple[str, str]]:
    if record.mode_choice:
        yield "mode", _mode(record.mode_choice)
    if record.precision_choice:
        yield "precision", _precision(record.precision_choice)
    if record.weights_choice:
        yield "weights", _weights(record.weights_choice)
    if record.rung:
        yield "rung", _rungs(record.rung, record.rungs or {})
    for step in record.fallbacks:
        yield "fallback", f"{step.from_} -> {step.to} at {step.stage}: {step.reason}"


def _mode(choice: ModeChoice) -> str:
    both = len({each.precision for each in choice.candidates}) > 1
    others, pays = [], (choice.kept, choice.precision) != ("eager", "fp32")
    for each in choice.candidates:
        name = f"{each.mode} in {each.precision}" if both else each.mode
        if (each.mode, each.precision) == (choice.kept, choice.precision):
            speed = f"{figure(each.speedup)}x eager" if pays else "no compiled one is faster"
            kept = f"{name}, {speed} at batch {choice.batch}"
        else:
            others.append(f"{name} {each.reason or f'{figure(each.speedup)}x'}")
    runs = f"from {choice.num_runs} verified run{'' if choice.num_runs == 1 else 's'}"
    when = "measured now" if choice.evidence == "measured" else f"{runs}, the last of {(choice.last_run or '')[:10]}"
    return f"auto: {kept}, {when} ({'; '.join(others)})"


def _precision(choice: PrecisionChoice) -> str:
    timed = [f"{each.precision} {figure(each.p50_ms)} ms" for each in choice.candidates if each.p50_ms is not None]
    parts = [f"{choice.kept} kept"]
    if timed:
        parts.append(f"at batch {choice.batch}: {', '.join(timed)}")
    parts += [f"{each.precision} refused: {each.reason}" for each in choice.candidates if not each.passed]
    return f"{'; '.join(parts)} (judged by {'the data' if choice.judge == 'evaluation' else choice.judge})"


def _weights(choice: WeightsChoice) -> str:
    found = [f"{each.weights} {each.reason or f'{figure(each.p50_ms)} ms'}" for each in choice.candidates]
    return f"auto: {choice.kept} kept; at batch {choice.batch}: {', '.join(found)}"


def _phases(seconds: Mapping[str, float]) -> list[str]:
    return [
        f"{name.replace('_', ' ')} {_duration(spent)}" for name, spent in seconds.items() if spent > SHORTEST_PHASE_S
    ]


def _rungs(best: str, rungs: Mapping[str, str]) -> str:
    batches: dict[str, list[str]] = {}
    for batch, rung in rungs.items():
        batches.setdefault(rung, []).append(batch)
    if batches.keys() <= {best}:
        return best
    return _listed([f"{rung} (batch {', '.join(at)})" for rung, at in batches.items()])


def _tuned(row: Mapping[str, Any]) -> str:
    chosen, today = row["chosen"], row["today"]
    sizes, before = (", ".join(map(str, each["buckets"])) for each in (chosen, today))
    saved = f"{abs(row['saving_percent']):.0f} % {'more' if row['saving_percent'] < 0 else 'less'} than {before}"
    parts = [
        f"{sizes}: {figure(chosen['expected_ms'])} ms a call expected, {saved}",
        f"{chosen['hit_rate']:.0%} of calls are a bucket",
        f"{chosen['padding_waste']:.0%} of rows padding",
        f"calls by batch {', '.join(f'{size}: {calls:,}' for size, calls in row['histogram'].items())}",
    ]
    return _listed(parts)


def _graphs(graphs: Mapping[str, Any]) -> str:
    captured = f"batch {', '.join(graphs['captured'])} in {_duration(graphs['seconds'])}"
    parts = [captured, f"{_cell('bytes', graphs['bytes'])} of device memory"]
    if graphs["hit_rate"] is not None:
        parts.append(f"{graphs['hit_rate']:.0%} of calls replayed")
    if graphs["padding_waste"]:
        parts.append(f"{graphs['padding_waste']:.0%} of rows padding")
    return _listed([*parts, *(f"{count} failures: {reason}" for reason, count in graphs["failures"].items())])


def _verdict(verify: VerifyInfo) -> str:
    # of an artifact that serves, what failed is left out by its sizes
    judged = [case for case in verify.cases if case.passed] if verify.passed else verify.cases
    num_failed = sum(not case.passed for case in judged)
    cases = f"{len(judged)} case{'' if len(judged) == 1 else 's'}"
    text = f"{'passed' if verify.passed else 'failed'}: {f'{num_failed} of ' if num_failed else ''}{cases}"
    if not judged:
        return text
    worst = max(judged, key=lambda case: (not case.passed, math.inf if case.rel_l2 is None else case.rel_l2))
    distance = "not finite" if worst.rel_l2 is None else f"{worst.rel_l2:.1e}"
    own = "" if worst.eager_rel_l2 is None else f", eager's own {worst.eager_rel_l2:.1e}"
    return f"{text}, worst {distance} against {verify.reference}{own}, limit {worst.limit:.1e}"


def _outcome(cache: CacheInfo) -> str:
    saved = f", saved {_duration(cache.seconds_saved)}" if cache.seconds_saved else ""
    reasons = f": {'; '.join(cache.miss_reasons)}" if cache.miss_reasons else ""
    return f"{cache.outcome}{saved}{reasons}"


def _duration(seconds: float) -> str:
    return f"{figure(seconds)} s" if seconds >= 1 else f"{figure(seconds * 1e3)} ms"


def _listed(parts: list[str]) -> str:
    """The parts in a row, broken between lines only after a separator."""
    return SEPARATOR.join(part.replace(" ", NBSP) for part in parts).replace(" ·", f"{NBSP}·")


def print_note(console: Console, label: str, text: str, width: int = LABEL_WIDTH) -> None:
    """Print a label, and a text beside it that may be long, or coloured by a compiler."""
    lines = wrap(
        re.sub(r"[ \t\r\n]+", " ", Text.from_ansi(text).plain),  # compilers colour their errors
        max(console.width, NARROWEST),
        initial_indent=label.ljust(width),
        subsequent_indent=" " * width,
    )
    line = Text("\n".join(lines).replace(NBSP, " ") or label)
    line.stylize(STYLES.get(label, "cyan"), 0, len(label))
    _print_line(console, line)


def _print_line(console: Console, line: Text) -> None:
    """Print `line` as it stands: `[batch, 64]` is a shape, not markup, and the terminal may be ASCII only."""
    line.plain = line.plain.encode(console.encoding, "replace").decode(console.encoding)
    console.print(line, soft_wrap=True)
