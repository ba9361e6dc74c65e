"""Torch's names: which object stands where in torch, so that a function is told by its place, and a patch is seen.

The version of torch is part of every key and stands for the code of what is torch's own; this sees that what stands
in its places is.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

_FOLDER = str(Path(torch.__file__).parent) + "/"
# What a model's code calls, and what that calls; a module of torch that isn't here is no known one.
_MODULES = (
    "torch", "torch.functional", "torch._VF", "torch._tensor", "torch.nn", "torch.nn.functional",
    "torch.nn.parameter", "torch._C._nn", "torch.fft", "torch.linalg", "torch.special",
)  # fmt: skip
_PREFIX = "torch.nn.modules."
# What well-known packages, and copying, add to classes; torch itself never calls it.
_ADDED = frozenset(("smart_apply", "__slotnames__"))
_OWNERS = frozenset(
    (
        "torch",
        "builtins",
        "typing",
        "functools",
        "collections",
        "enum",
        "abc",
        "types",
        "_thread",
        "typing_extensions",
    )
)


class PatchedError(Exception):
    """Something in torch isn't torch's; the message says what."""


class TorchNames:
    """Every function and class in the places that models reach.

    Attributes:
        digest: Of which stands where.

    Raises:
        PatchedError: a place holds what isn't torch's.
    """

    def __init__(self) -> None:
        hashed = hashlib.sha256()
        self._names: dict[int, str] = {}
        self._modules: set[int] = set()
        names = [*_MODULES, *sorted(name for name in sys.modules if name.startswith(_PREFIX))]
        for name in names:
            module = sys.modules.get(name)
            if isinstance(module, types.ModuleType):
                self._modules.add(id(module))
            for text in self._described(name, vars(module) if module is not None else {}):
                hashed.update(text.encode())
        for kind in (torch._C.TensorBase, torch.Tensor, nn.Parameter):  # noqa: SLF001 - where the methods are
            for text in self._class(kind):
                hashed.update(text.encode())
        self.digest = hashed.hexdigest()

    def name_of(self, value: Any) -> str | None:
        """Where an object of torch's stands; None for any other."""
        try:
            return self._names.get(id(value))
        except TypeError:
            return None

    def holds(self, module: types.ModuleType) -> bool:
        """Whether it is one of the Python modules that were looked at."""
        return id(module) in self._modules

    def _described(self, where: str, held: Mapping[str, Any]) -> Iterator[str]:
        for name, value in sorted(held.items()):
            if name.startswith("__") or isinstance(value, types.ModuleType):
                continue
            place = f"{where}.{name}"
            if isinstance(value, type):
                if value.__module__.startswith("torch") and id(value) not in self._names:
                    yield from self._class(value)
                yield f"{place}={value.__module__}.{value.__qualname__};"
            else:
                yield f"{place}={self._word(place, value)};"

    def _class(self, kind: type) -> Iterator[str]:
        where = f"{kind.__module__}.{kind.__qualname__}"
        if id(kind) in self._names:
            return
        found: Any = sys.modules.get(kind.__module__)
        for part in kind.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not kind and kind is not torch._C.TensorBase:  # noqa: SLF001 - known by another name
            return  # made while torch was imported: no known one
        self._names[id(kind)] = where
        if not issubclass(kind, nn.Module | torch._C.TensorBase):  # noqa: SLF001 - as above
            return
        for name, value in sorted(vars(kind).items()):
            if name not in _ADDED:
                yield f"{where}.{name}={self._word(f'{where}.{name}', value)};"

    def _word(self, place: str, value: Any) -> str:
        """What stands in a place, as a word; remembers what may be told by it."""
        kind = type(value)
        if kind in (staticmethod, classmethod):
            return f"{kind.__name__} {self._word(place, value.__func__)}"
        if kind is property:
            return " ".join(self._word(place, part) for part in (value.fget, value.fset, value.fdel))
        if kind is types.FunctionType or isinstance(value, type):
            if kind is types.FunctionType:
                self._check(place, value)
                self._names.setdefault(id(value), place)
            return f"{value.__module__}.{value.__qualname__}"
        if callable(value):
            return self._callable(place, value)
        plain = value is None or kind in (bool, int, float, str, torch.dtype)
        return repr(value) if plain else f"{kind.__module__}.{kind.__qualname__} {getattr(value, '__name__', '')}"

    def _callable(self, place: str, value: Any) -> str:
        """Something else that can be called: a builtin, mostly."""
        kind = type(value)
        if (kind.__module__ or "").partition(".")[0] not in _OWNERS or kind.__name__ == "partial":
            raise PatchedError(f"{place} is a {kind.__qualname__}, which isn't torch's")
        if isinstance(wrapped := getattr(value, "__wrapped__", None), types.FunctionType):
            self._check(place, wrapped)
        if kind in (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType):
            self._names.setdefault(id(value), place)
        holder = getattr(getattr(value, "__self__", None), "__name__", "")
        return f"{kind.__name__} {holder} {getattr(value, '__qualname__', '')}"

    def _check(self, place: str, function: types.FunctionType) -> None:
        """A function's own code, and that of functions it wraps, must be in torch's folder, or Python's own."""
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_full(cell)]
        for part in (function, *cells):
            if isinstance(part, types.FunctionType) and not _is_theirs(part):
                raise PatchedError(f"{place} is patched")


def _is_theirs(function: types.FunctionType) -> bool:
    file = function.__code__.co_filename
    return file.startswith(_FOLDER) or file in _PYTHONS or (file == "<string>" and not function.__closure__)


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


# Python's own files that torch's namespaces hold functions of.
_SOURCES = (
    "typing", "functools", "contextlib", "dataclasses", "importlib", "warnings", "collections", "abc", "enum", "copy",
    "operator", "platform", "ctypes", "inspect", "textwrap", "threading", "glob", "typing_extensions",
)  # fmt: skip
_PYTHONS = frozenset(getattr(sys.modules.get(name), "__file__", None) for name in _SOURCES) - {None}
