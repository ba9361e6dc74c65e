"""The library: load and compile_model give a model that stands in for its module, and a second process starts warm."""

from __future__ import annotations

import inspect
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import app
from app import api
from app.errors import ConfigError, InputError, MissError
from app.files import SETTLED_NS
from app.workloads import at_precision

WAYS = ["model=linear", "mode=default"]


class Tagger(nn.Module):
    """Looks tokens up, and gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head, self.labels = nn.Embedding(50, 16), nn.Linear(16, 4), ("a", "b")

    def forward(self, tokens, mask=None):
        found = self.head(self.table(tokens)).relu()
        if mask is not None:
            found = found * mask.unsqueeze(-1)
        return {"scores": found, "total": found.sum(1)}


def tagger():
    torch.manual_seed(0)
    return Tagger()


def call(rows=5, width=9):
    torch.manual_seed(rows)
    return torch.randint(0, 50, (rows, width)), torch.ones(rows, width)


DYNAMIC = {name: {0: "batch", 1: "seq"} for name in ("tokens", "mask")}


def compile_tagger(module=None, *overrides, **options):
    return app.compile_model(module or tagger(), call(3, 7), *overrides, dynamic=DYNAMIC, **options)


@pytest.fixture(scope="module")
def store(compiled, store_dir):
    """The session's store, for it knows the compiler already."""
    compiled("linear")
    return {"cache": {"dir": str(store_dir)}}


@pytest.fixture(autouse=True)
def session(request):
    if "store" in request.fixturenames:
        with app.session(**request.getfixturevalue("store")):
            yield
    else:
        yield


@pytest.fixture(scope="module")
def first(store):
    with app.session(**store):
        return compile_tagger()


# Importing


