"""Export: a workload's module -> an exported program, its canonical text, and the spec of its calls."""

from __future__ import annotations

import collections
import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from ..errors import ExportError
from ..runtime.spec import CallSpec, register_namedtuple
from ..workloads import Workload


@dataclass(frozen=True)
class Exported:
    """A program and what the artifact needs to know of it."""

    program: ExportedProgram
    spec: CallSpec

    def graph(self) -> dict[str, Any]:
        """The canonical program: equal for equal programs, whatever the text they were traced from."""
        text = "\n".join(_lines(self.program))
        return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "inputs": self.spec.to_json()}

    def weights(self) -> dict[str, torch.Tensor]:
        """Parameters, buffers and constants by name."""
        tensors = {**self.program.state_dict, **self.program.constants}
        return {name: value.detach() for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def export(workload: Workload, module: nn.Module) -> Exported:
    """Export a module with every named dimension dynamic over its whole range.

    Args:
        workload: The model, its inputs and their dimensions.
        module: The module to export: the workload's own, or its copy at another precision.

    Raises:
        ExportError: torch can't export it, or the program would keep state of its own.
    """
    program = workload.program if workload.program is not None and module is workload.module else None
    if program is None:
        program = _trace(workload, module)
    _refuse_state(program)
    return Exported(program, _spec(workload, program))


def _trace(workload: Workload, module: nn.Module) -> ExportedProgram:
    args, kwargs = workload.call()
    dims = {name: Dim(name, min=dim.min, max=dim.max) for name, dim in workload.dims.items()}
    shapes = {
        spec.name: {axis: dims[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in workload.inputs
    }
    positional = [shapes[spec.name] for spec in workload.inputs if not spec.keyword]
    keyword = {spec.name: shapes[spec.name] for spec in workload.inputs if spec.keyword}
    try:
        signature = inspect.signature(module.forward)
        dynamic = dict(signature.bind(*positional, **keyword).arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD and parameter.name in dynamic:
                dynamic.update(dynamic.pop(parameter.name))
        return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # export runs the user's code and raises whatever that raises
        raise ExportError(_cause(error)) from error


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = " ".join(lines[:3]) if lines else type(error).__name__
    return f"{type(error).__name__}: {text}"[:500]


def _refuse_state(program: ExportedProgram) -> None:
    """A program that writes its buffers or inputs would keep that state in the artifact, out of sight."""
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if changed:
        raise ExportError(
            f"the model changes {', '.join(changed)} while it runs; its state can't live in an artifact"
        )


def _spec(workload: Workload, program: ExportedProgram) -> CallSpec:
    out_spec = program.call_spec.out_spec
    assert out_spec is not None
    leaves = [output.arg for output in program.graph_signature.output_specs]
    constants = {
        str(position): leaf.value
        for position, leaf in enumerate(leaves)
        if isinstance(leaf, torch.export.graph_signature.ConstantArgument)
    }
    try:
        namedtuples = [register_namedtuple(cls) for cls in _namedtuples(out_spec)]
        text = pytree.treespec_dumps(out_spec)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ExportError(f"the output's structure can't be stored: {error}") from error
    return CallSpec(
        inputs=tuple(spec.checked for spec in workload.inputs),
        dims={name: (dim.min, dim.max) for name, dim in workload.dims.items()},
        device=workload.device.partition(":")[0],
        out_spec=text,
        out_modules=tuple(sorted(set(_modules(out_spec)))),
        out_namedtuples=tuple(sorted(set(namedtuples))),
        out_constants=constants,
    )


def _modules(spec: pytree.TreeSpec) -> Iterator[str]:
    """The modules that define the output's classes."""
    if spec.type is not None and spec.type.__module__ != "builtins":
        yield spec.type.__module__
    for child in spec.children():
        yield from _modules(child)


def _namedtuples(spec: pytree.TreeSpec) -> Iterator[type]:
    if spec.type is collections.namedtuple:  # noqa: PYI024 - pytree's name for all of them
        yield spec.context
    for child in spec.children():
        yield from _namedtuples(child)


def _lines(program: ExportedProgram) -> Iterator[str]:
    """One line a node, with dtype, shape, stride and device of what it gives; then signature and ranges."""
    yield from _graph_lines(program.graph_module)
    for kind, specs in (
        ("in", program.graph_signature.input_specs),
        ("out", program.graph_signature.output_specs),
    ):
        for item in specs:
            yield f"{kind} {item.kind.name} {item.arg} {item.target} {getattr(item, 'persistent', None)}"
    for symbol, bounds in sorted(program.range_constraints.items(), key=lambda item: str(item[0])):
        yield f"range {symbol} {bounds.lower} {bounds.upper}"
    yield f"call {pytree.treespec_dumps(program.call_spec.in_spec)}"


def _graph_lines(module: torch.fx.GraphModule, prefix: str = "") -> Iterator[str]:
    for node in module.graph.nodes:
        yield f"{prefix}{node.op} {node.name} {node.target} {node.args} {node.kwargs} {_meta(node.meta.get('val'))}"
        inner = getattr(module, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(inner, torch.fx.GraphModule):
            yield from _graph_lines(inner, f"{prefix}{node.target}.")


def _meta(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        stride = tuple(value.stride()) if value.layout is torch.strided else value.layout
        return f"{value.dtype} {tuple(value.shape)} {stride} {value.device}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_meta, value))}]"
    return str(value)
