"""A call's numpy arrays: what tensors.py is for torch's tensors, over libtorch's C interface. Imports no torch.

The interface is torch's torch/csrc/inductor/aoti_torch/c/shim.h, which torch keeps stable for compiled libraries; so
those of Python's modules that `import torch` takes a second for are not needed to run one.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, LoadError
from ..verdict import Extent
from .batches import Arrays
from .container import Address, Container, functions_of
from .model import LIBRARY, WEIGHTS, CompiledModel
from .runner import Runner
from .spec import Boundary, CallSpec

_POINTER, _INT64, _INT32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
_FUNCTIONS: Mapping[str, Sequence[Any]] = {
    "create_tensor_from_blob": (
        _POINTER, _INT64, _POINTER, _POINTER, _INT64, _INT32, _INT32, _INT32, _POINTER,
    ),
    "delete_tensor_object": (_POINTER,),
    "get_data_ptr": (_POINTER, _POINTER),
    "get_dim": (_POINTER, _POINTER),
    "get_sizes": (_POINTER, _POINTER),
    "get_strides": (_POINTER, _POINTER),
    "get_dtype": (_POINTER, _POINTER),
}  # fmt: skip
_CPU = 0  # aoti_torch_device_type_cpu

# What numpy hasn't is passed as its bits.
VIEWS = {
    "bfloat16": "uint16",
    "float8_e4m3fn": "uint8",
    "float8_e4m3fnuz": "uint8",
    "float8_e5m2": "uint8",
    "float8_e5m2fnuz": "uint8",
}
_SAME = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
    "complex64", "complex128",
)  # fmt: skip
# safetensors' words for the dtypes that a weight may have
_SAFETENSORS = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip

ARRAYS = Arrays(np.concatenate, np.broadcast_to, np.ascontiguousarray)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype that holds a torch dtype's values, or its bits.

    Raises:
        LoadError: there is none.
    """
    if name not in VIEWS and name not in _SAME:
        raise LoadError(f"numpy has nothing to hold {name}: load the model with app.load")
    return np.dtype(VIEWS.get(name, name))


