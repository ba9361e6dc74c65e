"""Summary: what many runs come to. First the answer, then every row, in four files and on the terminal."""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from .. import __version__, structured
from ..errors import OutputError
from ..measure.statistics import Speedup, speedup
from . import rows as reading
from .console import figure, print_note
from .rows import Row, Timing

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
MAX_LINES = 12  # of answers and of failures on the terminal; the files have all
# A CSV line's fields: those of the job, then those of one of its batch sizes.
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


@dataclass(frozen=True)
class Answer:
    """The fastest configuration at one batch size of a model, of those that passed verification.

    `lead` is how many times as long the runner-up takes, with its 95 % interval; null without raw samples.
    """

    machine: int
    model: str
    batch: str
    job: str
    label: str
    timing: Timing
    runner_up: str | None
    runner_up_ms: float | None
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
    machines: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        if row.environment is None:
            continue
        facts = {name: value for name, value in row.environment.items() if name != "device"}
        if facts not in machines:
            machines.append(facts)
        rows[number] = replace(row, machine=machines.index(facts), environment=None)
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
            _write_csv(summary.rows, file)
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
            cells = (answer.model, answer.batch, answer.label, p50_ms, ratio, _lead(answer))
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


MEASURED = ("p50 ms", "p99 ms", "speed-up", "95 %", "break-even calls")


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
        yield _answer(sorted(found, key=lambda item: item[2].latency_ms.p50))


def _answer(candidates: Sequence[tuple[Row, str, Timing]]) -> Answer:
    (row, batch, timing), *others = candidates
    assert row.machine is not None
    lead = noise = None
    if others:
        other, _, slower = others[0]
        lead, noise = _compared(row, timing, other, slower, batch)
    answer = Answer(
        machine=row.machine,
        model=row.model or "",
        batch=batch,
        job=row.job,
        label=row.label,
        timing=timing,
        runner_up=others[0][0].label if others else None,
        runner_up_ms=others[0][2].latency_ms.p50 if others else None,
        lead=lead,
        within_noise=noise,
        num_candidates=len(candidates),
        sentence="",
    )
    return replace(answer, sentence=_sentence(answer))


def _compared(row: Row, timing: Timing, other: Row, slower: Timing, batch: str) -> tuple[Speedup | None, bool | None]:
    """How many times as long the other takes, and whether that is noise.

    It is where the interval holds 1, or where eager, the same code in both runs, differs by as much: an interval of
    one process's samples knows nothing of how far another process's would lie.
    """
    fast, slow = row.samples(timing.runner, batch), other.samples(slower.runner, batch)
    if fast is None or slow is None:
        return None, None
    lead = speedup(slow, fast)
    drift = 1.0
    if timing.eager_ms and slower.eager_ms and row.folder != other.folder:
        drift = math.exp(abs(math.log(slower.eager_ms.p50 / timing.eager_ms.p50)))
    return lead, lead.low <= 1.0 or lead.ratio <= drift


def _sentence(answer: Answer) -> str:
    timing = answer.timing
    text = f"{answer.model}, batch {answer.batch}: {answer.label} is fastest of {answer.num_candidates} with "
    text = text.replace("fastest of 1 with", "the only configuration that passed, at")
    text += f"{figure(timing.latency_ms.p50)} ms"
    if timing.runner in reading.SERVING and timing.speedup is not None:
        spread = f" (95 %: {'-'.join(map(figure, timing.interval))})" if timing.interval else ""
        text += f", {figure(timing.speedup)} times as fast as eager fp32{spread}"
    if timing.break_even_calls is not None:
        text += f", which pays for compiling after {timing.break_even_calls:,} calls"
    if answer.runner_up is None:
        return f"{text}."
    text += f". The runner-up, {answer.runner_up}, takes {figure(answer.runner_up_ms)} ms"
    if answer.lead is None:
        return f"{text}; there are no samples to test that by."
    spread = f"{figure(answer.lead.low)}-{figure(answer.lead.high)}"
    text += f", {figure(answer.lead.ratio)} times as long ({spread})"
    return f"{text}: within the noise." if answer.within_noise else f"{text}: beyond the noise."


def _lead(answer: Answer) -> str:
    if answer.lead is None:
        return answer.runner_up or ""
    verdict = "within the noise" if answer.within_noise else f"{_times(answer.lead.ratio)} as long"
    return f"{answer.runner_up}, {verdict}"


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


def _write_csv(rows: Sequence[Row], file: Any) -> None:
    figures = ("p50", "p90", "p99", "mean", "stdev", "min", "count")
    writer = csv.writer(file)
    writer.writerow(
        (*JOB_FIELDS, "overrides", "stage", "reason", "rss_peak_bytes", "artifact_bytes", "device_peak_bytes")
        + ("batch", "runner", *(f"{name}_ms".replace("count_ms", "count") for name in figures), "eager_p50_ms")
        + ("speedup", "speedup_low", "speedup_high", "throughput_per_s", "break_even_calls")
    )
    for row in rows:
        error, memory = row.error, row.memory
        job = [getattr(row, name) for name in JOB_FIELDS]
        job += [" ".join(row.overrides), error.stage if error else None, error.message if error else None]
        job += [memory.rss_peak_bytes, memory.artifact_bytes, memory.device_peak_bytes] if memory else [None] * 3
        for batch, timing in row.batches.items():
            eager_ms = timing.eager_ms.p50 if timing.eager_ms else None
            values = [getattr(timing.latency_ms, name) for name in figures]
            ends = timing.interval or (None, None)
            rates = (timing.speedup, *ends, timing.throughput_per_s, timing.break_even_calls)
            writer.writerow([*job, batch, timing.runner, *values, eager_ms, *rates])
        if not row.batches:
            writer.writerow(job)
