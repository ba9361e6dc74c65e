"""Findings: one function for each thing that the doctor looks at; it may raise, and then that is what was found."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import environment
from .context import Context
from .errors import ConfigError
from .lookup import trust_of
from .store import KINDS
from .store.objects import size_of
from .store.trust import check_place

KNOWN_TORCH = ((2, 11), (2, 13))
# Torch in the run and in the worker, and a C++ compiler beside them: with less, the kernel may kill the compile.
ENOUGH_MEMORY = 2 << 30
ENOUGH_DISK = 1 << 30
# What Inductor asks of a compiler: a shared library with OpenMP, and the standard library's headers.
SOURCE = '#include <vector>\nextern "C" int probe() { return int(std::vector<int>(42).size()); }\n'
FLAGS = ("-shared", "-fPIC", "-fopenmp")
TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
EXTRAS = {
    "openvino": "openvino",
    "signing": "cryptography",
    "remote": "fsspec",
    "s3": "s3fs",
    "optuna": "hydra-optuna-sweeper",
    "slurm": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
    "mlflow": "mlflow-skinny",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what to do where it isn't well."""

    name: str
    ok: bool
    found: str
    advice: str | None = None


def compiler(_: Context) -> Finding:
    """The C++ compiler: it runs, and makes a shared library."""
    from .compiler.lower import check_compiler

    version, command = check_compiler(), shlex.split(environment.compiler())
    with tempfile.TemporaryDirectory(prefix="app-") as folder:
        (Path(folder) / "probe.cpp").write_text(SOURCE, encoding="utf-8")
        build = [*command, *FLAGS, "probe.cpp", "-o", "probe.so"]
        done = subprocess.run(build, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        made = (Path(folder) / "probe.so").is_file()
    found = f"{shutil.which(command[0])}: {version}"
    if made and not done.returncode:
        return Finding("compiler", True, found)
    lines = [line for line in done.stderr.splitlines() if "error" in line] or [f"it exits {done.returncode}"]
    found += f" can't make a shared library: {lines[0]}"
    return Finding("compiler", False, found, "install g++ with its standard library and OpenMP, or set CXX to one")


def isa(_: Context) -> Finding:
    """The instruction set: its level, and the flags that decide how fast kernels are."""
    here = set(environment.cpu_flags())
    levels = [level for level in environment.LEVELS if here.issuperset(environment.flags_of(level))]
    telling = [flag for flag in TELLING_FLAGS if flag in here]
    found = (
        f"{environment.cpu_name()}: {levels[-1] if levels else 'no x86-64 level'}, {' '.join(telling) or 'no SIMD'}"
    )
    advice = "what is compiled here is not vectorised: use a processor with AVX2 or NEON"
    return Finding("ISA", True, found) if here & {"avx2", "asimd"} else Finding("ISA", False, found, advice)


def target(context: Context) -> Finding:
    """Whether what `target` asks for can be verified here."""
    asked = context.settings.target
    environment.target(context.device, asked)
    return Finding("target", True, f"{asked}, on {context.device}")


def gpu(_: Context) -> Finding:
    """The GPUs that the driver lists."""
    if found := environment.gpus():
        return Finding("GPU", True, f"{len(found)}, of compute capability {', '.join(found)}")
    return Finding("GPU", False, "none", "nothing, to run on the CPU; CUDA graphs need an NVIDIA GPU and its driver")


def driver(_: Context) -> Finding:
    """The NVIDIA driver."""
    if found := environment.driver_version():
        return Finding("driver", True, f"NVIDIA {found}")
    advice = "nothing, to run on the CPU; for a GPU install NVIDIA's driver (in a container: --gpus all)"
    return Finding("driver", False, "libnvidia-ml.so.1 does not load, or does not start", advice)


def torch_cuda(_: Context) -> Finding:
    """Whether torch was built for CUDA, and for a driver like this one."""
    build = environment.torch_version()["cuda"]
    advice = "nothing, to run on the CPU; for a GPU install a CUDA build of torch: https://pytorch.org/get-started"
    if build is None:
        return Finding("torch CUDA", False, "torch is a CPU build", advice)
    import torch

    if not torch.cuda.is_available():
        return Finding("torch CUDA", False, f"built for CUDA {build}, and finds no device", advice)
    return Finding("torch CUDA", True, f"built for CUDA {build}")


def torch_version(_: Context) -> Finding:
    """Torch: imports, and is one that this program knows."""
    import torch

    version, (low, high) = torch.__version__, KNOWN_TORCH
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if low <= numbers <= high:
        return Finding("torch", True, str(version))
    return Finding("torch", False, f"{version}, which nobody tested", "pip install 'torch>=2.11,<2.14'")


def loaders(context: Context) -> Finding:
    """Torch's private loaders, which are looked for by name."""
    from .runtime.aoti import loader_class
    from .runtime.tensors import TensorHandles

    name = loader_class(context.device).__name__
    handles = "the C interface" if TensorHandles.exist() else "no C interface: calls hold the GIL"
    return Finding("loaders", True, f"{name}, {handles}")


def memory(_: Context) -> Finding:
    """Memory that a compile could take now, within the container's limit where there is one."""
    free = environment.free_memory()
    if free is None:
        return Finding("memory", True, "the system doesn't say how much is free")
    found = f"{free / 1e9:.1f} GB free"
    advice = "free some, raise the container's limit, or compile elsewhere: task=cache.export"
    return Finding("memory", True, found) if free >= ENOUGH_MEMORY else Finding("memory", False, found, advice)


def _root(context: Context) -> Path | None:
    place = context.settings.cache.dir
    return None if place is None else Path(place).expanduser().absolute()


def _nearest(root: Path) -> Path:
    """The folder, or the first one above it that is there: the store makes the rest."""
    return next(path for path in (root, *root.parents) if os.path.lexists(path))


def cache_folder(context: Context) -> Finding:
    """Whether the cache can be written; nothing is made."""
    name, root = "cache folder", _root(context)
    if root is None:
        return Finding(name, True, "cache.dir=null: every run compiles anew")
    if context.settings.cache.readonly:
        found, advice = f"{root} is not there, and cache.readonly=true", "set cache.dir to a folder that is there"
        return Finding(name, True, f"{root}, read-only") if root.is_dir() else Finding(name, False, found, advice)
    try:
        tempfile.TemporaryFile(dir=_nearest(root)).close()  # tried: permission bits don't tell of a read-only mount
    except OSError as error:
        found, advice = (
            f"{root} is not writable: {error.strerror or error}",
            "set cache.dir, or cache=readonly, or cache=off",
        )
        return Finding(name, False, found, advice)
    return Finding(name, True, f"{root}, {'writable' if root.is_dir() else 'made by the first run'}")


def cache_privacy(context: Context) -> Finding:
    """Whether nobody else can put code there."""
    root, policy = _root(context), context.settings.cache.trust
    if root is None or policy == "none":
        return Finding(
            "cache privacy", True, f"not asked for with cache.{'dir=null' if root is None else 'trust=none'}"
        )
    check_place(root)
    return Finding("cache privacy", True, "only this user and root can write it, and every folder on the way")


def cache_file_system(context: Context) -> Finding:
    """Where the cache lies: libraries can't be loaded from a file system that is mounted noexec."""
    name, root = "cache file system", _root(context)
    place = Path(tempfile.gettempdir()) if root is None else _nearest(root)
    kind = environment.filesystem_of(place)
    if os.statvfs(place).f_flag & os.ST_NOEXEC:
        return Finding(
            name, False, f"{kind}, mounted noexec: no library loads", "set cache.dir to another file system"
        )
    shared = (
        ", a network file system: the index lies on a local disk" if kind in environment.NETWORK_FILESYSTEMS else ""
    )
    return Finding(name, True, f"{kind}{shared}")


def cache_size(context: Context) -> Finding:
    """What the cache holds, its limit, and the disk's free space."""
    name, root, limit = "cache size", _root(context), context.settings.cache.size_limit_bytes
    if root is None:
        return Finding(name, True, "nothing is kept")
    held = sum(size_of(root / kind) for kind in (*KINDS, "quarantine"))
    free = shutil.disk_usage(_nearest(root)).free
    found = f"{held / 1e6:,.1f} MB of {limit / 1e6:,.1f} MB; {free / 1e9:,.1f} GB of the disk are free"
    if held > limit:
        return Finding(name, False, found, "task=cache.prune, or a larger cache.size_limit")
    if free < ENOUGH_DISK:
        return Finding(name, False, found, "task=cache.prune with a smaller cache.size_limit, or another cache.dir")
    return Finding(name, True, found)


def trust(context: Context) -> Finding:
    """Whose artifacts are loaded, and whether the keys for that are there."""
    cache = context.settings.cache
    found = trust_of(cache).trusted
    if cache.trust == "signed" and not found:
        raise ConfigError("cache.trust=signed, and no key is trusted; list cache.keys=[...], or task=cache.keygen")
    keys = f", {len(found)} keys" if cache.trust == "signed" else ""
    return Finding("trust", True, f"cache.trust={cache.trust}{keys}")


def extra(name: str) -> Callable[[Context], Finding]:
    """Whether what an extra brings is installed."""

    def check(_: Context) -> Finding:
        package = EXTRAS[name]
        if version := environment.installed(package):
            return Finding(f"extra {name}", True, f"{package} {version}")
        advice = f"nothing, unless it is wanted: pip install 'aot-app[{name}]'"
        return Finding(f"extra {name}", False, f"{package} is not installed", advice)

    return check


CHECKS: dict[str, Callable[[Context], Finding]] = {
    "torch": torch_version,
    "loaders": loaders,
    "compiler": compiler,
    "ISA": isa,
    "target": target,
    "GPU": gpu,
    "driver": driver,
    "torch CUDA": torch_cuda,
    "memory": memory,
    "cache folder": cache_folder,
    "cache privacy": cache_privacy,
    "cache file system": cache_file_system,
    "cache size": cache_size,
    "trust": trust,
    **{f"extra {name}": extra(name) for name in EXTRAS},
}
