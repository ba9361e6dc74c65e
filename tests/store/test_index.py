"""The index holds JSON only, and whatever happens to it costs no more than the time to make it again."""

from __future__ import annotations

import logging
import pickle
import shutil
import sqlite3

import pytest

from app.store import Hit, Store
from app.store.index import Index, IndexDamagedError, JSONDisk

MODE_PICKLE = 4


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def request_digest(store, publish, digest_of):
    """A published object's request; the index is closed, as between two runs."""
    publish(store)
    store.close()
    return digest_of("request-a")


def database(store):
    return sqlite3.connect(store.root / "index" / "cache.db", isolation_level=None)


def sql(store, statement, *values):
    connection = database(store)
    connection.execute(statement, values)
    connection.close()


def plant_pickle_value(store, request, payload):
    sql(
        store,
        "UPDATE Cache SET mode = ?, value = ? WHERE key = ?",
        MODE_PICKLE,
        pickle.dumps(payload),
        f"request/{request}",
    )


def plant_pickle_file(store, request, payload):
    (store.root / "index" / "planted.val").write_bytes(pickle.dumps(payload))
    sql(
        store,
        "UPDATE Cache SET mode = ?, value = NULL, filename = 'planted.val' WHERE key = ?",
        MODE_PICKLE,
        f"request/{request}",
    )


@pytest.mark.parametrize("plant", [plant_pickle_value, plant_pickle_file])
def test_a_planted_pickle_is_not_run_and_the_index_is_made_again(store, request_digest, tmp_path, caplog, plant):
    plant(store, request_digest, Payload(tmp_path / "ran"))
    with caplog.at_level(logging.WARNING):
        assert store.entries(request_digest) == [{"object": one.digest} for one in store.manifests()] != []
    assert not (tmp_path / "ran").exists()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "pickles" in caplog.text
    connection = database(store)
    assert connection.execute("SELECT DISTINCT mode, filename FROM Cache").fetchall() == [(1, None)]
    connection.close()


def test_the_disk_refuses_pickles_both_ways(tmp_path):
    disk = JSONDisk(str(tmp_path))
    with pytest.raises(TypeError, match="not JSON serializable"):
        disk.store(Payload(tmp_path / "ran"), False)
    with pytest.raises(TypeError, match="string"):
        disk.put(("a", "tuple"))
    with pytest.raises(TypeError, match="files"):
        disk.store("x", True)
    with pytest.raises(IndexDamagedError, match="pickles"):
        disk.fetch(MODE_PICKLE, None, pickle.dumps(Payload(tmp_path / "ran")), False)
    with pytest.raises(IndexDamagedError, match="pickles"):
        disk.get(pickle.dumps(Payload(tmp_path / "ran")), False)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_json_is_refused_and_the_index_stays(store, caplog):
    store.note("kept", 1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.note("bad", store)
    assert store.noted("kept") == 1
    assert store.noted("bad") is None
    assert not caplog.records


def delete(store, _):
    shutil.rmtree(store.root / "index")


def delete_database(store, _):
    (store.root / "index" / "cache.db").unlink()


def empty_file(store, _):
    (store.root / "index" / "cache.db").write_bytes(b"")


def empty_table(store, _):
    sql(store, "DELETE FROM Cache")


SILENT = [delete, delete_database, empty_file, empty_table]


def overwrite(store, _):
    (store.root / "index" / "cache.db").write_bytes(b"garbage" * 1000)


def overwrite_middle(store, _):
    path = store.root / "index" / "cache.db"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:100] + b"\xa5" * (size - 100))


def truncate(store, _):
    path = store.root / "index" / "cache.db"
    path.write_bytes(path.read_bytes()[:5000])


def other_table(store, _):
    sql(store, "DROP TABLE Cache")
    sql(store, "CREATE TABLE Cache (something)")


def other_schema(store, _):
    sql(store, "UPDATE Cache SET value = '99' WHERE key = 'schema'")


