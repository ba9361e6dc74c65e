"""The ladder while serving: the right answer or the model's own exception, and every step counted and said once."""

from __future__ import annotations

import threading

import pytest

from app.config import FallbackConfig
from app.errors import InputError, ServeError
from app.fallback import Fallback
from app.runtime.ladder import Ladder


class Broken:
    """Fails as often as it is told, then answers."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def __call__(self, x):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return f"compiled {x}"


def own(x):
    if x < 0:
        raise IndexError("the model's own")
    return f"eager {x}"


def ladder(compiled, **policy):
    steps = []
    return Ladder([("compiled", compiled), ("eager", own)], FallbackConfig(**policy), steps.append), steps


def test_a_rung_that_works_serves_and_nothing_is_said():
    model, steps = ladder(Broken())
    assert model(1) == "compiled 1"
    assert steps == []
    assert model.stats() == {"calls": {"compiled": 1}, "steps": {}, "failures": {}, "open": [], "reasons": {}}


def test_a_failure_costs_that_call_a_step_and_no_wrong_answer(caplog):
    model, steps = ladder(Broken(RuntimeError("device lost")))
    assert [model(1), model(2)] == ["eager 1", "compiled 2"]
    assert steps == [Fallback("compiled", "eager", "run", "RuntimeError: device lost")]
    assert caplog.messages == ["fallback compiled -> eager at run: RuntimeError: device lost"]
    assert model.stats()["failures"] == {"compiled": 1}


def test_after_max_failures_the_rung_is_no_longer_tried(caplog):
    broken = Broken(*[RuntimeError("again")] * 9)
    model, steps = ladder(broken, max_failures=3)
    assert [model(number) for number in range(5)] == [f"eager {number}" for number in range(5)]
    assert broken.calls == 3
    assert len(steps) == 1, "one reason is one step in the record"
    assert "failed 3 times and is no longer tried" in caplog.text
    stats = model.stats()
    assert stats["open"] == ["compiled"]
    assert stats["reasons"] == {"compiled: RuntimeError: again": 3}
    assert stats["calls"] == {"eager": 5}


def test_the_models_own_exception_reaches_the_caller():
    model, _ = ladder(Broken(RuntimeError("compiled code's")))
    with pytest.raises(IndexError, match="the model's own"):
        model(-1)


def test_an_input_that_was_not_compiled_is_served_by_the_next_rung_and_opens_nothing():
    broken = Broken(*[InputError("input 'x' is float64")] * 9)
    model, steps = ladder(broken, max_failures=1)
    assert [model(1), model(2)] == ["eager 1", "eager 2"]
    assert broken.calls == 2
    assert [(step.stage, step.reason) for step in steps] == [("call", "input 'x' is float64")]
    assert model.stats()["open"] == []


@pytest.mark.parametrize(
    ("error", "kind"), [(RuntimeError("lost"), ServeError), (InputError("input 'x' is float64"), InputError)]
)
def test_strict_raises_instead(error, kind):
    model, steps = ladder(Broken(error), on_run="raise")
    with pytest.raises(kind, match=str(error)):
        model(1)
    assert steps == []


def test_each_of_several_rungs_has_a_circuit_of_its_own():
    steps = []
    graphs, compiled = Broken(*[RuntimeError("graph")] * 2), Broken(RuntimeError("code"))
    rungs = [("cudagraph", graphs), ("compiled", compiled), ("eager", own)]
    model = Ladder(rungs, FallbackConfig(max_failures=2), steps.append)
    assert [model.serve([n], {}) for n in range(3)] == [
        ("eager", "eager 0"), ("compiled", "compiled 1"), ("compiled", "compiled 2"),
    ]  # fmt: skip
    assert [(step.from_, step.to) for step in steps] == [("cudagraph", "compiled"), ("compiled", "eager")]
    assert model.stats()["open"] == ["cudagraph"]


def test_threads_lose_no_failure():
    model, _ = ladder(Broken(*[RuntimeError("x")] * 4000), max_failures=10**6)
    threads = [threading.Thread(target=lambda: [model(1) for _ in range(100)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.stats()["failures"] == {"compiled": 800}


class Weighted:
    """A rung whose weights can be exchanged."""

    def __init__(self, names):
        self.names, self.state = names, None

    def __call__(self):
        return self.state

    def check_state_dict(self, state):
        if set(state) != self.names:
            raise InputError("doesn't fit")

    def load_state_dict(self, state):
        self.state = state


def test_weights_are_exchanged_on_all_rungs_or_on_none():
    rungs = [Weighted({"w"}), Weighted({"w", "b"})]
    model = Ladder([("compiled", rungs[0]), ("eager", rungs[1])], FallbackConfig(), lambda _: None)
    with pytest.raises(InputError, match="doesn't fit"):
        model.load_state_dict({"w": 1})
    assert [rung.state for rung in rungs] == [None, None]
    rungs[1].names = {"w"}
    model.load_state_dict({"w": 1})
    assert [rung.state for rung in rungs] == [{"w": 1}, {"w": 1}]
    with pytest.raises(InputError, match="rung eager can't be exchanged"):
        Ladder([("compiled", rungs[0]), ("eager", own)], FallbackConfig(), lambda _: None).load_state_dict({"w": 2})
    assert rungs[0].state == {"w": 1}


def test_a_rung_of_older_weights_is_not_put_on_top(caplog):
    model = Ladder([("eager", Weighted({"w"}))], FallbackConfig(), lambda _: None)
    model.load_state_dict({"w": 1})
    model.put_on_top([("compiled", own)])
    assert model() == {"w": 1}
    assert "the weights were exchanged" in caplog.text


def test_what_compiled_code_can_not_do_raises():
    model, _ = ladder(Broken())
    assert model.eval() is model.train(False) is model
    for call in (model.train, lambda: model.to("cuda")):
        with pytest.raises(InputError):
            call()


def test_what_the_model_itself_refuses_opens_no_circuit():
    """As a matrix that can't be inverted: the caller's input is at fault, and no rung."""

    def refuses(x):
        if x < 0:
            raise ValueError(f"{x} is negative")
        return x

    ladder = Ladder([("compiled", refuses), ("eager", refuses)], FallbackConfig(max_failures=2), lambda _: None)
    for _ in range(4):
        with pytest.raises(ValueError, match="negative"):
            ladder(-1)
    assert ladder.serve([3], {}) == ("compiled", 3)
    assert (ladder.stats()["open"], ladder.stats()["failures"]) == ([], {})
