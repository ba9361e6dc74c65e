"""What the soak suites share: their size, and the counts that are printed at the end."""

from __future__ import annotations

import os

import pytest

from .probes import Probes

COUNTS = pytest.StashKey[dict[str, str]]()
FULL = os.environ.get("APP_SOAK") == "full"


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the suites run in full size."""
    return FULL


@pytest.fixture(scope="session")
def probes(tmp_path_factory):
    """The suite's projects and seeded store."""
    made = Probes(tmp_path_factory.mktemp("mutations"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def counts(pytestconfig) -> dict[str, str]:
    """What a suite counted, by the words that are printed with it at the end."""
    return pytestconfig.stash.setdefault(COUNTS, {})


def pytest_terminal_summary(terminalreporter, config):
    """Print the counts even where all tests pass."""
    for words, count in config.stash.get(COUNTS, {}).items():
        terminalreporter.write_line(f"{words}: {count}")
