"""torch's private AOTInductor bindings: all of the program's use of them is in this file.

The public way, `torch._inductor.aoti_load_package`, imports Inductor (1.5 s) and unzips the package at every load.
`torch._C._aoti.AOTIModelContainerRunner*` loads the extracted library in milliseconds with nothing but torch
imported. See docs/adr/0003-private-loader-classes.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import LoadError


def _runner_class(kind: str) -> Any:
    import torch._C._aoti as bindings  # compiled into torch: importing it costs nothing

    name = {"cpu": "AOTIModelContainerRunnerCpu", "cuda": "AOTIModelContainerRunnerCuda"}[kind]
    found = getattr(bindings, name, None)
    if found is None or not hasattr(found, "run") or not hasattr(found, "update_constant_buffer"):
        raise LoadError(
            f"torch {torch.__version__} has no {name} with run and update_constant_buffer; "
            "this program knows torch 2.11 to 2.13"
        )
    return found


class AotiRunner:
    """One loaded library: tensors in, tensors out, nothing checked.

    Args:
        library: The compiled shared library.
        device: `cpu` or `cuda:N`.
        num_runners: How many calls may run at the same time.
        constants: External weights by the library's own names; kept alive here, because the library only borrows
            them. Running a library that was compiled without weights before they are given is a segfault
            (pytorch#142246).

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
    ) -> None:
        runner = _runner_class(device.partition(":")[0])
        place = () if device == "cpu" else (device, str(library.parent))
        try:
            self._runner = runner(str(library), num_runners, *place)
            self._constants = dict(constants or {})
            if self._constants:
                # (map, use_inactive, validate_full_updates, user_managed): borrowed, not copied
                self._runner.update_constant_buffer(self._constants, False, True, True)
        except RuntimeError as error:
            why = str(error).strip().splitlines()[0]
            if library.exists() and os.statvfs(library).f_flag & os.ST_NOEXEC:
                why += "; its file system is mounted noexec: set cache.dir to another"
            raise LoadError(f"{library.name} can't be loaded: {why}") from error

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run the compiled program."""
        outputs: list[torch.Tensor] = self._runner.run(tensors)
        return outputs


def constant_names(library: Path, device: str) -> dict[str, str]:
    """The library's own name of each constant -> the name in the exported program."""
    runner = AotiRunner(library, device)
    names: dict[str, str] = runner._runner.get_constant_names_to_original_fqns()  # noqa: SLF001
    return names
