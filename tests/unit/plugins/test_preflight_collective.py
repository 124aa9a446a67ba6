import sys
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import Gang, Identity
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.preflight.cluster import Cluster
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.preflight.collective import OPTIONS, checks
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import rank_nodes
from local_nodes import LocalNode, opener

DEFAULTS = {name: spec["default"] for name, spec in OPTIONS.items()}
WELL = {"port_range": (32768, 60999), "job": None, "environment": {"failed": {}}}


def with_torch(node: LocalNode) -> LocalNode:
    """Give a node that was set up an environment with torch: this one."""
    env = node.directory / "env"
    (env / "pyvenv.cfg").write_text(Path(sys.prefix, "pyvenv.cfg").read_text())
    (env / "lib").symlink_to(Path(sys.prefix, "lib"))
    return node


def cluster_of(nodes: list[LocalNode], **options: Any) -> Cluster:
    settings = [node.settings() for node in nodes]
    gang = Gang(Identity("2026-11-22T17:30:00+01:00", "preflight-1", "trainer"), settings, opener(nodes))
    gang.topology = rank_nodes(settings, {one.host: {"address": one.address, "interface": "lo"} for one in settings})
    facts = {one.host: WELL for one in settings}
    return Cluster(settings, facts, options={**DEFAULTS, **options}, gang=gang)


def test_real_nodes(three: list[LocalNode]) -> None:
    found = {verdict.check: verdict for verdict in checks(cluster_of([with_torch(node) for node in three]))}
    print(found)
    assert {check: verdict.status for check, verdict in found.items()} == {
        "collective.gloo": "ok",
        "collective.nccl": "skipped",
        "collective.slow_node": "ok",
    }
    sizes = found["collective.gloo"].data["sizes"]
    assert [size["bytes"] for size in sizes] == [1_000, 64_000, 1_000_000, 16_000_000]
    assert all(size["bus_bytes_per_second"] > 0 for size in sizes)
