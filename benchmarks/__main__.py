"""Run every part, each a process of its own, and write docs/performance.md of what they found.

    python benchmarks [--quick] [--only start,call] [--report]

A part that fails is a line of the document. `--quick` takes a quarter of an hour and shows that all of it works;
its figures are marked as such. `--report` writes the document of what was measured before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from common import OUT, ROOT, Goal, markdown, say, verdict

HERE, DOCUMENT = Path(__file__).parent, ROOT / "docs" / "performance.md"
PARTS = ("start", "call", "latency", "cold", "memory", "growth", "monitor", "threads", "store", "fleet")
# Of all parts together: latency, most of whose time goes into compiling, comes last and has what the others leave.
ALL_S = float(os.environ.get("BENCHMARK_S", "3480"))
BUSY_CORES = 0.5
HEAD = """\
# Performance

Every figure here was measured by `nox -s bench`, and this file was written by it: `python benchmarks --report` makes
it again from outputs/benchmarks/, where the raw samples are. Only the notes beside goals that are not met are by
hand, in [benchmarks/notes.toml](../benchmarks/notes.toml). Ways take turns within a part; a ratio is of medians, with
its 95 % interval by a bootstrap of the rounds. Another machine, or this one while it is busy, gives other figures.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of an hour instead of most of one")
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated parts; the others stay as they were")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    parts = [] if arguments.report else sorted(arguments.only.split(","), key="latency".__eq__)
    end = time.monotonic() + ALL_S
    failed = [part for part in parts if not run(part, arguments.quick, end - time.monotonic())]
    write(arguments.quick, failed)
    say(f"{DOCUMENT.relative_to(ROOT)} is written" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def run(part: str, quick: bool, left_s: float) -> bool:
    """Whether a part came to its end in the time that is left; what an earlier run of it found is gone."""
    say(f"--- {part}")
    began = time.perf_counter()
    results(part, quick).unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", str(HERE / f"{part}.py"), *(["--quick"] if quick else [])]
    env = {**os.environ, "BENCHMARK_LATENCY_S": str(left_s - 60)}  # and some for the last case's end
    try:
        code = subprocess.run(command, check=False, cwd=ROOT, env=env, timeout=max(left_s, 0)).returncode
    except subprocess.TimeoutExpired:
        code = -1
    say(f"--- {part}: {time.perf_counter() - began:.0f} s" + (f", exit code {code}" if code else ""))
    return code == 0


def results(part: str, quick: bool) -> Path:
    """Where a part keeps what it found."""
    return OUT / f"{part}{'-quick' if quick else ''}.json"


def write(quick: bool, failed: list[str]) -> None:
    """The document, and its plots beside it."""
    found = {part: json.loads(results(part, quick).read_text()) for part in PARTS if results(part, quick).exists()}
    notes: dict[str, str] = tomllib.loads((HERE / "notes.toml").read_text())
    text = [HEAD]
    if quick:
        text.append("**These figures are of `--quick`**: they show that everything runs, and not how fast.\n")
    text += [f"**{part} failed** and is not here.\n" for part in failed]
    if missing := [part for part in PARTS if part not in {*found, *failed}]:
        text.append(f"Not measured yet, so not here: {', '.join(missing)}.\n")
    goals = [("goal", "wished", "reached", "")]
    unmet: dict[str, list[str]] = {}
    for part, each in found.items():
        for goal in (Goal(**values) for values in each["goals"]):
            goals.append((f"[{goal.name}](#{part})", goal.wish, goal.reached, verdict(goal.met)))
            if goal.met is False:
                note = next((note for name, note in notes.items() if goal.name.startswith(name)), "no note yet")
                unmet.setdefault(" ".join(note.split()), []).append(f"**{goal.name}** ({goal.reached})")
    text += ["## Goals\n", markdown(goals, "---")]
    if unmet:
        said = "\n".join(f"- {', '.join(names)}: {note}" for note, names in unmet.items())
        text += ["### What was tried where a goal is not met, and what the profile shows\n", f"{said}\n"]
    DOCUMENT.write_text("\n".join([*text, *map(section, found.values())]))


def section(found: dict[str, Any]) -> str:
    """A part's text, tables and plots, and where they were measured."""
    facts = found["machine"]
    where = (
        f"{facts['cpu']}, {facts['cores']} cores, Python {facts['python']}, torch {facts['torch']}; "
        f"{found['created_at'][:16].replace('T', ' ')} UTC, {found['took_s']} s; "
        f"{found['busy_cores'][0]} cores busy with something else before, {found['busy_cores'][1]} after."
    )
    text = [f"## {found['title']}\n", found["text"], f"*{where}*\n"]
    if max(found["busy_cores"]) > BUSY_CORES:
        text.append("**The machine was busy with something else**: these figures are not to be relied on.\n")
    text += map(markdown, found["tables"])
    for name, drawing in found["plots"].items():
        path = DOCUMENT.with_suffix("") / f"{name}.svg"
        path.parent.mkdir(exist_ok=True)
        path.write_text(drawing)
        text.append(f"![{name}]({path.relative_to(DOCUMENT.parent)})\n")
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(main())
