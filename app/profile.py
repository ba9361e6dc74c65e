"""Profile: what is worth turning on for the calls that a service really sees, with the figures: task=profile."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import evaluate, traffic
from .acquire import acquire, load, opened
from .choose import resolve
from .config import AUTO, BATCH, Settings
from .context import Context
from .errors import ConfigError, OutputError
from .files import write_text
from .measure.clock import clock_for
from .measure.samples import measure
from .measure.statistics import summarise
from .record import PrecisionChoice
from .runtime.buckets import choose, judge
from .runtime.plans import Latencies
from .tuning import tune_buckets

Rows = list[dict[str, Any]]
GROUP = "experiment"  # the folder that the written file must lie in, for Hydra to find it
MOST_LENGTHS = 6
# The share of a call's time that buckets must save to be called worth it: less is within what timing tells.
WORTH_IT = 0.05


def profile(context: Context) -> Rows:
    """One row a setting: what suits the calls, whether it pays, and the figures; written to `profile.write` too.

    Raises:
        AppError: there are no calls, or no artifact to time.
    """
    settings = context.settings
    target = _target(settings)
    if settings.data.name == "workload":
        job, calls = None, traffic.read(settings.data, settings.model.ranges or context.workload.dims)
    else:
        job = evaluate.prepare(context)
        shapes = {spec.name: spec.shape for spec in context.workload.inputs}
        calls = traffic.of_dataset(job.dataset, shapes, settings.evaluate.batch_size)
    context.settings = _sized(settings, [calls.typical()], AUTO)
    resolve(context, job)
    kept = context.record.precision_choice
    assert kept is not None
    context.settings = _sized(context.settings, settings.graphs.batch_sizes)
    rows = [_precision(kept)]
    batches, buckets = _batches(context, calls)
    lengths = [
        _lengths(context, calls, dim, captured=buckets["captured"]) for dim in sorted(calls.sizes.keys() - {BATCH})
    ]
    rows += [_graphs(context, captured=buckets["captured"]), *batches, *(row for found in lengths for row in found)]
    rows += _load(calls, buckets["as_it_is"]["expected_ms"])
    if target is not None:
        _write(target, calls, kept.kept, rows)
        rows.append({"setting": "file", "choice": str(target), "pays": None, "why": _how(target)})
    return rows


def _sized(settings: Settings, sizes: list[int], precision: str | None = None) -> Settings:
    asked = (
        settings if precision is None else replace(settings, precision=replace(settings.precision, name=precision))
    )
    return replace(asked, graphs=replace(settings.graphs, batch_sizes=sizes))


def _target(settings: Settings) -> Path | None:
    if settings.profile.write is None:
        return None
    path = Path(settings.profile.write).expanduser()
    if path.parent.name != GROUP or path.suffix != ".yaml":
        raise ConfigError(
            f"profile.write={settings.profile.write!r} must read FOLDER/{GROUP}/NAME.yaml: --config-dir FOLDER "
            f"{GROUP}=NAME then finds it"
        )
    return path


def _row(setting: str, choice: str, why: str, *, pays: bool | None) -> dict[str, Any]:
    return {"setting": setting, "choice": choice, "pays": pays, "why": why}


def _precision(choice: PrecisionChoice) -> dict[str, Any]:
    timed = [f"{each.precision} {each.p50_ms:.3g} ms" for each in choice.candidates if each.p50_ms is not None]
    refused = [f"{each.precision} refused: {each.reason}" for each in choice.candidates if not each.passed]
    why = "; ".join([*([f"at batch {choice.batch}: {', '.join(timed)}"] if timed else []), *refused])
    return _row("precision", choice.kept, why, pays=choice.kept != "fp32")


def _graphs(context: Context, *, captured: bool) -> dict[str, Any]:
    if captured:
        return _row("graphs.enabled", "auto", "they were captured, and timed with the buckets below", pays=True)
    why = "there is no GPU" if context.device == "cpu" else "none was captured: graphs.enabled says so"
    return _row("graphs.enabled", "false", why, pays=False)


def _batches(context: Context, calls: traffic.Traffic) -> tuple[Rows, dict[str, Any]]:
    """Buckets of the batch, and dynamic against static; and what tuning found."""
    path = context.folder / "histogram.json"
    write_text(path, json.dumps(calls.histogram()))
    before = context.settings
    context.settings = replace(before, graphs=replace(before.graphs, histogram=str(path)))
    with opened(context) as store:
        (tuned,) = tune_buckets(context, store)
    context.settings = before
    chosen, plain, static = tuned["chosen"], tuned["as_it_is"], tuned["static"]
    figures = f"{chosen['expected_ms']:.3g} ms a call, {chosen['padding_waste']:.0%} of rows padding"
    why = f"{figures}; {plain['expected_ms']:.3g} ms as they are"
    pays = chosen["expected_ms"] <= plain["expected_ms"] * (1 - WORTH_IT)
    buckets = _row("graphs.batch_sizes", tuned["set"].partition("=")[2], why, pays=pays)
    return [buckets, _shapes(BATCH, plain["expected_ms"], static["expected_ms"], max(calls.histogram()))], tuned


def _shapes(dim: str, dynamic_ms: float, static_ms: float, largest: int) -> dict[str, Any]:
    why = f"{dynamic_ms:.3g} ms a call as they are, {static_ms:.3g} ms padded to {largest}"
    pays = dynamic_ms < static_ms
    return _row(f"size of {dim}", "dynamic" if pays else "static", why, pays=pays)


def _lengths(context: Context, calls: traffic.Traffic, dim: str, *, captured: bool) -> Rows:
    """The same for another dimension, timed at the typical batch and a few of the sizes seen."""
    histogram = calls.histogram(dim)
    cost_ms = _timed(context, calls, dim, histogram)
    best = choose(histogram, cost_ms, most=context.settings.graphs.max_buckets)
    use, plain, static = (
        judge(histogram, sizes, cost_ms) for sizes in (best.buckets, [*histogram], [max(histogram)])
    )
    choice = f"[{','.join(map(str, best.buckets))}]"
    why = f"{use.expected_ms:.3g} ms a call at batch {calls.typical()}; {plain.expected_ms:.3g} ms as they are"
    if not captured:
        why += "; only graphs need them"
    shapes = _shapes(dim, plain.expected_ms, static.expected_ms, max(histogram))
    return [_row(f"graphs.buckets.{dim}", choice, why, pays=captured), shapes]


def _timed(
    context: Context, calls: traffic.Traffic, dim: str, histogram: Mapping[int, int]
) -> Callable[[int], float]:
    import torch

    sizes = sorted(histogram)
    step = max(1, -(-len(sizes) // MOST_LENGTHS))
    grid = sorted({sizes[-1], *sizes[::step]})
    with opened(context) as store:
        model = load(context, acquire(context, store))
    given = {size: context.workload.call(calls.typical(), others={dim: size}) for size in grid}
    timed = {str(size): (lambda given=given[size]: model(*given[0], **given[1])) for size in grid}
    about = f"measure {dim} {', '.join(timed)} at batch {calls.typical()}"
    with torch.inference_mode(), context.phases("measure", about=about, still=True):
        taken = measure(timed, clock_for(context.device), **asdict(context.settings.measure))
    return Latencies({}, {size: summarise(taken[str(size)]).min for size in grid}).run_dynamic


def _load(calls: traffic.Traffic, call_ms: float) -> Rows:
    rate, waiting = calls.rate_per_s, calls.waiting(call_ms / 1000)
    if rate is None or waiting is None:
        return []
    busy = rate * call_ms / 1000
    why = (
        f"{rate:.3g} calls a second of {call_ms:.3g} ms: {busy:.1%} busy, {waiting:.1%} of calls come while one runs"
    )
    return [_row("second process", "yes" if busy > 1 else "no", why, pays=busy > 1)]


def _write(path: Path, calls: traffic.Traffic, precision: str, rows: Rows) -> None:
    choices = {row["setting"]: row["choice"] for row in rows}
    paying = [row["setting"] for row in rows if row["pays"]]
    lines = [
        "# @package _global_",
        f"# What task=profile made of {len(calls)} calls in {Path(calls.source).name}; the model is not part of it.",
        *(f"# {row['setting']}: {' '.join(row['why'].split())}" for row in rows),
        "defaults:",
        f"  - override /precision: {precision}",
        "",
        "graphs:",
        f"  batch_sizes: {choices['graphs.batch_sizes']}",
        f'  enabled: "{choices["graphs.enabled"]}"',
    ]
    others = [name for name in paying if name.startswith("graphs.buckets.")]
    lines += ["  buckets:"] if others else []
    lines += [f"    {name.rpartition('.')[2]}: {choices[name]}" for name in others]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror or error}") from error
    write_text(path, "\n".join(lines) + "\n")


def _how(path: Path) -> str:
    return f"--config-dir {path.parent.parent} experiment={path.stem}"
