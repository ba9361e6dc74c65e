"""Evidence: what verified runs measured of each candidate on this machine, kept by request, and the choice it makes.

A figure stands for the object that was measured, its *witness*. While the files that led to that object are unchanged
it is believed; once they are not, it is as if nothing had been measured. Imports no torch.
"""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import environment, lookup, structured
from .compiler import unable
from .config import AUTO, FLOORS, PLACEMENTS, ModeConfig, PrecisionConfig, Settings, WeightsConfig
from .dependencies import named_files
from .errors import StoreError
from .keys import digest, request_key
from .record import PrecisionCandidate
from .store import Store
from .store.trust import pack, unpack

logger = logging.getLogger(__name__)

FOLDER = "evidence"
MOST_RUNS = 8
# External weights cost no more memory in a second process: what frozen ones save must be more than timing tells.
TIE = 0.03


@dataclass(frozen=True)
class Candidate:
    """A mode in a precision, with a place for the weights where that is to be chosen too."""

    mode: ModeConfig
    precision: str
    placement: str | None = None

    @property
    def name(self) -> str:
        """Like max-autotune/bf16, or max-autotune/bf16/external."""
        return "/".join([self.mode.name, self.precision, *([self.placement] if self.placement else [])])

    def of(self, given: Settings) -> Settings:
        """The settings with this in the place of what is `auto`; the floor that was given is fp32's."""
        places = [self.placement, given.weights.placement, PLACEMENTS[0]]
        weights = WeightsConfig(next(place for place in places if place not in {None, AUTO}))
        precision = given.precision
        if precision.name != self.precision:
            floor = precision.floor if self.precision == "fp32" else FLOORS[self.precision]
            precision = PrecisionConfig(self.precision, floor)
        return replace(given, mode=self.mode, precision=precision, weights=weights)


# What all the others are measured against.
EAGER = Candidate(ModeConfig("eager", engine="eager"), "fp32")


@dataclass(frozen=True)
class Run:
    """What one run measured of a candidate, and of fp32 eager in turns with it: medians in ms by batch size."""

    at: str
    p50_ms: dict[str, float]
    eager_ms: dict[str, float]


@dataclass(frozen=True)
class Evidence:
    """What is known of one candidate.

    Attributes:
        witness: A request and the object that it stood for: of this candidate, or of one that was measured with it.
        runs: The last ones.
        reason: Why it can't be kept.
        budget_s: The budget that it did not fit in; a larger one may do.
        judged: What a judge of precisions found, by the digest of what was asked.
    """

    witness: list[str]
    runs: list[Run] = field(default_factory=list)
    reason: str | None = None
    budget_s: float | None = None
    judged: dict[str, PrecisionCandidate] = field(default_factory=dict)

    def answers(self, question: Question) -> bool:
        """Whether nothing needs to be tried."""
        if self.reason is not None:
            return self.budget_s is None or question.budget_s <= self.budget_s
        verdict = self.judged.get(question.judge) if question.judge else None
        if question.judge and (verdict is None or not verdict.passed):
            return verdict is not None
        return self.speedup(question.batch) is not None

    def refusal(self, question: Question) -> str | None:
        """Why it can't be kept, or None."""
        verdict = self.judged.get(question.judge) if question.judge else None
        refused = verdict.reason or "it is refused" if verdict and not verdict.passed else None
        return self.reason or refused

    def speedup(self, batch: int) -> float | None:
        """How many times faster than fp32 eager: the median of what the runs found."""
        size = str(batch)
        ratios = [run.eager_ms[size] / run.p50_ms[size] for run in self.runs if size in run.p50_ms]
        return statistics.median(ratios) if ratios else None

    def p50_ms(self, batch: int) -> float | None:
        """The last run's median."""
        return next((run.p50_ms[str(batch)] for run in reversed(self.runs) if str(batch) in run.p50_ms), None)

    def joined(self, later: Evidence) -> Evidence:
        """What both say."""
        return replace(later, runs=[*self.runs, *later.runs][-MOST_RUNS:], judged=self.judged | later.judged)


@dataclass(frozen=True)
class Question:
    """What is asked: the batch size that decides, a digest of what judges precisions, the seconds to try in."""

    batch: int
    judge: str | None
    budget_s: float


