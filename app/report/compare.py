"""Compare: what got faster or slower from one set of runs to another, beyond the noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..measure.statistics import Speedup, scatter, speedup, widened
from . import rows as reading
from .console import figure
from .rows import Row, Timing
from .summary import escaped, reason

HARDWARE = ("cpu", "cores", "machine", "gpus")

Verdict = Literal["regression", "slower", "faster", "same", "untested"]  # untested: raw samples are missing
VERDICTS = get_args(Verdict)
Place = tuple[str, str, str, str]  # hardware, model, label, batch
Found = tuple[Row, Timing]
TEST = """\
Test: bootstrap of the ratio of medians, 95 % interval, widened by how unlike eager, the same code, changed from run
to run ({scatter}; 0 where one run is all there is). Faster and slower: the interval leaves out 1. Regression: all of
it is beyond the tolerance; what ran before and fails now is one too. The eager column is a control: where it moved as
much, look at the machine, torch or the model first."""


@dataclass(frozen=True)
class Change:
    """One configuration at one batch size, before and after.

    `gain` is how many times as fast it became, with its 95 % interval; `eager` the same of eager, as a control: the
    machine, torch or the model moved where it did too.
    """

    model: str
    label: str
    batch: str
    before_ms: float
    after_ms: float
    gain: Speedup | None
    eager: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """Two sets of runs: what changed, what else differs between the two, what broke, and what only one of them has.

    `scatter` is how unlike eager's own changes are between the runs of a model: the noise from run to run.
    """

    before: str
    after: str
    tolerance: float
    machines: list[str]
    scatter: dict[str, float]
    differences: list[str]
    changes: list[Change]
    broken: list[str]
    missing: list[str]

    @property
    def has_regression(self) -> bool:
        """Whether anything became slower beyond the tolerance, or ran before and fails now."""
        return bool(self.broken) or any(change.verdict == "regression" for change in self.changes)


def compare(before: Path, after: Path, tolerance: float) -> Comparison:
    """Compare the runs in two directories, configuration by configuration.

    The test is a bootstrap of the ratio of medians, its 95 % interval widened by how unlike eager, the same code in
    all runs of a model, changed in them: what that leaves no doubt of is beyond the noise. All of a regression's
    interval is beyond the tolerance.

    Raises:
        ValueError: a directory holds no record, or the two have nothing in common, such as a machine.
    """
    sides = [reading.read([directory])[0] for directory in (before, after)]
    names = reading.varied(sides[0]) | reading.varied(sides[1])
    sides = [reading.located(reading.labelled(rows, names), _hardware)[0] for rows in sides]
    found = [dict(_placed(rows)) for rows in sides]
    shared = [(place, found[0][place], found[1][place]) for place in found[0] if place in found[1]]
    noise = _scatter(shared)
    hardware = [{place[0] for place in timings} for timings in found]
    if all(hardware) and not hardware[0] & hardware[1]:
        here, there = (" and ".join(sorted(each)) for each in hardware)
        raise ValueError(f"unlike machines aren't compared: {before} ran on {here}, {after} on {there}")
    broken, gone = _missing(before, found[0], after, found[1], sides[1])
    fixed, new = _missing(after, found[1], before, found[0], sides[0])
    if not shared and not broken:
        raise ValueError(
            f"{before} and {after} have no configuration in common: {', '.join(gone + new) or 'no figures'}"
        )
    return Comparison(
        before=str(before),
        after=str(after),
        tolerance=tolerance,
        machines=sorted(hardware[0] & hardware[1]),
        scatter=noise,
        differences=list(_differences(*sides)),
        changes=[_change(*each, tolerance, noise.get(each[0][1], 0.0)) for each in shared],
        broken=broken,
        missing=gone + fixed + new,
    )


def markdown(found: Comparison) -> str:
    """The comparison as a comment on a pull request: what counts first, all rows folded."""
    counts = {verdict: sum(change.verdict == verdict for change in found.changes) for verdict in VERDICTS}
    counts = {"broken": len(found.broken), **counts}
    said = [f"{count} {verdict}" for verdict, count in counts.items() if count]
    lines = [
        f"### {'Regression' if found.has_regression else 'No regression'}: {', '.join(said)}",
        "",
        f"{escaped(found.before)} → {escaped(found.after)}, tolerance {found.tolerance:.0%}.",
        *(f"- {escaped(machine)}" for machine in found.machines or ["no machine that both ran on"]),
        *(f"- {escaped(difference)}" for difference in found.differences),
        "",
    ]
    if found.broken:
        lines += ["Ran before, and fails now:", "", *(f"- {escaped(text)}" for text in found.broken), ""]
    notable = [change for change in found.changes if change.verdict not in ("same", "untested")]
    if notable:
        lines += [*_table(notable), ""]
    if others := [change for change in found.changes if change not in notable]:
        lines += [
            f"<details><summary>{len(others)} without a change</summary>",
            "",
            *_table(others),
            "",
            "</details>",
            "",
        ]
    if found.missing:
        lines += ["On one side only:", "", *(f"- {escaped(text)}" for text in found.missing), ""]
    scatter = ", ".join(f"{model} {relative:.1%}" for model, relative in found.scatter.items())
    lines += [TEST.format(scatter=escaped(scatter) or "unknown")]
    return "\n".join(lines) + "\n"


def _table(changes: Sequence[Change]) -> Iterator[str]:
    yield "| model | configuration | batch | before, ms | after, ms | times as fast (95 %) | eager | verdict |"
    yield "|---|---|---|---|---|---|---|---|"
    for change in sorted(
        changes, key=lambda change: (VERDICTS.index(change.verdict), change.gain.ratio if change.gain else 1.0)
    ):
        gain = change.gain
        spread = f"{figure(gain.ratio)} ({figure(gain.low)}-{figure(gain.high)})" if gain else "-"
        cells = (change.model, change.label, change.batch, figure(change.before_ms), figure(change.after_ms), spread)
        yield f"| {' | '.join(map(escaped, (*cells, figure(change.eager), change.verdict)))} |"


def _placed(rows: Sequence[Row]) -> Iterator[tuple[Place, Found]]:
    for row, batch, timing in reading.newest(rows):
        if row.status == "ok" and row.environment is not None:
            yield (_hardware(row.environment), row.model or "", row.label, batch), (row, timing)


def _scatter(shared: Sequence[tuple[Place, Found, Found]]) -> dict[str, float]:
    """How unlike the gains of eager are, the same code in every run of a model: the noise from run to run."""
    gains: dict[str, dict[str, list[float]]] = {}
    for (_, model, _, batch), (_, old), (_, new) in shared:
        if eager := _eager(old, new):
            gains.setdefault(model, {}).setdefault(batch, []).append(eager)
    return {model: scatter(groups.values()) for model, groups in gains.items()}


def _eager(old: Timing, new: Timing) -> float | None:
    medians = [timing.eager_ms.p50 if timing.eager_ms else 0.0 for timing in (old, new)]
    return medians[0] / medians[1] if min(medians) > 0 else None


def _change(place: Place, before: Found, after: Found, tolerance: float, relative: float) -> Change:
    (_, model, label, batch), (old_row, old), (new_row, new) = place, before, after
    slow, fast = old_row.samples(old.runner, batch), new_row.samples(new.runner, batch)
    gain = widened(speedup(slow, fast), relative) if slow and fast else None
    return Change(
        model=model,
        label=label,
        batch=batch,
        before_ms=old.latency_ms.p50,
        after_ms=new.latency_ms.p50,
        gain=gain,
        eager=_eager(old, new),
        verdict=_judged(gain, tolerance),
    )


def _judged(gain: Speedup | None, tolerance: float) -> Verdict:
    if gain is None:
        return "untested"
    if gain.high < 1 / (1 + tolerance):
        return "regression"
    return "slower" if gain.high < 1 else "faster" if gain.low > 1 else "same"


def _differences(before: Sequence[Row], after: Sequence[Row]) -> Iterator[str]:
    """What all runs of one side have in common and the other's have not: the change that is compared."""
    old, new = _common(before), _common(after)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name}: {old.get(name, 'not set')} → {new.get(name, 'not set')}"


