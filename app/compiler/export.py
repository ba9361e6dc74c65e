"""Export: a workload's module -> an exported program, its canonical text, and the spec of its calls."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import inspect
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, SymBoolArgument, SymFloatArgument, SymIntArgument
from torch.utils import _pytree as pytree

from ..config import BATCH
from ..errors import ExportError
from ..runtime.spec import CallSpec, InputSpec
from ..runtime.tensors import register_classes, register_dataclass, register_namedtuple
from ..workloads import Workload
from . import indices
from .remedies import told
from .traps import refuse_division


@dataclass(frozen=True)
class Exported:
    """A program and what the artifact needs to know of it.

    Attributes:
        program: The program.
        spec: Its calls, as they are answered.
        plain: Its calls, as the program itself answers them: the same, but where it gives its outputs' leaves alone.
    """

    program: ExportedProgram
    spec: CallSpec
    plain: CallSpec

    def flat(self) -> ExportedProgram:
        """The program with its outputs as a plain tuple, for a process that hasn't their classes."""
        outputs = self.program.graph_signature.output_specs
        signature = self.program.module_call_graph[0].signature
        (node,) = self.program.graph.find_nodes(op="output")
        assert signature is not None
        signature.out_spec = pytree.tree_structure((0,) * len(outputs))
        for item in outputs:  # torch 2.13 writes a string among the outputs, and can't read it again
            if isinstance(item.arg, ConstantArgument) and isinstance(item.arg.value, str):
                item.arg = ConstantArgument(item.arg.name, None)
        node.args = (tuple(None if isinstance(each, str) else each for each in node.args[0]),)
        return self.program

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
        ExportError: torch can't export it, or the program would keep state of its own, or end the process.
    """
    program = workload.program if workload.program is not None and module is workload.module else None
    if program is None:
        program = _trace(workload, module)
    _refuse_state(program)
    refuse_division(program)
    plain = _spec(workload, program)
    return Exported(program, replace(plain, **workload.structure) if workload.structure is not None else plain, plain)


def _trace(workload: Workload, module: nn.Module) -> ExportedProgram:
    args, kwargs = workload.call()
    dims = {name: Dim(name, min=dim.min, max=dim.max) for name, dim in workload.dims.items()}
    shapes = {
        spec.name: {axis: dims[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in workload.inputs
    }
    positional = [shapes[spec.name] for spec in workload.inputs if not spec.keyword]
    keyword = {spec.name: shapes[spec.name] for spec in workload.inputs if spec.keyword}
    with suppress(Exception), torch.no_grad():  # what it raises, tracing raises too, or it is no matter of classes
        register_classes(module(*args, **kwargs))
    try:
        signature = inspect.signature(module.forward)
        dynamic = dict(signature.bind(*positional, **keyword).arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD and parameter.name in dynamic:
                dynamic.update(dynamic.pop(parameter.name))
        return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # export runs the user's code and raises whatever that raises
        traceback.print_exc()  # standard error is a log here, and has all of it
        raise ExportError(told(error, module)) from error


def _refuse_state(program: ExportedProgram) -> None:
    """A program that writes its buffers or inputs would keep that state in the artifact, out of sight."""
    signature = program.graph_signature
    changed = {*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()}
    changed |= _written(program)
    if changed:
        raise ExportError(
            f"the model changes {', '.join(sorted(changed))} while it runs; its state can't live in an artifact: "
            "return it as an output, and give it back as an input"
        )


def _written(program: ExportedProgram) -> set[str]:
    """Buffers, parameters and inputs that an operator writes, directly or through a view of them.

    The signature of a program that was not decomposed says nothing of in-place operators.
    """
    names = {spec.arg.name: spec.target or spec.arg.name for spec in program.graph_signature.input_specs}
    roots: dict[torch.fx.Node, set[str]] = {}
    written: set[str] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            roots[node] = {names[node.name]}
            continue
        schema = getattr(node.target, "_schema", None)
        aliased = [] if schema is not None else list(node.all_input_nodes)  # getitem gives a part of what it is given
        for position, argument in enumerate(schema.arguments if schema is not None else ()):
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            nodes = [item for item in pytree.tree_leaves(given) if isinstance(item, torch.fx.Node)]
            if argument.alias_info is not None:
                aliased += nodes
                if argument.alias_info.is_write:
                    written |= {root for item in nodes for root in roots[item]}
        roots[node] = {root for item in aliased for root in roots[item]}
    return written


def _spec(workload: Workload, program: ExportedProgram) -> CallSpec:
    out_spec = program.call_spec.out_spec
    assert out_spec is not None
    leaves = [output.arg for output in program.graph_signature.output_specs]
    constants = {
        str(position): leaf.value for position, leaf in enumerate(leaves) if isinstance(leaf, ConstantArgument)
    }
    integers = tuple(position for position, leaf in enumerate(leaves) if isinstance(leaf, SymIntArgument))
    for position, leaf in enumerate(leaves):
        if isinstance(leaf, SymFloatArgument | SymBoolArgument):
            raise ExportError(f"output {position} is a number made of sizes, and no integer: give it as a tensor")
    found = {name: _out_axes(workload, program, name) for name in {*workload.dims, BATCH}}
    try:
        namedtuples = [register_namedtuple(cls) for cls in _namedtuples(out_spec)]
        dataclass_names = [register_dataclass(cls) for cls in _dataclasses(out_spec)]
        text = pytree.treespec_dumps(out_spec)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ExportError(f"the output's structure can't be stored: {error}") from error
    return CallSpec(
        inputs=_ranged(workload, program),
        dims={name: (dim.min, dim.max) for name, dim in workload.dims.items()},
        device=workload.device.partition(":")[0],
        out_spec=text,
        out_modules=tuple(sorted(set(_modules(out_spec)))),
        out_namedtuples=tuple(sorted(set(namedtuples))),
        out_dataclasses=tuple(sorted(set(dataclass_names))),
        out_constants=constants,
        out_integers=integers,
        out_axes={name: axes for name, axes in sorted(found.items()) if not isinstance(axes, str)},
        unpaddable={name: why for name, why in sorted(found.items()) if isinstance(why, str)},
    )


def _ranged(workload: Workload, program: ExportedProgram) -> tuple[InputSpec, ...]:
    """What every call is checked against, with the ranges that the program's own tables give."""
    # by position: a program may have other names for the same inputs
    names = map(str, program.graph_signature.user_inputs)
    order = dict(zip(names, (spec.checked for spec in workload.inputs), strict=True))
    known = indices.ranges(program, frozenset(name for name, spec in order.items() if spec.low is not None))
    return tuple(
        replace(spec, low=known[name][0], high=known[name][1]) if name in known else spec
        for name, spec in order.items()
    )


