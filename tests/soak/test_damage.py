"""Whatever happens to any file of a store, the answer is the right one, or a reason and a new one."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import time
from functools import partial
from pathlib import Path

import pytest

from app import files
from app.keys import Key
from app.lookup import Found, NotFound, find
from app.store import KINDS, Store

SMOKE = pytest.mark.smoke
# A run that writes down which libraries it loads.
WATCHED = """
import hashlib, pathlib, sys
from app.cli import main
from app.runtime import aoti
load, log = aoti.AotiRunner.__init__, pathlib.Path(sys.argv.pop(1))

def watched(self, library, *args, **kwargs):
    log.write_text(log.read_text() + hashlib.sha256(library.read_bytes()).hexdigest() + " ")
    load(self, library, *args, **kwargs)

aoti.AotiRunner.__init__ = watched
main()
"""


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Damages: each takes a file and returns whether it changed anything


def flip(where, path):
    data = bytearray(path.read_bytes())
    if not data:
        return False
    data[int(where * (len(data) - 1))] ^= 1
    return rewrite(path, bytes(data))


def rewrite(path, data):
    changed = data != path.read_bytes()
    mode = path.stat().st_mode
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(mode)
    return changed


def truncate(share, path):
    return rewrite(path, path.read_bytes()[: int(share * path.stat().st_size)])


def append(path):
    return rewrite(path, path.read_bytes() + b"\0")


def delete(path):
    path.unlink()
    return True


def make_directory(path):
    path.unlink()
    path.mkdir()
    return True


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)
    return True


def make_symlink(path):
    """A link even to the right bytes is damage: whoever holds its other end may change them."""
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")
    return True


def dangle(path):
    path.unlink()
    path.symlink_to("nowhere")
    return True


def restore_times(path):
    """Change a byte as one would who wants it unseen: same size, same time of change."""
    before = path.stat()
    changed = flip(0.5, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return changed


def swap(path, other):
    changed = path.read_bytes() != other.read_bytes()
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)
    return changed


DAMAGES = {
    **{f"byte flipped at {share:.2f}": partial(flip, share) for share in (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)},
    **{f"truncated to {share:.2f}": partial(truncate, share) for share in (0.1, 0.5, 0.99)},
    "byte flipped, time stamp restored": restore_times,
    "byte appended": append,
    "emptied": partial(truncate, 0.0),
    "deleted": delete,
    "a directory in its place": make_directory,
    "a pipe in its place": make_pipe,
    "a symlink to it in its place": make_symlink,
    "a dangling symlink in its place": dangle,
}


class Patient:
    """A copy of the store with two artifacts, and what is known to be in it."""

    def __init__(self, tiny, root) -> None:
        self.root, self.records = root, tiny.records
        shutil.copytree(tiny.store, root, symlinks=True)
        with Store(root) as store:
            found = self.answers(store)
        self.digests = {
            name: {artifact.digest for artifact in (answer.artifact, answer.weights) if artifact}
            for name, answer in found.items()
        }
        self.sound = {path.relative_to(root): sha256(path) for path in self.files(*KINDS)}
        self.copy = root.with_name("sound")
        shutil.copytree(root, self.copy, symlinks=True)
        time.sleep(0.01)  # a change within one tick of the file system's clock could not be told

    def files(self, *folders):
        return sorted(path for name in folders for path in (self.root / name).rglob("*") if path.is_file())

    def answers(self, store):
        return {name: find(store, Key(record["key"]["factors"]), {}) for name, record in self.records.items()}

    def heal(self):
        """Put the artifacts' files back as a compiler would make them, through the store."""
        with Store(self.root) as store, Store(self.copy, readonly=True) as sound:
            for manifest in [one for kind in KINDS for one in sound.manifests(kind)]:
                place = self.copy / manifest.kind / manifest.digest[:2] / manifest.digest
                with store.staging() as staging:
                    for name in manifest.files:
                        shutil.copyfile(place / name, staging / name)
                    about = ("factors", "content", "verified", "provenance", "requests")
                    facts = {name: getattr(manifest, name) for name in about}
                    store.publish(manifest.kind, manifest.digest, staging, **facts)

    def assert_sound(self, found):
        for artifact in filter(None, (found.artifact, found.weights)):
            for name in artifact.manifest.files:
                path = artifact.file(name)
                assert sha256(path) == self.sound[path.relative_to(self.root)]


@pytest.fixture
def patients(tiny, tmp_path, monkeypatch):
    """Fresh copies of the store; every digest in them is remembered, as if the files were old."""
    monkeypatch.setattr(files, "SETTLED_NS", -(10**18))
    numbers = itertools.count()
    return lambda: Patient(tiny, tmp_path / str(next(numbers)) / "store")


def check_object_damage(patient, paths):
    """The artifacts with a damaged file are quarantined with the reason, the others served, and all after a rebuild."""
    damaged = {path.relative_to(patient.root).parts[2] for path in paths}
    with Store(patient.root) as store:
        for name, answer in patient.answers(store).items():
            if patient.digests[name] & damaged:
                assert isinstance(answer, NotFound), name
                assert "damaged and is quarantined" in answer.reasons[0]
            else:
                assert isinstance(answer, Found), name
                patient.assert_sound(answer)
    patient.heal()
    cells = {cell.name.rpartition("-")[0]: cell for cell in (patient.root / "quarantine").iterdir()}
    assert set(cells) == damaged
    assert all((cell / "reason.txt").read_text().strip() for cell in cells.values())
    with Store(patient.root) as store:
        for answer in patient.answers(store).values():
            assert isinstance(answer, Found)
            patient.assert_sound(answer)


