from __future__ import annotations

import dataclasses
import json
import os
import types
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import OutputError
from app.fallback import Fallback
from app.measure.statistics import Latency
from app.record import SCHEMA, CacheInfo, Record, RunError
from app.verdict import VerifyCase, VerifyInfo

DESIGN_ORDER = [
    *(
        "schema",
        "status",
        "error",
        "model",
        "mode",
        "precision",
        "device",
        "task",
        "overrides",
        "key",
        "cache",
    ),
    *(
        "rung",
        "rungs",
        "fallbacks",
        "phases_s",
        "verify",
        "latency_ms",
        "speedup",
        "throughput_per_s",
        "memory",
    ),
    *("monitor", "environment", "warnings"),
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
SCALARS = {
    typing.Any: json_values,
    str: st.text(),
    int: st.integers(),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
}


def strategy(hint: typing.Any) -> st.SearchStrategy[typing.Any]:
    """Any value that a record's field may hold."""
    arguments = typing.get_args(hint)
    match typing.get_origin(hint):
        case typing.Literal:
            return st.sampled_from(arguments)
        case types.UnionType:
            return st.none() | strategy(arguments[0])
        case origin if origin is list:
            return st.lists(strategy(arguments[0]), max_size=2)
        case origin if origin is dict:
            return st.dictionaries(st.text(), strategy(arguments[1]), max_size=2)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{name: strategy(each) for name, each in hints.items() if name != "schema"})
    return SCALARS[hint]


def a_record(**fields: typing.Any) -> Record:
    return Record(**{"status": "ok", "task": "benchmark", **fields})


@given(strategy(Record))
def test_any_record_comes_back_as_it_was(tmp_path_factory, record) -> None:
    path = tmp_path_factory.mktemp("run") / "record.json"
    record.save(path)
    assert Record.load(path) == record


def test_fields_stand_in_the_order_that_users_were_promised() -> None:
    written = list(json.loads(a_record().to_json()))
    assert [name for name in written if name in DESIGN_ORDER] == DESIGN_ORDER


def test_what_a_task_does_not_produce_is_null() -> None:
    content = json.loads(a_record().to_json())
    assert content["schema"] == SCHEMA
    assert [content[name] for name in ("latency_ms", "speedup", "verify", "error", "key")] == [None] * 5


def test_fallback_is_written_with_from() -> None:
    step = Fallback("cudagraph", "compiled", "capture", "out of memory")
    content = json.loads(a_record(fallbacks=[step]).to_json())
    wanted = {"from": "cudagraph", "to": "compiled", "stage": "capture", "reason": "out of memory"}
    assert content["fallbacks"] == [wanted]


def test_figures_are_found_by_runner_and_batch() -> None:
    latency = Latency(p50=1.0, p90=2.0, p99=3.0, mean=1.5, stdev=0.1, min=0.9, count=7)
    content = json.loads(a_record(latency_ms={"compiled": {"4": latency}}).to_json())
    assert content["latency_ms"]["compiled"]["4"] == dataclasses.asdict(latency)


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), float("-inf")])
def test_a_figure_that_is_no_number_is_refused_by_name(figure) -> None:
    case = VerifyCase(4, 0, figure, 1e-7, 1e-5, 1e-6, passed=False)
    verify = VerifyInfo(passed=False, reference="float64", cases=[case], multiple=2.0, floor=1e-6)
    with pytest.raises(ValueError, match=r"verify\.cases\[0\]\.rel_l2 is -?(nan|inf)"):
        a_record(verify=verify).to_json()


def test_an_object_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"environment\.gpu is of type object"):
        a_record(environment={"gpu": object()}).to_json()


def test_an_argument_that_is_no_utf8_survives(tmp_path) -> None:
    record = a_record(command=["app", os.fsdecode(b"model=\xff")])
    record.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json").command == record.command


def test_a_failed_write_keeps_the_old_record_and_leaves_nothing_behind(tmp_path, monkeypatch) -> None:
    path = tmp_path / "record.json"
    a_record(model="old").save(path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"record\.json: No space left on device"):
        a_record(model="new").save(path)
    assert Record.load(path).model == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_that_cannot_be_written_names_the_file(tmp_path) -> None:
    with pytest.raises(OutputError, match=r"missing/record\.json: No such file"):
        a_record().save(tmp_path / "missing" / "record.json")


def test_a_record_that_json_cannot_hold_touches_no_file(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"phases_s\.export is nan"):
        a_record(phases_s={"export": float("nan")}).save(tmp_path / "record.json")
    assert list(tmp_path.iterdir()) == []


def changed(tmp_path, change):
    content = json.loads(a_record(error=RunError("E", "run", "m"), cache=CacheInfo("miss")).to_json())
    change(content)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    return path


def test_fields_of_a_later_version_are_left_out(tmp_path) -> None:
    path = changed(tmp_path, lambda content: content.update(mood="good"))
    assert Record.load(path).status == "ok"


def test_whole_numbers_are_read_as_floats_where_floats_belong(tmp_path) -> None:
    path = changed(tmp_path, lambda content: content.update(phases_s={"export": 2}))
    assert type(Record.load(path).phases_s["export"]) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema=SCHEMA + 1), rf"schema {SCHEMA + 1} is newer than {SCHEMA}"),
        (lambda c: c.pop("schema"), "it has no schema version"),
        (lambda c: c.update(schema=True), "it has no schema version"),
        (lambda c: c.pop("status"), "status is missing"),
        (lambda c: c.update(status="fine"), r'status is "fine", not .*failed'),
        (lambda c: c.update(task=None), "task is null, not str"),
        (lambda c: c["error"].pop("stage"), r"error\.stage is missing"),
        (lambda c: c["cache"].update(outcome="hit"), r'cache\.outcome is "hit", not .*direct-hit'),
        (lambda c: c["cache"].update(miss_reasons=[1]), r"cache\.miss_reasons\[0\] is 1, not str"),
        (lambda c: c.update(phases_s={"load": True}), r"phases_s\.load is true, not float"),
        (lambda c: c.update(phases_s={"load": float("nan")}), "NaN is no JSON number"),
        (lambda c: c.update(fallbacks={}), r"fallbacks is \{\}, not list"),
    ],
)
def test_what_is_no_record_is_refused_with_file_and_field(tmp_path, change, message) -> None:
    with pytest.raises(ValueError, match=rf"record\.json: .*{message}"):
        Record.load(changed(tmp_path, change))


def test_a_record_of_an_earlier_version_lacks_what_came_later(tmp_path) -> None:
    path = changed(tmp_path, lambda content: [content.pop(name) for name in ("evaluation", "monitor", "plans")])
    assert Record.load(path).evaluation is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_a_damaged_file_is_refused_with_its_name(tmp_path, text) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"record\.json: "):
        Record.load(path)
