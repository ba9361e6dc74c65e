"""Callables that are timed: plain and async functions, and generators of both kinds; and a block of code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from .operation import Operation, Regime

F = TypeVar("F", bound=Callable[..., Any])

# How fast the average number of a generator's steps follows the last one.
FOLLOW = 0.1


def wrap(operation: Operation, function: F) -> F:
    """The same callable, each of its calls recorded.

    A call of an async function takes from its first step to its end, what it awaits included. A generator takes the
    time inside of it, from the first `next` to its end, and not what its consumer does in between; one that is never
    started is no call.

    Raises:
        TypeError: it can't be called, as a classmethod object: decorate beneath `@classmethod`.
    """
    if not callable(function):
        raise TypeError(f"{function!r} is not callable: a decorator stands beneath @classmethod and @property")
    kinds = (
        (inspect.isasyncgenfunction, _async_generator),
        (inspect.iscoroutinefunction, _coroutine),
        (inspect.isgeneratorfunction, _generator),
    )
    is_object = not (inspect.isroutine(function) or inspect.isclass(function))
    kind = function.__call__ if is_object else function  # type: ignore[operator] # mypy: not every callable has one
    make = next((make for is_kind, make in kinds if is_kind(function) or is_kind(kind)), _plain)
    # an object's attributes are not the wrapper's: a model's would be its weights
    updated = functools.WRAPPER_UPDATES if inspect.isroutine(function) else ()
    return cast("F", functools.wraps(function, updated=updated)(make(operation, function)))


def _plain(operation: Operation, function: Callable[..., Any]) -> Callable[..., Any]:
    clock, attend = operation.policy.clock, operation.attend

    def call(*args: Any, **kwargs: Any) -> Any:
        regime = operation.regime
        every = regime.every
        if every != 1 and (every == 0 or regime.tick() % every):
            try:
                return function(*args, **kwargs)
            except BaseException:
                regime.fail()
                raise
        began = clock()
        try:
            answer = function(*args, **kwargs)
        except BaseException:
            regime.fail()
            _add(operation, regime, began, clock() - began)
            raise
        seconds = clock() - began
        # as in _add: a call would cost a fifth more
        buffer = regime.buffer
        buffer.append(seconds)
        if len(buffer) >= regime.limit:
            attend(regime, began, seconds)
        return answer

    return call


def _add(operation: Operation, regime: Regime, began: float, seconds: float, kind: str = "plain") -> None:
    regime.buffer.append(seconds)
    if len(regime.buffer) >= regime.limit:
        operation.attend(regime, began, seconds, kind)


def _is_timed(regime: Regime) -> bool:
    return regime.every == 1 or (regime.every > 1 and not regime.tick() % regime.every)


def _coroutine(operation: Operation, function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        regime, clock = operation.regime, operation.policy.clock
        is_timed = _is_timed(regime)
        began = clock() if is_timed else 0.0
        try:
            return await function(*args, **kwargs)
        except BaseException:
            regime.fail()
            raise
        finally:
            if is_timed:
                _add(operation, regime, began, clock() - began, "async")

    return call


class _Steps:
    """The time inside a generator, which is one call: `with` around each of its steps, and `call` around them all."""

    def __init__(self, operation: Operation) -> None:
        self._operation, self._clock = operation, operation.policy.clock
        self._began, self._seconds, self._count = 0.0, 0.0, 0

    def __enter__(self) -> None:
        self._count += 1
        self._began = self._clock()

    def __exit__(self, *_: object) -> None:
        self._seconds += self._clock() - self._began

    @contextmanager
    def call(self) -> Iterator[None]:
        """From the first step until it is exhausted, closed, or has raised."""
        operation, regime = self._operation, self._operation.regime
        is_timed, first = _is_timed(regime), self._clock()
        try:
            yield
        except BaseException:
            regime.fail()
            raise
        finally:
            if is_timed:
                operation.steps += (self._count - operation.steps) * FOLLOW
                _add(operation, regime, first, self._seconds, "async")


def _generator(operation: Operation, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        inside = _Steps(operation)
        with inside.call():
            with inside:
                inner = function(*args, **kwargs)
            step, value = inner.send, None
            while True:
                try:
                    with inside:
                        item = step(value)
                except StopIteration as stop:
                    return stop.value
                try:
                    step, value = inner.send, (yield item)
                except GeneratorExit:
                    with inside:
                        return inner.close()  # from Python 3.13 on, the generator's value
                except BaseException as error:  # noqa: BLE001 - the consumer throws it in, and the generator answers
                    step, value = inner.throw, error

    return call


def _async_generator(operation: Operation, function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inside = _Steps(operation)
        with inside.call():
            with inside:
                inner = function(*args, **kwargs)
            step, value = inner.asend, None
            while True:
                try:
                    with inside:
                        item = await step(value)
                except StopAsyncIteration:
                    return
                try:
                    step, value = inner.asend, (yield item)
                except GeneratorExit:
                    with inside:
                        await inner.aclose()
                    return
                except BaseException as error:  # noqa: BLE001 - as above
                    step, value = inner.athrow, error

    return call


class Block:
    """A block of code as one call of an operation; each `with` statement needs its own."""

    __slots__ = ("_began", "_is_timed", "_regime", "operation")

    operation: Operation  # set by who makes it: a constructor in Python would cost 80 ns more

    def __enter__(self) -> Self:
        operation = self.operation
        regime = self._regime = operation.regime
        every = regime.every
        self._is_timed = every == 1 or (every > 1 and not regime.tick() % every)
        self._began = operation.policy.clock() if self._is_timed else 0.0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        operation, regime = self.operation, self._regime
        if kind is not None:
            regime.fail()
        if self._is_timed:
            seconds = operation.policy.clock() - self._began
            buffer = regime.buffer
            buffer.append(seconds)
            if len(buffer) >= regime.limit:
                operation.attend(regime, self._began, seconds)
