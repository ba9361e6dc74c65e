"""The remote tier: what others can fetch, what they can't get in, and what a remote that fails costs."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import stat
import sys
import threading
import time

import fsspec
import pytest

from app.errors import ConfigError
from app.store import Hit, Miss, Store, Trust
from app.store.remote import Remote
from app.store.trust import create_key, pack, public_key, read_key

BUCKET = "artifacts"


class User:
    """Somebody with a store, a key, and what was said to them."""

    def __init__(self, folder, name, url, *, keys=(), policy="signed", writable=True, signs=True, timeout_s=20.0):
        key = folder / f"{name}.pem"
        if not key.exists():
            create_key(key)
        self.key = public_key(read_key(key))
        self.trust = Trust(policy, tuple(keys), key if signs else None)
        self.store = Store(folder / f"store-{name}", trust=self.trust)
        self.said = []
        self.remote = Remote(url, writable=writable, trust=self.trust, timeout_s=timeout_s, warn=self.said.append)


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path):
    """A remote's URL, and the file system that it is on with its root there, for tests to look and to spoil."""
    if request.param == "folder":
        (tmp_path / "remote").mkdir()
        return str(tmp_path / "remote"), fsspec.filesystem("file"), str(tmp_path / "remote")
    endpoint = request.getfixturevalue("s3")
    request.getfixturevalue("credentials").setenv("AWS_ENDPOINT_URL", endpoint)
    files = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    root = f"{BUCKET}-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]}"
    files.mkdir(root)
    return f"s3://{root}/some/where", files, f"{root}/some/where"


@pytest.fixture
def user(tmp_path, place):
    def make(name, **kwargs):
        return User(tmp_path, name, kwargs.pop("url", place[0]), **kwargs)

    return make


@pytest.fixture
def both(user):
    """Two users with stores and keys of their own; the second trusts the first, and only reads."""
    ours = user("ours")
    return ours, user("theirs", keys=[ours.key], writable=False)


@pytest.fixture
def put(publish, digest_of):
    """Publish an object, and put it into the remote with an entry; returns the digest."""

    def put(user, name="a"):
        artifact = publish(user.store, name)
        assert user.remote.put(user.store, "objects", artifact.digest)
        user.remote.put_entry(digest_of("request"), {"object": artifact.digest, "weights": None})
        return artifact.digest

    return put


def path_in(root, digest):
    return f"{root}/objects/{digest[:2]}/{digest}.tar"


def test_what_one_user_puts_another_fetches(both, put, place, digest_of):
    ours, theirs = both
    digest = put(ours)
    _, files, root = place
    names = [name.removeprefix(root).lstrip("/") for name in files.find(root)]
    assert [name.split("/")[0] for name in names] == ["objects", "requests"]
    assert names[0] == f"objects/{digest[:2]}/{digest}.tar"
    assert names[1].startswith(f"requests/{digest_of('request')[:2]}/{digest_of('request')}/")
    assert theirs.remote.entries(digest_of("request")) == [{"object": digest, "weights": None}]
    assert theirs.remote.fetch(theirs.store, "objects", digest)
    assert isinstance(theirs.store.read("objects", digest), Hit)
    assert theirs.remote.fetch(theirs.store, "objects", digest)
    assert (ours.said, theirs.said) == ([], [])


def test_what_is_not_there_is_no_failure(user, digest_of):
    reader = user("reader")
    assert reader.remote.entries(digest_of("request")) == []
    assert not reader.remote.fetch(reader.store, "objects", digest_of("x"))
    assert not reader.remote.dead
    assert reader.said == []


def test_newest_entries_come_first_and_there_are_never_many(user, place, put, digest_of):
    ours = user("ours")
    for number in range(20):
        ours.remote.put_entry(digest_of("request"), {"number": number})
    first = ours.remote.entries(digest_of("request"))
    assert len(first) == 16
    time.sleep(1.1)  # S3 counts in seconds
    ours.remote.put_entry(digest_of("request"), {"number": "last"})
    assert ours.remote.entries(digest_of("request"))[0] == {"number": "last"}


