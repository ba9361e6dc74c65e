"""scikit-learn's digits: 1,797 images of handwriting, 8 x 8 grey values, of which every fourth is held out."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ConfigError

# Rows 3, 7, 11, ...: the same for ever, which no library's random split promises.
HOLD_OUT = 4


def load() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """All images, float32 [1797, 1, 8, 8] from 0 to 1, and their digits, int64 [1797].

    Raises:
        ConfigError: scikit-learn isn't installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(f"data=digits needs scikit-learn: {error} (pip install 'aot-app[digits]')") from error
    found = load_digits()
    return (found.images[:, None] / 16).astype(np.float32), found.target.astype(np.int64)


def held_out(num_rows: int) -> np.ndarray[Any, Any]:
    """Which rows were never trained on, bool [num_rows]."""
    return np.asarray(np.arange(num_rows) % HOLD_OUT == HOLD_OUT - 1)
