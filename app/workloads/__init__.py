"""Config -> Workload: an eval-mode module, and example inputs of any batch size."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..config import BATCH, DimConfig, ModelConfig, Settings, resolve_callable
from ..errors import AppError, BuildError, ConfigError, first_line
from ..verdict import RANDOM, Draw
from . import examples, kinds
from .checkpoint import load_into
from .inputs import TensorInput, draw, inputs_of_program

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Workload:
    """A model and what it is called with.

    Attributes:
        module: In eval mode and fp32 (or whatever its author chose), on the device.
        inputs: The named input tensors, in the order of `forward`.
        dims: Ranges of the named dynamic dimensions.
        device: `cpu` or `cuda:N`.
        make_inputs: Real inputs instead of random ones, where the config names their source.
        program: The saved program, where the model came as one.
        lowered: The same traced at a lower precision. What a module says of a dtype, as in `y.to(x.dtype)`, a program
            says of the one that it was traced at.
        structure: How the program's outputs are put together, where it gives their leaves alone: the fields of a
            CallSpec that STRUCTURE names.
    """

    module: nn.Module
    inputs: tuple[TensorInput, ...]
    dims: Mapping[str, DimConfig]
    device: str
    make_inputs: Callable[[dict[str, int], int], Mapping[str, Any]] | None = None
    program: ExportedProgram | None = None
    lowered: nn.Module | None = None
    structure: Mapping[str, Any] | None = None

    def at(self, precision: str) -> nn.Module:
        """The module that computes in `fp32` (itself), or in `bf16` or `fp16` (a copy)."""
        return at_precision(self.lowered or self.module, precision)

    def sizes(self, batch: int | None = None, others: Mapping[str, int] | None = None) -> dict[str, int]:
        """Every named dimension's example size, the batch and others as given."""
        chosen = {name: dim.example for name, dim in self.dims.items()}
        return chosen | ({BATCH: batch} if batch is not None else {}) | dict(others or {})

    def call(self, batch: int | None = None, seed: int = 0, others: Mapping[str, int] | None = None) -> Call:
        """Arguments of `forward` at a batch size: equal for equal arguments, in every process."""
        return self.call_of(Draw(self.sizes(batch, others), seed))

    def call_of(self, asked: Draw) -> Call:
        """Arguments of `forward` as a draw asks for them."""
        values = self._values(asked)
        if asked.kind != RANDOM:
            values = kinds.changed(asked.kind, self.inputs, values)
        on_device = {name: value.to(self.device) for name, value in values.items()}
        positional = tuple(on_device[spec.name] for spec in self.inputs if not spec.keyword)
        return positional, {spec.name: on_device[spec.name] for spec in self.inputs if spec.keyword}

    def any_call(self, asked: Draw) -> Call:
        """The same at sizes that `make_inputs` may not have: a tokenizer gives no sentence of one token.

        Then values are drawn from the inputs' ranges.

        Raises:
            Exception: that of `make_inputs`, at the example's sizes, or where an input of integers has no range.
        """
        try:
            return self.call_of(asked)
        except Exception:  # the user's make_inputs may raise anything; it goes on where nothing else can be drawn
            known = all(spec.low is not None or not spec.holds_integers for spec in self.inputs)
            if self.make_inputs is None or dict(asked.sizes) == self.sizes() or not known:
                raise
            return replace(self, make_inputs=None).call_of(asked)

    def kinds(self, sizes: Mapping[str, int]) -> list[str]:
        """The kinds of values that the inputs can have besides random ones."""
        return kinds.kinds_of(self.inputs, self._values(Draw(sizes)))

    def _values(self, asked: Draw) -> dict[str, torch.Tensor]:
        sizes = dict(asked.sizes)
        if self.make_inputs is not None:
            made = self.make_inputs(sizes, asked.seed)
            return {spec.name: _as_tensor(made, spec, sizes) for spec in self.inputs}
        return {spec.name: draw(spec, sizes, asked.seed) for spec in self.inputs}

    @property
    def batched(self) -> bool:
        """Whether the batch is a dimension of the inputs at all."""
        return BATCH in self.dims


def _as_tensor(made: Mapping[str, Any], spec: TensorInput, sizes: Mapping[str, int]) -> torch.Tensor:
    if spec.name not in made:
        raise ConfigError(f"model.make_inputs gave {sorted(made)}, without the input {spec.name!r}")
    value = torch.as_tensor(made[spec.name])
    shape = spec.concrete(sizes)
    if tuple(value.shape) != shape or value.dtype != spec.torch_dtype:
        raise ConfigError(
            f"model.make_inputs gave {spec.name!r} as {value.dtype} {list(value.shape)}, "
            f"model.inputs says {spec.torch_dtype} {list(shape)}"
        )
    return value


