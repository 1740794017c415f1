"""The template: one process a node that imports what every worker needs, once, and is copied for each worker by a fork.

    python -m orchestrator.platforms.engines.native.template FD AGENT_PID LOOP_MODULE

A worker made so is there in tens of milliseconds instead of the ten seconds that importing torch, deepspeed and
transformers takes, and shares those pages of memory with all others. Forking is sound only while no second thread runs
(its locks would be copied in whatever state they are), so threads are counted before each fork, and a template that has
any refuses; its agent then starts a fresh process a worker, as it does where there are GPUs (CUDA bears no fork).

What a loop's module offers as `preload()` is called here, once. All it does must bear being copied.

The agent talks over a socket of packets: `{"fork": worker}` with two file descriptors comes in (the worker's line to the
agent, and the memory file for its stacks), `{"forked"}` with a pidfd where the kernel gives one, `{"exited"}`,
`{"up"}` and `{"refused"}` go out. The template ends, and its workers with it, when that socket closes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from orchestrator.platforms.engines.native import child, lifeline

PACKET_BYTES = 16 * 1024


def main(argv: list[str]) -> int:
    control = socket.socket(fileno=int(argv[1]))
    lifeline.die_with_parent(int(argv[2]))
    gc.disable()
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(argv[3])
        preload = getattr(module, "preload", None)
        if preload is not None:
            preload()
    except BaseException as error:  # noqa: BLE001 - the process's edge: its agent is told, and starts fresh processes
        _tell(control, {"refused": "".join(traceback.format_exception(error))[-PACKET_BYTES // 4 :]})
        return 1
    gc.collect()
    gc.freeze()
    return Template(control, int(argv[2])).serve()


class Template:
    """Forks on request, collects what has ended, and ends all when the agent is gone."""

    def __init__(self, control: socket.socket, agent: int) -> None:
        self._control = control
        self._workers: set[int] = set()
        # Whoever dies, a byte is written here; it wakes the poll. (A signal alone would be lost before a poll begins.)
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)
        signal.signal(signal.SIGTERM, _nothing)
        # From now on there may be workers to end first: the kernel's word that the agent is gone is a request.
        lifeline.die_with_parent(agent, signal.SIGTERM)

    def serve(self) -> int:
        _tell(self._control, {"up": True})
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._woken in ready and signal.SIGTERM in self._signals():
                break
            self._collect()
            if self._control.fileno() in ready:
                data, fds, _, _ = socket.recv_fds(self._control, PACKET_BYTES, 2)
                if not data:
                    break
                self._fork(json.loads(data)["fork"], fds)
        for pid in self._workers:
            lifeline.end_group(pid)
        return 0

    def _signals(self) -> bytes:
        try:
            return os.read(self._woken, 4096)
        except BlockingIOError:
            return b""

    def _fork(self, worker: str, fds: list[int]) -> None:
        threads = lifeline.threads_of_this_process()
        if threads > 1:
            _tell(self._control, {"refused": f"{threads} threads run in the template", "worker": worker})
        else:
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                self._become_worker(parent, fds)
            self._workers.add(pid)
            _tell_of_fork(self._control, worker, pid)
        for fd in fds:
            os.close(fd)

    def _become_worker(self, parent: int, fds: list[int]) -> None:
        """In the new process: never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for fd in (self._control.detach(), self._woken, self._wake):
                os.close(fd)
            gc.enable()
            status = child.main(parent, *fds)
        finally:
            os._exit(status)

    def _collect(self) -> None:
        """Tell of every worker that has ended. What it had started goes first, while its number is still its own."""
        while self._workers:
            ended = None
            with contextlib.suppress(ChildProcessError):
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            lifeline.end_group(ended.si_pid)
            _, status = os.waitpid(ended.si_pid, 0)
            self._workers.discard(ended.si_pid)
            _tell(self._control, {"exited": ended.si_pid, "status": os.waitstatus_to_exitcode(status)})


def _nothing(number: int, frame: object) -> None:
    """The wake-up pipe says it."""


def _tell(control: socket.socket, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the agent is gone: the next poll says so
        control.send(json.dumps(message).encode())


def _tell_of_fork(control: socket.socket, worker: str, pid: int) -> None:
    """With a pidfd: the agent can then kill this process and never another that got its number later."""
    message = json.dumps({"forked": worker, "pid": pid}).encode()
    pidfds = []
    with contextlib.suppress(OSError):  # an old kernel, or a container that forbids it: the number must do
        pidfds.append(os.pidfd_open(pid))
    with contextlib.suppress(OSError):
        socket.send_fds(control, [message], pidfds)
    for pidfd in pidfds:
        os.close(pidfd)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
