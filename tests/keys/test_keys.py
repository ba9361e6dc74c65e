"""Keys: canonical text, digests that are equal everywhere, sensitive to everything, and free of this machine."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import InputConfig, ModeConfig, ModelConfig, PrecisionConfig, Settings
from app.errors import ConfigError
from app.keys import Key, canonical, digest, object_key, request_key

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
names = st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=4)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
factors = st.dictionaries(names, values, max_size=5)


def reordered(value, random):
    """The same value, every dict's keys in another order."""
    if isinstance(value, dict):
        items = [(name, reordered(item, random)) for name, item in value.items()]
        random.shuffle(items)
        return dict(items)
    return [reordered(item, random) for item in value] if isinstance(value, list) else value


def places(value, path=()):
    """The path of every leaf."""
    if isinstance(value, dict | list) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))
    else:
        yield path


def put(value, path, leaf):
    """A copy of the value with one leaf replaced."""
    if not path:
        return leaf
    copied = copy.copy(value)
    copied[path[0]] = put(value[path[0]], path[1:], leaf)
    return copied


def at(value, path):
    for key in path:
        value = value[key]
    return value


def same(left, right):
    """Equal, and of one type: JSON tells 1, 1.0 and true apart."""
    return type(left) is type(right) and repr(left) == repr(right)


# Canonical text


@given(values, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(value, random):
    assert canonical(reordered(value, random)) == canonical(value)
    assert digest(reordered(value, random)) == digest(value)


@given(values)
def test_the_text_is_ascii_json_of_the_same_value(value):
    text = canonical(value)
    assert text.isascii()
    assert json.loads(text) == value
    assert len(digest(value)) == 64


@given(values, scalars, st.data())
def test_any_changed_leaf_changes_the_digest(value, leaf, data):
    path = data.draw(st.sampled_from(list(places(value))))
    changed = put(value, path, leaf)
    assert (digest(changed) == digest(value)) == same(at(value, path), leaf)


@given(st.lists(values, max_size=3))
def test_a_tuple_is_a_list(items):
    assert canonical(tuple(items)) == canonical(items)
    assert canonical({"a": (tuple(items),)}) == canonical({"a": [items]})


@pytest.mark.parametrize(
    ("left", "right"), [(1, True), (1, 1.0), (0, False), ("1", 1), (None, "null"), ([], {}), (0.0, -0.0), ("", None)]
)
def test_values_that_python_or_a_reader_might_confuse_have_different_digests(left, right):
    assert digest({"a": left}) != digest({"a": right})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_cannot_hold_is_refused_by_place(value):
    with pytest.raises(ValueError, match=r"key\.a\[1\] is -?(nan|inf)"):
        canonical({"a": [0, value]})


@pytest.mark.parametrize(
    "value", [{1, 2}, frozenset(), object(), b"x", Path("x"), 1j, type("Int", (int,), {})(1), range(2), Settings]
)
def test_what_has_no_canonical_form_is_refused_by_place(value):
    with pytest.raises(TypeError, match=r"key\.a\.b is a .*no canonical form"):
        canonical({"a": {"b": value}})


@pytest.mark.parametrize("name", [1, None, True, (1, 2), b"x"])
def test_a_key_that_is_no_text_is_refused(name):
    with pytest.raises(TypeError, match="keys must be str"):
        canonical({"a": [{name: 1}]})


# Keys


def request(**model):
    spec = InputConfig(name="x", shape=["batch", 4])
    return request_key(Settings(model=ModelConfig(target="m:f", inputs=[spec], **model)), "cpu")


@given(factors, st.data())
def test_the_object_depends_on_every_leaf_of_graph_and_weights(graph, data):
    weights = {"sha256": "w", "meta": [1, 2]}
    asked = request()
    before = object_key(asked, graph=graph, weights=weights)
    path = data.draw(st.sampled_from(list(places(graph))))
    leaf = data.draw(scalars)
    changed = put(graph, path, leaf) if path else {"new": leaf}
    assert (object_key(asked, graph=changed, weights=weights).digest == before.digest) == (
        bool(path) and same(at(graph, path), leaf)
    )
    assert object_key(asked, graph=graph, weights={**weights, "sha256": "v"}).digest != before.digest


SHARED = [
    path
    for path in places(dict(request().factors))
    if path[0] in {"schema", "device", "target", "numerics", "weights"}
    or path[:2] == ("mode", "inductor")
    or (path[0] == "toolchain" and path[1] not in {"python", "numpy"})
]
BUILT = [path for path in places(dict(request().factors)) if path not in SHARED]


def test_the_request_has_leaves_of_both_kinds():
    assert {path[0] for path in SHARED} >= {"target", "toolchain", "mode", "numerics", "weights", "device"}
    assert {path[0] for path in BUILT} >= {"model", "toolchain", "precision"}


@pytest.mark.parametrize("path", SHARED, ids=lambda path: ".".join(map(str, path)))
def test_what_lowers_the_program_is_part_of_the_object(path):
    before, changed = request(), Key(put(dict(request().factors), path, "another"))
    assert digest(changed.factors) != before.digest
    assert object_key(changed, graph={}, weights={}).digest != object_key(before, graph={}, weights={}).digest


@pytest.mark.parametrize("path", BUILT, ids=lambda path: ".".join(map(str, path)))
def test_what_the_program_was_built_from_is_not(path):
    before, changed = request(), Key(put(dict(request().factors), path, "another"))
    assert changed.digest != before.digest
    assert object_key(changed, graph={}, weights={}).digest == object_key(before, graph={}, weights={}).digest


def test_openvino_s_version_and_arithmetic_are_factors_of_what_it_compiles_alone(monkeypatch):
    def digests(engine, version, precision="fp32"):
        monkeypatch.setattr("app.keys.installed", lambda _: version)
        model = ModelConfig(target="m:build", inputs=[InputConfig("x", ["batch"])])
        asked = Settings(model, ModeConfig(engine=engine), PrecisionConfig(precision))
        key = request_key(asked, "cpu")
        return {key.digest, object_key(key, graph={}, weights={}).digest}

    assert digests("aoti", "2026.4") == digests("aoti", None)
    others = [("aoti", None), ("openvino", "2026.4"), ("openvino", "2026.5"), ("openvino", "2026.5", "bf16")]
    assert len(set().union(*(digests(*each) for each in others))) == 8


def test_a_factor_without_canonical_form_is_an_error_and_not_a_digest():
    with pytest.raises(ConfigError, match=r"key\.model\.kwargs\.size"):
        _ = request(kwargs={"size": {1, 2}}).digest


def texts(value):
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    else:
        yield str(value)


def test_no_path_host_name_or_process_is_in_the_factors():
    found = set(texts(dict(request(checkpoint="/data/a.pt", depends_on=["/data/b"]).factors)))
    assert not [text for text in found if text.startswith(("/", "~")) or os.sep + "data" in text]
    assert not found & {socket.gethostname(), str(os.getpid()), str(Path.cwd()), str(Path.home())}
    assert not [text for text in found if "data" in text.split("/")]


# Differences


@settings(max_examples=200)
@given(factors, st.data())
def test_diff_lists_exactly_the_changed_leaves(old, data):
    flat = dict(sorted((name, value) for name, value in old.items() if not isinstance(value, dict)))
    nested = {"group": flat, "rest": {"same": 1}}
    chosen = data.draw(st.sets(st.sampled_from(sorted(flat)))) if flat else set()
    new = {**flat, **{name: data.draw(scalars | st.lists(scalars, max_size=2)) for name in chosen}}
    changed = sorted(f"group.{name}" for name in chosen if canonical(new[name]) != canonical(flat[name]))
    lines = Key({"group": new, "rest": {"same": 1}}).diff(nested)
    assert len(lines) == len(changed)
    for name, line in zip(changed, lines, strict=True):
        assert line.startswith(name + " ")
        assert " -> " in line


@given(factors)
def test_equal_factors_do_not_differ_even_as_json(value):
    assert Key(value).diff(json.loads(canonical(value))) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            {"toolchain": {"torch": "2.12.0"}},
            {"toolchain": {"torch": "2.13.0"}},
            ["toolchain.torch 2.12.0 -> 2.13.0"],
        ),
        ({"z": 0}, {"a": 1, "z": 0}, ["a nothing -> 1"]),
        ({"a": None}, {"a": 1}, ["a null -> 1"]),
        ({}, {}, []),
        ({"a": [1, 2]}, {"a": (1, 3)}, ["a [1, 2] -> [1, 3]"]),
        ({"a": {"b": 1}}, {"a": {"c": 1}}, ["a.b 1 -> nothing", "a.c nothing -> 1"]),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),
        ({"a": 1}, {"a": True}, ["a 1 -> true"]),
    ],
)
def test_diff_reads_as_a_sentence(old, new, said):
    assert Key(new).diff(old) == said


