"""Runner: what a CompiledModel calls, whatever engine it was compiled by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..errors import InputError


class Runner(ABC):
    """A loaded artifact: tensors or arrays in and out, nothing of them checked. Any number of threads may call it.

    Attributes:
        constants: The external weights that it reads.
        uncapturable: Why no CUDA graph can hold its calls; None where one may.
    """

    constants: Mapping[str, Any] = MappingProxyType({})
    uncapturable: str | None = None

    def addresses(self) -> tuple[int, ...]:
        """Where the external weights lie."""
        return tuple(tensor.data_ptr() for tensor in self.constants.values())

    def borrow(self, constants: Mapping[str, Any]) -> None:  # noqa: ARG002 - of use where there are weights to exchange
        """Have it read these tensors from now on; not while a call runs. Raises InputError where it has none."""
        raise InputError("the weights are baked into the artifact: compile with weights=external to exchange them")

    @abstractmethod
    def __call__(self, values: list[Any]) -> list[Any]:
        """Run the compiled program."""
