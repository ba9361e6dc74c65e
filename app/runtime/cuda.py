"""CUDA's graphs as `graphs.py` wants them; all of the program's use of torch.cuda's graphs is in this file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

# torch allows one capture at a time in a process, and no emptying of its cache meanwhile.
_one_at_a_time = threading.Lock()


class CudaMechanism:
    """Graphs of one CUDA device.

    Args:
        device: `cuda:N`; without an index it is the current device.
    """

    def __init__(self, device: str | torch.device = "cuda") -> None:
        self.device = torch.empty(0, device=device).device  # with its index
        # Streams of this device: the one that torch.cuda.graph makes belongs to the device of its first use.
        self._warm_up_stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._capture_stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self.device):
            self._last_use = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def warm_up(self, run: Callable[[], object], times: int) -> None:
        """Run on a side stream, as https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self._warm_up_stream.wait_stream(current)
            with torch.cuda.stream(self._warm_up_stream):
                for _ in range(times):
                    run()
            current.wait_stream(self._warm_up_stream)
        self.synchronize()  # an error of the warm-up is raised here, and not by the capture

    def new_pool(self) -> Any:
        """A token; torch makes the pool with its first capture and frees it after its last graph."""
        return torch.cuda.graph_pool_handle()

    def release_pool(self, pool: Any) -> None:
        """Its graphs are reset, so its memory is cached by torch: hand it back to the device."""
        del pool
        self._empty_cache()

    def capture(self, run: Callable[[], list[Tensor]], pool: Any) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
        """Capture one run into the pool.

        Raises:
            RuntimeError: CUDA refuses what the run does; the text is CUDA's.
        """
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(
            graph,
            pool=pool,
            stream=self._capture_stream,
            # under "global", another thread's allocation would break this capture
            capture_error_mode="thread_local",
        )
        # torch.cuda.graph leaves its stream current where ending a capture fails; the outer context restores it
        with _one_at_a_time, torch.cuda.device(self.device), torch.cuda.stream(self._capture_stream), capture:
            outputs = run()
        return graph, outputs

    @contextmanager
    def ordered(self) -> Iterator[None]:
        """Calls come from streams of their own, and share buffers: each waits for the end of the one before."""
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._last_use)  # before its first record it is no wait
            try:
                yield
            finally:
                self._last_use.record(stream)

    def allocated_bytes(self) -> int:
        """What torch holds of the device, with nothing cached: graphs keep whole segments, in use or not."""
        self._empty_cache()
        return int(torch.cuda.memory_stats(self.device).get("reserved_bytes.all.current", 0))

    def synchronize(self) -> None:
        """Wait for everything on the device."""
        torch.cuda.synchronize(self.device)

    def _empty_cache(self) -> None:
        with _one_at_a_time, torch.cuda.device(self.device):
            self.synchronize()
            # after a capture that CUDA broke, torch without pytorch#180395 believes that it still goes on
            with suppress(RuntimeError):
                torch.cuda.empty_cache()
