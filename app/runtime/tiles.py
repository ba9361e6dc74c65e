"""Tiles: registers of AMX, which a process must ask Linux for before its first use, or die of SIGILL.

Torch asks when eager first multiplies in bf16; code that was compiled ahead of time runs where eager may never have.
Source: Linux, Documentation/arch/x86/xstate.rst.
"""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path

from ..environment import cpu_flags

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
# LDTILECFG in memory, which comes before any other use of tiles: VEX.128.NP.0F38.W0 49 /0.
_CONFIGURES = re.compile(rb"\xc4[\x02\x22\x42\x62\x82\xa2\xc2\xe2]\x78\x49")


def permit(library: Path) -> None:
    """Ask for what a library may use, before it is loaded.

    Raises:
        OSError: the system refuses, and the library's code uses tiles.
    """
    if "amx_tile" in cpu_flags() and not _permitted() and _CONFIGURES.search(library.read_bytes()):
        raise OSError(
            "its code uses AMX tiles, and this system refuses them to the process (arch_prctl), as some containers "
            "do; compile it here with target=x86-64-v4"
        )


@functools.cache
def _permitted() -> bool:
    """Whether the process, with all its threads, may use tiles from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)) == 0
