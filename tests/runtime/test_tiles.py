"""A process asks for AMX's tiles before a library is loaded, and one that uses them is refused where it may not."""

from __future__ import annotations

import pytest

from app.runtime import tiles

CONFIGURES = b"\x90\xc4\xe2\x78\x49\x04\x24\xc3"  # ldtilecfg (%rsp); ret


@pytest.fixture
def machine(monkeypatch):
    """A processor with these flags, and a system that answers so; gives how often it was asked."""

    def made(flags, *, permits):
        asked = []
        monkeypatch.setattr(tiles, "cpu_flags", lambda: flags)
        monkeypatch.setattr(tiles, "_permitted", lambda: asked.append(1) or permits)
        return asked

    return made


@pytest.mark.parametrize(("flags", "times"), [(["amx_tile", "avx2"], 1), (["avx2"], 0)])
def test_it_is_asked_for_where_the_processor_has_them(machine, tmp_path, flags, times):
    asked = machine(flags, permits=True)
    (tmp_path / "model.so").write_bytes(CONFIGURES)
    tiles.permit(tmp_path / "model.so")
    assert len(asked) == times


def test_code_that_uses_what_is_refused_is_not_loaded_and_other_code_is(machine, tmp_path):
    machine(["amx_tile"], permits=False)
    (tmp_path / "tiles.so").write_bytes(CONFIGURES)
    (tmp_path / "plain.so").write_bytes(b"\x7fELF and nothing of the kind")
    with pytest.raises(OSError, match="refuses"):
        tiles.permit(tmp_path / "tiles.so")
    tiles.permit(tmp_path / "plain.so")


def test_asking_is_harmless_on_any_processor():
    assert tiles._permitted() in {True, False}
