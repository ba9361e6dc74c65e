"""The compile worker's side: build, export, look for the same program, compile, load, verify.

It runs in a process of its own that can be timed out and killed, from an allow-listed environment, and tells its
parent what it does as one JSON line an event on a pipe. Whatever crashes here costs a fallback, never the run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import AppError, VerifyError

if TYPE_CHECKING:
    from torch import nn

    from ..config import Settings
    from ..keys import Key
    from ..workloads import Workload
    from .export import Exported

ARTIFACT = "artifact"
WEIGHTS_FOLDER = "weights"


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
            _send(events, {"event": "error", "type": type(error).__name__, "message": error.message})
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
class Prepared:
    """A model as it was built and exported, and the names that it goes by.

    Attributes:
        workload: The model as eager runs it.
        module: The same in the precision that was asked for.
        exported: The program.
        object: The object level of the key.
        weights: Digest of the weights' content.
        dependencies: What building the model read.
    """

    workload: Workload
    module: nn.Module
    exported: Exported
    object: Key
    weights: str
    dependencies: list[list[Any]]


def prepare(
    settings: Settings, factors: Mapping[str, Any], device: str, on_phase: Callable[[str], None] = lambda _: None
) -> Prepared:
    """Build and export: all that leads to the graph level of the key, and nothing that compiles.

    Args:
        settings: The run's settings.
        factors: The request's factors.
        device: `cpu` or `cuda:N`.
        on_phase: Called with the name of each phase as it begins.

    Raises:
        AppError: the model doesn't build or export.
    """
    from ..dependencies import Recorder
    from ..keys import Key, object_key
    from ..numerics import apply_numerics
    from ..workloads import at_precision, build

    apply_numerics(settings)
    on_phase("build")
    recorder = Recorder()
    with recorder.recording():
        workload = build(settings, device)
    dependencies = [item.to_json() for item in recorder.dependencies(settings)]
    module = at_precision(workload.module, settings.precision.name)

    on_phase("export")
    from . import lower
    from .export import export

    exported = export(workload, module)
    content = lower.weights_content(exported)
    frozen = settings.inductor_options["freezing"]
    key = object_key(
        Key(factors), graph=exported.graph(), weights=content if frozen else lower.weights_meta(exported)
    )
    return Prepared(workload, module, exported, key, content["sha256"], dependencies)


def _work(request: Mapping[str, Any], events: TextIO, answers: SimpleQueue[str]) -> dict[str, Any]:
    """Build, export, and compile unless the store has the same program already; returns Compiled's fields."""

    def phase(name: str) -> None:
        _send(events, {"event": "phase", "name": name})

    from ..config import Settings
    from ..lookup import open_store
    from ..store import Hit

    settings, device, staging = Settings.from_json(request["settings"]), request["device"], Path(request["staging"])
    made = prepare(settings, request["factors"], device, phase)
    from . import lower

    frozen = settings.inductor_options["freezing"]
    weights = None if frozen else staging / WEIGHTS_FOLDER
    _send(events, {"event": "object", "digest": made.object.digest})
    answers.get()  # the parent holds the object's lock now
    store = open_store(settings.cache, Path(request["store"]), readonly=True)
    found = store.read("objects", made.object.digest)
    result: dict[str, Any] = {
        "outcome": "graph-hit" if isinstance(found, Hit) else "miss",
        "object": made.object.digest,
        "factors": made.object.factors,
        "weights": None if frozen else made.weights,
        "dependencies": made.dependencies,
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
        result["provenance"] = {"compiler": lower.check_compiler()}
        lower.lower(made.exported, settings.inductor_options, folder, staging / "lowered")
        content = {"spec": made.exported.spec.to_json(), "constants": None}
    if weights is not None:
        weights.mkdir()
        content["constants"] = lower.save_weights(made.exported, folder, device, weights)
    if weights is not None or not isinstance(found, Hit):  # with frozen weights, a hit was verified with these
        phase("verify")
        result["cases"] = _verify(settings, made, folder=folder, content=content, weights=weights)
    return {**result, "content": content}


def _verify(
    settings: Settings, made: Prepared, *, folder: Path, content: Any, weights: Path | None
) -> list[dict[str, Any]]:
    """Load the artifact, for the first time anywhere, and judge it; nothing refused leaves this process."""
    from .. import verdict
    from ..config import BATCH
    from ..runtime.model import load
    from ..verify import Judge

    model = load(folder, content, made.workload.device, weights=weights)
    judge = Judge(made.workload, made.module)
    wanted = verdict.plan(settings.graphs.batch_sizes, settings.verify.seeds, content["spec"]["dims"].get(BATCH))
    cases = [judge.case(model, size, seed) for size, seed in wanted]
    refusal = verdict.refusal(cases, settings.verify.multiple, settings.precision.floor)
    if refusal is not None:
        raise VerifyError(refusal)
    return [case.to_json() for case in cases]
