"""Traits: what a model's arithmetic is like, counted on one eager call; they order what a trial tries first."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .record import Kind, Traits
from .workloads import Workload

logger = logging.getLogger(__name__)

# FLOPs a byte from which arithmetic sets the pace rather than memory: what today's processors and GPUs in fp32 have,
# within a factor of two.
RIDGE = 10.0


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names the operators, and counts the bytes of what they make; views and in-place results make nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        out = func(*args, **(kwargs or {}))
        there = {_storage(each) for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        made = [each for each in pytree.tree_leaves(out) if isinstance(each, torch.Tensor)]
        self.bytes += sum(each.nbytes for each in made if _storage(each) not in there)
        return out


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def count(workload: Workload, batch: int) -> Traits | None:
    """The traits at a batch size; None where the model's operators can't be seen."""
    args, kwargs = workload.call(batch)
    module, fast = workload.module, torch.backends.mha.get_fastpath_enabled()
    flops, watch = FlopCounterMode(display=False), _Watch()
    torch.backends.mha.set_fastpath_enabled(False)  # it is one operator, of which nothing is counted
    try:
        with torch.no_grad(), watch, flops:
            module(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - models may dislike being watched in any way; only an order depends on it
        logger.info("the model's operators can't be counted: %s: %s", type(error).__name__, error)
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    weights = {id(each): each.nbytes for each in (*module.parameters(), *module.buffers())}
    total = sum(weights.values()) + watch.bytes
    found = {str(op): number for op, number in flops.get_flop_counts().get("Global", {}).items()}
    return Traits(
        kind=_kind(found, watch.names),
        bound="compute" if sum(found.values()) >= RIDGE * total else "memory",
        flops=sum(found.values()),
        bytes=total,
    )


def _kind(flops: dict[str, int], names: set[str]) -> Kind:
    total = sum(flops.values())
    if not total:
        return "elementwise"
    if 2 * sum(number for name, number in flops.items() if "conv" in name) >= total:
        return "convolutional"
    written_out = {"aten::bmm", "aten::_softmax"} <= names
    return "attention" if written_out or any("scaled_dot_product" in name for name in names) else "dense"
