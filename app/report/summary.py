"""Summary: what many runs come to. First the answer, then every row, in four files and on the terminal."""

from __future__ import annotations

import csv
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from .. import __version__, structured
from ..config import SERVING
from ..errors import OutputError
from ..measure.statistics import Speedup, quotient
from ..record import Memory
from . import rows as reading
from .console import figure, print_note
from .rows import Row, Timing

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
MAX_LINES = 12  # of answers and of failures on the terminal; the files have all
# A line of CSV has the fields of the job, then those of one of its batch sizes.
JOB_FIELDS = (
    *(
        "job",
        "status",
        "task",
        "model",
        "label",
        "mode",
        "precision",
        "weights",
        "device",
        "machine",
        "rung",
        "cache",
    ),
    *("verified", "rel_l2", "make_s", "start_s", "seconds_saved"),
)
CSV_FIELDS = (
    *(*JOB_FIELDS, "rss_peak_bytes", "artifact_bytes", "device_peak_bytes", "overrides", "stage", "reason"),
    *("batch", "runner", "p50_ms", "p90_ms", "p99_ms", "mean_ms", "stdev_ms", "min_ms", "count", "eager_p50_ms"),
    *("speedup", "speedup_low", "speedup_high", "throughput_per_s", "break_even_calls"),
)
MEASURED = ("p50 ms", "p99 ms", "speed-up", "95 %", "break-even calls")  # a line's columns in markdown


@dataclass(frozen=True)
class Answer:
    """The fastest configuration at one batch size of a model, of those that passed verification.

    Fastest is what gains most over the eager that was measured in turn with it: the same call takes longer beside
    others than alone, so milliseconds of two runs don't compare. `lead` is the quotient of the two speed-ups, with
    its 95 % interval; null where a record has none.
    """

    machine: int
    model: str
    batch: str
    job: str
    label: str
    timing: Timing
    runner_up: str | None
    lead: Speedup | None
    within_noise: bool | None
    num_candidates: int
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What many runs come to; `machines` are their environments, and no figure of one meets another's."""

    schema: int = SCHEMA
    app_version: str = __version__
    directories: list[str]
    commands: list[str]
    counts: dict[str, int]
    cache: dict[str, int]
    seconds_saved: float
    machines: list[dict[str, Any]]
    warnings: list[str]
    answers: list[Answer]
    rows: list[Row]

    @property
    def failed(self) -> list[Row]:
        """The rows of jobs that did not come to a good end."""
        return [row for row in self.rows if row.status not in ("ok", "running")]


def gather(directories: Sequence[Path]) -> Summary:
    """Read all records in and below the directories, and what the sweeps among them set out to do.

    Raises:
        ValueError: a directory isn't there, or holds no record.
    """
    rows, doubts = reading.read(directories)
    rows = reading.labelled(rows, reading.varied(rows))
    rows, machines = reading.located(rows, lambda facts: {name: facts[name] for name in facts if name != "device"})
    rows = [replace(row, environment=None) for row in rows]  # once is enough in the file
    return Summary(
        directories=[str(directory) for directory in directories],
        commands=list(dict.fromkeys(filter(None, map(_command, rows)))),
        counts=dict(Counter(row.status for row in rows)),
        cache=dict(Counter(row.cache for row in rows if row.cache)),
        seconds_saved=sum(row.seconds_saved or 0.0 for row in rows),
        machines=machines,
        warnings=doubts,
        answers=list(_answers(rows)),
        rows=rows,
    )