class AtPrecision(nn.Module):
    """A copy of a module in another floating-point dtype, with its inputs cast in and its outputs cast back.

    The casts are part of the exported program: callers give and get the module's own dtypes.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).to(dtype)
        self.dtype = dtype
        if isinstance(self.module, torch.fx.GraphModule):  # an exported program asserts the dtypes it was traced with
            graph, asserting = self.module.graph, torch.ops.aten._assert_tensor_metadata.default  # noqa: SLF001
            for node in graph.find_nodes(op="call_function", target=asserting):
                graph.erase_node(node)
            self.module.recompile()

    @property
    def forward(self) -> Callable[..., Any]:  # type: ignore[override] # torch declares an attribute; nobody assigns it
        """What the module gives, computed in `dtype`; with its signature, by which torch.export names inputs."""

        @functools.wraps(self.module.forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = pytree.tree_map_only(torch.Tensor, self.cast_in, (args, kwargs))
            return pytree.tree_map_only(torch.Tensor, self._cast_out, self.module(*args, **kwargs))

        return run

    def cast_in(self, value: torch.Tensor) -> torch.Tensor:
        """An input as the copy is given it."""
        return value.to(self.dtype) if value.dtype == torch.float32 else value

    def _cast_out(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(torch.float32) if value.dtype == self.dtype else value


def unwrapped(module: nn.Module) -> tuple[nn.Module, str]:
    """The module that the user knows, and what a wrapper puts before its names."""
    return (module.module, "module.") if isinstance(module, AtPrecision) else (module, "")


def at_precision(module: nn.Module, name: str) -> nn.Module:
    """The module that computes in `fp32` (itself), or in `bf16` or `fp16` (a copy)."""
    return module if name == "fp32" else AtPrecision(module, {"bf16": torch.bfloat16, "fp16": torch.float16}[name])


def build(settings: Settings, device: str) -> Workload:
    """Build the model that the config names, and call it once.

    Raises:
        ConfigError: the target doesn't import.
        BuildError: the factory, the checkpoint or the first call fails; the message says which.
    """
    model = settings.model
    make_inputs = resolve_callable(model.make_inputs, "model.make_inputs") if model.make_inputs else None
    program: ExportedProgram | None = None
    lowered: nn.Module | None = None
    structure = json.loads(Path(model.structure).read_text(encoding="utf-8")) if model.structure else None
    if model.program:
        from .exported import load_program

        program = load_program(Path(model.program).expanduser(), trusted=model.trusted)
        module: nn.Module = program.module(check_guards=False)
        if model.lowered:
            lowered = load_program(Path(model.lowered), trusted=model.trusted).module(check_guards=False).to(device)
        if model.fingerprint is None:
            inputs, dims = inputs_of_program(program, model)
        else:  # whose caller has names of their own for the same inputs
            inputs, dims = tuple(TensorInput.from_config(spec, drawn=False) for spec in model.inputs), model.ranges
        settings.graphs.check_sizes({BATCH: DimConfig(), **dims})
    elif not model.target:
        raise BuildError("the module is in another process: here is only what was compiled of it")
    else:
        module = _from_factory(model)
        inputs, dims = tuple(TensorInput.from_config(spec) for spec in model.inputs), model.ranges
    if model.examples:
        make_inputs = examples.load(Path(model.examples).expanduser(), inputs)
    if model.checkpoint:
        load_into(module, Path(model.checkpoint).expanduser())
    if not model.program:
        module.eval()
    workload = Workload(
        module.requires_grad_(False).to(device), inputs, dims, device, make_inputs, program, lowered, structure
    )
    _first_call(workload)
    return workload


def _from_factory(model: ModelConfig) -> nn.Module:
    factory = resolve_callable(model.target, "model.target")
    with torch.random.fork_rng():
        torch.manual_seed(model.seed)
        try:
            module = factory(**model.kwargs)
        except AppError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise BuildError(f"model.target={model.target!r} raised {first_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise BuildError(f"model.target={model.target!r} returned a {type(module).__name__}, not an nn.Module")
    return module


def _first_call(workload: Workload) -> None:
    args, kwargs = workload.call()
    try:
        with torch.inference_mode():
            workload.module(*args, **kwargs)
    except Exception as error:  # the user's own code may raise anything
        given = ", ".join(f"{spec.name}: {spec}" for spec in workload.inputs)
        raise BuildError(f"the model rejects its inputs ({given}): {first_line(error)}") from error
