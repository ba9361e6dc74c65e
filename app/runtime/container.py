"""A compiled library over its own C interface, by ctypes, which lets go of the GIL while a function runs.

The interface is torch's torch/csrc/inductor/aoti_runtime/interface.h; what it passes are handles of tensors.
Imports no torch: handles are made by tensors.py of torch's tensors, and by arrays.py of numpy's arrays.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from . import tiles

Address = int | None

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t
# Every function of the interface that is called here, and what it takes; torch 2.11 to 2.13 have them all.
_FUNCTIONS: Mapping[str, Sequence[Any] | None] = {
    "CreateWithDevice": (_POINTER, _SIZE, ctypes.c_char_p, ctypes.c_char_p),
    "Delete": (_POINTER,),
    "GetNumInputs": (_POINTER, _POINTER),
    "GetNumOutputs": (_POINTER, _POINTER),
    # given what is of these types already, which takes half as long as having ctypes convert it
    "Run": None,  # (_POINTER, _POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _POINTER)
    "RunSingleThreaded": None,  # the same
    "UpdateUserManagedConstantBufferPairs": (_POINTER, _POINTER, _SIZE, ctypes.c_bool, ctypes.c_bool),
}
_PREFIX = "AOTInductorModelContainer"


class Handles(Protocol):
    """How values become handles of the interface, and the other way round."""

    def lend(self, values: Sequence[Any]) -> list[Address]:
        """A new handle of each value, which the values must outlive."""
        ...

    def take(self, handles: list[Address]) -> list[Any]:
        """The values, which own their handles from now on; None for a null."""
        ...

    def stream(self) -> Address:
        """Where a GPU's work is queued; None on the CPU."""
        ...


def functions_of(library: Path) -> ctypes.CDLL | None:
    """The library, never closed, with its functions declared; None where it lacks one.

    Raises:
        OSError: it can't be loaded.
    """
    tiles.permit(library)
    loaded = ctypes.CDLL(str(library))
    names = [_PREFIX + name for name in _FUNCTIONS]
    if not all(hasattr(loaded, name) for name in names):
        return None
    for name, types in zip(names, _FUNCTIONS.values(), strict=True):
        getattr(loaded, name).argtypes = types
    return loaded


class _Entry(ctypes.Structure):
    """AOTInductorConstantMapEntry."""

    _fields_ = (("name", ctypes.c_char_p), ("handle", _POINTER))


class Container:
    """A library's pool of runners, over its C interface.

    Raises:
        RuntimeError: the library can't make its runners.
    """

    def __init__(
        self,
        functions: ctypes.CDLL,
        library: Path,
        device: str,
        handles: Handles,
        *,
        num_runners: int,
        single_threaded: bool = False,
    ) -> None:
        self._functions, self._handles = functions, handles
        self._handle = _POINTER()
        folder = os.fsencode(library.parent)
        self._do("CreateWithDevice", ctypes.byref(self._handle), num_runners, device.encode(), folder)
        # Not while a call runs: that has a reference to this. Not at exit: a daemon thread may still be calling.
        weakref.finalize(self, functions.AOTInductorModelContainerDelete, self._handle).atexit = False
        self._num_inputs, self._num_outputs = (self._count(name) for name in ("GetNumInputs", "GetNumOutputs"))
        self._call = getattr(functions, f"{_PREFIX}{'RunSingleThreaded' if single_threaded else 'Run'}")
        # Calls wait here and never inside of the library: an error there wakes nobody who waits, in 2.11 to 2.13.
        self._free: SimpleQueue[tuple[Any, Any, tuple[Any, ...]]] = SimpleQueue()
        for _ in range(1 if single_threaded else num_runners):
            inputs, outputs = (_POINTER * self._num_inputs)(), (_POINTER * self._num_outputs)()
            arguments = (self._handle, inputs, _SIZE(self._num_inputs), outputs, _SIZE(self._num_outputs))
            self._free.put((inputs, outputs, arguments))

    def run(self, values: list[Any]) -> list[Any]:
        """Run the program; the GIL is free meanwhile."""
        if len(values) != self._num_inputs:  # the library's own check of this ends the process
            raise ValueError(f"{len(values)} tensors, expected {self._num_inputs}")
        stream = self._handles.stream()
        inputs, outputs, arguments = runner = self._free.get()
        try:
            inputs[:] = self._handles.lend(values)  # the library frees these handles, after an error too
            if self._call(*arguments, stream and _POINTER(stream), None):
                raise RuntimeError(_why(self._functions))
            given = outputs[:]
        finally:
            self._free.put(runner)
        return self._handles.take(given)

    def borrow(self, constants: Mapping[str, Any]) -> None:
        """Have the library use these values, not copies of them."""
        handles = self._handles.lend(list(constants.values()))
        entries = (_Entry * len(handles))(
            *[_Entry(name.encode(), handle) for name, handle in zip(constants, handles, strict=True)]
        )
        try:
            inactive, complete = False, True  # take effect at once; a constant that lacks is an error
            self._do("UpdateUserManagedConstantBufferPairs", self._handle, entries, len(entries), inactive, complete)
        finally:
            self._handles.take(handles)  # the library has made its own

    def _count(self, name: str) -> int:
        number = _SIZE()
        self._do(name, self._handle, ctypes.byref(number))
        return number.value

    def _do(self, name: str, *arguments: Any) -> None:
        if getattr(self._functions, _PREFIX + name)(*arguments):
            raise RuntimeError(_why(self._functions))


def _why(functions: ctypes.CDLL) -> str:
    """What the last call of this thread failed of."""
    last = getattr(functions, "AOTInductorGetLastError", None)
    if last is None:
        return "the compiled library failed; what of stands on standard error"  # torch 2.11 and 2.12 keep no text
    text = ctypes.c_char_p()
    last(ctypes.byref(text))
    why = (text.value or b"the compiled library failed").decode(errors="replace")
    cause = getattr(functions, "torch_exception_get_what_without_backtrace", None)
    if cause is None or "API call failed" not in why:
        return why
    cause.restype = ctypes.c_char_p  # torch's own function: the library only knows which of its calls failed
    return f"{(cause() or b'').decode(errors='replace')}\n{why}"
