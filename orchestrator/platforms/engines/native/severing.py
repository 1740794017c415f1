"""Cutting a process off from its peers, so that whatever waits for them in it fails at once.

A rank that waits in a collective operation for another that is gone from it, but lives, gets no error; gloo's own `abort` does
not wake it. A connection that is shut down does, in milliseconds.

Limits: TCP only. What NCCL waits for over shared memory, NVLink or InfiniBand is not reached; such a process is killed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress


def sockets() -> frozenset[str]:
    """The sockets that this process has open, each by its inode."""
    return frozenset(name for _, name in _open())


def sever(known: frozenset[str]) -> int:
    """Shut every TCP connection down that is not among `known`; how many there were."""
    count = 0
    for fd, name in _open():
        if name in known:
            continue
        # An error: it was closed meanwhile, or has no peer.
        with suppress(OSError), socket.socket(fileno=os.dup(fd)) as found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                found.getpeername()
                found.shutdown(socket.SHUT_RDWR)
                count += 1
    return count


def _open() -> Iterator[tuple[int, str]]:
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that the folder was listed through, or closed meanwhile
            name = os.readlink(f"/proc/self/fd/{entry}")
            if name.startswith("socket:"):
                yield int(entry), name
