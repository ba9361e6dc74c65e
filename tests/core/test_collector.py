"""The collector is off inside, on afterwards, and frees what it always would."""

from __future__ import annotations

import gc
import weakref

import pytest

from app.collector import paused


class Node:
    """Garbage that only the collector can free."""

    def __init__(self):
        self.itself = self


def test_nothing_is_collected_inside_and_all_of_it_later():
    gc.collect()
    with paused():
        assert not gc.isenabled()
        garbage = weakref.ref(Node())
        made = [Node() for _ in range(5000)]  # many times what starts a pass
        assert garbage() is not None
    assert gc.isenabled()
    assert gc.get_count()[0] < len(made), "what was made inside is old, and starts no pass"
    assert garbage() is not None
    gc.collect()
    assert garbage() is None


def test_it_ends_with_an_error_too_and_leaves_a_collector_that_is_off():
    with pytest.raises(ValueError, match="mine"), paused():
        raise ValueError("mine")
    assert gc.isenabled()
    gc.disable()
    try:
        with paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_a_program_has_frozen_stays_frozen():
    kept = [[]]
    gc.freeze()
    try:
        with paused():
            pass
        assert not any(each is kept for each in gc.get_objects())  # which leaves out what is frozen, and only that
        assert gc.isenabled()
    finally:
        gc.unfreeze()
