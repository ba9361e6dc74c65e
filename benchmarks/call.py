"""What the runtime adds to a bare call of the compiled library, layer by layer.

A batch that is a bucket, of a module with one operator and of `linear`. Each row is the call from that layer down,
so that the difference to the row above is what the layer costs: of the least of many short blocks, for all else that
happens on a machine only adds. The goal is judged by the medians too: of a call as long as linear's the least alone
says little. Bare is torch's own class, whose `run` is `boxed_run`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import APP_STORE, Goal, Section, about, in_turns, main, spread
from torch import nn

from app.api import compile_model, session
from app.monitor import performance_monitor
from app.runtime.aoti import loader_class
from app.workloads import reference

LIMIT_US = 2.0
BARE, ALL = "bare: torch's class", "Model"


class Tiny(nn.Module):
    """One operator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any [batch, 4]."""
        return x + 1


def layers(module: nn.Module, value: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """The same call by each layer, the thinnest first."""
    with session(cache={"dir": APP_STORE}, graphs={"batch_sizes": [1, 2, 4, 8]}):
        model = compile_model(module, value)
    ladder = model._ladder  # noqa: SLF001 - the layers are what is measured
    name, compiled = ladder._rungs[0]  # noqa: SLF001
    runner, boundary = compiled._runner, compiled._boundary  # noqa: SLF001
    bare = loader_class("cpu")(str(model.info["artifact_dir"]) + "/model.so", 1)
    assert torch.allclose(model(value), module(value), rtol=1e-3, atol=1e-4), "nothing to compare"
    monitored = performance_monitor.monitor(f"benchmark/{name}")(compiled)
    bind, check, restore, tensors = boundary.bind, boundary.check, boundary.restore, [value]
    return {
        BARE: lambda: bare.run(tensors),
        "C interface": lambda: runner._run(tensors),  # noqa: SLF001
        "AotiRunner": lambda: runner(tensors),
        "+ restore": lambda: restore(runner(tensors)),
        "+ check": lambda: restore(runner(check(tensors))),
        "+ bind": lambda: restore(runner(check(bind((value,), {})))),
        "CompiledModel (plan, counts)": lambda: compiled(value),
        "monitor": lambda: monitored(value),
        "Ladder": lambda: ladder(value),
        ALL: lambda: model(value),
    }


def per_call_us(call: Callable[[], Any], times: int) -> float:
    """Microseconds of a call in a loop."""
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times * 1e6


def measure(quick: bool) -> Section:
    section = Section("Call", about(__doc__))
    rounds = 200 if quick else 1000  # short blocks, so that some of them are not interrupted
    for title, module, value, times in (
        ("one operator", Tiny().eval(), torch.randn(4, 4), 20),
        ("linear", reference.linear().eval(), torch.randn(4, 768), 10),
    ):
        with torch.inference_mode():
            ways = {name: partial(per_call_us, call, times) for name, call in layers(module, value).items()}
            for way in ways.values():
                way()
            samples = in_turns(ways, rounds, f"call, {title}")
        rows, before = [("", "least us", "adds us", "median us", "max us")], None
        for name, values in samples.items():
            middle, least, most = spread(values)
            rows.append((f"{title}: {name}", least, f"{min(values) - before:.2f}" if before else "", middle, most))
            before = min(values)
        section.tables.append(rows)
        section.samples[title] = samples
        least, middle = (of(samples[ALL]) - of(samples[BARE]) for of in (min, statistics.median))
        reached = f"{least:.2f} us by the least, {middle:.2f} us by medians"
        met = max(least, middle) < LIMIT_US
        section.goals.append(Goal(f"a call of {title} adds", f"under {LIMIT_US:g} us", reached, met))
    return section


if __name__ == "__main__":
    main(__doc__, measure)
