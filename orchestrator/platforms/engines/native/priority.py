"""Standbys warm up, and copies are shipped, behind those that train: with a lower claim to the processors.

Whoever lowers its claim may not raise it again without a right (CAP_SYS_NICE, or a limit RLIMIT_NICE that allows it), and
a rank that stayed behind would hold the whole gang up. So standbys do nothing without that right. Threads that ship never want
it back.

Where the kernel groups processes by session (autogroup), the group's claim counts and not the process's; a worker leads a
session of its own, so both are set. Limits: Linux counts by thread; all threads of the process get their claim back, what
else it has started by then does not.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

BEHIND = 5
"""Steps of niceness. Five give a standby a quarter of a processor that a rank wants too. With ten, a tenth, a standby is not
ready yet when the next worker is lost, which costs more than what it takes from the steps."""
CAP_SYS_NICE = 23


def stand_back() -> None:
    """The calling thread stays behind the ranks from now on, for good: for threads that do nothing else than ship copies."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, max(niceness, BEHIND)))


@contextlib.contextmanager
def behind(wanted: bool = True) -> Iterator[bool]:
    """Within, this process stands back, if that is `wanted` and can be undone; whether it does."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    stands_back = wanted and may_return_to(before)
    if stands_back:
        _set(min(19, before + BEHIND))
    try:
        yield stands_back
    finally:
        if stands_back:
            _set(before)


def may_return_to(niceness: int) -> bool:
    """Whether this process may take a claim as high as `niceness` says, from a lower one."""
    if resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20 - niceness:
        return True
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_NICE & 1)
    return False


def _set(niceness: int) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, int(thread), niceness)
    with contextlib.suppress(OSError):  # a kernel without such groups
        Path("/proc/self/autogroup").write_text(str(niceness))
