"""What grows with what.

Each figure at several sizes, and the order that fits: the slope of a straight line through both logarithms, so that
0 is no growth and 1 is in proportion. It is to be no more than the order that is expected, and a quarter for the
noise.

lookup    a direct hit found, dependencies compared, in a store of so many artifacts
load      an artifact loaded in a fresh process, weights frozen and external, by their bytes
plan      the plans of all batch sizes up to 256 made, by the number of buckets
watch     a look at a sweep's jobs, each of which has shown life, by their number; and their summary written
"""

from __future__ import annotations

import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fleet
import numpy as np
import store as stores
import torch
from common import APP_STORE, NUM_THREADS, USER_CACHE, Goal, Section, about, child, main, say, timed
from torch import nn

from app.api import compile_model, session
from app.report.plot import line_plot
from app.runtime.plans import Latencies, Planner
from app.store import Store

SLACK = 0.25
LOAD = "from app import load; print(load({alias!r}).info['phases_s']['load'])"
Points = list[tuple[float, float]]


def lookup(counts: list[int], folder: Path) -> Points:
    found = []
    for count in counts:
        say(f"growth: a store of {count}")
        requests = stores.fill(folder / f"store-{count}", count)
        with Store(folder / f"store-{count}") as store:
            seconds = statistics.median(stores.look(store, request) for request in stores.pick(requests, 100))
        found.append((float(count), seconds * 1e3))
    return found


def load(widths: list[int], weights: str, repeats: int) -> Points:
    """By the bytes of a square matrix."""

    def make(width: int) -> str:
        module = nn.Sequential(nn.Linear(width, width), nn.ReLU()).eval()
        with session(cache={"dir": APP_STORE}, graphs={"batch_sizes": [4]}):
            model = compile_model(module, torch.randn(4, width), f"weights={weights}")
        model.name(alias := f"benchmark-growth-{width}-{weights}")
        return alias

    say(f"growth: models of {', '.join(f'{width * width * 4 / 1e6:.0f}' for width in widths)} MB, {weights}")
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        aliases = list(pool.map(make, widths))
    found = []
    for width, alias in zip(widths, aliases, strict=True):
        times = [float(child(["-c", LOAD.format(alias=alias)], USER_CACHE)) for _ in range(repeats)]
        found.append((width * width * 4.0, statistics.median(times) * 1e3))
    return found


def plan(counts: list[int]) -> Points:
    found = []
    for count in counts:
        sizes = np.unique(np.geomspace(1, 256, count).round().astype(int))
        latencies = Latencies({int(size): float(size) ** 0.8 for size in sizes}, {1: 1.0, 256: 256.0**0.9})
        times = [timed(Planner(latencies, 1024).plan, 256) for _ in range(3)]
        found.append((float(len(sizes)), min(times) * 1e3))
    return found


def watch(counts: list[int], folder: Path) -> tuple[Points, Points]:
    record, looks, summaries = fleet.run_one_job(folder / "real"), [], []
    for count in counts:
        say(f"growth: a sweep of {count} jobs")
        seconds = fleet.look_at(fleet.fill(folder / f"jobs-{count}", record, count), count)
        looks.append((float(count), seconds["watched"] * 1e3))
        summaries.append((float(count), seconds["summed up"] * 1e3))
    return looks, summaries


def order(points: Points) -> float:
    """The exponent that fits."""
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


def measure(quick: bool) -> Section:
    section = Section("Growth", about(__doc__))
    counts = [30, 100, 300] if quick else [100, 1000, 10_000]
    jobs = [30, 100, 300] if quick else [100, 1000, 10_000]
    widths = [256, 1024] if quick else [512, 2048, 8192]
    with tempfile.TemporaryDirectory(prefix="growth-") as text:
        folder = Path(text)
        looks, summaries = watch(jobs, folder)
        curves = {
            "lookup / artifacts": (lookup(counts, folder), 0.0),
            "load, frozen / bytes": (load(widths, "frozen", 3 if quick else 7), 1.0),
            "load, external / bytes": (load(widths, "external", 3 if quick else 7), 0.0),
            "plan / buckets": (plan([2, 4, 8, 16, 32]), 1.0),
            "watch / jobs": (looks, 1.0),
            "summary / jobs": (summaries, 1.0),
        }
    for name, (points, expected) in curves.items():
        what, _, of = name.partition(" / ")
        section.tables.append([(f"{what}: {of}", "ms"), *((f"{x:,.0f}", f"{y:.3g}") for x, y in points)])
        slope = order(points)
        wish = f"order {expected:g} at most" if expected else "no growth (order 0)"
        section.goals.append(Goal(f"{what} with {of}", wish, f"order {slope:.2f}", slope <= expected + SLACK))
        # relative to the first point, so that all are in one picture
        (x0, y0), *_ = points
        section.samples[name] = {"points": points, "order": slope}
        curves[name] = ([(x / x0, y / y0) for x, y in points], expected)
    lines = {f"{name}: order {section.samples[name]['order']:.2f}": points for name, (points, _) in curves.items()}
    section.plots["growth"] = line_plot("cost by size, both times the smallest", "size", "cost", lines, log=True)
    return section


if __name__ == "__main__":
    main(__doc__, measure)