def _out_axes(workload: Workload, program: ExportedProgram, dim: str) -> tuple[int | None, ...] | str:
    """The axis of a named dimension in each leaf of the output, or why there is no telling."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    symbol = None
    for name, spec in zip(program.graph_signature.user_inputs, workload.inputs, strict=True):
        if spec.shape.count(dim) > 1:
            return f"the input {spec.name!r} has the {dim} in more than one dimension"
        if dim in spec.shape:
            symbol = str(values[str(name)].shape[spec.shape.index(dim)])
    if symbol is None:
        return f"no input has a dimension named {dim}"
    axes: list[int | None] = []
    for number, output in enumerate(program.graph_signature.user_outputs):
        value = values.get(output) if isinstance(output, str) else None
        sizes = list(value.shape) if isinstance(value, torch.Tensor) else []
        having = [axis for axis, size in enumerate(sizes) if symbol in _symbols(size)]
        # rows must come back; another dimension may end within the model
        may_lack = dim != BATCH or not isinstance(value, torch.Tensor)
        if len(having) > 1 or (not having and not may_lack) or (having and str(sizes[having[0]]) != symbol):
            shape = ", ".join(map(str, sizes))
            return f"output {number} of shape [{shape}] has no single dimension of the {dim}'s size"
        axes.append(having[0] if having else None)
    return tuple(axes)


def _symbols(size: int | torch.SymInt) -> set[str]:
    return set() if isinstance(size, int) else {str(symbol) for symbol in size.node.expr.free_symbols}


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


def _dataclasses(spec: pytree.TreeSpec) -> Iterator[type]:
    # transformers' outputs are dataclasses too, but registered by their own library, as dicts
    kind = spec.type
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and not issubclass(kind, dict):
        yield kind
    for child in spec.children():
        yield from _dataclasses(child)


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
