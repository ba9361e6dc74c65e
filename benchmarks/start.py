"""Process start to first right output, everything warm.

From the interpreter's start until the output is on standard output, of whole processes in turns: the transformer at
batch 4, fp32. Each way was run before: files are in memory, caches are full, and all answers are the same.
app.load pauses Python's garbage collector while torch is imported, which the direct way doesn't.

import torch            alone
direct                  `import torch`, the artifact's library loaded by torch's own class, and one call
app.load("ALIAS")       the same artifact through this program, by its name
app.load(overrides)     the same, by what the command line would name
app.instant             the same, without Python's torch
torch.compile           its FX graph cache full, in the default mode
mega-cache              the same, the cache from one file: three times after the others, for it takes longest
aoti_load_package       torch's public way to load a package
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from common import (  # fmt: skip
    NUM_THREADS,
    ROOT,
    STORE,
    USER_CACHE,
    FailedError,
    Goal,
    Section,
    about,
    at_most,
    child,
    in_turns,
    last_line,
    main,
    ratio,
    spread,
    why,
)

from app.report.plot import bars

ALIAS = "benchmark-start"
OVERRIDES = ("model=transformer", "mode=max-autotune", "device=cpu")
HERE = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
EAGER = """
import torch
from app.workloads import reference
torch.manual_seed(0)
module = reference.Transformer().eval()
"""
TENSOR = "import torch\nwith torch.inference_mode():\n    answer = {call}\nshow(answer.tolist())\n"
SHOW = "import json\ndef show(rows): print(json.dumps(rows), flush=True)\n"
ONES = "torch.ones(4, 32, dtype=torch.int64)"
ARRAY = "import numpy as np\nvalue = np.ones((4, 32), np.int64)\n"
IMPORT, DIRECT, INSTANT, COMPILE = "import torch", "direct", "app.instant", "torch.compile"
MEGA = f"{COMPILE}, mega-cache"
ALIASED, COMPOSED, ORT = 'app.load("ALIAS")', "app.load(overrides)", "ONNX Runtime"


def programs(library: str, package: Path, onnx: Path, mega: Path) -> dict[str, str]:
    """A program for each way."""
    compiled = EAGER + "module = torch.compile(module)\n" + TENSOR.format(call=f"module({ONES})")
    loaded = "from app import load\nmodel = load({what})\n" + TENSOR.format(call=f"model({ONES})")
    fill = f"torch.compiler.load_cache_artifacts(open({str(mega)!r}, 'rb').read())\n"
    found = {
        IMPORT: "import torch\nshow(0)",
        DIRECT: f"import torch\nrunner = torch._C._aoti.AOTIModelContainerRunnerCpu({library!r}, 1)\n"
        + TENSOR.format(call=f"runner.run([{ONES}])[0]"),
        ALIASED: loaded.format(what=repr(ALIAS)),
        COMPOSED: loaded.format(what=", ".join(map(repr, OVERRIDES))),
        COMPILE: compiled,
        MEGA: EAGER + fill + compiled.removeprefix(EAGER),
        "aoti_load_package": f"import torch\nmodel = torch._inductor.aoti_load_package({str(package)!r})\n"
        + TENSOR.format(call=f"model({ONES})"),
        ORT: f"{ARRAY}import onnxruntime\nmodel = onnxruntime.InferenceSession({str(onnx)!r})\n"
        "show(model.run(None, {model.get_inputs()[0].name: value})[0].tolist())",
        "OpenVINO": f"{ARRAY}import openvino\ncore = openvino.Core()\n"
        f"core.set_property({{'CACHE_DIR': {str(onnx.parent / 'openvino')!r}}})\n"
        f"model = core.compile_model({str(onnx)!r}, 'CPU', {{'INFERENCE_PRECISION_HINT': 'f32'}})\n"
        "show(model([value])[0].tolist())",
        "eager": EAGER + TENSOR.format(call=f"module({ONES})"),
    }
    if importlib.util.find_spec("app.instant"):
        found[INSTANT] = f"{ARRAY}from app import instant\nshow(instant.load({ALIAS!r})(value).tolist())"
    return found


def prepare(folder: Path) -> dict[str, str]:
    """Compile whatever any of the ways loads, each in a process of its own."""
    options = [f"cache.alias={ALIAS}", f"hydra.run.dir={folder / 'run'}"]
    child(["-m", "app", "task=compile", *OVERRIDES, *options], USER_CACHE)
    record = json.loads((folder / "run" / "record.json").read_text())
    make = "from ways import Task, aoti, onnx\ntask = Task('transformer', 'fp32')\n{}\nprint(task.folder)"

    def place(what: str) -> Path:
        try:
            return Path(child(["-c", HERE + make.format(what)], USER_CACHE).split()[-1])
        except FailedError:
            return folder  # its way fails too, and says why

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        package, exported = pool.map(place, ("aoti(task)", "onnx(task)"))
    mega = STORE / "mega-cache"
    found = programs(f"{record['artifact_dir']}/model.so", package / "plain.pt2", exported / "model.onnx", mega)
    save = f"\nopen({str(mega)!r}, 'wb').write(torch.compiler.save_cache_artifacts()[0])"
    with suppress(FailedError):  # as above
        child(["-c", SHOW + HERE + found[COMPILE] + save], environment(COMPILE, folder))
    return found


def environment(name: str, folder: Path) -> dict[str, str]:
    """torch.compile has a cache of its own, which the one file has to fill each time."""
    fresh = tempfile.mkdtemp(dir=folder) if name == MEGA else str(folder / "inductor")
    return {**USER_CACHE, "TORCHINDUCTOR_CACHE_DIR": fresh, "TMPDIR": str(folder)}


def start(program: str, env: dict[str, str], expected: list[list[float]] | None = None) -> float:
    """Seconds until a process has printed its answer, which is the expected one."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", SHOW + HERE + program], env={**os.environ, **env}, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
        _, said = process.communicate()
    if process.returncode:
        raise FailedError(last_line(said) or f"exit code {process.returncode}")
    if expected is not None and not np.allclose(json.loads(line), expected, rtol=1e-3, atol=1e-4):
        raise FailedError("its answer is not eager's")
    return seconds


