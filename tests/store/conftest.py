"""What the store's tests share: a store, a digest, and one way to publish."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from app.store import Artifact, Store

REPOSITORY = Path(__file__).parents[2]


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def publish(store: Store, name: str = "a", files: dict[str, bytes] | None = None, kind: str = "objects") -> Artifact:
    """Publish an object of the digest of `name`, with one direct entry of the request `request-<name>`."""
    files = {"model.so": b"code", "extra/constants.bin": b"numbers"} if files is None else files
    with store.staging() as folder:
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        return store.publish(
            kind,
            digest_of(name),
            folder,
            factors={"name": name},
            content={"inputs": [1, None, "x"]},
            verified={"passed": True},
            provenance={"created_at": "today"},
            requests=[{"request": digest_of(f"request-{name}"), "entry": {"object": digest_of(name)}}],
        )


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture(name="publish")
def publish_fixture():
    return publish


@pytest.fixture(name="digest_of")
def digest_of_fixture():
    return digest_of


@pytest.fixture
def child():
    """Start `children.py`, this package's other process, and kill what is left of it."""
    started = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        script = [sys.executable, "-m", "tests.store.children", *map(str, arguments)]
        started.append(subprocess.Popen(script, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