def _common(rows: Sequence[Row]) -> dict[str, str]:
    environments: list[dict[str, Any]] = [row.environment for row in rows if row.environment]
    shared = dict(environments[0].items() if environments else ())
    facts = {
        name: str(value)
        for name, value in shared.items()
        if name not in HARDWARE and all(each.get(name) == value for each in environments)
    }
    return facts | reading.constant(rows)


def _missing(
    side: Path, own: Mapping[Place, Found], other_side: Path, other: Mapping[Place, Found], others: Sequence[Row]
) -> tuple[list[str], list[str]]:
    """What failed on the other side, and what it hasn't at all."""
    broken, gone = [], []
    for place in own.keys() - other.keys():
        hardware, model, label, batch = place
        text = f"{model}, {label}, batch {batch}, only in {side}"
        failed = [row for row in others if (row.model, row.label) == (model, label) and row.status != "ok"]
        if any(found[1:] == place[1:] for found in other):
            gone.append(f"{text} on {hardware}: {other_side} has it on another machine")
        elif failed:
            broken.append(f"{text}: in {other_side} it {failed[-1].status} {reason(failed[-1])}")
        else:
            gone.append(text)
    return sorted(broken), sorted(gone)


def _hardware(environment: dict[str, Any]) -> str:
    gpus = f", GPUs {', '.join(environment['gpus'])}" if environment.get("gpus") else ""
    return f"{environment.get('cpu')}, {environment.get('cores')} cores, {environment.get('machine')}{gpus}"
