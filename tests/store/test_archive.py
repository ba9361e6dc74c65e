"""Archives: what is written is read back, and nothing else gets in, whatever the bytes are."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from app.errors import ConfigError, StoreError
from app.store import Hit, Manifest, Miss, Store, Trust, archive
from app.store.trust import create_key, pack, public_key, read_key

BLOCK = 512
FILES = {"model.so": b"code" * 400, "data/constants.bin": b"numbers", "empty": b""}


@pytest.fixture
def keys(tmp_path):
    """Make a user's private key once; returns its path."""

    def key(name):
        path = tmp_path / f"{name}.pem"
        if not path.exists():
            create_key(path)
        return path

    return key


@pytest.fixture
def store_of(tmp_path, keys):
    """The store of a user who signs, and trusts the users named."""
    opened = []

    def store(name, *trusted, policy="signed", signs=True):
        listed = tuple(public_key(read_key(keys(other))) for other in trusted)
        trust = Trust(policy, listed, keys(name) if signs else None)
        opened.append(Store(tmp_path / f"store-{name}-{len(opened)}", trust=trust))
        return opened[-1]

    yield store
    for each in opened:
        each.close()


@pytest.fixture
def ours(store_of):
    return store_of("ours")


@pytest.fixture
def theirs(store_of):
    """The store of somebody who trusts us."""
    return store_of("theirs", "ours")


def written(store, items, documents=()):
    stream = io.BytesIO()
    archive.write(stream, store, items, documents)
    return stream.getvalue()


