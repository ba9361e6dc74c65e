"""What the terminal shows of an evaluation: metric and speed side by side, and which rows moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from .console import figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..record import Disagreement, EvaluationInfo

MAX_ROWS = 5  # all that were listed are in disagreements.jsonl
LONGEST_METRIC = 30
SHORTEST_S = 1.0  # calls of less time together compare speeds roughly,
FEWEST_CALLS = 5  # and fewer of them not at all
NUM_VALUES = 3  # of an output that is listed here


def table(info: EvaluationInfo, rung: str | None) -> Table:
    """Eager and what served, a row each."""
    found = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    found.add_column("")
    if info.metric_values is not None and info.metric is not None:
        found.add_column(info.metric.rpartition(":")[2][-LONGEST_METRIC:], justify="right")
    found.add_column("rows a second", justify="right")
    for name, label in (("eager", "eager, fp32"), ("compiled", f"served by {rung or 'eager'}")):
        values = [] if info.metric_values is None else [f"{info.metric_values[name]:.6g}"]
        found.add_row(label, *values, figure(info.rows_per_s[name] if _speed(info)[0] else None))
    return found


def _speed(info: EvaluationInfo) -> tuple[bool, str | None]:
    """Whether there is one to show, and what there is to say of it."""
    calls = -(-info.rows // info.batch_size)
    spent_s = min((info.rows / rate for rate in info.rows_per_s.values() if rate), default=0.0)
    if spent_s >= SHORTEST_S:
        return True, None
    shown = calls >= FEWEST_CALLS
    what = f"only {calls} calls in {figure(spent_s)} s: {'rows a second are rough' if shown else 'too few to tell'}"
    return shown, f"{what}; task=benchmark measures"


def notes(info: EvaluationInfo) -> Iterator[tuple[str, str]]:
    """Label and text of every line that stands under the table before the run's own."""
    yield (
        "data",
        f"{info.rows:,} rows of {info.data}, {info.batch_size} a call"
        + (f"; {info.resumed_rows:,} of them by an earlier run" if info.resumed_rows else ""),
    )
    if (rough := _speed(info)[1]) is not None:
        yield "speed", rough
    if info.metric_drop is not None:
        moved = f"{'drops' if info.metric_drop > 0 else 'gains'} {abs(info.metric_drop):.6g}"
        yield "metric", moved if info.metric_drop else "the same"
    rule = "another class" if info.judge == "argmax" else f"further than {info.tolerance:g} from eager, relative L2"
    yield "disagree", f"{info.num_disagreements:,} of {info.rows:,} rows ({info.disagreement:.3%}): {rule}"
    for row in info.disagreements[:MAX_ROWS]:
        yield "", _row(row)
    if info.num_disagreements > MAX_ROWS:
        yield "", f"and {info.num_disagreements - MAX_ROWS:,} more; the first with both outputs: disagreements.jsonl"
    if info.max_abs is None:
        yield "deviation", "not finite: one of the two gives NaN or Inf where the other does not"
    else:
        cosine = "" if info.min_cosine is None else f", cosine at least {info.min_cosine:.6f}"
        yield (
            "deviation",
            f"at most {info.max_abs:.1e} in a value, relative L2 of a row {info.max_relative or 0.0:.1e}{cosine}",
        )
    limits = [
        f"{name} {limit:g}"
        for name, limit in (("max_metric_drop", info.max_metric_drop), ("max_disagreement", info.max_disagreement))
        if limit is not None
    ]
    if limits:
        yield "limits", f"{'kept' if info.refusal is None else 'exceeded: ' + info.refusal} ({', '.join(limits)})"


def _score(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.5g}"


def _values(output: list[float | None]) -> str:
    return f"[{', '.join(map(_score, output[:NUM_VALUES]))}{', ..' if len(output) > NUM_VALUES else ''}]"


def _row(row: Disagreement) -> str:
    where = f"row {row.row}" + ("" if row.label is None else f", label {row.label}")
    if row.eager_class is None or row.compiled_class is None:
        far = "not finite" if row.relative is None else f"{row.relative:.1e}"
        return f"{where}: eager {_values(row.eager)}, compiled {_values(row.compiled)}, relative distance {far}"
    if max(row.eager_class, row.compiled_class) >= len(row.eager):  # the list holds the first values only
        return f"{where}: eager {row.eager_class}, compiled {row.compiled_class}"
    said = [
        f"{name} {own} ({_score(scores[row.eager_class])} : {_score(scores[row.compiled_class])})"
        for name, own, scores in (
            ("eager", row.eager_class, row.eager),
            ("compiled", row.compiled_class, row.compiled),
        )
    ]
    return f"{where}: {', '.join(said)}, scores of {row.eager_class} : {row.compiled_class}"
