"""Several nodes on one machine: network namespaces on a bridge.

Each node has an address of its own, so its cable can be pulled (packets vanish, nobody gets a reset), all its processes
can be killed or stopped at once, and nothing that runs there hears of it beforehand. That is what a lost machine looks
like; a killed process on one address is not.

Everything carries a name that begins with `otn` and the number of the process that made it. A keeper, a process of its
own, removes all of that when its maker ends, also when it was killed; what outlived a keeper is removed by the next
network that is made.

Limits: needs root and iproute2 (`why_not`). Nodes share memory, files and process numbers with the machine.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

PREFIX = "otn"
NAMESPACES = Path("/run/netns")
LINKS = Path("/sys/class/net")
GONE_SECONDS = 10.0
LOOK_SECONDS = 0.02
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_count = itertools.count()


def why_not() -> str | None:
    """Why no network can be made here; None when one can."""
    if shutil.which("ip") is None:
        return "network namespaces need iproute2's `ip`, which is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"{_name_of(os.getpid())}-x"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return f"no network namespace can be made here: {tried.stderr.strip()}"
    _ip("netns", "del", name)
    return None


class Network:
    """A bridge with an address on this machine, and nodes. A context manager."""

    def __init__(self) -> None:
        sweep()
        self.name = f"{_name_of(os.getpid())}.{next(_count)}"
        self._keeper = subprocess.Popen(
            [sys.executable, str(Path(__file__)), self.name], stdin=subprocess.PIPE, start_new_session=True
        )
        self._subnet = _free_subnet()
        self.address = f"{self._subnet}.1"
        """This machine's address, as the nodes see it."""
        self.nodes: list[Node] = []
        try:
            _ip("link", "add", self.name, "type", "bridge")
            _ip("addr", "add", f"{self.address}/24", "dev", self.name)
            _ip("link", "set", self.name, "up")
        except BaseException:
            self.close()
            raise

    def add_node(self) -> Node:
        number = len(self.nodes)
        node = Node(self, f"{self.name}-{number}", f"{self._subnet}.{number + 2}")
        self.nodes.append(node)
        return node

    def close(self) -> None:
        """End every process on the nodes, and remove all of it."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait(3 * GONE_SECONDS)
        for node in self.nodes:
            for process in node.started:
                process.wait(GONE_SECONDS)

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Node:
    """A namespace with loopback and `eth0`."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.started: list[subprocess.Popen[Any]] = []
        _ip("netns", "add", name)
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", name, "master", network.name)
        _ip("link", "set", name, "up")
        for arguments in (
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", name, *arguments)

    def command(self, command: Sequence[str]) -> list[str]:
        """`command`, as it is started from outside to run on this node. The process keeps its number."""
        return ["ip", "netns", "exec", self.name, *command]

    def start(self, command: Sequence[str], environ: Mapping[str, str] | None = None, **options: Any) -> Any:
        """Start a process on this node, in a session of its own."""
        process: subprocess.Popen[Any] = subprocess.Popen(
            self.command(command), env=environ, start_new_session=True, **options
        )
        self.started.append(process)
        return process

    def pids(self) -> list[int]:
        """Every living process on this node, whoever started it."""
        return _pids(self.name)

    def kill(self) -> int:
        """SIGKILL every process on this node, until none is left; how many there were."""
        return _kill_all(self.name)

    def freeze(self) -> None:
        """SIGSTOP every process on this node."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def pull_cable(self) -> None:
        """Packets to and from this node vanish from now on; connections stay open."""
        _ip("link", "set", self.name, "down")

    def plug_cable(self) -> None:
        _ip("link", "set", self.name, "up")

    def _signal(self, number: int) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def sweep() -> list[str]:
    """Remove what is left of networks whose makers are dead; the names."""
    found = {path.name for folder in (NAMESPACES, LINKS) if folder.is_dir() for path in folder.iterdir()}
    stale = set()
    for name in found:
        match = re.match(rf"({PREFIX}[{_DIGITS}]+)[.-]", name)
        if match is not None and not Path(f"/proc/{int(match[1][len(PREFIX) :], 36)}").exists():
            stale.add(match[1])
    for name in stale:
        _remove(name)
    return sorted(stale)


def _remove(prefix: str) -> None:
    """End the processes of every namespace whose name begins so, and remove namespaces and links."""
    names = [path.name for path in NAMESPACES.iterdir()] if NAMESPACES.is_dir() else []
    for name in (name for name in names if name.startswith(prefix)):
        _kill_all(name)
        _ip("netns", "del", name)
    for name in [path.name for path in LINKS.iterdir() if path.name.startswith(prefix)]:
        # A link whose other end was in a namespace goes with that, in its own time.
        subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)


def _kill_all(namespace: str) -> int:
    killed: set[int] = set()
    end = time.monotonic() + GONE_SECONDS
    while pids := _pids(namespace):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(pids)
        if time.monotonic() > end:
            raise TimeoutError(f"processes of {namespace} do not end: {pids}")
        threading.Event().wait(LOOK_SECONDS)
    return len(killed)


def _pids(namespace: str) -> list[int]:
    found = [int(line) for line in _ip("netns", "pids", namespace).split()]
    return [pid for pid in found if not _dead(pid)]


def _dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _free_subnet() -> str:
    """The first three bytes of an unused network below 10.213.0.0/16 (its own choice: nobody has one here)."""
    used = _ip("-o", "-4", "addr", "show")
    for step in range(250):
        subnet = f"10.213.{(os.getpid() + step) % 250}"
        if f" {subnet}." not in used:
            return subnet
    raise OSError("every network below 10.213.0.0/16 is in use")


def _name_of(pid: int) -> str:
    """Short, since the name of a link may have 15 characters: `otn` and the number in base 36."""
    digits = ""
    while pid:
        pid, digit = divmod(pid, 36)
        digits = _DIGITS[digit] + digits
    return PREFIX + digits


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _keep(name: str) -> None:
    """The keeper: wait until the maker is gone (or closes), then remove all that carries the name."""
    sys.stdin.read()
    _remove(name)


if __name__ == "__main__":
    _keep(sys.argv[1])
