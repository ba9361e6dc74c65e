"""Facts of the machine and the toolchain, for keys and records alike; nothing here imports torch."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ConfigError

# Where setuptools keeps copies of packages for itself.
VENDORED = "setuptools/_vendor"


def python_version() -> str:
    """Like 3.11.7."""
    return platform.python_version()


def import_path() -> list[str]:
    """`sys.path` without what setuptools adds to it once anything imports it: copies of packages, for itself.

    A process that imported torch's inductor has them and a fresh one hasn't; a model isn't built from them.
    """
    return [place for place in sys.path if not place.endswith(VENDORED)]


@functools.cache
def torch_version() -> dict[str, str | None]:
    """`version`, `git_version`, `cuda` and `hip` of the installed torch, read as text."""
    spec = importlib.machinery.PathFinder.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ConfigError("torch is not installed: pip install 'torch>=2.11,<2.14'")
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    found = dict(re.findall(r"^(\w+)(?:\s*:[^=\n]+)?\s*=\s*'([^']*)'", text, flags=re.MULTILINE))
    return {
        "version": found.get("__version__", "unknown"),
        "git_version": found.get("git_version"),
        "cuda": found.get("cuda"),
        "hip": found.get("hip"),
    }


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, or None.

    Read off the name of the folder that installers leave beside a package, the first on `sys.path`, as
    importlib.metadata finds it too: but that takes some 16 ms to import, and reads what is inside.
    """
    wanted = _normalised(distribution)
    for place in sys.path:
        try:
            names = os.listdir(place or ".")  # noqa: PTH208 - half the time, and it is of every start
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                project, _, version = name.rpartition(".")[0].partition("-")
                if version and _normalised(project) == wanted:
                    return version
    return None


def _normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "_", distribution).lower()


@functools.cache
def toolchain() -> dict[str, Any]:
    """What generates the code: a factor of every key. The C++ compiler is provenance, not a factor."""
    torch = torch_version()
    return {
        "torch": torch["version"],
        "torch_git": torch["git_version"],
        "cuda": torch["cuda"],
        "triton": installed("triton"),
        "numpy": installed("numpy"),
    }


@functools.cache
def cpu_flags() -> list[str]:
    """The processor's instruction-set flags, sorted; empty where the system doesn't list them."""
    for line in _cpuinfo().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return sorted(value.split())
    return []


@functools.cache
def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def cpu_name() -> str:
    """The processor as it names itself."""
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), flags=re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def cores() -> int | None:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@contextmanager
def _nvml() -> Iterator[ctypes.CDLL | None]:
    """NVIDIA's management library, started; None where there is no driver, or one too old to have it."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")  # by name: ctypes.util.find_library runs ldconfig and the C compiler
        started = nvml.nvmlInit_v2() == 0
    except (AttributeError, OSError):
        yield None
        return
    try:
        yield nvml if started else None
    finally:
        if started:
            nvml.nvmlShutdown()


@functools.cache
def gpus() -> list[str]:
    """Compute capability of each CUDA device, like `9.0`, from NVML; empty where there is no driver."""
    with _nvml() as nvml:
        if nvml is None:
            return []
        count = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        return [_capability(nvml, index) for index in range(count.value)]


def driver_version() -> str | None:
    """The NVIDIA driver's version, or None where there is none."""
    with _nvml() as nvml:
        text = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
        if nvml is None or nvml.nvmlSystemGetDriverVersion(text, len(text)) != 0:
            return None
        return text.value.decode(errors="replace")


def _capability(nvml: ctypes.CDLL, index: int) -> str:
    handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
    nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def resolve_device(asked: str) -> str:
    """`cpu` or `cuda:N` for what the config asks.

    Raises:
        ConfigError: there is no such device here.
    """
    available = ["cpu", *(f"cuda:{index}" for index in range(len(gpus()) if torch_version()["cuda"] else 0))]
    if asked == "auto":
        return available[min(1, len(available) - 1)]
    device = "cuda:0" if asked == "cuda" else asked
    if device not in available:
        raise ConfigError(f"device={asked} is not here; available: auto, {', '.join(available)}")
    return device


