"""A direct hit needs no compiler of any kind: proven in a process where all of them raise."""

from __future__ import annotations

import pytest

MODELS = [pytest.param("cnn", marks=pytest.mark.smoke), "linear", "transformer", "minilm"]

WITHOUT_COMPILERS = """
import importlib.abc, sys

class Forbidden(BaseException):
    pass

def asked_by_transformers():
    # importing it for eager's side imports Dynamo, hit or not: the only importer that may
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] == "transformers":
            return True
        frame = frame.f_back
    return False

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[:2] in (["torch", "_inductor"], ["torch", "_dynamo"]) and not asked_by_transformers():
            raise Forbidden(f"a direct hit imports {name}")

def no_processes(event, args):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn"):
        raise Forbidden(f"a direct hit runs {args[:2]}")

def refuse(*args, **kwargs):
    raise Forbidden("a direct hit exports")

sys.meta_path.insert(0, Blocker())
sys.addaudithook(no_processes)
import torch
import torch.export
torch.export.export = torch.compile = refuse
from app.cli import main
main()
"""
NO_COMPILER = {"PATH": "", "CXX": "/nonexistent", "CC": "/nonexistent"}


@pytest.mark.parametrize("model", MODELS)
def test_direct_hit_imports_no_inductor_exports_nothing_and_runs_no_process(
    run_app, hit_args, record_property, model
):
    run = run_app(hit_args(model), env=NO_COMPILER, program=("-c", WITHOUT_COMPILERS))
    assert run.code == 0, run.stderr
    assert (run.record["cache"]["outcome"], run.record["rung"]) == ("direct-hit", "compiled")
    assert run.record["fallbacks"] == []
    assert run.record["verify"]["passed"]
    record_property("load_ms", 1000 * run.record["phases_s"]["load"])


def test_the_same_process_can_not_compile(run_app, fresh_store):
    run = run_app(["model=linear", f"cache.dir={fresh_store}"], env=NO_COMPILER, program=("-c", WITHOUT_COMPILERS))
    assert run.code != 0
    assert "a direct hit runs" in run.stderr
