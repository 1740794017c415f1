"""Where an agent's worker processes come from, and how it learns that one has ended.

By rule from a fork of the template, which is started with the first worker and imports what the loop's module asks for.
A fresh process a worker is started instead where a fork cannot be: with GPUs, for a worker that needs other variables than
the template was started with, and when the template refused.

When the template is killed, its workers go with it; it is started again with the next worker.

Limits: the processes are tied to the thread that calls `begin` (see `lifeline`): it must live as long as they.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.platforms.engines.native import lifeline
from orchestrator.platforms.engines.native.template import PACKET_BYTES

NATIVE = "orchestrator.platforms.engines.native"
MOST_KILLED = 3
"""Templates in a row that are killed before they are up, until none is started again: memory may be too small for one."""
LEAVE_SECONDS = 5.0
"""For a process that was told to end, before it is killed; and for one that was killed to be gone."""


@dataclass(frozen=True, slots=True)
class Upbringing:
    """What a process must have before it imports anything."""

    module: str
    threads: int
    env: Mapping[str, str]

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        return {
            "OPENBLAS_NUM_THREADS": "1",  # numpy would start its threads when it is imported, and end all forking
            **base,
            "OMP_NUM_THREADS": str(self.threads),
            "TOKENIZERS_PARALLELISM": "false",
            **self.env,
        }


class Hooks(Protocol):
    """What the agent is told."""

    def born(self, worker: str, process: Process) -> None: ...
    def died(self, process: Process, status: int | None) -> None:
        """`status`: exit code, negative for a signal; None when nobody can know it any more."""
        ...

    def unborn(self, worker: str, why: str) -> None:
        """No process could be made for this worker."""
        ...


@dataclass(slots=True, eq=False)
class Process:
    """A worker's process. Its number is only used while it cannot be another's."""

    worker: str
    pid: int
    pidfd: int | None = None
    popen: subprocess.Popen[bytes] | None = None
    over: bool = False

    def signal(self, number: signal.Signals) -> None:
        if self.over:
            return
        with contextlib.suppress(ProcessLookupError):
            if self.pidfd is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """With all that it started."""
        if not self.over:
            self.signal(signal.SIGKILL)
            lifeline.end_group(self.pid)

    def close(self) -> None:
        self.over = True
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


@dataclass(slots=True, eq=False)
class _Template:
    upbringing: Upbringing
    control: socket.socket
    popen: subprocess.Popen[bytes]
    up: bool = False
    refused: str | None = None
    expected: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Workers that were asked for, with the descriptors that they shall have."""
    children: dict[int, Process] = field(default_factory=dict)