def check_harmless(patient, *, any_answer=False):
    """Both artifacts are served as before; or, where `any_answer`, not at all until the index is made again."""
    with Store(patient.root) as store:
        for answer in patient.answers(store).values():
            assert any_answer or isinstance(answer, Found), answer
            if isinstance(answer, Found):
                patient.assert_sound(answer)
        store.rebuild_index()
        for answer in patient.answers(store).values():
            assert isinstance(answer, Found)
            patient.assert_sound(answer)
    assert not list((patient.root / "quarantine").iterdir())


@pytest.mark.smoke
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_an_object_is_never_served_and_is_made_again(patients, count, few, damage):
    for number in range(0, len(patients().files(*KINDS)), 4 if few else 1):
        patient = patients()
        path = patient.files(*KINDS)[number]
        if DAMAGES[damage](path):
            check_object_damage(patient, [path])
            count("damages found")


@pytest.mark.timeout(1200)
def test_files_that_change_places_are_never_served_and_are_made_again(patients, count):
    for first, second in itertools.combinations(range(len(patients().files(*KINDS))), 2):
        patient = patients()
        paths = [patient.files(*KINDS)[number] for number in (first, second)]
        if swap(*paths):
            check_object_damage(patient, paths)
            count("damages found")


def test_objects_that_change_places_are_never_served_and_are_made_again(patients, count):
    patient = patients()
    first, second = (
        next((patient.root / "objects").glob(f"??/{r['key']['object']}")) for r in patient.records.values()
    )
    aside = patient.root / "aside"
    for source, target in ((first, aside), (second, first), (aside, second)):
        source.rename(target)
    check_object_damage(patient, [first / "manifest.json", second / "manifest.json"])
    count("damages found", 2)


@pytest.mark.smoke
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_answers_right_and_is_made_again(patients, count, damage):
    patient = patients()
    if DAMAGES[damage](patient.root / "index" / "cache.db"):
        check_harmless(patient, any_answer="flipped" in damage)
        count("damages of the index survived")


@pytest.mark.timeout(1200)
def test_a_byte_flipped_anywhere_in_the_index_answers_right(patients, count, full):
    size = (patients().root / "index" / "cache.db").stat().st_size
    steps = 400 if full else 20
    for step in range(steps):
        patient = patients()
        flip((step + 0.5) / steps, patient.root / "index" / "cache.db")
        check_harmless(patient, any_answer=True)
        count("damages of the index survived")
    assert size > steps


def test_the_whole_index_can_be_deleted_at_any_time(patients, count):
    patient = patients()
    with Store(patient.root) as store:
        shutil.rmtree(patient.root / "index")
        for answer in patient.answers(store).values():
            assert isinstance(answer, Found)
    shutil.rmtree(patient.root / "index", ignore_errors=True)
    check_harmless(patient)
    count("damages of the index survived", 2)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_locks_and_scratch_change_no_answer(patients, count, full, damage):
    found = patients().files("locks", "scratch")
    for number in range(0, len(found), 1 if full else 7):
        patient = patients()
        DAMAGES[damage](patient.files("locks", "scratch")[number])
        check_harmless(patient)
        count("damages of locks and scratch survived")


def damaged_run(run_app, tiny, root, log, *args):
    log.write_text("")
    return run_app([*tiny.args, f"cache.dir={root}", *args], env=tiny.env, program=("-c", WATCHED, str(log)))


COMMANDS = {
    "library": ("frozen", "objects", "{object}/model.so", "byte flipped at 0.50", "miss"),
    "manifest": ("frozen", "objects", "{object}/manifest.json", "deleted", "miss"),
    "weights": ("external", "weights", "weights.safetensors", "truncated to 0.50", "graph-hit"),
    "index": ("frozen", "index", "cache.db", "emptied", "direct-hit"),
    "locks": ("frozen", "locks", "commit/{object:.2}.lock", "a directory in its place", "direct-hit"),
}


@pytest.mark.parametrize("name", [pytest.param(each, marks=SMOKE if each == "library" else ()) for each in COMMANDS])
def test_the_next_run_finds_the_damage_rebuilds_once_and_answers_right(tiny, run_app, tmp_path, count, name):
    weights, folder, file, damage, outcome = COMMANDS[name]
    root, log = tmp_path / "store", tmp_path / "loaded"
    shutil.copytree(tiny.store, root)
    name = file.format(object=tiny.records[weights]["key"]["object"])
    (path,) = (path for path in (root / folder).rglob("*") if str(path).endswith(f"/{name}"))
    DAMAGES[damage](path)
    bad = sha256(path) if path.is_file() else "none"
    run = damaged_run(run_app, tiny, root, log, f"weights={weights}")
    assert run.code == 0, run.stderr
    assert (run.record["cache"]["outcome"], run.record["rung"], run.record["fallbacks"]) == (outcome, "compiled", [])
    assert run.record["verify"]["passed"]
    assert log.read_text().split() == [sha256(Path(run.record["artifact_dir"]) / "model.so")]
    assert bad not in log.read_text()
    cells = list((root / "quarantine").iterdir())
    assert len(cells) == (outcome != "direct-hit")
    if cells:
        assert any("quarantined" in reason for reason in run.record["cache"]["miss_reasons"])
    again = damaged_run(run_app, tiny, root, log, f"weights={weights}", "cache.on_miss=fail").record
    assert (again["cache"]["outcome"], again["rung"]) == ("direct-hit", "compiled")
    assert list((root / "quarantine").iterdir()) == cells
    count("damages found", len(cells))
