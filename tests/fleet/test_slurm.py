"""A sweep on a SLURM of two node daemons, both on this machine; `nox -s slurm` brings Debian's packages."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from .conftest import NUM_KEYS, Node, until

ROOT = Path(os.environ.get("APP_SLURM_ROOT", "/"))
LIBRARIES = ROOT / "usr/lib/x86_64-linux-gnu"
DAEMONS = ROOT / "usr/sbin"

pytestmark = [
    pytest.mark.skipif(
        not (DAEMONS / "slurmctld-wlm").exists(), reason="there is no SLURM of Debian's here: nox -s slurm"
    ),
    pytest.mark.timeout(1200),
]

# Nobody but this user is there to be kept out, and nothing is accounted: no munge, no database, no cgroups.
CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
PluginDir={plugins}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdTimeout=10
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=n0 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def nodes(tmp_path_factory, monkeypatch):
    """The cluster's two nodes, idle."""
    folder = tmp_path_factory.mktemp("slurm")
    conf = folder / "slurm.conf"
    for name in ("state", "spool-n0", "spool-n1"):
        (folder / name).mkdir()
    plugins = LIBRARIES / "slurm-wlm"
    conf.write_text(CONF.format(folder=folder, ports=free_ports(3), user=getpass.getuser(), plugins=plugins))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setenv("PATH", f"{ROOT / 'usr/bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{LIBRARIES}:{plugins}")
    with ExitStack() as stack:

        def start(daemon: str, *words: str) -> Node:
            node = Node(str(DAEMONS / f"{daemon}-wlm"), "-D", "-f", str(conf), *words)
            stack.callback(node.kill)
            return node

        start("slurmctld", "-c")
        nodes = [start("slurmd", "-N", name, "-d", str(DAEMONS / "slurmstepd-wlm")) for name in ("n0", "n1")]
        until(lambda: states() == ["idle", "idle"], 60, folder / "slurmctld.log")
        yield nodes


def states() -> list[str]:
    asked = subprocess.run(["sinfo", "-h", "-N", "-o", "%t"], check=False, capture_output=True, text=True)
    return asked.stdout.split()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def test_sweep_outlives_a_node(nodes, place, run_sweep):
    assert shutil.which("sbatch")
    found = run_sweep(
        "experiment=slurm",
        "cache.dir=cache",
        "hydra.launcher.timeout_min=20",
        nodes=nodes,
        log=place / "sweep.log",
    )
    assert found["miss"] == NUM_KEYS == len(list((place / "cache" / "objects").glob("??/*")))
    assert found["direct-hit"] == 11 - NUM_KEYS
