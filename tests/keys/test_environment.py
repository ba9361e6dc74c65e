"""Facts of machine and toolchain: right, read without torch, and nothing that names this one machine in a factor."""

from __future__ import annotations

import ctypes.util
import importlib.machinery
import importlib.metadata
import platform
import types

import pytest

from app import environment
from app.errors import ConfigError


@pytest.fixture(autouse=True)
def _fresh_caches():
    cached = [item for item in vars(environment).values() if hasattr(item, "cache_clear")]
    assert len(cached) >= 4
    for item in cached:
        item.cache_clear()
    yield
    for item in cached:
        item.cache_clear()


def test_the_torch_version_read_as_text_is_the_one_torch_reports():
    import torch

    found = environment.torch_version()
    assert found["version"] == torch.__version__
    assert found["git_version"] == torch.version.git_version
    assert found["cuda"] == torch.version.cuda
    assert environment.toolchain()["torch_git"] == torch.version.git_version


def test_a_cuda_build_and_annotations_are_read_from_version_py(tmp_path, monkeypatch):
    (tmp_path / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.12.0+cu128'\ndebug = False\n"
        "cuda: Optional[str] = '12.8'\ngit_version = 'abc'\nhip: Optional[str] = None\n"
    )
    spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", lambda name: spec)
    assert environment.torch_version() == {
        "version": "2.12.0+cu128",
        "git_version": "abc",
        "cuda": "12.8",
        "hip": None,
    }


def test_a_missing_torch_is_a_config_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install 'torch"):
        environment.torch_version()


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor: 0\nmodel name\t: A CPU\nflags\t\t: sse4 avx2 fma\n", ["avx2", "fma", "sse4"]),
        ("processor: 0\nFeatures\t: fp asimd\n", ["asimd", "fp"]),
        ("", []),
    ],
)
def test_cpu_flags_are_sorted_whatever_the_kernel_calls_them(monkeypatch, text, flags):
    monkeypatch.setattr(environment, "_cpuinfo", lambda: text)
    assert environment.cpu_flags() == flags
    assert environment.target("cpu")["flags"] == flags
    assert environment.cpu_name() == ("A CPU" if "A CPU" in text else platform.processor() or platform.machine())


def test_the_target_is_the_instruction_set_and_on_a_gpu_its_architecture(monkeypatch):
    monkeypatch.setattr(environment, "gpus", lambda: ["9.0", "8.6"])
    assert environment.target("cpu").keys() == {"machine", "system", "flags"}
    assert environment.target("cuda:1")["gpu"] == "8.6"
    assert environment.target("cuda:0") != environment.target("cuda:1")


def test_no_driver_means_no_gpus(monkeypatch):
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    assert environment.gpus() == []


def test_a_driver_that_does_not_start_means_no_gpus(monkeypatch):
    library = types.SimpleNamespace(nvmlInit_v2=lambda: 9)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: "libnvidia-ml.so.1")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert environment.gpus() == []


def devices(monkeypatch, capabilities, cuda="12.8"):
    monkeypatch.setattr(environment, "gpus", lambda: capabilities)
    monkeypatch.setattr(environment, "torch_version", lambda: {"version": "2", "cuda": cuda})


@pytest.mark.parametrize(
    ("capabilities", "cuda", "asked", "device"),
    [
        ([], None, "auto", "cpu"),
        ([], None, "cpu", "cpu"),
        (["9.0"], None, "auto", "cpu"),  # torch was built without CUDA
        (["9.0", "9.0"], "12.8", "auto", "cuda:0"),
        (["9.0", "9.0"], "12.8", "cpu", "cpu"),
        (["9.0", "9.0"], "12.8", "cuda", "cuda:0"),
        (["9.0", "9.0"], "12.8", "cuda:1", "cuda:1"),
    ],
)
def test_a_device_is_resolved_to_what_is_here(monkeypatch, capabilities, cuda, asked, device):
    devices(monkeypatch, capabilities, cuda)
    assert environment.resolve_device(asked) == device


@pytest.mark.parametrize(("capabilities", "asked"), [([], "cuda"), (["9.0"], "cuda:1"), (["9.0"], "tpu"), ([], "")])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(monkeypatch, capabilities, asked):
    devices(monkeypatch, capabilities)
    expected = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(len(capabilities)))])
    with pytest.raises(ConfigError) as caught:
        environment.resolve_device(asked)
    assert f"device={asked}" in caught.value.message
    assert caught.value.message.endswith(f"available: {expected}")


def test_the_cpp_compiler_is_the_environments_or_gpp(monkeypatch):
    monkeypatch.setenv("CXX", "/opt/clang++")
    assert environment.compiler() == "/opt/clang++"
    monkeypatch.delenv("CXX")
    assert environment.compiler() == "g++"
    assert "g++" not in str(environment.toolchain())


def test_a_record_names_machine_and_toolchain():
    found = environment.describe("cpu")
    assert found["device"] == "cpu"
    assert found["cores"] >= 1
    assert found["torch"] == environment.torch_version()["version"]
    assert found["python"] == platform.python_version()
    assert platform.node() not in map(str, found.values())


def test_a_distribution_that_is_not_installed_has_no_version():
    assert environment.installed("no-such-distribution-at-all") is None
    assert environment.installed("pytest") == pytest.__version__


def test_versions_are_those_of_importlib_metadata():
    names = {each.metadata["Name"] for each in importlib.metadata.distributions()}
    assert len(names) > 10
    assert {name: environment.installed(name) for name in names} == {
        name: importlib.metadata.version(name) for name in names
    }


def test_the_first_place_on_the_import_path_says_the_version(tmp_path, monkeypatch):
    (tmp_path / "numpy-1.26.4.dist-info").mkdir()
    (tmp_path / "Some.Thing-2.0.egg-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert environment.installed("numpy") == "1.26.4"
    assert environment.installed("some-thing") == "2.0"


def test_each_level_needs_all_that_the_one_before_needs():
    levels = [set(environment.flags_of(level)) for level in environment.LEVELS]
    assert levels[0] < levels[1] < levels[2]
    assert environment.LIMITS.keys() == environment.LEVELS.keys()


def test_a_level_that_this_processor_lacks_is_a_config_error(monkeypatch):
    monkeypatch.setattr(environment, "cpu_flags", lambda: ["sse2"])
    with pytest.raises(ConfigError, match=r"target=x86-64-v3: this processor lacks abm, avx"):
        environment.target("cpu", "x86-64-v3")


def test_code_for_another_gpu_is_refused_by_its_architecture(monkeypatch):
    monkeypatch.setattr(environment, "gpus", lambda: ["8.6"])
    here = {"machine": platform.machine(), "flags": []}
    assert environment.lacks({**here, "gpu": "8.6"}) is None
    assert "compute capability 9.0; here: 8.6" in environment.lacks({**here, "gpu": "9.0"})


def test_free_memory_is_what_the_container_leaves_with_what_the_kernel_would_drop(tmp_path):
    here = environment.free_memory(tmp_path)
    assert here > 0
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert environment.free_memory(tmp_path) == 300
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert environment.free_memory(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert environment.free_memory(tmp_path) > 450


def test_a_library_of_nvidia_that_lacks_its_functions_means_no_gpus_and_no_driver(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: types.SimpleNamespace())
    assert environment.gpus() == []
    assert environment.driver_version() is None
