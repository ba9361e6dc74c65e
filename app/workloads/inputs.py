"""Named input tensors: their shapes with symbolic dimensions, and values drawn for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..config import BATCH, DimConfig, InputConfig, ModelConfig, choose
from ..errors import BuildError, ConfigError
from ..runtime.spec import InputSpec

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class TensorInput(InputSpec):
    """One input, and how to fill it: values are drawn from [low, high), floating-point ones too."""

    seed: int = 0

    @classmethod
    def from_config(cls, config: InputConfig, *, drawn: bool = True) -> TensorInput:
        """As the config gives it; what is `drawn` at random needs a range.

        Raises:
            ConfigError: integers without a range.
        """
        spec = cls(
            config.name,
            tuple(config.shape or ()),
            config.dtype,
            config.keyword,
            config.low,
            config.high,
            config.seed,
        )
        if spec.holds_integers and (drawn or spec.low is not None):
            limits = torch.iinfo(spec.torch_dtype)
            bounds = [bound for bound in (spec.low, spec.high) if bound is not None and bound == int(bound)]
            if len(bounds) < 2 or not limits.min <= bounds[0] < bounds[1] <= limits.max + 1:
                raise ConfigError(
                    f"model.inputs[{spec.name}] holds integers: give low and high, whole numbers that {spec.dtype} "
                    "can hold; no call may leave their range"
                )
        return spec

    @property
    def holds_integers(self) -> bool:
        """Whether its values can be indices."""
        return not (self.torch_dtype.is_floating_point or self.torch_dtype == torch.bool)

    @property
    def checked(self) -> InputSpec:
        """What every call is checked against; the range is a promise for integers only."""
        low, high = (self.low, self.high) if self.holds_integers else (None, None)
        return InputSpec(self.name, self.shape, self.dtype, self.keyword, low, high)

    def concrete(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with every name replaced."""
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)


def draw(spec: TensorInput, sizes: Mapping[str, int], seed: int) -> torch.Tensor:
    """Fill an input: normal values, or uniform ones in [low, high); equal for equal seeds.

    Integers hold both ends of their range, so that a model that can't take them says so while it is built.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + spec.seed)
    shape, dtype = spec.concrete(sizes), spec.torch_dtype
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    if not dtype.is_floating_point:
        assert spec.low is not None
        assert spec.high is not None
        first, end = int(spec.low), int(spec.high)
        values = torch.randint(first, end, shape, generator=generator).to(dtype)
        values.view(-1)[:2] = torch.tensor([end - 1, first])[: values.numel()]
        return values
    if spec.low is None and spec.high is None:
        return torch.randn(shape, generator=generator).to(dtype)
    low = 0.0 if spec.low is None else spec.low
    high = low + 1.0 if spec.high is None else spec.high
    return (torch.rand(shape, generator=generator) * (high - low) + low).to(dtype)


def inputs_of_program(
    program: ExportedProgram, model: ModelConfig
) -> tuple[tuple[TensorInput, ...], dict[str, DimConfig]]:
    """The inputs of a saved program, with the names and value ranges that the config adds.

    The leading dynamic dimension of the first input that has one is the batch.

    Raises:
        BuildError: an input isn't a tensor, or is nested, or has a size that is an expression.
        ConfigError: `model.inputs` names an input that the program doesn't have.
    """
    placeholders = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    user = list(program.graph_signature.user_inputs)
    keywords = set(program.call_spec.in_spec.child(1).context or [])
    if len(keywords) + program.call_spec.in_spec.child(0).num_children != len(user):
        raise BuildError(f"{model.program} takes nested inputs; only named tensors are supported")
    given = {spec.name: spec for spec in model.inputs}
    for name in given:
        choose("model.inputs[].name", name, user)
    names: dict[str, str] = {}
    dims: dict[str, DimConfig] = {}
    found = []
    for name in user:
        value = placeholders.get(name)
        if not isinstance(value, torch.Tensor):
            raise BuildError(f"{model.program}: input {name} is not a tensor")
        shape = tuple(_size(program, size, position, names, dims) for position, size in enumerate(value.shape))
        config = given.get(name, InputConfig(name=name))
        dtype = str(value.dtype).removeprefix("torch.")
        if not value.is_contiguous():
            raise BuildError(f"{model.program}: input {name} was exported with other than contiguous strides")
        asked = replace(config, shape=list(shape), dtype=dtype, keyword=name in keywords)
        found.append(TensorInput.from_config(asked))
    return tuple(found), dims


def _size(
    program: ExportedProgram,
    size: int | torch.SymInt,
    position: int,
    names: dict[str, str],
    dims: dict[str, DimConfig],
) -> int | str:
    if isinstance(size, int):
        return size
    symbol = str(size.node.expr)
    if symbol not in names:
        ranges = {str(key): value for key, value in program.range_constraints.items()}
        if symbol not in ranges:
            raise BuildError(f"the program has a dimension of size {symbol}; only plain dimensions are supported")
        names[symbol] = BATCH if position == 0 and BATCH not in dims else f"dim{len(names)}"
        low, high = int(ranges[symbol].lower), ranges[symbol].upper
        high = int(high) if str(high).isdigit() else 2**31 - 1
        dims[names[symbol]] = DimConfig(min=max(low, 1), max=high, example=max(low, min(4, high)))
    return names[symbol]
