"""`python -m app.report DIR...`: the summary of any directories of records; `--compare A B`: what changed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..errors import AppError
from . import compare, summary
from .console import print_note

REGRESSION = 5

DESCRIPTION = """\
Read every record.json in and below DIR and write summary.json, .csv, .md and .html; or compare two such directories.
Runs from unlike machines are kept apart, and records of earlier versions are read too.

  python -m app.report outputs/multirun/2026-11-24/10-04-33-eed3e6
  python -m app.report outputs/runs outputs/multirun --out report
  python -m app.report --compare base head --tolerance 0.1 > comment.md"""
EPILOG = """\
exit codes: 0 done; 1 the summary can't be written; 2 bad arguments, no record, or unlike machines to compare;
5 a regression: slower than the tolerance allows, with the whole 95 % interval, or failing where it ran before"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m app.report",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "directories", nargs="*", type=Path, metavar="DIR", help="a sweep's directory, a run's, or one above"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the summary goes; a single DIR itself unless given"
    )
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="before and after; markdown on stdout"
    )
    parser.add_argument(
        "--tolerance",
        type=_share,
        default=0.05,
        metavar="SHARE",
        help="how much slower is no regression (default: 0.05)",
    )
    given = parser.parse_args(arguments)
    if bool(given.compare) == bool(given.directories):
        parser.error("name directories to summarise, or --compare A B")
    if given.compare and given.out:
        parser.error("--out is for a summary; --compare prints to stdout")
    if len(given.directories) > 1 and given.out is None:
        parser.error("several directories have no place of their own: name one with --out")
    try:
        if given.compare:
            found = compare.compare(given.compare[0], given.compare[1], given.tolerance)
            sys.stdout.write(compare.markdown(found))
            return REGRESSION if found.has_regression else 0
        gathered, out = summary.gather(given.directories), given.out or given.directories[0]
        summary.write(gathered, out)
    except ValueError as error:
        parser.error(str(error))
    except AppError as error:
        print(f"error at {error.stage}: {error.message}", file=sys.stderr)
        return error.exit_code
    console = Console()
    summary.render(gathered, console)
    print_note(console, "summary", str(out / "summary.html"))
    return 0


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share from 0 to 1, such as 0.05")
    return value


if __name__ == "__main__":
    sys.exit(main())
