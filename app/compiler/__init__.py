"""Export and lower in a worker process that can be timed out and killed; this is the parent's side."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .. import errors
from ..config import OPENVINO, Settings
from ..environment import LIMITS, compiler, import_path, installed, torch_version
from ..errors import AppError, CompileError
from ..files import sha256_of
from ..keys import Key, digest
from ..record import Outcome
from .worker import ARTIFACT, WEIGHTS_FOLDER

logger = logging.getLogger(__name__)

# Everything else in the caller's environment can't reach the generated code. Where things are, and nothing that
# Inductor reads as an option.
ALLOWED_ENVIRONMENT = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "CXX", "CPATH", "LIBRARY_PATH", "LD_LIBRARY_PATH",
    "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE",
)  # fmt: skip

_BOOTSTRAP = """
import importlib, json, sys
boot = json.loads(sys.stdin.readline())
sys.path[:] = boot["path"]
importlib.import_module(boot["module"]).main()
"""
_LAST_LINES = 12


def unable(settings: Settings, device: str) -> str | None:
    """Why the mode's engine can't make an artifact as it is asked for, on any model; None where it may try."""
    if settings.mode.engine != OPENVINO:
        return None
    if device != "cpu":
        return f"OpenVINO serves on the CPU, and the device is {device}; set device=cpu"
    if not settings.inductor_options["freezing"]:
        return "OpenVINO bakes the weights into the artifact; set weights=frozen"
    if settings.target != "native":
        return f"OpenVINO takes the kernels of the processor that it runs on, and target={settings.target}"
    if installed(OPENVINO) is None:
        return "OpenVINO is not installed; pip install 'aot-app[openvino]'"
    return None


@dataclass(frozen=True)
class Compiled:
    """What a worker made, still in its staging folder.

    Attributes:
        outcome: `miss` (compiled), or `graph-hit` (the store had the same program's object already).
        object: The object's digest.
        factors: What the digest was made of.
        content: The manifest's content.
        dependencies: The files the model was built from.
        unrecorded: What it was built from besides, in words, which nobody can look at again.
        cases: The verification's figures.
        weights: The digest of external weights, or None.
        provenance: The compiler that was used.
        artifact: The folder with the new artifact's files, or None after a graph hit.
        weights_folder: The folder with external weights, or None.
    """

    outcome: Outcome
    object: str
    factors: Mapping[str, Any]
    content: Mapping[str, Any]
    dependencies: list[list[Any]]
    unrecorded: str | None
    cases: list[dict[str, Any]]
    weights: str | None
    provenance: Mapping[str, Any]
    artifact: Path | None
    weights_folder: Path | None


def compile_in_worker(
    settings: Settings,
    request: Key,
    device: str,
    *,
    staging: Path,
    store: Path,
    scratch: Path,
    log: Path,
    on_phase: Callable[[str], None],
    on_object: Callable[[str], None],
    on_step: Callable[[str, str], None],
    jit: Sequence[str] = (),
    only_export: bool = False,
) -> Compiled:
    """Build, export, compile and verify in a worker process.

    Args:
        settings: The run's settings.
        request: The request's key.
        device: `cpu` or `cuda:N`.
        staging: An empty folder on the store's file system, for what the worker makes.
        store: The store to look for the same program in.
        scratch: Where what compilers probe about this machine is kept between runs.
        log: The file that gets everything the worker and the compiler print.
        on_phase: Called with the name of each phase as it begins.
        on_object: Called with the object's digest before the store is searched for it; the worker waits meanwhile,
            outside of its time limit.
        on_step: Called with stage and message where the worker goes on to torch.compile.
        jit: The stages whose failure it may answer so.
        only_export: Compile nothing; a `miss` then has no artifact.

    Raises:
        AppError: as the worker raised it; CompileError where it crashed, was killed, or outlasted
            `compile.timeout_s`.
    """
    private = staging / "inductor"
    probes = digest([torch_version()["version"], compiler(), settings.target])[:16]
    warm = _copy_probes(scratch, probes, private)
    message = {
        "settings": dataclasses.asdict(settings),
        "factors": request.factors,
        "device": device,
        "staging": str(staging),
        "store": str(store),
        "debug": settings.debug,
        "only_export": only_export,
        "jit": list(jit),
        "environment": dict(os.environ),  # for the user's code alone: see dependencies.Recorder
    }
    allowed = (*ALLOWED_ENVIRONMENT, *settings.model.environment)
    environment = {name: os.environ[name] for name in allowed if name in os.environ}
    if not environment.get("CXX"):  # as `compiler` has it; Inductor would run the empty word
        environment.pop("CXX", None)
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(private), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= LIMITS.get(settings.target, {})
    worker = _Worker(message, environment, log, on_phase=on_phase, on_object=on_object, on_step=on_step)
    result = worker.run(settings.compile.timeout_s)
    if not warm:
        _keep_probes(scratch, probes, private)
    artifact, weights = staging / ARTIFACT, staging / WEIGHTS_FOLDER
    return Compiled(
        **result,
        artifact=artifact if artifact.is_dir() else None,
        weights_folder=weights if weights.is_dir() else None,
    )


def _copy_probes(scratch: Path, name: str, private: Path) -> bool:
    """Copy the probes that were kept under a name; whether there were any. Damaged ones are thrown away.

    Inductor would take a broken probe for a missing instruction set, and compile slow code under the same key.
    """
    for kept in scratch.glob(f"{name}-*"):
        try:
            if kept.name == f"{name}-{sha256_of(kept)}":
                shutil.copytree(kept, private)
                return True
        except OSError:  # no room for a copy, say: it only saves time
            logger.warning("cache: can't copy %s: probing compiler and processor again", kept)
            shutil.rmtree(private, ignore_errors=True)
            continue
        logger.warning("cache: %s is damaged: probing compiler and processor again", kept)
        shutil.rmtree(kept, ignore_errors=True)
    return False


def _keep_probes(scratch: Path, name: str, private: Path) -> None:
    """Keep what Inductor found out about compiler and processor (some 10 s), from a finished worker only.

    A worker that is killed leaves half-written probes: so no two workers ever share a folder, and only a whole one
    is renamed into place, under the digest of what is in it.
    """
    with contextlib.suppress(OSError):  # it only saves time
        scratch.mkdir(parents=True, exist_ok=True)
        private.rename(scratch / f"{name}-{sha256_of(private)}")


class _Worker:
    """One worker process: its events, its time limit, and the words for its end."""

    def __init__(
        self,
        message: dict[str, Any],
        environment: dict[str, str],
        log: Path,
        *,
        on_phase: Callable[[str], None],
        on_object: Callable[[str], None],
        on_step: Callable[[str, str], None],
    ) -> None:
        self._message, self._environment, self._log = message, environment, log
        self._on_phase, self._on_object, self._on_step = on_phase, on_object, on_step
        self._phase = "start"

    def run(self, timeout_s: float) -> dict[str, Any]:
        reading, writing = os.pipe()
        with self._log.open("ab") as log, os.fdopen(reading, "rb", buffering=0) as events:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-c", _BOOTSTRAP],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    pass_fds=[writing],
                    start_new_session=True,  # a process group of its own, killed as one
                )
            finally:
                os.close(writing)
            try:
                self._say(process, writing)
                return self._listen(process, events, time.monotonic() + timeout_s, timeout_s)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                if process.stdin is not None:
                    with contextlib.suppress(OSError):
                        process.stdin.close()
                process.wait()

    def _say(self, process: subprocess.Popen[bytes], events: int) -> None:
        boot = {"path": import_path(), "module": f"{__package__}.worker"}
        _tell(process, f"{json.dumps(boot)}\n{json.dumps({**self._message, 'events': events})}\n")

    def _listen(
        self, process: subprocess.Popen[bytes], events: BinaryIO, deadline: float, timeout_s: float
    ) -> dict[str, Any]:
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(events, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise CompileError(f"stopped in its {self._phase} phase after compile.timeout_s={timeout_s:g}")
                chunk = events.read(1 << 16)
                if not chunk:
                    raise self._died(process)
                *lines, pending = (pending + chunk).split(b"\n")
                for event in map(json.loads, lines):
                    if event["event"] == "done":
                        result: dict[str, Any] = event["result"]
                        return result
                    if event["event"] == "error":
                        error: AppError = getattr(errors, event["type"], CompileError)(event["message"])
                        error.dependencies = event["dependencies"]
                        raise error
                    if event["event"] == "object":
                        began = time.monotonic()
                        self._on_object(event["digest"])
                        deadline += time.monotonic() - began
                        _tell(process, "go on\n")
                        continue
                    if event["event"] == "step":
                        self._on_step(event["stage"], event["message"])
                        continue
                    self._phase = event["name"]
                    self._on_phase(self._phase)

    def _died(self, process: subprocess.Popen[bytes]) -> AppError:
        code = process.wait()
        how = f"exited with {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            how += " (out of memory?)" if -code == signal.SIGKILL else ""
        # a crash while building may be this worker's own (no memory left, say): it is no verdict on the model
        kinds = {kind.stage: kind for kind in (errors.ExportError, errors.VerifyError)}
        kind = kinds.get(self._phase, CompileError)
        tail = " | ".join(_last_lines(self._log))
        return kind(f"the compile worker {how} in its {self._phase} phase; its last lines: {tail or '(none)'}")


def _tell(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died: its end is told by whoever listens to it
        process.stdin.write(text.encode())
        process.stdin.flush()


def _last_lines(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return [line.strip() for line in lines if line.strip()][-_LAST_LINES:]
