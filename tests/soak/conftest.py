"""What the soak suites share: their size, and the counts that they print at the end."""

from __future__ import annotations

import os

import pytest

COUNTS: dict[str, int] = {}


@pytest.fixture(scope="session")
def count():
    """Add to a count that is printed at the end of the session."""

    def add(name: str, n: int = 1) -> None:
        COUNTS[name] = COUNTS.get(name, 0) + n

    return add


@pytest.fixture(scope="session")
def full():
    """Whether the suites run in full; otherwise each takes a sample."""
    return os.environ.get("APP_SOAK") == "full"


def pytest_terminal_summary(terminalreporter):
    for name, n in COUNTS.items():
        terminalreporter.write_line(f"{name}: {n}")
