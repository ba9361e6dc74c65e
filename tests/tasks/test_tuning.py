"""`task=tune-buckets`: what it reads, what it refuses, and what it says."""

from __future__ import annotations

import json

import pytest

from app import tuning
from app.errors import ConfigError
from app.planning import Timed
from app.runtime.plans import Latencies
from app.store import Store

HISTOGRAM = {"3": 90, "8": 10}


@pytest.fixture
def settings_with(compose_settings, tmp_path):
    """Settings whose histogram is a file of this content."""

    def make(content):
        path = tmp_path / "sizes.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return compose_settings(["model=linear", f"graphs.histogram={path}"])

    return make


@pytest.mark.parametrize(
    "content",
    [
        HISTOGRAM,
        {**HISTOGRAM, "5": 0},
        {"batch_sizes": HISTOGRAM, "calls": {"compiled": 100}},
        {"schema": 1, "monitor": {"batch_sizes": HISTOGRAM}},
    ],
    ids=["plain", "a size without calls", "a model's stats", "a record"],
)
def test_a_histogram_is_read_from_a_file_of_its_own_or_a_record(settings_with, content):
    assert tuning.read_histogram(settings_with(content)) == {3: 90, 8: 10}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON"),
        ([1, 2], "calls by batch size"),
        ({"three": 1}, "calls by batch size"),
        ({"-3": 1}, "calls by batch size"),
        ({"3": -1}, "calls by batch size"),
        ({"3": True}, "calls by batch size"),
        ({"3": 1.5}, "calls by batch size"),
        ({}, "holds no calls"),
        ({"3": 0}, "holds no calls"),
        ({"5000": 1}, "5000 is not within model.dims.batch, 1 to 1024"),
        ({"0": 1}, "0 is not within"),
        ({"schema": 1, "monitor": None}, "served no calls"),
        ({"schema": 1, "monitor": {"calls": {}}}, "served no calls"),
    ],
)
def test_what_is_no_histogram_is_refused_with_what_it_should_be(settings_with, content, told):
    with pytest.raises(ConfigError, match=told):
        tuning.read_histogram(settings_with(content))


def test_a_histogram_that_is_not_given_or_not_there_is_a_config_error(compose_settings, tmp_path):
    with pytest.raises(ConfigError, match=r"graphs\.histogram is not given"):
        tuning.read_histogram(compose_settings(["model=linear"]))
    with pytest.raises(ConfigError, match="No such file"):
        tuning.read_histogram(compose_settings(["model=linear", f"graphs.histogram={tmp_path}/none.json"]))


@pytest.fixture
def timed(monkeypatch):
    """Latencies as if they had been measured; `size_bytes` are those of graphs."""

    def give(latencies, size_bytes=None):
        captured = [[size] for size in size_bytes or ()]
        known = Timed({(): Latencies(latencies, latencies)}, captured, size_bytes or {})
        monkeypatch.setattr(tuning, "_timed", lambda *_: known)

    return give


def test_buckets_are_chosen_by_measured_latencies_and_compared_with_todays(
    context_of, settings_with, tmp_path, timed
):
    given = settings_with(HISTOGRAM).graphs.histogram
    context = context_of(["model=linear", f"graphs.histogram={given}", "graphs.max_buckets=2"])
    timed({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0})
    with Store(tmp_path / "store") as store:
        (row,) = tuning.tune_buckets(context, store)
    assert row["set"] == "graphs.batch_sizes=[3,8]"
    assert row["chosen"] == {
        "buckets": [3, 8], "expected_ms": 3.5, "hit_rate": 1.0, "padding_waste": 0.0, "graph_bytes": 0,
    }  # fmt: skip
    assert row["today"] == {
        "buckets": [1, 2, 4, 8], "expected_ms": pytest.approx(4.4), "hit_rate": 0.1, "padding_waste": 90 / 440,
    }  # fmt: skip
    assert row["saving_percent"] == pytest.approx(100 * (1 - 3.5 / 4.4))
    assert (row["num_calls"], row["histogram"]) == (100, HISTOGRAM)
    assert "CUDA graphs" in context.record.warnings[-1]


def test_the_memory_limit_holds_for_the_graphs_that_are_chosen(context_of, settings_with, tmp_path, timed):
    given = settings_with(HISTOGRAM).graphs.histogram
    timed({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, {1: 10, 2: 20, 4: 40, 8: 80})
    with Store(tmp_path / "store") as store:
        for limit, buckets, taken in [("120 B", [3, 8], 120), ("119 B", [8], 80)]:
            context = context_of(["model=linear", f"graphs.histogram={given}", f"graphs.memory_limit={limit}"])
            (row,) = tuning.tune_buckets(context, store)
            assert (row["chosen"]["buckets"], row["chosen"]["graph_bytes"]) == (buckets, taken)
        with pytest.raises(ConfigError, match=r"graphs\.memory_limit='79 B': size 8 must be a bucket"):
            tuning.tune_buckets(
                context_of(["model=linear", f"graphs.histogram={given}", "graphs.memory_limit=79 B"]), store
            )


def test_the_command_times_what_it_must_and_tunes_and_auto_takes_what_it_chose(run_app, hit_args, settings_with):
    given = f"graphs.histogram={settings_with(HISTOGRAM).graphs.histogram}"
    args = [*hit_args("linear"), "task=tune-buckets", given]
    run = run_app(args, env={"CXX": "/nonexistent"})
    assert run.code == 0, run.stderr
    assert run.record["phases_s"]["plan"] > 0
    (row,) = run.record["result"]
    assert row["chosen"]["buckets"][-1] == 8
    assert row["chosen"]["expected_ms"] > 0
    for text in (
        "set ",
        "chosen ",
        f"buckets {row['chosen']['buckets']}",
        "today ",
        "hit rate",
        "saving percent",
        "3 90",
    ):
        assert text in run.stdout
    again = run_app(args)
    assert "plan" not in again.record["phases_s"]
    assert again.record["result"] == run.record["result"], "latencies are kept, and so is what follows from them"
    auto = run_app([*hit_args("linear"), "graphs=auto", given])
    assert auto.code == 0, auto.stderr
    assert sorted(map(int, auto.record["rungs"])) == row["chosen"]["buckets"]
    assert {case["batch"] for case in auto.record["verify"]["cases"]} >= set(row["chosen"]["buckets"])
    missing = run_app([*hit_args("linear"), "graphs=auto"])
    assert (missing.code, "graphs.histogram is not given" in missing.stderr) == (2, True)


def test_a_model_whose_rows_mix_has_no_buckets_to_choose(run_app, module_file, fresh_store, settings_with):
    module_file(
        "centred",
        """
        from torch import nn

        class Centred(nn.Module):
            def forward(self, x):
                return x - x.mean(0)
        """,
    )
    inputs = "model.inputs=[{name: x, shape: [batch, 4]}]"
    given = f"graphs.histogram={settings_with(HISTOGRAM).graphs.histogram}"
    args = ["model=custom", "model.target=centred:Centred", inputs, f"cache.dir={fresh_store}", given]
    run = run_app([*args, "task=tune-buckets"], env=module_file.env)
    assert (run.code, "no batch plans to choose buckets for" in run.stderr) == (2, True)
    assert "other rows" in run.stderr
