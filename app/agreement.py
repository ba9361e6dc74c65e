"""Agreement: how far what serves is from eager, row by row, and what an evaluation makes of it. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from .config import EvaluateConfig
from .errors import ConfigError, EvaluationError
from .record import Disagreement, EvaluationInfo

Array = np.ndarray[Any, Any]
Metric = Callable[[Array, Array], Any]
# Everything that is kept of some rows: arrays by name, which any number of parts can be joined of.
Part = dict[str, Array]

# Most values of an output that a listed disagreement shows.
MOST_VALUES = 16
# Most values that are compared at once.
MOST_ELEMENTS = 4_000_000
# What is taken off a difference of two metrics: 0.99 - 0.98 is more than 0.01 in binary.
ROUNDING = 1e-12


def has_classes(output: Array) -> bool:
    """Whether it is class scores, [rows, classes]."""
    return output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind == "f"


def has_accuracy(output: Array, labels: Array | None) -> bool:
    """Whether the classes can be compared with the labels."""
    return has_classes(output) and labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"


def judge_of(config: EvaluateConfig, output: Array, labels: Array | None) -> str:
    """`argmax` or `deviation`.

    Raises:
        ConfigError: argmax is asked for, and the output has no classes; or a metric is, and there is none.
    """
    if config.max_metric_drop is not None and config.metric is None and not has_accuracy(output, labels):
        given = f"output {config.output} is {output.dtype} {list(output.shape)}"
        raise ConfigError(
            f"evaluate.max_metric_drop needs a metric: accuracy is one of class scores [rows, classes] and whole "
            f"labels, {given}; name your own by evaluate.metric"
        )
    if config.judge == "argmax" and not has_classes(output):
        given = f"output {config.output} is {list(output.shape)}"
        raise ConfigError(f"evaluate.judge=argmax needs class scores [rows, classes]; {given}")
    if config.judge != "auto":
        return config.judge
    return "argmax" if has_accuracy(output, labels) else "deviation"


def compare(eager: Array, compiled: Array, judge: str, tolerance: float) -> Part:
    """What two outputs of the same rows come to, one value a row.

    Raises:
        EvaluationError: they differ in shape or dtype.
    """
    if eager.shape != compiled.shape or eager.dtype != compiled.dtype:
        raise EvaluationError(
            f"the compiled output is {compiled.dtype} {list(compiled.shape)}, "
            f"eager's is {eager.dtype} {list(eager.shape)}"
        )
    step = max(1, MOST_ELEMENTS // max(1, math.prod(eager.shape[1:])))  # as float64, outputs can be much
    starts = range(0, len(eager), step)
    return join([_compare(eager[at : at + step], compiled[at : at + step], judge, tolerance) for at in starts])


def join(parts: Sequence[Part]) -> Part:
    """Parts one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _compare(eager: Array, compiled: Array, judge: str, tolerance: float) -> Part:
    a, b = _flat(eager), _flat(compiled)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    odd = ~same & ~(np.isfinite(a) & np.isfinite(b))  # one of the two is NaN or Inf: no distance says how far
    comparable = np.isfinite(a) & np.isfinite(b)
    x, y = np.where(comparable, a, 0.0), np.where(comparable, b, 0.0)
    difference = np.where(odd, np.inf, y - x)
    with np.errstate(invalid="ignore", divide="ignore"):
        norms = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
        distance = np.where(odd.any(axis=1), np.inf, np.linalg.norm(np.where(odd, 0.0, difference), axis=1))
        relative = np.where(norms[0] > 0, distance / np.where(norms[0] > 0, norms[0], 1.0), distance)
        cosine = (x * y).sum(axis=1) / (norms[0] * norms[1])
    cosine = np.where(distance == 0, 1.0, np.where(np.isfinite(cosine), np.clip(cosine, -1, 1), 0.0))
    part = {"max_abs": np.abs(difference).max(axis=1, initial=0.0), "relative": relative, "cosine": cosine}
    part["by_argmax"] = np.full(len(eager), judge == "argmax")
    if has_classes(eager):
        part |= {"eager_class": eager.argmax(axis=1), "compiled_class": compiled.argmax(axis=1)}
    if judge == "argmax":
        return {**part, "differs": (part["eager_class"] != part["compiled_class"]) | odd.any(axis=1)}
    exact = eager.dtype.kind in "iub"
    return {**part, "differs": (distance != 0) if exact else ~(relative <= tolerance)}


def _flat(values: Array) -> Array:
    return values.astype(np.float64).reshape(len(values), math.prod(values.shape[1:]))


