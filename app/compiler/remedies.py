"""Remedies: what torch.export raises, in a line, with where it was raised, torch's suggestion and what helps."""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

_RECURRENT = (
    "a recurrent net is traced for one length: leave that axis out of the dynamic ones, and pad sequences to it"
)
# The first that is found is said.
_REMEDIES = (
    (r"GuardOnDataDependentSymNode|data-dependent",
     "the module asks a tensor for a Python value, to branch or to cut by it: use torch.where, or keep it a tensor"),
    (r"pack_padded|type must be tuple of ints,but got FakeTensor",
     "packed sequences can't be traced: run over the padded ones, and mask the output"),
    (r"specialized it to be a constant",
     "the code fixes this size: take it from x.shape, without a Python loop over it, or don't make it dynamic"),
    (r"= \d+\*_",
     "the size must be a multiple of a number: pad to it, or leave it out of the dynamic ones"),
    (r"Dim\('\w+'.*(min|max)=",
     "the code takes another way at some sizes: narrow the range as suggested, by model.dims or a torch.export.Dim"),
    (r"which is not a known type|Unsupported.*output type",
     "torch doesn't know a class in the output: return tensors in a dict, tuple, named tuple or dataclass"),
    (r"\.numpy\(\) is not supported|can't convert .*Fake|__array__",
     "numpy can't be traced: use torch's own functions in forward"),
    (r"ScriptModule|torch\.jit|scripted",
     "give the Python module that was scripted, not the script"),
    (r"No module named|FileNotFoundError",
     "forward reads or imports something that is not there"),
    (r"vmap|functorch|nested tensor|NestedTensor",
     "nested tensors and transforms can't be exported: use padded tensors with a mask"),
)  # fmt: skip


def told(error: BaseException, module: nn.Module | None = None) -> str:
    """One paragraph: type and first line, the line of the user's code, the suggested fixes whole, a remedy."""
    text = str(error).strip()
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    parts = [f"{type(error).__name__}: {first}" if first else type(error).__name__]
    if "Constraints violated" in first:
        parts += [line.strip(" -") for line in text.splitlines() if line.startswith("  - ")][:1]
    raised = re.search(r'The following call raised this error:\s+File "([^"]+)", line (\d+).*\n\s*(.*)', text)
    if raised:
        parts.append(f"at {Path(raised[1]).name}:{raised[2]}: {raised[3].strip()[:120]}")
    suggested = re.search(r"Suggested fixes:\n((?:\s{2,}.*\n?)+)", text)
    if suggested:
        parts.append(
            "torch suggests " + "; ".join(line.strip() for line in suggested[1].splitlines() if line.strip())
        )
    if (remedy := remedy_of(f"{type(error).__name__}: {text}", module)) is not None:
        parts.append(remedy)
    return "; ".join(part.rstrip(".") for part in parts)


def remedy_of(text: str, module: nn.Module | None = None) -> str | None:
    """What helps against a failure, in one sentence; None where that isn't known."""
    recurrent = module is not None and any(isinstance(part, nn.RNNBase) for part in module.modules())
    if recurrent and "specialized it to be a constant" in text:
        return _RECURRENT
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, text)), None)