def test_what_is_there_is_not_overwritten(user, both, put, place):
    ours, theirs = both
    digest = put(ours)
    _, files, root = place
    before = files.cat_file(path_in(root, digest))
    other = user("other")
    put(other)
    assert other.remote._create(other.trust.signing_key, path_in("", digest).lstrip("/"))  # past the first look
    assert files.cat_file(path_in(root, digest)) == before
    assert other.said == []
    assert theirs.remote.fetch(theirs.store, "objects", digest)


def test_of_many_who_put_the_same_one_wins(user, place):
    ours = user("ours")
    done = []

    def put(number):
        file = ours.store.root.parent / f"file-{number}"
        file.write_bytes(bytes([number]) * 100_000)
        done.append(ours.remote._create(file, "objects/aa/raced"))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True] * 8
    _, files, root = place
    assert len(set(files.cat_file(f"{root}/objects/aa/raced"))) == 1
    assert len(files.ls(f"{root}/objects/aa")) == 1


def test_stranger_gets_nothing_in_and_it_is_said(user, both, put, place, digest_of):
    stranger, (_, theirs) = user("stranger"), both
    digest = put(stranger)
    assert theirs.remote.entries(digest_of("request")) == []
    assert not theirs.remote.fetch(theirs.store, "objects", digest)
    assert isinstance(theirs.store.read("objects", digest), Miss)
    assert len(theirs.said) == 2
    assert all(stranger.key[:12] in line and "not among cache.keys" in line for line in theirs.said)
    _, files, root = place
    writer = user("writer", keys=[theirs.key])
    assert not writer.remote.fetch(writer.store, "objects", digest)
    assert files.exists(path_in(root, digest))  # it may be another group's


def test_entry_of_one_request_is_not_another_s(user, put, place, digest_of):
    ours = user("ours")
    put(ours)
    _, files, root = place
    [name] = files.find(f"{root}/requests")
    other = digest_of("other request")
    copied = f"{root}/requests/{other[:2]}/{other}/{name.rsplit('/', 1)[1]}"
    files.makedirs(copied.rsplit("/", 1)[0], exist_ok=True)
    files.pipe_file(copied, files.cat_file(name))
    assert ours.remote.entries(other) == []
    assert "no entry of this request" in ours.said[0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1024],
        lambda data: bytes(len(data)),
        lambda data: data.replace(b"code", b"evil"),
        lambda data: data.replace(b'"passed":true', b'"passed":null'),
        lambda data: pickle.dumps(os.system),
    ],
    ids=["empty", "half", "no end", "zeros", "other code", "other manifest", "pickle"],
)
def test_damaged_object_is_as_good_as_none_and_whoever_may_write_mends_it(user, both, put, place, spoil):
    ours, theirs = both
    digest = put(ours)
    _, files, root = place
    spoilt = spoil(files.cat_file(path_in(root, digest)))
    files.rm_file(path_in(root, digest))
    files.pipe_file(path_in(root, digest), spoilt)
    assert not theirs.remote.fetch(theirs.store, "objects", digest)
    assert files.exists(path_in(root, digest))
    writer = user("writer", keys=[ours.key])
    assert not writer.remote.fetch(writer.store, "objects", digest)
    assert not files.exists(path_in(root, digest))
    assert [len(theirs.said), len(writer.said)] == [1, 1]
    assert writer.said[0].startswith(f"cache: objects/{digest[:12]} of the remote is refused and removed: ")
    assert not writer.remote.dead
    assert ours.remote.put(ours.store, "objects", digest)
    assert theirs.remote.fetch(theirs.store, "objects", digest)


def test_pickle_in_any_place_is_never_loaded(user, both, put, place, digest_of, tmp_path):
    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    ours, theirs = both
    digest = put(ours)
    _, files, root = place
    bomb = pickle.dumps(Planted())
    request = f"{root}/requests/{digest_of('request')[:2]}/{digest_of('request')}"
    places = [f"{request}/{digest_of('bomb')}.json", f"{request}/x.pkl", path_in(root, digest_of("bomb"))]
    for path in places:
        files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        files.pipe_file(path, bomb)
    assert theirs.remote.entries(digest_of("request")) == [{"object": digest, "weights": None}]
    assert not theirs.remote.fetch(theirs.store, "objects", digest_of("bomb"))
    assert theirs.remote.fetch(theirs.store, "objects", digest)
    assert not (tmp_path / "ran").exists()


