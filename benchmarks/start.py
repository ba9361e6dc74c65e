"""What starting costs: whole processes, from the interpreter's start to the model's first output, side by side.

    python benchmarks/start.py [--quick] [--model linear|cnn|transformer] [--repeats N]

    import torch   `import torch` alone, which every way below pays
    direct hit     this program's lookup and load of an artifact that is already stored, and one call
    torch.compile  the same model through torch.compile, its own cache folder filled by an earlier process
    eager          the model built and called as it is

The ways take turns, so that a machine that drifts hits them all. Compiling is done once, before, and not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("linear", "cnn", "transformer")

# Each is a program of its own. What it prints is its first output's sum, so that no way can skip the work.
TORCH = "import torch; print(0.0)"
EAGER = """
import torch
from app.workloads import reference
torch.manual_seed(0)
module = getattr(reference, {attribute!r})().eval()
"""
CALL = """
with torch.inference_mode():
    print(float({call}(torch.{inputs}).sum()))
"""
COMPILED = "module = torch.compile(module, dynamic=True)\n"
DIRECT_HIT = """
from pathlib import Path
from app import dependencies, lookup
from app.composed import settings_of
from app.keys import request_key
from app.store import Store
settings = settings_of({overrides!r})
with Store(Path(settings.cache.dir)) as store:
    found = lookup.find(store, request_key(settings, "cpu"), dependencies.named_files(settings))
    assert isinstance(found, lookup.Found), found.reasons
import torch
from app.runtime.model import load
compiled = load(found.artifact.path, found.artifact.manifest.content, "cpu")
"""
FACTORIES = {"linear": "linear", "cnn": "cnn", "transformer": "Transformer"}
INPUTS = {
    "linear": "ones(4, 768)",
    "cnn": "ones(4, 64, 100)",
    "transformer": "ones(4, 32, dtype=torch.int64)",
}


def main() -> None:
    arguments = parse()
    repeats = arguments.repeats or (3 if arguments.quick else 15)
    with tempfile.TemporaryDirectory(prefix="start-") as folder:
        programs = write(arguments.model, Path(folder))
        prepare(programs, Path(folder))
        samples: dict[str, list[float]] = {name: [] for name in programs}
        for turn in range(repeats):
            print(f"round {turn + 1} of {repeats}", file=sys.stderr, flush=True)
            for name, program in programs.items():
                samples[name].append(run(program, Path(folder))[0])
    report(arguments.model, samples)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 15")
    parser.add_argument("--model", choices=MODELS, default="cnn")
    parser.add_argument("--repeats", type=int, help="rounds, whatever --quick says")
    return parser.parse_args()


def write(model: str, folder: Path) -> dict[str, Path]:
    """One file a way."""
    eager = EAGER.format(attribute=FACTORIES[model])
    overrides = [f"model={model}", "mode=max-autotune", "device=cpu", f"cache.dir={folder / 'store'}"]
    texts = {
        "import torch": TORCH,
        "direct hit": DIRECT_HIT.format(overrides=overrides) + CALL.format(call="compiled", inputs=INPUTS[model]),
        "torch.compile": eager + COMPILED + CALL.format(call="module", inputs=INPUTS[model]),
        "eager": eager + CALL.format(call="module", inputs=INPUTS[model]),
    }
    programs = {}
    for name, text in texts.items():
        programs[name] = folder / f"{name.replace(' ', '_').replace('.', '_')}_way.py"
        programs[name].write_text(text)
    command = [sys.executable, "-m", "app", "task=compile", *overrides]
    subprocess.run(command, check=True, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL)
    return programs


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}


def run(program: Path, folder: Path) -> tuple[float, float]:
    """Seconds of the whole process, and the sum it printed."""
    began = time.perf_counter()
    command = [sys.executable, str(program)]
    done = subprocess.run(command, check=True, cwd=folder, env=environment(folder), capture_output=True, text=True)
    return time.perf_counter() - began, float(done.stdout)


def prepare(programs: dict[str, Path], folder: Path) -> None:
    """Run each once: files are in memory, torch.compile's cache is filled, and all ways give the same answer."""
    sums = {name: run(program, folder)[1] for name, program in programs.items() if name != "import torch"}
    for name, value in sums.items():
        if abs(value - sums["eager"]) > 1e-3 * max(1.0, abs(sums["eager"])):
            sys.exit(f"{name} gives {value}, eager {sums['eager']}: nothing to compare")


def report(model: str, samples: dict[str, list[float]]) -> None:
    """Print the table, and keep every sample."""
    from app import environment as machine

    facts = machine.describe("cpu")
    print(f"process start to first output, {model}, batch 4: seconds, {len(samples['eager'])} processes each")
    print(f"{facts['cpu']}, {facts['cores']} cores, Python {facts['python']}, torch {facts['torch']}\n")
    print(f"{'':<14} {'median':>7} {'min':>7} {'max':>7}")
    for name, values in samples.items():
        print(f"{name:<14} {statistics.median(values):7.2f} {min(values):7.2f} {max(values):7.2f}")
    now = datetime.now(UTC)
    kept = ROOT / "outputs" / "benchmarks" / f"start-{model}-{now:%Y%m%dT%H%M%SZ}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    content = {"model": model, "created_at": now.isoformat(), **facts, "seconds": samples}
    kept.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nsamples: {kept.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
