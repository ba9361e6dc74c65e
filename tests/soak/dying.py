"""The program, made to die: `python dying.py POINT ARGUMENTS...` is `python -m app ARGUMENTS...` until POINT.

`module:function` is where the function begins, `module:function/return` where it has ended, and `#2` after either
means its second time. The program has no part in this: the function is wrapped as soon as its module was imported,
in the program and in its compile worker, and whichever comes there first takes both down. With `worker:` before the
point the worker dies alone.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import os
import signal
import sys


def arm(text: str, program: int) -> None:
    """From now on this process, which is the program's own or its worker's, dies at the point that `text` names."""
    in_worker, alone = os.getpid() != program, text.startswith("worker:")
    if alone and not in_worker:
        return
    place, _, nth = text.removeprefix("worker:").partition("#")
    place, _, end = place.partition("/")
    module, _, function = place.partition(":")

    def die() -> None:
        if in_worker and not alone:
            os.kill(program, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    sys.meta_path.insert(0, Wrapping(module, lambda found: wrap(found, function, end, int(nth or 1), die)))


class Wrapping(importlib.abc.MetaPathFinder):
    """Imports one module as ever, and changes it before anybody sees it."""

    def __init__(self, name, change) -> None:
        self.name, self.change = name, change

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), self.change(module))
        return spec


def wrap(module, function, end, nth, die) -> None:
    *holders, name = function.split(".")
    holder = functools.reduce(getattr, holders, module)
    original, times = getattr(holder, name), 0

    @functools.wraps(original)
    def dying(*args, **kwargs):
        nonlocal times
        times += 1
        last = times == nth
        if last and not end:
            die()
        result = original(*args, **kwargs)
        if last:
            die()
        return result

    setattr(holder, name, dying)


def main() -> None:
    """Arm this process and the worker that it will start, and run the command."""
    here, text = sys.path.pop(0), sys.argv.pop(1)
    arm(text, os.getpid())
    import app.cli
    import app.compiler

    armed = f"import sys; sys.path.insert(0, {here!r}); import dying; dying.arm({text!r}, {os.getpid()})"
    forgotten = "del sys.modules['dying']  # or it would be one of the model's dependencies"
    app.compiler._BOOTSTRAP = f"{armed}\n{forgotten}\n{app.compiler._BOOTSTRAP}"
    app.cli.main()


if __name__ == "__main__":
    main()
