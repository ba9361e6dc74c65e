"""How long one call takes on a device."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock(Protocol):
    """Times one call; a test passes one that doesn't run on real time."""

    def time(self, call: Callable[[], object]) -> float:
        """Seconds that `call` took, until its result was there."""
        ...


class CpuClock:
    """The process's monotonic clock; reading it costs some 50 ns, which no sample here notices."""

    def time(self, call: Callable[[], object]) -> float:
        """Seconds between call and return."""
        begin = perf_counter_ns()
        call()
        return (perf_counter_ns() - begin) / 1e9


class CudaClock:
    """CUDA events around the call: a CUDA call returns before its kernels have run, so only the device knows.

    The device is idle when the first event is recorded, so the time to launch the kernels counts, as it does
    for a user who waits for the answer.
    """

    def __init__(self, device: str = "cuda") -> None:
        import torch

        self._device = torch.device(device)
        self._synchronize = torch.cuda.synchronize
        self._current_stream = torch.cuda.current_stream
        self._begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def time(self, call: Callable[[], object]) -> float:
        """Seconds from an idle device to the call's last kernel on the current stream."""
        self._synchronize(self._device)
        stream = self._current_stream(self._device)
        self._begin.record(stream)
        call()
        self._end.record(stream)
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1e3


def clock_for(device: str) -> Clock:
    """The clock that tells the truth about `device` ("cpu", "cuda", "cuda:1")."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        return CudaClock(device)
    if kind == "cpu":
        return CpuClock()
    raise ValueError(f"no clock for device {device!r}; there is one for cpu and cuda")
