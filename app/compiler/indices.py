"""Indices: the range that an integer input of a program may have, as far as the program itself tells.

Compiled code ends the process on an index outside of its table, so every call is checked; and a caller who gives
examples has not said which integers may come.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..errors import ExportError

Range = tuple[int, int] | None

# Where the index is among the arguments, and in which argument's shape its table's size stands; -1: elsewhere.
_INDEXING = {
    "embedding": (1, 0), "embedding_bag": (1, 0), "_embedding_bag": (1, 0), "index": (1, -1), "index_put": (1, -1),
    "index_put_": (1, -1), "_unsafe_index": (1, -1), "index_select": (2, -1), "gather": (2, -1), "take": (1, -1),
    "scatter": (2, -1), "scatter_": (2, -1), "scatter_add": (2, -1), "scatter_reduce": (2, -1),
    "index_add": (2, -1),
    "index_copy": (2, -1), "index_fill": (2, -1), "one_hot": (0, -1), "bincount": (0, -1),
    "repeat_interleave": (0, -1), "nll_loss_forward": (1, -1), "cross_entropy_loss": (1, -1),
    "take_along_dim": (1, -1),
}  # fmt: skip
# What gives the same integers again, in another shape.
_KEEPING = frozenset((
    "view", "reshape", "expand", "unsqueeze", "squeeze", "clone", "contiguous", "detach", "flatten", "alias",
    "permute", "transpose", "t", "slice", "select", "repeat", "split", "chunk", "unbind", "getitem", "_to_copy",
    "to", "_assert_tensor_metadata", "lift_fresh_copy", "_unsafe_view",
))  # fmt: skip


def ranges(program: ExportedProgram) -> dict[str, Range]:
    """For each integer input that has to be declared: lowest and upper bound (exclusive); None where any is fine.

    Raises:
        ExportError: an input becomes an index in a way that can't be followed; the message says what to give.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    found: dict[str, Range] = {}
    for name in program.graph_signature.user_inputs:
        value = values.get(str(name))
        if isinstance(value, torch.Tensor) and not (value.is_floating_point() or value.is_complex()):
            found[str(name)] = _range(program, str(name))
    return found


def _range(program: ExportedProgram, name: str) -> Range:
    same, derived = {name}, set[str]()  # nodes that hold the input's own integers; and others made of them
    high: int | None = None
    for node in program.graph.nodes:
        names = {item.name for item in node.all_input_nodes}
        if node.op != "call_function" or not names & (same | derived):
            continue
        operator = _name_of(node)
        if operator in _INDEXING:
            position, table = _INDEXING[operator]
            given = node.args[position] if position < len(node.args) else None
            indices = {item.name for item in pytree.tree_leaves(given) if isinstance(item, torch.fx.Node)}
            integers = {item for item in indices if _is_integer(program, item)}
            if integers & derived or (integers & same and table < 0):
                raise ExportError(
                    f"input {name!r} is used as an index ({operator}), in a range that can't be seen: "
                    f"give ranges={{{name!r}: (lowest, highest + 1)}}"
                )
            if integers & same:
                size = node.args[table].meta["val"].shape[0]
                high = int(size) if high is None else min(high, int(size))
            if not indices & (same | derived):
                continue
        (same if operator in _KEEPING and names & same and _is_integer(program, node.name) else derived).add(
            node.name
        )
    return None if high is None else (0, high)


def _name_of(node: torch.fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target))


def _is_integer(program: ExportedProgram, name: str) -> bool:
    for node in program.graph.nodes:
        if node.name == name:
            value = node.meta.get("val")
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            return isinstance(value, torch.Tensor) and not (
                value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
            )
    return False
