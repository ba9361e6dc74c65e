"""What processes share.

Processes of a ViT-B (timm, random weights, one image) with `weights=external`, each of which has loaded it by its
alias and called it once. Memory is the proportional set size of /proc/PID/smaps_rollup: what several share is
divided among them. The same number of processes of `linear` is what torch and this program take without the weights.
Then another checkpoint of the same architecture is asked for, and one is exchanged in place.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import APP_STORE, ROOT, USER_CACHE, FailedError, Goal, Section, about, child, last_line, main, say

MOST_LOAD_MS, SMALL_CHANGE = 50.0, 0.1
ALIAS, OTHER = "benchmark-memory", "benchmark-memory-none"
MODEL = (
    "model=custom", "model.name=vit_base", "model.target=cases:vit_base", "mode=default", "weights=external",
    "device=cpu", "model.inputs=[{name: x, shape: [batch, 3, 224, 224]}]", "model.dims={batch: {max: 8, example: 2}}",
    "graphs.batch_sizes=[1]",
)  # fmt: skip
NONE = ("model=linear", "mode=default", "weights=external", "device=cpu")
# Says how long loading took and waits until its input is closed.
SERVE = """
import json, sys, torch
from app import load
model = load({alias!r})
with torch.inference_mode():
    model(torch.ones({shape}))
print(json.dumps(model.info["phases_s"]), flush=True)
sys.stdin.read()
"""
SHAPES = {ALIAS: "1, 3, 224, 224", OTHER: "1, 768"}
EXCHANGE = """
import json, time, torch
from app import load
from cases import vit_base
torch.manual_seed(7)
module = vit_base().eval()
state, value = module.state_dict(), torch.ones(1, 3, 224, 224)
model = load({alias!r})
with torch.inference_mode():
    model(value)
    began = time.perf_counter()
    model.load_state_dict(state)
    seconds = time.perf_counter() - began
    far = float((model(value) - module(value)).norm() / module(value).norm())
print(json.dumps([seconds, far]))
"""
SAVE = """
import torch
from safetensors.torch import save_model
from cases import vit_base
torch.manual_seed(7)
save_model(vit_base(), {path!r})
"""
ENV = {**os.environ, **USER_CACHE, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}


def pss_bytes(pid: int) -> int:
    """The memory of a process, its part of what it shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def together(alias: str, count: int) -> tuple[int, list[float]]:
    """Memory of so many processes at once, and what each took to load, in milliseconds."""
    command = [sys.executable, "-W", "ignore", "-c", SERVE.format(alias=alias, shape=SHAPES[alias])]
    running = []
    try:
        for _ in range(count):  # one by one: how long loading takes is not about who waits for a core
            running.append(
                subprocess.Popen(
                    command, env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
            line = running[-1].stdout.readline()
            if not line:
                raise FailedError(last_line(running[-1].communicate()[1]))
            running[-1].load_ms = json.loads(line)["load"] * 1e3
        return sum(pss_bytes(each.pid) for each in running), [each.load_ms for each in running]
    finally:
        for each in running:
            each.communicate()


def compiled(words: tuple[str, ...], *more: str) -> dict[str, Any]:
    """The record of a run that makes an artifact, or finds it."""
    with tempfile.TemporaryDirectory() as folder:
        child(["-m", "app", "task=compile", *words, *more, f"hydra.run.dir={folder}"], ENV)
        return json.loads((Path(folder) / "record.json").read_text())


def measure(quick: bool) -> Section:
    section = Section("Memory", about(__doc__))
    say("memory: compiling")
    for words, alias in ((MODEL, ALIAS), (NONE, OTHER)):
        compiled(words, f"cache.alias={alias}")
    weights = max(path.stat().st_size for path in APP_STORE.rglob("weights.safetensors"))
    rows = [("processes", "PSS, MB", "of linear, MB", "difference / weights", "load, ms")]
    loads: list[float] = []
    share = 0.0
    for count in (1, 2) if quick else (1, 2, 4, 8):
        say(f"memory: {count} processes")
        (total, took), (none, _) = together(ALIAS, count), together(OTHER, count)
        loads += took
        share = (total - none) / weights
        median = statistics.median(took)
        rows.append((f"{count}", f"{total / 1e6:.0f}", f"{none / 1e6:.0f}", f"{share:.2f}", f"{median:.1f}"))
        section.samples[f"{count}"] = {"pss": total, "pss_linear": none, "load_ms": took}
    section.tables.append(rows)
    load_ms = statistics.median(loads)
    section.goals += [
        Goal(
            f"{count} processes of {weights / 1e6:.0f} MB of weights",
            f"1 x the weights, and {SMALL_CHANGE:.0%} a process for what its calls need",
            f"{share:.2f} x",
            share <= 1 + count * SMALL_CHANGE,
        ),
        Goal(
            "loading it",
            f"under {MOST_LOAD_MS:.0f} ms",
            f"{load_ms:.1f} ms ({min(loads):.1f} to {max(loads):.1f})",
            load_ms < MOST_LOAD_MS,
        ),
    ]
    section.goals += exchange()
    return section


def exchange() -> list[Goal]:
    """Another checkpoint: as a run, and in place."""
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        checkpoint = Path(folder) / "other.safetensors"
        child(["-c", SAVE.format(path=str(checkpoint))], ENV)
        say("memory: another checkpoint")
        began = time.perf_counter()
        record = compiled(MODEL, f"model.checkpoint={checkpoint}")
        seconds = time.perf_counter() - began
        outcome, verified = record["cache"]["outcome"], bool(record["verify"] and record["verify"]["passed"])
        took, far = json.loads(child(["-c", EXCHANGE.format(alias=ALIAS)], ENV))
    return [
        Goal(
            "a new checkpoint of the same architecture",
            "a hit that compiles nothing, verified",
            f"{outcome} in {seconds:.1f} s, {'verified' if verified else 'not verified'}",
            outcome.endswith("hit") and verified,
        ),
        Goal(
            "weights exchanged in place",
            "answers as eager does with the new ones",
            f"{took * 1e3:.0f} ms, {far:.1g} from eager",
            far < 1e-4,
        ),
    ]


if __name__ == "__main__":
    main(__doc__, measure)
