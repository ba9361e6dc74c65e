"""The ways to run a case: each is prepared once, bound to inputs, and then called without arguments."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from cases import CASES
from common import APP_STORE, NUM_THREADS, STORE, FailedError
from torch import nn

from app.api import compile_model, session
from app.workloads import at_precision

Tensors = Sequence[torch.Tensor]
Bind = Callable[[Tensors], Callable[[], Any]]
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Task:
    """A case in a precision, and where compiled things of it are kept."""

    name: str
    precision: str

    @property
    def folder(self) -> Path:
        """Another one after a change of the cases, of how they are prepared, or of torch."""
        here = Path(__file__).parent
        text = "".join((here / name).read_text() for name in ("cases.py", "ways.py")) + torch.__version__
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        folder = STORE / f"{self.name.replace(' ', '-')}-{self.precision}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def example(self) -> tuple[torch.Tensor, ...]:
        """A batch that isn't traced as one."""
        case = CASES[self.name]
        return case.call(4 if len(case.batches) > 1 else case.batches[0])

    def module(self) -> nn.Module:
        """The module as eager runs it; inputs and outputs are those of fp32."""
        return at_precision(CASES[self.name].module(), self.precision)

    def dynamic(self) -> tuple[Any, ...] | None:
        """The batch as a dimension of every input, where several sizes are timed."""
        if len(CASES[self.name].batches) == 1:
            return None
        batch = torch.export.Dim("batch", min=1, max=1024)
        return tuple({0: batch} for _ in self.example)


def simple(call: Callable[..., Any]) -> Bind:
    """A way that takes tensors as they are."""
    return lambda inputs: lambda: call(*inputs)


def eager(task: Task) -> Bind:
    return simple(task.module())


def compiled(task: Task) -> Bind:
    """Its FX graph cache is kept; the second batch size that it sees makes it compile for all, as by default."""
    return simple(torch.compile(task.module(), mode="max-autotune", fullgraph=True))


def aoti(task: Task) -> Bind:
    """AOTInductor as its documentation has it."""
    package = task.folder / "plain.pt2"
    if not package.exists():
        program = torch.export.export(task.module(), task.example, dynamic_shapes=task.dynamic())
        torch._inductor.aoti_compile_and_package(program, package_path=str(package))  # noqa: SLF001
    return simple(torch._inductor.aoti_load_package(str(package)))  # noqa: SLF001


def onnx(task: Task) -> Path:
    """The model as ONNX, exported by torch once."""
    path = task.folder / "model.onnx"
    if not path.exists():
        program = torch.onnx.export(
            task.module(), task.example, dynamo=True, dynamic_shapes=task.dynamic(), verbose=False
        )
        assert program is not None
        program.save(path)
    return path


def onnxruntime(task: Task) -> Bind:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = NUM_THREADS, 3
    model = ort.InferenceSession(onnx(task), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in model.get_inputs()]

    def bind(inputs: Tensors) -> Callable[[], Any]:
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return lambda: model.run(None, feed)[0]

    return bind


def openvino(task: Task) -> Bind:
    """From the fp32 model; bf16 is how it computes."""
    import openvino as ov

    hint = {"fp32": "f32", "bf16": "bf16"}[task.precision]
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": NUM_THREADS}
    core = ov.Core()
    core.set_property({"CACHE_DIR": str(task.folder / "openvino")})
    request = core.compile_model(
        core.read_model(onnx(replace(task, precision="fp32"))), "CPU", config
    ).create_infer_request()

    def bind(inputs: Tensors) -> Callable[[], Any]:
        arrays = [value.numpy() for value in inputs]
        return lambda: request.infer(arrays, share_inputs=True, share_outputs=True)[0]

    return bind


def ours(mode: str) -> Callable[[Task], Bind]:
    """This program, in a mode of its own; what it falls back to is none of its figures."""

    def prepare(task: Task) -> Bind:
        case = CASES[task.name]
        module = case.module()
        given = zip(inspect.signature(module.forward).parameters, task.example, strict=False)  # it may take more
        indices = [name for name, value in given if not value.is_floating_point()]
        ranges = dict.fromkeys(indices, (0, case.high)) if case.high else None
        with session(cache={"dir": APP_STORE, "size_limit": "50GB"}):
            model = compile_model(
                module, task.example, mode=mode, precision=task.precision, ranges=ranges,
                dynamic={} if task.dynamic() is None else None,
            )  # fmt: skip
        if model.info["rung"] == "eager":
            raise FailedError("; ".join(step["reason"] for step in model.info["fallbacks"]) or "served by eager")
        return simple(model)

    return prepare


NATIVE, OTHER = "native", "mode=openvino"
PEERS: dict[str, Callable[[Task], Bind]] = {
    "eager": eager,
    "torch.compile": compiled,
    "AOTInductor": aoti,
    "ONNX Runtime": onnxruntime,
    "OpenVINO": openvino,
}
WAYS = {**PEERS, NATIVE: ours("max-autotune"), OTHER: ours("openvino")}
