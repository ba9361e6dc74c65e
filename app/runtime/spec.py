"""CallSpec: what a compiled program may be called with and what it gives back, checked at every call.

Compiled code checks nothing: a wrong dtype, shape or stride is read as if it were right, and answers garbage.
Imports no torch: what is checked is the same of torch's tensors (tensors.py) and of numpy's arrays (arrays.py).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from ..config import BATCH
from ..errors import InputError
from ..verdict import Extent, within
from .batches import Arrays

if TYPE_CHECKING:
    import torch


# The fields of a CallSpec that say how the leaves of an output are put together.
STRUCTURE = ("out_spec", "out_modules", "out_namedtuples", "out_dataclasses", "out_constants", "out_integers")

# A service runs for months: what it keeps must end.
MOST_KNOWN = 10_000


@dataclass(frozen=True)
class InputSpec:
    """One input tensor.

    Attributes:
        name: The argument's name.
        shape: Ints, and names of dynamic dimensions.
        dtype: The torch dtype's name.
        keyword: Whether it is passed by keyword.
        low: Smallest value, for integers: compiled code indexes with them, and one outside of a table ends the
            process.
        high: Upper bound of the values, exclusive.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    keyword: bool = False
    low: float | None = None
    high: float | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def __str__(self) -> str:
        """Like `float32 [batch, 64, 100]`."""
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"

    @property
    def padding(self) -> int:
        """What fills up a dimension beyond the batch: zero, which masks take for "not there", if it is in range."""
        in_range = self.low is None or self.high is None or self.low <= 0 < self.high
        return 0 if in_range else int(self.low or 0)

    def check_range(self, smallest: int, largest: int) -> None:
        """Raise InputError for integers outside of the range that was declared and verified."""
        if self.low is None or self.high is None:
            return
        if smallest < self.low or largest >= self.high:
            worst = smallest if smallest < self.low else largest
            raise InputError(
                f"input {self.name!r} holds {worst}, outside of {self.low:.0f} to {self.high - 1:.0f}, which was "
                f"compiled; set low and high of model.inputs[{self.name}]"
            )


@dataclass(frozen=True)
class CallSpec:
    """Inputs in the program's order, ranges of their dynamic dimensions, and the structure of the output.

    Attributes:
        inputs: Every input; all are tensors.
        dims: Smallest and largest size of each named dimension, both allowed.
        device: `cpu` or `cuda`; the index is the loader's choice.
        out_spec: The output's pytree, as `torch.utils._pytree.treespec_dumps` writes it.
        out_modules: Modules to import so that the output's classes are known to pytree.
        out_namedtuples: Named tuples of the output, `module:class`.
        out_dataclasses: Dataclasses of the output, `module:class`.
        out_constants: Leaves of the output that are no tensors, by position.
        out_integers: Positions of leaves that are integers, such as `x.shape[0]`; the program gives them as tensors.
        out_axes: For each named dimension its axis in each leaf of the output; None where a leaf hasn't it.
        unpaddable: Dimensions that can't be told apart in the inputs or outputs, so that calls run as they are, and
            why.
    """

    inputs: tuple[InputSpec, ...]
    dims: Mapping[str, tuple[int, int]]
    device: str
    out_spec: str
    out_modules: tuple[str, ...] = ()
    out_namedtuples: tuple[str, ...] = ()
    out_dataclasses: tuple[str, ...] = ()
    out_constants: Mapping[str, Any] = field(default_factory=dict)
    out_integers: tuple[int, ...] = ()
    out_axes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    unpaddable: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CallSpec:
        """Read it back from a manifest."""
        return cls(
            inputs=tuple(InputSpec(**{**item, "shape": tuple(item["shape"])}) for item in data["inputs"]),
            dims={name: (low, high) for name, (low, high) in data["dims"].items()},
            device=data["device"],
            out_spec=data["out_spec"],
            out_modules=tuple(data["out_modules"]),
            out_namedtuples=tuple(data["out_namedtuples"]),
            out_dataclasses=tuple(data.get("out_dataclasses", ())),
            out_constants=data["out_constants"],
            out_integers=tuple(data.get("out_integers", ())),
            out_axes={name: tuple(axes) for name, axes in data["out_axes"].items()},
            unpaddable=data["unpaddable"],
        )

    @property
    def structure(self) -> dict[str, Any]:
        """What only a process that has the output's classes can read."""
        return {name: value for name, value in self.to_json().items() if name in STRUCTURE}

    def in_axes(self, dim: str = BATCH) -> list[int | None]:
        """For each input the axis of a named dimension, or None where it has none."""
        return [item.shape.index(dim) if dim in item.shape else None for item in self.inputs]

    def blank(self, sizes: Mapping[str, int], device: str) -> list[torch.Tensor]:
        """Valid inputs of these sizes, all of them padding."""
        import torch

        return [
            torch.full(
                [sizes[size] if isinstance(size, str) else size for size in item.shape],
                item.padding,
                dtype=item.torch_dtype,
                device=device,
            )
            for item in self.inputs
        ]

    def drawn(self, sizes: Mapping[str, int], device: str) -> list[torch.Tensor]:
        """Valid inputs of these sizes, random and always the same."""
        import torch

        generator = torch.Generator(device).manual_seed(0)
        found = self.blank(sizes, device)
        for item, value in zip(self.inputs, found, strict=True):
            if value.is_floating_point():
                value.normal_(generator=generator)
            elif item.low is not None and item.high is not None:
                value.random_(int(item.low), int(item.high), generator=generator)
        return found


