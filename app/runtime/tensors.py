"""A call's tensors: checked against a CallSpec, handed to a library's C interface, made into the model's output.

`torch._C._aoti` makes handles of tensors, and tensors of handles; its functions are as private to torch as the
classes in aoti.py.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..errors import InputError, LoadError
from ..verdict import Extent
from .batches import Arrays, Axes
from .container import Address
from .spec import Boundary, CallSpec, InputSpec

_HANDLES = ("unsafe_alloc_void_ptrs_from_tensors", "alloc_tensors_by_stealing_from_void_ptrs")

# torch gives and takes its handles as capsules. Prototypes of this file's own: others may use ctypes.pythonapi too.
_address = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


# Plain tensors differ by whether they were made, and are given, in inference mode.
MOST_GUARDS = 4

TENSORS = Arrays(torch.concatenate, torch.broadcast_to, torch.Tensor.contiguous)


class TensorBoundary(Boundary):
    """A CallSpec made ready for calls with tensors on one device."""

    def __init__(self, spec: CallSpec, device: str, extent: Extent | None = None) -> None:
        super().__init__(spec, device, TENSORS, extent)
        self._device = torch.device(device)
        self._kind = self._device.type
        self._dtypes = [item.torch_dtype for item in spec.inputs]
        self._with_range = [
            index for index, item in enumerate(spec.inputs) if item.low is not None and item.high is not None
        ]
        self._guards: list[Any] = []
        self._out_spec = load_treespec(spec)
        self._is_leaf = self._out_spec.is_leaf() and not self._constants and not spec.out_integers

    def check(self, values: Sequence[Any]) -> list[torch.Tensor]:
        """The inputs as the program was compiled for; strides are copied, anything else that differs is refused.

        Raises:
            InputError: an input is no plain tensor, or has another dtype, device, rank or size; it names the input.
                Or the call is under autocast.
        """
        checked = list(values) if self._are_plain(values) else self._each_checked(values)
        self._check_sizes(tuple([value.shape for value in checked]))
        for index in self._with_range:
            if checked[index].numel():
                smallest, largest = torch.aminmax(checked[index])
                self.spec.inputs[index].check_range(int(smallest), int(largest))
        return checked

    def _are_plain(self, values: Sequence[Any]) -> bool:
        """Whether they are, in all but their sizes, as inputs that were checked before; False is no answer.

        Dynamo's guard is one call into C++. It compares class, dtype, device, rank, requires_grad and dispatch keys
        (where layout, negative, conjugate, autocast and inference mode are seen), and here neither sizes nor strides.
        """
        for guard in self._guards:
            if guard.check(*values):
                for value in values:  # noqa: SIM110 - all() costs three times as much
                    if not value.is_contiguous():
                        return False
                return True
        return False

    def _each_checked(self, values: Sequence[Any]) -> list[torch.Tensor]:
        if torch.is_autocast_enabled(self._kind):  # eager would answer in another dtype
            raise InputError(
                "called under torch.autocast, which compiled code doesn't follow: call outside of it, "
                "or compile with precision=bf16"
            )
        checked, are_plain = [], True
        for value, spec, dtype in zip(values, self.spec.inputs, self._dtypes, strict=True):
            is_plain = (  # what compiled code reads, in all but its sizes
                type(value) is torch.Tensor
                and value.dtype is dtype
                and value.device == self._device
                and value.layout is torch.strided
                and not value.requires_grad
                and value.is_contiguous()
                and not value.is_neg()
                and not value.is_conj()
            )
            are_plain = are_plain and is_plain and value.dim() == len(spec.shape)
            checked.append(value if is_plain else self._made_plain(value, spec, dtype))
        if are_plain and checked and len(self._guards) < MOST_GUARDS:
            self._guards.append(_guard(checked))
        return checked

    def _made_plain(self, value: Any, spec: InputSpec, dtype: torch.dtype) -> torch.Tensor:
        """The tensor as compiled code can read it, or why it can't be."""
        if type(value) is not torch.Tensor and type(value) is not torch.nn.Parameter:
            raise InputError(f"input {spec.name!r} is a {type(value).__name__}, expected a tensor {spec}")
        if value.dtype is not dtype:
            raise InputError(f"input {spec.name!r} is {_dtype(value)}, expected {spec}")
        if value.device != self._device:
            raise InputError(f"input {spec.name!r} is on {value.device}, expected {self._device}")
        if value.layout is not torch.strided:
            raise InputError(f"input {spec.name!r} has the layout {value.layout}, expected a dense tensor")
        if value.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"input {spec.name!r} requires grad, and compiled code can't be differentiated: "
                "detach it, or call under torch.inference_mode()"
            )
        return value.resolve_conj().resolve_neg().contiguous()

    def restore(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The output in the structure that the module itself gives."""
        return tensors[0] if self._is_leaf else pytree.tree_unflatten(self._leaves(tensors), self._out_spec)


class TensorHandles:
    """Handles of torch's tensors, and tensors of handles.

    Args:
        device: Where the library runs.
    """

    def __init__(self, device: str) -> None:
        import torch._C._aoti as bindings

        self._alloc, self._steal = (getattr(bindings, name) for name in _HANDLES)
        self._cuda = None if device == "cpu" else torch.device(device)

    @staticmethod
    def exist() -> bool:
        """Whether this torch gives and takes them."""
        import torch._C._aoti as bindings  # compiled into torch: importing it costs nothing

        return all(hasattr(bindings, name) for name in _HANDLES)

    def lend(self, values: Sequence[torch.Tensor]) -> list[Address]:
        """A new handle of each tensor."""
        return [_address(handle, None) for handle in self._alloc(values)]

    def take(self, handles: list[Address]) -> list[torch.Tensor]:
        """The tensors, which own their handles from now on."""
        # a null is an output that is None, and no capsule can hold it
        given: list[torch.Tensor] = self._steal(
            [_capsule(handle, None, None) if handle else None for handle in handles]
        )
        return given

    def stream(self) -> Address:
        """The current CUDA stream."""
        return None if self._cuda is None else torch.cuda.current_stream(self._cuda).cuda_stream


def widen(tensors: Sequence[torch.Tensor], axes: Axes, size: int, fills: Sequence[int]) -> list[torch.Tensor]:
    """The inputs with a dimension filled up to `size`; rows are padded with rows, all else with `fills`."""
    widened = []
    for value, axis, fill in zip(tensors, axes, fills, strict=True):
        if axis is not None and value.shape[axis] < size:
            shape = [size if number == axis else length for number, length in enumerate(value.shape)]
            wider = torch.full(shape, fill, dtype=value.dtype, device=value.device)
            wider.narrow(axis, 0, value.shape[axis]).copy_(value)
            value = wider  # noqa: PLW2901
        widened.append(value)
    return widened


def register_namedtuple(cls: type) -> str:
    """Make a named tuple known to pytree's serialisation, and return its name: `module:class`."""
    name = f"{cls.__module__}:{cls.__qualname__}"
    if cls not in pytree.SUPPORTED_SERIALIZED_TYPES:
        pytree._register_namedtuple(cls, serialized_type_name=name)  # noqa: SLF001 - there is no public way
    return name


def register_dataclass(cls: type) -> str:
    """Make a dataclass known to pytree, unless its author did, and return its name: `module:class`."""
    name = f"{cls.__module__}:{cls.__qualname__}"
    if cls not in pytree.SUPPORTED_NODES:
        pytree.register_dataclass(cls, serialized_type_name=name)
    known = pytree.SUPPORTED_SERIALIZED_TYPES[cls]
    if known.serialized_type_name == pytree.NO_SERIALIZED_TYPE_NAME_FOUND:  # registered, but not to be written down
        pytree.SUPPORTED_SERIALIZED_TYPES[cls] = known._replace(serialized_type_name=name)
        pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE[name] = cls
    return name


def register_classes(value: Any) -> None:
    """Make the dataclasses known that a value is made of, whose fields pytree would take for no tensors otherwise."""
    leaves = pytree.tree_leaves(value)
    found = {type(leaf) for leaf in leaves if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)}
    for cls in found:
        register_dataclass(cls)
    if found:  # they may hold others
        register_classes(value)


def _guard(tensors: Sequence[torch.Tensor]) -> Any:
    """What tensors like these pass, of any size and strides."""
    from torch._C._dynamo.guards import TensorGuards  # compiled into torch: importing it costs nothing

    anything: Any = [[None] * tensor.dim() for tensor in tensors]
    return TensorGuards(*tensors, dynamic_dims_sizes=anything, dynamic_dims_strides=anything)


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def load_treespec(spec: CallSpec) -> pytree.TreeSpec:
    """The output's structure, its classes imported.

    Raises:
        LoadError: a class can't be imported here.
    """
    try:
        for name in spec.out_modules:
            importlib.import_module(name)
        for name in spec.out_namedtuples:
            module, _, attribute = name.partition(":")
            register_namedtuple(operator.attrgetter(attribute)(importlib.import_module(module)))
        for name in spec.out_dataclasses:
            module, _, attribute = name.partition(":")
            register_dataclass(operator.attrgetter(attribute)(importlib.import_module(module)))
        return pytree.treespec_loads(spec.out_spec)
    except (AttributeError, ImportError, ValueError, NotImplementedError, KeyError) as error:
        raise LoadError(f"the output's classes can't be restored here: {error}") from error
