"""The loaders of AOTInductor that are private to torch: which one serves a library.

The public way, `torch._inductor.aoti_load_package`, imports Inductor (1.5 s) and unzips the package at every load.
Both ways here load the extracted library in milliseconds with nothing but torch imported: the C interface in
container.py, and `torch._C._aoti.AOTIModelContainerRunner*`, whose calls hold the GIL. See
docs/adr/0003-private-loader-classes.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import LoadError
from . import tiles
from .container import Container, functions_of
from .runner import Runner
from .tensors import TensorHandles

# Beside a library: the operators that it calls by name, through torch's dispatcher. Only torch's class reads it.
OPERATORS = ".json"

Run = Callable[[list[torch.Tensor]], list[torch.Tensor]]


class AotiRunner(Runner):
    """One loaded library.

    On the CPU calls go over the C interface. On a GPU a call launches work and comes back, so that the GIL is held
    for microseconds, and torch's class finds the current stream itself; its single-threaded calls need the interface.

    Args:
        library: The compiled shared library.
        device: `cpu` or `cuda:N`.
        num_runners: How many calls may run at the same time; more wait.
        constants: External weights by the library's own names; kept alive here, because the library only borrows
            them. Running a library that was compiled without weights before they are given is a segfault
            (pytorch#142246).
        single_threaded: One call at a time, without the library's own bookkeeping of finished calls: a CUDA graph
            can't capture that (pytorch#148601). Where it can't be had, `uncapturable` says why.
        binding: Call torch's own class, which holds the GIL, wherever it runs.

    Raises:
        LoadError: the library can't be loaded into this process.
    """

    def __init__(
        self,
        library: Path,
        device: str,
        *,
        num_runners: int = 1,
        constants: Mapping[str, torch.Tensor] | None = None,
        single_threaded: bool = False,
        binding: bool = False,
    ) -> None:
        self.constants = dict(constants or {})
        self.uncapturable = None if single_threaded else "it is loaded for many calls at a time"
        self._borrow: Callable[[Mapping[str, torch.Tensor]], None]
        try:
            self._run = self._loaded(library, device, num_runners, single_threaded, binding)
        except (OSError, RuntimeError) as error:
            raise _load_error(library, error) from error

    def _loaded(self, library: Path, device: str, num_runners: int, single_threaded: bool, binding: bool) -> Run:
        plain = not library.with_suffix(OPERATORS).exists()
        by_interface = plain and not binding and (device == "cpu" or single_threaded)
        functions = functions_of(library) if by_interface and TensorHandles.exist() else None
        if functions is not None:
            container = Container(
                functions,
                library,
                device,
                TensorHandles(device),
                num_runners=num_runners,
                single_threaded=single_threaded,
            )
            self._borrow = container.borrow
            if self.constants:
                container.borrow(self.constants)
            return container.run
        if single_threaded:
            why = (
                "C interface that runs single-threaded" if plain else "single-threaded way to call operators by name"
            )
            self.uncapturable = f"torch {torch.__version__} has no {why}"
        runner = _runner(library, device, num_runners)
        # (map, use_inactive, validate_full_updates, user_managed): borrowed, not copied
        self._borrow = lambda constants: runner.update_constant_buffer(dict(constants), False, True, True)
        if self.constants:
            self._borrow(self.constants)
        run: Run = runner.run
        return run

    def borrow(self, constants: Mapping[str, torch.Tensor]) -> None:
        """Have the library read these tensors from now on; not while a call runs."""
        self._borrow(constants)
        self.constants = dict(constants)

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run the compiled program."""
        return self._run(tensors)


def _runner(library: Path, device: str, num_runners: int = 1) -> Any:
    tiles.permit(library)
    place = () if device == "cpu" else (device, str(library.parent))
    return loader_class(device)(str(library), num_runners, *place)


def loader_class(device: str) -> Any:
    """Torch's own class for libraries of a device.

    Raises:
        LoadError: this torch has none.
    """
    import torch._C._aoti as bindings

    name = {"cpu": "AOTIModelContainerRunnerCpu", "cuda": "AOTIModelContainerRunnerCuda"}[device.partition(":")[0]]
    found = getattr(bindings, name, None)
    if found is None or not hasattr(found, "run") or not hasattr(found, "update_constant_buffer"):
        raise LoadError(
            f"torch {torch.__version__} has no {name} with run and update_constant_buffer; "
            "this program knows torch 2.11 to 2.13"
        )
    return found


def constant_names(library: Path, device: str) -> dict[str, str]:
    """The library's own name of each constant -> the name in the exported program.

    Raises:
        LoadError: the library can't be loaded.
    """
    try:
        names: dict[str, str] = _runner(library, device).get_constant_names_to_original_fqns()
    except (OSError, RuntimeError) as error:
        raise _load_error(library, error) from error
    return names


def _load_error(library: Path, error: Exception) -> LoadError:
    why = str(error).strip().partition("\n")[0]
    if library.exists() and os.statvfs(library).f_flag & os.ST_NOEXEC:
        why += "; its file system is mounted noexec: set cache.dir to another"
    return LoadError(f"{library.name} can't be loaded: {why}")