def members_of(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        return [(info, opened.extractfile(info).read()) for info in opened]


def tar_of(members, *, format=tarfile.USTAR_FORMAT):  # noqa: A002
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as opened:
        for info, data in members:
            if info.isreg():
                info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def plain(name, data=b""):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def read(data, store, **kwargs):
    return archive.read(io.BytesIO(data), store, **kwargs)


def everything_below(folder):
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def test_objects_and_documents_come_back_and_their_requests_are_known(ours, theirs, publish, digest_of):
    one, two = publish(ours, "a", FILES), publish(ours, "w", kind="weights")
    entry = {"type": "entry", "request": digest_of("r"), "entry": {"object": one.digest}}
    data = written(ours, [("objects", one.digest), ("weights", two.digest)], [pack(entry, ours.trust)])
    assert [info.name.rsplit("/", 1)[-1] for info, _ in members_of(data)][:2] == ["manifest.json", "signatures.json"]
    imported = read(data, theirs)
    document = pack(entry, ours.trust)
    assert imported == archive.Imported([("objects", one.digest), ("weights", two.digest)], [document])
    found = theirs.read("objects", one.digest).artifact
    assert {name: found.file(name).read_bytes() for name in FILES} == FILES
    assert found.manifest == one.manifest
    assert found.file("model.so").stat().st_mode & 0o777 == 0o400
    assert theirs.entries(digest_of("request-a")) == [{"object": one.digest}]
    assert list((theirs.root / "tmp").iterdir()) == []
    assert written(theirs, [("objects", one.digest), ("weights", two.digest)], [pack(entry, ours.trust)]) == data


def test_object_that_is_there_is_kept_and_a_damaged_one_is_replaced(ours, theirs, publish):
    artifact = publish(ours, "a", FILES)
    data = written(ours, [("objects", artifact.digest)])
    read(data, theirs)
    path = theirs.read("objects", artifact.digest).artifact.file("model.so")
    inode = path.stat().st_ino
    read(data, theirs)
    assert path.stat().st_ino == inode
    path.chmod(0o600)
    path.write_bytes(b"other")
    path.chmod(0o400)
    assert read(data, theirs).objects
    assert isinstance(theirs.read("objects", artifact.digest), Hit)
    assert path.read_bytes() == FILES["model.so"]


@pytest.mark.parametrize("policy", ["signed", "none"])
def test_cut_at_any_block_leaves_whole_objects_only_and_says_so(store_of, publish, policy):
    ours, theirs = store_of("ours", policy=policy), store_of("theirs", "ours", policy=policy)
    digests = [publish(ours, name, FILES).digest for name in ("a", "b")]
    data = written(ours, [("objects", digest) for digest in digests])
    with pytest.raises(StoreError, match="no archive"):
        read(b"", theirs)
    counts = []
    for length in range(BLOCK, len(data) - BLOCK, BLOCK):
        imported = read(data[:length], theirs)
        assert imported.damaged
        assert imported.refused
        for kind, digest in imported.objects:
            assert isinstance(theirs.read(kind, digest), Hit)
        for digest in set(digests) - {digest for _, digest in imported.objects}:
            assert isinstance(theirs.read("objects", digest), Miss)
        counts.append(len(imported.objects))
        for _, digest in imported.objects:
            theirs.remove("objects", digest)
        assert list((theirs.root / "tmp").iterdir()) == []
        assert list((theirs.root / "quarantine").iterdir()) == []
    assert set(counts) == {0, 1}
    assert counts == sorted(counts)
    assert len(read(data[:-BLOCK], theirs).objects) == 2


@pytest.mark.parametrize("data", [b"\x80\x04\x95", b"PK\3\4" * 200, b"not a tar" * 100, b"\xff" * 2048])
def test_what_is_no_archive_is_an_error(theirs, data):
    with pytest.raises(StoreError, match="no archive"):
        read(data, theirs)


def special(kind):
    def change(members, prefix):
        info = tarfile.TarInfo(f"{prefix}/empty")
        info.type, info.linkname = kind, "/etc/passwd"
        position = next(index for index, (each, _) in enumerate(members) if each.name.endswith("empty"))
        members[position] = (info, b"")

    return change


def add(name, data=b"x"):
    def change(members, prefix):
        members.append(plain(name.format(prefix=prefix), data))

    return change


def replace_file(name, edit):
    def change(members, prefix):
        for index, (info, data) in enumerate(members):
            if info.name == f"{prefix}/{name}":
                members[index] = plain(info.name, edit(data))

    return change


def drop(name):
    def change(members, prefix):
        members[:] = [item for item in members if item[0].name != f"{prefix}/{name}"]

    return change


def double(members, _):
    members.append(members[-1])


def manifest_last(members, _):
    members.append(members.pop(0))


REFUSED = {
    "dots": (add("{prefix}/../../escaped"), "not in its manifest"),
    "dots at the start": (add("../escaped"), "nothing of that name"),
    "absolute": (add("/etc/escaped"), "nothing of that name"),
    "absolute within": (add("{prefix}//etc/escaped"), "not in its manifest"),
    "symlink": (special(tarfile.SYMTYPE), "no plain file"),
    "hardlink": (special(tarfile.LNKTYPE), "no plain file"),
    "device": (special(tarfile.CHRTYPE), "no plain file"),
    "pipe": (special(tarfile.FIFOTYPE), "no plain file"),
    "folder": (special(tarfile.DIRTYPE), "no plain file"),
    "sparse": (special(tarfile.GNUTYPE_SPARSE), "no plain file"),
    "duplicate": (double, "there twice"),
    "two manifests": (add("{prefix}/manifest.json"), "not in its manifest"),
    "late signatures": (add("{prefix}/signatures.json"), "not in its manifest"),
    "no name": (add("{prefix}"), "not in its manifest"),
    "not listed": (add("{prefix}/extra"), "not in its manifest"),
    "missing": (drop("empty"), "'empty' is missing"),
    "no manifest": (drop("manifest.json"), "does not begin with its manifest"),
    "manifest last": (manifest_last, "does not begin with its manifest"),
    "larger": (replace_file("model.so", lambda data: data + b"x"), "its manifest says 1600"),
    "smaller": (replace_file("model.so", lambda data: data[1:]), "its manifest says 1600"),
    "other bytes": (replace_file("model.so", lambda data: data[::-1]), "sha256"),
    "other manifest": (replace_file("manifest.json", lambda data: data + b" "), "signature is wrong"),
    "large manifest": (replace_file("manifest.json", lambda data: data.ljust(17 << 20)), "at most"),
    "large signatures": (replace_file("signatures.json", lambda data: data.ljust(1 << 20)), "at most"),
    "not signed": (drop("signatures.json"), "not signed"),
    "signed by nonsense": (replace_file("signatures.json", lambda _: b"[" * 10_000), "not signed"),
    "unknown kind": (add("pickles/{prefix}/x.pkl"), "nothing of that name"),
}


@pytest.mark.parametrize(("change", "why"), REFUSED.values(), ids=REFUSED)
def test_member_that_is_wrong_is_refused_and_nothing_is_written_for_it(ours, theirs, publish, tmp_path, change, why):
    bad, good = publish(ours, "a", FILES).digest, publish(ours, "b").digest
    members = members_of(written(ours, [("objects", bad)]))
    change(members, f"objects/{bad}")
    before = everything_below(tmp_path)
    imported = read(tar_of([*members, *members_of(written(ours, [("objects", good)]))]), theirs)
    assert why in imported.refused[0]
    stands_apart = "nothing of that name" in why
    assert imported.objects == [("objects", bad)] * stands_apart + [("objects", good)]
    assert isinstance(theirs.read("objects", bad), Hit if stands_apart else Miss)
    new = [path for path in everything_below(tmp_path) if path not in before and "/index/" not in str(path)]
    assert all(f"/{good}/" in str(path) or (stands_apart and f"/{bad}/" in str(path)) or "locks" in str(path) for path in new)  # fmt: skip


def test_extensions_of_tar_are_not_understood(ours, theirs, publish):
    digest = publish(ours, "a", FILES).digest
    members = members_of(written(ours, [("objects", digest)]))
    for info, _ in members:
        info.pax_headers = {"path": info.name.replace("model.so", "../escaped"), "comment": "x"}
    imported = read(tar_of(members, format=tarfile.PAX_FORMAT), theirs)
    assert imported.objects == []
    assert imported.refused


def test_header_that_promises_more_than_there_is_costs_no_memory(ours, theirs, publish):
    digest = publish(ours, "a", FILES).digest
    huge = tarfile.TarInfo(f"objects/{digest}/manifest.json")
    huge.size = 1 << 32
    imported = read(huge.tobuf(tarfile.USTAR_FORMAT) + b"x" * 4096, theirs)
    assert any("at most" in why for why in imported.refused)
    negative = bytearray(huge.tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative)
    assert "less than no bytes" in read(bytes(negative), theirs).refused[0]


def test_whom_nobody_trusts_is_told_from_damage(store_of, ours, publish):
    data = written(ours, [("objects", publish(ours, "a", FILES).digest)])
    strangers = read(data, store_of("stranger"))
    assert (strangers.objects, strangers.damaged) == ([], False)
    assert "not among cache.keys" in strangers.refused[0]
    unsigned = store_of("nobody", policy="none", signs=False)
    item = [("objects", publish(unsigned, "a", FILES).digest)]
    refused = read(written(unsigned, item), store_of("theirs", "ours"))
    assert (refused.objects, refused.damaged, "not signed" in refused.refused[0]) == ([], False, True)
    assert read(written(unsigned, item), store_of("any", policy="none")).objects == item


def test_signature_of_one_object_is_not_another_s(ours, theirs, publish, digest_of):
    members = members_of(written(ours, [("objects", publish(ours, "a", FILES).digest)]))
    other = f"objects/{digest_of('b')}"
    moved = [plain(f"{other}/{info.name.split('/', 2)[2]}", data) for info, data in members]
    assert "its manifest is that of" in read(tar_of(moved), theirs).refused[0]


def test_only_what_was_asked_for_gets_in(ours, theirs, publish, digest_of):
    items = [("objects", publish(ours, name).digest) for name in ("a", "b")]
    imported = read(written(ours, items, [pack({}, ours.trust)]), theirs, only=items[1])
    assert imported.objects == [items[1]]
    assert len(imported.refused) == 2


def test_document_by_a_stranger_or_changed_is_refused(ours, theirs, store_of):
    stranger = store_of("stranger")
    good, other = pack({"type": "alias"}, ours.trust), pack({"type": "entry"}, stranger.trust)
    changed = json.dumps({**json.loads(good), "content": json.dumps({"type": "entry"})}).encode()
    imported = read(written(ours, [], [other, changed, b"\x80\x04pickle", good, b"[]", b'{"content": 1}']), theirs)
    assert imported.documents == [good]
    assert (len(imported.refused), imported.damaged) == (5, False)
    assert "not among cache.keys" in imported.refused[0]
    assert "signature is wrong" in imported.refused[1]


def test_store_that_trusts_its_own_user_alone_imports_nothing(ours, store, publish):
    digest = publish(ours, "a", FILES).digest
    with pytest.raises(ConfigError, match=r"cache\.trust=signed"):
        read(written(ours, [("objects", digest)]), store)
    with store.staging() as folder, pytest.raises(ConfigError, match=r"cache\.trust=none"):
        store.adopt("objects", digest, folder)


def test_what_holds_pickles_is_neither_written_nor_read(ours, theirs, publish, digest_of, monkeypatch):
    with ours.staging() as staging:
        (staging / "artifacts.bin").write_bytes(b"pickles")
        digest = digest_of("jit")
        named = {"factors": {}, "verified": {}, "provenance": {}, "requests": []}
        ours.publish("objects", digest, staging, content={"engine": "jit"}, **named)
    with pytest.raises(StoreError, match="pickles"):
        written(ours, [("objects", digest)])
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "holds_pickles", False)
        data = written(ours, [("objects", digest)])
    imported = read(data, theirs)
    assert imported.objects == []
    assert "pickles" in imported.refused[0]
    assert isinstance(theirs.read("objects", digest), Miss)


def test_damaged_or_absent_object_is_not_written(ours, publish, digest_of):
    with pytest.raises(StoreError, match="no objects/"):
        written(ours, [("objects", digest_of("none"))])
    artifact = publish(ours, "a", FILES)
    path = artifact.file("model.so")
    path.chmod(0o600)
    path.write_bytes(b"other")
    with pytest.raises(StoreError, match="can't be written into an archive"):
        written(ours, [("objects", artifact.digest)])