def best(known: Mapping[str, Evidence], question: Question) -> str | None:
    """The fastest of those that may be kept, or None; with external weights if that costs next to nothing."""
    speeds = {
        name: speed
        for name, evidence in known.items()
        if evidence.refusal(question) is None and (speed := evidence.speedup(question.batch)) is not None
    }
    fastest = max(speeds, key=lambda name: speeds[name], default=None)
    if fastest is None:
        return None
    external = f"{fastest.rpartition('/')[0]}/{PLACEMENTS[1]}"
    return external if speeds.get(external, 0.0) >= speeds[fastest] * (1 - TIE) else fastest


def candidates(given: Settings, device: str) -> dict[str, Candidate]:
    """All that settings with an `auto` may come to, by name; modes that come to the same code here are one."""
    modes = [given.mode]
    if given.mode.name == AUTO:
        modes = [mode for mode in given.auto.portfolio.values() if mode.rung in given.fallback.rungs]
    precisions = list(FLOORS) if given.precision.name == AUTO else [given.precision.name]
    found = [Candidate(mode, each, place) for mode in modes for each in precisions for place in _places(given, mode)]
    able = [each for each in found if unable(each.of(given), device) is None]
    found = able or [Candidate(EAGER.mode if given.mode.name == AUTO else given.mode, precisions[0])]
    unlike = {request_key(each.of(given), device).digest: each for each in reversed(found)}
    return {each.name: each for each in reversed(unlike.values())}


def _places(given: Settings, mode: ModeConfig) -> list[str | None]:
    if given.weights.placement != AUTO or mode.engine == EAGER.mode.engine:
        return [None]
    return [*PLACEMENTS[: 1 if mode.inductor.get("freezing") else None]]


class Profile:
    """The evidence that a store has for one run's model on this machine.

    Args:
        store: Where it is kept.
        given: The run's settings; whatever its mode, precision and weights are.
        device: `cpu` or `cuda:N`.
        graphs: Whether CUDA graphs are captured: latencies without say nothing.
    """

    def __init__(self, store: Store, given: Settings, device: str, *, graphs: bool) -> None:
        self._store, self._given, self._device = store, given, device
        self._named = named_files(given)
        self._stands_for: dict[str, str | None] = {}
        self._machine = {
            "cpu": environment.cpu_name(),
            "cores": environment.cores(),
            "threads": [given.runtime.threads, os.environ.get("OMP_NUM_THREADS")],
            "device": device,
            "graphs": graphs,
        }

    def of(self, candidate: Candidate) -> Evidence | None:
        """What is known, if it may be believed."""
        subject = self._subject(candidate)
        document = self._store.document(FOLDER, _name(subject))
        if document is None:
            return None
        try:
            content = unpack(document, self._store.trust)
            found: Evidence = structured.decode(Evidence, content["evidence"])
            request, stood_for = found.witness
            ratios = [run.eager_ms[size] / run.p50_ms[size] for run in found.runs for size in run.p50_ms]
        except (KeyError, TypeError, ValueError, ZeroDivisionError):  # a later version's, a stranger's, or damaged
            return None
        believed = content["subject"] == subject and self._object_of(request) == stood_for
        return found if believed and all(ratio > 0 for ratio in ratios) else None

    def known(self, options: Mapping[str, Candidate], question: Question) -> dict[str, Evidence]:
        """Of these candidates, what answers the question."""
        found = {name: self.of(each) for name, each in options.items()}
        return {name: each for name, each in found.items() if each is not None and each.answers(question)}

    def add(self, candidate: Candidate, evidence: Evidence, *, alone: bool = False) -> Evidence:
        """Keep it with what is known already, or `alone`; returns both, also where it can't be written."""
        before, subject = None if alone else self.of(candidate), self._subject(candidate)
        joined = before.joined(evidence) if before is not None else evidence
        content = {"subject": subject, "evidence": structured.encode(joined)}
        if not self._store.readonly:
            try:
                self._store.write_document(FOLDER, _name(subject), pack(content, self._store.trust))
            except StoreError as error:
                logger.warning("%s: auto will not know what was measured of %s", error.message, candidate.name)
        return joined

    def _subject(self, candidate: Candidate) -> dict[str, Any]:
        request = request_key(candidate.of(self._given), self._device).digest
        return {"type": "evidence", "request": request, **self._machine}

    def _object_of(self, request: str) -> str | None:
        if request not in self._stands_for:
            self._stands_for[request] = lookup.object_of(self._store, request, self._named)
        return self._stands_for[request]


def _name(subject: dict[str, Any]) -> str:
    return f"{subject['request'][:32]}-{digest(subject)[:16]}"