def listed(eager: Array, compiled: Array, differs: Array, start: int, most: int) -> Part:
    """The first disagreeing rows with both outputs, cut to MOST_VALUES; `start` is the number of the first row."""
    rows = np.flatnonzero(differs)[:most]
    cut = [_flat(each)[rows, :MOST_VALUES] for each in (eager, compiled)]
    return {"listed": rows + start, "listed_eager": cut[0], "listed_compiled": cut[1]}


def summarise(
    joined: Part, labels: Array | None, config: EvaluateConfig, metric: Metric | None, **known: Any
) -> EvaluationInfo:
    """The figures of all rows, and whether they are within the limits.

    Args:
        joined: What the rows came to, and the seconds of every batch.
        labels: One a row.
        config: Limits, and how much is listed.
        metric: The user's own; None is accuracy, where there are classes and labels.
        known: Fields of EvaluationInfo that this function doesn't find out.
    """
    num_rows, num_differing = len(joined["differs"]), int(joined["differs"].sum())
    values = _metrics(joined, labels, config, metric)
    drop = values["eager"] - values["compiled"] if values else None
    share, by_argmax = num_differing / num_rows, bool(joined["by_argmax"].all())
    return EvaluationInfo(
        **known,
        rows=num_rows,
        judge="argmax" if by_argmax else "deviation",
        tolerance=None if by_argmax else config.tolerance,
        metric=(config.metric or "accuracy") if values else None,
        metric_values=values,
        metric_drop=drop,
        num_disagreements=num_differing,
        disagreement=share,
        max_abs=_finite(joined["max_abs"].max()),
        max_relative=_finite(joined["relative"].max()),
        min_cosine=_finite(joined["cosine"].min()),
        rows_per_s={name: _rate(joined, name) for name in ("eager", "compiled")},
        max_metric_drop=config.max_metric_drop,
        max_disagreement=config.max_disagreement,
        refusal=refusal(drop, share, config),
        disagreements=_disagreements(joined, labels, config.listed),
    )


def refusal(drop: float | None, share: float, config: EvaluateConfig) -> str | None:
    """Which limit is passed, or None."""
    if drop is not None and config.max_metric_drop is not None and drop > config.max_metric_drop + ROUNDING:
        name = config.metric or "accuracy"
        return f"{name} drops by {drop:.6g}, evaluate.max_metric_drop allows {config.max_metric_drop:g}"
    if config.max_disagreement is not None and share > config.max_disagreement + ROUNDING:
        return f"{share:.4%} of the rows disagree, evaluate.max_disagreement allows {config.max_disagreement:.4%}"
    return None


def _metrics(
    joined: Part, labels: Array | None, config: EvaluateConfig, metric: Metric | None
) -> dict[str, float] | None:
    if labels is None:
        return None
    if metric is not None:
        return {
            name: _call_metric(config.metric, metric, joined[f"{name}_output"], labels)
            for name in ("eager", "compiled")
        }
    if "eager_class" not in joined or labels.ndim != 1 or labels.dtype.kind not in "iu":
        return None
    return {name: float((joined[f"{name}_class"] == labels).mean()) for name in ("eager", "compiled")}


def _call_metric(name: str | None, metric: Metric, outputs: Array, labels: Array) -> float:
    try:
        value = float(metric(outputs, labels))
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(f"evaluate.metric={name!r} raised {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise ConfigError(f"evaluate.metric={name!r} gave {value}, which can't be compared")
    return value


def _rate(joined: Mapping[str, Array], name: str) -> float | None:
    """The median call's: one that the machine held up would be most of a small evaluation's time."""
    calls = joined[f"{name}_s"] > 0
    return float(np.median(joined["batch_rows"][calls] / joined[f"{name}_s"][calls])) if calls.any() else None


def _disagreements(joined: Part, labels: Array | None, most: int) -> list[Disagreement]:
    classes = bool(joined["by_argmax"].all())
    return [
        Disagreement(
            row=int(row),
            label=labels[row].tolist() if labels is not None else None,
            eager_class=int(joined["eager_class"][row]) if classes else None,
            compiled_class=int(joined["compiled_class"][row]) if classes else None,
            relative=_finite(joined["relative"][row]),
            eager=[_finite(value) for value in eager],
            compiled=[_finite(value) for value in compiled],
        )
        for row, eager, compiled in islice(
            zip(joined["listed"], joined["listed_eager"], joined["listed_compiled"], strict=True), most
        )
    ]


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
