"""Identity: what a live module is, as a digest of what can be read off it plainly; or why that can't be done.

A module that lives in a process has no config to name it by. Its digest is made of the sources of its classes, its
attributes as far as they are plain data, and its weights. Installed packages count by name and version, torch by the
toolchain's own factors. What the digest overlooks (a global that code computes, a function replaced inside a package)
is served only if it also leaves the answer to the example inputs as it was: these are tried before a hit serves.
See docs/adr/0012-live-modules.md.
"""

from __future__ import annotations

import collections
import enum
import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as module_globals
from torch.overrides import _get_current_function_mode_stack as _function_modes
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as _dispatch_modes

from .environment import installed, python_version

_SCHEMA = "live-2"
_KEPT_BY_TORCH = frozenset(vars(nn.Module())) | {"_flat_weight_refs"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# transformers keeps the hash of an object there, which is another in each process.
_PER_PROCESS = frozenset(("_original_object_hash",))
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type(...), torch.dtype, torch.device, torch.Size,
    torch.memory_format, torch.layout, np.dtype, np.generic,
)  # fmt: skip
# How each kind of value is read: the first that fits.
_READERS: tuple[tuple[Any, str], ...] = (
    (torch.Tensor, "tensor"),
    (np.ndarray, "array"),
    (nn.Module, "module"),
    (type, "class"),
    (enum.Enum, "member"),
    (types.FunctionType, "function"),
    ((types.BuiltinFunctionType, types.ModuleType), "name"),
    (types.MethodType, "method"),
    (functools.partial, "partial"),
    (object, "object"),
)
# What the request's other factors stand for; this program is as it was, whatever of it is imported by now.
_OF_THE_TOOLCHAIN = frozenset(("torch", "builtins", __name__.partition(".")[0]))
_PACKAGES = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]
_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()


class UncertainError(Exception):
    """The module can't be told by a digest; the message says what in it."""


def digest_of(module: nn.Module) -> str:
    """Return the digest, 64 hex digits, of a module in eval mode; equal for equal modules in every process.

    Raises:
        UncertainError: something in it is no plain data, a hook or a mode may change what it computes, or its code
            is data itself.
    """
    for name in _GLOBAL_HOOKS:
        if getattr(module_globals, name):
            raise UncertainError("there are hooks on all modules")
    if _function_modes() or _dispatch_modes():  # type: ignore[no-untyped-call]
        raise UncertainError("a torch function or dispatch mode is active")
    if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
        raise UncertainError("autocast is active")
    reader = _Reader()
    try:
        reader.add(_SCHEMA, python_version(), torch.get_default_dtype())
        reader.read(module, type(module).__name__)
        reader.read_sources()
    except RecursionError as error:
        raise UncertainError(f"{type(module).__name__} is nested too deeply") from error
    return reader.total.hexdigest()


