"""The nodes that other tests are run on do what they say, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.network import LINKS, NAMESPACES, Network, Node, sweep, why_not

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]
DEADLINE_SECONDS = 10.0

ECHO = """
import socket
with socket.create_server(("0.0.0.0", 7000)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    while data := connection.recv(100):
        connection.sendall(data)
"""
MAKER = """
import sys, threading
from tests.cluster.network import Network
network = Network()
node = network.add_node()
node.start([sys.executable, "-c", "import threading; threading.Event().wait(60)"])
print(network.name, flush=True)
threading.Event().wait(60)
"""


@pytest.fixture
def network() -> Iterator[Network]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with Network() as network:
        yield network


def echo_of(node: Node) -> socket.socket:
    """A connection from outside to a process on the node that sends back what it gets."""
    server = node.start([sys.executable, "-c", ECHO], stdout=subprocess.PIPE)
    assert server.stdout.readline() == b"ready\n"
    server.stdout.close()
    connection = socket.create_connection((node.address, 7000), timeout=5)
    connection.sendall(b"one")
    assert connection.recv(100) == b"one"
    return connection


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        threading.Event().wait(0.02)


def test_nodes_reach_each_other(network: Network) -> None:
    """A process on one node connects to one on another, by the other's own address."""
    first, second = network.add_node(), network.add_node()
    server = first.start([sys.executable, "-c", ECHO], stdout=subprocess.PIPE)
    assert server.stdout.readline() == b"ready\n"
    server.stdout.close()
    ask = f"import socket; c = socket.create_connection(({first.address!r}, 7000), 5); print(c.getsockname()[0])"
    said = subprocess.run(second.command([sys.executable, "-c", ask]), capture_output=True, text=True, check=True)
    assert said.stdout.strip() == second.address


def test_a_pulled_cable_is_silent(network: Network) -> None:
    """With the cable pulled nothing comes and nothing breaks; plugged in again, what was sent arrives."""
    node = network.add_node()
    with echo_of(node) as connection:
        node.pull_cable()
        connection.sendall(b"two")
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        node.plug_cable()
        connection.settimeout(DEADLINE_SECONDS)
        assert connection.recv(100) == b"two"


def test_a_killed_node_has_no_process_left(network: Network) -> None:
    """`kill` ends every process on the node, children too, and nobody outside."""
    node, other = network.add_node(), network.add_node()
    parent = (
        "import subprocess, sys, threading; subprocess.Popen([sys.executable, '-c', {!r}]); threading.Event().wait(60)"
    )
    wait = "import threading; threading.Event().wait(60)"
    node.start([sys.executable, "-c", parent.format(wait)])
    other.start([sys.executable, "-c", wait])
    until(lambda: len(node.pids()) == 2)
    assert node.kill() == 2
    assert node.pids() == []
    assert len(other.pids()) == 1


def test_a_frozen_node_is_silent_until_it_thaws(network: Network) -> None:
    """A frozen node keeps its connections and says nothing; thawed, it goes on."""
    node = network.add_node()
    with echo_of(node) as connection:
        node.freeze()
        connection.sendall(b"two")
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        node.thaw()
        connection.settimeout(DEADLINE_SECONDS)
        assert connection.recv(100) == b"two"


def test_nothing_is_left_of_a_network_whose_maker_was_killed(network: Network, repository: Path) -> None:
    """SIGKILL of the process that made a network, and its namespaces, links and processes go all the same."""
    maker = subprocess.Popen([sys.executable, "-c", MAKER], cwd=repository, stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    name = maker.stdout.readline().strip()
    assert (LINKS / name).exists()
    assert (NAMESPACES / f"{name}-0").exists()
    os.kill(maker.pid, signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    until(lambda: not any(path.name.startswith(name) for folder in (LINKS, NAMESPACES) for path in folder.iterdir()))
    assert sweep() == []