def measure(quick: bool) -> Section:
    section = Section("Start", about(__doc__))
    with tempfile.TemporaryDirectory(prefix="start-") as text:
        folder = Path(text)
        found, failed = prepare(folder), []
        expected = json.loads(child(["-c", SHOW + HERE + found["eager"]]))
        for name, program in list(found.items()):
            try:
                for _ in range(2):  # what the first leaves is there for the second
                    start(program, environment(name, folder), None if name == IMPORT else expected)
            except FailedError as error:
                failed.append((name, why(error)))
                del found[name]
        ways = {name: lambda n=name: start(found[n], environment(n, folder)) for name in found}
        last = {name: ways.pop(name) for name in (MEGA,) if name in ways}
        samples = in_turns(ways, 3 if quick else 7, "start") | in_turns(last, 3, "start, mega-cache")
    section.samples = samples
    section.tables = [[("seconds", "median", "min", "max"), *((name, *spread(of)) for name, of in samples.items())]]
    if failed:
        section.tables.append([("not measured", "why"), *failed])
    section.plots["start"] = bars(
        "process start to first output", {name: {"start": float(np.median(of))} for name, of in samples.items()}, "s"
    )
    for name, other, limit in (
        (ALIASED, DIRECT, 1.15),
        (COMPOSED, DIRECT, 1.15),
        (ALIASED, COMPILE, 0.3),
        (INSTANT, COMPILE, 0.08),
        (INSTANT, ORT, 2),
    ):
        goal = f"start, {name} / {other}"
        if name in samples and other in samples:
            section.goals.append(at_most(goal, ratio(samples[name], samples[other]), limit, other))
        else:
            section.goals.append(Goal(goal, f"at most {limit:g} x {other}", "-", None))
    return section


if __name__ == "__main__":
    main(__doc__, measure)
