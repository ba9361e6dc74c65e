"""Latency on the CPU beside every peer, and beside what the machine could do.

The same weights, inputs, threads and precision for all. The p50 is the median over rounds of a block's median: in
each round every way is called until its caches and threads are its own again, and then timed. bf16 is the module
cast, with inputs and outputs as in fp32; ONNX Runtime gets that as ONNX, OpenVINO the fp32 model and a hint.
torch.compile is `max-autotune`, AOTInductor as its documentation has it, native is
`compile_model(mode="max-autotune")`. All are compiled for a batch of any size where several are timed. The portfolio
is, of native and `mode=openvino`, the one that was faster over all batches of a case in every other round, as
`mode=auto` would choose; its figures are of the rounds between. A way whose output is further from float64 than its
precision allows is left out, and said.

The roofline is what the counted FLOPs take at this machine's best matrix product in that precision, or the bytes of
weights, inputs and outputs at the best rate at which it reads a buffer of that size, whichever is more.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import CASES
from common import (
    NUM_THREADS,
    STORE,
    FailedError,
    Goal,
    Ratio,
    Section,
    about,
    child,
    in_turns,
    main,
    ratio,
    say,
    why,
)
from torch.utils.flop_counter import FlopCounterMode
from ways import NATIVE, OTHER, PEERS, PRECISIONS, WAYS, Task, aoti, onnx

from app.report.plot import bars

# Relative L2 distance from float64 beyond which an answer is another one.
LIMITS = {"fp32": 1e-3, "bf16": 5e-2}
MEAN_LIMIT, WORST_LIMIT = 0.9, 1.05
SETTLE_S, BLOCK_S, MOST_CALLS = 0.01, 0.04, 40
# Of all cases together, and of one; `python benchmarks` says what is left of the hour.
BUDGET_S, MOST_S = float(os.environ.get("BENCHMARK_LATENCY_S", "inf")), 600
OUT_OF_TIME = "the time was used up by compiling, which is kept: run it again"
QUICK = ("linear",)
PORTFOLIO = "portfolio"


def prepare_case(name: str) -> None:
    """Compile for `measure_task` what is tuned by no timing: it may be compiled while others are."""
    for precision in PRECISIONS:
        for make in (aoti, onnx):
            with suppress(Exception):  # its way fails again, and says why
                make(Task(name, precision))


def block(call: Callable[[], Any]) -> list[float]:
    """Milliseconds of some calls in a row, once the processor's caches and the way's threads have settled."""
    settled = time.perf_counter() + SETTLE_S
    while True:
        call()
        if time.perf_counter() >= settled:
            break
    values: list[float] = []
    while len(values) < 3 or (sum(values) < BLOCK_S * 1e3 and len(values) < MOST_CALLS):
        began = time.perf_counter()
        call()
        values.append((time.perf_counter() - began) * 1e3)
    return values


def measure_task(task: Task, rounds: int) -> dict[str, Any]:
    """All ways of a case in a precision, by batch size; runs in a process of its own."""
    torch.set_num_threads(NUM_THREADS)
    case, bound, found = CASES[task.name], {}, {"errors": {}, "batches": {}}
    with torch.inference_mode():
        double = copy.deepcopy(case.module()).double()
    for name, prepare in WAYS.items():
        began = time.perf_counter()
        try:
            with torch.no_grad():
                bound[name] = prepare(task)
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way: its row says how
            found["errors"][name] = why(error)
        say(f"{task.name} {task.precision}: {name} {time.perf_counter() - began:.0f} s")
    for batch in case.batches:
        inputs = case.call(batch)
        with torch.inference_mode():
            truth = double(*[each.double() if each.is_floating_point() else each for each in inputs])
            calls, distances = {}, {}
            for name, bind in bound.items():
                try:
                    call = bind(inputs)
                    answer = torch.as_tensor(np.asarray(call())).double()
                    distances[name] = float((answer - truth).norm() / truth.norm())
                    if not distances[name] <= LIMITS[task.precision]:
                        raise FailedError(f"its answer is {distances[name]:.1g} from float64")  # noqa: TRY301
                    calls[name] = call
                except Exception as error:  # noqa: BLE001 - as above
                    found["errors"][name] = why(error)
            ways = {name: partial(block, call) for name, call in calls.items()}
            timed = in_turns(ways, rounds, f"{task.name} {task.precision} batch {batch}")
            found["batches"][batch] = {"ms": timed, "rel_l2": distances, **counted(task, inputs)}
    return found


def counted(task: Task, inputs: tuple[torch.Tensor, ...]) -> dict[str, int]:
    """FLOPs of one call, and the bytes that it can't do without."""
    module, fast = task.module(), torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False)
    torch.backends.mha.set_fastpath_enabled(False)  # it is one operator, of which nothing is counted
    try:
        with torch.no_grad(), counter:
            output = module(*[each.clone() for each in inputs])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    # of an embedding only the rows that are looked up are read
    tables = {id(each.weight) for each in module.modules() if isinstance(each, torch.nn.Embedding)}
    tied = {id(each.weight) for each in module.modules() if isinstance(each, torch.nn.Linear)}
    weights = {id(each): each.nbytes for each in (*module.parameters(), *module.buffers())}
    read = sum(size for key, size in weights.items() if key not in tables - tied)
    return {"flops": counter.get_total_flops(), "bytes": read + sum(each.nbytes for each in (*inputs, output))}


