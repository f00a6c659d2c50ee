"""A Ray cluster of two nodes on the loopback interface, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import psutil
import pytest

from hilm.cluster import open_executor
from hilm.errors import WorkerError

SCRIPT = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 2, "node_ip_address": "127.0.0.1", "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
second = cluster.add_node(**node)
cluster.wait_for_nodes()
print(cluster.address, second.all_processes["raylet"][0].process.pid, flush=True)
sys.stdin.read()
"""
ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def unavailable(reason):
    """Skip a test, or fail it where Ray has to work."""
    if os.environ.get("HILM_REQUIRE_CLUSTER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def local_ray(workers):
    """An executor with a Ray of its own."""
    pytest.importorskip("ray")
    try:
        return open_executor("ray", workers, address="local")
    except WorkerError as error:
        unavailable(str(error))


@contextmanager
def two_nodes(folder):
    """Start two nodes of two CPUs each; yields their address and the second's main process."""
    pytest.importorskip("ray")
    with (folder / "log").open("wb") as log:
        script = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    head = psutil.Process(script.pid)
    try:
        words = script.stdout.readline().split()
        if len(words) != 2:
            unavailable("the nodes did not start: " + (folder / "log").read_text()[-500:])
        yield words[0], psutil.Process(int(words[1]))
    finally:
        nodes = head.children(recursive=True)
        for process in [head, *nodes]:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(nodes, 10)
        script.communicate()


def family():
    """Every living process that this one has started, and so on."""
    return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


def left_over(seconds=10):
    """What of the family is still there after so many seconds."""
    deadline = time.monotonic() + seconds
    while family() and time.monotonic() < deadline:
        time.sleep(0.1)
    return family()


def foreign_sockets(processes):
    """Listening sockets that the network can reach."""
    found = []
    for process in processes:
        with suppress(psutil.Error):
            found += [
                (process.name(), c.laddr)
                for c in process.net_connections("inet")
                if c.status == psutil.CONN_LISTEN
                and not c.laddr.ip.removeprefix("::ffff:").startswith("127.")
            ]
    return found