class Births:
    """See the module."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        hooks: Hooks,
        environ: Mapping[str, str],
        *,
        fork: bool = True,
        say: Callable[[str], None],
    ) -> None:
        """`say` takes a line about what goes wrong here."""
        self._selector = selector
        self._hooks = hooks
        self._environ = environ
        self._fork = fork
        self._say = say
        self._template: _Template | None = None
        self._fresh: list[Process] = []
        self._killed = 0
        self._closed = False

    def begin(self, worker: str, upbringing: Upbringing, line: int, stacks: int) -> None:
        """Make a process whose descriptors `line` and `stacks` are those given here; they now belong to this object."""
        template = self._template
        if template is None and self._fork:
            try:
                template = self._start_template(upbringing)
            except OSError as error:
                self._say(f"no worker is forked here: the template could not be started: {error}")
                self._fork = False
        if template is None or not self._fork or template.upbringing != upbringing:
            self._begin_fresh(worker, upbringing, line, stacks)
        else:
            template.expected[worker] = (line, stacks)
            self._ask(template, worker)

    def tick(self) -> None:
        """Called a few times a second: fresh processes that have ended."""
        for process in list(self._fresh):
            assert process.popen is not None
            try:
                ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            except ChildProcessError:  # somebody else in this process collects its children
                self._fresh.remove(process)
                self._over(process, None)
                continue
            if ended:
                lifeline.end_group(process.pid)  # what it had started, while its number is still its own
                self._fresh.remove(process)
                self._over(process, process.popen.wait())

    def close(self) -> None:
        """End every process, and wait until they are gone."""
        self._closed = True
        for process in self._fresh:
            process.kill()
        for process in list(self._fresh):
            assert process.popen is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._over(process, process.popen.wait(LEAVE_SECONDS))
        self._fresh.clear()
        template = self._template
        if template is None:
            return
        for process in template.children.values():
            process.kill()
        self._selector.unregister(template.control)
        template.control.settimeout(LEAVE_SECONDS)
        with contextlib.suppress(OSError):
            while template.up and template.children:
                if not self._hear(template):
                    break
        self._drop(template)

    # --- the template ---

    def _start_template(self, upbringing: Upbringing) -> _Template:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [str(theirs.fileno()), str(os.getpid()), upbringing.module]
        with theirs:
            popen = self._start("template", arguments, (theirs.fileno(),), upbringing)
        template = self._template = _Template(upbringing, ours, popen)
        self._selector.register(ours, selectors.EVENT_READ, self._ready)
        return template

    def _ask(self, template: _Template, worker: str) -> None:
        with contextlib.suppress(OSError):  # it has died: `_ready` will see that
            socket.send_fds(template.control, [json.dumps({"fork": worker}).encode()], template.expected[worker])

    def _ready(self, mask: int) -> None:
        template = self._template
        if template is not None and not self._hear(template):
            self._selector.unregister(template.control)
            self._lost(template)

    def _hear(self, template: _Template) -> bool:
        """One packet; False when there will be no more."""
        try:
            data, fds, _, _ = socket.recv_fds(template.control, PACKET_BYTES, 1)
        except ConnectionError:
            return False
        if not data:
            return False
        message = json.loads(data)
        if "up" in message:
            template.up, self._killed = True, 0
        elif "forked" in message:
            worker, pid = message["forked"], message["pid"]
            self._forget_fds(template, worker)
            process = template.children[pid] = Process(worker, pid, fds[0] if fds else None)
            self._hooks.born(worker, process)
        elif "exited" in message:
            self._over(template.children.pop(message["exited"]), message["status"])
        elif "refused" in message:
            self._say(f"no worker is forked here, each is started afresh: {message['refused']}")
            self._fork = False
            template.refused = message["refused"]
            if (worker := message.get("worker")) and not self._closed:
                self._begin_fresh(worker, template.upbringing, *template.expected.pop(worker))
        return True

    def _lost(self, template: _Template) -> None:
        """It is gone, and so are its workers: they die with it."""
        expected, template.expected = template.expected, {}
        children, template.children = template.children, {}
        self._drop(template)
        for process in children.values():
            process.kill()
            self._over(process, None)
        if not template.up and self._fork:
            self._killed += 1
            if template.popen.returncode != -signal.SIGKILL or self._killed >= MOST_KILLED:
                self._say(f"no worker is forked here: the template {lifeline.exit_text(template.popen.returncode)}")
                self._fork = False
        for worker, fds in expected.items():
            self.begin(worker, template.upbringing, *fds)

    def _drop(self, template: _Template) -> None:
        template.control.close()  # it ends its workers, then itself
        try:
            template.popen.wait(LEAVE_SECONDS if template.up else 0)
        except subprocess.TimeoutExpired:
            template.popen.kill()
            template.popen.wait()
        for process in template.children.values():
            process.close()
        for worker in list(template.expected):
            self._forget_fds(template, worker)
        self._template = None

    def _forget_fds(self, template: _Template, worker: str) -> None:
        for fd in template.expected.pop(worker, ()):
            os.close(fd)

    # --- fresh processes ---

    def _begin_fresh(self, worker: str, upbringing: Upbringing, line: int, stacks: int) -> None:
        arguments = [str(os.getpid()), str(line), str(stacks)]
        try:
            popen = self._start("child", arguments, (line, stacks), upbringing)
        except OSError as error:
            self._hooks.unborn(worker, f"no process could be started: {error}")
            return
        finally:
            os.close(line)
            os.close(stacks)
        process = Process(worker, popen.pid, None, popen)
        self._fresh.append(process)
        self._hooks.born(worker, process)

    def _start(
        self, module: str, arguments: list[str], fds: tuple[int, ...], upbringing: Upbringing
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", f"{NATIVE}.{module}", *arguments],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            env=upbringing.environment(self._environ),
            start_new_session=True,
        )

    def _over(self, process: Process, status: int | None) -> None:
        process.close()
        self._hooks.died(process, status)
