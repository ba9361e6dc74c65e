"""What other programs read of the monitor, each by that program's own rules; and what a run leaves of it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import MonitorConfig
from app.errors import ConfigError, OutputError
from app.monitor import MOST_EVENTS, SimplePerformanceMonitor, performance_monitor
from app.monitor.export import monitored, to_prometheus, to_trace, write
from app.monitor.overhead import Costs
from app.record import Record

parser = pytest.importorskip("prometheus_client.parser")

FREE = Costs(0.0, 0.0)


@pytest.fixture
def monitor():
    found = SimplePerformanceMonitor(costs=FREE)
    for seconds in (0.5, 1.0, 1.5):
        found.operation("inference/compiled").record(seconds)
    return found


def families(text):
    return {family.name: family for family in parser.text_string_to_metric_families(text)}


def samples(family):
    """Values by the sample's name and its labels."""
    return {(each.name, *each.labels.values()): each.value for each in family.samples}


# Prometheus


def test_prometheus_reads_counts_sums_and_quantiles(monitor):
    found = families(to_prometheus(monitor))
    assert {name: family.type for name, family in found.items()} == {
        "app_operation_seconds": "summary",
        "app_operation_errors": "counter",
        "app_operation_sampled_one_in": "gauge",
        "app_operation_stopped": "gauge",
    }
    name = "inference/compiled"
    assert samples(found["app_operation_seconds"]) == {
        ("app_operation_seconds", name, "0.5"): pytest.approx(1.0, rel=0.01),
        ("app_operation_seconds", name, "0.9"): 1.5,
        ("app_operation_seconds", name, "0.99"): 1.5,
        ("app_operation_seconds_sum", name): 3.0,
        ("app_operation_seconds_count", name): 3,
    }
    assert samples(found["app_operation_errors"]) == {("app_operation_errors_total", name): 0}
    assert samples(found["app_operation_sampled_one_in"]) == {("app_operation_sampled_one_in", name): 1}


def test_prometheus_reads_a_monitor_without_calls():
    assert not any(family.samples for family in families(to_prometheus(SimplePerformanceMonitor())).values())


@settings(max_examples=200)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5, unique=True))
def test_any_name_comes_back_from_prometheus(names):
    monitor = SimplePerformanceMonitor(costs=FREE)
    for number, name in enumerate(names):
        for _ in range(number + 1):
            monitor.operation(name).record(1.0)
    found = samples(families(to_prometheus(monitor))["app_operation_seconds"])
    counts = {key[1]: value for key, value in found.items() if key[0].endswith("_count")}
    assert counts == {name: number + 1 for number, name in enumerate(names)}


# Trace


def traced(monitor):
    content = json.loads(to_trace(monitor))
    return [event for event in content["traceEvents"] if event["ph"] != "M"]


def test_a_trace_has_each_call_with_its_thread_and_its_time():
    now = [10.0]
    monitor = SimplePerformanceMonitor(clock=lambda: now[0], costs=FREE)
    monitor.trace(True)

    @monitor.monitor("outer")
    def outer():
        now[0] += 1.0
        with monitor.time_operation("inner"):
            now[0] += 0.5

    outer()
    monitor.operation("elsewhere").record(0.25)
    place = {"cat": "operation", "ph": "X", "pid": os.getpid(), "tid": threading.get_native_id()}
    assert traced(monitor) == [
        {**place, "name": "inner", "ts": 11.0e6, "dur": 0.5e6},
        {**place, "name": "outer", "ts": 10.0e6, "dur": 1.5e6},
        {**place, "name": "elsewhere", "ts": 11.25e6, "dur": 0.25e6},
    ]
    meta = [event for event in json.loads(to_trace(monitor))["traceEvents"] if event["ph"] == "M"]
    assert {(event["name"], event["args"]["name"]) for event in meta} == {
        ("process_name", "app"),
        ("thread_name", threading.current_thread().name),
    }


def test_coroutines_that_overlap_have_tracks_of_their_own():
    monitor = SimplePerformanceMonitor(costs=FREE)
    monitor.trace(True)

    @monitor.monitor("step")
    async def step():
        await asyncio.sleep(0)

    async def main():
        await asyncio.gather(step(), step())

    asyncio.run(main())
    events = traced(monitor)
    begins = {event["id"]: event["ts"] for event in events if event["ph"] == "b"}
    ends = {event["id"]: event["ts"] for event in events if event["ph"] == "e"}
    assert len(begins) == 2
    assert begins.keys() == ends.keys()
    assert all(begins[each] <= ends[each] for each in begins)


def test_nothing_is_traced_before_it_is_asked_for_and_nothing_is_left_after(monitor):
    assert traced(monitor) == []
    monitor.trace(True)
    monitor.operation("inference/compiled").record(1.0)
    monitor.operation("new").record(1.0)
    assert len(traced(monitor)) == 2
    monitor.trace(False)
    monitor.operation("new").record(1.0)
    assert traced(monitor) == []
    assert monitor.get_metrics("new")["call_count"] == 2


