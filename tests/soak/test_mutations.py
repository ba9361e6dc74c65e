"""Whatever alters what should run never hits; what doesn't always does, at one of the two levels of the key."""

from __future__ import annotations

import random
import sys
from contextlib import contextmanager

import pytest

from .conftest import FULL, SIZE
from .mutations import BASES, Change, altering, harmless, sample

ALTERING, HARMLESS = altering(), harmless()
TRIED = {"full": ALTERING, "reduced": sample(ALTERING, 60), "smoke": sample(ALTERING, 60)[::6]}[SIZE]
SPARED = {"full": HARMLESS, "reduced": sample(HARMLESS, 25), "smoke": sample(HARMLESS, 25)[::5]}[SIZE]


def kinds(changes):
    return {change.kind for change in changes}


@pytest.mark.skipif(SIZE == "smoke", reason="a dozen changes are not of every kind")
def test_every_kind_of_change_is_tried(counts):
    assert kinds(TRIED) == kinds(ALTERING)
    assert kinds(SPARED) == kinds(HARMLESS)
    assert all(change.outcome == "miss" for change in ALTERING)
    assert all("hit" in change.outcome for change in HARMLESS)
    counts["mutations tried"] = f"{len(TRIED)} of {len(kinds(TRIED))} kinds, harmless: {len(SPARED)}"


def test_options_are_of_this_torch():
    import torch._inductor

    from .mutations import OPTIONS

    assert {option for option, _ in OPTIONS} <= set(torch._inductor.list_options())


@pytest.mark.parametrize("base", BASES)
def test_an_unchanged_request_is_a_direct_hit(probes, base):
    answer = probes.probe(Change("nothing", "as seeded", base=base))
    assert answer["outcome"] == "direct-hit"
    assert answer["object"] == probes.bases[base]["object"]
    assert answer["weights"] == probes.bases[base]["weights"]


@pytest.mark.smoke
@pytest.mark.parametrize("change", TRIED, ids=str)
def test_what_alters_what_should_run_never_hits(probes, change):
    assert probes.probe(change)["outcome"] == "miss"


@pytest.mark.smoke
@pytest.mark.parametrize("change", SPARED, ids=str)
def test_what_is_harmless_hits_at_its_level(probes, change):
    answer, base = probes.probe(change), probes.bases[change.base]
    assert answer["outcome"] == change.outcome, answer.get("reasons")
    assert answer["object"] == base["object"]
    assert (answer["weights"] != base["weights"]) == change.other_weights


def test_a_sweep_in_another_order_hits_every_time(probes, tmp_path):
    shuffled = list(BASES) if FULL else list(BASES)[:3]
    random.Random(3).shuffle(shuffled)
    probes.seed(tmp_path / "store", shuffled)
    random.Random(4).shuffle(shuffled)
    for name in shuffled:
        answer = probes.probe(Change("nothing", "as seeded", base=name), tmp_path / "store")
        assert (answer["outcome"], answer["object"]) == ("direct-hit", probes.bases[name]["object"])


# By id: of each, whether its output differs from the base's.
RECOMPILED = {
    "imported constant-1.25": True,
    "shadowing module-package": True,
    "file read in the constructor-0.5 0.25 -2": True,
    "weight's bit-22": True,
    "seed-0": True,
    "listed variable-2": True,
    "operation-gelu": True,
    "tied weights untied-kwargs": False,
    "stride-kwargs": False,
    "inductor option-epilogue_fusion": False,
}


@pytest.mark.timeout(600)
def test_recompiled_changes_give_what_eager_gives(
    probes, acquire_here, context_of, fresh_store, monkeypatch, assert_same, counts
):
    changes = {str(change): change for change in ALTERING}
    chosen = list(RECOMPILED) if FULL else list(RECOMPILED)[:2]
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with entered(probes, Change("nothing", "as seeded")) as arguments:
        workload = context_of(arguments).workload
        before = called(workload, workload.module)
    for name in chosen:
        with entered(probes, changes[name]) as arguments:
            job = acquire_here([*arguments, f"cache.dir={fresh_store}", "fallback=strict"])
            workload = job.context.workload
            ours, eager = called(workload, job.model), called(workload, job.eager)
        assert job.found.outcome == "miss"
        assert_same(ours, eager)
        differs = any(not ours[key].allclose(before[key], rtol=1e-4, atol=1e-5) for key in ("scores", "pooled"))
        assert differs == RECOMPILED[name], name
    counts["mutations recompiled"] = str(len(chosen))


@contextmanager
def entered(probes, change):
    """This process, as one that was started in the changed project; gives the command line."""
    root, arguments = probes.make(change)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in change.env.items():
            patch.setenv(name, value)
        patch.chdir(root)
        patch.syspath_prepend(root)
        try:
            yield arguments
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] in {"shop", "single"}]:
                del sys.modules[name]


def called(workload, model):
    args, kwargs = workload.call(3, seed=5)
    return model(*args, **kwargs)
