"""Examples: a caller's own inputs, made any size, as the draws that a model is verified and measured with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..errors import BuildError
from .inputs import TensorInput
from .kinds import is_mask

# Tables larger than this aren't probed at their ends.
_LARGEST_TABLE = 1 << 24


class Examples:
    """Draws that look like the examples: seed 0 is the examples themselves, repeated or cut to the sizes.

    Other seeds keep what a model may rely on: integers are drawn from the values that occur and the ends of their
    range, or where they have none from those that occur and the next; floating-point values get noise of their own
    spread.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], inputs: Sequence[TensorInput]) -> None:
        self.tensors, self._inputs = dict(tensors), list(inputs)

    def __call__(self, sizes: Mapping[str, int], seed: int) -> dict[str, torch.Tensor]:
        """One value for each input; equal for equal arguments."""
        return {spec.name: self._draw(spec, sizes, seed) for spec in self._inputs}

    def _draw(self, spec: TensorInput, sizes: Mapping[str, int], seed: int) -> torch.Tensor:
        value = self.tensors[spec.name]
        for axis, size in enumerate(spec.concrete(sizes)):
            if size != value.shape[axis]:
                value = value.index_select(axis, (torch.arange(size) + seed) % value.shape[axis])
        if seed == 0 or not value.numel():
            return value.contiguous()
        generator = torch.Generator().manual_seed(1_000_003 * seed + spec.seed)
        if value.is_floating_point() or value.is_complex():
            spread = value.float().std(correction=0) if value.is_floating_point() else value.abs().std(correction=0)
            scale = float(spread) if torch.isfinite(spread) and spread > 0 else 1.0
            noise = torch.randn(value.shape, generator=generator) * scale
            return (value + noise.to(value.dtype)).contiguous()
        known = self.tensors[spec.name].reshape(-1)
        if spec.low is not None and spec.high is not None and spec.high - spec.low <= _LARGEST_TABLE:
            known = torch.cat([known, torch.tensor([int(spec.low), int(spec.high) - 1], dtype=known.dtype)])
        elif is_mask(spec, known):
            known = torch.tensor([0, 1], dtype=known.dtype)
        else:  # any is fine, and a single one would not show what depends on it
            known = torch.cat([known, known + 1])
        return known[torch.randint(len(known), value.shape, generator=generator)]


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write examples for another process."""
    from safetensors.torch import save_file

    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path)


def load(path: Path, inputs: Sequence[TensorInput]) -> Examples:
    """Read them back.

    Raises:
        BuildError: the file can't be read, or lacks an input.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        return Examples({spec.name: tensors[spec.name] for spec in inputs}, inputs)
    except (OSError, SafetensorError, KeyError) as error:
        raise BuildError(f"model.examples={str(path)!r} can't be read: {error}") from error
