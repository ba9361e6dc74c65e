"""The graph level: changed text of an unchanged program costs a trace, not a compile."""

from __future__ import annotations

import pytest

TEXT = """
    from rates import RATE
    from torch import nn

    class Doubler(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x) * 2.0 + RATE
"""
INPUTS = "model.inputs=[{name: x, shape: [batch, 4]}]"


@pytest.mark.smoke
def test_comment_is_a_graph_hit_then_direct_and_a_constant_is_a_miss_that_names_the_file(
    run_app, module_file, fresh_store, num_objects
):
    args = ["model=custom", "model.target=doubler:Doubler", INPUTS, f"cache.dir={fresh_store}"]
    no_compiler = {**module_file.env, "CXX": "/nonexistent"}

    module_file("doubler", TEXT)
    module_file("rates", "RATE = 0.5")
    first = run_app(args, env=module_file.env).record
    assert (first["cache"]["outcome"], first["rung"]) == ("miss", "compiled")
    before = num_objects(fresh_store)

    untouched = run_app(args, env=no_compiler).record
    assert (untouched["cache"]["outcome"], untouched["rung"]) == ("direct-hit", "compiled")

    module_file("doubler", TEXT + "\n    # a comment\n")
    module_file("rates", "RATE = 0.5  # a comment")
    commented = run_app(args, env=no_compiler).record
    assert (commented["cache"]["outcome"], commented["rung"]) == ("graph-hit", "compiled")
    assert commented["key"]["object"] == first["key"]["object"]
    assert any("doubler.py" in reason for reason in commented["cache"]["miss_reasons"])
    again = run_app(args, env=no_compiler).record
    assert (again["cache"]["outcome"], again["rung"]) == ("direct-hit", "compiled")

    module_file("doubler", TEXT.replace("2.0", "3.0"))
    assert_misses(run_app([*args, "cache.on_miss=fail"], env=no_compiler), "doubler.py changed")
    module_file("doubler", TEXT)
    module_file("rates", "RATE = 0.75")
    assert_misses(run_app([*args, "cache.on_miss=fail"], env=no_compiler), "rates.py changed")
    graph = run_app([*args, "fallback=strict"], env=no_compiler)
    assert (graph.code, graph.record["error"]["stage"]) == (1, "compile")  # the graph level misses too
    assert num_objects(fresh_store) == before


def assert_misses(run, reason):
    assert run.code == 9
    assert any(reason in said for said in run.record["cache"]["miss_reasons"]), run.record["cache"]
