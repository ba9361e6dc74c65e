"""Traffic: calls are read with their sizes and times, and what no call may be is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from app.config import DataConfig, DimConfig
from app.data import Dataset
from app.errors import ConfigError, DataError
from app.traffic import of_dataset, read

DIMS = {"batch": DimConfig(max=16), "seq": DimConfig(min=2, max=64, example=8)}


def calls_of(tmp_path, calls, **config):
    path = tmp_path / "calls.jsonl"
    path.write_text("\n".join(map(json.dumps, calls)))
    return read(DataConfig(name="workload", path=str(path), **config), DIMS)


def test_calls_are_counted_by_size_in_the_order_of_their_times(tmp_path):
    found = calls_of(
        tmp_path,
        [{"t": 2, "batch": 1, "seq": 9}, {"t": 0, "batch": 4, "seq": 3, "user": "x"}, {"t": 1, "batch": 1, "seq": 3}],
    )
    assert (len(found), found.histogram(), found.histogram("seq")) == (3, {1: 2, 4: 1}, {3: 2, 9: 1})
    assert found.sizes["batch"].tolist() == [4, 1, 1]
    assert (found.typical(), found.rate_per_s) == (1, 1.0)


def test_times_and_lengths_need_not_be_there(tmp_path):
    found = calls_of(tmp_path, [{"batch": 2}] * 3)
    assert (found.times, found.rate_per_s, found.waiting(1.0), sorted(found.sizes)) == (None, None, None, ["batch"])


def test_calls_that_come_while_one_runs_wait(tmp_path):
    found = calls_of(tmp_path, [{"t": t, "batch": 1} for t in (0.0, 0.1, 1.0, 5.0)])
    assert [found.waiting(seconds) for seconds in (0.05, 0.2, 1.0)] == [0.0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("calls", "error", "said"),
    [
        ([{"t": 0, "seq": 3}], ConfigError, ["no array 'batch'", "t, seq"]),
        ([{"batch": 1}, {"batch": 17}], DataError, ["line 2", "17", "1 to 16"]),
        ([{"batch": 1.5}], DataError, ["line 1", "1.5"]),
        ([{"batch": 1, "seq": 1}], DataError, ["line 1", "'seq'", "2 to 64"]),
        ([{"batch": 1, "t": float("nan")}], DataError, ["line 1", "'t'", "time"]),
        ([{"batch": [1]}], ConfigError, ["one size a call"]),
    ],
)
def test_what_no_call_may_be_is_named(tmp_path, calls, error, said):
    with pytest.raises(error) as caught:
        calls_of(tmp_path, calls)
    assert [text for text in said if text not in caught.value.message] == []


def test_a_data_set_is_the_calls_of_its_evaluation():
    found = of_dataset(Dataset("rows", {"x": np.ones((10, 7))}, None), {"x": ["batch", "seq"]}, 4)
    assert (found.histogram(), found.histogram("seq"), found.times) == ({2: 1, 4: 2}, {7: 3}, None)
