"""Traps: what compiled code would end the process by, where eager raises: integer division by zero.

Only a divisor that can't be zero is compiled: a number, or what `clamp(min=1)` gives. The rest is served by eager.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from ..errors import TrapError
from . import indices

_DIVIDING = frozenset(("div", "divide", "floor_divide", "remainder", "fmod", "true_divide"))
_CLAMPING = frozenset(("clamp", "clamp_min", "clip"))
# What gives the same values in another shape or width.
_SAME = frozenset((
    "to", "_to_copy", "view", "reshape", "unsqueeze", "squeeze", "expand", "clone", "contiguous", "alias",
))  # fmt: skip


def refuse_division(program: ExportedProgram) -> None:
    """Raise TrapError where integers are divided by what may be zero, or -1: the least integer has no opposite."""
    for graph in _graphs(program.graph_module):
        for node in graph.graph.nodes:
            if node.op != "call_function" or indices.name_of(node).rstrip("_") not in _DIVIDING:
                continue
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor) or not indices.holds_integers(value):
                continue  # true division of integers gives floating-point numbers, which don't trap
            divisor = node.args[1]
            if not _is_safe(divisor):
                raise TrapError(
                    f"integers are divided by {divisor}, which may be zero or -1, and compiled code would end the "
                    "process: divide by its clamp(min=1), or divide floating-point numbers"
                )


def _graphs(graph: torch.fx.GraphModule) -> list[torch.fx.GraphModule]:
    return [each for each in graph.modules() if isinstance(each, torch.fx.GraphModule)]


def _is_safe(divisor: object) -> bool:
    """Whether a divisor can be neither zero nor minus one."""
    if not isinstance(divisor, torch.fx.Node):
        return divisor not in (0, -1)
    if isinstance(divisor.meta.get("val"), torch.SymInt):
        return True  # a size: those of a range begin at one
    name = indices.name_of(divisor) if divisor.op == "call_function" else ""
    if name in _SAME:
        return _is_safe(divisor.args[0])
    if name in _CLAMPING:
        least = divisor.args[1] if len(divisor.args) > 1 else divisor.kwargs.get("min")
        return isinstance(least, int | float) and least >= 1
    return False
