"""Durations in bounded memory: a histogram whose bounds grow by a constant ratio, extremes, and the last ones."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import Counter, deque
from operator import mul

# Bounds grow by this; a percentile is read at the middle between two, so it is within 0.75 %.
RATIO = 1.015
# What is shorter or longer counts as this; between them lie 2,784 steps.
SHORTEST_S, LONGEST_S = 1e-9, 1e9
NUM_RECENT = 100
PERCENTILES = (50, 90, 99)
_PER_STEP = 1 / math.log(RATIO)


class Durations:
    """What is kept of durations (seconds) that were folded."""

    def __init__(self) -> None:
        self.histogram: Counter[int] = Counter()
        self.recent: deque[float] = deque(maxlen=NUM_RECENT)
        self.shortest, self.longest = math.inf, 0.0

    def add(self, batch: list[float], weight: int) -> None:
        """Each duration stands for `weight` calls."""
        steps = Counter(map(math.floor, map(mul, map(math.log, batch), itertools.repeat(_PER_STEP))))
        for step, count in steps.items():
            self.histogram[step] += count * weight
        self.recent.extend(batch[-NUM_RECENT:])
        self.shortest, self.longest = min(self.shortest, *batch), max(self.longest, *batch)

    def summary(self) -> dict[str, float]:
        """Extremes, the recent average, and percentiles by nearest rank."""
        if not self.recent:
            return dict.fromkeys(("min_time", "max_time", "recent_avg", *(f"p{each}" for each in PERCENTILES)), 0.0)
        steps = sorted(self.histogram)
        below = list(itertools.accumulate(self.histogram[step] for step in steps))
        found = {
            "min_time": self.shortest,
            "max_time": self.longest,
            "recent_avg": sum(self.recent) / len(self.recent),
        }
        for percent in PERCENTILES:
            rank = -(-percent * below[-1] // 100)
            middle: float = RATIO ** (steps[bisect_left(below, rank)] + 0.5)
            found[f"p{percent}"] = min(max(middle, self.shortest), self.longest)
        return found
