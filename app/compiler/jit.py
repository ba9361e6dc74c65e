"""The jit rung's compile: run a module under `torch.compile` on all that is verified, and keep what torch made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .. import extent
from ..config import Settings
from ..environment import compiler
from ..errors import AppError, CompileError
from ..keys import Key, digest
from ..runtime import jit
from ..runtime.spec import CallSpec
from ..verdict import Draw
from ..workloads import Workload


def compile_module(
    settings: Settings, workload: Workload, module: nn.Module, wanted: Sequence[Draw], folder: Path
) -> tuple[jit.JitModel, dict[str, Any]]:
    """Compile by running, and keep in `folder` what a later process needs to do the same without compiling.

    Returns:
        The model, and the manifest's content.

    Raises:
        CompileError: torch can't compile it, or finds nothing in it to compile.
    """
    cxx = compiler()
    spec = CallSpec(
        inputs=tuple(spec.checked for spec in workload.inputs),
        dims={name: (dim.min, dim.max) for name, dim in workload.dims.items()},
        device=workload.device.partition(":")[0],
        out_spec=pytree.treespec_dumps(pytree.tree_structure(0)),  # never used: the module itself gives its output
    )
    try:
        model = jit.JitModel(module, spec, workload.device, jit.options_of(settings.inductor_options, cxx))
        with jit.kernels(target=folder):
            for draw in wanted:
                _run(model, workload, draw)
            others = [draw for draw in extent.near(spec.dims, workload.sizes()) if _runs(model, workload, draw)]
        saved = torch.compiler.save_cache_artifacts()
    except AppError:
        raise
    except Exception as error:  # torch and the user's own code raise anything
        raise CompileError(f"torch.compile: {jit.cause(error)}") from error
    if saved is None:
        raise CompileError("torch.compile found nothing to compile")
    (folder / jit.ARTIFACTS).write_bytes(saved[0])
    calls = [{**asdict(draw), "sizes": dict(draw.sizes)} for draw in (*wanted, *others)]
    return model, {"engine": jit.ENGINE, "spec": spec.to_json(), "cxx": cxx, "calls": calls}


def _run(model: jit.JitModel, workload: Workload, draw: Draw) -> None:
    args, kwargs = workload.call_of(draw)
    model(*args, **kwargs)


def _runs(model: jit.JitModel, workload: Workload, draw: Draw) -> bool:
    """Whether it takes sizes that only verification asks for: where it doesn't, they aren't served."""
    try:
        _run(model, workload, draw)
    except Exception:  # noqa: BLE001 - as in compile_module
        return False
    return True


def key_of(request: Key, module: nn.Module, dependencies: Sequence[Sequence[Any]]) -> Key:
    """There is no program to name it by: the request, what the model was built from, and its weights do."""
    read = sorted([kind, where, sha256] for kind, where, sha256, *_ in dependencies)
    weights = {**request.factors["weights"], "sha256": _digest_of(module)}
    return Key({**request.factors, "engine": jit.ENGINE, "dependencies": digest(read), "weights": weights})


def _digest_of(module: nn.Module) -> str:
    total = hashlib.sha256()
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
