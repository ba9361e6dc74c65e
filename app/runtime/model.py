"""CompiledModel: a loaded artifact that is called like the eval-mode module it replaces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import LoadError
from .aoti import AotiRunner
from .spec import Boundary, CallSpec

LIBRARY = "model.so"
WEIGHTS = "weights.safetensors"


class CompiledModel:
    """Tensors in, the module's own output structure out; every call is checked against the artifact's spec."""

    def __init__(self, runner: AotiRunner, spec: CallSpec, device: str) -> None:
        self.spec = spec
        self._runner = runner
        self._boundary = Boundary(spec, device)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            InputError: an input differs from what was compiled; the message names it.
        """
        boundary = self._boundary
        tensors = boundary.check(boundary.bind(args, kwargs))
        return boundary.restore(self._runner(tensors))


def load(
    folder: Path,
    content: Mapping[str, Any],
    device: str,
    *,
    weights: Path | None = None,
    num_runners: int = 1,
) -> CompiledModel:
    """Load the library of an artifact.

    Args:
        folder: Where the artifact's files are.
        content: The manifest's content: `spec`, and `constants` where the weights are external.
        device: `cpu` or `cuda:N`.
        weights: The folder of the weights' object, for external weights.
        num_runners: How many calls may run at the same time.

    Raises:
        LoadError: the library or the weights can't be loaded.
    """
    spec = CallSpec.from_json(content["spec"])
    constants = None
    if content["constants"] is not None:
        if weights is None:
            raise LoadError("the artifact's weights are external, and none were given")
        constants = load_constants(weights / WEIGHTS, content["constants"], device)
    runner = AotiRunner(folder / LIBRARY, device, num_runners=num_runners, constants=constants)
    return CompiledModel(runner, spec, device)


def load_constants(path: Path, constants: Mapping[str, Any], device: str) -> dict[str, torch.Tensor]:
    """External weights by the library's own names, memory-mapped: all processes share one copy.

    Raises:
        LoadError: the file can't be read, or lacks a tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path, device=device)
        return {name: _restride(stored[item["stored"]], item["stride"]) for name, item in constants.items()}
    except (OSError, SafetensorError, KeyError) as error:
        raise LoadError(f"the weights {path.parent.name} can't be loaded: {error}") from error


def _restride(tensor: torch.Tensor, stride: list[int] | None) -> torch.Tensor:
    """Safetensors holds contiguous tensors only; compiled code reads the strides it was compiled for."""
    if stride is None:
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