def test_diff_shortens_what_is_long_but_keeps_two_long_values_apart():
    (line,) = Key({"flags": "x" * 500 + "b"}).diff({"flags": "x" * 500 + "a"})
    before, after = line.removeprefix("flags ").split(" -> ")
    assert before != after
    assert len(line) < 140


# Processes

CHILD = """
import json, sys
from app.config import InputConfig, ModelConfig, Settings
from app.keys import digest, object_key, request_key

names = set(json.load(sys.stdin))
spec = InputConfig(name="x", shape=["batch", 4])
request = request_key(Settings(model=ModelConfig(target="m:f", inputs=[spec], kwargs={n: 1 for n in names})), "cpu")
graph = {name: [len(name), {"x": None}] for name in names}
print(json.dumps([list(graph), digest(graph), request.digest, object_key(request, graph=graph, weights={}).digest]))
"""


def in_fresh_process(code, seed="random", given="[]"):
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_digests_are_equal_in_fresh_processes_under_any_hash_seed():
    words = json.dumps([f"name{index}" for index in range(40)])
    orders, *digests = zip(*(in_fresh_process(CHILD, seed, words) for seed in ("1", "2", "random")), strict=True)
    assert len(set(map(tuple, orders))) > 1
    assert [len(set(found)) for found in digests] == [1, 1, 1]


FRUGAL = (
    "keys", "lookup", "store", "dependencies", "environment", "config", "record", "fallback", "verdict", "monitor",
    "monitor.export", "composed", "names", "data", "agreement", "chunks", "traffic", "evidence", "choose",
)  # fmt: skip


@pytest.mark.parametrize("module", FRUGAL)
def test_a_lookup_imports_no_torch(module):
    heavy = in_fresh_process(
        f"import json, sys, app.{module}\n"
        "print(json.dumps([m for m in ('torch', 'torch._inductor', 'transformers') if m in sys.modules]))"
    )
    assert heavy == []


def test_a_variable_that_the_model_reads_is_a_factor_with_its_value(monkeypatch):
    digests = set()
    for value in ("one", "two"):
        monkeypatch.setenv("APP_TEST_VARIABLE", value)
        digests.add(request(environment=["APP_TEST_VARIABLE"]).digest)
    assert len(digests) == 2
