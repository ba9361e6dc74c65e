"""Runner: what a CompiledModel calls, whatever engine it was compiled by."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch


class Runner:
    """A loaded artifact: tensors in, tensors out, nothing of them checked. Any number of threads may call it.

    Attributes:
        constants: The external weights that it reads.
        uncapturable: Why no CUDA graph can hold its calls; None where one may.
    """

    constants: Mapping[str, torch.Tensor] = MappingProxyType({})
    uncapturable: str | None = None

    def addresses(self) -> tuple[int, ...]:
        """Where the external weights lie."""
        return tuple(tensor.data_ptr() for tensor in self.constants.values())

    def borrow(self, constants: Mapping[str, torch.Tensor]) -> None:
        """Have it read these tensors from now on; not while a call runs."""
        raise NotImplementedError

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run the compiled program."""
        raise NotImplementedError