# The x86-64 psABI's levels as Linux names their flags; each includes the one before. How libraries that look at the
# processor themselves are kept to a level while they pack weights for it.
LEVELS = {
    "x86-64-v2": "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3",
    "x86-64-v3": "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "x86-64-v4": "avx512bw avx512cd avx512dq avx512f avx512vl",
}
LIMITS = {
    "x86-64-v2": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "x86-64-v3": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "x86-64-v4": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
}


def flags_of(level: str) -> list[str]:
    """The processor flags that code for a target needs; for `native`, all that there are here."""
    if level == "native":
        return cpu_flags()
    names = list(LEVELS)
    return sorted(" ".join(LEVELS[name] for name in names[: names.index(level) + 1]).split())


def lacks(target: Mapping[str, Any]) -> str | None:
    """Why machine code for a target can't run on this machine, or None; a missing instruction ends the process."""
    if (here := platform.machine()) != target["machine"]:
        return f"it is for {target['machine']}, this is {here}"
    if missing := sorted(set(target["flags"]) - set(cpu_flags())):
        return f"this processor lacks {', '.join(missing[:6])}"
    if "gpu" in target and target["gpu"] not in gpus():
        return f"it is for a GPU of compute capability {target['gpu']}; here: {', '.join(gpus()) or 'none'}"
    return None


def target(device: str, level: str = "native") -> dict[str, Any]:
    """What the machine code is for: the flags of the processor, and the GPU's architecture.

    Raises:
        ConfigError: this processor has not all that the level needs, so that nothing could be verified.
    """
    found: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(), "flags": flags_of(level)}
    if (why := lacks(found)) is not None:
        raise ConfigError(f"target={level}: {why}; compile it on one that has it")
    kind, _, index = device.partition(":")
    if kind == "cuda":
        found["gpu"] = gpus()[int(index)]
    return found


NETWORK_FILESYSTEMS = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs")
) | {"fuse.glusterfs", "fuse.sshfs", "fuse.s3fs"}


def filesystem_of(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that a path lies on, like `ext4`; `unknown` where the system doesn't tell.

    Args:
        path: An absolute path; it need not exist.
        mounts: The mount table, in the form of /proc/self/mounts, instead of this process's.
    """
    try:
        table = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace") if mounts is None else mounts
    except OSError:
        return "unknown"
    found, longest = "unknown", -1
    for fields in (line.split() for line in table.splitlines()):
        place = re.sub(r"\\(\d{3})", lambda code: chr(int(code.group(1), 8)), fields[1])  # \040 is a space
        if path.resolve().is_relative_to(place) and len(place) >= longest:
            found, longest = fields[2], len(place)
    return found


# The limit, what is taken of it, and a line of statistics: what the kernel would drop first. Version 2, then 1.
CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that a new process could take, within the container's limit; None where the system doesn't tell."""
    known = _numbers(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo"), 1024)
    for limit, taken, statistics, cached in CGROUPS:
        most, used = _numbers(r"^(\d+)$", cgroup / limit), _numbers(r"^(\d+)$", cgroup / taken)
        if most and used:  # version 2 says `max` where there is no limit
            known.append(max(0, most[0] - used[0] + sum(_numbers(rf"^{cached} (\d+)$", cgroup / statistics))))
    return min(known, default=None)


def _numbers(pattern: str, path: Path, unit: int = 1) -> list[int]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [int(number) * unit for number in re.findall(pattern, text, flags=re.MULTILINE)]


def compiler() -> str:
    """The C++ compiler that Inductor would run: `CXX`, or g++."""
    return os.environ.get("CXX") or "g++"


def describe(device: str) -> dict[str, Any]:
    """What a record says of the machine; figures from unlike machines are never merged."""
    return {
        "python": python_version(),
        **toolchain(),
        "cpu": cpu_name(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "device": device,
        "gpus": gpus(),
    }
