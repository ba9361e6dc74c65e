"""CUDA graphs simulated on the CPU: the rules that a program must keep, enforced where there is no GPU.

This proves nothing about CUDA itself: not that a kernel can be captured, not that its answer is right, not what it
takes in memory or time, and nothing of streams. It is only as good as what its author knew of CUDA's rules:

- a capture records operations with the very memory they use, and a replay runs them there again, no Python between;
- what an operation returns lies in the pool, and holds garbage until the first replay (here the capture does compute,
  to learn shapes, and an operation that writes into older memory writes once);
- what a capture doesn't return, later captures into the same pool reuse;
- waiting for the device breaks the capture, even where the caller catches the error;
- memory that moved, and a pool that was freed, are an illegal access;
- a pool ends with its last graph.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

aten = torch.ops.aten
SYNCS = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.nonzero, aten.masked_select, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.equal,
}  # fmt: skip
GARBAGE = 0xAB
ILLEGAL = "CUDA error: an illegal memory access was encountered"


def tensors_in(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass
class Pool:
    """Blocks of memory; `free` ones are taken again by later captures."""

    blocks: list[torch.UntypedStorage] = field(default_factory=list)
    free: list[torch.UntypedStorage] = field(default_factory=list)
    num_graphs: int = 0
    ended: bool = False

    def place(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor with the same values, in this pool's memory."""
        num_bytes = value.untyped_storage().nbytes()
        block = next((block for block in self.free if block.nbytes() >= num_bytes), None)
        if block is None:
            block = torch.UntypedStorage(num_bytes)
            self.blocks.append(block)
        else:
            self.free.remove(block)
        placed = torch.empty(0, dtype=value.dtype).set_(block, 0, value.shape, value.stride())
        return placed.copy_(value)

    def give_back(self, block: torch.UntypedStorage) -> None:
        if all(block.data_ptr() != other.data_ptr() for other in self.free):
            self.free.append(block)


@dataclass
class Operation:
    """One recorded call; `fresh` are the outputs that it allocated, by position among its tensors."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fresh: dict[int, torch.Tensor]
    reads: list[tuple[torch.Tensor, int]]

    def run(self) -> None:
        for tensor, captured_at in self.reads:
            if address(tensor) != captured_at:
                raise RuntimeError(ILLEGAL)
        results = tensors_in(self.func(*self.args, **self.kwargs))
        for position, output in self.fresh.items():
            output.copy_(results[position])


class SimulatedGraph:
    def __init__(self, simulator: Simulator, pool: Pool) -> None:
        self.simulator, self.pool = simulator, pool
        self.operations: list[Operation] = []
        self.outputs: list[torch.Tensor] = []
        self.alive = True
        pool.num_graphs += 1

    def replay(self) -> None:
        if self.simulator.ordering != threading.get_ident():
            raise RuntimeError("replayed beside another stream's replay: its buffers are a race")
        time.sleep(self.simulator.delay_s)
        for operation in self.operations:
            self.require_memory()
            operation.run()
        self.require_memory()

    def require_memory(self) -> None:
        if not self.alive or self.pool.ended:
            raise RuntimeError(ILLEGAL)

    def reset(self) -> None:
        if self.pool.ended:
            raise RuntimeError(ILLEGAL)
        if self.alive:
            self.alive = False
            self.pool.num_graphs -= 1
            self.pool.ended = False
            for output in self.outputs:
                if any(address(output) == block.data_ptr() for block in self.pool.blocks):
                    self.pool.give_back(output.untyped_storage())


class Recorder(TorchDispatchMode):
    """Records every dispatched operation into a graph, its outputs moved into the pool."""

    def __init__(self, graph: SimulatedGraph) -> None:
        super().__init__()
        self.graph, self.broken = graph, False
        self.used: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in SYNCS or self._indexes_by_mask(func, args):
            self.sync()
        return self.record(func, args, kwargs or {})

    @staticmethod
    def _indexes_by_mask(func, args) -> bool:
        return func.overloadpacket is aten.index and any(item.dtype is torch.bool for item in tensors_in(args[1]))

    def sync(self) -> None:
        self.broken = True
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def record(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = tensors_in((args, kwargs))
        known = {address(tensor) for tensor in given}
        leaves, spec = pytree.tree_flatten(func(*args, **kwargs))
        fresh: dict[int, torch.Tensor] = {}
        position = 0
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                if address(leaf) not in known:
                    leaves[index] = fresh[position] = self.graph.pool.place(leaf)
                    self.used.append(fresh[position].untyped_storage())
                position += 1
        reads = [(tensor, address(tensor)) for tensor in given]
        self.graph.operations.append(Operation(func, args, kwargs, fresh, reads))
        return pytree.tree_unflatten(leaves, spec)

    def finish(self, outputs: list[torch.Tensor]) -> None:
        """Garbage where the run computed; what it doesn't return goes back to the pool."""
        kept = {address(output) for output in outputs}
        for block in self.used:
            torch.empty(0, dtype=torch.uint8).set_(block).fill_(GARBAGE)
            if block.data_ptr() not in kept:
                self.graph.pool.give_back(block)
        self.graph.outputs = outputs


