"""Side effects: what a call of a user's module does beside giving an output, which compiled code wouldn't do.

A program that was traced keeps the arithmetic of a call. A counter, a tensor left on the module to be read later, or
a hook that collects features happens once, while it is traced, and never again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_DEEPEST, _LONGEST = 5, 1000
# Of torch's own: what nn.Module keeps in every instance, beside what the module's author put there.
_OWN = frozenset(vars(nn.Module()))
_HOOKS = {"_forward_hooks": "forward hook", "_forward_pre_hooks": "forward pre-hook"}


def of_calls(module: nn.Module, calls: Sequence[Callable[[], Any]]) -> str | None:
    """The first side effect that calls are seen to have, in words; None where there is none.

    Args:
        module: What is called. It was called before, so that what it makes once and keeps is there already.
        calls: Each calls it, with inputs of its own.
    """
    silent: dict[str, bool] = {}
    before = _state(module)
    with _watched(module, silent):
        for call in calls:
            call()
    after = _state(module)
    for name in [*before, *(after.keys() - before.keys())]:
        if not _same(before.get(name), after.get(name)):
            return f"a call changes the module's {name}"
    # one that gives an output is part of the program, which is compared with the module
    return next((f"the {name} returns nothing, so it is there for what else it does" for name in silent), None)


def _state(module: nn.Module) -> dict[str, Any]:
    """Every attribute, parameter and buffer by its path."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        tensors = {**part._parameters, **part._buffers}  # noqa: SLF001 - named_parameters() leaves tied ones out
        for name, value in {**tensors, **{k: v for k, v in vars(part).items() if k not in _OWN}}.items():
            kind = "parameter" if name in part._parameters else "buffer" if name in part._buffers else "attribute"  # noqa: SLF001
            found[f"{kind} {prefix}{name}"] = _value(value, _DEEPEST)
    return found


@dataclasses.dataclass(frozen=True)
class _Tensor:
    tensor: torch.Tensor
    version: int | None


def _value(value: Any, depth: int) -> Any:
    """What of a value can be compared later; a kind of object that isn't plain data counts as itself."""
    if isinstance(value, torch.Tensor):
        return _Tensor(value, None if value.is_inference() else value._version)  # noqa: SLF001 - torch's own counter
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if depth and isinstance(value, Mapping):
        return {repr(key): _value(each, depth - 1) for key, each in list(value.items())[:_LONGEST]} | {"": len(value)}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [len(value), *(_value(each, depth - 1) for each in list(value)[:_LONGEST])]
    if depth and hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not callable(value):
        return [id(type(value)), _value(vars(value), depth - 1)]
    return id(value)  # modules that are registered are looked at by themselves


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, _Tensor) and isinstance(after, _Tensor):
        if before.tensor is after.tensor:
            return before.version == after.version
        a, b = before.tensor, after.tensor
        return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and _equal(a, b)
    if type(before) is not type(after):
        return False
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(_same(value, after[key]) for key, value in before.items())
    if isinstance(before, list):
        return len(before) == len(after) and all(map(_same, before, after))
    return bool(before == after) or (before != before and after != after)  # noqa: PLR0124 - NaN


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    with torch.no_grad():
        return bool(torch.equal(a, b)) if a.layout is torch.strided and b.layout is torch.strided else a is b


@contextmanager
def _watched(module: nn.Module, silent: dict[str, bool]) -> Iterator[None]:
    """Note which of the module's hooks give nothing; torch's own, of weight_norm and its like, are known."""
    replaced: list[tuple[dict[int, Any], int, Any]] = []
    for path, part in module.named_modules():
        for attribute, kind in _HOOKS.items():
            hooks = getattr(part, attribute)
            for number, hook in list(hooks.items()):
                if (getattr(hook, "__module__", None) or type(hook).__module__).partition(".")[0] == "torch":
                    continue
                name = getattr(hook, "__qualname__", type(hook).__qualname__)
                hooks[number] = _noting(hook, silent, f"{kind} {name} of {path or 'the module'}")
                replaced.append((hooks, number, hook))
    try:
        yield
    finally:
        for hooks, number, hook in replaced:
            if number in hooks:
                hooks[number] = hook


def _noting(hook: Callable[..., Any], silent: dict[str, bool], name: str) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        given = hook(*args, **kwargs)
        if given is None:
            silent[name] = True
        return given

    return called
