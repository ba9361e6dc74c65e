"""Checkpoints: a state dict from safetensors, or from a torch file without running its pickle."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..errors import BuildError


def load_into(module: nn.Module, path: Path) -> None:
    """Load a checkpoint into a module, every name and shape matching.

    Raises:
        BuildError: the file isn't a state dict, is damaged, or doesn't fit the module.
    """
    try:
        state = _read(path)
    except Exception as error:  # on a damaged file the unpickler raises whatever it trips over
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise BuildError(f"checkpoint {path} can't be read as a state dict: {reason}") from error
    # older checkpoints hold buffers that their module has since stopped saving: it makes them itself
    unsaved = dict(module.named_buffers()).keys() - module.state_dict().keys()
    try:
        module.load_state_dict({name: value for name, value in state.items() if name not in unsaved})
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BuildError(f"checkpoint {path} does not fit the model: {' '.join(lines[1:4])}") from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise ValueError("it holds something else than names and tensors")
    return state
