"""A sweep on a Ray cluster of two nodes of which one is killed, in a process of its own: writes what came of it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from sweep_jobs import jobs, square

from analysis.lab.ray_engine import ray_engine
from analysis.lab.records import config_key
from analysis.lab.sweep import run

if __name__ == "__main__":
    import ray
    from ray.cluster_utils import Cluster

    folder = sys.argv[1]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    doomed = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    arrived: list[str] = []

    def engine(*arguments):
        for config, row, error in ray_engine(*arguments):
            arrived.append(config_key(config))
            if len(arrived) == 3:
                cluster.remove_node(doomed, allow_graceful=False)
            yield config, row, error

    result = run(square, jobs(folder, 0.3, 16), Path(folder) / "rows", engine=engine)
    # Its jobs came back as soon as its processes were gone; that the node is, the cluster notices by a missed heartbeat.
    deadline = time.monotonic() + 60
    while (alive := sum(node["Alive"] for node in ray.nodes())) > 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    numbers = result.rows["number"].tolist()
    outcome = {"alive": alive, "arrived": arrived, "numbers": numbers, "failures": result.failures}
    (Path(folder) / "outcome.json").write_text(json.dumps(outcome))  # ray itself writes to the standard streams
    ray.shutdown()
    cluster.shutdown()
