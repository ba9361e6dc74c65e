"""What a miss costs beside plain AOTInductor, and a sweep's side by side.

Whole processes with empty caches, the same program, the same Inductor options, the same range of batches. The miss
is `python -m app task=compile`, which also looks, verifies, hashes and keeps; plain is a script that builds,
exports, and calls `aoti_compile_and_package`; its precompiled headers, in the temporary folder, may stay from round
to round. The sweep compiles two models by one command, with one worker and with two.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
from common import NUM_THREADS, FailedError, Goal, Section, about, child, in_turns, main, ratio, spread

from app.composed import settings_of

FACTOR, PLUS_S = 1.1, 1.0
PLAIN = """
import torch
from app.workloads import reference
torch.manual_seed(0)
module = reference.{model}().eval().requires_grad_(False)
batch = torch.export.Dim("batch", min=1, max=1024)
program = torch.export.export(module, (torch.randn({shape}),), dynamic_shapes=({{0: batch}},))
torch._inductor.aoti_compile_and_package(program, package_path={package!r}, inductor_configs={options!r})
"""
SHAPES = {"linear": "4, 768", "cnn": "4, 64, 100"}
MISS, PLAINLY = "a miss", "plain AOTInductor"


def fresh(folder: Path) -> tuple[Path, dict[str, str]]:
    """An empty place, and what keeps the caches in it."""
    place = Path(tempfile.mkdtemp(dir=folder))
    return place, {"TORCHINDUCTOR_CACHE_DIR": str(place / "inductor"), "TMPDIR": str(folder)}


def miss(model: str, mode: str, folder: Path, phases: list[dict[str, float]]) -> float:
    """Seconds of a run that finds nothing."""
    place, env = fresh(folder)
    words = [f"model={model}", f"mode={mode}", f"cache.dir={place / 'store'}", f"hydra.run.dir={place / 'run'}"]
    began = time.perf_counter()
    child(["-m", "app", "task=compile", "device=cpu", *words], env)
    seconds = time.perf_counter() - began
    record = json.loads((place / "run" / "record.json").read_text())
    if record["cache"]["outcome"] != "miss" or record["fallbacks"]:
        raise FailedError(f"{model} was no plain miss: {record['cache']['outcome']}, {record['fallbacks']}")
    phases.append(record["phases_s"])
    return seconds


def plainly(model: str, mode: str, folder: Path) -> float:
    """Seconds of a script that does what torch's documentation says."""
    place, env = fresh(folder)
    options = settings_of((f"model={model}", f"mode={mode}", "device=cpu")).inductor_options
    text = PLAIN.format(model=model, shape=SHAPES[model], package=str(place / "model.pt2"), options=options)
    began = time.perf_counter()
    child(["-c", text], env)
    return time.perf_counter() - began


def sweep(workers: int, folder: Path) -> float:
    """Seconds of a sweep that compiles two models."""
    place, env = fresh(folder)
    words = [f"cache.dir={place / 'store'}", f"hydra.sweep.dir={place / 'sweep'}", f"sweep.workers={workers}"]
    began = time.perf_counter()
    child(["-m", "app", "-m", "task=compile", "model=linear,cnn", "mode=default", "device=cpu", *words], env)
    return time.perf_counter() - began


def measure(quick: bool) -> Section:
    section = Section("Cold", about(__doc__))
    with tempfile.TemporaryDirectory(prefix="cold-") as text:
        folder = Path(text)
        jobs = [("linear", "default", 1)] if quick else [("linear", "default", 2), ("cnn", "max-autotune", 2)]
        rows = [("seconds", "median", "min", "max")]
        costs = [("phases of a miss, s", "median", "min", "max")]
        for model, mode, rounds in jobs:
            phases: list[dict[str, float]] = []
            ways = {
                PLAINLY: lambda m=model, o=mode: plainly(m, o, folder),
                MISS: lambda m=model, o=mode, p=phases: miss(m, o, folder, p),
            }
            samples = in_turns(ways, rounds, f"cold, {model} {mode}")
            rows += [(f"{model}, {mode}: {name}", *spread(of)) for name, of in samples.items()]
            costs += [
                (f"{model}, {mode}: {name}", *spread([each.get(name) or 0.0 for each in phases]))
                for name in phases[0]
                if phases[0][name]
            ]
            plain, ours = np.median(samples[PLAINLY]), np.median(samples[MISS])
            section.goals.append(
                Goal(
                    f"a miss, {model} {mode}",
                    f"at most {FACTOR:g} x plain + {PLUS_S:g} s",
                    f"{ours:.1f} s beside {plain:.1f} s: {ratio(samples[MISS], samples[PLAINLY])} x",
                    bool(ours <= FACTOR * plain + PLUS_S),
                )
            )
            section.samples[f"{model}, {mode}"] = {**samples, "phases": phases}
        section.tables += [rows, costs]
        if NUM_THREADS > 1:
            found = in_turns(
                {f"{n} worker{'s'[: n > 1]}": lambda n=n: sweep(n, folder) for n in (1, 2)},
                1 if quick else 2,
                "sweep",
            )
            section.samples["sweep"] = found
            section.tables.append(
                [("a sweep of two, s", "median", "min", "max"), *((k, *spread(v)) for k, v in found.items())]
            )
            side_by_side = ratio(found["2 workers"], found["1 worker"])
            section.goals.append(
                Goal("two variants side by side", "less than one after the other", f"{side_by_side} x",
                     side_by_side.value < 1)
            )  # fmt: skip
    return section


if __name__ == "__main__":
    main(__doc__, measure)