def ceilings() -> dict[str, Any]:
    """The machine's best rates: FLOPs a second of a matrix product, bytes a second by the size of what is read."""

    def best(call: Callable[[], Any], seconds: float = 0.5) -> float:
        times, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 5:
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return min(times)

    torch.set_num_threads(NUM_THREADS)
    found: dict[str, Any] = {"bytes_per_s": {}}
    with torch.inference_mode():
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
            found[precision] = 2 * 2048**3 / best(lambda a=a, b=b: a @ b, 2)
        for megabytes in (1, 4, 16, 64, 256, 512):
            buffer = torch.ones(megabytes * 10**6 // 4)
            times = []
            for threads in (1, NUM_THREADS):  # a small one is read faster by one
                torch.set_num_threads(threads)
                times.append(best(buffer.sum))
            found["bytes_per_s"][megabytes * 10**6] = buffer.nbytes / min(times)
    return found


def roofline_ms(of: dict[str, Any], precision: str, rates: dict[str, Any]) -> float:
    """The least that a call can take."""
    size = next((size for size in rates["bytes_per_s"] if size >= of["bytes"]), max(rates["bytes_per_s"]))
    return 1e3 * max(of["flops"] / rates[precision], of["bytes"] / rates["bytes_per_s"][size])


def p50s(blocks: list[list[float]]) -> list[float]:
    """Each round's median."""
    return [statistics.median(each) for each in blocks]


def measure(quick: bool) -> Section:
    section = Section("Latency", about(__doc__))
    rates = ceilings()
    found: dict[str, Any] = {}
    end = time.monotonic() + BUDGET_S
    with tempfile.TemporaryDirectory(prefix="latency-") as folder:
        out = Path(folder) / "found.json"
        env = {
            "TORCHINDUCTOR_CACHE_DIR": str(STORE / "inductor"),
            "OMP_NUM_THREADS": str(NUM_THREADS),
            "TMPDIR": folder,  # where torch unpacks packages and leaves them
        }
        names = QUICK if quick else CASES

        def prepare(name: str) -> None:
            say(f"latency: compile {name}")
            with suppress(FailedError):  # as in the process
                child([__file__, "--prepare", name], env, MOST_S)

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(prepare, names))
        for precision, name in itertools.product(PRECISIONS, names):
            say(f"latency: {name}, {precision}")
            try:
                left_s = end - time.monotonic()
                if left_s <= 0:
                    raise FailedError(OUT_OF_TIME)  # noqa: TRY301 - a row like any other
                arguments = ["--task", name, precision, "3" if quick else "11", str(out)]
                child([__file__, *arguments], env, min(left_s, MOST_S))
                found[f"{name}, {precision}"] = json.loads(out.read_text())
            except FailedError as error:
                found[f"{name}, {precision}"] = {"errors": {"all": str(error)}, "batches": {}}
    section.samples = {"ceilings": rates, "cases": found}
    report(section, found, rates)
    return section


