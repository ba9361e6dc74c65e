"""torch's library without its Python modules. Importing this begins to open it, in a thread of its own.

Opening takes some 0.15 s, nearly all of it torch's own initialisers, which need no Python: meanwhile whoever imports
this imports the rest of what it needs.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
import threading
from pathlib import Path

from ..errors import LoadError


def folder() -> Path:
    """Where torch's libraries are.

    Raises:
        LoadError: torch isn't installed.
    """
    spec = importlib.machinery.PathFinder.find_spec("torch")
    if spec is None or spec.origin is None:
        raise LoadError("torch is not installed: pip install 'torch>=2.11,<2.14'")
    return Path(spec.origin).parent / "lib"


def opened() -> ctypes.CDLL:
    """The library; the same one where Python's torch is imported too.

    Raises:
        LoadError: torch isn't installed, or its library doesn't load.
    """
    _thread.join()
    try:
        # global: compiled libraries look its functions up by name
        ctypes.CDLL(str(folder() / "libc10.so"), mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(folder() / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise LoadError(f"torch's library can't be loaded: {error}") from error


def _begin() -> None:
    try:
        dlopen = ctypes.CDLL(None).dlopen  # of the C library, for which the GIL is let go of; CDLL itself holds it
    except AttributeError:
        return
    dlopen.restype, dlopen.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
    try:
        for name in ("libc10.so", "libtorch_cpu.so"):
            dlopen(os.fsencode(folder() / name), os.RTLD_NOW | os.RTLD_GLOBAL)  # what fails is said by `opened`
    except LoadError:
        return


_thread = threading.Thread(target=_begin, daemon=True)
_thread.start()
