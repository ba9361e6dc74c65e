"""The cache tasks through the command line: what they say, what they leave, and what they exit with."""

from __future__ import annotations

import json
import os

import pytest

from app import names, tasks
from app.config import CacheConfig
from app.errors import AppError
from app.store import Store, Trust
from app.store.trust import create_key
from tests.store.conftest import digest_of

PROVENANCE = {"model": "tagger", "created_at": "2026-01-01T00:00:00+00:00", "seconds": 9.0}


def put(root, name, size=1000, trust=None, weights=None):
    """Publish an object as a run does, with `size` bytes in it."""
    with Store(root, trust=trust) as store, store.staging() as staging:
        (staging / "model.so").write_bytes(os.urandom(size))
        store.publish(
            "objects", digest_of(name), staging, factors={"graph": name}, content={}, verified={"weights": weights},
            provenance={**PROVENANCE, "model": name}, requests=[],
        )  # fmt: skip
    return digest_of(name)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def task(context_of, root):
    """Run a task in this process; the exit code that it comes to, and its rows."""

    def run(name, *args):
        try:
            context = context_of(
                [
                    f"task={name}",
                    *([] if any(arg.startswith("cache.dir=") for arg in args) else [f"cache.dir={root}"]),
                    *args,
                ]
            )
            tasks.run(context)
        except AppError as error:
            return error.exit_code, context.record.result
        return 0, context.record.result

    return run


def test_what_is_in_the_cache_is_listed_shown_and_counted(root, task, run_app):
    first, second = put(root, "a"), put(root, "b")
    code, rows = task("cache.list")
    assert code == 0
    assert {(row["digest"], row["model"], row["bytes"], row["pinned"]) for row in rows} == {
        (first, "a", 1000, False),
        (second, "b", 1000, False),
    }
    code, (shown,) = task("cache.show", f"cache.select=[{first[:8]}]")
    assert (code, shown["factors"], shown["files"]["model.so"]["size_bytes"]) == (0, {"graph": "a"}, 1000)
    code, (stats,) = task("cache.stats")
    assert (code, stats["objects"]["count"], stats["answers"]) == (0, 2, {})
    table = run_app(["task=cache.list", f"cache.dir={root}"]).stdout
    assert first[:12] in table
    run = run_app(["task=cache.list", f"cache.dir={root}", "output=json"])
    assert {row["digest"] for row in json.loads(run.stdout)["result"]} == {first, second}


def test_a_name_that_selects_nothing_is_a_config_error(root, task):
    put(root, "a")
    code, told = task("cache.show", "cache.select=[nope]")
    assert (code, told) == (2, None)


