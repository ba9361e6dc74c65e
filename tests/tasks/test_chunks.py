"""Chunks: what was finished is found again, whatever ended the run; what is of something else is refused."""

from __future__ import annotations

import numpy as np
import pytest

from app import chunks as module
from app.chunks import FOLDER, Chunks
from app.errors import ConfigError, OutputError

IDENTITY = {"request": "abc", "data": "d1", "batch_size": 2, "machine": ["cpu", "a cpu"]}


def part(*rows):
    values = np.array(rows, dtype=float)
    return {"differs": values > 5, "relative": values, "batch_rows": np.array([len(rows)])}


def begun(tmp_path, *batches, identity=IDENTITY):
    chunks = Chunks(tmp_path / FOLDER, identity)
    chunks.begin()
    for batch in batches:
        chunks.add(part(*batch))
        chunks.save()
    return chunks


def resumed(tmp_path, identity=IDENTITY):
    chunks = Chunks(tmp_path / FOLDER, identity)
    chunks.resume()
    return chunks


def test_what_was_saved_is_taken_up_and_gone_on_with(tmp_path):
    begun(tmp_path, [1, 2], [3, 4])
    again = resumed(tmp_path)
    assert (again.num_rows, again.num_resumed) == (4, 4)
    again.add(part(9))
    again.save()
    assert resumed(tmp_path).joined()["relative"].tolist() == [1, 2, 3, 4, 9]
    assert resumed(tmp_path).joined()["batch_rows"].tolist() == [2, 2, 1]


def test_a_run_that_was_killed_at_once_is_resumed_from_nothing(tmp_path):
    begun(tmp_path)
    assert resumed(tmp_path).num_rows == 0


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"garbage"])
def test_a_damaged_chunk_and_all_after_it_are_evaluated_again(tmp_path, damage):
    begun(tmp_path, [1, 2], [3, 4], [5, 6])
    (tmp_path / FOLDER / "rows-000000000002.npz").write_bytes(damage)
    again = resumed(tmp_path)
    assert again.joined()["relative"].tolist() == [1, 2]
    again.add(part(3, 4))
    again.save()
    assert resumed(tmp_path).joined()["relative"].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_missing_chunk_is_evaluated_again(tmp_path):
    begun(tmp_path, [1, 2], [3, 4], [5, 6])
    (tmp_path / FOLDER / "rows-000000000002.npz").unlink()
    assert resumed(tmp_path).num_rows == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [({"data": "d2"}, "another data"), ({"request": "x", "batch_size": 3}, "another batch_size, request")],
)
def test_what_is_of_something_else_is_refused_by_name(tmp_path, change, said):
    begun(tmp_path, [1, 2])
    with pytest.raises(ConfigError, match=said):
        resumed(tmp_path, {**IDENTITY, **change})


def test_a_folder_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluate\.resume=.*no evaluation was begun there"):
        resumed(tmp_path)


def test_rows_are_saved_in_time_and_not_each_by_itself(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    chunks = begun(tmp_path)
    for second in range(1, 12):
        now[0] = float(second)
        chunks.add(part(second))
    assert len(list((tmp_path / FOLDER).glob("rows-*.npz"))) == 2
    assert resumed(tmp_path).num_rows == 10


def test_a_folder_that_can_not_be_written_says_so(tmp_path):
    (tmp_path / FOLDER).write_text("a file")
    with pytest.raises(OutputError, match="can't write"):
        begun(tmp_path)