@functools.cache
def libtorch() -> ctypes.CDLL:
    """Torch's library without its Python modules; the same one where these are imported too.

    Raises:
        LoadError: torch isn't installed, or its library lacks a function.
    """
    spec = importlib.machinery.PathFinder.find_spec("torch")
    if spec is None or spec.origin is None:
        raise LoadError("torch is not installed: pip install 'torch>=2.11,<2.14'")
    folder = Path(spec.origin).parent / "lib"
    try:
        # global: compiled libraries look its functions up by name
        ctypes.CDLL(str(folder / "libc10.so"), mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(folder / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
        for name, types in _FUNCTIONS.items():
            getattr(library, f"aoti_torch_{name}").argtypes = types
    except (OSError, AttributeError) as error:
        raise LoadError(f"torch's library in {folder} can't be used: {error}") from error
    return library


def num_threads() -> int:
    """What `torch.get_num_threads()` says."""
    found: int = libtorch()._ZN2at15get_num_threadsEv()  # noqa: SLF001 - at::get_num_threads, which has no C name before 2.13
    return found


def set_num_threads(number: int) -> None:
    """What `torch.set_num_threads` does."""
    libtorch()._ZN2at15set_num_threadsEi(number)  # noqa: SLF001 - at::set_num_threads


class ArrayBoundary(Boundary):
    """A CallSpec made ready for calls with numpy arrays."""

    def __init__(self, spec: CallSpec, extent: Extent | None = None) -> None:
        super().__init__(spec, "cpu", ARRAYS, extent)
        self._dtypes = [numpy_dtype(item.dtype) for item in spec.inputs]
        _, schema = json.loads(spec.out_spec)
        self._build = _builder(schema)

    def check(self, values: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
        """The inputs as the program was compiled for; strides are copied, anything else that differs is refused.

        Raises:
            InputError: an input is no plain array, or has another dtype, rank or size; it names the input.
        """
        checked = []
        for value, spec, dtype in zip(values, self.spec.inputs, self._dtypes, strict=True):
            if type(value) is not np.ndarray and type(value) is not np.memmap:  # a masked array's mask would be lost
                raise InputError(f"input {spec.name!r} is a {type(value).__name__}, expected a numpy array {spec}")
            if value.dtype != dtype:
                if value.dtype.name != spec.dtype or not value.dtype.isnative:  # ml_dtypes' bfloat16, say
                    bits = f", passed as {dtype}" if dtype.name != spec.dtype else ""
                    raise InputError(f"input {spec.name!r} is {value.dtype}, expected {spec}{bits}")
                value = value.view(dtype)  # noqa: PLW2901
            is_plain = value.flags.c_contiguous and value.flags.aligned
            checked.append(value if is_plain else np.array(value, order="C"))
        self._check_sizes(tuple(value.shape for value in checked))
        for value, spec in zip(checked, self.spec.inputs, strict=True):
            if spec.low is not None and value.size:
                spec.check_range(int(value.min()), int(value.max()))
        return checked

    def restore(self, outputs: Sequence[Any]) -> Any:
        """The output in the structure that the module itself gives.

        What needs torch to be made (a named tuple, a Hugging Face output) is a tuple, or a dict where it has names.
        """
        return self._build(iter(self._leaves(outputs)))


def _builder(schema: Mapping[str, Any]) -> Callable[[Any], Any]:
    """What makes a structure of its leaves; a schema is as `torch.utils._pytree.treespec_dumps` writes it."""
    kind, children = schema["type"], [_builder(child) for child in schema["children_spec"]]
    if kind is None:
        return next
    try:
        names = json.loads(schema["context"])
    except (TypeError, ValueError):
        names = None
    if isinstance(names, list) and len(names) == len(children) and kind != "builtins.list":
        return lambda leaves: {name: child(leaves) for name, child in zip(names, children, strict=True)}
    of = list if kind == "builtins.list" else tuple
    return lambda leaves: of(child(leaves) for child in children)


class _Owner:
    """An output's memory, as numpy's array interface has it: the array that is made of it keeps it."""

    def __init__(self, handle: Address, interface: dict[str, Any]) -> None:
        self._handle, self.__array_interface__ = handle, interface
        self._delete = libtorch().aoti_torch_delete_tensor_object

    def __del__(self) -> None:
        self._delete(self._handle)


class ArrayHandles:
    """Handles of numpy arrays, each with its torch dtype's name, and arrays of handles."""

    def __init__(self) -> None:
        torch = libtorch()
        self._create, self._delete = torch.aoti_torch_create_tensor_from_blob, torch.aoti_torch_delete_tensor_object
        self._get = {name: getattr(torch, f"aoti_torch_get_{name}") for name in ("dim", "dtype", "data_ptr")}
        self._get_lengths = torch.aoti_torch_get_sizes, torch.aoti_torch_get_strides
        codes = {name: getattr(torch, f"aoti_torch_dtype_{name}", None) for name in (*_SAME, *VIEWS)}
        self._codes = {name: code() for name, code in codes.items() if code is not None}
        self._dtypes = {code: numpy_dtype(name) for name, code in self._codes.items()}

    def lend(self, values: Sequence[tuple[np.ndarray[Any, Any], str]]) -> list[Address]:
        """A new handle of each array, which must outlive it."""
        handles: list[Address] = []
        for value, dtype in values:
            handle = _POINTER()
            sizes, strides = _lengths(value.shape), _lengths(tuple(step // value.itemsize for step in value.strides))
            code, place = self._codes[dtype], (_CPU, 0)
            if self._create(value.ctypes.data, value.ndim, sizes, strides, 0, code, *place, ctypes.byref(handle)):
                raise RuntimeError(f"torch makes no tensor of {dtype} {list(value.shape)}")
            handles.append(handle.value)
        return handles

    def take(self, handles: list[Address]) -> list[np.ndarray[Any, Any] | None]:
        """The arrays, which own their handles from now on; None for a null."""
        return [self._array(handle) if handle else None for handle in handles]

    def stream(self) -> None:
        """None: numpy's arrays are on the CPU."""

    def _array(self, handle: Address) -> np.ndarray[Any, Any]:
        dim, code, address = _INT64(), _INT32(), _POINTER()
        for name, found in (("dim", dim), ("dtype", code), ("data_ptr", address)):
            self._get[name](handle, ctypes.byref(found))
        shape, strides = (self._read(get, handle, dim.value) for get in self._get_lengths)
        dtype = self._dtypes.get(code.value)
        interface = {
            "version": 3,
            "shape": shape,
            "typestr": (dtype or np.dtype("uint8")).str,
            "strides": tuple(step * dtype.itemsize for step in strides) if dtype else None,
            "data": (address.value or 0, False),
        }
        owner = _Owner(handle, interface)
        if dtype is None:
            raise LoadError(f"numpy has nothing to hold an output's dtype (torch's number {code.value})")
        return np.asarray(owner) if 0 not in shape else np.empty(shape, dtype)

    @staticmethod
    def _read(get: Any, handle: Address, dim: int) -> tuple[int, ...]:
        found = ctypes.POINTER(_INT64)()
        get(handle, ctypes.byref(found))
        return tuple(found[:dim])


@functools.lru_cache(maxsize=1024)
def _lengths(numbers: tuple[int, ...]) -> Any:
    return (_INT64 * len(numbers))(*numbers)


class ArrayRunner(Runner):
    """A loaded library: arrays in, arrays out, nothing of them checked. Any number of threads may call it.

    Args:
        library: The compiled shared library.
        dtypes: The torch dtype of each input.
        num_runners: How many calls may run at the same time; more wait.
        constants: External weights by the library's own names, each with its torch dtype.

    Raises:
        LoadError: the library can't be loaded, or asks for more than the C interface has.
    """

    uncapturable = "numpy's arrays are on the CPU"

    def __init__(
        self,
        library: Path,
        dtypes: Sequence[str],
        *,
        num_runners: int = 1,
        constants: Mapping[str, tuple[np.ndarray[Any, Any], str]] | None = None,
    ) -> None:
        self.constants = dict(constants or {})
        self._dtypes = dtypes
        handles = ArrayHandles()
        try:
            functions = functions_of(library)
            if functions is None:
                raise LoadError(f"{library.name} lacks a function of the C interface: load the model with app.load")
            self._container = Container(functions, library, "cpu", handles, num_runners=num_runners)
            if self.constants:
                self._container.borrow(self.constants)
        except (OSError, RuntimeError) as error:
            raise LoadError(f"{library.name} can't be loaded: {str(error).strip().partition(chr(10))[0]}") from error

    def __call__(self, values: list[Any]) -> list[Any]:
        """Run the compiled program."""
        outputs = self._container.run(list(zip(values, self._dtypes, strict=True)))
        # an input that is given back: its handle doesn't keep the caller's memory
        return [
            np.array(output) if output is not None and any(np.may_share_memory(output, v) for v in values) else output
            for output in outputs
        ]


def load(
    folder: Path,
    content: Mapping[str, Any],
    *,
    weights: Path | None = None,
    num_runners: int = 1,
    buckets: Mapping[str, Sequence[int]] | None = None,
    extent: Extent | None = None,
) -> CompiledModel:
    """Load the library of an artifact, to be called with arrays; as `model.load` does for tensors.

    Raises:
        LoadError: the library or the weights can't be loaded.
    """
    spec = CallSpec.from_json(content["spec"])
    constants = None
    if content["constants"] is not None:
        if weights is None:
            raise LoadError("the artifact's weights are external, and none were given")
        constants = load_constants(weights / WEIGHTS, content["constants"])
    dtypes = [item.dtype for item in spec.inputs]
    boundary = ArrayBoundary(spec, extent)
    runner = ArrayRunner(folder / LIBRARY, dtypes, num_runners=num_runners, constants=constants)
    return CompiledModel(runner, boundary, mixing=content.get("mixing"), buckets=buckets)


def load_constants(path: Path, constants: Mapping[str, Any]) -> dict[str, tuple[np.ndarray[Any, Any], str]]:
    """External weights by the library's own names, memory-mapped: all processes share one copy.

    Raises:
        LoadError: the file can't be read, or lacks a tensor.
    """
    try:
        file = np.memmap(path, mode="r")
        (length,) = struct.unpack("<Q", file[:8].tobytes())
        header, data = json.loads(file[8 : 8 + length].tobytes()), file[8 + length :]
        return {name: _constant(data, header[item["stored"]], item["stride"]) for name, item in constants.items()}
    except (OSError, KeyError, ValueError, struct.error) as error:
        raise LoadError(f"the weights {path.parent.name} can't be loaded: {error}") from error


def _constant(
    data: np.ndarray[Any, Any], item: Mapping[str, Any], stride: Sequence[int] | None
) -> tuple[np.ndarray[Any, Any], str]:
    begin, end = item["data_offsets"]
    dtype = _SAFETENSORS[item["dtype"]]
    array = data[begin:end].view(numpy_dtype(dtype)).reshape(item["shape"])
    if stride is not None:  # safetensors holds contiguous tensors only
        room = np.empty(1 + sum((n - 1) * step for n, step in zip(array.shape, stride, strict=True)), array.dtype)
        steps = [step * array.itemsize for step in stride]
        strided = np.lib.stride_tricks.as_strided(room, array.shape, steps)
        strided[...] = array
        array = strided
    return array, dtype
