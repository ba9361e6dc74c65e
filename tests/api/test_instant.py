"""app.instant: the same artifact, the same answers and the same refusals, in a process without Python's torch."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

import app
from app import instant
from app.errors import ConfigError, InputError, LoadError, MissError, VerifyError
from app.instant import main
from app.runtime.model import CompiledModel

# What a start must not wait for.
HEAVY = ("torch", "hydra", "omegaconf", "rich", "yaml", "pandas", "scipy", "matplotlib", "cryptography", "fsspec")


class Tagger(nn.Module):
    """Two inputs, one of them indices and one in bfloat16; a dict of outputs, one of them an input given back."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 4)

    def forward(self, tokens, *, mask):
        found = self.head(self.table(tokens)).relu()
        return {"scores": found, "both": (found.sum(1) * 2, mask * 2), "given": mask, "none": None, "number": 3}


@pytest.fixture(scope="module")
def cache(compiled, store_dir):
    """The session's store, which knows the compiler and holds the linear model."""
    compiled("linear")
    return f"cache.dir={store_dir}"


@pytest.fixture(scope="module")
def tagger(cache):
    """A live module that is kept under a name, with an input of each kind."""
    torch.manual_seed(0)
    inputs = {"tokens": torch.randint(0, 50, (3, 7)), "mask": torch.ones(3, 7, dtype=torch.bfloat16)}
    dynamic = {name: {0: "batch", 1: "seq"} for name in inputs}
    with app.session(cache, "runtime.num_runners=4"):
        model = app.compile_model(Tagger(), inputs, dynamic=dynamic)
    model.name("instant-tagger")
    return model


def fresh(program, *arguments):
    """The lines that a new process prints; it has no torch, or says so."""
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.smoke
def test_a_process_without_torch_gives_the_bits_of_app_load(cache, tmp_path):
    value = np.random.default_rng(0).standard_normal((5, 768), dtype="f4")
    np.save(tmp_path / "x.npy", value)
    program = f"""if True:
        import sys
        import numpy as np
        from app import instant
        model = instant.load("model=linear", "mode=default", sys.argv[1])
        np.save(sys.argv[2] + "/y.npy", model(np.load(sys.argv[2] + "/x.npy")))
        print([name for name in {HEAVY} if name in sys.modules])
        print(model.info["cache"]["outcome"], model.info["verify"]["passed"], model.stats()["calls"])
        from app import performance_monitor
        print(performance_monitor.get_metrics("inference/compiled")["call_count"])
    """
    warm_up = instant.load("model=linear", "mode=default", cache)  # composed, which needs Hydra
    assert fresh(program, cache, tmp_path) == ["[]", "direct-hit True {'compiled': 1}", "1"]
    with app.session(cache):
        expected = app.load("model=linear", "mode=default")(torch.from_numpy(value)).detach().numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)
    np.testing.assert_array_equal(warm_up(value), expected)


def test_every_kind_of_input_and_output_is_as_torch_has_it(cache, tagger):
    model = instant.load("instant-tagger", cache)
    tokens, mask = torch.randint(0, 50, (5, 9)), torch.rand(5, 9).bfloat16()
    expected = tagger(tokens, mask=mask)
    bits = mask.view(torch.uint16).numpy()
    found = model(tokens.numpy(), mask=bits)
    np.testing.assert_array_equal(found["scores"], expected["scores"].numpy())
    np.testing.assert_array_equal(found["both"][0], expected["both"][0].numpy())
    np.testing.assert_array_equal(found["both"][1], expected["both"][1].view(torch.uint16).numpy())
    np.testing.assert_array_equal(found["given"], bits)
    assert not np.shares_memory(found["given"], bits)
    assert (found["none"], found["number"]) == (None, 3)
    with pytest.raises(InputError, match="'tokens' holds 50"):
        model(np.full((2, 3), 50), mask=np.zeros((2, 3), "u2"))
    with pytest.raises(InputError, match="missing input 'mask'"):
        model(tokens.numpy())


def test_threads_call_it_at_once_and_get_their_own_answers(cache, tagger):
    model, wrong = instant.load("instant-tagger", cache), []

    def work(seed):
        draw = np.random.default_rng(seed)
        for _ in range(40):
            tokens = draw.integers(0, 50, (seed + 1, 4))
            mask = np.full((seed + 1, 4), 0x3F80, "u2")
            scores = model(tokens, mask=mask)["scores"]
            if not np.array_equal(scores, model(tokens, mask=mask)["scores"]) or len(scores) != seed + 1:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert model.stats()["calls"] == {"compiled": 640}


