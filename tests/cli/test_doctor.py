"""The doctor: every rung and finding has a row, every "no" says what to do, and no odd machine raises."""

from __future__ import annotations

import json
import os

import pytest

from app import doctor, environment, findings
from app.config import RUNGS


@pytest.fixture
def examine(context_of, tmp_path):
    """The rows by name; the cache is a new one unless an argument says otherwise."""

    def run(*args):
        cache = (
            [] if any(arg.startswith(("cache=", "cache.dir=")) for arg in args) else [f"cache.dir={tmp_path}/store"]
        )
        rows = doctor.examine(context_of(["task=doctor", *cache, *args]))
        for row in rows:
            assert row["found"], row
            assert row["ok"] or row["advice"], row
        assert json.loads(json.dumps(rows, allow_nan=False)) == rows
        return {row["name"]: row for row in rows}

    return run


def oks(rows):
    """Of the rungs that need nothing but torch and a machine."""
    return [rows[f"rung {rung}"]["ok"] for rung in RUNGS if rung != "openvino"]


def test_a_machine_with_a_compiler_and_no_gpu_has_all_rungs_but_graphs(examine, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "gpus", list)
    rows = examine()
    assert oks(rows) == [False, True, True, True]
    assert list(rows) == [*(f"rung {rung}" for rung in RUNGS), *findings.CHECKS]
    assert "GPU: none" in rows["rung cudagraph"]["found"]
    assert "NVIDIA" in rows["GPU"]["advice"]
    assert environment.torch_version()["version"] in rows["torch"]["found"]
    assert not (tmp_path / "store").exists()  # it looks, and makes nothing


@pytest.mark.parametrize(
    ("version", "found"), [("2026.4.1", "all that it needs"), (None, "openvino is not installed")]
)
def test_openvino_serves_where_it_is_installed_and_needs_no_compiler(examine, monkeypatch, version, found):
    monkeypatch.setattr(environment, "installed", lambda _: version)
    monkeypatch.setenv("CXX", "/nonexistent")
    row = examine()["rung openvino"]
    assert row["ok"] == (version is not None)
    assert found in row["found"]
    assert version or "pip install 'aot-app[openvino]'" in row["advice"]


@pytest.mark.parametrize("compiler", ["/nonexistent", "'unbalanced", "true", "false"])
def test_without_a_compiler_what_is_in_the_cache_is_all_there_is(examine, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)  # `true` runs, and compiles nothing
    rows = examine()
    assert oks(rows) == [False, False, False, True]
    assert rows["rung compiled"]["found"].startswith("only what is in the cache: compiler: ")
    assert rows["rung compiled"]["advice"] == rows["compiler"]["advice"]