def write(summary: Summary, folder: Path) -> None:
    """Write `summary.json`, `.csv`, `.md` and `.html` into the folder.

    Raises:
        OutputError: it can't be written.
    """
    from . import page  # a terminal's line needs no template engine

    texts = {
        "json": json.dumps(structured.encode(summary), indent=2, allow_nan=False) + "\n",
        "md": markdown(summary),
        "html": page.html(summary),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            (folder / f"summary.{suffix}").write_text(text, encoding="utf-8", errors="replace")
        with (folder / "summary.csv").open("w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.DictWriter(file, CSV_FIELDS)
            writer.writeheader()
            writer.writerows(line for row in summary.rows for line in _lines(row))
    except OSError as error:
        raise OutputError(f"can't write the summary into {folder}: {error.strerror or error}") from error


def render(summary: Summary, console: Console) -> None:
    """Print the answers, what failed, and the counts."""
    if summary.answers:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for name in ("model", "batch", "fastest", "p50 ms", "speed-up", "runner-up"):
            right = name in {"batch", "p50 ms", "speed-up"}
            table.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
        for answer in summary.answers[:MAX_LINES]:
            p50_ms, ratio = figure(answer.timing.latency_ms.p50), _times(answer.timing.speedup)
            cells = (answer.model, answer.batch, answer.label, p50_ms, ratio, _runner_up(answer))
            # an override is anybody's text: no markup, no colours, and only what the terminal can show
            plain = (Text.from_ansi(cell).plain.encode(console.encoding, "replace") for cell in cells)
            table.add_row(*(Text(cell.decode(console.encoding)) for cell in plain))
        console.print(table)
        console.print()
    for row in summary.failed[:MAX_LINES]:
        print_note(console, row.status, f"{row.job} ({' '.join(row.overrides)}) {reason(row)}")
    left_out = max(len(summary.answers) - MAX_LINES, 0), max(len(summary.failed) - MAX_LINES, 0)
    if any(left_out):
        print_note(console, "more", f"{left_out[0]} answers and {left_out[1]} failed jobs: in the summary's files")
    print_note(console, "jobs", counted(summary))


def markdown(summary: Summary) -> str:
    """The summary for a pull request or a wiki."""
    lines = ["# Summary", "", f"{counted(summary)}.", ""]
    for machine, facts in enumerate(summary.machines):
        lines += [f"## {escaped(machine_name(machine, facts))}", ""]
        lines += [f"- {escaped(answer.sentence)}" for answer in summary.answers if answer.machine == machine]
        lines += [""]
    if summary.failed:
        lines += ["## Failed", "", *_table(("job", "overrides", "status", "reason"))]
        lines += [_line(row.job, " ".join(row.overrides), row.status, reason(row)) for row in summary.failed] + [""]
    lines += ["## Runs", "", *_table(("job", "model", "configuration", "cache", "verified", "batch", *MEASURED))]
    for row in summary.rows:
        for batch, timing in row.batches.items():
            job = (row.job, row.model, row.label, row.cache, row.verified, batch)
            lines.append(_line(*job, *measured(timing)))
    lines += ["", *(f"    {command}" for command in summary.commands), *map(escaped, summary.warnings)]
    return "\n".join(lines) + "\n"


def measured(timing: Timing) -> tuple[str, ...]:
    """The cells of `MEASURED`."""
    calls = timing.break_even_calls
    latency = timing.latency_ms
    interval = "-".join(map(figure, timing.interval or ()))
    cells = (figure(latency.p50), figure(latency.p99), _times(timing.speedup), interval)
    return *cells, "" if calls is None else f"{calls:,}"


def counted(summary: Summary) -> str:
    """How many jobs ended in which way, and what the store spared them."""
    parts = [f"{len(summary.rows)} job{'s' * (len(summary.rows) != 1)}"]
    parts += [f"{count} {status}" for status, count in summary.counts.items()]
    parts += [f"{count} {outcome}" for outcome, count in summary.cache.items()]
    return " · ".join(parts) + (
        f" · {figure(summary.seconds_saved)} s of compiling saved" * (summary.seconds_saved > 0)
    )


def machine_name(number: int, facts: dict[str, Any]) -> str:
    """What a heading calls a machine."""
    gpus = f", {len(facts['gpus'])} GPUs" if facts.get("gpus") else ""
    cores = f"{facts.get('cpu', 'unknown processor')}, {facts.get('cores', '?')} cores{gpus}"
    return f"Machine {number + 1}: {cores}, torch {facts.get('torch')}, Python {facts.get('python')}"


def reason(row: Row) -> str:
    """At which stage a job ended, and why."""
    return f"at {row.error.stage}: {row.error.message}" if row.error else "for an unknown reason"


def escaped(text: str) -> str:
    """Text as one line of markdown that means only itself."""
    for character in "\\`*_<>|[]#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _answers(rows: Sequence[Row]) -> Iterator[Answer]:
    def group(item: tuple[Row, str, Timing]) -> tuple[int, str, tuple[int, str]]:
        row, batch, _ = item
        assert row.machine is not None
        return row.machine, row.model or "", reading.by_size(batch)

    trusted = [item for item in reading.newest(rows) if item[0].is_trusted and item[0].machine is not None]
    for _, found in groupby(sorted(trusted, key=group), key=group):
        yield _answer(sorted(found, key=lambda item: _speedup(item[2]).ratio, reverse=True))


def _answer(candidates: Sequence[tuple[Row, str, Timing]]) -> Answer:
    (row, batch, timing), *others = candidates
    assert row.machine is not None
    lead = None
    if others and all(each.interval or each.runner not in SERVING for each in (timing, others[0][2])):
        lead = quotient(_speedup(timing), _speedup(others[0][2]))
    answer = Answer(
        machine=row.machine,
        model=row.model or "",
        batch=batch,
        job=row.job,
        label=row.label,
        timing=timing,
        runner_up=others[0][0].label if others else None,
        lead=lead,
        within_noise=lead.low <= 1.0 if lead else None,
        num_candidates=len(candidates),
        sentence="",
    )
    return replace(answer, sentence=_sentence(answer))


def _speedup(timing: Timing) -> Speedup:
    """Over eager in fp32; of eager itself it is 1."""
    ratio = timing.speedup or 1.0
    low, high = timing.interval or (ratio, ratio)
    return Speedup(ratio, low, high)


def _sentence(answer: Answer) -> str:
    timing, num = answer.timing, answer.num_candidates
    rank = f"is fastest of {num}" if num > 1 else "is the only one that passed"
    text = f"{answer.model}, batch {answer.batch}: {answer.label} {rank}, {figure(timing.latency_ms.p50)} ms"
    text += f" on rung {timing.rung}"
    if timing.speedup is not None:
        spread = f" (95 %: {'-'.join(map(figure, timing.interval))})" if timing.interval else ""
        text += f", {_times(timing.speedup)} as fast as eager fp32{spread}"
    if timing.break_even_calls is not None:
        text += f"; compiling pays after {timing.break_even_calls:,} calls"
    if answer.runner_up is None:
        return f"{text}."
    return f"{text}. The runner-up is {_runner_up(answer, with_interval=True)}."


def _runner_up(answer: Answer, *, with_interval: bool = False) -> str:
    if answer.runner_up is None or answer.lead is None:
        return answer.runner_up or ""
    lead = answer.lead
    spread = f" ({figure(1 / lead.high)}-{figure(1 / lead.low)})" if with_interval else ""
    verdict = f", {'within' if answer.within_noise else 'beyond'} the noise" if with_interval else ""
    if answer.within_noise and not with_interval:
        return f"{answer.runner_up}, within the noise"
    return f"{answer.runner_up}, {_times(1 / lead.ratio)} as fast{spread}{verdict}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{figure(ratio)}x"


def _command(row: Row) -> str:
    if not row.command:
        return ""
    program, *words = row.command
    return shlex.join(["python", "-m", "app", *words] if Path(program).name == "__main__.py" else [program, *words])


def _table(names: Sequence[str]) -> list[str]:
    return [_line(*names), f"|{'---|' * len(names)}"]


def _line(*cells: object) -> str:
    return f"| {' | '.join('' if cell is None else escaped(str(cell)) for cell in cells)} |"


def _lines(row: Row) -> Iterator[dict[str, Any]]:
    """A row as lines of CSV, one for each batch size, by column."""
    job = {name: getattr(row, name) for name in JOB_FIELDS} | asdict(row.memory or Memory())
    job["overrides"] = " ".join(row.overrides)
    job |= {"stage": row.error.stage, "reason": row.error.message} if row.error else {}
    if not row.batches:
        yield job
    for batch, timing in row.batches.items():
        low, high = timing.interval or (None, None)
        yield job | {
            "batch": batch,
            "runner": timing.runner,
            **{name if name == "count" else f"{name}_ms": value for name, value in asdict(timing.latency_ms).items()},
            "eager_p50_ms": timing.eager_ms.p50 if timing.eager_ms else None,
            "speedup": timing.speedup,
            "speedup_low": low,
            "speedup_high": high,
            "throughput_per_s": timing.throughput_per_s,
            "break_even_calls": timing.break_even_calls,
        }