def test_it_pads_and_splits_by_the_plan_that_is_kept(cache, run_app, hit_args, monkeypatch):
    run = run_app([*hit_args("linear"), "cache.alias=instant-planned", "graphs.batch_sizes=[1,4]"])
    assert run.code == 0, run.stderr
    used = []
    monkeypatch.setattr(
        CompiledModel, "use", lambda self, known, use=CompiledModel.use: (used.append(known), use(self, known))
    )
    model = instant.load("instant-planned", cache)
    value = np.random.default_rng(0).standard_normal((11, 768), dtype="f4")
    with app.session(cache):
        torch_model = app.load("instant-planned")
    np.testing.assert_array_equal(model(value), torch_model(torch.from_numpy(value)).numpy())
    assert len(used) == 2
    assert used[0] == used[1]


def test_external_weights_are_mapped(hit_args):
    model = instant.load(*hit_args("external"))
    torch_model = app.load(*hit_args("external"))  # it runs by the same kept plan: another may change the last bits
    tokens = torch.randint(0, 1000, (3, 32))
    np.testing.assert_array_equal(model(tokens.numpy()), torch_model(tokens).numpy())


# Refusals


def test_what_is_not_stored_is_a_miss_that_compiles_nothing(tmp_path):
    with pytest.raises(MissError, match="the cache is empty; compile it first"):
        instant.load("model=linear", f"cache.dir={tmp_path / 'empty'}")
    with pytest.raises(ConfigError, match="no alias 'nobody'"):
        instant.load("nobody", f"cache.dir={tmp_path / 'empty'}")
    with pytest.raises(ConfigError, match=r"cache\.dir is null"):
        instant.load("model=linear", "cache=off")


@pytest.mark.parametrize("override", ["mode=auto", "precision=auto", "mode=eager", "numerics.deterministic=true"])
def test_what_needs_torch_says_so(tmp_path, override):
    with pytest.raises(ConfigError, match="can't be loaded without torch"):
        instant.load("model=linear", override, f"cache.dir={tmp_path}")


def test_a_damaged_library_is_never_loaded(copied_store):
    root = copied_store("linear")
    (library,) = root.glob("objects/*/*/model.so")
    library.chmod(0o600)
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)
    with pytest.raises(MissError):
        instant.load("model=linear", "mode=default", f"cache.dir={root}")


def test_batch_sizes_that_nobody_verified_are_refused(cache, hit_args):
    with pytest.raises(VerifyError, match="nobody has verified batch sizes 19, 37"):
        instant.load(*hit_args("linear"), "graphs.batch_sizes=[1,37]")
    with pytest.raises(VerifyError, match="relative L2 error"):
        instant.load(*hit_args("transformer"), "precision.floor=1e-12", "verify.multiple=1")


def test_an_unloaded_model_says_so(cache):
    model = instant.load("model=linear", "mode=default", cache)
    model.unload()
    with pytest.raises(InputError, match="unloaded"):
        model(np.zeros((1, 768), "f4"))


def test_without_torch_installed_the_error_says_what_to_install(monkeypatch):
    from app.runtime import arrays

    monkeypatch.setattr(arrays.importlib.machinery.PathFinder, "find_spec", lambda _: None)
    with pytest.raises(LoadError, match="pip install"):
        arrays.libtorch.__wrapped__()


# The command


def test_the_command_answers_files(cache, tmp_path, capsys):
    value = np.random.default_rng(0).standard_normal((2, 768), dtype="f4")
    np.save(tmp_path / "x.npy", value)
    words = ["model=linear", "mode=default", cache]
    assert main([*words, str(tmp_path / "x.npy"), "--out", str(tmp_path / "y.npy")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("output float32 [2, 5]\n")
    assert "answered in" in said.err
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), instant.load(*words)(value))
    assert main([*words, f"input={tmp_path}/x.npy", "--out", str(tmp_path / "y.npz")]) == 0
    assert list(np.load(tmp_path / "y.npz")) == ["output"]


def test_the_command_exits_as_the_other_one_does(cache, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((2, 7), "f4"))
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    words = ["model=linear", "mode=default", cache]
    for arguments, code, why in (
        ([*words, "x.npy"], 1, "the size 7 in dimension 1"),
        ([*words, "text.npy"], 1, "can't be read as a .npy file: the magic string is not correct"),
        ([*words, "object.npy"], 1, "can't be read"),
        ([*words, "nope.npy"], 1, "can't be read"),
        (["nobody", cache, "x.npy"], 2, "no alias 'nobody'"),
        (["model=linear", f"cache.dir={tmp_path / 'empty'}", "x.npy"], 9, "the cache is empty"),
    ):
        places = [str(tmp_path / word) if word.endswith(".npy") else word for word in arguments]
        assert main(places) == code
        said = capsys.readouterr()
        assert why in said.err
        assert said.out == ""


def test_importing_torch_afterwards_changes_nothing(cache):
    program = """if True:
        import sys
        import numpy as np
        from app import instant
        model = instant.load("model=linear", "mode=default", sys.argv[1])
        value = np.ones((2, 768), "f4")
        before = model(value)
        import torch
        print(np.array_equal(before, model(value)), float(torch.ones(2).sum()))
    """
    instant.load("model=linear", "mode=default", cache)
    assert fresh(program, cache) == ["True 2.0"]
