"""CudaGraphOptimizer: one run captured as a CUDA graph for each size, and replayed under one lock.

A graph replays kernels at the addresses of its capture. So inputs are copied into buffers that never move, outputs
lie where the next replay overwrites them, and weights that moved make every graph wrong. Largest size first into one
shared pool, so that smaller sizes reuse its memory, is the order of mini-sglang and vLLM.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import choose
from ..errors import CaptureError, InputError
from .mechanism import Graph, GraphMechanism, reason_of

Run = Callable[[list[Tensor]], list[Tensor]]
# A batch size; or one followed by the sizes of other dimensions.
Size = int | tuple[int, ...]

OUTPUTS = ("clone", "view")


@dataclass(frozen=True)
class _Captured:
    graph: Graph
    inputs: list[Tensor]
    outputs: list[Any]  # tensors, and None where the model gives that


class CudaGraphOptimizer:
    """Captures `run` at several sizes and replays it.

    Args:
        run: Tensors in, tensors out; no Python of it runs again after capture.
        mechanism: The device's graphs.
        outputs: `clone`: outputs are the caller's. `view`: they are the graph's own memory, without a copy, and the
            next replay, of whatever size, overwrites them.
        max_graphs: Most graphs that are kept.
        max_bytes: Most device memory that capturing may take, in bytes; None is no limit. It is known only after a
            capture: the graph that crosses it is dropped with all smaller sizes, but the pool keeps the memory for
            the graphs before it; `stats()` has what is held.
        warmup: Runs before each capture.
        addresses: Where the weights are that `run` reads (`data_ptr()` of each); called before each replay.
        names: The inputs' names, for messages.
    """

    def __init__(
        self,
        run: Run,
        mechanism: GraphMechanism,
        *,
        outputs: str = "clone",
        max_graphs: int = 64,
        max_bytes: int | None = None,
        warmup: int = 3,
        addresses: Callable[[], tuple[int, ...]] = tuple,
        names: Sequence[str] = (),
    ) -> None:
        choose("outputs", outputs, OUTPUTS)
        self._run, self._mechanism, self._view = run, mechanism, outputs == "view"
        self._max_graphs, self._max_bytes, self._warmup = max_graphs, max_bytes, warmup
        self._addresses, self._names = addresses, tuple(names)
        self._lock = threading.Lock()
        self._graphs: dict[Size, _Captured] = {}
        self._sizes: tuple[Size, ...] = ()
        self._lost = False
        self._asked: tuple[Sequence[Size], Callable[[Any], list[Tensor]]] = ((), list)
        self._pool: Any = None
        self._captured_at: tuple[int, ...] = ()
        self._gone = "nothing was captured"  # why there are no graphs
        self._full = ""  # why no more sizes are captured
        self._skipped: dict[Size, str] = {}
        self._failures, self._replayed = Counter[str](), Counter[Size]()
        self._bytes, self._bytes_before, self._seconds = 0, 0, 0.0
        self._bytes_by_size: dict[Size, int] = {}

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The captured sizes, smallest first; never waits for a capture or a replay."""
        return self._sizes

    @property
    def lost(self) -> bool:
        """Whether there were graphs, and the weights moved: a replay says so."""
        return self._lost

    def capture(self, sizes: Sequence[Size], inputs: Callable[[Any], list[Tensor]]) -> None:
        """Capture each size, largest first, with copies of its inputs; earlier graphs are dropped.

        A limit sheds the smallest sizes. A size that is shed, or fails, is in `stats()["skipped"]` with the reason.

        Raises:
            CaptureError: an input is elsewhere, `run` waits for the device or branches on values, or all sizes fail.
        """
        self._asked = (sizes, inputs)
        order = sorted(set(sizes), key=_work, reverse=True)
        # Buffers that are made in inference mode could not be written outside of it.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            started = time.perf_counter()
            self._begin()
            try:
                for size in order:
                    self._capture_next(size, inputs)
                self._require_one()
            except BaseException as error:
                why = str(error) or type(error).__name__
                self._skipped = {size: self._skipped.get(size, why) for size in order}
                self._drop(why)
                raise
            finally:
                self._seconds = time.perf_counter() - started
            self._sizes = tuple(sorted(self._graphs, key=_work))

    def capture_again(self) -> None:
        """Capture the same sizes again: the weights have moved."""
        self.capture(*self._asked)

    def _begin(self) -> None:
        self._drop("they are being captured again")
        self._skipped, self._full, self._bytes, self._bytes_by_size = {}, "", 0, {}
        self._lost = False
        # Read before the first capture: weights that move meanwhile are noticed by the first replay.
        self._captured_at = self._addresses()
        self._bytes_before = self._mechanism.allocated_bytes()
        self._pool = self._mechanism.new_pool()

    def _capture_next(self, size: Size, inputs: Callable[[Any], list[Tensor]]) -> None:
        if not self._full and len(self._graphs) >= self._max_graphs:
            self._full = f"shed: max_graphs={self._max_graphs} larger sizes come first"
        if self._full:
            self._skipped[size] = self._full
            return
        before = self._bytes
        self._try_capture(size, inputs)
        self._bytes = self._mechanism.allocated_bytes() - self._bytes_before
        self._bytes_by_size[size] = self._bytes - before
        if size in self._graphs and self._max_bytes is not None and self._bytes > self._max_bytes:
            self._full = f"shed: size {size} takes the graphs to {self._bytes} bytes, max_bytes={self._max_bytes}"
            self._skipped[size] = self._full
            self._graphs.pop(size).graph.reset()
            self._bytes = self._mechanism.allocated_bytes() - self._bytes_before
            del self._bytes_by_size[size]

    def _try_capture(self, size: Size, inputs: Callable[[Any], list[Tensor]]) -> None:
        raised: list[Exception] = []
        try:
            self._graphs[size] = self._capture_one(inputs(size), raised)
        except CaptureError:  # it holds for all sizes
            raise
        except Exception as error:  # noqa: BLE001 - `run` is anyone's: whatever it raises is this size's failure
            # What `run` raised says more than what ending the broken capture raised after it.
            self._note_failure(size, [*raised, error])
        finally:
            raised.clear()  # its tracebacks hold the buffers, and are held by this frame
        if not self._graphs:  # a pool ends with its last graph, and this one has none
            self._mechanism.release_pool(self._pool)
            self._pool = self._mechanism.new_pool()

    def _capture_one(self, given: list[Tensor], raised: list[Exception]) -> _Captured:
        for position, tensor in enumerate(given):
            if tensor.device != self._mechanism.device:
                place = f"input {self._name(position)!r} is on {tensor.device}"
                self._refuse("input-device", f"{place}: CUDA graphs read {self._mechanism.device} only")
        buffers = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in given]

        def run() -> list[Tensor]:
            try:
                return self._run(list(buffers))
            except Exception as error:
                raised.append(error)
                raise

        self._mechanism.warm_up(run, self._warmup)
        graph, outputs = self._mechanism.capture(run, self._pool)
        return _Captured(graph, buffers, list(outputs))

    def _note_failure(self, size: Size, errors: list[Exception]) -> None:
        why = (str(errors[0]).strip().splitlines() or [type(errors[0]).__name__])[0]
        if (reason := reason_of(errors)) == "sync":
            self._refuse(reason, f"a CUDA graph can't wait for the device, or branch on values: {why}")
        self._failures[reason] += 1
        self._skipped[size] = f"failed ({reason}): {why}"

    def _refuse(self, reason: str, message: str) -> None:
        self._failures[reason] += 1
        raise CaptureError(message)

    def replay(self, size: Size, tensors: Sequence[Tensor], *, clone: bool = False) -> list[Tensor]:
        """Run at a captured size; safe from any thread, on any stream.

        With `clone` the outputs are the caller's, for another replay may come before their use.

        The tensors have the shapes, dtypes and device of the capture: padding is the caller's.

        Raises:
            CaptureError: the size has no graph, the weights moved (all graphs are dropped then), or the replay fails.
            InputError: an input isn't as it was captured.
        """
        # One call at a time up to the clone: buffers and outputs are everybody's.
        outputs: list[Any]
        with self._lock, torch.no_grad(), self._mechanism.ordered():
            captured = self._usable(size)
            self._check(captured.inputs, tensors)
            try:
                for buffer, tensor in zip(captured.inputs, tensors, strict=True):
                    buffer.copy_(tensor)
                captured.graph.replay()
                outputs = (
                    list(captured.outputs)
                    if self._view and not clone
                    else [tensor if tensor is None else tensor.clone() for tensor in captured.outputs]
                )
            except RuntimeError as error:
                self._failures["replay"] += 1
                raise CaptureError(f"the CUDA graph of size {size} can't be replayed: {error}") from error
            self._replayed[size] += 1
            return outputs

    def _usable(self, size: Size) -> _Captured:
        if self._graphs and self._addresses() != self._captured_at:
            moved = "the weights' addresses changed since capture: write weights in place, or capture again"
            self._drop(moved)
            self._lost = True
            self._refuse("addresses", f"the CUDA graphs were dropped: {moved}")
        if not self._graphs:
            raise CaptureError(f"there are no CUDA graphs: {self._gone}")
        if size not in self._graphs:
            raise CaptureError(f"size {size} was not captured: {self._skipped.get(size, 'it was not asked for')}")
        return self._graphs[size]

    def _check(self, buffers: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        if len(tensors) != len(buffers):
            raise InputError(f"{len(tensors)} inputs, but the CUDA graph was captured with {len(buffers)}")
        for position, (buffer, tensor) in enumerate(zip(buffers, tensors, strict=True)):
            # copy_ would broadcast, convert and move in silence
            if (tensor.shape, tensor.dtype, tensor.device) != (buffer.shape, buffer.dtype, buffer.device):
                found = f"input {self._name(position)!r} is {_described(tensor)}"
                raise InputError(f"{found}, but the CUDA graph was captured with {_described(buffer)}")

    def release(self) -> None:
        """Drop the graphs, then their pool; a replay after it is a CaptureError."""
        with self._lock:
            self._drop("they were released")

    def _drop(self, why: str) -> None:
        self._gone, self._sizes = why, ()
        if self._pool is None:
            return
        self._mechanism.synchronize()  # a replay may still be running
        for captured in self._graphs.values():
            captured.graph.reset()
        self._graphs.clear()
        self._mechanism.release_pool(self._pool)  # after its graphs: they write into it
        self._pool, self._bytes = None, 0

    def stats(self) -> dict[str, Any]:
        """Captured sizes, replays by size, failures by reason, skipped sizes and why, bytes, seconds to capture."""
        with self._lock:
            return {
                "captured": list(self._sizes),
                "replayed": dict(self._replayed),
                "failures": dict(self._failures),
                "skipped": dict(self._skipped),
                "bytes": self._bytes,
                "bytes_by_size": dict(self._bytes_by_size),
                "seconds": self._seconds,
            }

    def _require_one(self) -> None:
        if not self._graphs:
            reasons = "; ".join(f"size {size}: {why}" for size, why in self._skipped.items())
            raise CaptureError(f"no CUDA graph was captured: {reasons or 'no sizes were given'}")

    def _name(self, position: int) -> str:
        return self._names[position] if position < len(self._names) else str(position)


def _work(size: Size) -> tuple[int, Size]:
    """Larger for what takes more memory."""
    return (size if isinstance(size, int) else math.prod(size), size)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