def foreign_setting(store, _):
    sql(store, "INSERT INTO Settings VALUES ('disk_colour', 'red')")


def not_json(store, request):
    sql(store, "UPDATE Cache SET value = '{' WHERE key = ?", f"request/{request}")


def a_file_in_its_place(store, _):
    shutil.rmtree(store.root / "index")
    (store.root / "index").write_bytes(b"")


def a_directory_in_its_place(store, _):
    (store.root / "index" / "cache.db").unlink()
    (store.root / "index" / "cache.db").mkdir()


LOUD = [overwrite, overwrite_middle, truncate, other_table, other_schema, foreign_setting, not_json]
LOUD += [a_directory_in_its_place, a_file_in_its_place]


@pytest.mark.parametrize("harm", SILENT + LOUD)
def test_a_lost_or_broken_index_comes_back_from_the_manifests(store, request_digest, digest_of, caplog, harm):
    harm(store, request_digest)
    with caplog.at_level(logging.WARNING), Store(store.root) as again:
        assert again.entries(request_digest) == [{"object": digest_of("a")}]
        again.note("key", "works")
    assert len(caplog.records) == (harm in LOUD), caplog.text
    with Store(store.root) as later:
        assert later.noted("key") == "works"
        assert isinstance(later.read("objects", digest_of("a")), Hit)


def test_entries_are_newest_first_without_doubles_and_at_most_sixteen(store, digest_of):
    request = digest_of("request")
    for number in [*range(20), 10]:
        store.remember(request, {"number": number})
    numbers = [entry["number"] for entry in store.entries(request)]
    assert numbers == [10, 19, 18, 17, 16, 15, 14, 13, 12, 11, 9, 8, 7, 6, 5, 4]


def test_an_unknown_request_has_no_entries(store, digest_of):
    assert store.entries(digest_of("nothing")) == []


def test_entries_that_are_not_mappings_are_passed_over(store, digest_of):
    store._index.update(f"request/{digest_of('x')}", lambda _: [1, {"object": "a"}, None])
    store._index.update(f"request/{digest_of('y')}", lambda _: "text")
    assert store.entries(digest_of("x")) == [{"object": "a"}]
    assert store.entries(digest_of("y")) == []


def test_uses_are_counted(store, publish, digest_of):
    publish(store)
    store.used("objects", digest_of("a"))
    store.used("objects", digest_of("a"))
    noted = store.noted(f"used/objects/{digest_of('a')}")
    assert noted["count"] == 2
    assert noted["last_used"] > 0


def test_rebuilding_counts_the_direct_entries_and_forgets_notes(store, publish, digest_of):
    publish(store, "a")
    publish(store, "b")
    store.note("key", 1)
    assert store.rebuild_index() == 2
    assert store.noted("key") is None
    assert store.entries(digest_of("request-b")) == [{"object": digest_of("b")}]


def test_manifests_are_listed_without_the_broken(store, publish, digest_of):
    for name in "abc":
        publish(store, name)
    broken = store.root / "objects" / digest_of("b")[:2] / digest_of("b") / "manifest.json"
    broken.chmod(0o600)
    broken.write_text("{}")
    assert {manifest.digest for manifest in store.manifests()} == {digest_of("a"), digest_of("c")}


def test_trouble_of_the_machine_leaves_the_database_and_keeps_rows_in_memory(tmp_path, caplog):
    index = Index(tmp_path / "index", tmp_path / "trash", lambda: {"from": "manifests"})
    index.update("key", lambda _: "kept")
    before = (tmp_path / "index" / "cache.db").stat().st_ino

    def full(_):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        if not index._directory:
            return "in memory"
        raise error

    with caplog.at_level(logging.WARNING):
        index.update("key", full)
    assert index.get("key") == "in memory"
    assert index.get("from") == "manifests"
    assert len(caplog.records) == 1
    assert (tmp_path / "index" / "cache.db").stat().st_ino == before
    again = Index(tmp_path / "index", tmp_path / "trash", dict)
    assert again.get("key") == "kept"
    again.close()
