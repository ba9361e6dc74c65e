"""A C++ compiler that copies what it compiled before: `cxx.py KEPT COMPILER ARGUMENTS...`.

Most of the seconds of a small model's miss are spent on torch's headers. ccache would do, but for Inductor's sources:
equal texts lie under another name in another folder each time, which ends up in what ccache hashes, and their first
line is a comment with their own path. Here a name is no part of the key. Kept are calls whose first argument is a
`.cpp`, as Inductor's are; everything else goes to the compiler as it is.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path


def main(kept: Path, compiler: str, arguments: list[str]) -> int:
    """Compile, or copy the output of an equal call; returns the exit code."""
    command = [*compiler.split(), *arguments]
    if not arguments or not arguments[0].endswith(".cpp") or "-o" not in arguments:
        os.execvp(command[0], command)  # noqa: S606 - there is no shell to want
    out = Path(arguments[arguments.index("-o") + 1])
    copy = kept / key_of(arguments, out)
    if copy.exists():
        shutil.copyfile(copy, out)
        os.utime(copy)  # in use: what isn't for a week is removed
        return 0
    code = subprocess.run(command, check=False).returncode
    if code == 0 and out.exists():
        temporary = copy.with_suffix(f".{os.getpid()}")
        shutil.copyfile(out, temporary)
        temporary.replace(copy)
    return code


def key_of(arguments: list[str], out: Path) -> str:
    """Return the digest of a call: source and arguments, without the paths of this call's own files."""
    source = Path(arguments[0])
    lines = source.read_bytes().splitlines(keepends=True)
    total = hashlib.sha256(b"".join(line for line in lines if not line.startswith(b"//")))
    for argument in arguments[1:]:
        own = argument.replace(str(out.with_suffix("")), "OUT").replace(str(source.parent), "HERE")
        total.update(own.encode() + b"\0")
    return total.hexdigest() + out.suffix


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
