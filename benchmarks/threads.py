"""What a second thread is worth.

Calls a second of `linear` at batch 64 from one thread and from two, each with one intra-op thread. It needs as many
idle cores as threads to say anything: eager is what two threads get from the machine just then. `cores` are the
processor's seconds in a second of two threads.

C interface   as this program serves on the CPU: the GIL is free during a call
binding       the same library by torch's own class, which holds the GIL
eager         the module itself, which lets go of the GIL too
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # torch.set_num_threads alone doesn't reach compiled code in new threads

import numpy as np
import torch
from common import APP_STORE, FailedError, Section, about, in_turns, main, ratio, spread

from app.api import load, session
from app.runtime.aoti import AotiRunner
from app.runtime.model import LIBRARY, CompiledModel

BATCH = 64
Way = Callable[[torch.Tensor], torch.Tensor]


def prepare() -> dict[str, Way]:
    """Compile, load both ways, and see that all give the same answer."""
    with session(cache={"dir": APP_STORE}):
        model = load("model=linear", "device=cpu", "compile.threads=1", "runtime.num_runners=2")
    served = model._ladder._rungs[0][1]  # noqa: SLF001 - the same checks around both
    library = Path(model.info["artifact_dir"]) / LIBRARY
    ways: dict[str, Way] = {
        "C interface": served,
        "binding": CompiledModel(AotiRunner(library, "cpu", num_runners=2, binding=True), served._boundary),  # noqa: SLF001
        "eager": model.module,
    }
    value = torch.randn(4, 768)
    expected = model.module(value)
    for name, way in ways.items():
        if not torch.allclose(way(value), expected, rtol=1e-3, atol=1e-4):
            raise FailedError(f"{name} and eager give different answers: nothing to compare")
    return ways


def seconds(way: Way, value: torch.Tensor, num_calls: int, num_threads: int) -> float:
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


def measure(quick: bool) -> Section:
    section = Section("Threads", about(__doc__))
    torch.set_num_threads(1)
    cores: dict[str, list[float]] = {}

    def calls_per_s(name: str, num_threads: int) -> float:
        spent = time.process_time()
        took = seconds(ways[name], value, num_calls, num_threads)
        if num_threads == 2:
            cores.setdefault(name, []).append((time.process_time() - spent) / took)
        return num_threads * num_calls / took

    with torch.inference_mode():
        ways, value = prepare(), torch.randn(BATCH, 768)
        wanted_s = 0.1 if quick else 0.5
        num_calls = max(10, int(wanted_s / (seconds(ways["C interface"], value, 20, 1) / 20)))
        each = {f"{name}/{n}": lambda k=name, n=n: calls_per_s(k, n) for name in ways for n in (1, 2)}
        samples = in_turns(each, 3 if quick else 11, "threads")
    section.samples = {**samples, "cores": cores}
    rows = [("calls a second", "one thread", "two threads", "ratio", "cores")]
    for name in ways:
        one, two = samples[f"{name}/1"], samples[f"{name}/2"]
        rows.append((name, spread(one)[0], spread(two)[0], f"{ratio(two, one)}", f"{np.median(cores[name]):.2f}"))
    section.tables.append(rows)
    return section


if __name__ == "__main__":
    main(__doc__, measure)