class Simulator:
    """A GraphMechanism; `events` is what was asked of it, in order.

    Attributes:
        delay_s: How long a replay waits before it runs: what other threads do meanwhile shows.
        ordering: The thread inside of `ordered()`.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.events: list[tuple[Any, ...]] = []
        self.pools: list[Pool] = []
        self.delay_s = 0.0
        self.ordering: int | None = None
        self._recorder: Recorder | None = None
        self._warming = False

    def warm_up(self, run: Callable[[], object], times: int) -> None:
        self.events.append(("warm_up", times))
        for _ in range(times):
            run()

    def new_pool(self) -> Pool:
        self.events.append(("new_pool",))
        self.pools.append(Pool())
        return self.pools[-1]

    def release_pool(self, pool: Pool) -> None:
        self.events.append(("release_pool", pool.num_graphs))
        pool.ended = True
        for block in pool.blocks:
            torch.empty(0, dtype=torch.uint8).set_(block).fill_(GARBAGE)
        pool.blocks, pool.free = [], []

    def capture(self, run: Callable[[], list[torch.Tensor]], pool: Pool) -> tuple[SimulatedGraph, list[torch.Tensor]]:
        if pool.ended or (pool.num_graphs == 0 and pool.blocks):
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED: the pool ended with its last graph")
        graph = SimulatedGraph(self, pool)
        recorder = self._recorder = Recorder(graph)
        try:
            with recorder:
                outputs = run()
        except BaseException as error:
            graph.reset()
            if recorder.broken:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from error
            raise
        finally:
            self._recorder = None
        if recorder.broken:
            graph.reset()
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        recorder.finish(outputs)
        self.events.append(("capture", self.pools.index(pool), outputs[0].shape[0] if outputs else 0))
        return graph, outputs

    def artifact(self, function: Callable[[list[torch.Tensor]], list[torch.Tensor]], *, syncs: bool = False) -> Any:
        """A compiled library's call: captured as one operation, whatever it is made of."""

        def call(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            if self._recorder is None:
                return function(tensors)
            with _disable_current_modes():
                if syncs:
                    self._recorder.sync()
                return self._recorder.record(function, (tensors,), {})

        return call

    @contextmanager
    def ordered(self):
        if self.ordering is not None:
            raise RuntimeError("two calls at once on the same buffers")
        self.ordering = threading.get_ident()
        try:
            yield
        finally:
            self.ordering = None

    def allocated_bytes(self) -> int:
        return sum(block.nbytes() for pool in self.pools for block in pool.blocks)

    def synchronize(self) -> None:
        self.events.append(("synchronize",))
