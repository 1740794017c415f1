"""A Ray of several small nodes on this machine, whose nodes are lost as whole machines are.

The nodes are Ray's own `ray.cluster_utils.Cluster`, which a keeper holds: a process of its own that adds a node when it
is asked to and ends all of them when its maker ends, also when that was killed. So nothing of the cluster runs in the
process of the test, and a test that crashes leaves nothing.

A node is killed by SIGKILL of every process of its tree at once (stopped first, so that none of them acts on the death of
another). Killing the raylet alone is no loss of a node: its workers live on for seconds.

Limits: all nodes share one address; for cables and addresses see `network`. Ray's dashboard is not started.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

NAMESPACE = "orchestrate"
MARK = "ORCHESTRATE_TEST_NODES"
"""The variable that every process of such a cluster inherits; its value is the cluster's folder."""
GONE_SECONDS = 10.0
LOOK_SECONDS = 0.05
OBJECT_STORE_BYTES = 80 * 2**20
LIGHT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "AUTOSCALER_METRIC_PORT": "0",
    "DASHBOARD_METRIC_PORT": "0",
}


@dataclass(frozen=True, slots=True)
class RayNode:
    """One node, by its Ray id and the processes that Ray started for it."""

    node_id: str
    roots: tuple[int, ...]

    def processes(self) -> list[psutil.Process]:
        """Every living process of the node: what Ray started, and all that came of it."""
        found: dict[int, psutil.Process] = {}
        for pid in self.roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(pid)
                for process in (root, *root.children(recursive=True)):
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found[process.pid] = process
        return list(found.values())

    def kill(self) -> int:
        """SIGKILL every process of the node; how many there were."""
        doomed: dict[int, psutil.Process] = {}
        for _ in range(2):  # the second look finds what was being started during the first
            for process in self.processes():
                doomed[process.pid] = process
                _send(process, signal.SIGSTOP)
        for process in doomed.values():
            _send(process, signal.SIGKILL)
        end = time.monotonic() + GONE_SECONDS
        while any(_alive(process) for process in doomed.values()):
            if time.monotonic() > end:
                raise TimeoutError(f"processes of the node do not end: {sorted(doomed)}")
            threading.Event().wait(0.005)
        return len(doomed)

    def freeze(self) -> None:
        """SIGSTOP every process of the node."""
        for process in self.processes():
            _send(process, signal.SIGSTOP)

    def thaw(self) -> None:
        for process in self.processes():
            _send(process, signal.SIGCONT)

    def drain(self, seconds: float, preempted: bool = True) -> None:
        """Tell Ray that the node goes in so many seconds, as `ray drain-node` does. Ray must be connected."""
        import ray

        raylet: Any = importlib.import_module("ray._raylet")
        reason = importlib.import_module("ray.core.generated.autoscaler_pb2").DrainNodeReason
        client = raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
        kind = "DRAIN_NODE_REASON_PREEMPTION" if preempted else "DRAIN_NODE_REASON_IDLE_TERMINATION"
        deadline_ms = 0 if not preempted else _now_ms() + round(1000 * seconds)
        accepted, why = client.drain_node(self.node_id, reason.Value(kind), "a test", deadline_ms)
        if not accepted:
            raise RuntimeError(f"Ray does not drain the node: {why}")


class RayNodes:
    """The cluster: a head without CPUs, and nodes that are added. A context manager; within, this process is connected."""

    def __init__(self, environ: Mapping[str, str], extra: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="otr-"))
        self.variables = {
            **LIGHT,
            **(extra or {}),
            MARK: str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(part for part in (root, environ.get("PYTHONPATH", "")) if part)
        self._log = (self.folder / "keeper.log").open("w")
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.ray_nodes", str(self.folder)],
            env={**environ, **self.variables, "RAY_TMPDIR": str(self.folder), "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        try:
            self.address = str(self._hear()["address"])
        except BaseException:
            self.close()
            raise

    def add_node(self, cpus: int = 1, gpus: int = 0, resources: Mapping[str, float] | None = None) -> RayNode:
        assert self._keeper.stdin is not None
        asked = {"num_cpus": cpus, "num_gpus": gpus, "resources": dict(resources or {})}
        self._keeper.stdin.write(json.dumps(asked) + "\n")
        self._keeper.stdin.flush()
        told = self._hear()
        return RayNode(told["node_id"], tuple(told["pids"]))

    def close(self) -> None:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._keeper.stdin.close()
        try:
            self._keeper.wait(6 * GONE_SECONDS)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        self._keeper.stdout.close()
        self._log.close()
        end_all(str(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _hear(self) -> dict[str, Any]:
        assert self._keeper.stdout is not None
        for line in self._keeper.stdout:
            if line.startswith("{"):
                told: dict[str, Any] = json.loads(line)
                return told
        raise RuntimeError(f"the cluster did not start:\n{(self.folder / 'keeper.log').read_text()[-3000:]}")


@contextlib.contextmanager
def ray_nodes(environ: Mapping[str, str], extra: Mapping[str, str] | None = None) -> Iterator[RayNodes]:
    """A cluster that this process is connected to (in the namespace of the product), gone after it."""
    nodes = RayNodes(environ, extra)
    before = {name: os.environ.get(name) for name in nodes.variables}
    os.environ.update(nodes.variables)
    try:
        import ray

        settings: Any = importlib.import_module("ray._raylet")
        settings.AuthenticationTokenLoader.instance().reset_cache()  # read once a process; another test may have been first
        settings.Config.initialize("")
        ray.init(address=nodes.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield nodes
        finally:
            ray.shutdown()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        nodes.close()


def end_all(folder: str) -> int:
    """SIGKILL every process that carries the mark of this cluster; how many there were."""
    killed: set[int] = set()
    end = time.monotonic() + GONE_SECONDS
    while left := [process for process in _marked(folder) if _alive(process)]:
        for process in left:
            killed.add(process.pid)
            _send(process, signal.SIGKILL)
        if time.monotonic() > end:
            raise TimeoutError(f"processes of the cluster do not end: {left}")
        threading.Event().wait(LOOK_SECONDS)
    return len(killed)


def _marked(folder: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if f"{MARK}={folder}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process)
    return found


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _now_ms() -> int:
    from orchestrator.domain.clock import SystemClock

    return SystemClock().now_ns() // 1_000_000


def _keep() -> None:
    """The keeper: a head, then a node for every line of JSON that comes in; the end of the input ends all."""
    from ray.cluster_utils import Cluster

    # Cluster writes the address below RAY_TMPDIR, which is this cluster's folder.
    (Path(sys.argv[1]) / "ray").mkdir()
    common: dict[str, Any] = {
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
        "include_log_monitor": False,
    }
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, **common},
        shutdown_at_exit=False,
    )
    _tell({"address": cluster.address})
    for line in sys.stdin:
        node = cluster.add_node(**common, **json.loads(line))
        pids = [info.process.pid for infos in node.all_processes.values() for info in infos]
        _tell({"node_id": node.node_id, "pids": pids})


def _tell(value: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        _keep()
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        end_all(sys.argv[1])  # all but this process
        sys.stderr.flush()
        os._exit(0)  # Ray's own way out would wait for what is dead
