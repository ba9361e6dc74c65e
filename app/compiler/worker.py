"""The compile worker's side: build, export, look for the same program, compile, load, verify.

It runs in a process of its own that can be timed out and killed, from an allow-listed environment, and tells its
parent what it does as one JSON line an event on a pipe. Whatever crashes here costs a fallback, never the run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ..errors import AppError, VerifyError

ARTIFACT = "artifact"
WEIGHTS_FOLDER = "weights"


def main() -> None:
    """Read the request, die with the parent, work, and report."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with os.fdopen(request["events"], "w", encoding="utf-8", buffering=1) as events:
        try:
            result = _work(request, events)
            _send(events, {"event": "done", "result": result})
        except AppError as error:
            _send(events, {"event": "error", "type": type(error).__name__, "message": error.message})
            if request["debug"]:
                raise
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the artifact is on disk: nothing that an atexit handler or a destructor does may spoil it


def _die_with_parent() -> None:
    """The parent holds the other end of standard input: when it dies, so does this whole process group."""
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


def _send(events: TextIO, event: Mapping[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")


def _work(request: Mapping[str, Any], events: TextIO) -> dict[str, Any]:
    def phase(name: str) -> None:
        _send(events, {"event": "phase", "name": name})

    from .. import keys, verdict
    from ..config import BATCH, typed
    from ..dependencies import Recorder
    from ..numerics import apply_numerics
    from ..runtime.model import LIBRARY, load
    from ..store import Hit, Store
    from ..verify import Judge
    from ..workloads import at_precision, build

    settings = typed(request["settings"])
    device, staging = request["device"], Path(request["staging"])
    apply_numerics(settings)

    phase("build")
    recorder = Recorder()
    with recorder.recording():
        workload = build(settings, device)
    dependencies = [item.to_json() for item in recorder.dependencies(settings)]
    module = at_precision(workload.module, settings.precision.name)

    phase("export")
    from .export import export
    from .lower import check_compiler, check_options, lower, save_weights, weights_content, weights_meta

    exported = export(workload, module)
    frozen = settings.inductor_options["freezing"]
    key = keys.object_key(
        keys.Key(request["factors"]),
        graph=exported.graph(),
        weights=weights_content(exported) if frozen else weights_meta(exported),
    )
    result = {"object": key.digest, "factors": key.factors, "dependencies": dependencies, "weights": None}
    artifact, weights = staging / ARTIFACT, staging / WEIGHTS_FOLDER
    found = Store(Path(request["store"]), readonly=True).read("objects", key.digest) if request["store"] else None
    if isinstance(found, Hit):
        content, folder = found.artifact.manifest.content, found.artifact.path
        result |= {"outcome": "graph-hit", "content": content}
        if frozen:
            return result
    else:
        phase("compile")
        provenance = {"compiler": check_compiler()}
        check_options(settings.inductor_options)
        artifact.mkdir()
        folder = artifact
        lower(exported, settings.inductor_options, artifact, staging / "lowered")
        content = {"spec": exported.spec.to_json(), "constants": None}
        result |= {"outcome": "miss", "content": content, "provenance": provenance}

    if not frozen:
        weights.mkdir()
        content = {**content, "constants": save_weights(exported, folder / LIBRARY, device, weights)}
        result |= {"content": content, "weights": weights_content(exported)["sha256"]}

    phase("verify")
    model = load(folder, content, device, weights=weights if not frozen else None)
    judge = Judge(workload, module)
    wanted = verdict.plan(settings.graphs.batch_sizes, settings.verify.seeds, content["spec"]["dims"].get(BATCH))
    cases = [judge.case(model, size, seed) for size, seed in wanted]
    refusal = verdict.refusal(cases, settings.verify.multiple, settings.precision.floor)
    if refusal is not None:
        raise VerifyError(refusal)
    shutil.rmtree(staging / "lowered", ignore_errors=True)
    return {**result, "cases": [case.to_json() for case in cases]}