def test_importing_app_imports_no_torch():
    program = (
        "import sys, app; print([n for n in ('torch', 'hydra', 'numpy', 'rich') if n in sys.modules], dir(app)[:0])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[] []"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        app.nope  # noqa: B018


# load


@pytest.mark.smoke
def test_load_answers_as_eager_does_and_says_where_it_came_from(store, loaded, assert_same):
    model = app.load(*WAYS)
    value = torch.randn(3, 768)
    with torch.inference_mode():
        assert_same(model(value), loaded("linear").eager(value))
    assert model.info["cache"]["outcome"] == "direct-hit"
    assert (model.info["rung"], model.info["rungs"]["4"], model.info["fallbacks"]) == ("compiled", "compiled", [])
    assert model.stats()["calls"] == {"compiled": 1}
    assert model.ready()
    json.dumps([model.info, model.stats()])


def test_a_known_request_is_loaded_without_composing(store, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    app.load(*WAYS)
    monkeypatch.setattr("app.compose.compose", None)
    assert app.load(*WAYS).info["rung"] == "compiled"


def test_an_alias_is_loaded_by_its_name_alone(store, run_app, hit_args):
    assert run_app([*hit_args("linear"), "cache.alias=api-scorer", "task=compile"]).code == 0
    assert app.load("api-scorer").info["cache"]["outcome"] == "direct-hit"
    with pytest.raises(ConfigError, match="no alias 'api-nobody'"):
        app.load("api-nobody")


def test_what_does_not_compose_is_a_config_error():
    with pytest.raises(ConfigError, match="nope"):
        app.load("model=nope")


def test_a_miss_that_may_not_compile_is_served_by_eager_or_raised(tmp_path):
    with app.session(cache={"dir": str(tmp_path / "store"), "on_miss": "eager"}):
        model = app.load("model=linear")
        assert model(torch.zeros(2, 768)).shape == (2, 5)
        assert [step["to"] for step in model.info["fallbacks"]] == ["eager"]
    with app.session(cache={"dir": str(tmp_path / "store"), "on_miss": "fail"}), pytest.raises(MissError):
        app.load("model=linear")


def test_sessions_nest_and_end(tmp_path):
    with app.session("mode=eager", cache="off"):
        with app.session(graphs={"batch_sizes": [1, 3]}):
            assert set(app.load("model=linear").info["rungs"]) == {"1", "3"}
        assert set(app.load("model=linear").info["rungs"]) == {"1", "2", "4", "8"}
    assert api._DEFAULTS.get() == ()


@pytest.mark.parametrize(
    "text", ["plain", "with space", "a=b,c", "quote\"s'", "/a/b.c", "ümlaut", "back\\slash", "end\\", "mid\\'dle"]
)
def test_values_of_a_session_arrive_as_they_are(text):
    with app.session(cache={"dir": text}):
        assert api.settings_of(api._DEFAULTS.get()).cache.dir == text


STARTED = """if True:
    import sys
    did = []
    WATCHED = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn")
    def hook(event, args):
        if event in WATCHED or (event == "open" and str(args[0]).endswith(("model.so", ".pt2"))):
            did.append((event, str(args[0])))
    import app
    sys.addaudithook(hook)
    with app.session(sys.argv[1]):
        model = app.load("model=linear", "mode=default")
    print(did)
    print(sorted({name for name in sys.modules if name.partition(".")[0] in {"hydra", "omegaconf", "rich", "fsspec"}}))
    print([name for name in sys.modules if name.startswith(("torch._inductor", "torch._dynamo"))])
    print([name for name in sys.modules if name in {"app.choose", "app.compiler", "app.evaluate", "app.pipeline"}])
"""


def test_a_warm_load_starts_hashes_and_imports_nothing_that_it_does_not_need(store):
    """What a start costs is what it imports: a module that comes in here is paid by every process."""
    app.load("model=linear", "mode=default")
    time.sleep(SETTLED_NS / 1e9)  # bytes that are younger are hashed, whatever their stat tuple says
    command = [sys.executable, "-W", "ignore", "-c", STARTED, f"cache.dir={store['cache']['dir']}"]
    subprocess.run(command, check=True, capture_output=True)  # remembers what is no longer young
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == ["[]", "[]", "[]", "[]"]


# compile_model


@pytest.mark.smoke
def test_a_live_module_is_compiled_and_answers_as_it_does_at_other_sizes(first, assert_same):
    module = tagger().eval()
    for rows, width in ((1, 1), (5, 9), (20, 3)):
        tokens, mask = call(rows, width)
        with torch.inference_mode():
            assert_same(first(tokens, mask), module(tokens, mask))
            assert_same(first(tokens=tokens, mask=mask), module(tokens, mask))
    assert first.info["rung"] == "compiled"
    assert first.stats()["failures"] == {}


@pytest.mark.smoke
def test_the_second_time_it_is_a_direct_hit_that_neither_exports_nor_composes(first, store, monkeypatch):
    monkeypatch.setattr(torch.export, "export", None)
    assert compile_tagger().info["cache"]["outcome"] == "direct-hit"


def test_another_process_starts_warm(first, store, tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import app, test_api as t\n"
        f"with app.session(cache={store['cache']!r}): m = t.compile_tagger()\n"
        "print(m.info['cache']['outcome'], sorted(n for n in sys.modules if n.startswith('torch._inductor'))[:1])"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(Path(__file__).parent)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # the first may see another torch than this process, in which other tests have run: then the program is found
    said = [
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=env).stdout.split()
        for _ in range(2)
    ]
    assert said[0][0] in {"direct-hit", "graph-hit"}
    assert said[1] == ["direct-hit", "[]"]


@pytest.mark.smoke
def test_other_weights_never_share_an_artifact(first, store):
    module = tagger()
    with torch.no_grad():
        module.head.weight.mul_(-1)
    with pytest.raises(MissError, match="fingerprint"):
        compile_tagger(module, "cache.on_miss=fail")


def test_a_module_without_a_digest_is_found_by_its_program(first, store):
    module = tagger()
    module.head.register_forward_hook(lambda _, __, out: out)  # it changes nothing: the program is the same
    model = compile_tagger(module)
    assert model.info["cache"]["outcome"] == "graph-hit"
    assert model.info["cache"]["miss_reasons"] == ["the module has no digest: Tagger.head has hooks"]
    assert model.info["key"]["object"] == first.info["key"]["object"]
    module.head.register_forward_hook(lambda _, __, out: out + 1)
    assert compile_tagger(module).info["key"]["object"] != first.info["key"]["object"]


class Normed(nn.Module):
    """Computes in a dtype of its own and goes back to its input's, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.rand(16)), nn.Linear(16, 4)

    def forward(self, x):
        wide = x.to(torch.float32)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.head(self.scale * normed.to(x.dtype))


@pytest.mark.parametrize("weights", ["frozen", "external"])
def test_a_live_module_is_traced_at_the_precision_that_it_runs_at(store, assert_same, weights):
    torch.manual_seed(0)
    module, value = Normed(), torch.randn(5, 16)
    model = app.compile_model(module, torch.randn(3, 16), f"weights={weights}", precision="bf16")
    assert (model.info["rung"], model.info["fallbacks"]) == ("compiled", [])
    with torch.inference_mode():
        half = at_precision(module, "bf16")
        assert_same(model(value), half(value), rtol=1e-2, atol=1e-2)
        if weights == "external":
            model.load_state_dict({**half.module.state_dict(), "head.bias": half.module.head.bias + 1})
            assert_same(model(value), half(value) + 1, rtol=1e-2, atol=1e-2)
    if weights == "external":
        other = app.compile_model(Normed(), torch.randn(3, 16), f"weights={weights}", precision="bf16")
        assert other.info["key"]["object"] == model.info["key"]["object"]


class Tabled(nn.Module):
    """Holds a plain tensor, which a cast doesn't reach: traced in bf16 it fails, traced in fp32 and then cast not."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.table = nn.Linear(16, 4), torch.ones(4, 4)

    def forward(self, x):
        return self.head(x) @ self.table


def test_what_cannot_be_traced_at_a_precision_is_cast_as_a_program(store, assert_same):
    torch.manual_seed(0)
    module, value = Tabled().eval(), torch.randn(5, 16)
    model = app.compile_model(module, torch.randn(3, 16), precision="bf16")
    assert model.info["rung"] == "compiled"
    with torch.inference_mode():
        assert_same(model(value), module(value), rtol=5e-2, atol=5e-2)
    again = app.compile_model(module, torch.randn(3, 16), precision="bf16")
    assert again.info["cache"]["outcome"] == "direct-hit"


def test_the_weights_placement_of_a_live_module_is_chosen_by_what_was_measured(store, assert_same):
    module = tagger().eval()
    model = compile_tagger(module, "weights=auto")
    choice = model.info["weights_choice"]
    assert choice["kept"] in {"frozen", "external"}
    with torch.inference_mode():
        assert_same(model(*call()), module(*call()))
    assert compile_tagger(module, "weights=auto").info["cache"]["outcome"] == "direct-hit"


def test_it_stands_in_for_its_module(first):
    assert first.labels == ("a", "b")
    assert list(inspect.signature(first).parameters) == ["tokens", "mask"]
    assert first.eval() is first
    assert first.train(False) is first
    assert not first.training
    assert set(first.state_dict()) == {"table.weight", "head.weight", "head.bias"}
    with pytest.raises(InputError, match="can't be trained"):
        first.train()
    with pytest.raises(InputError, match="stays on its device"):
        first.to("cpu")
    with pytest.raises(InputError, match="weights=external"):
        first.load_state_dict(tagger().state_dict())
    with pytest.raises(AttributeError):
        first.nothing_of_that_name  # noqa: B018
    assert "rung compiled" in repr(first)


def test_it_is_used_in_threads_and_in_inference_mode(first, hammer):
    values = [call(rows)[0] for rows in range(1, 9)]
    mask = {value.shape[0]: torch.ones(value.shape) for value in values}

    def total(value):
        with torch.inference_mode():
            return first(value, mask[value.shape[0]])["total"]

    hammer(total, values, 1.0)


@pytest.mark.timeout(900)
def test_several_are_compiled_in_threads_at_once(store, capfd):
    def compiled_of(width):
        with app.session(**store):
            return app.compile_model(nn.Sequential(nn.Linear(width, 3), nn.ReLU()), torch.randn(4, width))

    errors = sys.stderr
    with ThreadPoolExecutor(2) as pool:
        models = dict(zip(widths := (5, 6), pool.map(compiled_of, widths), strict=True))
    assert sys.stderr is errors
    assert "alone" not in capfd.readouterr().err
    for width, model in models.items():
        assert (model.info["rung"], model.info["fallbacks"]) == ("compiled", [])
        assert model(torch.randn(9, width)).shape == (9, 3)


def test_it_travels_to_another_process_and_is_loaded_there(first, assert_same):
    again = pickle.loads(pickle.dumps(first))  # noqa: S301 - made right here
    assert again.info["cache"]["outcome"] == "direct-hit"
    assert_same(again(*call()), first(*call()))


def served(model, value, answers):
    torch.set_num_threads(1)  # as DataLoader's workers have it
    answers.put(model(*value)["total"].numpy())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking a process that has threads
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_answers_in_a_worker_process(first, method):
    value = call()
    expected = first(*value)["total"]
    processes = multiprocessing.get_context(method)
    answers = processes.Queue()
    worker = processes.Process(target=served, args=(first, value, answers))
    worker.start()
    try:
        torch.testing.assert_close(torch.from_numpy(answers.get(timeout=100)), expected)
    finally:
        worker.kill()
        worker.join()


@pytest.mark.smoke
def test_what_only_the_compiled_form_refuses_is_answered_by_eager(store, assert_same, caplog):
    model, module = compile_tagger(), tagger().eval()
    tokens = call()[0]
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        assert_same(model(tokens), module(tokens))  # the mask wasn't among the examples
    assert "fallback compiled -> eager at call" in caplog.text
    with pytest.raises(IndexError):
        model(torch.full((2, 3), 50))  # the model's own exception
    assert model.stats()["calls"] == {"eager": 2}


def test_shadowing_compares_a_share_of_the_calls_and_says_what_differs(store, caplog):
    model = compile_tagger(shadow=0.5)
    for _ in range(10):
        model(*call())
    assert model.stats()["shadow"]["calls"] == 5
    assert model.stats()["shadow"]["disagreements"] == 0
    with torch.no_grad():
        model.module.head.bias.add_(1)  # eager is another model now
    with caplog.at_level(logging.WARNING):
        model(*call())
        model(*call())
    assert model.stats()["shadow"]["disagreements"] == 1
    assert "shadow: Tagger disagrees with eager: relative distance" in caplog.text


def test_it_can_be_switched_off_and_unloaded(store, assert_same):
    model = compile_tagger(enabled=False)
    answer = model(*call())
    assert model.stats()["calls"] == {}
    model.enabled = True
    assert_same(model(*call()), answer)
    assert model.stats()["calls"] == {"compiled": 1}
    model.unload()
    with pytest.raises(InputError, match="unloaded"):
        model(*call())


def test_a_named_live_module_is_loaded_where_the_module_is_not(store, assert_same):
    model = compile_tagger(None, "cache.alias=live-one")
    there = app.load("live-one")
    tokens, mask = call()
    assert_same(there(tokens, mask), model(tokens, mask))
    with pytest.raises(InputError, match="float64"):
        there(tokens, mask.double())


class Branches(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


def test_what_does_not_export_is_served_by_the_module_itself_and_is_one_line(tmp_path, capfd, caplog):
    with app.session(cache={"dir": str(tmp_path / "store")}):
        model = app.compile_model(Branches(), torch.ones(2, 3), "fallback.rungs=[compiled,eager]")
    assert "sum_1" not in capfd.readouterr().err  # torch prints its graph, which the log has instead
    said = next(text for text in caplog.messages if text.startswith("fallback"))
    assert "sum_1" in Path(said.partition("all of it: ")[2].rstrip(")")).read_text()
    assert caplog.text.count("fallback compiled -> eager at export") == 1
    assert torch.equal(model(-torch.ones(2, 3)), -torch.ones(2, 3) - 1)
    assert [(step["stage"], step["to"]) for step in model.info["fallbacks"]] == [("export", "eager")]


def test_strict_raises_what_graceful_serves(tmp_path):
    from app.errors import ExportError

    with app.session(cache={"dir": str(tmp_path / "store")}, fallback="strict"), pytest.raises(ExportError):
        app.compile_model(Branches(), torch.ones(2, 3))


class Fixed(nn.Module):
    def forward(self, x):
        assert x.shape[0] == 4, "a batch of four"
        return x * 2


def test_a_module_of_one_batch_size_is_compiled_for_that(store, caplog):
    with caplog.at_level(logging.WARNING):
        model = app.compile_model(Fixed(), torch.ones(4, 3))
    assert model.info["rung"] == "compiled"
    assert "compiled for the examples' sizes alone" in caplog.text
    assert "fallback" not in caplog.text
    assert torch.equal(model(torch.ones(4, 3)), torch.full((4, 3), 2.0))


def test_a_shadow_that_fails_costs_no_call_and_is_counted_and_said(tmp_path, monkeypatch):
    with app.session("mode=eager", cache={"dir": str(tmp_path)}):
        model = app.load("model=linear", shadow=1.0)

    def fails(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(model, "_eager", fails)
    for _ in range(3):
        assert model(torch.zeros(2, 768)).shape == (2, 5)
    assert (model.stats()["shadow"]["failed"], model.stats()["shadow"]["calls"]) == (3, 0)
    assert model.info["warnings"] == ["shadow: eager can't be compared: RuntimeError: no memory"]


def test_background_is_refused_for_a_module_that_could_not_be_found_again(tmp_path):
    module = Branches()
    module.lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"can be found again, and .*Branches\.lock is a lock"):
        app.compile_model(module, torch.ones(2), "cache.on_miss=background", f"cache.dir={tmp_path}")


@pytest.mark.slow
def test_a_live_module_is_served_by_eager_until_another_process_has_compiled_it(tmp_path):
    module, x = nn.Linear(3, 2), torch.ones(4, 3)
    model = app.compile_model(module, x, "cache.on_miss=background", f"cache.dir={tmp_path}")
    assert (model.info["rung"], model.ready()) == ("eager", False)
    assert torch.equal(model(x), module(x))
    assert model.ready(timeout_s=300)
    assert model.info["rung"] == "compiled"
    assert torch.allclose(model(x[:1]), module(x[:1]))
    again = app.compile_model(module, x, "cache.on_miss=fail", f"cache.dir={tmp_path}")
    assert again.info["cache"]["outcome"] == "direct-hit"


def test_sessions_are_a_threads_own():
    seen = []
    with app.session("mode=eager"):
        thread = threading.Thread(target=lambda: seen.append(api._DEFAULTS.get()))
        thread.start()
        thread.join()
    assert seen == [()]
