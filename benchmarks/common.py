"""What every part shares: ways measured in turns, ratios with intervals, and a section of docs/performance.md.

A part is a program with `measure(quick) -> Section`. `main` runs it, prints it, and keeps it with every sample as
outputs/benchmarks/PART.json (PART-quick.json), of which `python benchmarks` makes the document.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # this checkout, installed or not

from app import environment as machine  # noqa: E402

OUT = ROOT / "outputs" / "benchmarks"
STORE = OUT / "store"  # what was compiled, by this program and by its peers: a second run finds it
APP_STORE = STORE / "aot-app" / "store"  # where the program itself looks by default, given USER_CACHE
USER_CACHE = {"XDG_CACHE_HOME": str(STORE)}
# Users' processes keep the bytecode of what they import, whatever the shell says that started this.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
NUM_RESAMPLES = 2000
NUM_THREADS = machine.cores() or 1


T = TypeVar("T")


class FailedError(Exception):
    """A way that doesn't work here; its row says why."""


@dataclass(frozen=True)
class Ratio:
    """A median over another, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Like `0.91 (0.88 to 0.95)`."""
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Goal:
    """One wish, and the figure that decides whether it is met; None where it can't be measured here."""

    name: str
    wish: str
    reached: str
    met: bool | None


@dataclass
class Section:
    """What a part says. Tables are rows of text, the first one their head; samples are whatever JSON holds."""

    title: str
    text: str
    tables: list[list[Sequence[str]]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    plots: dict[str, str] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)


def main(doc: str | None, measure: Callable[[bool], Section]) -> None:
    """Run one part as a program."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shows that it works, not how fast anything is")
    quick = parser.parse_args().quick
    before, began = busy_cores(), time.perf_counter()
    part = Path(sys.argv[0]).stem
    try:
        section = measure(quick)
    except FailedError as error:  # what all of the part needs isn't here
        section = Section(part.capitalize(), f"Not measured: {error}.\n")
    found = {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "took_s": round(time.perf_counter() - began),
        "busy_cores": [before, busy_cores()],
        "machine": machine.describe("cpu"),
        **asdict(section),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{part}{'-quick' if quick else ''}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join([f"{section.title}\n", *map(markdown, section.tables), *map(describe, section.goals)]))
    print(f"\nsamples: {path.relative_to(ROOT)}")


def busy_cores(seconds: float = 2.0) -> float:
    """Cores that others keep busy while this process waits; not a number where /proc/stat is missing."""

    def busy() -> int:
        times = [int(each) for each in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
        return sum(times) - sum(times[3:5])  # idle, and idle for a disk

    try:
        begun = busy()
        time.sleep(seconds)
        return round((busy() - begun) / seconds / os.sysconf("SC_CLK_TCK"), 2)
    except OSError:
        return math.nan


def about(doc: str | None) -> str:
    """What a program's docstring says after its first line; a list of terms stays as it is set."""
    _, *paragraphs = (doc or "").strip().split("\n\n")
    is_list = re.compile(r"\S {2,}\S")
    shown = [
        f"    {each.replace(chr(10), chr(10) + '    ')}" if is_list.search(each) else each for each in paragraphs
    ]
    return "\n\n".join(shown) + "\n"


def say(text: str) -> None:
    """Tell how far it has come."""
    print(text, file=sys.stderr, flush=True)


def in_turns(ways: Mapping[str, Callable[[], T]], rounds: int, what: str) -> dict[str, list[T]]:
    """What each way returns, once a round, so that a machine that drifts or is busy hits them all.

    Each round begins with another way.
    """
    names, samples = list(ways), {name: list[T]() for name in ways}
    for turn in range(rounds):
        if turn % max(1, rounds // 10) == 0:
            say(f"{what}: round {turn + 1} of {rounds}")
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            samples[name].append(ways[name]())
    return samples


def timed(action: Callable[..., object], *arguments: object) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - began


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Median over median; its interval by a bootstrap of the rounds keeps together what was measured together."""
    a, b = np.asarray(above), np.asarray(below)
    chosen = np.random.default_rng(0).integers(len(a), size=(NUM_RESAMPLES, len(a)))
    ratios = np.median(a[chosen], axis=1) / np.median(b[chosen], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high))


def at_most(name: str, found: Ratio, limit: float, unit: str) -> Goal:
    """A goal that a ratio is to stay within; its median decides."""
    return Goal(name, f"at most {limit:g} x {unit}", f"{found} x", found.value <= limit)


def spread(values: Sequence[float], scale: float = 1.0) -> tuple[str, str, str]:
    """Median, least and most, as cells of a table."""
    a = np.asarray(values) * scale
    return (f"{np.median(a):.3g}", f"{a.min():.3g}", f"{a.max():.3g}")


def child(command: Sequence[str], env: Mapping[str, str] | None = None, timeout_s: float = 1200) -> str:
    """What a Python process prints on standard output.

    Raises:
        FailedError: it fails; with the last line that it says.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    try:
        done = subprocess.run(
            [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"not done after {timeout_s:.0f} s") from error
    if done.returncode:
        raise FailedError(last_line(done.stderr) or f"exit code {done.returncode}")
    return done.stdout


def last_line(text: str) -> str:
    """The last line that says something, cut to what a table holds; files are named as they are in the project."""
    lines = [line.strip() for line in text.replace(f"{ROOT}/", "").splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""


def why(error: BaseException) -> str:
    """An exception in a table's cell."""
    return last_line(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def markdown(rows: Iterable[Sequence[str]], rest: str = "--:") -> str:
    """A table; all columns but the first are numbers, unless `rest` says otherwise."""
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    rule = ["---", *[rest] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body)) + "\n"


def describe(goal: Goal) -> str:
    """A goal in a line."""
    return f"{verdict(goal.met)}: {goal.name}: {goal.reached}, wished {goal.wish}"


def verdict(met: bool | None) -> str:
    """Whether a goal is met, in words."""
    return {True: "met", False: "**not met**", None: "not measured"}[met]
