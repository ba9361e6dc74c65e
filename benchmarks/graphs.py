"""What CUDA graphs are worth: each model in each mode, with and without them, beside eager.

    python benchmarks/graphs.py [--quick] [--models linear,cnn,transformer] [--device cuda] [--cache DIR]

Every pair of a model and a mode is one run of `python -m app`, which measures eager, the compiled artifact, and the
same artifact replayed from graphs in turns, and compares each with float64. The report has what capturing took in
seconds and device memory, and the median latency of every batch size by each way. It needs a CUDA device; on any
other, say with `--device cpu`, it reports what was asked for and why there are no graphs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.report.plot import line_plot

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "outputs" / "gpu-report"
MODES = ("default", "reduce-overhead", "max-autotune")
WAYS = ("eager", "compiled", "cudagraph")
QUICK = ("measure.budget_s=0.1", "measure.warmup=1", "measure.min_samples=3")


def main() -> None:
    arguments = parse()
    if arguments.device == "cuda" and not has_cuda():
        print("no CUDA device: torch.cuda.is_available() is false; nothing was measured")
        return
    runs = []
    with tempfile.TemporaryDirectory(prefix="graphs-") as temporary:
        cache = arguments.cache or str(Path(temporary) / "cache")
        for model in arguments.models.split(","):
            for mode in arguments.modes.split(","):
                print(f"{model}, {mode}", file=sys.stderr, flush=True)
                runs.append(run(model, mode, arguments, cache))
    write(runs, arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short measurements: shows that it works, not how fast")
    parser.add_argument("--models", default="linear,cnn,transformer", help="comma-separated")
    parser.add_argument("--modes", default=",".join(MODES), help="comma-separated")
    parser.add_argument("--batch-sizes", default="1,2,4,8,16,32", help="comma-separated")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the report is written")
    parser.add_argument("--cache", help="keep artifacts in this folder; a temporary one unless given")
    return parser.parse_args()


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def run(model: str, mode: str, arguments: argparse.Namespace, cache: str) -> dict[str, Any]:
    """One run's record."""
    command = [
        sys.executable, "-m", "app", f"model={model}", f"mode={mode}", f"device={arguments.device}",
        f"graphs.batch_sizes=[{arguments.batch_sizes}]", "graphs.enabled=true", "graphs.plan=off", "output=json",
        f"cache.dir={cache}", *(QUICK if arguments.quick else ()),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    try:
        record: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        sys.exit(f"{' '.join(command)} exits {done.returncode} without a record")
    return record


def write(runs: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    """report.json with every record, report.md with the tables, and a plot for each run."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    content = {"created_at": datetime.now(UTC).isoformat(), "arguments": sys.argv[1:], "runs": runs}
    (arguments.folder / "report.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    parts = [heading(runs), *map(section, runs)]
    (arguments.folder / "report.md").write_text("\n".join(parts), encoding="utf-8")
    for record in filter(lambda each: each["latency_ms"], runs):
        name = f"{record['model']}-{record['mode']}"
        lines = {
            way: [(int(batch), figures["p50"]) for batch, figures in record["latency_ms"][way].items()]
            for way in WAYS
            if way in record["latency_ms"]
        }
        plot = line_plot(f"{name}, {record['device']}: median latency", "batch size", "ms", lines)
        (arguments.folder / f"{name}.svg").write_text(plot, encoding="utf-8")
    print("\n".join(parts))
    print(f"report: {arguments.folder}")


def heading(runs: Sequence[Mapping[str, Any]]) -> str:
    import torch

    facts, device = runs[0]["environment"], runs[0]["device"]
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "no GPU"
    where = f"{name}; {facts['cpu']}, {facts['cores']} cores; Python {facts['python']}, torch {facts['torch']}"
    return f"# CUDA graphs\n\n{where}; device {device}. Latencies in ms, medians.\n"


def section(record: Mapping[str, Any]) -> str:
    """A table of one run, and what capturing took or why there was none."""
    lines = [f"## {record['model']}, {record['mode']}", ""]
    graphs = (record["monitor"] or {}).get("graphs")
    if record["status"] != "ok":
        lines.append(f"failed at {record['error']['stage']}: {record['error']['message']}")
    elif graphs is None:
        lines += [f"{step['stage']}: {step['reason']}" for step in record["fallbacks"]] or ["no graphs were captured"]
    else:
        taken = f"{graphs['seconds']:.2f} s and {graphs['bytes'] / 1e6:.1f} MB of device memory"
        lines.append(f"Captured {', '.join(graphs['captured'])} in {taken}; left out: {graphs['skipped'] or 'none'}.")
    latencies = record["latency_ms"] or {}
    ways = [way for way in WAYS if way in latencies]
    lines += ["", f"| batch | {' | '.join(ways)} | speed-up of graphs |", "|" + "---|" * (len(ways) + 2)]
    for batch in latencies.get("eager", {}):
        medians = [latencies[way][batch]["p50"] for way in ways]
        gain = "-"
        if "cudagraph" in ways and "compiled" in ways:
            gain = f"{latencies['compiled'][batch]['p50'] / latencies['cudagraph'][batch]['p50']:.2f}x"
        lines.append(f"| {batch} | {' | '.join(f'{median:.3f}' for median in medians)} | {gain} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
