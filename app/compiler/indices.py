"""Indices: the range that an integer input of a program may have, as far as the program itself tells.

Compiled code ends the process on an index outside of its table, so every call is checked; and a caller who gives
examples has not said which integers may come. What can't be followed, or checked, is refused: it is served by eager,
which raises. Sizes make indices too: a table of positions may end before a dimension does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..config import BATCH
from ..errors import TrapError
from ..workloads import Workload

# What gives the same integers again, among others perhaps, in another shape.
_KEEPING = frozenset((
    "view", "reshape", "expand", "unsqueeze", "squeeze", "clone", "contiguous", "detach", "flatten", "alias",
    "permute", "transpose", "t", "slice", "select", "repeat", "split", "chunk", "unbind", "getitem", "_to_copy", "to",
    "cat", "stack", "where", "masked_fill", "lift_fresh_copy", "_unsafe_view", "split_with_sizes",
))  # fmt: skip
# What takes integers for numbers, besides all that works on them one by one.
_COUNTING = frozenset((
    "sum", "mean", "cumsum", "cumprod", "prod", "amax", "amin", "any", "all", "std", "var", "mm", "bmm", "matmul",
    "linear", "dot", "flip", "roll", "tril", "triu", "type_as", "constant_pad_nd", "pad", "expand_as", "view_as",
    "reshape_as", "ones_like", "zeros_like", "full_like", "softmax", "count_nonzero", "logsumexp", "norm", "isin",
    "diff", "_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size",
))  # fmt: skip
# What gives sizes, or places in an operand: no value takes them beyond it. Of some it is the second thing they give.
_BOUNDED = frozenset(("sym_size", "numel", "argmax", "argmin", "argsort", "nonzero", "bucketize", "searchsorted"))
_SECOND_BOUNDED = frozenset(("topk", "sort", "max", "min", "median", "mode", "kthvalue", "cummax", "cummin"))
_WIDE = (torch.int32, torch.int64)


def ranges(program: ExportedProgram, declared: frozenset[str] = frozenset()) -> dict[str, tuple[int, int]]:
    """For each input that indexes a table, and isn't declared: lowest and upper bound (exclusive).

    Raises:
        TrapError: an input becomes an index in a way that can't be followed; the message says what to give.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    found = {}
    for name in map(str, program.graph_signature.user_inputs):
        value = values.get(name)
        if not isinstance(value, torch.Tensor) or value.dtype == torch.bool or name in declared:
            continue
        if (high := _highest(program.graph_module, name, {name}, set())) is not None:
            found[name] = (0, high)
    return found


def try_largest(program: ExportedProgram, workload: Workload) -> None:
    """Run the model at the largest size of each dimension, where it looks anything up.

    Of the batch only where the program counts its rows: for all others the largest would be run for nothing.

    Raises:
        TrapError: it fails there.
    """
    if not _looks_up(program.graph_module):
        return
    for dim in workload.dims.keys() - (set() if _counts_rows(program, workload) else {BATCH}):
        largest = workload.dims[dim].max
        args, kwargs = workload.call(largest) if dim == BATCH else workload.call(others={dim: largest})
        try:
            with torch.inference_mode():
                workload.module(*args, **kwargs)
        except (IndexError, RuntimeError) as error:
            raise TrapError(
                f"the model fails at {dim}={largest}, which its range allows: {error}; lower model.dims.{dim}.max"
            ) from error


