"""The ladder while serving: each call is answered by the best rung that works, and no step is silent."""

from __future__ import annotations

import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from ..config import FallbackConfig
from ..errors import AppError, InputError, ServeError
from ..fallback import Fallback
from ..monitor import performance_monitor
from ..monitor.operation import Tally

logger = logging.getLogger(__name__)

# A service runs for months: what it keeps must end.
MOST_REASONS = 100

Serve = Callable[..., Any]


class InEvalMode:
    """What a module can be asked besides being called, and compiled code can't do."""

    def eval(self) -> Self:
        """Itself: it was exported in eval mode."""
        return self

    def train(self, mode: bool = True) -> Self:
        """Raise InputError for anything but `train(False)`."""
        if mode:
            raise InputError(
                "a compiled model can't be trained: train the module itself, and compile it again afterwards"
            )
        return self

    def to(self, *_: Any, **__: Any) -> Self:
        """Raise InputError: code is compiled for one device and one precision."""
        raise InputError(
            "a compiled model stays on its device, in its precision: load it with device=... precision=..."
        )


class Ladder(InEvalMode):
    """Rungs by name, best first; the last one is the model itself, whose exceptions are the caller's.

    A rung that fails costs that call a step down and no wrong answer: programs that change their inputs are never
    compiled, so the next rung starts from the same ones. After `max_failures` failed calls a rung is no longer tried
    (its circuit is open). An input that a rung was not compiled for is the call's own matter, and opens nothing.

    Args:
        rungs: Name and callable of each.
        policy: `on_run` and `max_failures`.
        on_step: Called with the first step of each reason; all of them are counted.
        steps: Those that were taken before, and are counted by their stage too.

    Attributes:
        pending: What is at work on a better rung.
    """

    def __init__(
        self,
        rungs: Sequence[tuple[str, Serve]],
        policy: FallbackConfig,
        on_step: Callable[[Fallback], None],
        steps: Sequence[Fallback] = (),
    ) -> None:
        self._policy, self._on_step = policy, on_step
        self._calls, self._open = defaultdict[str, Tally](Tally), set[str]()
        self._take(rungs)
        self._before = Counter(step.stage for step in steps)
        self._failures: Counter[str] = Counter()
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._exchanged = False
        self.pending: threading.Thread | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            ServeError, InputError: a rung failed, or wasn't compiled for these inputs, and the policy is `raise`.
            Exception: the model's own.
        """
        return self.serve(args, kwargs)[1]

    def serve(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[str, Any]:
        """The rung that answered, and its answer."""
        *others, (last, call, count, _) = self._ways  # another thread may put one on top
        failed: list[tuple[str, str, Exception]] = []
        for name, rung, counted, below in others:
            if name in self._open:
                continue
            try:
                answer = rung(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever it raises, the model itself may not
                self._raise_if_told(name, error)
                failed.append((name, below, error))
                continue
            counted()
            break
        else:
            count()
            name, answer = last, call(*args, **kwargs)  # where it raises too, no rung is to blame
        for each in failed:
            self._step(*each)
        return name, answer

    def put_on_top(self, rungs: Sequence[tuple[str, Serve]]) -> None:
        """Better rungs than all so far, best first, from the next call on.

        Not where the weights were exchanged meanwhile: those of the new rungs are others.
        """
        if self._exchanged:
            logger.warning("%s does not serve: the weights were exchanged while it was compiled", rungs[0][0])
            return
        self._take([*rungs, *self._rungs])

    def stats(self) -> dict[str, Any]:
        """Calls by rung; steps before any call by stage; failed calls, open circuits, each reason and how often.

        What the best rung counts is here too: calls by batch size, and its graphs.
        """
        with self._lock:
            reasons = {f"{name}: {reason}": count for (name, reason), count in self._reasons.items()}
        return {
            "calls": {name: count for name, tally in self._calls.items() if (count := tally.read())},
            "steps": dict(self._before),
            "failures": dict(self._failures),
            "open": [name for name, _ in self._rungs[:-1] if name in self._open],
            "reasons": reasons,
            **getattr(self._rungs[0][1], "stats", dict)(),
        }

    @property
    def best(self) -> tuple[str, Serve]:
        """The rung that the next call tries first."""
        return next(rung for rung in self._rungs if rung is self._rungs[-1] or rung[0] not in self._open)

    def unload(self) -> None:
        """Let go of every rung; calls raise InputError from now on."""

        def gone(*_: Any, **__: Any) -> Any:
            raise InputError("the model was unloaded")

        self._take([("unloaded", gone)])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Exchange external weights on every rung, in place; nobody has verified the new ones.

        Not while another thread calls.

        Raises:
            InputError: a rung can't: its weights are baked in, or the state dict doesn't fit.
        """
        # two rungs may be two ways to call one model
        owners: dict[Any, str] = {getattr(call, "__self__", call): name for name, call in self._rungs}
        for owner, name in owners.items():
            if not hasattr(owner, "load_state_dict"):
                raise InputError(f"the weights of the rung {name} can't be exchanged: compile with weights=external")
        for owner in owners:
            owner.check_state_dict(state)  # all of them take it, or none
        for owner in owners:
            owner.load_state_dict(state)
        self._exchanged = True

    def _take(self, rungs: Sequence[tuple[str, Serve]]) -> None:
        """Serve by these; a call of each is an operation of the monitor."""
        self._rungs = list(rungs)
        below = [name for name, _ in rungs[1:]]
        self._ways = [
            (name, performance_monitor.monitor(f"inference/{name}")(call), self._calls[name].add, next_)
            for (name, call), next_ in zip(rungs, [*below, ""], strict=True)
        ]

    def _raise_if_told(self, name: str, error: Exception) -> None:
        if self._policy.on_run == "raise":
            raise (
                error if isinstance(error, InputError) else ServeError(f"{name} failed: {_reason(error)}")
            ) from error

    def _step(self, name: str, below: str, error: Exception) -> None:
        reason = _reason(error)
        with self._lock:
            if len(self._reasons) >= MOST_REASONS and (name, reason) not in self._reasons:
                reason = "other reasons"
            self._reasons[name, reason] += 1
            is_new = self._reasons[name, reason] == 1
            if not isinstance(error, InputError):
                self._failures[name] += 1
            opens = not isinstance(error, InputError) and self._failures[name] == self._policy.max_failures
            if opens:
                self._open.add(name)
        stage = error.stage if isinstance(error, InputError) else ServeError.stage
        if is_new:
            logger.warning("fallback %s -> %s at %s: %s", name, below, stage, reason)
            self._on_step(Fallback(name, below, stage, reason))
        if opens:
            logger.warning("%s failed %d times and is no longer tried", name, self._policy.max_failures)


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, AppError) else f"{type(error).__name__}: {error}"
