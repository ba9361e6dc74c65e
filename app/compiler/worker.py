"""The compile worker's side: build, export, look for the same program, compile, load, verify.

It runs in a process of its own that can be timed out and killed, from an allow-listed environment, and tells its
parent what it does as one JSON line an event on a pipe. Whatever crashes here costs a fallback, never the run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import AppError, CompileError, ExportError, TrapError, VerifyError

if TYPE_CHECKING:
    from torch import nn

    from ..config import Settings
    from ..keys import Key
    from ..verify import Judge
    from ..workloads import Workload
    from .export import Exported

ARTIFACT = "artifact"
WEIGHTS_FOLDER = "weights"
# What gcc and clang say of the code. A header that is absent is a fatal error, a full disk has no line number.
_REFUSED_CODE = re.compile(r"\.\w+:\d+(:\d+)?: error: ")


def main() -> None:
    """Read the request, die with the parent, work, and report."""
    request = json.loads(sys.stdin.readline())
    answers: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(answers,), daemon=True).start()
    with os.fdopen(request["events"], "w", encoding="utf-8", buffering=1) as events:
        try:
            result = _work(request, events, answers)
            _send(events, {"event": "done", "result": result})
        except AppError as error:
            told = {"type": type(error).__name__, "message": error.message, "dependencies": error.dependencies}
            _send(events, {"event": "error", **told})
            if request["debug"]:
                raise
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the artifact is on disk: nothing that an atexit handler or a destructor does may spoil it


def _listen(answers: SimpleQueue[str]) -> None:
    """The parent holds the other end of standard input: when it dies, so does this whole process group."""
    for line in sys.stdin:
        answers.put(line)
    os.killpg(0, signal.SIGKILL)


def _send(events: TextIO, event: Mapping[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")


@dataclass(frozen=True)
class Built:
    """A model as it was built.

    Attributes:
        workload: The model as eager runs it.
        module: The same in the precision that was asked for.
        dependencies: What building the model read.
        unrecorded: What it read and can't be recorded, in words.
    """

    workload: Workload
    module: nn.Module
    dependencies: list[list[Any]]
    unrecorded: str | None


@dataclass(frozen=True)
class Prepared(Built):
    """A model as it was built and exported, and the names that it goes by.

    Attributes:
        exported: The program.
        object: The object level of the key.
        weights: Digest of the weights' content.
    """

    exported: Exported
    object: Key
    weights: str


def build_model(
    settings: Settings,
    device: str,
    on_phase: Callable[[str], None] = lambda _: None,
    environment: Mapping[str, str] | None = None,
) -> Built:
    """Build, and note what that reads; the user's code finds the variables of `environment`, besides this process's.

    Raises:
        AppError: the model doesn't build.
    """
    from ..dependencies import Recorder
    from ..numerics import apply_numerics
    from ..workloads import build

    apply_numerics(settings)
    on_phase("build")
    recorder = Recorder(environment)
    with recorder.recording():
        workload = build(settings, device)
    dependencies = [item.to_json() for item in recorder.dependencies(settings)]
    return Built(workload, workload.at(settings.precision.name), dependencies, recorder.unrecorded)


def prepare(
    settings: Settings,
    factors: Mapping[str, Any],
    device: str,
    on_phase: Callable[[str], None] = lambda _: None,
    built: Built | None = None,
) -> Prepared:
    """Build and export: all that leads to the graph level of the key, and nothing that compiles.

    Args:
        settings: The run's settings.
        factors: The request's factors.
        device: `cpu` or `cuda:N`.
        on_phase: Called with the name of each phase as it begins.
        built: The model, where it is built already.

    Raises:
        AppError: the model doesn't build or export.
    """
    from ..keys import Key, object_key

    built = built or build_model(settings, device, on_phase)

    on_phase("export")
    from . import indices, lower
    from .export import export

    exported = export(built.workload, built.module)
    indices.try_largest(exported.program, built.workload)
    content = lower.weights_content(exported)
    frozen = settings.inductor_options["freezing"]
    key = object_key(
        Key(factors), graph=exported.graph(), weights=content if frozen else lower.weights_meta(exported)
    )
    return Prepared(
        built.workload, built.module, built.dependencies, built.unrecorded, exported, key, content["sha256"]
    )


def _work(request: Mapping[str, Any], events: TextIO, answers: SimpleQueue[str]) -> dict[str, Any]:
    """Build and compile; returns the fields of Compiled. A failure says whether it would happen again."""

    def phase(name: str) -> None:
        _send(events, {"event": "phase", "name": name})

    def lock(digest: str) -> None:
        _send(events, {"event": "object", "digest": digest})
        answers.get()  # the parent holds the object's lock now

    from ..config import Settings

    settings = Settings.from_json(request["settings"])
    built = build_model(settings, request["device"], phase, request["environment"])
    try:
        try:
            return _compile(request, settings, built, phase, lock)
        except (ExportError, CompileError) as error:
            machines = isinstance(error, CompileError) and _is_the_machines(error)
            if error.stage not in request["jit"] or isinstance(error, TrapError) or machines:
                raise
            _send(events, {"event": "step", "stage": error.stage, "message": error.message})
            result = by_jit(settings, request["factors"], Path(request["staging"]), built, phase)
            result["content"]["reason"] = {"stage": error.stage, "message": error.message}
            return result
    except AppError as error:
        if not _is_the_machines(error) and built.unrecorded is None:
            error.dependencies = built.dependencies
        raise


def _is_the_machines(error: BaseException | None) -> bool:
    """Whether a disk or the C++ compiler refused: it refuses torch.compile too, and may not do so the next time.

    A compiler that finds a mistake in the code itself is Inductor's failure: torch.compile writes other code.
    """
    while error is not None:
        if _REFUSED_CODE.search(str(error)):
            return False
        if isinstance(error, OSError | subprocess.SubprocessError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _compile(
    request: Mapping[str, Any],
    settings: Settings,
    built: Built,
    phase: Callable[[str], None],
    lock: Callable[[str], None],
) -> dict[str, Any]:
    """Export, and compile unless the store has the same program already."""
    device, staging = request["device"], Path(request["staging"])
    made = prepare(settings, request["factors"], device, phase, built)
    # not before the model is built: what is loaded by then counts as read for it
    from ..config import OPENVINO
    from ..lookup import open_store
    from ..store import Hit
    from ..verify import Judge
    from ..workloads import unwrapped
    from . import lower

    frozen = settings.inductor_options["freezing"]
    weights = None if frozen else staging / WEIGHTS_FOLDER
    lock(made.object.digest)
    store = open_store(settings.cache, Path(request["store"]), readonly=True)
    found = store.read("objects", made.object.digest)
    result: dict[str, Any] = {
        "outcome": "graph-hit" if isinstance(found, Hit) else "miss",
        "object": made.object.digest,
        "factors": made.object.factors,
        "weights": None if frozen else made.weights,
        "dependencies": made.dependencies,
        "unrecorded": made.unrecorded,
        "provenance": {},
        "cases": [],
    }
    if request["only_export"]:
        return {**result, "content": {}}
    if isinstance(found, Hit):
        folder, content = found.artifact.path, found.artifact.manifest.content
    else:
        phase("compile")
        folder = staging / ARTIFACT
        folder.mkdir()
        content = {"spec": made.exported.spec.to_json(), "constants": None, "example": made.workload.sizes()}
        if settings.mode.engine == OPENVINO:
            from . import openvino

            content |= openvino.lower(made.exported, settings.precision.name, folder)
        else:
            result["provenance"] = {"compiler": lower.check_compiler()}
            lower.lower(made.exported, settings.inductor_options, folder, staging / "lowered")
    if weights is not None:
        weights.mkdir()
        content["constants"] = lower.save_weights(made.exported, folder, device, weights, unwrapped(made.module)[1])
    if weights is not None or not isinstance(found, Hit):  # with frozen weights, a hit was verified with these
        phase("verify")
        judge = Judge(made.workload, made.module)
        result["cases"] = _verify(settings, made, judge, folder=folder, content=content, weights=weights)
        if not isinstance(found, Hit):
            content["mixing"] = judge.mixing(made.exported.spec, any_weights=not frozen)
    return {**result, "content": content}


def _verify(
    settings: Settings, made: Prepared, judge: Judge, *, folder: Path, content: Any, weights: Path | None
) -> list[dict[str, Any]]:
    """Load the artifact, for the first time anywhere, and judge it; nothing refused leaves this process."""
    from ..runtime.model import load

    # of a live module's outputs the classes are in the process that asked
    spec = {**content["spec"], **made.exported.plain.structure}
    model = load(folder, {**content, "spec": spec}, made.workload.device, weights=weights)
    return _judge(settings, made.workload, judge, model, content)


def by_jit(
    settings: Settings, factors: Mapping[str, Any], staging: Path, built: Built, phase: Callable[[str], None]
) -> dict[str, Any]:
    """Compile by torch.compile; returns the fields of Compiled.

    The request's lock is enough: no other request leads to the same object.
    """
    from .. import verdict
    from ..keys import Key
    from ..verify import Judge
    from . import jit, lower

    phase("compile")
    for name in (ARTIFACT, WEIGHTS_FOLDER):
        shutil.rmtree(staging / name, ignore_errors=True)  # what a failed lowering left
    (staging / ARTIFACT).mkdir()
    provenance = {"compiler": lower.check_compiler()}
    lower.check_options(settings.inductor_options)
    dims, example = {name: (dim.min, dim.max) for name, dim in built.workload.dims.items()}, built.workload.sizes()
    calls = verdict.plan(settings.graphs.batch_sizes, settings.verify.seeds, dims, example)
    key = jit.key_of(Key(factors), built.module, built.dependencies)
    model, content = jit.compile_module(settings, built.workload, built.module, calls, staging / ARTIFACT)
    content["example"] = example
    phase("verify")
    cases = _judge(settings, built.workload, Judge(built.workload, built.module), model, content)
    if jit.key_of(Key(factors), built.module, built.dependencies) != key:
        raise VerifyError("the model changes its own state while it runs: loading, which runs it, would too")
    return {
        "outcome": "miss",
        "object": key.digest,
        "factors": key.factors,
        "weights": None,
        "dependencies": built.dependencies,
        "unrecorded": built.unrecorded,
        "provenance": provenance,
        "cases": cases,
        "content": content,
    }


def _judge(
    settings: Settings, workload: Workload, judge: Judge, model: Callable[..., Any], content: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Compare over the range that was compiled; raises VerifyError where nothing of it may be served."""
    from .. import extent, verdict
    from ..config import OPENVINO
    from ..workloads.kinds import NOT_FINITE

    dims, example = content["spec"]["dims"], content["example"]
    wanted = verdict.plan(settings.graphs.batch_sizes, settings.verify.seeds, dims, example)
    floor, kinds = settings.precision.floor, workload.kinds(example)
    if settings.mode.engine == OPENVINO:
        kinds = [kind for kind in kinds if kind not in NOT_FINITE]
    cases = extent.compare(
        judge, model, wanted, dims=dims, example=example, kinds=kinds, verify=settings.verify, floor=floor
    )
    found = verdict.extent(cases, dims, example, settings.verify.multiple, floor)
    if found.refusal is not None:
        raise VerifyError(found.refusal)
    return [case.to_json() for case in cases]