def _counts_rows(program: ExportedProgram, workload: Workload) -> bool:
    """Whether `arange` is given what the batch size is part of."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    rows: set[Any] = set()
    for name, item in zip(map(str, program.graph_signature.user_inputs), workload.inputs, strict=True):
        if BATCH in item.shape:
            rows |= _symbols(values[name].shape[item.shape.index(BATCH)])
    counted = (node.meta["val"].shape for node in program.graph.nodes if name_of(node) == "arange")
    return any(_symbols(size) & rows for shape in counted for size in shape)


def _symbols(size: int | torch.SymInt) -> set[Any]:
    return set(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else set()


def _looks_up(graph: torch.fx.GraphModule) -> bool:
    """Whether an operator takes a tensor of integers for something else than numbers."""
    return any(
        any(map(_looks_up, _parts(graph, node)))
        or (any(map(holds_integers, _tensors_into(node))) and not _takes_numbers(node, name_of(node)))
        for node in graph.graph.nodes
        if node.op == "call_function"
    )


def _tensors_into(node: torch.fx.Node) -> list[torch.Tensor]:
    values = (item.meta.get("val") for item in node.all_input_nodes)
    return [value for value in values if isinstance(value, torch.Tensor)]


def _highest(graph: torch.fx.GraphModule, name: str, same: set[str], derived: set[str]) -> int | None:
    """The size of the smallest table that nodes with the input's own integers index; None where there is none.

    Args:
        graph: A program, or a part of one.
        name: The input.
        same: Nodes that hold the input's own values; more are added.
        derived: Nodes that hold what was made of them; more are added.
    """
    high: int | None = None
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        taken = {item.name for item in node.all_input_nodes} & (same | derived)
        if not taken:
            continue
        operator, integers = name_of(node), {item.name for item in node.all_input_nodes if _is_integer(item)} & taken
        parts = list(_parts(graph, node))
        for part in parts:
            # operands may come in any order: whatever is inside counts as made of the input
            given = [item for item in part.graph.nodes if item.op == "placeholder"]
            _highest(part, name, set(), {item.name for item in given if isinstance(item.meta["val"], torch.Tensor)})
        index = node.args[1] if operator == "embedding" else None
        if index is not None and index.name in integers:
            size = node.args[0].meta["val"].shape[0]
            if index.name in derived or not isinstance(size, int):
                raise _refused(name, operator)
            high = size if high is None else min(high, size)
        elif integers and not parts and not _takes_numbers(node, operator):
            raise _refused(name, operator)
        if not _is_bounded(node, operator):
            keeps = operator in _KEEPING and integers & same and _is_integer(node, _WIDE)
            (same if keeps else derived).add(node.name)
    return high


def _refused(name: str, operator: str) -> TrapError:
    return TrapError(
        f"input {name!r} is used as an index ({operator}), in a range that can't be seen: "
        f"give ranges={{{name!r}: (lowest, highest + 1)}} if it holds integers, or pass it as integers"
    )


def _is_bounded(node: torch.fx.Node, operator: str) -> bool:
    """Whether a node gives nothing that values could take out of a table: booleans, sizes, places."""
    if operator == "getitem" and isinstance(node.args[0], torch.fx.Node):
        return bool(node.args[1] == 1) and name_of(node.args[0]) in _SECOND_BOUNDED
    return operator in _BOUNDED or getattr(node.meta.get("val"), "dtype", None) == torch.bool


def _takes_numbers(node: torch.fx.Node, operator: str) -> bool:
    known = _KEEPING | _COUNTING | _BOUNDED | _SECOND_BOUNDED
    return operator in known or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _parts(graph: torch.fx.GraphModule, node: torch.fx.Node) -> Iterator[torch.fx.GraphModule]:
    """The programs inside of a higher-order operator: branches, and what runs under another mode."""
    for item in pytree.tree_leaves([node.args, node.kwargs]):
        if isinstance(item, torch.fx.Node) and item.op == "get_attr":
            part = getattr(graph, str(item.target), None)
            if isinstance(part, torch.fx.GraphModule):
                yield part


def name_of(node: torch.fx.Node) -> str:
    """The operator of a node, without its overload."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target))


def _is_integer(node: torch.fx.Node, dtypes: tuple[torch.dtype, ...] | None = None) -> bool:
    values = pytree.tree_leaves(node.meta.get("val"))
    return any(
        isinstance(value, torch.SymInt | int)
        or (isinstance(value, torch.Tensor) and (value.dtype in dtypes if dtypes else holds_integers(value)))
        for value in values
    )


def holds_integers(value: torch.Tensor) -> bool:
    """Whether its values can be indices."""
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