def test_a_trace_keeps_the_last_calls_only():
    monitor = SimplePerformanceMonitor(costs=FREE)
    monitor.trace(True)
    record = monitor.operation("step").record
    for number in range(MOST_EVENTS + 10):
        record(float(number))
    assert len(monitor.events) == MOST_EVENTS
    assert [event[3] for event in monitor.events[:2]] == [10.0, 11.0]
    assert monitor.get_metrics("step")["call_count"] == MOST_EVENTS + 10


# JSON and files


def test_json_holds_the_summary_and_all_metrics(monitor):
    found = json.loads(monitor.to_json())
    assert found["metrics"] == monitor.get_metrics()
    assert {name: value for name, value in found.items() if name != "metrics"} == monitor.get_summary()


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "metrics.prom"
    path.write_text("old")
    with path.open() as reader:  # who has it open goes on reading what it opened
        write(path, "new, with \ud800 in it")
        assert reader.read() == "old"
    assert path.read_text() == "new, with \\ud800 in it"
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.prom"]


@pytest.mark.parametrize("name", ["missing/metrics.prom", "folder", "zero\0byte"])
def test_a_file_that_can_not_be_written_is_named_and_leaves_nothing(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="can't write"):
        write(tmp_path / name, "text")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


# A run


@pytest.fixture
def run():
    """What `monitored` needs of a context, for a config."""

    def make(**config):
        record = Record(status="ok", task="benchmark", monitor={"calls": {"eager": 1}})
        warnings = []
        return SimpleNamespace(
            settings=SimpleNamespace(monitor=MonitorConfig(**config)),
            record=record,
            warnings=warnings,
            warn=warnings.append,
        )

    performance_monitor.reset_metrics()
    yield make
    performance_monitor.reset_metrics()


def serve(num=3):
    for _ in range(num):
        performance_monitor.operation("inference/eager").record(0.5)


def test_a_run_counts_from_zero_and_leaves_its_operations_in_its_record(run):
    serve(100)
    context = run()
    with monitored(context):
        serve()
    assert context.record.monitor["calls"] == {"eager": 1}
    operations = context.record.monitor["operations"]
    assert (operations["total_calls"], operations["metrics"]["inference/eager"]["call_count"]) == (3, 3)
    assert json.loads(context.record.to_json())["monitor"]["operations"] == operations


def test_a_run_writes_the_files_that_it_was_told_even_where_it_fails(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    context = run(json="m.json", prometheus=str(tmp_path / "m.prom"), trace="trace.json")
    with pytest.raises(KeyError), monitored(context):
        serve()
        raise KeyError
    assert json.loads((tmp_path / "m.json").read_text())["total_calls"] == 3
    assert "app_operation_seconds" in families((tmp_path / "m.prom").read_text())
    assert len(json.loads((tmp_path / "trace.json").read_text())["traceEvents"]) == 5
    assert context.warnings == []


def test_a_file_that_can_not_be_written_is_a_warning_and_the_others_are_written(run, tmp_path):
    context = run(json=str(tmp_path / "missing" / "m.json"), prometheus=str(tmp_path / "m.prom"))
    with monitored(context):
        serve()
    assert len(context.warnings) == 1
    assert context.warnings[0].startswith("monitor.json: can't write ")
    assert (tmp_path / "m.prom").exists()


def test_a_disabled_monitor_leaves_the_record_as_it_was(run):
    context = run(enabled=False)
    with monitored(context):
        serve()
        assert not performance_monitor.enabled
    assert context.record.monitor == {"calls": {"eager": 1}}
    assert performance_monitor.enabled


def test_a_run_without_calls_leaves_no_operations(run):
    context = run()
    with monitored(context):
        pass
    assert "operations" not in context.record.monitor


def test_the_shared_monitor_is_afterwards_as_it_was_before(run, tmp_path):
    before = performance_monitor.max_overhead
    with monitored(run(max_overhead=0.5, trace=str(tmp_path / "trace.json"))):
        assert performance_monitor.max_overhead == 0.5
        serve()
        assert performance_monitor.events
    assert performance_monitor.max_overhead == before
    assert performance_monitor.events == []


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"max_overhead": 0.0}, "monitor.max_overhead=0.0"),
        ({"max_overhead": float("nan")}, "monitor.max_overhead"),
        ({"trace": ""}, "different files"),
        ({"trace": "m.json", "json": "m.json"}, "different files"),
    ],
)
def test_a_config_that_can_not_be_right_is_refused(config, match):
    with pytest.raises(ConfigError, match=match):
        MonitorConfig(**config)