def test_without_signatures_what_is_there_is_taken_if_it_is_whole(user, put, digest_of):
    ours = user("ours", policy="none", signs=False)
    digest = put(ours)
    theirs = user("theirs", policy="none", signs=False, writable=False)
    assert theirs.remote.entries(digest_of("request")) == [{"object": digest, "weights": None}]
    assert theirs.remote.fetch(theirs.store, "objects", digest)


def test_reader_puts_nothing(user, publish, place, digest_of):
    reader = user("reader", writable=False)
    digest = publish(reader.store).digest
    assert not reader.remote.put(reader.store, "objects", digest)
    reader.remote.put_entry(digest_of("request"), {})
    _, files, root = place
    assert files.find(root) == []


def test_object_larger_than_the_store_may_be_is_not_fetched(both, put):
    ours, theirs = both
    digest = put(ours)
    theirs.store.size_limit = 1000
    assert not theirs.remote.fetch(theirs.store, "objects", digest)
    assert "cache.size_limit" in theirs.said[0]
    assert not theirs.remote.dead


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", 3, None, "A" * 64])
def test_malformed_digest_asks_nobody(tmp_path, digest):
    user = User(tmp_path, "ours", "unknown-protocol://x")
    with pytest.raises(ValueError, match="names no object"):
        user.remote.fetch(user.store, "objects", digest)


@pytest.fixture
def silent():
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def nobody():
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", ["silent", "nobody"])
def test_dead_remote_costs_one_line_and_its_time_outs(request, credentials, tmp_path, publish, digest_of, endpoint):
    credentials.setenv("AWS_ENDPOINT_URL", request.getfixturevalue(endpoint))
    user = User(tmp_path, "ours", "s3://bucket/path", timeout_s=1.5)
    digest = publish(user.store).digest
    began = time.monotonic()
    assert user.remote.entries(digest_of("request")) == []
    assert time.monotonic() - began < 4.5
    began = time.monotonic()
    assert not user.remote.fetch(user.store, "objects", digest_of("other"))
    assert not user.remote.put(user.store, "objects", digest)
    user.remote.put_entry(digest_of("request"), {})
    assert user.remote.entries(digest_of("request")) == []
    assert time.monotonic() - began < 1
    assert user.remote.dead
    assert len(user.said) == 1
    assert user.said[0].startswith("cache: the remote s3://bucket/path can't be reached (")
    assert user.said[0].endswith("): going on without it")


def test_failure_that_passes_is_tried_again(tmp_path, monkeypatch, digest_of):
    (tmp_path / "remote").mkdir()
    user = User(tmp_path, "ours", str(tmp_path / "remote"))
    files, _ = user.remote._open()
    listed, calls = files.ls, []

    def ls(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise ConnectionResetError
        return listed(*args, **kwargs)

    monkeypatch.setattr(files, "ls", ls)
    assert user.remote.entries(digest_of("request")) == []
    assert (len(calls), user.remote.dead, user.said) == (2, False, [])


def test_folder_that_is_not_there_is_not_made(tmp_path, digest_of):
    user = User(tmp_path, "ours", str(tmp_path / "not-mounted"))
    assert user.remote.entries(digest_of("request")) == []
    assert user.said == [f"cache: the remote {tmp_path}/not-mounted can't be reached (there is no such folder): going on without it"]  # fmt: skip
    assert not (tmp_path / "not-mounted").exists()


def test_shared_folder_stays_as_shared_as_it_was(tmp_path, put):
    root = tmp_path / "remote"
    root.mkdir()
    root.chmod(0o2775)
    umask = os.umask(0o077)
    try:
        put(User(tmp_path, "ours", str(root)))
    finally:
        os.umask(umask)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o2775}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o444}
    assert all(path.suffix in {".tar", ".json"} for path in modes if path.is_file())


