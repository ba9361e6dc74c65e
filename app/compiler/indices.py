"""Indices: the range that an integer input of a program may have, as far as the program itself tells.

Compiled code ends the process on an index outside of its table, so every call is checked; and a caller who gives
examples has not said which integers may come. What can't be followed is refused: it is served by eager, which raises.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..errors import ExportError

Range = tuple[int, int] | None

# What gives the same integers again, among others perhaps, in another shape.
_KEEPING = frozenset((
    "view", "reshape", "expand", "unsqueeze", "squeeze", "clone", "contiguous", "detach", "flatten", "alias",
    "permute", "transpose", "t", "slice", "select", "repeat", "split", "chunk", "unbind", "getitem", "_to_copy", "to",
    "cat", "stack", "where", "masked_fill", "lift_fresh_copy", "_unsafe_view", "split_with_sizes",
))  # fmt: skip
# What takes integers for numbers, besides all that works on them one by one.
_COUNTING = frozenset((
    "sum", "mean", "cumsum", "cumprod", "prod", "amax", "amin", "max", "min", "argmax", "argmin", "any", "all",
    "sort", "topk", "argsort", "std", "var", "mm", "bmm", "matmul", "linear", "dot", "flip", "roll", "tril", "triu",
    "type_as",
    "constant_pad_nd", "pad", "expand_as", "view_as", "reshape_as", "ones_like", "zeros_like", "full_like", "numel",
    "_assert_tensor_metadata", "softmax", "count_nonzero", "logsumexp", "norm", "sym_size", "isin", "diff",
))  # fmt: skip
_WIDE = (torch.int32, torch.int64)


def ranges(program: ExportedProgram, declared: frozenset[str] = frozenset()) -> dict[str, Range]:
    """For each integer input that isn't declared: lowest and upper bound (exclusive); None where any is fine.

    Raises:
        ExportError: an input becomes an index in a way that can't be followed; the message says what to give.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    found: dict[str, Range] = {}
    for name in map(str, program.graph_signature.user_inputs):
        value = values.get(name)
        if not isinstance(value, torch.Tensor) or name in declared:
            continue
        high = _highest(program.graph_module, name, {name}, set())
        if _holds_integers(value):
            found[name] = None if high is None else (0, high)
    return found


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
        operator, integers = _name_of(node), {item.name for item in node.all_input_nodes if _is_integer(item)} & taken
        parts = list(_parts(graph, node))
        for part in parts:
            # operands may come in any order: whatever is inside counts as made of the input
            _highest(part, name, set(), {item.name for item in part.graph.nodes if item.op == "placeholder"})
        index = node.args[1] if operator == "embedding" else None
        if index is not None and index.name in integers:
            size = node.args[0].meta["val"].shape[0]
            if index.name in derived or not isinstance(size, int):
                raise _refused(name, operator)
            high = size if high is None else min(high, size)
        elif integers and not parts and not _takes_numbers(node, operator):
            raise _refused(name, operator)
        keeps = operator in _KEEPING and integers & same and _is_integer(node, _WIDE)
        (same if keeps else derived).add(node.name)
    return high


def _refused(name: str, operator: str) -> ExportError:
    return ExportError(
        f"input {name!r} is used as an index ({operator}), in a range that can't be seen: "
        f"give ranges={{{name!r}: (lowest, highest + 1)}} if it holds integers"
    )


def _takes_numbers(node: torch.fx.Node, operator: str) -> bool:
    on_sizes = getattr(node.target, "__module__", None) == "_operator"  # Python's own: 8 * x.shape[0]
    return on_sizes or operator in _KEEPING | _COUNTING or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _parts(graph: torch.fx.GraphModule, node: torch.fx.Node) -> Iterator[torch.fx.GraphModule]:
    """The programs inside of a higher-order operator: branches, and what runs under another mode."""
    for item in pytree.tree_leaves([node.args, node.kwargs]):
        if isinstance(item, torch.fx.Node) and item.op == "get_attr":
            part = getattr(graph, str(item.target), None)
            if isinstance(part, torch.fx.GraphModule):
                yield part


def _name_of(node: torch.fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target))


def _is_integer(node: torch.fx.Node, dtypes: tuple[torch.dtype, ...] | None = None) -> bool:
    values = pytree.tree_leaves(node.meta.get("val"))
    return any(
        isinstance(value, torch.SymInt | int)
        or (isinstance(value, torch.Tensor) and (value.dtype in dtypes if dtypes else _holds_integers(value)))
        for value in values
    )


def _holds_integers(value: torch.Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
