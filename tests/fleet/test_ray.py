"""A sweep on a Ray cluster of two nodes, both on this machine, that share artifacts over S3; `nox -s ray`."""

from __future__ import annotations

import uuid

import pytest

from .conftest import NUM_KEYS, below

pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="Ray's launcher is not installed: nox -s ray")
cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: nox -s ray")

pytestmark = [pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore")]  # Ray's own, of many kinds


class RayNode:
    """A node of one job, with a cache of its own; when it is killed, another takes its place."""

    def __init__(self, cluster, cache):
        self._cluster, self._cache = cluster, cache
        self._node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, env_vars={"NODE": str(cache)})

    def processes(self):
        return below(self._node.all_processes["raylet"][0].process.pid)

    def kill(self):
        self._cluster.remove_node(self._node, allow_graceful=False)
        RayNode(self._cluster, f"{self._cache}-again")


@pytest.fixture
def cluster(place, s3, credentials):
    """Its address and two nodes; the head takes no jobs."""
    credentials.setenv("AWS_ENDPOINT_URL", s3)
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20}
    )
    nodes = [RayNode(cluster, place / f"node-{num}") for num in range(2)]
    cluster.wait_for_nodes()
    yield cluster.address, nodes
    cluster.shutdown()


def test_sweep_outlives_a_node(cluster, place, run_sweep):
    import fsspec

    address, nodes = cluster
    bucket = uuid.uuid4().hex
    files = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    files.mkdir(bucket)
    found = run_sweep(
        "experiment=ray",
        f"hydra.launcher.ray.init.address={address}",
        "cache=shared",
        "cache.dir=${oc.env:NODE}/cache",
        f"cache.remote=s3://{bucket}/artifacts",
        "cache.remote_mode=read-write",
        "cache.trust=none",
        f"sweep.collect=s3://{bucket}/records",
        nodes=nodes,
        log=place / "sweep.log",
    )
    assert found["miss"] == NUM_KEYS == len(files.glob(f"{bucket}/artifacts/objects/*/*"))
    assert found["direct-hit"] + found["remote-hit"] == 11 - NUM_KEYS
    assert found["remote-hit"] > 0
    assert found["remote-hit"] > 0
    assert len(files.glob(f"{bucket}/records/*/record.json")) == 12
    assert not files.find(f"{bucket}/artifacts/claims")