def test_link_in_a_shared_folder_is_no_entry(tmp_path, put, digest_of):
    root = tmp_path / "remote"
    root.mkdir()
    user = User(tmp_path, "ours", str(root))
    digest = put(user)
    folder = root / "requests" / digest_of("request")[:2] / digest_of("request")
    (folder / f"{digest_of('link')}.json").symlink_to("/dev/zero")
    os.mkfifo(folder / f"{digest_of('pipe')}.json")
    assert user.remote.entries(digest_of("request")) == [{"object": digest, "weights": None}]
    assert user.said == []


def test_config_that_can_not_work_is_an_error(tmp_path, monkeypatch, digest_of):
    with pytest.raises(ConfigError, match=r"remote_mode=read-write needs cache\.signing_key"):
        User(tmp_path, "ours", "s3://x", signs=False)
    with pytest.raises(ConfigError, match=r"cache\.trust=signed"):
        User(tmp_path, "ours", "s3://x", policy="own")
    with pytest.raises(ConfigError, match="unknown-protocol"):
        User(tmp_path, "ours", "unknown-protocol://user:secret@x").remote.entries(digest_of("request"))
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'aot-app\[s3\]'"):
        User(tmp_path, "other", "s3://x").remote.entries(digest_of("request"))


def test_password_in_the_url_is_not_said(tmp_path, digest_of):
    user = User(tmp_path, "ours", "ftp://somebody:secret@127.0.0.1:1/x", timeout_s=2)
    assert user.remote.entries(digest_of("request")) == []
    assert "ftp://127.0.0.1:1/x" in user.said[0]
    assert "secret" not in user.said[0]


def test_signed_document_of_another_type_is_no_entry(user, place, digest_of):
    ours = user("ours")
    _, files, root = place
    request = digest_of("request")
    document = pack({"type": "alias", "request": request, "entry": {}}, ours.trust)
    path = f"{root}/requests/{request[:2]}/{request}/{hashlib.sha256(document).hexdigest()}.json"
    files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    files.pipe_file(path, document)
    assert ours.remote.entries(request) == []
    assert len(ours.said) == 1


@pytest.fixture
def quick_claims(monkeypatch):
    monkeypatch.setattr("app.store.remote.CLAIM_BEAT_S", 0.2)


def test_claim_is_waited_for_and_leaves_nothing(user, place, digest_of, quick_claims):
    _, files, root = place
    request, order = digest_of("request"), []
    ours, theirs = user("ours"), user("theirs")

    def come_second():
        with theirs.remote.claim(request, 60, lambda: order.append("theirs waits")) as waited:
            order.append(("theirs", waited))

    with ours.remote.claim(request, 60, lambda: order.append("ours waits")) as waited:
        order.append(("ours", waited))
        second = threading.Thread(target=come_second)
        second.start()
        while "theirs waits" not in order:
            time.sleep(0.05)
        time.sleep(1)
        order.append("ours is done")
    second.join()
    assert order == [("ours", False), "theirs waits", "ours is done", ("theirs", True)]
    assert not files.find(f"{root}/claims")
    assert (ours.said, theirs.said) == ([], [])


@pytest.mark.slow
def test_claim_of_a_machine_that_is_gone_is_taken_over_and_one_that_lives_is_not(
    user, place, digest_of, quick_claims
):
    _, files, root = place
    request = digest_of("request")
    path = f"{root}/claims/{request[:2]}/{request}"
    files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    files.pipe_file(path, b"")
    began = time.monotonic()
    with user("ours").remote.claim(request, 2, lambda: None) as waited:
        assert waited
        assert time.monotonic() - began >= 2
        time.sleep(1.2)  # S3 counts in seconds
        before = files.info(path)["LastModified" if "LastModified" in files.info(path) else "mtime"]
        time.sleep(1.2)
        assert files.info(path)["LastModified" if "LastModified" in files.info(path) else "mtime"] != before
