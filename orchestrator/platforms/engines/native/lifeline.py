"""How processes of one node are tied together, and what can be known of the death of one. Linux only.

A worker must not outlive its agent, whatever happens to either: the kernel is asked to signal a process when its parent
dies (PR_SET_PDEATHSIG), from agent to template to worker. That wish is tied to the *thread* that made the process, so
whoever starts one does it from a thread that lives as long as it shall.

Limits: a kill for want of memory is told from counters of the kernel (of the memory cgroup, else of the whole machine),
which name no process: a worker killed by SIGKILL while such a counter grew is taken to be the one that was meant.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

PR_SET_PDEATHSIG = 1
PARENT_GONE = 71
"""Exit status of a process that found its parent gone when it began."""

CGROUP = Path("/sys/fs/cgroup")


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Be sent signal `number` when the thread that made this process ends. `parent` is the process id to expect there: a
    parent that is gone already sends nothing, so then this process ends itself."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(PARENT_GONE)


def threads_of_this_process() -> int:
    """How many threads the kernel counts here, those of libraries included."""
    return len(os.listdir("/proc/self/task"))


def end_group(pid: int) -> None:
    """SIGKILL for a worker and for what it started: a worker leads a session of its own. Harmless when it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def exit_text(status: int) -> str:
    """A process's end in words. `status` is its exit code, or minus the number of the signal that killed it."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was killed by {name}"


def state_of(pid: int) -> str:
    """What the kernel says a process is doing: `S (sleeping)`, `T (stopped)`, ...; `gone` when there is none."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("State:"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return "gone"


def is_stopped(pid: int) -> bool:
    """Whether the kernel runs nothing of a process until it gets SIGCONT."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


def waited_ns(pid: int) -> int:
    """How long the threads of a process have waited for a processor by now, together, in ns; of those that ended nothing is
    known any more. 0 where the kernel does not tell."""
    waited = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        for task in os.scandir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                waited += int(Path(task.path, "schedstat").read_text().split()[1])
    return waited


def memory_kills() -> Callable[[], int]:
    """A function that gives how many processes the kernel has killed for want of memory: in this process's own memory
    cgroup if that is counted, else on the machine; always 0 where neither is told."""
    for file in (*_cgroup_counters(), Path("/proc/vmstat")):
        if _kills_told_by(file) is not None:
            return partial(_kills_or_0, file)
    return lambda: 0


def _cgroup_counters() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    counters = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            counters.append(CGROUP / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            counters.append(CGROUP / "memory" / path.lstrip("/") / "memory.oom_control")
    counters.append(CGROUP / "memory.events")  # a container that sees its own cgroup as the root
    return counters


def _kills_told_by(file: Path) -> int | None:
    try:
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except (OSError, ValueError):
        return None
    return None


def _kills_or_0(file: Path) -> int:
    return _kills_told_by(file) or 0
