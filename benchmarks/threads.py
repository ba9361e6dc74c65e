"""What threads are worth: one thread that calls a served model beside two, each with one intra-op thread.

    python benchmarks/threads.py [--quick] [--batch N] [--repeats N]

    C interface   as this program serves on the CPU: the GIL is free during a call
    binding       the same library by torch's own class, which holds the GIL
    eager         the module itself, which lets go of the GIL too: what two threads get from this machine

All serve `linear`; the compiled ways go through CompiledModel and its checks. The ways take turns, one thread and
then two in each, so that a machine that drifts or is busy hits them all; the load average is printed and kept. The
ratio is calls a second of two threads over those of one, in the same turn; `cores` are the processor's seconds in a
second of two threads, which a machine that others use caps too. `overhead` is one call at batch 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # torch.set_num_threads alone doesn't reach compiled code in new threads

import torch

from app import dependencies, lookup
from app import environment as machine
from app.composed import settings_of
from app.keys import request_key
from app.runtime.aoti import AotiRunner
from app.runtime.model import LIBRARY, CompiledModel, load
from app.runtime.spec import CallSpec
from app.runtime.tensors import TensorBoundary
from app.store import Store
from app.workloads import reference

ROOT = Path(__file__).resolve().parent.parent
Samples = dict[str, dict[str, list[float]]]


def main() -> None:
    arguments = parse()
    repeats = arguments.repeats or (3 if arguments.quick else 15)
    torch.set_num_threads(1)
    began = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="threads-") as folder, torch.inference_mode():
        ways = prepare(Path(folder))
        value = torch.randn(arguments.batch, 768)
        num_calls = calls_for(ways["C interface"], value, 0.1 if arguments.quick else 0.5)
        samples: Samples = {name: {"one": [], "two": [], "cores": [], "overhead": []} for name in ways}
        for turn in range(repeats):
            print(f"round {turn + 1} of {repeats}", file=sys.stderr, flush=True)
            for name, way in ways.items():
                samples[name]["one"].append(num_calls / seconds(way, value, num_calls, 1))
                spent = time.process_time()
                both = seconds(way, value, num_calls, 2)
                samples[name]["two"].append(2 * num_calls / both)
                samples[name]["cores"].append((time.process_time() - spent) / both)
                samples[name]["overhead"].append(seconds(way, value[:1], 500, 1) / 500 * 1e6)
    report(arguments.batch, samples, [began, os.getloadavg()])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 short rounds instead of 15")
    parser.add_argument("--batch", type=int, default=64, help="rows of a call, at most 64")
    parser.add_argument("--repeats", type=int, help="rounds, whatever --quick says")
    return parser.parse_args()


def prepare(folder: Path) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Compile, load both ways, and see that all give the same answer."""
    overrides = ["model=linear", "device=cpu", "compile.threads=1", f"cache.dir={folder / 'store'}"]
    command = [sys.executable, "-m", "app", "task=compile", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    settings = settings_of(overrides)
    with Store(folder / "store") as store:
        found = lookup.find(store, request_key(settings, "cpu"), dependencies.named_files(settings))
        assert isinstance(found, lookup.Found), found.reasons
    place, content = found.artifact.path, found.artifact.manifest.content
    torch.manual_seed(0)
    ways = {
        "C interface": load(place, content, "cpu", num_runners=2),
        "binding": CompiledModel(
            AotiRunner(place / LIBRARY, "cpu", num_runners=2, binding=True),
            TensorBoundary(CallSpec.from_json(content["spec"]), "cpu"),
        ),
        "eager": reference.linear().eval(),
    }
    value = torch.randn(4, 768)
    expected = ways["eager"](value)
    for name, way in ways.items():
        if not torch.allclose(way(value), expected, rtol=1e-3, atol=1e-4):
            sys.exit(f"{name} and eager give different answers: nothing to compare")
    return ways


def calls_for(way: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor, wanted_s: float) -> int:
    """How many calls take about so long."""
    seconds(way, value, 20, 1)
    return max(10, int(wanted_s / (seconds(way, value, 20, 1) / 20)))


def seconds(
    way: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor, num_calls: int, num_threads: int
) -> float:
    """From the moment that all threads are ready until the last has done its calls."""
    ready = threading.Barrier(num_threads + 1)

    def work() -> None:
        with torch.inference_mode():  # each thread has its own
            way(value)
            ready.wait()
            for _ in range(num_calls):
                way(value)

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def report(batch: int, samples: Samples, load: list[tuple[float, float, float]]) -> None:
    """Print the table, and keep every sample."""
    facts = machine.describe("cpu")
    print(f"linear, batch {batch}: calls a second, {len(samples['eager']['one'])} rounds; overhead in us at batch 1")
    print(f"{facts['cpu']}, {facts['cores']} cores, Python {facts['python']}, torch {facts['torch']}")
    print(f"load average of the last minute: {load[0][0]:.2f} before, {load[1][0]:.2f} after\n")
    head = f"{'':<12} {'one':>9} {'two':>9}   {'ratio':>5} {'min':>5} {'max':>5}   {'cores':>5}"
    print(f"{head}   {'overhead':>8} {'min':>7}")
    for name, kept in samples.items():
        ratios = [two / one for one, two in zip(kept["one"], kept["two"], strict=True)]
        one, two, cores, call = (statistics.median(kept[what]) for what in ("one", "two", "cores", "overhead"))
        print(
            f"{name:<12} {one:9.0f} {two:9.0f}   "
            f"{statistics.median(ratios):5.2f} {min(ratios):5.2f} {max(ratios):5.2f}   {cores:5.2f}   "
            f"{call:8.1f} {min(kept['overhead']):7.1f}"
        )
    now = datetime.now(UTC)
    path = ROOT / "outputs" / "benchmarks" / f"threads-linear-{now:%Y%m%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"batch": batch, "created_at": now.isoformat(), **facts, "load_average": load, "samples": samples}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nsamples: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
