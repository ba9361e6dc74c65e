"""A model that OpenVINO compiled, from the blob that it wrote.

The blob holds the weights and the graph as the CPU plugin transforms it: compiling the graph again takes three to ten
times as long as reading it. Only the version that wrote it reads it, which is a factor of the key.
"""

from __future__ import annotations

import sys
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from ..errors import LoadError
from .runner import Runner

BLOB = "model.blob"
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def without_telemetry() -> Any:
    """The package `openvino`; importing it as it is starts a thread that reports to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # then it goes on without
    import openvino

    return openvino


def options(precision: str, num_streams: int = 1) -> dict[str, Any]:
    """OpenVINO's own arithmetic is the module's, and each call has the threads that torch's have."""
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": num_streams,
        "INFERENCE_NUM_THREADS": num_streams * torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # torch's threads and other processes run on the same cores
    }


class OpenVinoRunner(Runner):
    """A loaded blob, with an inference request for each of the calls that may run at the same time; more wait.

    Args:
        blob: The file, which is memory-mapped.
        precision: `fp32`, `bf16` or `fp16`: what its module computes in.
        num_runners: How many calls may run at the same time.

    Raises:
        LoadError: OpenVINO isn't installed, or can't read it.
    """

    uncapturable = "OpenVINO runs on the CPU"

    def __init__(self, blob: Path, precision: str, *, num_runners: int = 1) -> None:
        try:
            self._openvino = openvino = without_telemetry()
            # copied where it is written, which is nowhere: OpenVINO copies what it can't write
            self._mapped = np.memmap(blob, dtype=np.uint8, mode="c")
            tensor = openvino.Tensor(self._mapped, shared_memory=True)
            compiled = openvino.Core().import_model(tensor, "CPU", options(precision, num_runners))
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise LoadError(f"OpenVINO can't load {blob.name}: {str(error).strip().splitlines()[-1]}") from error
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(num_runners):
            self._free.put(compiled.create_infer_request())

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run the model; the GIL is free meanwhile."""
        request = self._free.get()
        try:
            for index, tensor in enumerate(tensors):
                request.set_input_tensor(index, self._shared(tensor.detach()))
            request.infer(share_outputs=True)
            return [self._taken(output) for output in request.output_tensors]
        finally:
            self._free.put(request)

    def _shared(self, tensor: torch.Tensor) -> Any:
        openvino = self._openvino
        if tensor.dtype is torch.bfloat16:  # NumPy has none: the same bits by another name
            bits = tensor.view(torch.int16).numpy()
            return openvino.Tensor(bits, openvino.Shape(tensor.shape), openvino.Type.bf16)
        return openvino.Tensor(tensor.numpy(), shared_memory=True)

    def _taken(self, output: Any) -> torch.Tensor:
        """A copy: the next call writes its own output there."""
        value = torch.from_numpy(output.data)
        return (value.view(torch.bfloat16) if output.element_type == self._openvino.Type.bf16 else value).clone()
