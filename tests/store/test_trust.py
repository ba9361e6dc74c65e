"""Nobody gets in: places that others could write, objects of others, signatures, and links that lead out."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import names
from app.config import CacheConfig
from app.errors import AppError, ConfigError, StoreError
from app.store import Hit, Store, Trust, Untrusted
from app.store import trust as trust_module
from app.store.trust import create_key, pack, unpack

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user, which only root may")


@pytest.fixture
def keys(tmp_path):
    """The files of two private keys, and their public halves."""
    paths = [tmp_path / "keys" / name for name in ("ours.pem", "theirs.pem")]
    return [(path, create_key(path)) for path in paths]


# Places


@pytest.mark.parametrize("mode", [0o777, 0o722, 0o1777])
def test_a_store_that_others_can_write_is_refused_with_the_command_that_mends_it(tmp_path, mode):
    root = tmp_path / "cache"
    Store(root).close()
    root.chmod(mode)
    if mode & stat.S_ISVTX and os.geteuid() == 0:
        Store(root).close()  # root's own sticky folder, such as /tmp
        return
    with pytest.raises(StoreError, match=f"can be written by other users.*chmod go-w {root}"):
        Store(root)
    root.chmod(0o700)
    Store(root).close()


def test_a_parent_that_others_can_write_is_refused_too(tmp_path):
    parent = tmp_path / "open"
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(StoreError, match=f"chmod go-w {parent}"):
        Store(parent / "deep" / "cache")
    assert not list(parent.iterdir())


def test_a_link_to_an_open_place_is_refused_by_where_it_leads(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "cache").symlink_to(tmp_path / "open")
    with pytest.raises(StoreError, match=f"chmod go-w {tmp_path / 'open'}"):
        Store(tmp_path / "cache")


@needs_root
def test_a_place_of_another_user_is_refused(tmp_path):
    root = tmp_path / "cache"
    Store(root).close()
    os.chown(root, NOBODY, NOBODY)
    with pytest.raises(StoreError, match=r"belongs to .*set cache\.dir"):
        Store(root)


def test_a_group_of_ones_own_may_write(tmp_path, monkeypatch):
    root = tmp_path / "cache"
    Store(root).close()
    root.chmod(0o770)
    monkeypatch.setattr(trust_module, "_is_alone_in", lambda gid: True)
    Store(root).close()
    monkeypatch.setattr(trust_module, "_is_alone_in", lambda gid: False)
    with pytest.raises(StoreError, match="chmod go-w"):
        Store(root)


def test_everything_that_a_store_makes_is_for_its_owner_alone(store, publish):
    publish(store)
    open_to_others = [path for path in store.root.rglob("*") if path.lstat().st_mode & 0o022]
    assert open_to_others == []
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in store.root.iterdir() if path.is_dir())


@pytest.mark.parametrize("which", ["objects", "prefix"])
def test_a_link_that_leads_out_of_the_store_is_not_followed(store, publish, digest_of, tmp_path, which):
    path = publish(store).path
    linked = path.parent if which == "prefix" else path.parent.parent
    shutil.move(linked, tmp_path / "outside")
    linked.symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="is a symbolic link"):
        store.read("objects", digest_of("a"))
    with pytest.raises(StoreError, match="is a symbolic link"):
        publish(store)
    assert (tmp_path / "outside").exists()


# Owners


@needs_root
@pytest.mark.parametrize("which", ["model.so", "."])
def test_what_another_user_wrote_is_treated_as_absent_and_said(store, publish, digest_of, which):
    path = publish(store).path
    os.chown(path / which, NOBODY, NOBODY)
    found = store.read("objects", digest_of("a"))
    assert isinstance(found, Untrusted)
    assert "belongs to" in found.reason
    with Store(store.root, trust=Trust("none")) as trusting:
        assert isinstance(trusting.read("objects", digest_of("a")), Hit)
    publish(store)
    assert isinstance(store.read("objects", digest_of("a")), Hit)
    assert not list((store.root / "quarantine").iterdir())


@pytest.mark.parametrize("which", ["model.so", "manifest.json", "."])
def test_what_others_could_have_written_is_treated_as_absent(store, publish, digest_of, which):
    path = publish(store).path
    (path / which).chmod(0o772 if which == "." else 0o646)
    found = store.read("objects", digest_of("a"))
    assert isinstance(found, Untrusted)
    assert "can be written by others" in found.reason


# Signatures


def test_only_what_a_listed_key_has_signed_is_there(tmp_path, publish, digest_of, keys):
    (our_path, ours), (their_path, theirs) = keys
    with Store(tmp_path / "cache", trust=Trust("signed", (), our_path)) as store:
        publish(store)
        assert isinstance(store.read("objects", digest_of("a")), Hit)
    for trust, found in [
        (Trust("signed", (ours,)), None),
        (Trust("signed", (theirs, ours)), None),
        (Trust("signed", (theirs,)), f"signed by {ours[:12]}, which is not among cache.keys"),
        (Trust("signed"), "not among cache.keys"),
        (Trust("signed", (), their_path), "not among cache.keys"),
    ]:
        with Store(tmp_path / "cache", trust=trust) as store:
            answer = store.read("objects", digest_of("a"))
            assert isinstance(answer, Hit) if found is None else found in answer.reason


def test_what_nobody_signed_is_not_there_and_is_made_anew(tmp_path, publish, digest_of, keys):
    (path, public), _ = keys
    with Store(tmp_path / "cache") as store:
        publish(store)
    with Store(tmp_path / "cache", trust=Trust("signed", (), path)) as store:
        assert "it is not signed" in store.read("objects", digest_of("a")).reason
        publish(store)
        assert isinstance(store.read("objects", digest_of("a")), Hit)
    with Store(tmp_path / "cache", trust=Trust("signed", (public,))) as store:
        assert isinstance(store.read("objects", digest_of("a")), Hit)


@pytest.mark.parametrize("which", ["manifest.json", "model.so", "signatures.json"])
def test_a_signature_covers_every_byte(tmp_path, publish, digest_of, keys, which):
    (path, _), _ = keys
    with Store(tmp_path / "cache", trust=Trust("signed", (), path)) as store:
        file = publish(store).path / which
        file.chmod(0o600)
        data = bytearray(file.read_bytes())
        data[-2] ^= 1
        file.write_bytes(data)
        assert not isinstance(store.read("objects", digest_of("a")), Hit)


def test_the_manifest_of_another_object_does_not_pass_for_this_ones(tmp_path, publish, digest_of, keys):
    (path, _), _ = keys
    with Store(tmp_path / "cache", trust=Trust("signed", (), path)) as store:
        first, second = publish(store, "a").path, publish(store, "b").path
        shutil.rmtree(first)
        shutil.copytree(second, first)
        assert not isinstance(store.read("objects", digest_of("a")), Hit)


def test_a_key_that_others_could_read_or_that_is_none_is_refused(tmp_path, keys):
    (path, _), _ = keys
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        _ = Trust("signed", (), path).trusted
    with pytest.raises(ConfigError, match=r"task=cache\.keygen"):
        _ = Trust("signed", (), tmp_path / "nothing.pem").trusted
    (tmp_path / "text.pem").write_text("no key")
    (tmp_path / "text.pem").chmod(0o600)
    with pytest.raises(ConfigError, match="not an unencrypted private key"):
        _ = Trust("signed", (), tmp_path / "text.pem").trusted


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=3), st.data())
def test_a_signed_document_comes_back_whole_or_not_at_all(content, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key.pem"
        trust = Trust("signed", (create_key(path),), path)
        document = pack(content, trust)
        assert unpack(document, trust) == content
        place = data.draw(st.integers(0, len(document) - 1))
        changed = (
            document[:place] + bytes([document[place] ^ (1 << data.draw(st.integers(0, 6)))]) + document[place + 1 :]
        )
        with suppress(ValueError):
            assert unpack(changed, trust) == content  # white space between tokens, say


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"5", b'{"content": 5, "signatures": {}}', b"[" * 5000])
def test_a_malformed_document_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        unpack(text, Trust("none"))


def test_a_planted_signature_file_that_is_no_mapping_is_no_signature(tmp_path, publish, digest_of, keys):
    (path, _), _ = keys
    with Store(tmp_path / "cache", trust=Trust("signed", (), path)) as store:
        file = publish(store).path / "signatures.json"
        for planted in ([], 5, {"x": 5}, {"x": None}, None):
            file.unlink()
            file.write_text(json.dumps(planted))
            assert isinstance(store.read("objects", digest_of("a")), Untrusted)


# Pickles


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def use_everything(root, digest, request):
    """Whatever reads a file of the store."""
    with suppress(AppError), Store(root) as store:
        for kind in ("objects", "weights"):
            list(store.manifests(kind))
            store.read(kind, digest)
            store.examine(kind, digest)
        store.entries(request)
        store.noted("answers")
        store.items()
        for name in store.documents("aliases"):
            with suppress(AppError):
                names.read(store, name, CacheConfig(dir=str(root)))
        store.rebuild_index()


def test_a_pickle_in_the_place_of_any_file_of_the_store_does_not_run(tmp_path, publish, digest_of, compose_settings):
    root, trace = tmp_path / "cache", tmp_path / "ran"
    bomb = pickle.dumps(Bomb(trace))
    with pytest.raises(FileNotFoundError):  # it is a bomb: there is no such folder
        pickle.loads(pickle.dumps(Bomb(tmp_path / "no" / "folder")))  # noqa: S301
    key = tmp_path / "key.pem"
    create_key(key)
    with Store(root, trust=Trust("own", (), key)) as store:
        publish(store, "a")
        publish(store, "a", kind="weights")
        names.save(store, "scorer", compose_settings(["model=linear"]))
    files = [path for path in root.rglob("*") if path.is_file()]
    assert {"manifest.json", "signatures.json", "model.so", "scorer.json", "cache.db"} <= {
        path.name for path in files
    }
    for number, path in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(root, copy)
        planted = copy / path.relative_to(root)
        planted.unlink()
        planted.write_bytes(bomb)
        use_everything(copy, digest_of("a"), digest_of("request-a"))
        assert not trace.exists(), path
