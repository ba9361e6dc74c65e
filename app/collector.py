"""Collector: Python's garbage collector, kept from going over what an import has just made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """No automatic collection inside; then all there is counts as old, as if it had outlived the passes.

    An import makes no garbage to speak of, and torch's makes so many objects that the passes over them take a tenth
    of a second, and once more as long in whatever comes next. What is garbage a later full pass still frees:
    `gc.freeze` and `gc.unfreeze` only move objects to the oldest generation, in constant time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # a program that has frozen objects of its own wants them to stay so
            gc.freeze()
            gc.unfreeze()
        gc.enable()
