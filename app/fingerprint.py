"""Fingerprint: what a live module computes, as a digest; or why that can't be told without exporting it.

A module that lives in a process has no config to name it by. Its digest is made of all that its classes and instances
hold: the byte code of each method (not its text: what a notebook defines, or a patch puts in a class, is seen as it
is), attributes, the globals and closures that the code names, and every tensor's bytes. Torch's own functions are
told by where they stand (torch_names.py), which a patch changes.

Everything here is a list of what is known: values that can be written down whole, functions that answer the same
arguments alike, attributes whose values are part of the digest or follow from it. Whatever else a module holds, or
its code asks for, makes it uncertain, and an uncertain module is exported: guessing would serve another model's
answers. See docs/adr/0012-live-modules.md.
"""

from __future__ import annotations

import abc
import builtins
import cmath
import collections
import dataclasses
import functools
import hashlib
import itertools
import math
import operator
import struct
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import _tensor_str, nn
from torch.nn.modules import module as module_globals

from . import bytecode
from .torch_names import TENSOR_NAMES, TENSOR_STATE, PatchedError, TorchNames, check_kernels

# Written in C, so that nobody has hung anything on them, and with the same answer to the same arguments.
_PURE = {
    builtins: frozenset((
        "abs", "all", "any", "bool", "bytes", "callable", "complex", "dict", "divmod", "enumerate", "filter", "float",
        "int", "isinstance", "issubclass", "iter", "len", "list", "map", "max", "min", "next", "object", "pow",
        "print", "property", "range", "repr", "reversed", "round", "setattr", "slice", "sorted", "staticmethod",
        "str", "sum", "tuple", "zip",
    )),
    math: frozenset(vars(math)),
    itertools: frozenset(vars(itertools)),
    operator: frozenset(vars(operator)) - {"attrgetter", "methodcaller", "is_", "is_not"},
    functools: frozenset(("partial", "reduce")),
    collections: frozenset(("OrderedDict", "deque", "defaultdict")),
}  # fmt: skip
_CONTAINERS = (str, bytes, int, float, list, tuple, dict, collections.OrderedDict, collections.deque, range)
# Attributes of Python's and torch's own values that follow from the value. `format` takes others' attributes.
_KNOWN_NAMES = {name for kind in _CONTAINERS for name in dir(kind) if not name.startswith("_")} | TENSOR_NAMES | {
    "start", "stop", "step", "type", "index", "eps", "tiny", "bits", "values", "indices", "send", "close",
    "requires_grad", "_modules", "_parameters", "_buffers", "__class__", "__name__", "__qualname__", "__len__",
    "__getitem__", "__setitem__", "__contains__", "__iter__", "__next__", "__call__", "__enter__", "__exit__",
    "__init__", "__setattr__", "__delattr__", "__version__",
}  # fmt: skip
_KNOWN_NAMES -= {"format", "format_map"}
_STATEFUL = (
    type, property, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.CodeType, types.FrameType,
    types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, types.TracebackType, types.ModuleType,
    torch.Generator, torch.UntypedStorage, torch.TypedStorage,
)  # fmt: skip
# What else such values have: a name of the user's own that is one of these may mean either.
_AMBIGUOUS = {name for kind in _STATEFUL for name in dir(kind)} | TENSOR_STATE | {"format", "format_map", "prev"}
_PLAIN = (
    type(None), bool, int, str, bytes, range, type(...), type(NotImplemented), torch.dtype, torch.device, torch.Size,
    torch.memory_format, torch.layout,
)  # fmt: skip
# What is all that these hold; tuples by value: whether two are one object depends on what has run before.
_PARTS: dict[type, Callable[[Any], Sequence[Any]]] = {
    tuple: lambda value: value,
    slice: lambda value: (value.start, value.stop, value.step),
    staticmethod: lambda value: (value.__func__,),
    classmethod: lambda value: (value.__func__,),
    property: lambda value: (value.fget, value.fset, value.fdel),
    types.MethodType: lambda value: (value.__self__, value.__func__),
    functools.partial: lambda value: (value.func, value.args, value.keywords),
    **dict.fromkeys((torch.no_grad, torch.enable_grad, torch.inference_mode), lambda value: (vars(value),)),
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_compiled_call_impl")
# What torch adds to each call: everywhere, and in inference mode.
_DISPATCHED = ("DispatchKeySet(BackendSelect, ADInplaceOrView)", "DispatchKeySet(BackendSelect)")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
# What nn.Module and RNNs keep in every instance, and a call doesn't read.
_BOOKKEEPING = (frozenset(vars(nn.Module())) | {"_flat_weight_refs"}) - {"training", *_HOOKS}
_KEPT = {name: type(value) for name, value in vars(nn.Module()).items()}
_GROUPS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
# Not to be read by any name that is known; the makers are looked at when code may call the class.
_MAKERS = ("__init__", "__new__")
_UNREAD = frozenset((
    *_MAKERS, "__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__firstlineno__",
    "__static_attributes__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__parameters__",
    "__orig_bases__", "__abstractmethods__", "_abc_impl", "__qualname__", "__slotnames__", "__dataclass_fields__",
    "__dataclass_params__", "__match_args__", "__replace__",
))  # fmt: skip
_ROOTS = (object, abc.ABC, typing.Generic)
_MET = "_dynamo_static_input_type"


@dataclasses.dataclass
class _Example:
    """Shows what a dataclass's `__repr__` is wrapped in."""


_REPR = _Example.__repr__


class UncertainError(Exception):
    """The module can't be told by a digest; the message says what in it."""


def fingerprint(module: nn.Module) -> str:
    """The digest, 64 hex digits, of what an eval-mode module computes; equal for equal modules in every process.

    Raises:
        UncertainError: something in the module, or that its code names, has no value that could be written down.
    """
    for name in _GLOBAL_HOOKS:
        if getattr(module_globals, name, None):
            raise UncertainError("hooks on all modules are registered")
    dispatched = torch._C._dispatch_tls_local_include_set()  # noqa: SLF001 - of modes, transforms and tracing
    if torch._C._len_torch_function_stack() or str(dispatched) not in _DISPATCHED:  # noqa: SLF001
        raise UncertainError("a torch function or dispatch mode is active, or a transform")
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise UncertainError("autocast is on")
    try:
        check_kernels()
        walk = _Walk(TorchNames())
        walk.module(module)
        return walk.finished()
    except UncertainError:
        raise
    except PatchedError as error:
        raise UncertainError(str(error)) from error
    except Exception as error:  # the user's objects may do anything while they are looked at
        raise UncertainError(f"it can't be looked at: {type(error).__name__}: {error}"[:200]) from error


class _Walk:
    """One pass over a module and all that it holds, in an order that depends on nothing else."""

    def __init__(self, torch_names: TorchNames) -> None:
        self._torch = torch_names
        self._hash = hashlib.sha256()
        # by id, with the object itself, so that no id is used twice
        self._seen: dict[int, tuple[int, Any]] = {}
        self._storages: dict[int, tuple[int, int]] = {}  # by address: a number, and the end
        self._asked: dict[str, str] = {}  # attributes that code asks for, and where
        self._held = set(torch_names.attributes)  # those that are part of the digest
        self._classes: list[type] = []
        self._made_by = ""  # code that may make instances of them
        self._say(torch_names.digest, torch.get_default_dtype(), _tensor_str.PRINT_OPTS)
        self._say(torch.get_autocast_dtype("cpu"), torch.get_autocast_dtype("cuda"))
        self._say(torch.are_deterministic_algorithms_enabled())
        for home, names in _PURE.items():  # torch's code calls these too
            for name in sorted(name for name in names - {"print"} if not name.startswith("__")):
                value = vars(home)[name]
                if callable(value) and not bytecode.is_c(value):
                    raise UncertainError(f"{home.__name__}.{name} isn't Python's")
                self._say(name, getattr(value, "__name__", value))

    def finished(self) -> str:
        """The digest; raises UncertainError for what only the whole shows."""
        for kind in self._classes:  # grows meanwhile
            if self._made_by and type(kind) is abc.ABCMeta:
                raise UncertainError(f"{self._made_by} may ask what {kind.__qualname__} has registered")
            for name in _MAKERS if self._made_by else ():
                if name in vars(kind):
                    self._say(name)
                    self.value(f"{kind.__qualname__}.{name}", vars(kind)[name])
        for name, where in self._asked.items():
            if name not in _KNOWN_NAMES and (name not in self._held or name in _AMBIGUOUS):
                raise UncertainError(f"{where} uses {name}")
        # overlapping memory: a write to one tensor is one to the other
        spans = sorted((start, end) for start, (_, end) in self._storages.items())
        if any(following < end for (_, end), (following, _) in itertools.pairwise(spans)):
            raise UncertainError("tensors share memory in a way that isn't plain")
        if "requires_grad" in self._asked:
            self._say([value.requires_grad for _, value in self._seen.values() if isinstance(value, torch.Tensor)])
        return self._hash.hexdigest()

    def _say(self, *parts: object) -> None:
        for part in parts:
            text = str(part).encode("utf-8", "surrogatepass")
            self._hash.update(f"{len(text)}:".encode() + text)  # lengths keep neighbours apart

    def _is_new(self, value: object) -> bool:
        """Whether it wasn't met before; says which one it is."""
        is_new = id(value) not in self._seen
        number, _ = self._seen.setdefault(id(value), (len(self._seen), value))
        self._say("new" if is_new else "again", number)
        return is_new

    # What a module is

    def module(self, module: nn.Module) -> None:
        """A module: its class, its own attributes, its tensors, its parts."""
        if not self._is_new(module):
            return
        kind, own = type(module), vars(module)
        if isinstance(module, torch.jit.ScriptModule):
            raise UncertainError(f"{kind.__qualname__} is a script")
        for name in _HOOKS:
            if own.get(name):
                what = "hooks" if name.endswith("hooks") else "a call that torch.compile made"
                raise UncertainError(f"{kind.__qualname__} has {what}")
        for name, expected in _KEPT.items():
            if type(own.get(name)) is not expected or (name not in _GROUPS and own[name]):
                raise UncertainError(f"{kind.__qualname__} has another {name} than modules have")
        self._say("module", module.training)
        self.cls(kind)
        self._say(sorted(own["_non_persistent_buffers_set"]))
        self._attributes(kind.__qualname__, {name: own[name] for name in sorted(own.keys() - _BOOKKEEPING)})
        for group in (own["_parameters"], own["_buffers"], own["_modules"]):  # in their order, which is that of loops
            self._attributes(kind.__qualname__, group)

    def _attributes(self, where: str, held: Mapping[str, Any]) -> None:
        self._say("attributes", len(held))
        self._held.update(held)
        for name, value in held.items():
            self._say(name)
            self.value(f"{where}.{name}", value)

    def cls(self, kind: type) -> None:
        """A class: torch's by its name; any other by everything in it, and which class it is among those seen."""
        if type(kind) not in (type, abc.ABCMeta):
            raise UncertainError(f"{kind.__qualname__} has a metaclass")
        self._say("mro", len(kind.__mro__))
        for base in kind.__mro__:
            if base in _ROOTS and not {name for name in vars(base) if not name.startswith("_")}:
                self._say("root", base.__qualname__)
            elif (name := self._torch.name_of(base)) is not None or (name := _pure_name(base)) is not None:
                self._say("known", name)
            elif self._is_new(base):
                self._classes.append(base)
                self._say("class", base.__qualname__, base.__name__)
                if "__slots__" in vars(base):
                    raise UncertainError(f"{base.__qualname__} has slots")
                held = {name: vars(base)[name] for name in sorted(vars(base).keys() - _UNREAD)}
                self._attributes(base.__qualname__, held)

    # What code names

    def function(self, where: str, function: types.FunctionType) -> None:
        """A function: its byte code, and all that this names."""
        if not self._is_new(function):
            return
        if getattr(function, "__builtins__", None) is not vars(builtins):
            raise UncertainError(f"{where} has builtins of its own")
        cells = [*zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)]
        if function.__code__ is _REPR.__code__ and function.__globals__ is _REPR.__globals__:
            self._say("repr of a dataclass")
            held = {name: cell.cell_contents for name, cell in cells}
            running = held.pop("repr_running")
            if type(running) is set and not running:  # else its code is told below: doubt
                self._attributes(where, held)
                return
        self._say("function", function.__qualname__, function.__name__)
        self.value(f"{where}'s defaults", function.__defaults__)
        self.value(f"{where}'s keyword defaults", function.__kwdefaults__)
        self._attributes(where, vars(function))
        self.code(where, function.__code__, function.__globals__)
        for name, cell in cells:
            self._say("closure", name)
            self._is_new(cell)  # functions that share one see what the others put there
            if name == "__class__":  # what super() needs
                self.cls(cell.cell_contents)
            else:
                self.value(f"{where}'s {name}", cell.cell_contents)

    def code(self, where: str, code: types.CodeType, known: Mapping[str, Any]) -> None:
        """Byte code and constants, and what its names stand for."""
        self._say("code", code.co_code.hex(), code.co_flags, code.co_names, code.co_varnames, code.co_freevars)
        self._say(code.co_cellvars, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        self._say(code.co_exceptiontable.hex(), len(code.co_consts))
        try:
            reading = bytecode.read(code, known)
        except bytecode.OpaqueError as error:
            raise UncertainError(f"{where} {error}") from error
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.code(where, constant, known)
            elif type(constant) is frozenset:  # only asked whether it holds something
                self._say("held", sorted(map(repr, constant)))
            else:
                self.value(f"a constant of {where}", constant)
        for name, value in reading.values:
            self._say("named", name)
            self.value(f"{where}'s {name}", value)
        for name, value in reading.compared:
            self._say("compared", name)
            is_users = type(value) is type and self._torch.name_of(value) is None
            (self.cls(value) if is_users else self.value(f"{where}'s {name}", value))
        self._made_by = self._made_by or (where if reading.takes_class else "")
        self._held.update(reading.stored)  # what they are later follows from this code
        found = [name for name in reading.looked_up if name in _KNOWN_NAMES]
        self._asked.update({name: where for name in (*reading.attributes, *found) if name not in self._asked})
        for name in set(reading.looked_up).difference(found):  # one that nothing has is the default
            if name.startswith("__") or any(_is_meant(name, state) for state in {"requires_grad", *_AMBIGUOUS}):
                raise UncertainError(f"{where} uses {name}")

    # Values

    def value(self, where: str, value: Any) -> None:
        """Any value, by what it is; raises UncertainError for what can't be written down."""
        kind = type(value)
        if kind in _PLAIN:
            self._say(kind.__name__, repr(value))
        elif kind in (float, complex) and not cmath.isnan(value):  # a nan is itself and no other
            number = complex(value)
            self._say(kind.__name__, struct.pack("<dd", number.real, number.imag).hex())
        elif isinstance(value, torch.Tensor):
            self.tensor(where, value)
        elif isinstance(value, nn.Module):
            self.module(value)
        elif (name := self._torch.name_of(value) or _pure_name(value)) is not None:
            self._say("known", name)
        elif isinstance(value, type):
            self._made_by = self._made_by or where
            self.cls(value)
        elif kind in (list, dict, collections.OrderedDict) and not getattr(value, "__dict__", None):
            if self._is_new(value):
                self._items(where, value, value if kind is list else [*itertools.chain(*value.items())])
        else:
            self._held_by(where, value)

    def _items(self, where: str, value: Any, items: Sequence[Any]) -> None:
        self._say(type(value).__name__, len(items))
        for item in items:
            self.value(where, item)

    def _held_by(self, where: str, value: Any) -> None:
        """What holds other values, or code."""
        kind = type(value)
        if kind is types.FunctionType:
            self.function(where, value)
        elif kind in _PARTS and not (kind is functools.partial and vars(value)):
            self._made_by = self._made_by or (where if kind is classmethod else "")
            self._items(where, value, _PARTS[kind](value))
        elif hasattr(value, "__dict__") and not any(map(self._holds_more, kind.__mro__)):
            if self._is_new(value):
                self.cls(kind)
                self._attributes(where, {name: vars(value)[name] for name in sorted(vars(value))})
        else:
            raise UncertainError(f"{where} is a live {kind.__qualname__}")

    def _holds_more(self, kind: type) -> bool:
        """Whether its instances may hold more than their `__dict__`."""
        return kind is not object and (bytecode.is_c(kind) or self._torch.name_of(kind) is not None)

    def tensor(self, where: str, tensor: torch.Tensor) -> None:
        """Metadata, storage (which tensors share), and every byte."""
        if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_meta:
            raise UncertainError(f"{where} is a {type(tensor).__name__} that isn't plain")
        # torch.compile leaves a mark on tensors that it has met
        if tensor.is_conj() or tensor.is_neg() or tensor.is_quantized or vars(tensor).keys() - {_MET}:
            raise UncertainError(f"{where} isn't a plain tensor")
        if not self._is_new(tensor):
            return
        self._say("tensor", type(tensor).__name__, tensor.dtype, tuple(tensor.shape), tensor.stride())
        self._say(tensor.device.type, tensor.storage_offset())
        if not tensor.numel():
            return
        storage = tensor.untyped_storage()
        start = storage.data_ptr()
        is_new = start not in self._storages
        number, _ = self._storages.setdefault(start, (len(self._storages), start + storage.nbytes()))
        self._say("storage", number)
        if is_new:  # all of it: code may look beyond a view
            plain = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage).cpu()
            self._hash.update(hashlib.sha256(plain.numpy().data).digest())


def _is_meant(name: str, state: str) -> bool:
    return state.startswith(name[:-1]) if name.endswith("*") else state == name


def _pure_name(value: Any) -> str | None:
    """What one of Python's own functions or classes is called, if it always answers alike."""
    if not bytecode.is_c(value):
        return None
    name = str(value.__name__)
    if isinstance(value, type) and issubclass(value, BaseException):
        return f"{value.__module__}.{name}"
    homes = [home for home, names in _PURE.items() if name in names and vars(home).get(name) is value]
    return f"{homes[0].__name__}.{name}" if homes else None