def report(section: Section, found: dict[str, Any], rates: dict[str, Any]) -> None:
    """Tables, goals and the plot."""
    section.tables.append(
        [
            ("this machine's best", "a second"),
            *((f"{precision} matrix product, GFLOP", f"{rates[precision] / 1e9:.0f}") for precision in PRECISIONS),
            *(
                (f"reading {size // 10**6} MB, GB", f"{rate / 1e9:.1f}")
                for size, rate in rates["bytes_per_s"].items()
            ),
        ]
    )
    rows = [("p50 in ms", *WAYS, f"{NATIVE} / best peer", f"{PORTFOLIO} / best peer", "GFLOP", "MB", "of roofline")]
    chosen = {case: choice(each["batches"]) for case, each in found.items()}
    against: dict[str, dict[str, Ratio]] = {NATIVE: {}, PORTFOLIO: {}}
    plot: dict[str, dict[str, float]] = {}
    for case, label, precision, of in batches(found):
        medians = {name: statistics.median(p50s(blocks)) for name, blocks in of["ms"].items()}
        peers = {name: medians[name] for name in PEERS if name in medians}
        best = min(peers, key=lambda name: peers[name]) if peers else None
        if best is not None and NATIVE in medians:
            against[NATIVE][label] = ratio(p50s(of["ms"][NATIVE]), p50s(of["ms"][best]))
        if best is not None and (way := chosen[case]) in medians:
            against[PORTFOLIO][label] = ratio(p50s(of["ms"][way])[1::2], p50s(of["ms"][best])[1::2])
        mine = against[NATIVE].get(label)
        share = roofline_ms(of, precision, rates) / medians[NATIVE] if NATIVE in medians else None
        if mine is not None:
            plot[label] = {f"{NATIVE} / {best}": mine.value}
        rows.append(
            (
                label,
                *(f"{medians[name]:.3g}{' *' if name == best else ''}" if name in medians else "-" for name in WAYS),
                str(mine or "-"),
                str(against[PORTFOLIO].get(label, "-")),
                f"{of['flops'] / 1e9:.3g}",
                f"{of['bytes'] / 1e6:.3g}",
                f"{share:.0%}" if share is not None else "-",
            )
        )
    section.tables.append(rows)
    missing = [(f"{case}: {name}", text) for case, each in found.items() for name, text in each["errors"].items()]
    if missing:
        section.tables.append([("not measured", "why"), *missing])
    if plot:
        section.plots["latency"] = bars("native over the best peer, below 1 is faster", plot, "x")
    for way, ratios in against.items():
        section.goals += goals(way, ratios)


def choice(measured: dict[Any, dict[str, Any]]) -> str | None:
    """Of this program's engines the one that is faster over all batches of a case, by every other round."""
    medians = {
        way: statistics.geometric_mean(statistics.median(p50s(of["ms"][way])[::2]) for of in measured.values())
        for way in (NATIVE, OTHER)
        if measured and all(way in of["ms"] for of in measured.values())
    }
    return min(medians, key=lambda way: medians[way]) if medians else None


def batches(found: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Every row: its case, label, precision, and what was measured."""
    for case, each in found.items():
        name, _, precision = case.rpartition(", ")
        for batch, of in each["batches"].items():
            yield case, f"{name}, {batch}, {precision}", precision, of


def goals(way: str, ratios: dict[str, Ratio]) -> list[Goal]:
    """The mean over all cases, and the worst of them."""
    wishes = (f"geometric mean at most {MEAN_LIMIT:g} x the best peer", f"no interval above {WORST_LIMIT:g} x")
    if not ratios:
        return [Goal(f"latency, {way}", wish, "no case was measured", None) for wish in wishes]
    mean = statistics.geometric_mean(each.value for each in ratios.values())
    above = {label: each for label, each in ratios.items() if each.low > WORST_LIMIT}
    worst = max(ratios, key=lambda label: ratios[label].low)
    return [
        Goal(f"latency, {way}: mean", wishes[0], f"{mean:.3g} x over {len(ratios)} cases", mean <= MEAN_LIMIT),
        Goal(
            f"latency, {way}: worst case",
            wishes[1],
            f"{len(above)} of {len(ratios)} above; worst {worst}: {ratios[worst]} x",
            not above,
        ),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        prepare_case(sys.argv[2])
    elif sys.argv[1:2] == ["--task"]:
        _, _, case_name, case_precision, num_rounds, place = sys.argv
        measured = measure_task(Task(case_name, case_precision), int(num_rounds))
        Path(place).write_text(json.dumps(measured))
    else:
        main(__doc__, measure)