class Boundary(ABC):
    """What is checked of every call, whatever holds its numbers.

    Args:
        spec: What the program may be called with.
        device: `cpu` or `cuda:N`.
        arrays: How rows of its inputs are cut and joined.
        extent: The sizes that are served; None serves all that the program takes.

    Attributes:
        extent: The sizes that are served.
        beyond: Asked of sizes in that range that nobody has compared: why they aren't served, or None.
        num_beyond: Calls of such sizes that were served.
    """

    def __init__(self, spec: CallSpec, device: str, arrays: Arrays, extent: Extent | None = None) -> None:
        self.spec, self.device, self.arrays = spec, device, arrays
        self.extent = extent or Extent(spec.dims, spec.dims)
        self.beyond: Callable[[Mapping[str, int]], str | None] = lambda _: None
        self.num_beyond = 0
        self._positional = [item.name for item in spec.inputs if not item.keyword]
        self._in_order = len(spec.inputs) if len(self._positional) == len(spec.inputs) else -1
        self._known: set[tuple[Any, ...]] = set()  # shapes of inputs that were checked together
        self._constants = {int(position): value for position, value in spec.out_constants.items()}

    @property
    def whole(self) -> Self:
        """The same without an extent."""
        other = copy.copy(self)
        other.beyond = lambda _: None
        other.serve(Extent(self.spec.dims, self.spec.dims))
        return other

    def serve(self, extent: Extent) -> None:
        """Serve other sizes from now on."""
        self.extent = extent
        self._known = set()

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        """Arguments in the program's order, each named as `forward` names it.

        Raises:
            InputError: too many, too few, or unknown ones.
        """
        if not kwargs and len(args) == self._in_order:
            return args
        if len(args) > len(self._positional):
            raise InputError(
                f"{len(args)} positional inputs, expected at most {len(self._positional)}: {self._signature()}"
            )
        given = dict(zip(self._positional, args, strict=False))
        for name, value in kwargs.items():
            if name in given:
                raise InputError(f"input {name!r} is given twice: {self._signature()}")
            given[name] = value
        names = [item.name for item in self.spec.inputs]
        for name in given:
            if name not in names:
                raise InputError(f"unknown input {name!r}: {self._signature()}")
        missing = [name for name in names if name not in given]
        if missing:
            raise InputError(f"missing input {', '.join(map(repr, missing))}: {self._signature()}")
        return [given[name] for name in names]

    def _signature(self) -> str:
        parts = (f"{item.name}: {item}" for item in self.spec.inputs)
        return f"the compiled model takes ({', '.join(parts)})"

    @abstractmethod
    def check(self, values: Sequence[Any]) -> list[Any]:
        """The inputs as the program was compiled for; strides are copied, anything else that differs is refused.

        Raises:
            InputError: an input can't be what was compiled; it names the input.
        """

    @abstractmethod
    def restore(self, outputs: Sequence[Any]) -> Any:
        """The output in the structure that the module itself gives."""

    def _check_sizes(self, shapes: tuple[Any, ...]) -> None:
        """Raise InputError for the first input whose sizes were not compiled."""
        if shapes in self._known:
            return
        sizes: dict[str, int] = {}
        for spec, shape in zip(self.spec.inputs, shapes, strict=True):
            if len(shape) != len(spec.shape):
                raise InputError(f"input {spec.name!r} has the shape {list(shape)}, expected {spec}")
            for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
                self._check_size(spec, axis, size, wanted, sizes)
        if not within(sizes, self.extent.compared):
            if (why := self.beyond(sizes)) is not None:
                raise InputError(why)
            self.num_beyond += not within(sizes, self.extent.compared)  # unless that was compared now
        elif len(self._known) < MOST_KNOWN:
            self._known.add(shapes)

    def _check_size(self, spec: InputSpec, axis: int, size: int, wanted: int | str, sizes: dict[str, int]) -> None:
        if isinstance(wanted, int):
            if size != wanted:
                raise InputError(f"input {spec.name!r} has the size {size} in dimension {axis}, expected {spec}")
            return
        known = sizes.setdefault(wanted, size)
        if known != size:
            raise InputError(f"input {spec.name!r} has {wanted}={size}, but an input before it has {wanted}={known}")
        low, high = self.spec.dims[wanted]
        if not low <= size <= high:
            raise InputError(
                f"input {spec.name!r} has {wanted}={size}, outside of {low} to {high}, which was compiled; "
                f"set model.dims.{wanted}.{'min' if size < low else 'max'}"
            )
        low, high = self.extent.possible[wanted]
        if not low <= size <= high:
            raise InputError(
                f"input {spec.name!r} has {wanted}={size}, and only {low} to {high} were right when compared "
                "with eager"
            )

    def _leaves(self, outputs: Sequence[Any]) -> list[Any]:
        """The output's leaves; the program gives a number as a tensor, and None as None."""
        leaves = list(outputs)
        for position, value in self._constants.items():
            leaves[position] = value
        for position in self.spec.out_integers:
            leaves[position] = int(leaves[position])
        return leaves