def test_a_compiler_that_fails_is_quoted(examine, monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo broken 1.0 && exit\necho 'fatal error: no vector' >&2\nexit 3\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    found = examine()["compiler"]
    assert (found["ok"], "broken 1.0" in found["found"], "no vector" in found["found"]) == (False, True, True)
    assert "g++" in found["advice"]


def test_a_cache_that_others_can_write_is_told_with_the_command_that_mends_it(examine, tmp_path):
    store = tmp_path / "open"
    store.mkdir()
    store.chmod(0o777)
    rows = examine(f"cache.dir={store}")
    assert rows["cache privacy"]["advice"].startswith(f"chmod go-w {store}")
    assert oks(rows) == [False, False, False, True]
    assert examine(f"cache.dir={store}", "cache.trust=none")["rung compiled"]["ok"]


def test_a_cache_below_a_file_or_on_a_read_only_disk_is_told(examine, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    rows = examine(f"cache.dir={tmp_path}/file/store")
    assert (rows["cache folder"]["ok"], rows["rung compiled"]["ok"], rows["rung eager"]["ok"]) == (False, False, True)

    def refuse(dir):  # noqa: A002 - as tempfile names it
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(findings.tempfile, "TemporaryFile", refuse)
    rows = examine()
    assert "Read-only file system" in rows["cache folder"]["found"]
    assert "cache=readonly" in rows["cache folder"]["advice"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes wherever it likes")
def test_a_folder_without_write_permission_is_told(examine, tmp_path):
    (tmp_path / "mine").mkdir(mode=0o500)
    assert not examine(f"cache.dir={tmp_path}/mine")["cache folder"]["ok"]


def test_a_read_only_cache_must_be_there(examine, tmp_path):
    assert not examine("cache.readonly=true")["cache folder"]["ok"]
    (tmp_path / "store").mkdir(mode=0o700)
    assert examine("cache.readonly=true")["cache folder"]["ok"]


def test_a_cache_beyond_its_limit_and_a_full_disk_are_told(examine, tmp_path, monkeypatch):
    (tmp_path / "store" / "objects").mkdir(parents=True, mode=0o700)
    (tmp_path / "store" / "objects" / "file").write_bytes(b"x" * 2000)
    assert examine("cache.size_limit=2 kB")["cache size"]["ok"]
    assert "cache.prune" in examine("cache.size_limit=1 kB")["cache size"]["advice"]
    monkeypatch.setattr(findings, "ENOUGH_DISK", 1 << 80)
    assert not examine()["cache size"]["ok"]


def test_a_file_system_without_execution_serves_nothing_compiled(examine, monkeypatch):
    class Flags:
        f_flag = os.ST_NOEXEC

    monkeypatch.setattr(findings.os, "statvfs", lambda _: Flags)
    assert oks(examine()) == [False, False, False, True]


def test_without_a_cache_there_is_nothing_to_find_fault_with(examine):
    rows = examine("cache=off")
    assert oks(rows) == [False, True, True, True]
    assert "cache.dir=null" in rows["cache folder"]["found"]


def test_trust_without_a_key_and_jit_with_strangers_are_told(examine, tmp_path):
    rows = examine("cache.trust=signed")
    assert "no key is trusted" in rows["trust"]["found"]
    assert "cache.keys" in rows["trust"]["advice"]
    rows = examine("cache.trust=signed", f"cache.signing_key={tmp_path}/none.pem")
    assert "task=cache.keygen" in rows["trust"]["advice"]
    rows = examine("cache.trust=signed", f"cache.keys=[{'ab' * 32}]")
    assert oks(rows) == [False, True, False, True]


def test_a_rung_that_is_switched_off_says_how_to_have_it(examine):
    rows = examine("fallback.rungs=[compiled,eager]")
    assert (rows["rung jit"]["found"], rows["rung jit"]["advice"]) == (
        "switched off",
        "fallback.rungs=[jit,compiled,eager]",
    )


def test_a_gpu_with_a_torch_for_the_cpu_asks_for_another_torch(examine, monkeypatch):
    monkeypatch.setattr(environment, "gpus", lambda: ["9.0"])
    monkeypatch.setattr(environment, "driver_version", lambda: "570.1")
    monkeypatch.setattr(environment, "torch_version", lambda: {"version": "2.13.0", "cuda": None})
    rows = examine("device=cpu")
    assert (rows["GPU"]["ok"], rows["driver"]["found"], rows["torch CUDA"]["ok"]) == (True, "NVIDIA 570.1", False)
    assert "CUDA build" in rows["rung cudagraph"]["advice"]


def test_little_memory_and_a_processor_of_another_kind_are_told(examine, monkeypatch):
    monkeypatch.setattr(environment, "free_memory", lambda: 1000)
    monkeypatch.setattr(environment, "cpu_flags", list)
    rows = examine("target=x86-64-v4")
    assert (rows["memory"]["ok"], rows["ISA"]["ok"], rows["target"]["ok"]) == (False, False, False)
    assert oks(rows) == [False, False, True, True]
    monkeypatch.setattr(environment, "free_memory", lambda: None)
    assert examine()["memory"]["ok"]


@pytest.mark.parametrize(
    ("version", "ok"),
    [("2.11.0", True), ("2.13.1+cu128", True), ("2.10.2", False), ("2.14.0a0", False), ("odd", False)],
)
def test_a_torch_outside_of_the_known_range_is_told(examine, monkeypatch, version, ok):
    import torch

    monkeypatch.setattr(torch, "__version__", version)
    assert examine()["torch"]["ok"] == ok


def test_a_torch_without_the_private_loaders_serves_nothing_compiled(examine, monkeypatch):
    import torch._C._aoti as bindings

    monkeypatch.delattr(bindings, "AOTIModelContainerRunnerCpu")
    rows = examine()
    assert oks(rows) == [False, False, True, True]
    assert "AOTIModelContainerRunnerCpu" in rows["loaders"]["found"]


def test_whatever_a_check_raises_is_what_was_found(examine, monkeypatch):
    def raises(_):
        raise RuntimeError("an odd machine")

    monkeypatch.setattr(doctor, "CHECKS", dict.fromkeys(findings.CHECKS, raises))
    rows = examine()
    assert oks(rows) == [False] * 4
    assert rows["rung eager"]["found"] == "torch: RuntimeError: an odd machine"