def test_verify_reads_every_byte_and_says_the_worst_it_found(root, task, tmp_path):
    digest = put(root, "a")
    assert task("cache.verify")[0] == 0
    library = root / "objects" / digest[:2] / digest / "model.so"
    library.chmod(0o600)
    stat = library.stat()
    with library.open("r+b") as file:
        file.write(b"X")
    os.utime(library, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    code, (row,) = task("cache.verify")
    assert (code, row["verdict"]) == (6, "corrupt")
    assert "model.so" in row["reason"]
    assert library.exists()  # it looks, and leaves things where they are


def test_verify_tells_what_nobody_trusted_has_signed(root, task, tmp_path):
    put(root, "a")
    key = create_key(tmp_path / "key.pem")
    signed = put(root, "b", trust=Trust("signed", (), tmp_path / "key.pem"))
    code, rows = task("cache.verify", "cache.trust=signed", f"cache.keys=[{key}]")
    assert code == 7
    assert {row["digest"]: row["verdict"] for row in rows} == {digest_of("a"): "untrusted", signed: "ok"}


def test_prune_leaves_what_was_used_last_and_what_is_pinned(root, task):
    pinned, old, new = put(root, "pinned"), put(root, "old"), put(root, "new")
    with Store(root) as store:
        store.used("objects", old)
        store.used("objects", new)
    assert task("cache.pin", f"cache.select=[{pinned[:10]}]")[0] == 0
    code, rows = task("cache.prune", "cache.size_limit=5 kB")
    assert (code, rows) == (0, [])
    code, rows = task("cache.prune", "cache.size_limit=4 kB")
    assert (code, [row["digest"] for row in rows]) == (0, [old])
    assert task("cache.unpin", f"cache.select=[{pinned[:10]}]")[0] == 0
    code, rows = task("cache.prune", "cache.size_limit=0")
    assert {row["digest"] for row in rows} == {pinned, new}
    assert task("cache.list")[1] == []


def test_clear_removes_what_is_named_or_all_but_what_is_pinned(root, task):
    first, second, third = put(root, "a"), put(root, "b"), put(root, "c")
    task("cache.pin", "cache.select=[c]")
    assert [row["digest"] for row in task("cache.clear", "cache.select=[a]")[1]] == [first]
    assert [row["digest"] for row in task("cache.clear")[1]] == [second]
    assert [row["digest"] for row in task("cache.list")[1]] == [third]


def test_a_key_is_made_once_and_never_overwritten(task, root, tmp_path):
    root.mkdir(mode=0o700)
    path = tmp_path / "keys" / "signing.pem"
    code, (row,) = task("cache.keygen", f"cache.signing_key={path}")
    assert (code, path.stat().st_mode & 0o777) == (0, 0o600)
    assert task("cache.keygen", f"cache.signing_key={path}")[0] == 2
    code, rows = task("cache.keys", f"cache.signing_key={path}", f"cache.keys=[{'ab' * 32}]")
    assert {(each["public_key"], each["own"]) for each in rows} == {(row["public_key"], True), ("ab" * 32, False)}


def test_a_bundle_carries_objects_and_aliases_to_a_cache_that_trusts_the_key(root, task, tmp_path, compose_settings):
    put(root, "a")
    put(root, "b")
    with Store(root) as store:
        names.save(store, "scorer", compose_settings(["model=linear"]))
    key, bundle, other = create_key(tmp_path / "key.pem"), tmp_path / "bundle.tar", tmp_path / "other"
    code, rows = task(
        "cache.export", f"cache.file={bundle}", "cache.select=[a]", f"cache.signing_key={tmp_path}/key.pem"
    )
    assert (code, [row["digest"] for row in rows]) == (0, [digest_of("a")])

    def imported(*args):
        return task("cache.import", f"cache.file={bundle}", *args, f"cache.dir={other}")

    assert imported() == (2, None)  # trust=own
    stranger = "cd" * 32
    code, rows = imported("cache.trust=signed", f"cache.keys=[{stranger}]")
    assert (code, {row["kind"] for row in rows}) == (7, {None})
    assert "not among cache.keys" in rows[0]["refused"]
    code, rows = imported("cache.trust=signed", f"cache.keys=[{key}]")
    assert (code, {(row["kind"], row["digest"]) for row in rows}) == (
        0,
        {("objects", digest_of("a")), ("alias", "scorer")},
    )
    with Store(other, trust=Trust("signed", (key,))) as store:
        assert type(store.read("objects", digest_of("a"))).__name__ == "Hit"
        cache = CacheConfig(dir=str(other), trust="signed", keys=[key])
        assert names.read(store, "scorer", cache).model.name == "linear"
    bundle.write_bytes(b"no archive" * 100)
    assert imported("cache.trust=signed", f"cache.keys=[{key}]") == (1, None)


def test_an_imported_bundle_is_a_direct_hit(run_app, hit_args, store_dir, tmp_path):
    key, args = create_key(tmp_path / "key.pem"), hit_args("linear")
    done = run_app([*args, "task=cache.export", f"cache.file={tmp_path}/b.tar", "cache.select=[linear]",
                    f"cache.signing_key={tmp_path}/key.pem"])  # fmt: skip
    assert done.code == 0, done.stderr
    signed = ["cache.trust=signed", f"cache.keys=[{key}]", f"cache.dir={tmp_path}/other"]
    done = run_app(["task=cache.import", f"cache.file={tmp_path}/b.tar", *signed])
    assert done.code == 0, done.stderr
    run = run_app([*args, *signed], env={"CXX": "/nonexistent"})
    assert (run.record["cache"]["outcome"], run.record["rung"]) == ("direct-hit", "compiled"), run.stderr


def test_the_index_is_made_again(task, root):
    put(root, "a")
    assert task("cache.rebuild-index") == (0, [{"entries": 0}])


def test_a_cache_that_is_not_there_is_a_config_error(task):
    assert task("cache.list")[0] == 2


def test_explain_says_what_would_answer_and_why_not_and_compiles_nothing(
    run_app, hit_args, num_objects, copied_store
):
    no_compiler, store = {"CXX": "/nonexistent"}, copied_store("linear")

    def explained(*args):
        run = run_app([*hit_args("linear"), f"cache.dir={store}", "task=explain", *args], env=no_compiler)
        assert run.code == 0, run.stderr
        return [(row["level"], row["answer"]) for row in run.record["result"]], run.record["result"][-1]["why"]

    assert explained() == ([("direct", "hit")], "nothing has changed")
    before = num_objects(store)
    levels, why = explained("model.seed=77")
    assert levels == [("direct", "miss"), ("graph", "miss")]
    assert "weights.sha256" in why
    assert "(nearest: linear" in why
    levels, why = explained("model.name=renamed", "model.depends_on=[/etc/hostname]")
    assert levels == [("direct", "miss"), ("graph", "hit")]
    assert num_objects(store) == before


def test_warm_fills_a_cache_one_process_a_request_and_says_what_is_not_in_it(run_app, hit_args, store_dir):
    hit_args("linear")
    requests = "task.requests=['model=linear mode=default device=cpu','model=linear model.kwargs.nope=1 device=cpu']"
    run = run_app(["task=warm", requests, f"cache.dir={store_dir}"])
    assert run.code == 4, run.stderr
    good, bad = run.record["result"]
    assert (good["status"], good["outcome"], good["rung"]) == ("ok", "direct-hit", "compiled")
    assert bad["status"] == "failed"
    assert "nope" in bad["reason"]