class _Reader:
    """One reading of a module: each object once, every value behind a mark of its kind."""

    def __init__(self) -> None:
        self.total = hashlib.sha256()
        self._known: dict[int, int] = {}
        self._kept: list[Any] = []  # an id is an object's own as long as it lives
        self._modules: dict[str, None] = {}  # of Python, whose sources count

    def add(self, *values: Any) -> None:
        """Add plain values."""
        for value in values:
            self.total.update(f"{type(value).__name__} {value!r}\0".encode())

    def read(self, value: Any, where: str) -> None:
        """Add a value and all that it holds."""
        if isinstance(value, _PLAIN):
            self.add(value)
        elif (number := self._known.setdefault(id(value), len(self._known))) != len(self._known) - 1:
            self.add("again", number)
        else:
            self._kept.append(value)
            reader = next(name for kinds, name in _READERS if isinstance(value, kinds))
            getattr(self, f"_read_{reader}")(value, where)

    def _read_array(self, value: Any, where: str) -> None:
        if value.dtype.hasobject:
            raise UncertainError(f"{where} is an array of objects")
        self.add("array", value.dtype, value.shape, hashlib.sha256(value.tobytes()).hexdigest())

    def _read_member(self, value: enum.Enum, where: str) -> None:
        self._read_parts("enum", [type(value), value.name], where)

    def _read_name(self, value: Any, where: str) -> None:  # noqa: ARG002 - alike for all kinds
        self.add("name", getattr(value, "__module__", None), value.__name__)

    def _read_method(self, value: types.MethodType, where: str) -> None:
        self._read_parts("method", [value.__self__, value.__func__], where)

    def _read_partial(self, value: Any, where: str) -> None:
        self._read_parts("partial", [value.func, value.args, value.keywords], where)

    def _read_parts(self, kind: str, parts: Any, where: str) -> None:
        self.add(kind)
        for part in parts:
            self.read(part, where)

    def _read_object(self, value: Any, where: str) -> None:
        """Containers, and instances of classes that are written in Python."""
        self._read_class(type(value), where)
        slots = [name for cls in type(value).__mro__ for name in _slots(cls) if hasattr(value, name)]
        if isinstance(value, dict):
            self._read_parts("dict", [part for item in value.items() for part in item], where)
        elif isinstance(value, list | tuple | collections.deque):
            self._read_parts("list", value, where)
        elif isinstance(value, set | frozenset):
            self._read_parts("set", sorted(value, key=repr), where)
        elif not (hasattr(value, "__dict__") or slots) or not _is_python(type(value)):
            raise UncertainError(f"{where} is a {type(value).__qualname__}, which is no plain data")
        for name, part in sorted(getattr(value, "__dict__", {}).items()):
            if name not in _PER_PROCESS:
                self.add(name)
                self.read(part, f"{where}.{name}")
        for name in slots:
            self.add(name)
            self.read(getattr(value, name), f"{where}.{name}")

    def _read_module(self, module: nn.Module, where: str) -> None:
        if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
            raise UncertainError(f"{where} is a {type(module).__name__}, whose code is data")
        if any(getattr(module, name) for name in _HOOKS) or module._compiled_call_impl is not None:  # noqa: SLF001
            raise UncertainError(f"{where} has hooks")
        self._read_class(type(module), where)
        state: list[tuple[str, Any]] = [*module._parameters.items(), *module._buffers.items()]  # noqa: SLF001 - tied ones too
        plain = [(name, value) for name, value in vars(module).items() if name not in _KEPT_BY_TORCH]
        parts: list[tuple[str, Any]] = list(module._modules.items())  # noqa: SLF001 - those that are None too
        self.add(module.training, sorted(module._non_persistent_buffers_set))  # noqa: SLF001
        for kind, items in (("state", state), ("attributes", sorted(plain)), ("modules", parts)):
            self.add(kind, len(items))
            for name, value in items:
                self.add(name)
                self.read(value, f"{where}.{name}")

    def _read_tensor(self, value: torch.Tensor, where: str) -> None:
        if type(value) not in {torch.Tensor, nn.Parameter, nn.Buffer} or value.layout is not torch.strided:
            raise UncertainError(f"{where} is a {type(value).__name__} of layout {value.layout}")
        if value.is_meta:
            raise UncertainError(f"{where} has no values: it is on the meta device")
        flat = value.detach().resolve_conj().resolve_neg().cpu()
        place = (value.untyped_storage().data_ptr(), value.storage_offset())
        shared = self._known.setdefault(hash(("storage", *place)), len(self._known)) if value.numel() else -1
        self.add(
            type(value), value.dtype, value.shape, value.stride(), value.device.type, value.requires_grad, shared
        )
        self.total.update(flat.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def _read_class(self, cls: type, where: str) -> None:
        """Its name and its sources; the code itself of what isn't in them."""
        self.add("class", cls.__module__, cls.__qualname__)
        for each in cls.__mro__:
            if self._known.setdefault(id(each), len(self._known)) != len(self._known) - 1:
                continue
            self._kept.append(each)
            self._modules[each.__module__] = None
            file = getattr(sys.modules.get(each.__module__), "__file__", None)
            for name, value in list(vars(each).items()):
                function = _unwrapped(value)
                if isinstance(function, types.FunctionType) and not _is_of(
                    function, file
                ):  # a notebook's, or a patch
                    self._read_function(function, f"{where}: {each.__qualname__}.{name}")

    def _read_function(self, function: Any, where: str) -> None:
        self.add("function", function.__module__, function.__qualname__)
        self._modules[function.__module__] = None
        self._read_code(function.__code__)
        self._read_parts("defaults", [function.__defaults__, function.__kwdefaults__], where)
        for cell in function.__closure__ or ():
            with_value = _cell(cell)
            if with_value:
                self.read(with_value[0], f"{where}'s closure")
        if _file_of(function.__module__) is None:  # a notebook's: what it names stands in no file
            for name in _names(function.__code__):
                if name in function.__globals__:
                    self.add(name)
                    self.read(function.__globals__[name], f"{where}: {name}")

    def _read_code(self, code: types.CodeType) -> None:
        self.add(code.co_code, code.co_names, code.co_varnames, code.co_freevars)
        for value in code.co_consts:
            if isinstance(value, types.CodeType):
                self._read_code(value)
            else:
                self.add(sorted(value, key=repr) if isinstance(value, frozenset) else value)

    def read_sources(self) -> None:
        """Add the sources of every Python module met, and of those that they import."""
        found: dict[str, str | None] = {}
        waiting = list(self._modules)
        while waiting:
            name = waiting.pop()
            if name in found or name.partition(".")[0] in _OF_THE_TOOLCHAIN:
                continue
            file = _file_of(name)
            if file is None:
                found[name] = "no file"
            elif package := _package_of(file):
                found[name] = package
            else:
                found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
                waiting += _imported(sys.modules[name])
        self.add(sorted(set(found.items())))


def _unwrapped(value: Any) -> Any:
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    return value.fget if isinstance(value, property) else value


def _is_of(function: types.FunctionType, file: str | None) -> bool:
    """Whether a function is in the file of its class, or of a package: decorators wrap theirs around it."""
    place = function.__code__.co_filename
    return place == file or (not place.startswith("<") and _package_of(Path(place)) is not None)


def _cell(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not assigned yet
        return ()


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from _names(value)


def _slots(cls: type) -> list[str]:
    given = vars(cls).get("__slots__", ())
    names = [given] if isinstance(given, str) else list(given)
    return [name for name in names if name not in {"__dict__", "__weakref__"}]


def _is_python(cls: type) -> bool:
    """Whether Python code made the class, and all that its instances are is in their attributes."""
    heap_type = 1 << 9  # Py_TPFLAGS_HEAPTYPE
    return all(each is object or (each.__flags__ & heap_type and _file_of(each.__module__)) for each in cls.__mro__)


def _file_of(name: str) -> Path | None:
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file).resolve() if isinstance(file, str) and file.endswith(".py") and Path(file).is_file() else None


@functools.cache
def _package_of(file: Path) -> str | None:
    """An installed package with its version, or Python's own library; None for a file that may change any time."""
    for place in _PACKAGES:
        if file.is_relative_to(place):
            top = file.relative_to(place).parts[0].removesuffix(".py")
            version = installed(top) or getattr(sys.modules.get(top), "__version__", None)
            return f"{top} {version}" if version else None
    return "Python" if file.is_relative_to(_STANDARD) else None


def _imported(module: types.ModuleType) -> Iterator[str]:
    """The modules that a module's globals come from."""
    for value in list(vars(module).values()):
        name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str) and name in sys.modules:
            yield name
