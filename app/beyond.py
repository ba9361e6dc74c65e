"""Beyond: what is done with a call of a size that was never compared with eager."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from . import lookup
from .errors import AppError
from .verdict import Draw, within

if TYPE_CHECKING:
    from .context import Context
    from .lookup import Found
    from .runtime.jit import JitModel
    from .runtime.model import CompiledModel

logger = logging.getLogger(__name__)

Sizes = Mapping[str, int]


class Beyond:
    """Asked by a model's boundary of sizes that lie in its range, and outside of what was compared.

    Args:
        policy: `verify.beyond`.
        warn: Called once, with a line about the first size that is served uncompared.
        compare: Compares at such sizes, and says why they aren't served, or None; where the module is at hand.
    """

    def __init__(
        self, policy: str, warn: Callable[[str], None], compare: Callable[[Sizes], str | None] | None = None
    ) -> None:
        self._policy, self._warn, self._compare = policy, warn, compare
        self._lock, self._warned = threading.Lock(), False

    def __call__(self, sizes: Sizes) -> str | None:
        """Why these sizes aren't served; None where they are."""
        if self._policy == "eager":
            return f"{words(sizes)} was never compared with eager, and verify.beyond=eager"
        if self._policy == "compare" and self._compare is not None:
            with self._lock:  # the first call of a size compares, and others of it wait
                return self._compare(sizes)
        if not self._warned:
            self._warned = True
            self._warn(
                f"{words(sizes)} is served, and was never compared with eager; verify.beyond=eager has eager answer"
            )
        return None


class Comparison:
    """Compares a loaded artifact with the module of this process, and widens or narrows what it serves.

    Args:
        context: The run.
        found: The artifact, whose extent is known.
        model: What was loaded of it.
    """

    def __init__(self, context: Context, found: Found, model: CompiledModel | JitModel) -> None:
        self._context, self._found, self._model = context, found, model
        self._cases = list(context.cases)

    def __call__(self, sizes: Sizes) -> str | None:
        """Why these sizes aren't served; None where they are."""
        boundary, verify = self._model.boundary, self._context.settings.verify
        if not within(sizes, boundary.extent.compared) and within(sizes, boundary.extent.possible):
            case = self._context.judge.case(self._model.whole, Draw(dict(sizes), verify.seeds[0]))
            self._cases.append(case)
            bar = verify.multiple, self._context.settings.precision.floor
            boundary.serve(lookup.extent_of(self._found, self._cases, *bar))
            logger.info("verify: compared with eager: %s", case.refusal(*bar) or f"{case.draw} is right")
            self._keep(case.to_json())
        return (
            None if within(sizes, boundary.extent.possible) else f"{words(sizes)} was wrong when compared with eager"
        )

    def _keep(self, case: Mapping[str, object]) -> None:
        from .acquire import opened

        if self._context.settings.cache.readonly:
            return
        try:
            with opened(self._context) as store:
                lookup.note_verified(store, self._found, [case])
        except AppError as error:  # it only saves the next process a comparison
            logger.warning("verify: what was compared can't be kept: %s", error.message)


def words(sizes: Sizes) -> str:
    """Like `batch=4, seq=16`."""
    return ", ".join(f"{dim}={size}" for dim, size in sizes.items())
