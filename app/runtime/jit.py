"""JitModel: `torch.compile` of a module that does not export, warm from what the worker's compile left.

`torch.compiler.save_cache_artifacts` keeps Inductor's Python, as pickles, and on a CPU the source of the kernels but
not the kernels: a warm process would run the C++ compiler again. So the kernels are kept too, each by a digest of its
source. torch's private `CppCodeCache.load_async` is wrapped for that, in this file only; without it, the public way
still works and compiles the kernels again. See docs/adr/0009-jit-rung.md.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import LoadError
from ..verdict import Draw, Extent, within
from .spec import CallSpec
from .tensors import TensorBoundary

logger = logging.getLogger(__name__)

ENGINE = "jit"
ARTIFACTS = "artifacts.bin"
KERNELS = "kernels"


class JitModel:
    """Called like the module; every call is checked, and runs under `torch.inference_mode()`.

    Args:
        module: The eager module, whose own weights and state are used.
        spec: What it may be called with; its output's structure is the module's own business.
        device: `cpu` or `cuda:N`.
        options: Inductor's options.
        extent: The sizes that are served; None serves all of the spec.

    Attributes:
        boundary: What its calls are checked by.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: CallSpec,
        device: str,
        options: Mapping[str, Any],
        extent: Extent | None = None,
    ) -> None:
        # sets Inductor's own switch too, which is part of its caches' keys
        torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
        self.spec = spec
        self.boundary = TensorBoundary(spec, device, extent)
        self._compiled = torch.compile(module, dynamic=bool(spec.dims), options=dict(options))

    @property
    def whole(self) -> JitModel:
        """The same at all sizes of the spec, to be compared at one that isn't served."""
        other = copy.copy(self)
        other.boundary = self.boundary.whole
        return other

    def stats(self) -> dict[str, Any]:
        """Calls of sizes that nobody has compared."""
        return {"beyond": self.boundary.num_beyond}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            InputError: an input differs from what was verified; the message names it.
        """
        values = self.boundary.check(self.boundary.bind(args, kwargs))
        given = list(zip(self.spec.inputs, values, strict=True))
        positional = [value for item, value in given if not item.keyword]
        keyword = {item.name: value for item, value in given if item.keyword}
        with torch.inference_mode():
            return self._compiled(*positional, **keyword)


def options_of(inductor: Mapping[str, Any], cxx: str) -> dict[str, Any]:
    """Options for torch.compile: it doesn't cache frozen weights; the compiler's name is part of its caches' keys."""
    return {**inductor, "freezing": False, "cpp.cxx": (None, cxx)}


def load(
    folder: Path,
    content: Mapping[str, Any],
    module: nn.Module,
    device: str,
    *,
    inductor: Mapping[str, Any],
    call: Callable[[Draw], tuple[tuple[Any, ...], dict[str, Any]]],
    extent: Extent | None = None,
) -> JitModel:
    """Compile from an artifact: every path that was verified is taken once, and no compiler runs.

    The artifact holds pickles: whoever calls this vouches for it.

    Args:
        folder: Where the artifact's files are.
        content: The manifest's content: `spec`, `cxx`, and the `calls` of the worker.
        module: The eager module.
        device: `cpu` or `cuda:N`.
        inductor: Inductor's options, as the config gives them.
        call: A draw -> the arguments of a call.
        extent: The sizes that are served; None serves all of the spec.

    Raises:
        LoadError: torch can't use it here.
    """
    spec = CallSpec.from_json(content["spec"])
    options = options_of(inductor, content["cxx"])
    try:
        with private_cache(), kernels(source=folder):
            torch.compiler.load_cache_artifacts((folder / ARTIFACTS).read_bytes())
            model = JitModel(module, spec, device, options, extent)
            for each in content["calls"]:
                draw = Draw(**each)
                if extent is None or within(draw.sizes, extent.compared):
                    args, kwargs = call(draw)
                    model(*args, **kwargs)
    except Exception as error:  # torch raises whatever its unpickling and compiling raise
        raise LoadError(f"torch.compile can't use what was kept: {cause(error)}") from error
    return model


@contextmanager
def kernels(source: Path | None = None, target: Path | None = None) -> Iterator[None]:
    """Take Inductor's kernels from the artifact `source` instead of compiling them, and copy others into `target`."""
    from torch._inductor.codecache import CppCodeCache

    original: Any = vars(CppCodeCache).get("load_async")
    if original is None or not hasattr(CppCodeCache, "_load_library"):
        logger.warning("jit: torch %s keeps its kernels in another way: they are compiled again", torch.__version__)
        yield
        return

    def load_async(cls: Any, /, *args: Any, submit_fn: Any = None, **kwargs: Any) -> Callable[[], Any]:
        text = repr((cls.__name__, args, sorted(kwargs.items())))
        key = hashlib.sha256(text.encode()).hexdigest()
        name = f"{KERNELS}/{key}.so"
        if source is not None and (source / name).exists():
            return lambda: cls._load_library(str(source / name), key)
        compiled: Callable[[], Any] = original.__func__(cls, *args, submit_fn=submit_fn, **kwargs)
        return (lambda: _copied(compiled(), target / name)) if target is not None else compiled

    setattr(CppCodeCache, "load_async", classmethod(load_async))  # noqa: B010 - assigning it is what mypy refuses
    try:
        yield
    finally:
        setattr(CppCodeCache, "load_async", original)  # noqa: B010 - as above


def _copied(library: Any, path: Path) -> Any:
    """A loaded library, its file copied."""
    path.parent.mkdir(exist_ok=True)
    # a Python module, or ctypes' library, which has no other name for it
    shutil.copyfile(getattr(library, "__file__", None) or library._name, path)  # noqa: SLF001
    return library


@contextmanager
def fresh_artifacts() -> Iterator[None]:
    """Let `torch.compiler.save_cache_artifacts` give only what is compiled inside: the process may compile others."""
    from torch.compiler._cache import CacheArtifactManager

    fresh = getattr(CacheArtifactManager, "with_fresh_cache", nullcontext)
    with fresh():
        yield


@contextmanager
def private_cache() -> Iterator[None]:
    """A cache folder of one's own: torch unpickles what it finds in the one that it takes by default, in /tmp."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="app-jit-", ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


def cause(error: BaseException) -> str:
    """The first line of what torch says, which goes on for pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]
