"""Lower by OpenVINO: an exported program -> the blob of a model that its CPU plugin has compiled."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import OPENVINO
from ..errors import CompileError
from ..runtime.openvino import BLOB, options, without_telemetry
from ..runtime.spec import InputSpec
from .export import Exported

LIMIT = 1 << 31


def lower(exported: Exported, precision: str, folder: Path) -> dict[str, Any]:
    """Compile into `folder`; returns what the manifest's content says of it.

    Raises:
        CompileError: OpenVINO can't convert or compile it.
    """
    if exported.spec.out_constants:
        raise CompileError("OpenVINO gives tensors only, and the output holds None, a number or a string")
    openvino = without_telemetry()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    try:
        # The frontend itself, which `openvino.convert_model` calls: that reports each conversion to its makers.
        decoder = TorchFXPythonDecoder.from_exported_program(exported.program)  # read until it is converted
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
        compiled = openvino.Core().compile_model(model, "CPU", options(precision))
        (folder / BLOB).write_bytes(compiled.export_model().getvalue())
    except Exception as error:  # the frontend runs torch's decompositions, and raises whatever they do
        traceback.print_exc()  # standard error is a log here, and has all of it
        raise CompileError(_cause(error)) from error
    spec = replace(exported.spec, inputs=tuple(map(_in_32_bits, exported.spec.inputs)))
    return {"engine": OPENVINO, "precision": precision, "spec": spec.to_json()}


def _cause(error: Exception) -> str:
    """The lines that say why: its summary's, where there is one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")] or lines
    return f"OpenVINO: {type(error).__name__}: {'; '.join(telling[-2:])}"[:500]


def _in_32_bits(item: InputSpec) -> InputSpec:
    """With the range that OpenVINO computes integers in, which every call is checked against."""
    if item.dtype != "int64":
        return item
    low, high = -LIMIT if item.low is None else item.low, LIMIT if item.high is None else item.high
    return replace(item, low=max(low, -LIMIT), high=min(high, LIMIT))
